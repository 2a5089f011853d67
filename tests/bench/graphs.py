"""The benchmark page: ``python -m tests.bench.graphs -o FOLDER`` writes ``graphs.md`` and ``graphs.json``.

For each network, the plain ``torch.onnx.export(dynamo=True)`` against this package's export: does it export, does it
run, is it right, how fast, on ONNX Runtime and OpenVINO, beside PyTorch. And rfft2 -> mask -> irfft2 beside torch.fft.

The graphs are written first, by child processes with a time limit (``--prepare`` does no more); a table is saved once
it stands, and the same command, run again, goes on behind it.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from clusir.errors import UsageError
from clusir.runtimes.machine.fingerprint import cpu_model, package_versions
from tests.bench.pages.kernels import KERNELS, by_kind
from tests.bench.pages.prepare import COMPILED_FORMS, Prepared, forms_of, line, prepare
from tests.bench.pages.transforms import CASES, CONTENDERS, bench_transforms
from tests.bench.pages.written import NETWORKS, STAND_INS, densified, network, picture, routed
from tests.bench.timing import RUNTIMES, Call, Time, alternate, compiled_call, convolution_peak, torch_call

__all__ = ["Page", "Row", "bench_network", "main"]

SHOWN = ("tiny", "small-shallow", *STAND_INS)
COMPILED = ("tiny", *STAND_INS)
FFT_SIZES = (64, 96, 127, 128, 250, 256, 512)
_RIGHT = 1e-3  # relative: beyond this a graph is wrong, not merely rounded


@dataclass
class Row:
    """One way to run one network. ``error`` is relative to PyTorch's largest value; ``why`` says what failed."""

    what: str
    error: float | None = None
    time: Time | None = None
    why: str = ""


@dataclass
class Page:
    """Everything measured; ``gflop`` per picture counts convolutions and matrix products of the dense network, ``peak``
    is the machine's convolution peak in GFLOP/s just before and after each network, the larger of the two."""

    machine: dict[str, Any]
    transforms: dict[int, dict[str, Any]] = field(default_factory=dict)
    networks: dict[str, list[Row]] = field(default_factory=dict)
    gflop: dict[str, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)
    kernels: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)  # of ours: runtime -> kind -> ms


