"""Forms of rfft2 with the spectrum in natural order, [1, 48, N, N], on ONNX Runtime beside torch.fft: a measurement.

    python tests/bench/bare_rfft2.py 96 128 250 256 512

Processor time of one thread, best of the turns. The forms are those that were tried against the one that the exporter
writes ("ours"); figures and what follows from them are in docs/lowering.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from clusir.export.base import Pipeline
from clusir.export.lowering.plan import real_basis
from clusir.export.passes.simplify import SimplifyGraph
from clusir.export.trace.writer import write_onnx
from tests.bench.timing import alternate, ort_call

CHANNELS, TURNS = 48, 12


class Graph:
    """An ONNX graph of one input x, written line by line."""

    def __init__(self) -> None:
        self.nodes: list = []
        self.constants: list = []

    def constant(self, value: object, dtype: type = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype), f"c{len(self.constants)}"))
        return self.constants[-1].name

    def node(self, kind: str, *inputs: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [f"v{len(self.nodes)}"], **attributes))
        return self.nodes[-1].output[0]

    def reshape(self, value: str, *shape: int) -> str:
        return self.node("Reshape", value, self.constant(shape, np.int64))

    def serialised(self, output: str, size: int) -> bytes:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, size, size])
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "form", [x], [y], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def waves(n: int, rows: np.ndarray) -> np.ndarray:
    return np.exp(-2j * np.pi * (np.outer(rows, np.arange(n)) % n) / n)


def real_pairs(matrix: np.ndarray) -> np.ndarray:
    """A complex [..., m, n] as the real [..., 2m, 2n] that acts on (re, im) side by side."""
    out = np.zeros((*matrix.shape[:-1], 2, matrix.shape[-1], 2))
    out[..., 0, :, 0] = out[..., 1, :, 1] = matrix.real
    out[..., 1, :, 0], out[..., 0, :, 1] = matrix.imag, -matrix.imag
    return out.reshape(*matrix.shape[:-2], 2 * matrix.shape[-2], 2 * matrix.shape[-1])


def rows_first(graph: Graph, n: int) -> str:
    """The width as one product; its result is [C, H, (re, im), K] without a copy."""
    w = waves(n, np.arange(n // 2 + 1)).T
    return graph.node("MatMul", "x", graph.constant(np.concatenate([w.real, w.imag], 1)))


def whole(n: int) -> bytes:
    """The height as one product from the left with the real form of the complex matrix."""
    graph = Graph()
    value = graph.reshape(rows_first(graph, n), CHANNELS, 2 * n, n // 2 + 1)
    value = graph.node("MatMul", graph.constant(real_pairs(waves(n, np.arange(n)))), value)
    return graph.serialised(natural(graph, value, n), n)


def factorised(n: int, factor: int, ordered: bool = True) -> bytes:
    """The height in two stages, as clusir.export.lowering.plan does, but on complex rows: the real basis of length
    N1, then one matrix of 4*N2 x 4*N2 for each pair of its rows with the twiddles inside."""
    graph, rest, half = Graph(), n // factor, factor // 2
    basis, frequency, _ = real_basis(factor)
    order = [r for j in range(half) for r in np.flatnonzero((frequency == j) | ((j == 0) & (frequency == half)))]
    value = graph.reshape(rows_first(graph, n), CHANNELS, factor, 2 * rest * (n // 2 + 1))
    value = graph.node("MatMul", graph.constant(basis[order]), value)
    blocks, bins = [], []
    for pair in range(half):
        k = np.concatenate([np.arange(rest) * factor + s for s in ((0, half) if pair == 0 else (pair, -pair))]) % n
        # What stands before the twiddles, written in the pair's two basis rows (which are orthonormal).
        mine = np.einsum("kab,qa->kqb", waves(n, k).reshape(2 * rest, factor, rest), basis[order[2 * pair :][:2]])
        blocks.append(real_pairs(mine.reshape(2 * rest, 2 * rest)))
        bins.append(k)
    value = graph.reshape(value, CHANNELS, half, 4 * rest, n // 2 + 1)
    value = graph.node("MatMul", graph.constant(np.stack(blocks)), value)
    if ordered:
        value = natural(graph, value, n, np.argsort(np.concatenate(bins)))
    return graph.serialised(value, n)


def natural(graph: Graph, value: str, n: int, order: np.ndarray | None = None) -> str:
    value = graph.reshape(value, 1, CHANNELS, n, 2, n // 2 + 1)
    if order is not None:
        value = graph.node("Gather", value, graph.constant(order, np.int64), axis=2)
    return graph.node("Transpose", value, perm=[0, 1, 2, 4, 3])


class Forward(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.view_as_real(torch.fft.rfft2(x))


def ours(x: Tensor) -> bytes:
    model = write_onnx(Forward(), (x.repeat(2, 1, 1, 1),), ["x"], ["y"], dynamic_size=False, dft="auto")
    return Pipeline([SimplifyGraph()]).run(model).SerializeToString()


def main() -> None:
    torch.set_num_threads(1)
    for n in map(int, sys.argv[1:]):
        x = torch.randn(1, CHANNELS, n, n, generator=torch.Generator().manual_seed(n))
        expected = np.fft.rfft2(x.double().numpy())
        forms = {"ours": ours(x), "whole": whole(n)}
        for factor in [f for f in (8, 10, 12, 16, 32) if n % f == 0]:
            forms[f"N1={factor}"] = factorised(n, factor)
            forms[f"N1={factor}, permuted"] = factorised(n, factor, ordered=False)
        calls: dict[str, Callable[[], object]] = {"torch": lambda x=x: torch.fft.rfft2(x)}  # type: ignore[misc]
        errors = {}
        for name, form in forms.items():
            call = ort_call(form, {"x": x.numpy()}, 1)
            if "permuted" not in name:
                found = call()[0]
                errors[name] = np.abs(found[..., 0] + 1j * found[..., 1] - expected).max() / np.abs(expected).max()
            calls[name] = call
        times = alternate(calls, TURNS, cpu_clock=True)
        for name, time in times.items():
            ratio, error = time.minimum_ms / times["torch"].minimum_ms, errors.get(name)
            print(f"{n:4d} {name:16s} {time.minimum_ms:8.2f} ms {ratio:6.2f}x", "" if error is None else f"{error:.0e}")


if __name__ == "__main__":
    main()
