"""``clusir-export``: checkpoint to validated ONNX files, quantised where asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from clusir.cli._common import command
from clusir.errors import UsageError

__all__ = ["main"]

_PRECISIONS = ("fp32", "fp16", "int8")
_BACKENDS = ("ort", "openvino")


def _words(allowed: tuple[str, ...]) -> Any:
    """A click callback: a comma-separated list of words out of ``allowed``, duplicates dropped."""

    def parse(_context: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
        words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
        wrong = [word for word in words if word not in allowed]
        if wrong or not words:
            raise click.BadParameter(
                f"{', '.join(wrong) or 'nothing'} is not among {', '.join(allowed)}", param=parameter
            )
        return words

    return parse


@command(name="clusir-export")
@click.option(
    "--onnx",
    "onnx_path",
    metavar="PATH",
    is_flag=False,
    flag_value="clusir-bundle",
    default=None,
    help="Write ONNX: a folder (a bundle) or a file name ending in .onnx. Without PATH: ./clusir-bundle.",
)
@click.option(
    "--checkpoint",
    metavar="FILE",
    help="A .safetensors checkpoint; default: the shipped one. random:tiny|small|base: untrained.",
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    callback=_words(_PRECISIONS),
    help="Comma-separated: fp32, fp16, int8.",
)
@click.option(
    "--router",
    type=click.Choice(["dense", "conditional"]),
    default="dense",
    show_default=True,
    help="Every expert masked by its gate, or one If per expert.",
)
@click.option(
    "--dft",
    type=click.Choice(["auto", "matmul", "op"]),
    default="auto",
    show_default=True,
    help="How the FFT is lowered.",
)
@click.option(
    "--dynamic", is_flag=True, help="Any height and width that fit the size rule, instead of one static tile."
)
@click.option(
    "--tile",
    "tile_px",
    type=click.IntRange(32, 4096),
    default=256,
    show_default=True,
    help="Tile side in pixels, halo included.",
)
@click.option(
    "--halo",
    "halo_px",
    type=click.IntRange(0, 512),
    default=16,
    show_default=True,
    help="Halo on each side of a tile, in pixels.",
)
@click.option(
    "--backends", default="ort,openvino", show_default=True, callback=_words(_BACKENDS), help="Runtimes to validate on."
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Device of the ONNX Runtime validation.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of a random: checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def main(
    onnx_path: str | None,
    checkpoint: str | None,
    precision: tuple[str, ...],
    router: str,
    dft: str,
    dynamic: bool,
    tile_px: int,
    halo_px: int,
    backends: tuple[str, ...],
    device: str,
    seed: int,
    as_json: bool,
) -> None:
    """Export a checkpoint, validate it against PyTorch, and only then put the files in place.

    Three graphs are written: NAME.onnx answers alone; NAME.tile.onnx and NAME.router.onnx let all tiles of a large
    picture share one routing. Exit codes: 0 done, 2 usage, 3 backend or device not available, 4 refused by a pass or by
    validation (nothing but the report is written).

    \b
    Examples:
      clusir-export --onnx out/                  a bundle of the shipped checkpoint
      clusir-export --onnx model.onnx --dynamic  any size that is a multiple of 16
    """
    if onnx_path is None:
        raise UsageError("nothing to do: say --onnx [PATH]")
    from clusir.cli._export_session import ExportRequest, run

    path = Path(onnx_path)
    folder, stem = (path.parent, path.stem) if path.suffix == ".onnx" else (path, "model")
    run(
        ExportRequest(
            folder, stem, checkpoint, precision, router, dft, dynamic, tile_px, halo_px, backends, device, seed, as_json
        )
    )
