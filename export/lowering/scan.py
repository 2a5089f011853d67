"""A linear recurrence over the first axis, ``h[t] = decay[t] * h[t - 1] + entry[t]``, as one operator.

State space models, gated linear recurrences and exponential averages are this with what they multiply by and add. A
sum of products of decays over one another's inverses would be parallel and underflows after a few hundred steps; this
only ever multiplies a decay by a state. Where states decay the error stops growing with the length; where they do not
it is that of a sum in order, 4e-6 after 65,536 steps in float32 (``tests.bench.scans``).

In ONNX it is ``Scan`` over chunks of 16 steps, written out inside: fewer calls than a Scan over steps, no more
arithmetic, and one state in memory beside the result. The forms of logarithmic depth were measured too and are slower
on a CPU (docs/measurements).
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx import helper
from onnxscript import opset18 as op
from torch import Tensor

from clusir.export.lowering.matrices import Value, constant, integers

__all__ = ["CHUNK", "linear_scan", "scan_translation"]

CHUNK = 16


@torch.library.custom_op("clusir::linear_scan", mutates_args=())
def linear_scan(decay: Tensor, entry: Tensor, start: Tensor) -> Tensor:
    """All states: decay and entry LxS..., start S...; returns LxS..., ``h[t] = decay[t] * h[t-1] + entry[t]``.

    ``h[-1]`` is ``start``. The three have one floating dtype; shapes are not broadcast.
    """
    states = torch.empty_like(entry)
    state = start
    for step, (a, b) in enumerate(zip(decay, entry, strict=True)):
        state = torch.addcmul(b, a, state, out=states[step])
    return states


@linear_scan.register_fake
def _(decay: Tensor, entry: Tensor, start: Tensor) -> Tensor:
    return torch.empty_like(entry)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[2], output)


def _gradients(ctx: Any, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same recurrence, run backwards."""
    decay, start, states = ctx.saved_tensors
    later = torch.cat([decay[1:], torch.zeros_like(decay[:1])])
    entry = linear_scan(later.flip(0), given.flip(0), torch.zeros_like(start)).flip(0)
    return entry * torch.cat([start[None], states[:-1]]), entry, decay[0] * entry[0]


linear_scan.register_autograd(_gradients, setup_context=_keep)


def _body(rank: int, dtype: int) -> onnx.GraphProto:
    """One chunk: state 1xS..., decay and entry CHUNKxS... -> the last state, all states."""
    nodes = [
        helper.make_node("Split", ["chunk_decay"], [f"decay_{i}" for i in range(CHUNK)], axis=0, num_outputs=CHUNK),
        helper.make_node("Split", ["chunk_entry"], [f"entry_{i}" for i in range(CHUNK)], axis=0, num_outputs=CHUNK),
    ]
    state = "chunk_start"
    for i in range(CHUNK):
        nodes.append(helper.make_node("Mul", [f"decay_{i}", state], [f"kept_{i}"]))
        nodes.append(helper.make_node("Add", [f"kept_{i}", f"entry_{i}"], [state := f"state_{i}"]))
    nodes.append(helper.make_node("Identity", [state], ["chunk_last"]))
    nodes.append(helper.make_node("Concat", [f"state_{i}" for i in range(CHUNK)], ["chunk_states"], axis=0))

    def value(name: str, length: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, [length, *[None] * rank])

    given = [value("chunk_start", 1), value("chunk_decay", CHUNK), value("chunk_entry", CHUNK)]
    return helper.make_graph(nodes, "scan_chunk", given, [value("chunk_last", 1), value("chunk_states", CHUNK)])


def _linear_scan(decay: Value, entry: Value, start: Value) -> Value:
    """clusir::linear_scan(Tensor decay, Tensor entry, Tensor start) -> Tensor"""
    from torch.onnx._internal.exporter._torchlib.ops.hop import call_op

    length = op.Shape(entry, start=0, end=1)
    rest = op.Shape(start)
    whole = isinstance(entry.shape[0], int) and entry.shape[0] % CHUNK == 0
    rank = len(entry.shape) - 1
    chunks = op.Concat(integers([-1, CHUNK]), rest, axis=0)
    parts = []
    for value in (decay, entry):
        if not whole:
            more = op.Mod(op.Neg(length), integers([CHUNK]))
            pads = op.Concat(integers([0] * (rank + 1)), more, integers([0] * rank), axis=0)
            value = op.Pad(value, pads, constant(0.0, value.dtype))
        parts.append(op.Reshape(value, chunks))
    body = ir.serde.deserialize_graph(_body(rank, int(entry.dtype)))
    first = op.Unsqueeze(start, integers([0]))
    _, states = call_op("Scan", first, *parts, _num_outputs=2, body=body, num_scan_inputs=2)
    states.dtype, states.shape = entry.dtype, ir.Shape([None] * (rank + 2))
    flat = op.Reshape(states, op.Concat(integers([-1]), rest, axis=0))
    return flat if whole else op.Slice(flat, integers([0]), length, integers([0]))


def scan_translation() -> dict[Any, Any]:
    """The operator's ONNX form, for ``custom_translation_table``."""
    return {torch.ops.clusir.linear_scan.default: _linear_scan}
