"""The benchmark page: ``python -m clusir.export.bench_graphs -o FOLDER`` writes ``graphs.md`` and ``graphs.json``.

For each network, the plain ``torch.onnx.export(dynamo=True)`` against this package's export: does it export, does it
run, is it right, how fast, on ONNX Runtime and OpenVINO, beside PyTorch. And rfft2 -> mask -> irfft2 beside torch.fft.
"""

from __future__ import annotations

import contextlib
import json
import platform
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from clusir.export.bench_kernels import KERNELS, by_kind
from clusir.export.bench_timing import RUNTIMES, Opener, Time, alternate, convolution_peak, torch_call
from clusir.export.bench_transforms import bench_transforms
from clusir.export.bench_written import NETWORKS, STAND_INS, densified, network, our_graph, plain_graph

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
    """Everything measured; ``gflop`` per picture counts convolutions and matrix products of the dense network."""

    machine: dict[str, Any]
    transforms: dict[int, dict[str, Any]] = field(default_factory=dict)
    networks: dict[str, list[Row]] = field(default_factory=dict)
    gflop: dict[str, float] = field(default_factory=dict)
    kernels: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)  # of ours: runtime -> kind -> ms


def bench_network(page: Page, name: str, size: int, runs: int, threads: int, compiled: bool, cpu_clock: bool) -> None:
    """Measure one network at ``size`` x ``size`` and write its rows, its GFLOP and its kernels to the page."""
    from torch.utils.flop_counter import FlopCounterMode

    model = network(name)
    dense = densified(name, model)
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(image).numpy()
        with FlopCounterMode(display=False) as counter:
            dense(image)
    calls: dict[str, Callable[[], object]] = {}
    rows: list[Row] = []
    for what, module, layout in (("PyTorch eager", model, False), ("PyTorch channels_last", model, True)):
        calls[what] = torch_call(module, image, layout)
        rows.append(Row(what, 0.0))
    if compiled:
        rows += [_compiled(dense, image, expected, calls, channels_last) for channels_last in (False, True)]
    graphs: list[tuple[str, Callable[[], bytes]]] = [("plain export", lambda: plain_graph(model, image))]
    if dense is not model:
        graphs.append(("plain export of the densified network", lambda: plain_graph(dense, image)))
    graphs.append(("ours", lambda: our_graph(name, dense, image)))
    for what, make in graphs:
        try:
            written = make()
        except Exception as error:
            rows.append(Row(f"{what}", why=f"does not export: {_line(error)}"))
            continue
        if what == "ours":
            feeds = {"image": image.numpy()}
            page.kernels[name] = {r: by_kind(p(written, feeds, threads, runs // 2)) for r, p in KERNELS.items()}
        for runtime, opener in RUNTIMES.items():
            rows.append(_graph_row(f"{what}, {runtime}", written, opener, image, expected, threads, calls))
    times = alternate(calls, runs, cpu_clock)
    for row in rows:
        row.time = times.get(row.what)
    page.networks[name], page.gflop[name] = rows, counter.get_total_flops() / 1e9


def _graph_row(
    what: str,
    written: bytes,
    opener: Opener,
    image: Tensor,
    expected: np.ndarray,
    threads: int,
    calls: dict[str, Callable[[], object]],
) -> Row:
    try:
        call = opener(written, {"image": image.numpy()}, threads)
        found = call()[0]
    except Exception as error:
        return Row(what, why=f"does not run: {_line(error)}")
    if found.shape != expected.shape:
        return Row(what, why=f"wrong: shape {found.shape} instead of {expected.shape}")
    apart = float(np.abs(found - expected).max() / np.abs(expected).max())
    calls[what] = call
    return Row(what, apart, why="" if apart <= _RIGHT else "wrong")


def _compiled(
    dense: nn.Module, image: Tensor, expected: np.ndarray, calls: dict[str, Callable[[], object]], channels_last: bool
) -> Row:
    """torch.compile with its defaults; needs a C++ compiler, and minutes for a network of this size."""
    import copy

    what = f"torch.compile of the densified network{', channels_last' if channels_last else ''}"
    try:
        if channels_last:
            dense = copy.deepcopy(dense).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            image = image.to(memory_format=torch.channels_last)
        call = torch_call(torch.compile(dense), image)  # type: ignore[arg-type]
        found: Any = call()
    except Exception as error:
        return Row(what, why=f"does not compile: {_line(error)}")
    calls[what] = call
    found = found[0] if isinstance(found, tuple) else found
    return Row(what, float(np.abs(found.numpy() - expected).max() / np.abs(expected).max()))


def _line(error: BaseException) -> str:
    """The innermost cause, in one short line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = next((s.strip() for s in str(error).splitlines() if s.strip()), "no message")
    return f"{type(error).__name__}: {text[:160]}"


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
    help="Networks to run through torch.compile too (a minute or more each); empty for none.",
)
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
    cpu_clock: bool,
    ablate: bool,
    output: Path,
) -> None:
    """Write the benchmark page of exported graphs."""
    from clusir.export.bench_page import as_markdown

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
    with _threads(threads):
        page = Page(_machine(threads, cpu_clock, size, runs))
        if sizes:
            page.transforms = bench_transforms(sizes, runs, threads, cpu_clock)
        for name in names:
            click.echo(f"{name} ...", err=True)
            bench_network(page, name, size, runs, threads, name in slow, cpu_clock)
    text = as_markdown(page)
    (output / "graphs.md").write_text(text)
    (output / "graphs.json").write_text(json.dumps(asdict(page), indent=1))
    click.echo(text)


def _names(words: str, option: str) -> list[str]:
    names = [w for w in words.split(",") if w]
    for word in names:
        if word not in NETWORKS:
            raise click.BadParameter(f"{word!r} is not one of {', '.join(NETWORKS)}", param_hint=option)
    return names


def _ablate(names: list[str], size: int, runs: int, threads: int, cpu_clock: bool) -> str:
    from clusir.export.bench_ablation import ablate, ablation_table

    return ablation_table([ablate(name, size, runs, threads, cpu_clock) for name in names])


def _machine(threads: int, cpu_clock: bool, size: int, runs: int) -> dict[str, Any]:
    import onnxruntime
    import openvino

    return {
        "processor": platform.processor() or platform.machine(),
        "threads": threads,
        "clock": "processor time" if cpu_clock else "wall",
        "picture_px": size,
        "runs": runs,
        "convolution_peak_gflops": convolution_peak(threads, runs, cpu_clock),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "openvino": openvino.__version__,
    }


if __name__ == "__main__":
    main()
