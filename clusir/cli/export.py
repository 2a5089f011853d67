"""``clusir-export``: checkpoint to validated ONNX files, quantised where asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from clusir.cli._adopt import DESCRIBING, adoption_options, run_adoption
from clusir.cli._common import command, given_options
from clusir.cli._precision import PRECISION_OPTIONS
from clusir.cli._targets import run_targets
from clusir.cli._values import Decibels, Seconds, Setting, Words
from clusir.errors import UsageError
from clusir.names import BFLOAT16, HOSTS, ONNX_BACKENDS, PRECISIONS

__all__ = ["main"]


_MODULE_ONLY = ("output", "batch", "size", "maps")
_WEIGHTS = (".pth", ".pt", ".ckpt", ".bin")  # endings of other people's checkpoints
_MODULE_TOO = ("onnx_path", "module", "input_shape", "router", "dft", "dynamic", "tile_px", "halo_px", "backends")


def check_options(module: bool, known: bool = False) -> None:
    """Raise UsageError for an option on the command line that would have no effect. ``module``: the network is
    somebody else's, ``known``: from a checkpoint."""
    context = click.get_current_context()
    heeded = {*_MODULE_TOO, *_MODULE_ONLY, *PRECISION_OPTIONS, "as_json", "debug"}
    heeded |= {"checkpoint"} if known else set()
    refused = []
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
        if given and (name not in heeded if module else name in (*_MODULE_ONLY, "input_shape")):
            refused.append(parameter.opts[0])
    if refused and module:
        way = "this --checkpoint" if known else "--module"
        raise UsageError(f"with {way}, {', '.join(refused)} would have no effect: leave out")
    if refused:
        raise UsageError(f"{', '.join(refused)}: only with --module; the shipped network needs none of them")
    if module and context.params.get("dynamic") and context.params.get("size"):
        raise UsageError("--dynamic and --size contradict each other; leave one out")


