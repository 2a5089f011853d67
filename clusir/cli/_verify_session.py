"""What ``clusir-verify`` does once its options are read; imports torch and the runtimes."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
from rich.console import Console

from clusir.cli._common import console as stdout
from clusir.cli._export_session import parity_table
from clusir.errors import UsageError, ValidationError
from clusir.export.formats.bundle import Validation, validate_files
from clusir.export.formats.extras import check_golden
from clusir.export.validate.parity import ParityRow, fill
from clusir.export.validate.tolerances import tolerance
from clusir.network import checkpoint as checkpoints
from clusir.runtimes import open_runner
from clusir.runtimes.runners.files import find_model
from clusir.runtimes.runners.metadata import read_metadata
from clusir.spec import ModelSpec

__all__ = ["VerifyRequest", "run", "run_bisect"]


@dataclass(frozen=True)
class VerifyRequest:
    """The options of one ``clusir-verify`` call, named as on its command line."""

    model: str | None
    checkpoint: str | None
    seed: int
    backends: tuple[str, ...]
    device: str
    sizes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    as_json: bool


def run(request: VerifyRequest) -> None:
    """Check every graph of the model; prints a table or JSON. Raises ValidationError where any disagrees."""
    paths = artefacts(request.model)
    specs = {path: ModelSpec.from_metadata(read_metadata(path)) for path in paths}
    rows = golden_rows(request, paths)
    reference, digest = checkpoints.resolve(request.checkpoint, request.seed)
    for path, spec in specs.items():
        if spec.checkpoint_sha256 != digest:
            raise UsageError(
                f"{path.name} was exported from checkpoint {spec.checkpoint_sha256[:12] or '(untrained)'}, "
                f"the reference is {digest[:12] or '(untrained)'}; name the right one with --checkpoint"
            )
        wrong = [size for size in request.sizes if any(side % spec.size.multiple_of for side in size)]
        if wrong and not spec.size.static_px:
            height, width = wrong[0]
            raise UsageError(f"size {height}x{width}: {path.name} takes multiples of {spec.size.multiple_of} px")
    plan = Validation(request.backends, request.device, request.sizes, request.batches)
    with Console(stderr=True).status("verifying") as status:
        rows += validate_files(reference, paths, plan, status.update)
    failed = [row for row in rows if not row.ok]
    if request.as_json:
        click.echo(json.dumps({"rows": [row.to_dict() for row in rows], "failed": len(failed)}))
    else:
        stdout().print(parity_table(rows))
    if failed:
        raise ValidationError(f"{len(failed)} of {len(rows)} comparisons are out of tolerance (see the table)")


def golden_rows(request: VerifyRequest, paths: list[Path]) -> list[ParityRow]:
    """The golden cases of a bundle, on every precision and backend; none where there is no ``golden`` folder."""
    folder = paths[0].parent / "golden"
    rows: list[ParityRow] = []
    for path in paths if folder.is_dir() else []:
        for backend in request.backends:
            with open_runner(path, backend, request.device) as runner:
                if runner.spec.graph == "whole":
                    found = check_golden(runner, folder, tolerance(runner.spec.precision, request.device))
                    rows += [replace(row, artefact=f"{path.name} golden") for row in found]
    return rows


def artefacts(model: str | None) -> list[Path]:
    """Every ONNX file of a bundle, or a file with the graphs and precisions that stand beside it."""
    files = find_model(model)
    if files.whole.suffix != ".onnx":
        raise UsageError(f"model {files.whole}: clusir-verify checks .onnx files")
    folder, stem = files.whole.parent, files.whole.name.removesuffix(".onnx")
    names = [f"{stem}{variant}{graph}.onnx" for variant in ("", ".fp16", ".int8") for graph in ("", ".tile", ".router")]
    return [folder / name for name in names if (folder / name).is_file()]


def run_bisect(a: Path, b: Path, tolerance: float, out: Path, as_json: bool) -> None:
    """Find the first tensor in which ``a`` (ONNX, or a checkpoint for PyTorch) and ``b`` (ONNX) differ. Raises
    ValidationError where there is one, so that a script sees it in the exit code."""
    from clusir.calibration.photos import built_in_photos
    from clusir.degrade.recipe import degrade
    from clusir.export.validate.bisect import bisect
    from clusir.export.validate.bisect_torch import bisect_module
    from clusir.export.validate.parity import uniform_routing

    for path in (a, b):
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
    if b.suffix != ".onnx" or a.suffix not in (".onnx", ".safetensors"):
        raise UsageError(f"--bisect {a} {b}: B is an .onnx file, A an .onnx or a .safetensors file")
    spec = ModelSpec.from_metadata(read_metadata(b))
    side = spec.size.static_px or spec.tile_px
    photo = built_in_photos(16).photos[0]
    crop = fill(photo.crop(0, 0, max(photo.height, photo.width)), side, side)
    damaged = degrade(crop, "noise", 0.5, np.random.default_rng(0))
    feeds = {spec.input_name: np.ascontiguousarray(damaged.transpose(2, 0, 1)[None])}
    if spec.graph == "tile":
        feeds |= uniform_routing(spec)({"image": feeds[spec.input_name]})
    if a.suffix == ".safetensors":
        found = bisect_module(checkpoints.load(a), b, feeds, tolerance, out)
    else:
        found = bisect(a, b, feeds, tolerance, out)
    click.echo(json.dumps(found.to_json()) if as_json else found.to_markdown())
    if found.found:
        sys.exit(ValidationError.exit_code)
