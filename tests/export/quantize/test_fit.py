"""Graphs whose numbers leave float16's range, and the same graphs with powers of two in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from small_graphs import Net

from clusir.errors import BudgetError
from clusir.export.graph.index import sort_nodes
from clusir.export.graph.session import Probe
from clusir.export.quantize.fit import LARGEST, Fitted, fit_float16
from clusir.export.quantize.float16 import Fp16Config, convert_fp16, peaks_of

SIDE = 32
Form = Callable[[Net, str], str]


def norm_of_sums(net: Net, x: str) -> str:
    """A vector over its length; sums and squares are far beyond 65504, the answer is within 1."""
    loud = net.op("Mul", x, net.const(np.float32(3e3)))
    squares = net.op("ReduceSum", net.op("Mul", loud, loud), net.const([1, 2, 3], dtype=np.int64))
    length = net.op("Sqrt", net.op("Add", squares, net.const(np.float32(1e-6))))
    return net.op("Div", loud, length)


def lengths(net: Net, x: str) -> str:
    loud = net.op("Mul", x, net.const(np.float32(3e3)))
    return net.op("Div", loud, net.op("ReduceL2", loud, net.const([1, 2, 3], dtype=np.int64)))


def mean_of_squares(net: Net, x: str) -> str:
    loud = net.op("Mul", x, net.const(np.float32(3e3)))
    power = net.op("ReduceMean", net.op("Pow", loud, net.const(np.float32(2))), net.const([2, 3], dtype=np.int64))
    root = net.op("Pow", net.op("Add", power, net.const(np.float32(1e-5))), net.const(np.float32(0.5)))
    return net.op("Mul", loud, net.op("Reciprocal", root))


def transforms(net: Net, x: str) -> str:
    """There and back by matrices that add up rather than average, as a Fourier transform does."""
    matrix = np.linalg.qr(np.random.default_rng(2).normal(0, 1, (SIDE, SIDE)))[0].astype(np.float32)
    there = net.op("MatMul", x, net.const(6e4 * matrix))
    turned = net.op("Transpose", net.op("Relu", there), perm=[0, 1, 3, 2])
    halves = net.many("Split", [turned, net.const([16, 16], dtype=np.int64)], ["one", "other"], axis=2)
    sides = net.op("Sub", net.op("Neg", halves[0]), net.op("Max", halves[1], net.const(np.float32(7e4))))
    return net.op("Mul", sides, net.const(np.float32(1e-5)))


def layers(net: Net, x: str) -> str:
    wide = net.op("Conv", x, net.const(1e5 * np.ones((4, 3, 1, 1), np.float32)), net.const([1e5, 0, -1e5, 3]))
    flat = net.op("Transpose", wide, perm=[0, 2, 3, 1])
    return net.op("LayerNormalization", flat, net.random(4), net.random(4), epsilon=1e-3)


def saturates(net: Net, x: str) -> str:
    steep = net.op("Mul", net.op("Sub", x, net.const(np.float32(0.5))), net.const(np.float32(9e6)))
    above = net.op("Where", net.op("Greater", steep, net.const(np.float32(1e6))), steep, net.const(np.float32(0)))
    return net.op("Add", net.op("Sigmoid", steep), net.op("Tanh", net.op("Clip", above, net.const(np.float32(-1e6)))))


FORMS = [norm_of_sums, lengths, mean_of_squares, transforms, layers, saturates]


def made(write: Form) -> onnx.ModelProto:
    net = Net()
    net.input("image", 1, 3, SIDE, SIDE)
    net.output(net.op("Identity", write(net, "image"), name="restored"))
    return net.model()


def pictures() -> list[np.ndarray]:
    """A real range of them: noise, a 16-bit ramp in steps of 1/65535, black, white, single lights."""
    rng = np.random.default_rng(0)
    ramp = np.arange(3 * SIDE * SIDE, dtype=np.float32).reshape(1, 3, SIDE, SIDE) * 21 / 65535
    light = np.zeros((1, 3, SIDE, SIDE), np.float32)
    light[0, :, 5, 7] = 1
    found = [rng.random((1, 3, SIDE, SIDE)), ramp, np.full_like(light, 1), light, np.full_like(light, 2e-2)]
    return [np.ascontiguousarray(picture, np.float32) for picture in found]


def fitted(model: onnx.ModelProto) -> Fitted:
    return fit_float16(model, *peaks_of(model, [{"image": picture} for picture in pictures()]))


def beyond(model: onnx.ModelProto) -> dict[str, float]:
    """What is larger than float16's largest number."""
    peaks, _ = peaks_of(model, [{"image": picture} for picture in pictures()])
    return {name: peak for name, peak in peaks.items() if not peak <= LARGEST}