@command(name="clusir-export", short_help="Write a network as verified ONNX, also in fewer bits.")
@click.option(
    "--onnx",
    "onnx_path",
    metavar="[PATH]",
    is_flag=False,
    flag_value="clusir-bundle",
    default=None,
    help="Write ONNX to PATH: a folder, or a file name that ends in .onnx.  [without PATH: clusir-bundle]",
)
@click.option(
    "--weights",
    type=click.Choice(["shared", "inside"]),
    help="shared: the graphs of a precision keep their weights in one file beside them, NAME.onnx.data; inside: each "
    "in itself.  [shared in a folder, inside with a file name]",
)
@click.option("--openvino", is_flag=True, help="Also write OpenVINO IR (.xml, .bin) of every graph.")
@click.option("--ort-mobile", is_flag=True, help="Also write .ort files for mobile ONNX Runtime, and their operators.")
@click.option(
    "--checkpoint",
    metavar="FILE",
    help="A .safetensors file, or random:tiny, random:small, random:base; or weights of another architecture (.pth, "
    ".safetensors), which spandrel must know.  [default: the shipped one]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of random weights and of calibration.")
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=Words((*PRECISIONS, BFLOAT16)),
    help="One or more of fp32, fp16, int8, with commas between; bf16 makes no file: it measures what computing in "
    "bfloat16 loses, for clusir-run --precision auto.",
)
@click.option(
    "--router",
    type=click.Choice(["dense", "merged", "conditional", "gathered", "auto"]),
    default="dense",
    show_default=True,
    help="dense: compute all experts; conditional: an ONNX If around each, so that unused ones are skipped; merged, "
    "gathered (--module): all as one, or the weights of the chosen picked out; auto: the fastest that is right here.",
)
@click.option(
    "--dft",
    type=click.Choice(["auto", "matmul", "op"]),
    default="auto",
    show_default=True,
    help="FFTs as the fastest matrix products, as one product for each axis, or as the ONNX DFT operator (op), "
    "which OpenVINO cannot read.",
)
@click.option("--dynamic", is_flag=True, help="Leave height and width open instead of fixed to --tile.")
@click.option(
    "--tile",
    "tile_px",
    type=click.IntRange(32, 4096),
    default=256,
    show_default=True,
    help="Side of a tile in pixels, overlap included.",
)
@click.option(
    "--halo",
    "halo_px",
    type=click.IntRange(0, 512),
    default=16,
    show_default=True,
    help="Overlap on each side of a tile in pixels.",
)
@click.option(
    "--backends",
    default="ort,openvino",
    show_default=True,
    type=Words(ONNX_BACKENDS),
    help="Runtimes on which the files are compared with PyTorch.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Device of that comparison; cuda needs --backends ort.",
)
@click.option(
    "--engine",
    type=click.Choice(["ort", "nncf"]),
    default="ort",
    show_default=True,
    help="What quantises to INT8: this package on ONNX Runtime's quantiser, or NNCF.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Folder of photos to calibrate on.  [default: free photos of scikit-image]",
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Calibrate on the images that this calibration.json lists.",
)
@click.option(
    "--max-drop",
    metavar="dB",
    type=Decibels(),
    help="Largest PSNR loss of INT8 on any degradation, for example 0.1dB; layers stay float until it holds.",
)
@click.option(
    "--time-limit", metavar="TIME", type=Seconds(), help="End the search for --max-drop after this time, e.g. 10m."
)
@click.option(
    "--fp16-islands",
    type=click.Choice(["auto", "none"]),
    default="auto",
    show_default=True,
    help="auto: sums, norms and routers stay float32 in FP16 files; none: all is float16 but the ports, for runtimes "
    "that take no casts in between.",
)
@click.option("--module", metavar="PACKAGE.MODULE:FACTORY", help="Export your own network: a function that returns it.")
@click.option(
    "--input",
    "input_shape",
    metavar="BxCxHxW",
    default="1x3x128x128",
    show_default=True,
    help="Shape of the input with which --module is traced.",
)
@click.option(
    "--output",
    metavar="WHICH",
    help="Which of the tensors that --module returns (position or key), or --from (name).  [found]",
)
@click.option("--batch", type=click.IntRange(1, 256), help="The one batch of --module's file. [any]")
@click.option("--size", type=click.IntRange(8, 4096), help="The one height and width of --module's file. [any]")
@click.option(
    "--map",
    "maps",
    type=Setting(default=0.0),
    multiple=True,
    help="An argument of --module, or an input of --from, that is a picture of one channel and of the picture's size, "
    "such as mask=0: its name, and what fills it where nobody gives one; may be repeated.",
)
@click.option("--check-passes", is_flag=True, help="Compare the graph after each pass; a pass to blame is named.")
@click.option(
    "--target",
    "targets",
    metavar="NAME[,NAME]",
    type=Words(HOSTS),
    help=f"Write the model as other programs open it, each into a folder of its name: {', '.join(HOSTS)}.",
)
@adoption_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Export a network to ONNX. Files are written only if they match PyTorch.

    Three graphs are written: NAME.onnx answers alone; NAME.tile.onnx and NAME.router.onnx let all tiles of a large
    picture share one routing. An option that would do nothing is refused.

    \b
    Exit codes: 0 done; 2 usage; 3 a backend or device is not available;
    4 refused by a pass, by the comparison or by --max-drop: only the report is
    written (if --max-drop is missed, the best INT8 file that was found is kept);
    5 written, with a warning.

    \b
    Examples:
      clusir-export --onnx out/ --precision fp32,fp16,int8     the shipped checkpoint as a bundle
      clusir-export --onnx model.onnx --dynamic                any size that is a multiple of 16
      clusir-export --onnx mine.onnx --module my.net:build --input 1x3x128x128
      clusir-export --onnx mine.onnx --module my.net:build --input 1x3x64x64 --size 256 --batch 1
      clusir-export --onnx x4.onnx --checkpoint RealESRGAN_x4.pth
      clusir-export --onnx ours.onnx --from theirs.onnx --range 0..255 --precision fp16
      clusir-export --onnx out/ --target transformers.js --from ours.onnx
    """
    if options["onnx_path"] is None:
        raise UsageError("--onnx is missing: it says where to write, for example clusir-export --onnx out/")
    path = Path(options.pop("onnx_path"))
    if targets := options.pop("targets"):
        run_targets(targets, path, options, context)
        return
    source = options.pop("source")
    if source is not None:
        run_adoption(source, path, options, context)
        return
    for name in DESCRIBING:
        options.pop(name)
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(f"{_flag(context, name)} describes a file for --from, and there is none")
    from clusir.cli._export_session import ExportRequest, run, run_module

    bundle = path.suffix != ".onnx"
    folder, stem = (path, "model") if bundle else (path.parent, path.stem)
    module = options.pop("module")
    known = module is None and _of_others(options["checkpoint"])
    check_options(module is not None or known, known)
    which = {name: options.pop(name) for name in _MODULE_ONLY}
    request = ExportRequest(folder=folder, stem=stem, bundle=bundle, given=given_options(), **options)
    if module is not None or known:
        run_module(request, module, **which)
    else:
        run(request)


def _of_others(checkpoint: str | None) -> bool:
    """Whether a checkpoint is of another network than this package's."""
    if checkpoint is None or checkpoint.startswith("random:"):
        return False
    path = Path(checkpoint)
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return path.suffix.lower() in _WEIGHTS
    from clusir.network.checkpoint import read_metadata

    return "config" not in read_metadata(path)


def _flag(context: click.Context, name: str) -> str:
    """The option as it is written on the command line."""
    return next(parameter.opts[0] for parameter in context.command.params if parameter.name == name)
