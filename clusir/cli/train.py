"""``clusir-train``: train or fine-tune the network on a folder of clean photos."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clusir.cli._common import command
from clusir.cli._values import Seconds
from clusir.errors import InterruptedRun, UsageError

if TYPE_CHECKING:
    from clusir.training.loop import Progress, TrainConfig


def read_config(path: Path) -> dict[str, Any]:
    """The fields of a TOML or JSON file. Raises UsageError."""
    import json
    import tomllib

    try:
        text = path.read_text("utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise UsageError(f"config {path} cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise UsageError(f"config {path} must hold a table of TrainConfig's fields")
    return values


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(__file__).parents[1] / "training" / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_recipe(name: str) -> dict[str, Any]:
    """The fields of a recipe of the package. Raises UsageError."""
    known = recipes()
    if name not in known:
        raise UsageError(f"no recipe named {name!r}; there are {', '.join(known)}")
    return read_config(known[name])


def make_config(
    out: Path,
    resume: bool,
    file: dict[str, Any],
    given: dict[str, Any],
    start: bool = False,
    qat: bool = False,
) -> TrainConfig:
    """Options (``given``) over the fields of recipe and file over the run that is resumed over the defaults, which
    ``start`` (given weights) and ``qat`` change."""
    from dataclasses import asdict

    from clusir.training.loop import FINE_TUNE_DEFAULTS, TrainConfig, resumed_config

    values: dict[str, Any] = asdict(resumed_config(out)) if resume else {}
    if start and not resume:
        values |= FINE_TUNE_DEFAULTS
    if qat and not resume:
        from clusir.training.quantised import QAT_DEFAULTS

        values |= QAT_DEFAULTS | {"qat": True}
    values |= file
    chosen = {name: value for name, value in given.items() if value is not None}
    if "steps" in chosen or "seconds" in chosen:
        values |= {"steps": 0, "seconds": 0.0}
    return TrainConfig.from_dict(values | chosen)


class _Display:
    """A progress bar on a terminal; a line every hundred steps elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.console = Console(stderr=True, quiet=quiet)
        self.bar = Progress(
            BarColumn(), TextColumn("{task.percentage:.0f}% step {task.fields[step]} loss {task.fields[loss]:.3f}"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("training", total=1.0, step=0, loss=float("nan"))
        self.loss, self.used = float("nan"), 0.0

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    def __call__(self, progress: Progress) -> None:
        value, self.used = progress.losses["loss/error"], progress.used
        self.loss = value if self.loss != self.loss else 0.98 * self.loss + 0.02 * value
        self.bar.update(self.task, completed=progress.used, step=progress.step, loss=self.loss)
        if progress.step % 100 == 0 and not self.console.is_terminal:
            figures = " ".join(f"{name.split('/')[-1]} {value:.3g}" for name, value in progress.losses.items())
            self.console.print(
                f"{100 * progress.used:.1f}% step {progress.step} {progress.seconds:.0f} s "
                f"mean {self.loss:.4f} {figures}",
                soft_wrap=True,
            )
        if progress.validation is not None:
            rows = [(n.removeprefix("psnr/"), v) for n, v in progress.validation.items() if n.startswith("psnr/")]
            shown = ", ".join(
                f"{n} {v:.2f} ({progress.validation.get('gain/' + n, float('nan')):+.2f})" for n, v in rows
            )
            self.console.print(
                f"step {progress.step}: validation {progress.validation['gain']:+.2f} dB; {shown}", soft_wrap=True
            )


@command(name="clusir-train", short_help="Train or fine-tune on your own photos.")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of clean photos.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for state, weights and log.")
@click.option("--model", help="Configuration of the network: tiny, small or base.  [default: tiny]")
@click.option(
    "--recipe", help="Settings of the package, which --config and options override. tiny: the shipped weights."
)
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML or JSON: fields of TrainConfig.")
@click.option("--steps", type=int, help="Length of the run in steps.")
@click.option("--time-budget", metavar="TIME", type=Seconds(), help="Length of the run in time, e.g. 45m or 1h30m.")
@click.option("--learning-rate", type=float, help="Peak learning rate.")
@click.option("--seed", type=int, help="Seed of weights and batches.  [default: 0]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--threads", type=int, help="CPU threads.  [default: all]")
@click.option(
    "--workers", type=int, help="Processes that prepare batches; 0: one thread.  [default: 0; on CUDA up to 8]"
)
@click.option("--start-from", type=click.Path(path_type=Path), help="Fine-tune: start with this checkpoint's weights.")
@click.option("--qat", is_flag=True, help="With --start-from: fine-tune for INT8, rounding in the forward pass.")
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
def main(
    data: Path,
    out: Path,
    model: str | None,
    recipe: str | None,
    config_file: Path | None,
    steps: int | None,
    time_budget: float | None,
    learning_rate: float | None,
    seed: int | None,
    device: str,
    threads: int | None,
    workers: int | None,
    start_from: Path | None,
    qat: bool,
    resume: bool,
) -> None:
    """Train or fine-tune the network on clean photos, which are degraded on the fly.

    The result, OUT/ema.safetensors, is a checkpoint for every other command. Give exactly one of --steps and
    --time-budget. Ctrl-C or SIGTERM saves the state; --resume continues. Several GPUs:
    torchrun --nproc-per-node N -m clusir.cli.train ...

    \b
    Exit codes: 0 done; 2 usage; 3 the device is not available; 130 interrupted, --resume continues.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads} is not at least 1")
    if workers is not None and workers < 0:
        raise UsageError(f"--workers {workers} is not at least 0")
    if qat and start_from is None and not resume:
        raise UsageError("--qat fine-tunes weights that are there; name their checkpoint with --start-from")
    if start_from is not None and resume:
        raise UsageError("--resume goes on with the run's own weights and --start-from begins a new run; give one")
    given = {
        "model": model, "steps": steps, "seconds": time_budget,
        "learning_rate": learning_rate, "seed": seed,
    }  # fmt: skip
    import signal

    import torch

    from clusir.training.distributed import distributed
    from clusir.training.loop import train

    if threads:
        torch.set_num_threads(threads)
    fields = (read_recipe(recipe) if recipe else {}) | (read_config(config_file) if config_file else {})
    config = make_config(out, resume, fields, given, start_from is not None, qat)
    stopped: list[int] = []

    def note(number: int, frame: object) -> None:
        stopped.append(number)
        signal.signal(number, signal.SIG_DFL)  # the second one works as usual: a run that hangs can be killed

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    with distributed(device) as place:
        display = _Display(quiet=os.environ.get("RANK", "0") != "0")  # of several processes one speaks
        with display.bar:
            path = train(
                config,
                data,
                out,
                device=place,
                resume=resume,
                start=start_from,
                workers=workers,
                observe=display,
                stop=lambda: bool(stopped),
                say=display.say,
            )
    if stopped and display.used < 1.0:  # a signal that came while the clusters were named stopped nothing
        raise InterruptedRun(f"stopped; the state is in {out}: go on with --resume")
    click.echo(f"weights: {path}")


if __name__ == "__main__":
    sys.exit(main())
