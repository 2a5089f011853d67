"""Adopted files whose numbers are hard on a runtime: norms of maps of one colour, float16 inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from theirs import KERNEL, PICTURE, adopted, answer, constant, conv, expected, write
from torch import nn

from clusir.runtimes import open_runner


def half(source: Path, inside: bool) -> Path:
    """The file in float16; ``inside``: between float32 ends."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    if inside:
        for node in model.graph.node:
            node.input[:] = ["x16" if name == "x" else name for name in node.input]
            node.output[:] = ["y16" if name == "y" else name for name in node.output]
        model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["x16"], to=TensorProto.FLOAT16))
        model.graph.node.append(helper.make_node("Cast", ["y16"], ["y"], to=TensorProto.FLOAT))
    else:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, str(source))
    return source


@pytest.mark.parametrize("inside", [True, False])
def test_a_graph_that_computes_in_float16_is_written_in_float32(tmp_path: Path, inside: bool) -> None:
    """It pools over the picture as well: what is cut out for tiles has constants in float32."""
    nodes = [
        conv("x", "a"),
        helper.make_node("InstanceNormalization", ["a", "one", "nil"], ["b"], epsilon=1e-3),
        helper.make_node("Mul", ["b", "little"], ["c"]),
        helper.make_node("Add", ["c", "x"], ["y"]),
    ]
    constants = [constant("k", KERNEL), constant("one", np.ones(3)), constant("nil", np.zeros(3)),
                 constant("little", 0.05)]  # fmt: skip
    made = adopted(half(write(tmp_path / "theirs.onnx", nodes, constants), inside))
    assert made.spec.statistics == 7  # the picture's pixels, three means, three variances
    assert any("computes in float16" in note for note in made.notes)
    kinds = {tensor.data_type for tensor in onnx.load(made.path).graph.initializer}
    assert TensorProto.FLOAT in kinds
    assert TensorProto.FLOAT16 not in kinds
    with torch.no_grad():
        normed = nn.functional.instance_norm(torch.from_numpy(expected(PICTURE)), eps=1e-3).numpy()
    np.testing.assert_allclose(answer(made, PICTURE), PICTURE + 0.05 * normed, atol=1e-3)


def test_norms_of_maps_of_one_colour_are_written_out_where_a_runtime_has_them_wrong(tmp_path: Path) -> None:
    """A black picture of 512 px becomes 4096 x 64 equal numbers, which OpenVINO adds up in order."""
    nodes = [
        conv("x", "a"),
        helper.make_node("Add", ["a", "shift"], ["b"]),
        helper.make_node("InstanceNormalization", ["b", "one", "nil"], ["c"], epsilon=1e-5),
        helper.make_node("Mul", ["c", "little"], ["d"]),
        helper.make_node("Add", ["d", "x"], ["y"]),
    ]
    constants = [constant("k", KERNEL), constant("shift", np.full((1, 3, 1, 1), 0.37)), constant("one", np.ones(3)),
                 constant("nil", np.zeros(3)), constant("little", 0.05)]  # fmt: skip
    made = adopted(write(tmp_path / "theirs.onnx", nodes, constants))
    picture = np.zeros((1, 3, 512, 512), np.float32)
    with torch.no_grad():
        shifted = torch.from_numpy(expected(picture)).double() + 0.37
        want = 0.05 * nn.functional.instance_norm(shifted, eps=1e-5) + torch.from_numpy(picture)
    for backend in ("ort", "openvino"):
        with open_runner(made.path, backend, "cpu", 1) as runner:
            np.testing.assert_allclose(runner.run({"image": picture})["restored"], want, atol=1e-4)
