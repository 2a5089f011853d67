"""A picture's spectrum, changed value by value and taken back: what the exporter writes, with PositionwiseSpectrum and
without it, beside forms that fold rows and columns first (no pass writes these), and beside torch.fft.

    python -m tests.bench.bounds.spectra 96 128 225 256 [--rounds 15] [--forms exported]

irfft2(relu(re) + i relu(im)) of rfft2, [1, 48, N, N], one thread, processor time, in turns. A cosine is the same at +n
and -n and a sine its negative, so that cosines act on x[n] + x[-n] and sines on x[n] - x[-n]: half the products of an
axis, for a sum, a difference and a reversed copy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from clusir.export.base import Pipeline
from clusir.export.lowering.dft import cos_sin, half_bins
from clusir.export.passes.order import fusing_passes
from clusir.export.passes.positionwise_spectrum import PositionwiseSpectrum
from clusir.export.passes.simplify import SimplifyGraph
from clusir.export.trace.writer import write_onnx
from tests.bench.timing import RUNTIMES, Call, alternate, torch_call

CHANNELS = 48
ROWS, COLUMNS = 2, 3


class Rectified(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        bins = torch.fft.rfft2(x)
        return torch.fft.irfft2(torch.complex(torch.relu(bins.real), torch.relu(bins.imag)), s=x.shape[-2:])


class Folded:
    """The same as an ONNX graph, written line by line. ``columns``: these are folded as well."""

    def __init__(self, n: int, columns: bool) -> None:
        self.n, self.bins, self.columns = n, half_bins(n), columns
        self.nodes: list = []
        self.constants: list = []

    def constant(self, value: object, dtype: type = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [f"v{len(self.nodes)}"], **attributes))
        return str(self.nodes[-1].output[0])

    def cut(self, value: str, start: int, end: int, axis: int, step: int = 1) -> str:
        return self.node("Slice", value, *(self.constant([i], np.int64) for i in (start, end, axis, step)))

    def fold(self, value: str, axis: int) -> tuple[str, str]:
        """x[k] + x[-k] and x[k] - x[-k] for k = 0..N//2."""
        first, last = self.cut(value, 0, 1, axis), self.cut(value, -1, -self.bins, axis, -1)
        ahead, mirrored = self.cut(value, 0, self.bins, axis), self.node("Concat", first, last, axis=axis)
        return self.node("Add", ahead, mirrored), self.node("Sub", ahead, mirrored)

    def unfold(self, ahead: str, mirrored: str, axis: int) -> str:
        """Places 0..N//2 of ``ahead``, then the others, which ``mirrored`` has at their mirror images."""
        return self.node("Concat", ahead, self.cut(mirrored, (self.n - 1) // 2, 0, axis, -1), axis=axis)

    def graph(self) -> bytes:
        n, bins = self.n, self.bins
        cosines, sines = cos_sin(bins, n, n)
        once = np.where(2 * np.arange(bins) % n == 0, 0.5, 1.0)  # what is its own mirror image is counted twice
        real, imaginary = self.forward(cosines, sines, once)
        real, imaginary = self.node("Relu", real), self.node("Relu", imaginary)
        output = self.inverse(real, imaginary, cosines / n, sines / n, once)
        shape = [1, CHANNELS, n, n]
        ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", output)]
        made = helper.make_graph(self.nodes, "folded", ports[:1], ports[1:], self.constants)
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()

    def forward(self, cosines: np.ndarray, sines: np.ndarray, once: np.ndarray) -> tuple[str, str]:
        bins = self.bins
        even, odd = self.fold("x", COLUMNS) if self.columns else ("x", "x")
        width = bins if self.columns else self.n
        across_c = self.constant((cosines[:, :width] * (once if self.columns else 1.0)).T)
        across_s = self.constant(sines[:, :width].T)
        down_c, down_s = self.constant(cosines[:, :bins] * once), self.constant(sines[:, :bins])
        even_rows, odd_rows = self.fold(even, ROWS), self.fold(odd, ROWS)
        # By its two letters: cosines or sines of the height, then of the width.
        down = {"c": [self.node("MatMul", down_c, rows[0]) for rows in (even_rows, odd_rows)],
                "s": [self.node("MatMul", down_s, rows[1]) for rows in (even_rows, odd_rows)]}  # fmt: skip
        cc, ss = self.node("MatMul", down["c"][0], across_c), self.node("MatMul", down["s"][1], across_s)
        cs, sc = self.node("MatMul", down["c"][1], across_s), self.node("MatMul", down["s"][0], across_c)
        real = self.unfold(self.node("Sub", cc, ss), self.node("Add", cc, ss), ROWS)
        ahead = self.node("Neg", self.node("Add", cs, sc))
        return real, self.unfold(ahead, self.node("Sub", sc, cs), ROWS)

    def inverse(self, real: str, imaginary: str, cosines: np.ndarray, sines: np.ndarray, once: np.ndarray) -> str:
        bins = self.bins
        width = bins if self.columns else self.n
        down_c, down_s = (self.constant((table[:, :bins] * once[:, None]).T) for table in (cosines, sines))
        twice = 2 * once[:, None]
        across_c, across_s = (self.constant((table * twice)[:, :width]) for table in (cosines, sines))
        (real_sum, real_difference), (imaginary_sum, imaginary_difference) = (
            self.fold(part, ROWS) for part in (real, imaginary)
        )
        product = {
            key: self.node("MatMul", down, self.node("MatMul", part, across))
            for key, down, part, across in (
                ("cc", down_c, real_sum, across_c), ("cs", down_c, imaginary_sum, across_s),
                ("sc", down_s, imaginary_difference, across_c), ("ss", down_s, real_difference, across_s))
        }  # fmt: skip
        # x = cc - cs - sc - ss; sines of the height change their sign at -h, those of the width at -w.
        even = [self.node(kind, product["cc"], product["sc"]) for kind in ("Sub", "Add")]
        odd = [self.node(kind, product["cs"], product["ss"]) for kind in ("Add", "Sub")]
        if not self.columns:
            return self.unfold(*(self.node("Sub", even[i], odd[i]) for i in (0, 1)), ROWS)
        even_map, odd_map = self.unfold(*even, ROWS), self.unfold(*odd, ROWS)
        return self.unfold(self.node("Sub", even_map, odd_map), self.node("Add", even_map, odd_map), COLUMNS)


def exported(x: Tensor, ordered: bool) -> bytes:
    """``ordered``: the spectrum in its usual order."""
    model = write_onnx(Rectified(), (x.repeat(2, 1, 1, 1),), ["x"], ["y"], dynamic_size=False, dft="auto")
    passes = [step for step in fusing_passes() if not (ordered and isinstance(step, PositionwiseSpectrum))]
    return Pipeline([SimplifyGraph(), *passes]).run(model).SerializeToString()


FORMS: dict[str, Callable[[Tensor], bytes]] = {
    "exported": lambda x: exported(x, ordered=False),
    "ordered": lambda x: exported(x, ordered=True),
    "rows folded": lambda x: Folded(x.shape[-1], columns=False).graph(),
    "both": lambda x: Folded(x.shape[-1], columns=True).graph(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| N | form | runtime | ms | of torch.fft | by the medians | error |\n|---:|---|---|---:|---:|---:|---:|")
    for n in options.sizes:
        x = torch.randn(1, CHANNELS, n, n, generator=torch.Generator().manual_seed(n))
        expected = Rectified()(x.double()).numpy()
        forms = {form: FORMS[form](x) for form in options.forms}
        calls: dict[tuple[str, str], Call] = {("torch", "PyTorch"): torch_call(Rectified(), x)}
        errors = {}
        for form, graph in forms.items():
            for runtime, opener in RUNTIMES.items():
                call = calls[form, runtime] = opener(graph, {"x": x.numpy()}, 1)
                errors[form, runtime] = np.abs(call()[0] - expected).max() / np.abs(expected).max()
        times = alternate(calls, options.rounds, cpu_clock=True)  # type: ignore[arg-type, type-var]
        base = times["torch", "PyTorch"]  # type: ignore[index]
        for key, time in times.items():
            ratios = f"{time.minimum_ms / base.minimum_ms:.2f} | {time.median_ms / base.median_ms:.2f}"
            print(f"| {n} | {key[0]} | {key[1]} | {time.minimum_ms:.1f} | {ratios} | {errors.get(key, 0):.0e} |")


if __name__ == "__main__":
    main()
