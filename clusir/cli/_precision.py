"""The options of ``clusir-export`` that act on lower precisions, whatever is exported."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markdown import Markdown

from clusir.cli._common import console as stdout
from clusir.errors import UsageError
from clusir.names import BFLOAT16, ONNX_BACKENDS

if TYPE_CHECKING:
    from clusir.export.precision.place import Placed
    from clusir.export.precision.run import PrecisionConfig

__all__ = ["PRECISION_OPTIONS", "placed_json", "precision_config", "print_placed", "refuse_idle_options"]

# Options that act on nothing but lower precisions, or on INT8 alone.
_OF_LOWER = ("calibration", "manifest")
_OF_INT8 = ("engine", "max_drop", "time_limit")
_OF_FP16 = ("fp16_islands",)
PRECISION_OPTIONS = ("precision", "seed", *_OF_LOWER, *_OF_INT8, *_OF_FP16)


def refuse_idle_options(options: Mapping[str, Any], given: Collection[str]) -> None:
    """Raise UsageError for an option among ``given``, which the user wrote, that would do nothing."""
    lower = set(options["precision"]) - {"fp32"}
    idle: dict[str, str] = {}
    if not lower:
        idle |= dict.fromkeys(_OF_LOWER, "without --precision fp16 or int8")
    elif lower == {BFLOAT16}:
        idle["manifest"] = "without --precision fp16 or int8"
    if "fp16" not in lower:
        idle |= dict.fromkeys(_OF_FP16, "without --precision fp16")
    if "int8" not in lower:
        idle |= dict.fromkeys(_OF_INT8, "without --precision int8")
    elif options["engine"] == "nncf":
        idle["time_limit"] = "with --engine nncf, which has no limit of time"
    if options["max_drop"] is None:
        idle.setdefault("time_limit", "without --max-drop, whose search it bounds")
    if not lower and not (options.get("checkpoint") or "").startswith("random:"):
        idle["seed"] = "without a random: checkpoint or calibration"
    for name, reason in idle.items():
        if name in given:
            raise UsageError(f"--{name.replace('_', '-')} does nothing {reason}; leave it out")


def precision_config(options: Mapping[str, Any], backends: tuple[str, ...] = ONNX_BACKENDS) -> PrecisionConfig:
    """What the options ask for; ``backends``: on which the files are measured."""
    from clusir.export.precision.frontier import BudgetConfig
    from clusir.export.precision.run import PrecisionConfig
    from clusir.export.quantize.float16 import Fp16Config

    return PrecisionConfig(
        precisions=tuple(options["precision"]),
        engine=options["engine"],
        calibration=options["calibration"],
        manifest=options["manifest"],
        seed=options["seed"],
        budget=BudgetConfig(max_drop_db=options["max_drop"], time_limit_s=options["time_limit"]),
        fp16=Fp16Config(islands=options["fp16_islands"] == "auto"),
        backends=backends,
    )


def placed_json(placed: Placed) -> dict[str, Any]:
    """The files of a brought network and what their precisions cost, as data."""
    rows = [
        {"artefact": name, "backend": backend, "case": what, "max_abs": found.max_abs, "psnr_db": found.psnr_db}
        for name, backend, what, found in placed.compared
    ]
    report = placed.report.to_json() if placed.report is not None else None
    return {"files": list(placed.files), "precisions": report, "parity": rows}


def print_placed(placed: Placed, folder: Path) -> None:
    """What each lower precision was compared with, what it costs, and the files."""
    console = stdout()
    for artefact in dict.fromkeys(row[0] for row in placed.compared):
        of = [row for row in placed.compared if row[0] == artefact]
        console.print(
            f"{artefact}: {len(of)} comparisons, worst agreement {min(row[3].psnr_db for row in of):.1f} dB",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    if placed.report is not None:
        console.print(Markdown(placed.report.to_markdown()))
    for name in placed.files:
        if name.endswith(".onnx"):
            size = (folder / name).stat().st_size / 1e6
            console.print(f"{folder / name}  {size:.2f} MB", highlight=False, soft_wrap=True)
