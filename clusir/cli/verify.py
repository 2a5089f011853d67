"""``clusir-verify``: compare an exported file with PyTorch on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from clusir.cli._common import command, given_options
from clusir.cli._targets import verify_target_folder
from clusir.cli._values import Integers, Sizes, Words
from clusir.errors import UsageError
from clusir.names import HOSTS, ONNX_BACKENDS

__all__ = ["main"]


@command(name="clusir-verify", short_help="Compare exported files with PyTorch on this machine.")
@click.argument("model", required=False, metavar="[BUNDLE_OR_MODEL]")
@click.option(
    "--module",
    metavar="PACKAGE.MODULE:FACTORY",
    help="Compare a file of clusir-export --module with what this function returns.",
)
@click.option(
    "--checkpoint",
    metavar="FILE",
    help="Compare with this: .safetensors, or random:tiny, random:small, random:base.  [default: the shipped one]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of a random: checkpoint.")
@click.option(
    "--backend",
    "backends",
    default="ort,openvino",
    show_default=True,
    type=Words(ONNX_BACKENDS),
    help="Runtimes to run the file on, with commas between.",
)
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Device of ONNX Runtime."
)
@click.option(
    "--sizes",
    default="64x64,96x160,272x336",
    show_default=True,
    type=Sizes(),
    help="Sizes to try where a graph's size is open.",
)
@click.option("--batches", default="1,3", show_default=True, type=Integers(1, 64), help="Batch sizes to try.")
@click.option("--json", "as_json", is_flag=True, help="Print every comparison as JSON.")
@click.option("--target", type=click.Choice(HOSTS), help="Check a folder of clusir-export --target, in that program.")
@click.option(
    "--bisect",
    nargs=2,
    metavar="A B",
    default=None,
    help="Find the first tensor in which two files differ (A: .onnx, or .safetensors for PyTorch; B: .onnx).",
)
@click.option(
    "--tolerance",
    type=float,
    default=1e-3,
    show_default=True,
    help="With --bisect: two tensors count as equal up to this relative RMS error.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("clusir-bisect"),
    show_default=True,
    help="With --bisect: folder for the smallest graph that shows the difference.",
)
def main(
    model: str | None,
    module: str | None,
    checkpoint: str | None,
    seed: int,
    backends: tuple[str, ...],
    device: str,
    sizes: tuple[tuple[int, int], ...],
    batches: tuple[int, ...],
    as_json: bool,
    target: str | None,
    bisect: tuple[str, str] | None,
    tolerance: float,
    out: Path,
) -> None:
    """Compare an exported file with PyTorch on this machine: every graph, precision, backend, size and degradation.

    With no model named, the shipped one is checked. Of a bundle every file in its manifest is checked, by its hash and,
    where it is a model, by running it. An option that would do nothing is refused.

    \b
    Exit codes: 0 everything agrees; 2 usage, or a file is missing or not what
    the manifest says; 3 a backend is not available; 4 something differs;
    5 it agrees, with a warning.

    \b
    Examples:
      clusir-verify                               the shipped model, on ONNX Runtime and OpenVINO
      clusir-verify out/ --backend openvino       one bundle on one backend
      clusir-verify mine.onnx --module my.net:build
      clusir-verify --bisect model.onnx model.int8.onnx
    """
    from clusir.cli import _verify_session as session

    given = given_options()
    if target is not None:
        if idle := given - {"target", "model", "as_json", "debug"}:
            raise UsageError(f"--{min(idle).rstrip('s').replace('_', '-')} does nothing with --target; leave it out")
        if model is None:
            raise UsageError(f"--target {target}: name the folder that clusir-export --target {target} wrote")
        verify_target_folder(target, Path(model), as_json)
        return
    acts_on_bisection = {"bisect", "tolerance", "out", "as_json", "debug"}
    idle = given - acts_on_bisection if bisect is not None else given & {"tolerance", "out"}
    if idle:
        name = {"model": "MODEL", "backends": "--backend", "as_json": "--json"}.get(word := min(idle), f"--{word}")
        raise UsageError(f"{name} does nothing {'with' if bisect is not None else 'without'} --bisect; leave it out")
    if bisect is not None:
        session.run_bisect(Path(bisect[0]), Path(bisect[1]), tolerance, out, as_json)
        return
    request = session.VerifyRequest(model, checkpoint, seed, backends, device, sizes, batches, as_json, given)
    if module is not None:
        session.run_module(request, module)
    else:
        session.run(request)
