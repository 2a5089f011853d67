"""``clusir-verify``: does this artefact still say what PyTorch says, here, on these backends?"""

from __future__ import annotations

import re
from pathlib import Path

import click

from clusir.cli._common import command, words

__all__ = ["main"]


def _sizes(_context: click.Context, parameter: click.Parameter, text: str) -> tuple[tuple[int, int], ...]:
    sizes = []
    for word in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,5})x(\d{1,5})\s*", word)
        if not found:
            raise click.BadParameter(f"{word!r} is not HxW, for example 96x160", param=parameter)
        sizes.append((int(found[1]), int(found[2])))
    return tuple(sizes)


def _batches(_context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        batches = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of integers, for example 1,3", param=parameter) from None
    if min(batches) < 1 or max(batches) > 64:
        raise click.BadParameter(f"{text!r}: a batch is 1 to 64", param=parameter)
    return batches


@command(name="clusir-verify", short_help="Compare exported files with PyTorch on this machine.")
@click.argument("model", required=False, metavar="[BUNDLE_OR_MODEL]")
@click.option("--checkpoint", metavar="FILE", help="The reference: .safetensors, or random:tiny|small|base. [shipped]")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of a random: reference.")
@click.option(
    "--backend",
    "backends",
    default="ort,openvino",
    show_default=True,
    callback=words(("ort", "openvino")),
    help="Comma-separated runtimes.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--sizes", default="64x64,96x160,272x336", show_default=True, callback=_sizes, help="HxW of dynamic graphs."
)
@click.option("--batches", default="1,3", show_default=True, callback=_batches, help="Comma-separated batch sizes.")
@click.option("--json", "as_json", is_flag=True, help="Print every comparison as JSON.")
@click.option(
    "--bisect",
    nargs=2,
    metavar="A B",
    default=None,
    help="Find the first tensor in which two files differ (A: an .onnx, or a .safetensors for PyTorch).",
)
@click.option(
    "--tolerance", type=float, default=1e-3, show_default=True, help="Relative error that --bisect takes for equal."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("clusir-bisect"),
    show_default=True,
    help="Where --bisect writes its reproducer.",
)
def main(
    model: str | None,
    checkpoint: str | None,
    seed: int,
    backends: tuple[str, ...],
    device: str,
    sizes: tuple[tuple[int, int], ...],
    batches: tuple[int, ...],
    as_json: bool,
    bisect: tuple[str, str] | None,
    tolerance: float,
    out: Path,
) -> None:
    """Check an artefact against PyTorch: every graph, precision, backend, size, batch and degradation.

    With no model named the shipped one is checked. Exit codes: 0 all within tolerance, 2 usage, 3 a backend is not
    available, 4 something disagrees.

    \b
    Examples:
      clusir-verify                               the shipped model, on ONNX Runtime and OpenVINO
      clusir-verify out/ --backend openvino       one bundle on one backend
      clusir-verify --bisect model.onnx model.int8.onnx
    """
    from clusir.cli import _verify_session as session

    if bisect is not None:
        session.run_bisect(Path(bisect[0]), Path(bisect[1]), tolerance, out, as_json)
        return
    session.run(session.VerifyRequest(model, checkpoint, seed, backends, device, sizes, batches, as_json))
