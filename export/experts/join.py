"""The gates of a brought network's blocks as one output of its file."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from clusir.export.base import GraphPass, PassResult

__all__ = ["JoinGates", "joined_gates"]

_NODE = "join_gates"


class JoinGates(GraphPass):
    """Replace the outputs ``gate_0``, ``gate_1``, ... by one output ``gate``, BxsumE; gates per pixel are dropped."""

    name = "JoinGates"

    def __init__(self, gates: Sequence[str]) -> None:
        self.gates = tuple(gates)

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        if not self.gates:
            return PassResult(model, False, ("no gates",))
        joined = onnx.ModelProto()
        joined.CopyFrom(model)
        outputs = {o.name: o for o in joined.graph.output}
        flat = [g for g in self.gates if len(outputs[g].type.tensor_type.shape.dim) == 2]
        kept = [o for o in joined.graph.output if o.name not in self.gates]
        if flat:
            joined.graph.node.append(onnx.helper.make_node("Concat", flat, ["gate"], name=_NODE, axis=1))
            total = sum(outputs[g].type.tensor_type.shape.dim[1].dim_value for g in flat)
            batch = outputs[flat[0]].type.tensor_type.shape.dim[0]
            size: int | str = batch.dim_param if batch.HasField("dim_param") else batch.dim_value
            kept.append(onnx.helper.make_tensor_value_info("gate", onnx.TensorProto.FLOAT, [size, total]))
        del joined.graph.output[:]
        joined.graph.output.extend(kept)
        return PassResult(joined, True, (f"{len(flat)} of {len(self.gates)} gates are the output gate",))


def joined_gates(model: onnx.ModelProto) -> tuple[str, ...]:
    """The tensors that the pass has joined in a file; none where it has no such output."""
    return next((tuple(node.input) for node in model.graph.node if node.name == _NODE), ())
