"""``clusir-export --from FILE``: options that describe somebody else's ONNX file, and the command behind them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clusir import plain_json
from clusir.cli._common import console as stdout
from clusir.cli._common import given_options
from clusir.cli._precision import (
    PRECISION_OPTIONS,
    placed_json,
    precision_config,
    print_placed,
    refuse_idle_options,
)
from clusir.cli._values import Setting
from clusir.errors import UsageError

if TYPE_CHECKING:
    from clusir.export.subjects.onnx_file import Description

__all__ = ["DESCRIBING", "adoption_options", "description", "run_adoption"]

# The options that only --from reads, by their names in the command's function.
DESCRIBING = ("value_range", "mean", "deviation", "bgr", "layout", "values", "picture", "passes")
_TAKEN = ("backends", "tile_px", "halo_px", "as_json", "debug", "output", "maps", *PRECISION_OPTIONS)


class Range(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """``LOW..HIGH``, two numbers."""

    name = "LOW..HIGH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        found = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\.\.(-?\d+(?:\.\d+)?)\s*", str(value))
        if not found:
            self.fail(f"{value!r} is no range; write for example 0..255 or -1..1", param, ctx)
        return float(found[1]), float(found[2])


class Number(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """``NAME=NUMBER``, or ``NAME=NUMBER:LOW..HIGH`` with what is allowed."""

    name = "NAME=NUMBER[:LOW..HIGH]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float, tuple[float, float] | None]:
        text, colon, limits = str(value).rpartition(":")
        name, number = Setting().convert(text if colon else limits, param, ctx)
        return name, float(number), Range().convert(limits, param, ctx) if colon else None


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """One number, or one a channel with commas between."""

    name = "NUMBERS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            return tuple(float(word) for word in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no number; write for example 0.5 or 0.48,0.46,0.41", param, ctx)


def adoption_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--from`` and what describes the file."""
    options = [
        click.option("--from", "source", type=click.Path(path_type=Path), metavar="FILE.onnx",
                     help="Adopt an ONNX file that another tool wrote: probe it, compare it with itself, write it."),
        click.option("--range", "value_range", type=Range(), default=None,
                     help="With --from: what black and white are as numbers, for example 0..255.  [default: 0..1]"),
        click.option("--mean", type=Numbers(), default=None,
                     help="With --from: subtracted from the input, in units of --range; added to the answer."),
        click.option("--deviation", type=Numbers(), default=None,
                     help="With --from: the input is divided by it after --mean; the answer is multiplied."),
        click.option("--bgr", is_flag=True, help="With --from: the file takes blue first."),
        click.option("--layout", type=click.Choice(["NCHW", "NHWC"]), default=None,
                     help="With --from: where the channels stand.  [default: as the shapes say]"),
        click.option("--set", "values", type=Number(), multiple=True,
                     help="With --from: a number for a further input, such as sigma=15, or sigma=15:0..75 with what it "
                          "may be; may be repeated."),
        click.option("--picture", metavar="INPUT", default=None,
                     help="With --from: which input is the picture, where several could be."),
        click.option("--no-passes", "passes", is_flag=True, default=True, flag_value=False,
                     help="With --from: leave the graph as it is, apart from folded constants."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def description(options: dict[str, Any]) -> Description:
    """What the options say of somebody else's file."""
    from clusir.export.subjects.onnx_file import Description

    plain = [key for key in DESCRIBING if key not in ("values", "passes")]
    described = {key: options[key] for key in plain if options[key] is not None}
    return Description(
        **described,
        values={name: number for name, number, _ in options["values"]},
        limits={name: limits for name, _, limits in options["values"] if limits is not None},
        maps=dict(options["maps"]),
        answer=options["output"],
    )


def run_adoption(source: Path, out: Path, options: dict[str, Any], context: click.Context) -> None:
    """Adopt ``source`` as ``out`` and print what was found and compared. Raises UsageError for options that do
    nothing here."""
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) not in (None, click.core.ParameterSource.DEFAULT)
        if given and name not in (*DESCRIBING, *_TAKEN, "source", "onnx_path"):
            raise UsageError(f"{parameter.opts[0]} does nothing with --from; leave it out")
    refuse_idle_options({**options, "checkpoint": None}, given_options())
    if out.suffix != ".onnx":
        raise UsageError(f"--onnx {out}: --from writes one file; give a name that ends in .onnx")
    if out.exists() and source.exists() and out.samefile(source):
        raise UsageError(f"--onnx {out} is the file to adopt; write the adopted one under another name")
    from rich.console import Console

    from clusir.export.adopt import AdoptionConfig, adopt

    told = description(options)

    def chosen(name: str) -> int | None:
        default = context.get_parameter_source(name) is click.core.ParameterSource.DEFAULT
        return None if default else options[name]

    config = AdoptionConfig(
        told,
        chosen("tile_px"),
        chosen("halo_px"),
        options["passes"],
        options["backends"],
        precision_config(options, tuple(options["backends"])),
    )
    with Console(stderr=True).status(f"adopting {source.name}") as status:
        made = adopt(source, out, config, progress=lambda step: status.update(f"adopting {source.name}: {step}"))
    rows: list[dict[str, Any]] = [
        {"backend": backend, "case": case, "max_abs": found.max_abs, "psnr_db": min(found.psnr_db, 999.0)}
        for backend, case, found in made.agreements
    ]
    if options["as_json"]:
        reach = {"pixels": made.reach.pixels, "error": made.reach.error, "whole_picture": made.reach.whole}
        told_spec = {"scale": made.spec.scale, "channels": made.spec.channels, "tile_px": made.spec.tile_px,
                     "halo_px": made.spec.halo_px, "size": vars(made.spec.size)}  # fmt: skip
        click.echo(plain_json.dumps({"path": str(made.path), **told_spec, "reach": reach, "agreements": rows,
                                     "notes": made.notes, **placed_json(made.placed)}))  # fmt: skip
        return
    console = stdout()
    for note in made.notes:
        console.print(f"- {note}", highlight=False, soft_wrap=True)
    for backend in dict.fromkeys(row["backend"] for row in rows):
        of = [row for row in rows if row["backend"] == backend]
        console.print(
            f"{backend}: {len(of)} comparisons with the file as it came, worst difference "
            f"{max(row['max_abs'] for row in of):.1e}, worst agreement {min(row['psnr_db'] for row in of):.1f} dB",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    print_placed(made.placed, made.path.parent)
