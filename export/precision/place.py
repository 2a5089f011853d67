"""Somebody else's network as files: the float32 graph and the precisions made of it, put in place together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clusir import plain_json
from clusir.errors import BudgetError, ClusirError, ExportError, UsageError
from clusir.export.ownership import refuse_foreign, retire
from clusir.export.precision.run import PrecisionConfig, PrecisionReport, make_precisions
from clusir.export.staging import staged
from clusir.export.validate.compare import Agreement
from clusir.names import PRECISIONS

__all__ = ["Placed", "check_fit", "known_files", "lower_of", "place"]

Judge = Callable[[Path, str], Sequence[tuple[str, str, Agreement]]]
"""A file and its precision to (backend, what, agreement) of every comparison; raises ValidationError on a miss."""


@dataclass(frozen=True)
class Placed:
    """What was written beside the float32 file: ``files`` by name, what they cost, what was ``compared`` (file,
    backend, what, agreement), and ``notes``."""

    files: tuple[str, ...] = ()
    report: PrecisionReport | None = None
    compared: tuple[tuple[str, str, str, Agreement], ...] = ()
    notes: tuple[str, ...] = ()


def lower_of(config: PrecisionConfig | None) -> tuple[str, ...]:
    """The precisions below float32 that are asked for."""
    return tuple(p for p in config.precisions if p != "fp32") if config is not None else ()


def check_fit(config: PrecisionConfig | None, batch: int, router: str = "dense") -> None:
    """Raise UsageError where a graph of that ``batch`` (0: any) and ``router`` has no lower precision."""
    if lower_of(config) and batch > 1:
        raise UsageError(f"fp16 and int8 need single pictures, and the file takes {batch}; export a batch of 1")
    if lower_of(config) and router in ("conditional", "gathered"):
        raise UsageError(f"--router {router} has no fp16 or int8 form here; leave one of them out")


def known_files(out: Path, config: PrecisionConfig | None, files: Collection[str] = ()) -> list[str]:
    """The names that :func:`place` may write beside ``out``, itself and ``files`` among them."""
    lower, stem = lower_of(config), out.stem
    beside = [name for name in files if name != out.name]
    if not lower:
        return [out.name, *beside]
    ends = ("", ".tile") if f"{stem}.tile.onnx" in beside else ("",)
    variants = [f"{stem}.{precision}{end}.onnx" for precision in lower if precision in PRECISIONS for end in ends]
    told = [f"{stem}.{name}" for name in ("losses.json", "report.json")]
    drawn = [f"{stem}.calibration.json"] if variants else []
    drawn += [f"{stem}.frontier.svg"] if "int8" in lower else []
    return [out.name, *beside, *variants, *told, *drawn]


def place(
    out: Path,
    files: Mapping[str, bytes],
    config: PrecisionConfig | None,
    judge: Judge,
    progress: Callable[[str], None],
) -> Placed:
    """Write ``files`` (by name: the float32 graph ``out``, and those that go with it), which were compared, into
    ``out``'s folder, and their lower precisions beside them.

    Nothing is put in place unless all were made and ``judge`` let each pass; of a missed ``--max-drop`` the best is
    kept, compared as any other, and BudgetError raised. Files of a former export in precisions that this one does not
    make are renamed to ``NAME.stale``. Raises UsageError where a file is in the way that no export has written.
    """
    names = known_files(out, config, files)
    refuse_foreign(out.parent, names, out.stem)
    replaced = out.read_bytes() if out.is_file() else None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if config is None or not lower_of(config):
            with staged(out.parent, check=lambda names: refuse_foreign(out.parent, names, out.stem)) as stage:
                for name, data in files.items():
                    (stage / name).write_bytes(data)
            placed = Placed(tuple(files))
        else:
            placed = _with_lower(out, files, config, judge, progress)
    except OSError as error:
        raise ExportError(f"{out} cannot be written ({error.strerror or error}); check the folder") from error
    stale = retire(out.parent, out.stem, names, replaced)
    notes = tuple(f"WARNING: {name} belongs to the former {out.name}; it is now {name}.stale" for name in stale)
    return Placed(placed.files, placed.report, placed.compared, notes)


def _with_lower(
    out: Path, given: Mapping[str, bytes], config: PrecisionConfig, judge: Judge, progress: Callable[[str], None]
) -> Placed:
    keep: list[str] = []
    stem = out.stem

    def check(names: list[str]) -> None:
        refuse_foreign(out.parent, names, stem)

    compared: list[tuple[str, str, str, Agreement]] = []
    with staged(out.parent, keep, check) as stage:
        for name, data in given.items():
            (stage / name).write_bytes(data)
        missed: BudgetError | None = None
        try:
            made = make_precisions(stage, stem, config, state=out.parent / f".{stem}.quantisation", progress=progress)
        except BudgetError as error:
            best = getattr(error, "report", None)
            if best is None:
                raise
            missed, made = error, best
        except ClusirError:
            raise
        except Exception as error:
            raise ExportError(f"{type(error).__name__}: {error}") from error
        for name in ("calibration.json", "frontier.svg"):
            if (stage / name).is_file():
                (stage / name).rename(stage / f"{stem}.{name}")
        for (precision, _), path in made.files.items():
            progress(f"comparing {path.name}")
            compared += [(path.name, *row) for row in judge(path, precision)]
        files = sorted(path.name for path in stage.iterdir() if path.is_file() and not path.name.startswith("."))
        report = f"{stem}.report.json"
        told: dict[str, Any] = {
            "graphs": [
                {"graph": _graph(name, stem), "file": name, "bytes": len(data), "passes": []}
                for name, data in given.items()
            ],
            "parity": [
                {"artefact": name, "runner": backend, "case": what, **asdict(agreement)}
                for name, backend, what, agreement in compared
            ],
            "precisions": made.to_json(),
            "files": sorted([*files, report]),
            "failure": str(missed or ""),
        }
        (stage / report).write_text(plain_json.dumps(told, indent=2) + "\n", encoding="utf-8")
        if missed is not None:
            keep += [*files, report]
            raise missed
    return Placed(tuple(told["files"]), made, tuple(compared))


def _graph(name: str, stem: str) -> str:
    """Which graph of the model ``stem`` a file is."""
    return name.removeprefix(stem).removesuffix(".onnx").removeprefix(".") or "whole"
