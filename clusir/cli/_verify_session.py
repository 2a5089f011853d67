"""What ``clusir-verify`` does once its options are read; imports torch and the exporters."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console

from clusir import plain_json
from clusir.cli._common import console as stdout
from clusir.cli._common import echo_warning
from clusir.cli._export_session import parity_table
from clusir.errors import WARNING_EXIT_CODE, UsageError, ValidationError
from clusir.export.formats.artefacts import Artefact, artefacts
from clusir.export.formats.extras import check_golden
from clusir.export.validate.files import ParityPlan, validate_files
from clusir.export.validate.parity import ParityRow, check_rows, remembered_answers
from clusir.export.validate.tolerances import tolerance
from clusir.network import checkpoint as checkpoints
from clusir.runtimes import open_runner

__all__ = ["VerifyRequest", "run", "run_bisect", "run_module"]


@dataclass(frozen=True)
class VerifyRequest:
    """The options of one ``clusir-verify`` call, named as on its command line; ``given``: those the user wrote out."""

    model: str | None
    checkpoint: str | None
    seed: int
    backends: tuple[str, ...]
    device: str
    sizes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    as_json: bool
    given: frozenset[str] = frozenset()

    @property
    def plan(self) -> ParityPlan:
        """What to compare on. OpenVINO, a default, makes way for a device that it does not have."""
        backends = self.backends
        if self.device == "cuda" and "backends" not in self.given:
            backends = tuple(b for b in backends if b != "openvino")
        return ParityPlan(backends, self.device, self.sizes, self.batches)


def run(request: VerifyRequest) -> None:
    """Check every graph of the model; prints a table or JSON. Raises ValidationError where any disagrees."""
    if "seed" in request.given and not (request.checkpoint or "").startswith("random:"):
        raise UsageError("--seed does nothing without a random: checkpoint; leave it out")
    plan = request.plan
    found = artefacts(request.model)
    rows = golden_rows(found, plan)
    reference, digest = checkpoints.resolve(request.checkpoint, request.seed)
    for artefact in found:
        spec = artefact.spec
        if spec.checkpoint_sha256 != digest:
            raise UsageError(
                f"{artefact.name} was exported from checkpoint {spec.checkpoint_sha256[:12] or '(untrained)'}, "
                f"the reference is {digest[:12] or '(untrained)'}; name the right one with --checkpoint, or with "
                "--module where it is no network of clusir"
            )
        wrong = [size for size in plan.sizes if any(side % spec.size.multiple_of for side in size)]
        if wrong and not spec.size.static_px:
            height, width = wrong[0]
            raise UsageError(f"size {height}x{width}: {artefact.name} takes multiples of {spec.size.multiple_of} px")
    with Console(stderr=True).status("verifying") as status, remembered_answers():
        rows += validate_files(reference, [artefact.path for artefact in found], plan, status.update)
    print_rows(rows, request.as_json)
    check_rows(rows, [artefact.path.name for artefact in found])


def print_rows(rows: list[ParityRow], as_json: bool) -> None:
    """Every comparison as JSON, or the worst of them as a table."""
    failed = [row for row in rows if not row.ok]
    if as_json:
        click.echo(plain_json.dumps({"rows": [row.to_dict() for row in rows], "failed": len(failed)}))
    else:
        stdout().print(parity_table(rows))


def golden_rows(found: list[Artefact], plan: ParityPlan) -> list[ParityRow]:
    """The golden cases of a bundle, on every precision and backend; none where a file and not a bundle was named."""
    rows: list[ParityRow] = []
    for artefact in found:
        if artefact.golden is None or artefact.spec.graph != "whole":
            continue
        for backend in plan.runtimes(artefact.path):
            device = plan.device if artefact.path.suffix == ".onnx" else "cpu"
            with open_runner(artefact.path, backend, device) as runner:
                bound = tolerance(runner.spec.precision, device)
                rows += check_golden(runner, artefact.golden, bound, f"{artefact.name} golden")
    return rows


def run_module(request: VerifyRequest, module: str) -> None:
    """A file that was exported with ``clusir-export --module``, against the module."""
    from clusir.export.module import verify_module

    if idle := sorted({"checkpoint", "seed", "batches", "device"} & request.given):
        raise UsageError(f"--{idle[0]} does nothing with --module; leave it out")
    path = Path(request.model or "")
    if path.suffix != ".onnx":
        raise UsageError(f"model {path}: --module is for an .onnx file that clusir-export --module wrote")
    if not path.is_file():
        raise UsageError(f"model {path}: no such file")
    sizes = request.sizes if "sizes" in request.given else None
    backends = request.backends if "backends" in request.given else None
    found, warnings = verify_module(path, module, sizes, backends)
    for warning in warnings:
        echo_warning(warning)
    if request.as_json:
        click.echo(plain_json.dumps({"rows": [vars(one) for one in found], "failed": 0}))
    else:
        for one in found:
            stdout().print(str(one), highlight=False)
    if warnings:
        sys.exit(WARNING_EXIT_CODE)


def run_bisect(a: Path, b: Path, tolerance: float, out: Path, as_json: bool) -> None:
    """Find the first tensor in which ``a`` (ONNX, or a checkpoint for PyTorch) and ``b`` (ONNX) differ. Raises
    ValidationError where there is one, so that a script sees it in the exit code, and UsageError where they are not of
    one subject."""
    from clusir.export.validate.bisect import bisect
    from clusir.export.validate.bisect_torch import bisect_module
    from clusir.export.validate.feeds import bisection_feeds
    from clusir.export.validate.subject import common_side, refuse_other_subjects

    for path in (a, b):
        if not path.is_file():
            raise UsageError(f"--bisect: {path} is {'a folder; name a file in it' if path.is_dir() else 'no file'}")
    if b.suffix != ".onnx" or a.suffix not in (".onnx", ".safetensors"):
        raise UsageError(f"--bisect {a} {b}: B is an .onnx file, A an .onnx or a .safetensors file")
    refuse_other_subjects(a, b)
    feeds = bisection_feeds(b, common_side(a, b))
    if a.suffix == ".safetensors":
        found = bisect_module(checkpoints.load(a), b, feeds, tolerance, out)
    else:
        found = bisect(a, b, feeds, tolerance, out)
    click.echo(plain_json.dumps(found.to_json()) if as_json else found.to_markdown())
    if found.found:
        raise ValidationError(f"{b.name} differs from {a.name} at tensor {found.tensor}")
