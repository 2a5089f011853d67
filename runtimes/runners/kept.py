"""Graphs as ONNX Runtime has optimised them, kept in the user's cache: the next process opens one in less than half
of the time.

A kept graph follows from the file, from ONNX Runtime's version and from the processor, in whose blocked layout its
weights lie; its folder is named by their digest. The weights of a file that keeps them elsewhere are told by their
checksum, which was compared before. What is kept has checksums, too: a disk that spoils it costs the time of opening
the file. Only the CPU's graphs of one size are kept, and the newest few of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clusir.runtimes.machine.fingerprint import cpu_features, cpu_model
from clusir.runtimes.runners.cache import cache_dir
from clusir.runtimes.runners.external import weights_are_summed

__all__ = ["open_kept"]

_ROOM, _CPU = "ort", "CPUExecutionProvider"
_GRAPH, _WEIGHTS, _ABOUT = "graph.onnx", "graph.onnx.data", "about.json"
_MOST_KEPT = 12
_MOST_BYTES = 64 << 20  # of a kept graph with its weights
_LEAST_BYTES = 1024  # of a tensor that leaves the graph


def open_kept(
    ort: Any, path: Path, options: Any, count: Callable[[Any], dict[str, int]]
) -> tuple[Any, dict[str, int] | None]:
    """A session of the graph ``path``: of its kept form where there is one, else of the file, whose optimised form is
    kept. ``count`` says how many nodes of a session run where: what it said of the file is returned beside a kept one,
    else None. Raises what ONNX Runtime raises for the file."""
    place = _place(path, ort.__version__)
    if place is None:
        return ort.InferenceSession(str(path), options, providers=[_CPU]), None
    if (place / _ABOUT).is_file():
        level = options.graph_optimization_level
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimised
        try:
            about = json.loads((place / _ABOUT).read_text(encoding="utf-8"))
            if about["sha256"] != _digests(place):
                raise ValueError("it is not what was kept")
            session = ort.InferenceSession(str(place / _GRAPH), options, providers=[_CPU])
            os.utime(place)
            return session, {str(name): int(number) for name, number in about["nodes"].items()}
        except Exception:  # it is damaged, or another process has just removed it
            shutil.rmtree(place, ignore_errors=True)
            options.graph_optimization_level = level
    return _keep(ort, path, options, count, place), None


def _keep(ort: Any, path: Path, options: Any, count: Callable[[Any], dict[str, int]], place: Path) -> Any:
    """A session of the file; its optimised form is put to ``place`` whole, or not at all."""
    try:
        draft = Path(tempfile.mkdtemp(prefix="draft-", dir=place.parent))
    except OSError:
        return ort.InferenceSession(str(path), options, providers=[_CPU])
    try:
        options.optimized_model_filepath = str(draft / _GRAPH)
        entries = {"file_name": _WEIGHTS, "min_size_in_bytes": str(_LEAST_BYTES)}
        for key, value in entries.items():
            options.add_session_config_entry(f"session.optimized_model_external_initializers_{key}", value)
        try:
            session = ort.InferenceSession(str(path), options, providers=[_CPU])
        except Exception:  # the disk may be full; what is wrong with the file itself is said by the next line
            options.optimized_model_filepath = ""
            return ort.InferenceSession(str(path), options, providers=[_CPU])
        try:
            if sum(part.stat().st_size for part in draft.iterdir()) <= _MOST_BYTES:
                about = {"nodes": count(session), "sha256": _digests(draft)}
                (draft / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
                draft.rename(place)
                _forget_old(place.parent)
        except OSError:  # another process was faster
            pass
        return session
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _place(path: Path, version: str) -> Path | None:
    """The folder of a graph's kept form, whether it is there or not; None where none is kept."""
    features = cpu_features()
    if path.suffix != ".onnx" or not features:  # without them one layout of weights may be taken for another
        return None
    room = cache_dir(_ROOM)
    try:
        if room is None or path.stat().st_size > _MOST_BYTES or not weights_are_summed(path):
            return None
        digest = hashlib.sha256(f"{version}, {cpu_model()}, {features}".encode())
        digest.update(path.read_bytes())
    except OSError:
        return None
    return room / digest.hexdigest()[:32]


def _digests(place: Path) -> dict[str, str]:
    """Of the graph and its weights, by name. Raises OSError."""
    found = {}
    for path in (place / _GRAPH, place / _WEIGHTS):
        if path.exists():
            with path.open("rb") as stream:
                found[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def _forget_old(room: Path) -> None:
    """Remove all but the newest of what is kept."""
    kept = sorted((place for place in room.iterdir() if place.is_dir()), key=lambda place: place.stat().st_mtime)
    for place in kept[:-_MOST_KEPT]:
        shutil.rmtree(place, ignore_errors=True)
