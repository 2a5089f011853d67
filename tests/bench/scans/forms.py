"""The forms of ``h[t] = a[t] h[t-1] + b[t]`` that were considered, as ONNX models from a, b LxR to y LxR."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from clusir.export.lowering.scan import linear_scan
from clusir.export.trace.program import TracedModel
from clusir.export.trace.writer import write_program

__all__ = ["FORMS", "exported", "logarithmic", "step_by_step"]


class _Both(torch.nn.Module):
    def forward(self, both: torch.Tensor) -> torch.Tensor:
        return linear_scan(both[0], both[1], torch.zeros_like(both[1, 0]))


def exported() -> onnx.ModelProto:
    """What clusir-export writes: Scan over chunks of 16 steps."""
    dynamic = torch.export.Dim.AUTO
    sample = torch.rand(2, 37, 6)
    program = torch.export.export(_Both(), (sample,), dynamic_shapes=({1: dynamic, 2: dynamic},), strict=False)
    traced = TracedModel(program, program, False, True, (37, 6), ())
    model, _ = write_program(traced)
    return model


def _model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    first = [helper.make_node("Split", ["image"], ["a1", "b1"], axis=0, num_outputs=2)]
    first += [helper.make_node("Squeeze", [f"{n}1", "axis0"], [n]) for n in "ab"]
    constants = {**constants, "axis0": np.array([0])}
    graph = helper.make_graph(
        [*first, *nodes],
        "scan",
        [value("image", TensorProto.FLOAT, [2, "L", "R"])],
        [value("restored", TensorProto.FLOAT, ["L", "R"])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def step_by_step() -> onnx.ModelProto:
    """Scan, one step a turn."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["decay", "state"], ["kept"]),
            helper.make_node("Add", ["kept", "entry"], ["next"]),
            helper.make_node("Identity", ["next"], ["out"]),
        ],
        "step",
        [value(n, TensorProto.FLOAT, ["R"]) for n in ("state", "decay", "entry")],
        [value(n, TensorProto.FLOAT, ["R"]) for n in ("next", "out")],
    )
    nodes = [
        helper.make_node("Shape", ["b"], ["width"], start=1),
        helper.make_node("ConstantOfShape", ["width"], ["zero"]),
        helper.make_node("Scan", ["zero", "a", "b"], ["last", "restored"], num_scan_inputs=2, body=body),
    ]
    return _model(nodes, {})


class _Nodes:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, value: list[int]) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.array(value)
        return name

    def __call__(self, kind: str, *inputs: str, outputs: int = 1, **attributes: int) -> list[str]:
        made = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, made, **attributes))
        return made


def logarithmic(chunk: int = 16, longest: int = 65536) -> onnx.ModelProto:
    """Pairs (a, b) combined in trees of ``chunk`` branches: standard operators only, depth log(length)."""
    add = _Nodes()
    zero, one, whole, last = (add.constant([n]) for n in (0, 1, -1, -1))

    def level(a: str, b: str, length: int) -> str:
        if length <= 1:
            return b
        size, width = add("Shape", b, start=0, end=1)[0], add("Shape", b, start=1, end=2)[0]
        more = add("Mod", add("Neg", size)[0], add.constant([chunk]))[0]
        pads = add("Concat", zero, zero, more, zero, axis=0)[0]
        shape = add("Concat", add.constant([-1, chunk]), width, axis=0)[0]
        rows = []
        for tensor in (a, b):
            parts = add("Reshape", add("Pad", tensor, pads)[0], shape)[0]
            rows.append(add("Split", parts, outputs=chunk, axis=1, num_outputs=chunk))
        kept, states = [rows[0][0]], [rows[1][0]]
        for decay, entry in list(zip(*rows, strict=True))[1:]:
            states.append(add("Add", add("Mul", decay, states[-1])[0], entry)[0])
            kept.append(add("Mul", decay, kept[-1])[0])
        ends = [add("Squeeze", row[-1], one)[0] for row in (kept, states)]
        before = add("Pad", level(ends[0], ends[1], -(-length // chunk)), add.constant([1, 0, 0, 0]))[0]
        carried = add("Unsqueeze", add("Slice", before, zero, last, zero)[0], one)[0]
        fixed = add("Mul", add("Concat", *kept, axis=1)[0], carried)[0]
        made = add("Add", add("Concat", *states, axis=1)[0], fixed)[0]
        flat = add("Reshape", made, add("Concat", whole, width, axis=0)[0])[0]
        return add("Slice", flat, zero, size, zero)[0]

    made = level("a", "b", longest)
    add.nodes.append(helper.make_node("Identity", [made], ["restored"]))
    return _model(add.nodes, add.constants)


FORMS = {"Scan over chunks of 16 (exported)": exported, "Scan, step by step": step_by_step, "logarithmic": logarithmic}
