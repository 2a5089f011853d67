"""``clusir-export``: checkpoint to validated ONNX files, quantised where asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from clusir.cli._common import command, words
from clusir.errors import UsageError

__all__ = ["main"]

_PRECISIONS = ("fp32", "fp16", "int8")
_BACKENDS = ("ort", "openvino")


def _decibels(_context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """``0.1dB`` or ``0.1``: decibels, at least 0."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:dB)?\s*", text, re.IGNORECASE)
    if not found:
        raise click.BadParameter(f"{text!r} is not a number of decibels, for example 0.1dB", param=parameter)
    return float(found[1])


def _seconds(_context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """``90``, ``90s``, ``10m`` or ``1h``."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    if not found:
        raise click.BadParameter(f"{text!r} is not a time, for example 90s, 10m or 1h", param=parameter)
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


@command(name="clusir-export", short_help="Write a network as verified ONNX, also in fewer bits.")
@click.option(
    "--onnx",
    "onnx_path",
    metavar="[PATH]",
    is_flag=False,
    flag_value="clusir-bundle",
    default=None,
    help="Write ONNX: a folder (a bundle) or a file name ending in .onnx. Without PATH: ./clusir-bundle.",
)
@click.option("--openvino", is_flag=True, help="Also write OpenVINO IR (.xml, .bin) of every graph.")
@click.option("--ort-mobile", is_flag=True, help="Also write .ort files, their operators and a usability report.")
@click.option("--checkpoint", metavar="FILE", help="A .safetensors file, or random:tiny|small|base. [shipped]")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of a random: checkpoint and of calibration.")
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    callback=words(_PRECISIONS),
    help="fp32, fp16, int8; commas between.",
)
@click.option(
    "--router",
    type=click.Choice(["dense", "conditional"]),
    default="dense",
    show_default=True,
    help="All experts, masked by their gates, or an If around each.",
)
@click.option(
    "--dft",
    type=click.Choice(["auto", "matmul", "op"]),
    default="auto",
    show_default=True,
    help="How an FFT is written.",
)
@click.option("--dynamic", is_flag=True, help="Any height and width that fit the size rule, not one static tile.")
@click.option(
    "--tile",
    "tile_px",
    type=click.IntRange(32, 4096),
    default=256,
    show_default=True,
    help="Side of a tile in pixels, halo included.",
)
@click.option(
    "--halo",
    "halo_px",
    type=click.IntRange(0, 512),
    default=16,
    show_default=True,
    help="Halo on each side of a tile in pixels.",
)
@click.option(
    "--backends", default="ort,openvino", show_default=True, callback=words(_BACKENDS), help="Runtimes to validate on."
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where ONNX Runtime validates.",
)
@click.option(
    "--engine", type=click.Choice(["ort", "nncf"]), default="ort", show_default=True, help="Who quantises to int8."
)
@click.option(
    "--calibration", type=click.Path(path_type=Path), help="Photos to calibrate on. [free photos of scikit-image]"
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A calibration.json to draw from again.",
)
@click.option(
    "--max-drop", metavar="dB", callback=_decibels, help="What int8 may cost the worst degradation, e.g. 0.1dB."
)
@click.option("--time-limit", metavar="TIME", callback=_seconds, help="Bound on the search for --max-drop, e.g. 10m.")
@click.option("--module", metavar="PACKAGE.MODULE:FACTORY", help="Export your own model: a function that returns it.")
@click.option(
    "--input",
    "input_shape",
    metavar="BxCxHxW",
    default="1x3x128x128",
    show_default=True,
    help="The input to trace --module with.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def main(**options: Any) -> None:
    """Export a checkpoint, validate it against PyTorch, and only then put the files in place.

    Three graphs are written: NAME.onnx answers alone; NAME.tile.onnx and NAME.router.onnx let all tiles of a large
    picture share one routing. Exit codes: 0 done, 2 usage, 3 backend or device not available, 4 refused by a pass, by
    validation or by the quality budget (nothing but the report is written; of a budget, the best).

    \b
    Examples:
      clusir-export --onnx out/ --precision fp32,fp16,int8     the shipped checkpoint as a bundle
      clusir-export --onnx model.onnx --dynamic                any size that is a multiple of 16
      clusir-export --onnx mine.onnx --module my.net:build --input 1x3x128x128
    """
    if options["onnx_path"] is None:
        raise UsageError("nothing to do: say --onnx [PATH]")
    from clusir.cli._export_session import ExportRequest, run, run_module

    path = Path(options.pop("onnx_path"))
    folder, stem = (path.parent, path.stem) if path.suffix == ".onnx" else (path, "model")
    module = options.pop("module")
    request = ExportRequest(folder=folder, stem=stem, **options)
    if module is not None:
        run_module(request, module)
    else:
        run(request)