def bench_network(
    page: Page, name: str, prepared: Sequence[Prepared], size: int, runs: int, threads: int, cpu_clock: bool
) -> None:
    """Measure one network at ``size`` x ``size``: its rows, GFLOP, kernels and the peak go to the page."""
    from torch.utils.flop_counter import FlopCounterMode

    torch._dynamo.reset()  # its limit of recompilations counts all networks that share a forward
    model, image = network(name), picture(size)
    dense = densified(name, model)
    with torch.no_grad():
        expected = model(image).numpy()
        with FlopCounterMode(display=False) as counter:
            dense(image)
    calls: dict[str, Call] = {}
    rows = [Row("PyTorch eager", 0.0), Row("PyTorch channels_last", 0.0)]
    for row, layout in zip(rows, (False, True), strict=True):
        calls[row.what] = torch_call(model, image, layout)
    for form in prepared:
        if form.why:
            does = "compile" if form.form in COMPILED_FORMS else "export"
            rows.append(Row(form.title, why=form.why if "finish" in form.why else f"does not {does}: {form.why}"))
        elif form.form in COMPILED_FORMS:
            opened = partial(compiled_call, dense, image, form.form == "compiled-last")
            rows.append(_row(form.title, opened, expected, calls))
        else:
            graph, feeds = form.file.read_bytes(), {"image": image.numpy()}
            for runtime, opener in RUNTIMES.items():
                title = f"{form.title}, {runtime}"
                rows.append(_row(title, partial(opener, graph, feeds, threads), expected, calls))
            if form.form == "ours":
                page.kernels[name] = {r: by_kind(k(graph, feeds, threads, runs // 2)) for r, k in KERNELS.items()}
    peak = convolution_peak(threads, runs, cpu_clock)
    times = alternate(calls, runs, cpu_clock)
    for row in rows:
        row.time = times.get(row.what)
    page.peak[name] = max(peak, convolution_peak(threads, runs, cpu_clock))
    page.networks[name], page.gflop[name] = rows, counter.get_total_flops() / 1e9


def _row(what: str, opened: Callable[[], Call], expected: np.ndarray, calls: dict[str, Call]) -> Row:
    """Open one contender, run it once and compare; it joins ``calls`` where its answer has the right shape."""
    try:
        call = opened()
        answer: Any = call()
    except Exception as error:
        return Row(what, why=f"does not run: {line(error)}")
    found = np.asarray(answer[0] if isinstance(answer, list) else answer)
    if found.shape != expected.shape:
        return Row(what, why=f"wrong: shape {found.shape} instead of {expected.shape}")
    apart = float(np.abs(found - expected).max() / np.abs(expected).max())
    calls[what] = call
    return Row(what, apart, why="" if apart <= _RIGHT else "wrong")


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(before)


@click.command()
@click.option("--networks", default=",".join(SHOWN), show_default=True, help="Which networks, by comma.")
@click.option("--fft-sizes", default=",".join(map(str, FFT_SIZES)), show_default=True, help="Which N; empty for none.")
@click.option("--size", default=256, show_default=True, help="Side of the picture, pixels.")
@click.option("--runs", default=20, show_default=True, help="Turns of each contender.")
@click.option("--threads", default=2, show_default=True, help="Threads of every contender.")
@click.option(
    "--compile",
    "compiled",
    default=",".join(COMPILED),
    show_default=True,
    help="Networks to run through torch.compile too (minutes each); empty for none.",
)
@click.option("--limit", default=120.0, show_default=True, help="Seconds that the plain exporter may take for a graph.")
@click.option("--compile-limit", default=600.0, show_default=True, help="Seconds that torch.compile may take.")
@click.option("--prepare", "only_prepare", is_flag=True, help="Write the graphs and compile, and measure nothing.")
@click.option(
    "--cpu-clock", is_flag=True, help="Processor time instead of wall time; for one thread, on a busy machine."
)
@click.option("--ablate", is_flag=True, help="Instead: the graph without each pass beside the graph with all of them.")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), default=Path("."), show_default=True)
def main(
    networks: str,
    fft_sizes: str,
    size: int,
    runs: int,
    threads: int,
    compiled: str,
    limit: float,
    compile_limit: float,
    only_prepare: bool,
    cpu_clock: bool,
    ablate: bool,
    output: Path,
) -> None:
    """Write the benchmark page of exported graphs.

    The folder keeps what was prepared and measured: the same command, run again, does what is missing. After a change
    of the exporter take another folder.
    """
    names, slow = _names(networks, "--networks"), _names(compiled, "--compile")
    try:
        sizes = tuple(int(w) for w in fft_sizes.split(",") if w)
    except ValueError as error:
        raise click.BadParameter(f"{fft_sizes!r} is not a list of numbers", param_hint="--fft-sizes") from error
    if ablate:
        with _threads(threads):
            text = _ablate(names, size, runs, threads, cpu_clock)
        click.echo(text)
        return
    output.mkdir(parents=True, exist_ok=True)
    try:
        page = _open(output, _machine(threads, cpu_clock, size, runs))
    except UsageError as error:
        raise click.ClickException(str(error)) from error
    made = {}
    for name in names:
        click.echo(f"{name}: graphs ...", err=True)
        forms = forms_of(routed(name), name in slow)
        made[name] = prepare(name, forms, size, threads, output / "prepared", limit, compile_limit)
    if only_prepare:
        return
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(output / "prepared" / "inductor")
    with _threads(threads):
        for n in [n for n in sizes if n not in page.transforms]:
            click.echo(f"rfft2, N = {n} ...", err=True)
            page.transforms.update(bench_transforms((n,), runs, threads, cpu_clock))
            _save(page, output)
        for name in [n for n in names if n not in page.networks]:
            click.echo(f"{name} ...", err=True)
            bench_network(page, name, made[name], size, runs, threads, cpu_clock)
            _save(page, output)
    click.echo((output / "graphs.md").read_text())


def _open(folder: Path, machine: dict[str, Any]) -> Page:
    """The page that a folder holds, or an empty one. Raises UsageError where it was measured otherwise."""
    journal = folder / "graphs.json"
    if not journal.is_file():
        return Page(machine)
    found = json.loads(journal.read_text())
    other = [key for key, value in machine.items() if found["machine"].get(key) != value]
    if other:
        raise UsageError(
            f"{journal} was measured with another {other[0]} ({found['machine'].get(other[0])}, now "
            f"{machine[other[0]]}): name another folder with -o"
        )
    networks = {
        name: [Row(**{**row, "time": row["time"] and Time(**row["time"])}) for row in rows]
        for name, rows in found["networks"].items()
    }
    # A journal of a time when the page had fewer cases: those sizes are measured again.
    whole = [f"{what}{case}" for case in CASES for what in CONTENDERS]
    transforms = {int(n): row for n, row in found["transforms"].items() if all(name in row for name in whole)}
    return Page(**{**found, "networks": networks, "transforms": transforms})


def _save(page: Page, folder: Path) -> None:
    """Write both files, the journal at once or not at all."""
    from tests.bench.pages.page import as_markdown

    part = folder / "graphs.json.part"
    part.write_text(json.dumps(asdict(page), indent=1))
    part.replace(folder / "graphs.json")
    (folder / "graphs.md").write_text(as_markdown(page))


def _names(words: str, option: str) -> list[str]:
    names = [w for w in words.split(",") if w]
    for word in names:
        if word not in NETWORKS:
            raise click.BadParameter(f"{word!r} is not one of {', '.join(NETWORKS)}", param_hint=option)
    return names


def _ablate(names: list[str], size: int, runs: int, threads: int, cpu_clock: bool) -> str:
    from tests.bench.pages.ablation import ablate, ablation_table

    return ablation_table([ablate(name, size, runs, threads, cpu_clock) for name in names])


def _machine(threads: int, cpu_clock: bool, size: int, runs: int) -> dict[str, Any]:
    return {
        "processor": cpu_model(),
        "threads": threads,
        "clock": "processor time" if cpu_clock else "wall",
        "picture_px": size,
        "runs": runs,
        **package_versions(("torch", "onnxruntime", "openvino")),
    }


if __name__ == "__main__":
    main()
