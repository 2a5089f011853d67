"""A row for each target: what was written, how near it comes, what INT8 loses, how long a picture takes."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from clusir.calibration.balance import BalanceConfig
from clusir.errors import BackendError
from clusir.export.formats.hosts.base import Host, Source
from clusir.export.formats.hosts.converted import Converted
from clusir.export.formats.hosts.folders import Written, export_targets, hosts_of, open_source
from clusir.export.formats.hosts.form import host_form
from clusir.export.formats.hosts.integers import Int8Config
from clusir.export.formats.hosts.opencv import OpenCV
from clusir.export.formats.hosts.registry import TARGETS
from clusir.export.graph.session import Probe
from clusir.export.subjects.onnx_probe import natural_picture
from clusir.runtimes.runners.files import find_model

ANY_SIZE = ("ffmpeg", "transformers.js")
_COLUMNS = ("ONNX Runtime", "its own code", "float16", "INT8, mean", "INT8, worst", "ms", "ms, ONNX Runtime")
HEAD = f"| target | bytes | {' | '.join(_COLUMNS)} |\n|---|---:|---:|---:|---:|---:|---|---:|---:|"
INT8 = Int8Config(balance=BalanceConfig(size=24, pool=40), evaluation_crops=2)
ROUNDS, PICTURES = 3, 4
_LOSS = re.compile(r"loses (\S+) dB in the mean, (\S+) at most \((.+?)\)")


def main(whole: Callable[[], Path], names: Sequence[str] = (), known: str = "") -> None:
    """The table, of ``names`` made anew (of all where there are none) and the other rows as they are in ``known``.
    ``whole``: the graph for pictures of any size."""
    rows = {line.split("`")[1]: line for line in known.splitlines() if line.startswith("| `")}
    print(HEAD, flush=True)
    for name in TARGETS:
        if names and name not in names:
            if name in rows:
                print(rows[name], flush=True)
            continue
        try:
            (host,) = hosts_of([name])
        except BackendError as error:
            print(rows.get(name, f"| `{name}` | not installed: {str(error).split(';')[0]} | | | | | | | |"), flush=True)
            continue
        with TemporaryDirectory() as scratch:
            print(row(host, whole() if name in ANY_SIZE else find_model(None).whole, Path(scratch)), flush=True)


def row(host: Host, path: Path, scratch: Path) -> str:
    source = open_source(path)
    (made,) = export_targets(source, scratch / "out", [host], int8=None if host.no_int8 else INT8)
    size = sum((made.folder / file).stat().st_size for file in made.files if not file.startswith("golden/"))
    loss = next((_LOSS.search(found.note) for found in made.findings if found.case == "int8"), None)
    eighth = f"{loss[1]} | {loss[2]}, {loss[3].replace('_', ' ')}" if loss else "| "
    cells = [differs(made, "onnxruntime"), differs(made, host.name), halved(made)]
    return f"| `{host.name}` | {size} | {' | '.join(cells)} | {eighth} | {speed(host, made.folder, source)} |"


def differs(made: Written, via: str) -> str:
    found = [f.agreement.max_abs for f in made.findings if f.via == via and f.agreement and "," not in f.case]
    return f"{max(found):.1e}" if found else "not run here" if via != "onnxruntime" else ""


def halved(made: Written) -> str:
    """dB of the float16 file, in the host's own code where that ran."""
    found = [f.agreement.psnr_db for f in made.findings if f.agreement and f.case.endswith("float16")]
    return f"{min(found):.1f} dB" if found else ""


def speed(host: Host, folder: Path, source: Source) -> str:
    """Two cells: processor time of one picture of 256 px (of the graph's one size) in the host's own code and in ONNX
    Runtime on the same graph, one thread each, in turn; the least of the rounds."""
    given = host.prepare(source)
    form = host.form(given)
    side = form.side_px or 256
    picture = natural_picture(side, side, source.spec.channels, 20)
    probe = Probe(host_form(given, form), threads=1)
    probe.run({form.input_name: picture})
    own, theirs = [], []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(PICTURES):
            probe.run({form.input_name: picture})
        theirs.append((time.process_time() - start) / PICTURES)
        if isinstance(host, OpenCV) or (isinstance(host, Converted) and type(host).runs is Converted.runs):
            # A process of its own each time: what it takes to start, and its first picture, are taken off.
            few, many = (of_children(lambda n=n: host.answers(folder, [picture] * n)) for n in (1, 1 + PICTURES))
            own.append((many - few) / PICTURES)
    return f"{1e3 * min(own):.0f} | {1e3 * min(theirs):.0f}" if own else f"| {1e3 * min(theirs):.0f}"


def of_children(run: Callable[[], list[np.ndarray]]) -> float:
    """Seconds of processor time of the processes that ``run`` starts and ends."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
