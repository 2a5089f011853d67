"""GRU and LSTM along the rows and columns of a picture: any size, both directions, several layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clusir.export.trace.program import trace_module
from clusir.export.trace.writer import write_program
from tests.bench.scans.__main__ import on


def picture(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height * width))


class AlongRows(nn.Module):
    """Every row is a sequence of pixels; what a column ends in is told to all its pixels."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = kind(3, 5, batch_first=True, **options)
        self.columns = kind(3, 4, **options)
        for weight in self.parameters():
            nn.init.uniform_(weight, -0.9, 0.9)
        self.tail = nn.LazyConv2d(3, 1)
        self.eval()(picture(1, 6, 5))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        rows, _ = self.rows(x.permute(0, 2, 3, 1).reshape(b * h, w, c))
        rows = rows.reshape(b, h, w, -1).permute(0, 3, 1, 2)
        _, last = self.columns(x.permute(2, 0, 3, 1).reshape(h, b * w, c))
        last = last[0] + last[1] if isinstance(last, tuple) else last
        last = last.permute(1, 0, 2).reshape(b, 1, w, -1).permute(0, 3, 1, 2)
        return x + self.tail(torch.cat([rows, last.expand(-1, -1, h, -1)], 1))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.GRU, {}),
        (nn.GRU, {"bidirectional": True, "num_layers": 2, "bias": False}),
        (nn.LSTM, {"bidirectional": True}),
        (nn.LSTM, {"num_layers": 2, "dropout": 0.5}),
    ],
)
@torch.no_grad()
def test_recurrent_layers_are_right_at_any_length(kind: type[nn.RNNBase], options: dict[str, object]) -> None:
    network = AlongRows(kind, **options)
    traced = trace_module(network, picture(1, 21, 27))
    assert (traced.dynamic_batch, traced.dynamic_size) == (True, True)
    model, _ = write_program(traced)
    assert {node.op_type for node in model.graph.node} & {"GRU", "LSTM"}
    for backend in ("ort", "openvino"):
        run = on(backend, model)
        for shape in ((1, 20, 26), (1, 33, 1), (2, 14, 41)):
            given = picture(*shape)
            np.testing.assert_allclose(run(given.numpy()), network(given).numpy(), atol=1e-5)
