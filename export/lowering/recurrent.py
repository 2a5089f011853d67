"""GRU and LSTM along an axis of any length: one operator for each layer and direction, as ONNX has them.

torch writes a layer out step by step, so that a tracer keeps the length of its sample. Both have the same equations;
the gates stand in another order, and ONNX's GRU resets behind the product as torch does (``linear_before_reset``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from onnxscript import opset18 as op
from torch import Tensor

from clusir.export.lowering.matrices import Value, integers

__all__ = ["gru", "lstm", "recurrent_translation"]

_ORDER = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}  # of torch's gates, as ONNX has them
Layers = tuple[Tensor, list[Tensor], list[Tensor]]  # what comes out, the last states, the last cells


@torch.library.custom_op("clusir::recurrent", mutates_args=())
def _recurrent(
    kind: str, x: Tensor, weights: Sequence[Tensor], start: Tensor, cell: Tensor, back: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One direction of one layer, ``kind`` GRU or LSTM: x LxBxI; ``weights``: for the input GHxI, for the state GHxH,
    and their biases GH; start and cell (of an LSTM) BxH. Returns all states LxBxH, the last one and the last cell."""
    given, more = list(weights), (True, 1, 0.0, False, False, False)
    steps = x.flip(0) if back else x
    if kind == "GRU":
        states, last = torch.gru(steps, start[None], given, *more)
        left = cell.clone()
    else:
        states, last, cells = torch.lstm(steps, (start[None], cell[None]), given, *more)
        left = cells[0].clone()
    return states.flip(0) if back else states, last[0].clone(), left


@_recurrent.register_fake
def _(
    kind: str, x: Tensor, weights: Sequence[Tensor], start: Tensor, cell: Tensor, back: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty((x.shape[0], *start.shape)), torch.empty_like(start), torch.empty_like(cell)


def gru(x: Tensor, state: Any, weights: Sequence[Tensor], *how: Any) -> Any:
    """``torch.gru``: ``how`` is whether there are biases, the number of layers, dropout, training, both directions,
    batch first."""
    if not isinstance(state, Tensor) or not _is_plain(how, weights):
        return NotImplemented
    out, states, _ = _layers("GRU", x, (state, state), weights, how)
    return out, torch.stack(states)


def lstm(x: Tensor, state: Any, weights: Sequence[Tensor], *how: Any) -> Any:
    """``torch.lstm``, the same with a state of two tensors."""
    if isinstance(state, Tensor) or not _is_plain(how, weights):
        return NotImplemented
    out, states, cells = _layers("LSTM", x, (state[0], state[1]), weights, how)
    return out, torch.stack(states), torch.stack(cells)


def _is_plain(how: Sequence[Any], weights: Sequence[Tensor]) -> bool:
    """Neither packed sequences nor projected states, and no dropout."""
    if len(how) != 6 or not isinstance(how[0], bool):
        return False
    biases, layers, dropout, training, both, _ = how
    return len(weights) == layers * (1 + both) * (4 if biases else 2) and not (training and dropout)


def _layers(
    kind: str, x: Tensor, start: tuple[Tensor, Tensor], weights: Sequence[Tensor], how: Sequence[Any]
) -> Layers:
    biases, layers, _, _, both, batch_first = how
    each = 4 if biases else 2
    x = x.transpose(0, 1) if batch_first else x
    states, cells = [], []
    for layer in range(layers):
        ways = []
        for back in range(1 + both):
            number = layer * (1 + both) + back
            given = list(weights[number * each : (number + 1) * each])
            if not biases:
                given += [given[0].new_zeros(given[0].shape[0])] * 2
            out, last, cell = _recurrent(kind, x.contiguous(), given, start[0][number], start[1][number], bool(back))
            ways.append(out)
            states.append(last)
            cells.append(cell)
        x = torch.cat(ways, -1) if both else ways[0]
    return (x.transpose(0, 1) if batch_first else x), states, cells


def _reordered(kind: str, weight: Value) -> Value:
    """The gates of a weight or bias in ONNX's order, and the axis of directions in front."""
    parts = op.Split(weight, axis=0, num_outputs=len(_ORDER[kind]))
    return op.Unsqueeze(op.Concat(*(parts[gate] for gate in _ORDER[kind]), axis=0), integers([0]))


def _written(
    kind: str, x: Value, weights: Sequence[Value], start: Value, cell: Value, back: bool
) -> tuple[Value, Value, Value]:
    """clusir::recurrent(str kind, Tensor x, Tensor[] weights, Tensor start, Tensor cell, bool back) -> (Tensor, Tensor,
    Tensor)"""
    hidden = int(start.shape[-1])
    entry, own, *biases = (_reordered(kind, w) for w in weights)
    bias = op.Concat(*biases, axis=-1)
    first, direction = op.Unsqueeze(start, integers([0])), "reverse" if back else "forward"
    if kind == "GRU":
        states, last = op.GRU(
            x, entry, own, bias, None, first, direction=direction, hidden_size=hidden, linear_before_reset=1
        )
        left = cell
    else:
        cells = op.Unsqueeze(cell, integers([0]))
        states, last, left = op.LSTM(x, entry, own, bias, None, first, cells, direction=direction, hidden_size=hidden)
        left = op.Squeeze(left, integers([0]))
    return op.Squeeze(states, integers([1])), op.Squeeze(last, integers([0])), left


def recurrent_translation() -> dict[Any, Any]:
    """The operator's ONNX form, for ``custom_translation_table``."""
    return {torch.ops.clusir.recurrent.default: _written}
