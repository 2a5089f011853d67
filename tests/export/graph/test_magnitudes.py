"""How large values are, whatever their number."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from clusir.export.graph.magnitudes import Magnitude, Magnitudes


def model() -> ModelProto:
    """A picture, its negative, and a part of it that is empty where the picture is two columns wide."""
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, None, None]) for n in ("image", "part")]
    nodes = [
        helper.make_node("Neg", ["image"], ["negative"]),
        helper.make_node("Log", ["negative"], ["nonsense"]),
        helper.make_node("Slice", ["negative", "two", "many", "last"], ["part"]),
    ]
    bounds = [helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in (("two", 2), ("many", 99), ("last", 3))]
    graph = helper.make_graph(nodes, "theirs", ports[:1], ports[1:], bounds)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_largest_mean_and_size() -> None:
    sizing = Magnitudes(model(), ["image", "negative", "part"])
    image = np.full((1, 3, 4, 4), 0.5, np.float32)
    image[0, 1, 2, 3] = 2.0
    found = sizing.run({"image": image})
    assert found["image"] == found["negative"] == Magnitude(2.0, pytest.approx((47 * 0.5 + 2) / 48), 48)
    assert found["part"].size == 24
    assert sizing.run({"image": image[..., :2]})["part"] == Magnitude(0.0, 0.0, 0)
    assert Magnitudes(model(), []).run({"image": image}) == {}  # a graph of plain copies has no value of its own


def test_what_is_no_number_is_told() -> None:
    found = Magnitudes(model(), ["nonsense"]).run({"image": np.full((1, 3, 2, 2), 0.5, np.float32)})
    assert not np.isfinite(found["nonsense"].mean)
