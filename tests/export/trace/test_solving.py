"""Small systems of equations in the graph: as exact as their condition allows, on both runtimes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clusir.export.trace.program import UntraceableError, trace_module
from clusir.export.trace.writer import write_program
from tests.bench.scans.__main__ import on

ROWS = (1, 3, 16)


def matrices(f: Tensor, rows: int) -> Tensor:
    """BxNxN of pixels, with zeros on the diagonal: nothing can be divided by before rows are exchanged."""
    few = f.flatten(1)[:, : rows * rows].reshape(-1, rows, rows)
    return few * (1 - torch.eye(rows).to(few)) if rows > 1 else few + 3


def right_sides(f: Tensor, rows: int) -> Tensor:
    return f.flatten(1)[:, -7 * rows :].reshape(-1, rows, 7)


class Solves(nn.Module):
    """Systems of every size, and every way in which one may be written, beside each other: Bx(all rows)."""

    def forward(self, f: Tensor) -> Tensor:
        found = [torch.linalg.solve(matrices(f, rows), right_sides(f, rows)) for rows in ROWS]
        a, b = matrices(f, 3), right_sides(f, 3)
        found += [
            torch.linalg.solve(a, b.mT, left=False).mT,
            torch.linalg.solve(a, b[..., 0])[..., None].expand_as(b),
            torch.linalg.solve(a[:, None], b)[:, 0] if f.shape[0] == 1 else torch.linalg.solve(a, b),
            torch.linalg.inv(a) @ b,
        ]
        return torch.cat([x.flatten(1) for x in found], 1)


class Shared(nn.Module):
    """One matrix, many right-hand sides: colours mixed by it are unmixed."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.tensor([[0.0, 1.0, 0.2], [0.9, 0.0, 0.3], [0.1, 0.4, 0.0]]))

    def forward(self, f: Tensor) -> Tensor:
        return torch.linalg.solve(self.mix, f.flatten(2)).view(f.shape)


class LeastSquares(nn.Module):
    """Colours corrected by normal equations, as colour transfer and guided filters of colours have it."""

    def forward(self, f: Tensor) -> Tensor:
        flat = f.flatten(2)
        gram = flat @ flat.mT / flat.shape[-1] + 0.1 * torch.eye(3)
        return torch.linalg.solve(gram, flat @ torch.tanh(flat).mT / flat.shape[-1]).mT @ flat


def picture(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height * width))


@pytest.mark.parametrize("model", [Solves(), Shared(), LeastSquares()], ids=lambda m: type(m).__name__)
def test_a_small_system_is_solved_as_well_as_it_can_be(model: nn.Module) -> None:
    """Against float64: off by no more than rounding times the condition."""
    traced = trace_module(model.eval(), picture(1, 21, 27))
    assert (traced.dynamic_batch, traced.dynamic_size) == (True, True)
    written, _ = write_program(traced)
    runs = {backend: on(backend, written) for backend in ("ort", "openvino")}
    for shape in ((1, 20, 26), (2, 33, 17), (3, 14, 41)):
        image = picture(*shape)
        with torch.no_grad():
            exact = model.double()(image.double())
        condition = max(float(torch.linalg.cond(matrices(image.double(), n)).max()) for n in ROWS)
        for backend, run in runs.items():
            off = np.abs(run(image.numpy()) - exact.numpy()).max() / max(1.0, float(exact.abs().max()))
            assert off <= condition * 2**-23, f"{backend}: {off:.2g} of the largest, condition {condition:.0f}"
        model.float()


def test_a_large_system_is_refused_with_its_line() -> None:
    class Large(nn.Module):
        def forward(self, f: Tensor) -> Tensor:
            return torch.linalg.solve(matrices(f, 40), f.flatten(1)[:, :40])  # forty unknowns

    told = r"test_solving\.py:\d+ `.*forty unknowns`: aten\._linalg_solve_ex\.default has no ONNX form; write it"
    with pytest.raises(UntraceableError, match=told):
        write_program(trace_module(Large().eval(), picture(1, 21, 27)))
