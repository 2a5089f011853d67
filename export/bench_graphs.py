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
import onnx
import torch
from torch import Tensor, nn

from clusir.export.base import Pipeline
from clusir.export.bench_networks import MoEStandIn, PatchFFTStandIn, WholeMapFFTStandIn, describe_stand_ins
from clusir.export.bench_timing import Time, alternate, convolution_peak, openvino_call, ort_call
from clusir.export.fuse import fusing_passes
from clusir.export.onnx_writer import OPSET, quiet_exporter
from clusir.export.simplify import SimplifyGraph

__all__ = ["bench_network", "bench_transforms", "main", "our_graph", "plain_graph"]

FFT_SIZES = (64, 96, 127, 128, 250, 256, 512)
NETWORKS = ("tiny", "small", "whole-map-fft", "patch-fft", "top-k-moe")
_RIGHT = 1e-3  # relative: beyond this a graph is wrong, not merely rounded
_Runtime = Callable[[bytes, dict[str, np.ndarray], int], Callable[[], list[np.ndarray]]]
_RUNTIMES: dict[str, _Runtime] = {"ONNX Runtime": ort_call, "OpenVINO": openvino_call}


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


class _Picture(nn.Module):
    """A network of the family answers with a tuple; the page compares the picture."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.model(image).restored
        return out


def network(name: str) -> nn.Module:
    """An untrained network of the page, in eval mode, image -> picture."""
    torch.manual_seed(0)
    if name in ("tiny", "small"):
        from clusir.checkpoint import random_model
        from clusir.model import CONFIGS

        return _Picture(random_model(CONFIGS[name])).eval()
    return {"whole-map-fft": WholeMapFFTStandIn, "patch-fft": PatchFFTStandIn, "top-k-moe": MoEStandIn}[name]().eval()


def densified(name: str, model: nn.Module) -> nn.Module:
    """The network with its routed experts evaluated densely (the same object where it has none)."""
    from clusir.export.dense_experts import DensifyExperts
    from clusir.export.moe_registry import DensifyRegistered

    describe_stand_ins()
    step: Any = DensifyExperts() if name in ("tiny", "small") else DensifyRegistered()
    dense: nn.Module = step.apply(model).model
    return dense


def plain_graph(model: nn.Module, image: Tensor) -> bytes:
    """What ``torch.onnx.export(dynamo=True)`` writes with nothing else said. Raises what it raises."""
    with quiet_exporter():
        program = torch.onnx.export(model, (image,), dynamo=True, input_names=["image"], verbose=False)
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def our_graph(dense: nn.Module, image: Tensor) -> bytes:
    """The densified network through our lowering and passes, at the image's size."""
    from clusir.export.byo_tracing import trace_module
    from clusir.export.complex_fft import pair_translations
    from clusir.export.fft_lowering import translation_table

    traced = trace_module(dense, torch.rand(2, *image.shape[1:]))
    with quiet_exporter():
        program = torch.onnx.export(
            traced.program, dynamo=True, opset_version=OPSET, input_names=["image"], verbose=False,
            custom_translation_table=pair_translations(translation_table("auto")),
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    del model.graph.output[1:]  # the gates, which a described block also gives
    for axis, size in enumerate(image.shape):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    del model.graph.value_info[:]
    fused: onnx.ModelProto = Pipeline([SimplifyGraph(), *fusing_passes()]).run(model)
    return fused.SerializeToString()


def our_family_graph(dense: nn.Module, image: Tensor) -> bytes:
    """As :func:`our_graph` for a network of the family: the static export that ``clusir-export`` writes."""
    from clusir.export.onnx_writer import write_onnx

    example = (torch.rand(2, *image.shape[1:]),)
    model = write_onnx(dense, example, ["image"], ["restored"], dynamic_size=False, dft="auto")
    fused: onnx.ModelProto = Pipeline([SimplifyGraph(), *fusing_passes()]).run(model)
    return fused.SerializeToString()


def bench_network(
    name: str, size: int, runs: int, threads: int, compiled: bool, cpu_clock: bool
) -> tuple[list[Row], float]:
    """All rows of one network at ``size`` x ``size``, and its GFLOP."""
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
        calls[what] = _torch_call(module, image, layout)
        rows.append(Row(what, 0.0))
    if compiled:
        rows += [_compiled(dense, image, expected, calls, channels_last) for channels_last in (False, True)]
    graphs: list[tuple[str, Callable[[], bytes]]] = [("plain export", lambda: plain_graph(model, image))]
    if dense is not model:
        graphs.append(("plain export of the densified network", lambda: plain_graph(dense, image)))
    ours = our_family_graph if name in ("tiny", "small") else our_graph
    graphs.append(("ours", lambda: ours(dense, image)))
    for what, make in graphs:
        try:
            written = make()
        except Exception as error:
            rows.append(Row(f"{what}", why=f"does not export: {_line(error)}"))
            continue
        for runtime, opener in _RUNTIMES.items():
            rows.append(_graph_row(f"{what}, {runtime}", written, opener, image, expected, threads, calls))
    times = alternate(calls, runs, cpu_clock)
    for row in rows:
        row.time = times.get(row.what)
    return rows, counter.get_total_flops() / 1e9


def _graph_row(
    what: str,
    written: bytes,
    opener: _Runtime,
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


def _torch_call(model: nn.Module, image: Tensor, channels_last: bool) -> Callable[[], object]:
    import copy

    if channels_last:
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        image = image.to(memory_format=torch.channels_last)

    def call() -> object:
        with torch.no_grad():
            return model(image)

    return call


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
        call = _torch_call(torch.compile(dense), image, False)  # type: ignore[arg-type]
        found: Any = call()
    except Exception as error:
        return Row(what, why=f"does not compile: {_line(error)}")
    calls[what] = call
    found = found[0] if isinstance(found, tuple) else found
    return Row(what, float(np.abs(found.numpy() - expected).max() / np.abs(expected).max()))


def bench_transforms(sizes: tuple[int, ...], runs: int, threads: int, cpu_clock: bool) -> dict[int, dict[str, Any]]:
    """rfft2 + irfft2 of [1, 48, N, N], with and without a real mask between, on ONNX Runtime beside torch.fft."""
    return {n: _bench_size(n, runs, threads, cpu_clock) for n in sizes}


class _Transform(nn.Module):
    """rfft2, the mask where there is one, irfft2."""

    def __init__(self, size: int, masked: bool) -> None:
        super().__init__()
        distance = torch.fft.fftfreq(size)[:, None] ** 2 + torch.fft.rfftfreq(size)[None] ** 2
        self.mask = nn.Parameter(torch.exp(-20 * distance), requires_grad=False) if masked else None

    def forward(self, image: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(image)
        spectrum = spectrum if self.mask is None else spectrum * self.mask
        return torch.fft.irfft2(spectrum, s=image.shape[-2:])


def _bench_size(n: int, runs: int, threads: int, cpu_clock: bool) -> dict[str, Any]:
    from clusir.export.fft_lowering import Form
    from clusir.export.onnx_writer import write_onnx

    image = torch.randn(1, 48, n, n, generator=torch.Generator().manual_seed(n))
    calls: dict[str, Callable[[], object]] = {}
    errors: dict[str, float] = {}
    forms: tuple[tuple[str, Form], ...] = (("MatMul", "matmul"), ("ours", "auto"))
    for masked, suffix in ((False, ""), (True, ", masked")):
        module = _Transform(n, masked).eval()
        expected = module(image).numpy()
        calls[f"torch.fft{suffix}"] = _torch_call(module, image, False)
        for what, form in forms:
            model = write_onnx(module, (image.repeat(2, 1, 1, 1),), ["image"], ["y"], dynamic_size=False, dft=form)
            passes = [SimplifyGraph(), *(fusing_passes() if form == "auto" else [])]
            fused: onnx.ModelProto = Pipeline(passes).run(model)
            name = f"{what}{suffix}"
            calls[name] = call = ort_call(fused.SerializeToString(), {"image": image.numpy()}, threads)
            errors[name] = float(np.abs(call()[0] - expected).max() / np.abs(expected).max())
    times = alternate(calls, runs, cpu_clock)
    return {name: {**asdict(t), "error": errors.get(name, 0.0)} for name, t in times.items()}


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
@click.option("--networks", default=",".join(NETWORKS), show_default=True, help="Which networks, by comma.")
@click.option("--fft-sizes", default=",".join(map(str, FFT_SIZES)), show_default=True, help="Which N; empty for none.")
@click.option("--size", default=256, show_default=True, help="Side of the picture, pixels.")
@click.option("--runs", default=20, show_default=True, help="Turns of each contender.")
@click.option("--threads", default=2, show_default=True, help="Threads of every contender.")
@click.option("--compile/--no-compile", "compiled", default=True, help="Also torch.compile (minutes).")
@click.option(
    "--cpu-clock", is_flag=True, help="Processor time instead of wall time; for one thread, on a busy machine."
)
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), default=Path("."), show_default=True)
def main(
    networks: str, fft_sizes: str, size: int, runs: int, threads: int, compiled: bool, cpu_clock: bool, output: Path
) -> None:
    """Write the benchmark page of exported graphs."""
    from clusir.export.bench_page import as_markdown

    names = [w for w in networks.split(",") if w]
    for word in names:
        if word not in NETWORKS:
            raise click.BadParameter(f"{word!r} is not one of {', '.join(NETWORKS)}", param_hint="--networks")
    try:
        sizes = tuple(int(w) for w in fft_sizes.split(",") if w)
    except ValueError as error:
        raise click.BadParameter(f"{fft_sizes!r} is not a list of numbers", param_hint="--fft-sizes") from error
    output.mkdir(parents=True, exist_ok=True)
    with _threads(threads):
        page = Page(_machine(threads, cpu_clock, size, runs))
        if sizes:
            page.transforms = bench_transforms(sizes, runs, threads, cpu_clock)
        for name in names:
            click.echo(f"{name} ...", err=True)
            page.networks[name], page.gflop[name] = bench_network(name, size, runs, threads, compiled, cpu_clock)
    text = as_markdown(page)
    (output / "graphs.md").write_text(text)
    (output / "graphs.json").write_text(json.dumps(asdict(page), indent=1))
    click.echo(text)


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
