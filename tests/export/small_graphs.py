"""Small legal ONNX graphs, written node by node, and the question that every pass must answer on them.

A pass gives the same answers, or leaves the model as it is and says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from clusir.export.base import Pass, PassResult

__all__ = ["Net", "changed", "refused", "run", "same"]

Array = NDArray[Any]
ROUNDING = 2e-5  # of an output's largest value


class Net:
    """One graph under construction. ``op`` and ``const`` return the name of what they add."""

    def __init__(self, opset: int = 18, seed: int = 0) -> None:
        self.opset, self.rng = opset, np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: dict[str, list[int | str]] = {}
        self.outputs: list[str] = []
        self.defaults: list[str] = []

    def input(self, name: str, *shape: int | str) -> str:
        self.inputs[name] = list(shape)
        return name

    def const(self, array: Any, name: str = "", dtype: Any = np.float32) -> str:
        name = name or f"const_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def random(self, *shape: int, scale: float = 1.0, name: str = "") -> str:
        return self.const(self.rng.standard_normal(shape) * scale, name)

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"node_{output}", **attributes))
        return output

    def many(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> list[str]:
        """A node with several outputs; returns their names."""
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=f"node_{outputs[0]}", **attributes))
        return list(outputs)

    def split(self, value: str, sizes: Sequence[int], axis: int = 1) -> list[str]:
        parts = [f"{value}_part{k}" for k in range(len(sizes))]
        return self.many("Split", [value, self.const(sizes, dtype=np.int64)], parts, axis=axis)

    def reshape(self, value: str, shape: Sequence[int], **attributes: Any) -> str:
        return self.op("Reshape", value, self.const(shape, dtype=np.int64), **attributes)

    def output(self, *names: str) -> None:
        self.outputs += [n for n in names if n not in self.outputs]

    def branch(self, value: str) -> str:
        """An If whose branches read ``value`` from the graph around it."""
        inner = [
            helper.make_graph(
                [helper.make_node(kind, [value], [f"{value}_{kind}"])],
                kind,
                [],
                [helper.make_tensor_value_info(f"{value}_{kind}", TensorProto.FLOAT, None)],
            )
            for kind in ("Neg", "Abs")
        ]
        condition = self.const(True, dtype=np.bool_)
        return self.op("If", condition, then_branch=inner[0], else_branch=inner[1])

    def model(self) -> onnx.ModelProto:
        shapes = dict(self.inputs)
        shapes |= {t.name: list(t.dims) for t in self.constants if t.name in self.defaults}
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in self.outputs],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        typed = list(onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output)
        del model.graph.output[:]
        model.graph.output.extend(typed)
        onnx.checker.check_model(model, full_check=True)
        return model

    def feeds(self, batch: int = 3, scale: float = 1.0) -> dict[str, Array]:
        """Random inputs (open axes of length ``batch``), and other values than the defaults for weights that are
        inputs too."""
        rng = np.random.default_rng(7)
        shapes = dict(self.inputs)
        shapes |= {t.name: list(t.dims) for t in self.constants if t.name in self.defaults}
        return {
            n: (rng.standard_normal([batch if isinstance(d, str) else d for d in s]) * scale).astype(np.float32)
            for n, s in shapes.items()
        }


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()}), strict=True))


def same(step: Pass[onnx.ModelProto], net: Net, batch: int = 3, rounding: float = ROUNDING) -> PassResult[Any]:
    """Apply a pass: the same ports and answers where it changes the model, the same bytes and a reason where not."""
    before = net.model()
    asked = before.SerializeToString()
    result = step.apply(before)
    assert before.SerializeToString() == asked, "a pass leaves its argument alone"
    assert result.notes, "a pass says what it did, or why not"
    if not result.modified:
        assert result.model.SerializeToString() == asked
        return result
    step.ensures(result.model)
    onnx.checker.check_model(result.model, full_check=True)
    assert [v.name for v in result.model.graph.input] == [v.name for v in before.graph.input]
    assert [v.name for v in result.model.graph.output] == [v.name for v in before.graph.output]
    feeds = net.feeds(batch)
    expected, found = run(before, feeds), run(result.model, feeds)
    for name, want in expected.items():
        got = found[name]
        assert (got.shape, got.dtype) == (want.shape, want.dtype), name
        size = float(np.abs(want).max())
        error = float(np.abs(got - want).max())
        assert error <= rounding * size, f"{name}: {error} of {size}; {result.notes}"
    return result


def changed(step: Pass[onnx.ModelProto], net: Net, batch: int = 3) -> onnx.ModelProto:
    """The model behind the pass, which must change it and keep its answers."""
    result = same(step, net, batch)
    assert result.modified, result.notes
    return result.model


def refused(step: Pass[onnx.ModelProto], net: Net, reason: str) -> None:
    """The pass leaves the model alone and says ``reason``."""
    result = same(step, net)
    assert not result.modified, result.notes
    assert any(reason in note for note in result.notes), result.notes