@pytest.mark.parametrize("write", FORMS, ids=lambda write: write.__name__)
def test_nothing_leaves_the_range_and_nothing_changes(write: Form) -> None:
    model = made(write)
    assert beyond(model), "the graph is to be one that needs it"
    found = fitted(model)
    assert not found.left
    onnx.checker.check_model(found.model)
    saturating = {name for name in beyond(found.model) if name.endswith("0") or "/by" in name}
    assert set(beyond(found.model)) <= (saturating if write is saturates else set())
    for picture in pictures():
        before, after = (Probe(m, threads=1).run({"image": picture})["restored"] for m in (model, found.model))
        assert np.abs(before - after).max() <= 2e-4 * max(1, np.abs(before).max())


@pytest.mark.parametrize("write", FORMS, ids=lambda write: write.__name__)
def test_float16_from_end_to_end_is_right_with_it_and_wrong_without(write: Form, tmp_path: Path) -> None:
    model = made(write)
    halves = []
    for name, graph in (("plain", model), ("fitted", fitted(model).model)):
        onnx.save(graph, str(tmp_path / f"{name}.onnx"))
        halves.append(strongly_typed(graph))
    off = []
    for half in halves:
        with np.errstate(all="ignore"):
            answers = [ReferenceEvaluator(half).run(None, {"image": p})[0] for p in pictures()]
        right = [Probe(model, threads=1).run({"image": p})["restored"] for p in pictures()]
        # The rounded picture may be on the other side of a step.
        away = [np.abs(p - 0.5) > 1e-3 if write is saturates else True for p in pictures()]
        off.append(
            max(float(np.abs(a - r).max(where=w, initial=0)) for a, r, w in zip(answers, right, away, strict=True))
        )
    assert off[1] <= 0.02
    if write not in (layers, saturates):  # the evaluator's norm is computed in float32, and a sigmoid forgives infinity
        assert not off[0] <= 0.02


def strongly_typed(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = onnx.ModelProto.FromString(model.SerializeToString())
    half = convert_float_to_float16(copy, keep_io_types=True, disable_shape_infer=True, op_block_list=[])
    ordered = sort_nodes(half.graph.node)
    del half.graph.node[:]
    half.graph.node.extend(ordered)
    return half


def test_a_constant_beside_a_divisor_does_not_become_nothing() -> None:
    net = Net()
    net.input("image", 1, 3, SIDE, SIDE)
    loud = net.op("Mul", "image", net.const(np.float32(3e4)))
    net.output(
        net.op("Div", loud, net.op("Add", net.op("Mul", loud, loud), net.const(np.float32(1e-8))), name="restored")
    )
    found = fitted(net.model())
    values = [onnx.numpy_helper.to_array(t) for t in found.model.graph.initializer if t.name.endswith("/less")]
    assert values
    assert all((np.float16(value) != 0).all() for value in values)


def test_what_has_no_smaller_form_is_named(tmp_path: Path) -> None:
    model = made(lambda net, x: net.op("Log", net.op("Exp", net.op("Mul", x, net.const(np.float32(40))))))
    found = fitted(model)
    assert [why.split(" has ")[0] for why in found.left.values()] == ["Exp"]
    onnx.save(model, str(tmp_path / "model.onnx"))
    feeds = [{"image": picture} for picture in pictures()]
    with pytest.raises(BudgetError, match="Exp has values beyond float16's range"):
        convert_fp16(tmp_path / "model.onnx", tmp_path / "half.onnx", feeds, Fp16Config(islands=False))
    assert not (tmp_path / "half.onnx").exists()


@pytest.mark.parametrize("islands", [True, False])
def test_the_converter_uses_it(tmp_path: Path, islands: bool) -> None:
    onnx.save(made(norm_of_sums), str(tmp_path / "model.onnx"))
    feeds = [{"image": picture} for picture in pictures()[:1]]
    report = convert_fp16(tmp_path / "model.onnx", tmp_path / "half.onnx", feeds, Fp16Config(islands=islands))
    half = onnx.load(str(tmp_path / "half.onnx"))
    casts = [node for node in half.graph.node if node.op_type == "Cast"]
    assert report.rescaled > 0
    if islands:
        return
    assert not report.kept
    assert [node.input[0] for node in casts if node.input[0] == "image"] == ["image"]
    assert len(casts) == 2  # at the borders
    floats = {t.name for t in half.graph.initializer if t.data_type == TensorProto.FLOAT}
    assert not floats
    # A picture that is louder than those that were measured: extremes are measured unasked.
    for picture in pictures():
        with np.errstate(all="ignore"):
            (answer,) = ReferenceEvaluator(half).run(None, {"image": picture})
        right = Probe(made(norm_of_sums), threads=1).run({"image": picture})["restored"]
        assert np.abs(answer - right).max() <= 0.02
