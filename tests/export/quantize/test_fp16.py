from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from small_graphs import Net

from clusir.errors import BudgetError, CalibrationError
from clusir.export.graph.session import Probe
from clusir.export.quantize.float16 import Fp16Config, convert_fp16
from clusir.export.quantize.layers import metadata_of
from clusir.spec import ModelSpec


def scaled(path: Path, factor: float, weight: str, back: str) -> onnx.ModelProto:
    """The same function with one weight times ``factor`` and a later one divided by it (ReLU lies between)."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name in (weight, back):
            by = factor if tensor.name == weight else 1 / factor
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(by), tensor.name))
    return model


def test_fp16_of_both_graphs_agrees_and_keeps_float32_ports(routed: Any, tmp_path: Path) -> None:
    for graph in (routed.whole, routed.tile):
        feeds = routed.calibration(graph).feeds[:4]
        out = tmp_path / graph.name
        report = convert_fp16(graph, out, feeds)
        model = onnx.load(out)
        assert ModelSpec.from_metadata(metadata_of(model)).precision == "fp16"
        assert all(v.type.tensor_type.elem_type == TensorProto.FLOAT for v in (*model.graph.input, *model.graph.output))
        halves = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16}
        assert {"encoder.0.block.expand.weight", "head.weight"} <= halves
        assert "stem.weight" not in halves, "rounded, it would shift the brightness"
        assert not any("chooser" in name for name in halves)
        assert report.agreement_db is not None
        assert report.agreement_db > 60
        assert report.size_ratio < 0.75
        fp32, fp16 = Probe(onnx.load(graph)), Probe(model)
        for f in feeds:
            want, got = fp32.run(f), fp16.run(f)
            assert -10 * np.log10(np.mean((want["restored"] - got["restored"]) ** 2)) > 60
            if "gate" in want:
                assert np.array_equal(want["gate"], got["gate"]), "the router is untouched"


def test_no_float32_value_is_rounded_on_its_way_to_a_float32_reader(routed: Any, tmp_path: Path) -> None:
    convert_fp16(routed.whole, tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    to = {n.output[0]: n.attribute[0].i for n in model.graph.node if n.op_type == "Cast"}
    source = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Cast"}
    pairs = [
        name
        for name, target in to.items()
        if target == TensorProto.FLOAT
        and to.get(source[name]) == TensorProto.FLOAT16
        and name != "restored"
        and source[name].endswith("_cast_to_fp16")
    ]
    assert pairs == []


@pytest.mark.parametrize("rescale", [True, False])
def test_a_tensor_near_the_largest_float16_is_kept_smaller_or_in_float32(
    routed: Any, tmp_path: Path, rescale: bool
) -> None:
    big = scaled(routed.whole, 2e5, "encoder.0.block.expand.weight", "encoder.0.block.project.weight")
    onnx.save(big, tmp_path / "big.onnx")
    feeds = routed.calibration().feeds[:4]
    report = convert_fp16(tmp_path / "big.onnx", tmp_path / "out.onnx", feeds, Fp16Config(rescale=rescale))
    assert (report.reasons.get("comes near float16's largest value", 0) >= 2) is not rescale
    assert ("float16's largest value" in report.to_markdown()) is not rescale
    assert (report.rescaled > 0) is rescale
    assert report.agreement_db is not None
    assert report.agreement_db > 60
    # Without data nobody knows, and the infinity shows.
    convert_fp16(tmp_path / "big.onnx", tmp_path / "blind.onnx")
    blind = Probe(onnx.load(tmp_path / "blind.onnx")).run(feeds[0])["restored"]
    want = Probe(onnx.load(routed.whole)).run(feeds[0])["restored"]
    assert not np.allclose(blind, want, atol=1e-2), "float16 overflows to infinity"


def test_what_changes_the_picture_before_the_first_convolution_stays_in_float32(routed: Any, tmp_path: Path) -> None:
    # Deblurring in front: filters that sharpen tenfold, in float16, cost 28 dB of agreement on blurred pictures.
    model = onnx.load(routed.whole)
    stem = next(node for node in model.graph.node if "stem.weight" in node.input)
    model.graph.initializer.append(numpy_helper.from_array(np.float32([0.1]), "strength"))
    front = [
        onnx.helper.make_node("Mul", [stem.input[0], "strength"], ["added"], name="sharpen"),
        onnx.helper.make_node("Add", [stem.input[0], "added"], ["sharpened"], name="add"),
    ]
    at = list(model.graph.node).index(stem)
    stem.input[0] = "sharpened"
    for node in reversed(front):
        model.graph.node.insert(at, node)
    onnx.save(model, tmp_path / "front.onnx")
    report = convert_fp16(tmp_path / "front.onnx", tmp_path / "out.onnx")
    assert report.reasons["what the picture passes before the first convolution"] >= 2
    kept = {t.name: t.data_type for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert kept["strength"] == TensorProto.FLOAT


@pytest.mark.parametrize("shown", [False, True], ids=["pooled", "filtered"])
def test_a_network_whose_answer_is_compared_with_the_picture_stays_in_float16(
    routed: Any, tmp_path: Path, shown: bool
) -> None:
    model = onnx.load(routed.whole)
    make, graph = onnx.helper.make_node, model.graph
    for node in graph.node:
        node.output[:] = ["mended" if name == "restored" else name for name in node.output]
    graph.initializer.append(numpy_helper.from_array(np.full((1, 3, 1, 1), 1 / 3, np.float32), "grey.weight"))
    graph.node.extend(
        [
            make("Sub", ["mended", "image"], ["residual"], name="residual"),
            make("Conv", ["residual", "grey.weight"], ["grey"], name="grey"),
            make("GlobalAveragePool", ["grey"], ["mean"], name="mean"),
            make("Sigmoid", ["grey" if shown else "mean"], ["share"], name="share"),
            make("Mul", ["mended", "share"], ["restored"], name="blend"),
        ]
    )
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "judged.onnx")
    plain = convert_fp16(routed.whole, tmp_path / "plain.onnx")
    judged = convert_fp16(tmp_path / "judged.onnx", tmp_path / "out.onnx")
    assert judged.kept["Conv"] == plain.kept["Conv"] + 1


def test_blocks_go_back_to_float32_until_the_agreement_holds(routed: Any, tmp_path: Path) -> None:
    feeds = routed.calibration().feeds[:2]
    plain = convert_fp16(routed.whole, tmp_path / "a.onnx", feeds)
    assert plain.agreement_db is not None
    asked = plain.agreement_db + 2
    better = convert_fp16(routed.whole, tmp_path / "b.onnx", feeds, Fp16Config(agreement_db=asked))
    assert better.added_blocks
    assert better.agreement_db is not None
    assert better.agreement_db >= asked
    assert sum(better.kept.values()) > sum(plain.kept.values())


def test_an_agreement_out_of_reach_writes_nothing_and_fails(routed: Any, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    with pytest.raises(BudgetError, match=r"300\.0 dB are asked for; nothing is written"):
        convert_fp16(routed.tile, out, routed.calibration(routed.tile).feeds[:1], Fp16Config(agreement_db=300.0))
    assert not out.exists()


def test_a_model_that_is_not_finite_is_refused(routed: Any, tmp_path: Path) -> None:
    onnx.save(scaled(routed.whole, np.inf, "encoder.0.block.expand.weight", ""), tmp_path / "m.onnx")
    with pytest.raises(CalibrationError, match="not finite in the float32 model"):
        convert_fp16(tmp_path / "m.onnx", tmp_path / "out.onnx", routed.calibration().feeds[:1])


def small(bias: float = 0.0) -> Net:
    """x + conv(conv(x)), the first convolution's result tiny where it is asked for."""
    net = Net()
    first = net.op("Conv", net.input("x", 1, 4, 8, 8), net.random(4, 4, 3, 3, name="first.weight"), pads=[1] * 4)
    second = net.op(
        "Conv", net.op("Mul", first, net.const(1e-7)), net.random(4, 4, 3, 3, name="second.weight"), pads=[1] * 4
    )
    third = net.op("Conv", net.op("Mul", second, net.const(1e7)), net.random(4, 4, 1, 1, name="third.weight"))
    pooled = net.op("Softmax", net.op("Add", third, net.const(bias)), axis=1)
    net.output(net.op("Add", "x", net.op("Mul", third, pooled), name="y"))
    return net


def test_what_float16_has_no_digits_for_stays_in_float32(tmp_path: Path) -> None:
    net = small()
    onnx.save(net.model(), tmp_path / "m.onnx")
    feeds = [net.feeds(scale=0.3)]
    # No block is put back afterwards: the floor alone has to do it.
    report = convert_fp16(tmp_path / "m.onnx", tmp_path / "out.onnx", feeds, Fp16Config(agreement_db=0.0))
    assert report.reasons["lies below float16's digits"] >= 2
    assert report.agreement_db is not None
    assert report.agreement_db > 40
    for reason in ("global residual", "sum, norm, softmax or comparison", "first convolution"):
        assert report.reasons[reason] >= 1, report.reasons


def test_the_residual_keeps_the_digits_of_the_picture(tmp_path: Path) -> None:
    """The picture itself comes through bit by bit where nothing is added to it."""
    net = Net()
    first = net.op("Conv", net.input("x", 1, 3, 8, 8), net.random(4, 3, 3, 3, name="a.weight"), pads=[1] * 4)
    second = net.op("Conv", net.op("Relu", first), net.const(np.zeros((3, 4, 3, 3)), "b.weight"), pads=[1] * 4)
    net.output(net.op("Add", "x", second, name="y"))
    onnx.save(net.model(), tmp_path / "m.onnx")
    convert_fp16(tmp_path / "m.onnx", tmp_path / "out.onnx")
    feeds = net.feeds()
    assert np.array_equal(Probe(onnx.load(tmp_path / "out.onnx")).run(feeds)["y"], feeds["x"])


def test_what_is_rounded_to_whole_numbers_stays_in_float32(tmp_path: Path) -> None:
    """A hue modulo 1, painted by the half that it lies in: of one a hair below 0 float16 makes 1, which is in none."""
    net = Net()
    net.input("image", "b", 3, "h", "w")
    deep = net.op("Conv", "image", net.random(8, 3, 3, 3, name="first"), pads=[1, 1, 1, 1])
    flat = net.op("Mul", net.op("Conv", deep, net.random(3, 8, 3, 3, name="last"), pads=[1, 1, 1, 1]), net.const(1e-4))
    hue = net.op("Sub", flat, net.op("Floor", flat, name="whole"), name="hue")
    half = net.op("Floor", net.op("Mul", hue, net.const(2.0), name="twice"), name="half")
    low, high = (net.op("Equal", half, net.const(float(number))) for number in (0, 1))
    colour = net.op("Where", low, net.const(0.5), net.op("Where", high, net.const(0.5), net.const(0.0)))
    net.output(net.op("Identity", colour, name="restored"))
    onnx.save(net.model(), tmp_path / "net.onnx")
    feeds = [{"image": np.random.default_rng(0).random((1, 3, 64, 64), np.float32)}]
    report = convert_fp16(tmp_path / "net.onnx", tmp_path / "out.onnx", feeds)
    assert report.reasons["what is rounded to whole numbers"] >= 4
    assert report.agreement_db is not None
    assert report.agreement_db > 60
    assert not report.added_blocks
    halves = {t.name for t in onnx.load(tmp_path / "out.onnx").graph.initializer if t.data_type == TensorProto.FLOAT16}
    assert "last" in halves


@pytest.mark.parametrize("added", [False, True], ids=["chosen", "added"])
def test_a_mask_of_infinite_numbers_is_no_fault(tmp_path: Path, added: bool) -> None:
    """Rows attend to those of their half alone; what overflows of itself, far from any mask, is a fault."""
    net = Net()
    net.input("image", "b", 3, 16, 8)
    deep = net.op("Relu", net.op("Conv", "image", net.random(8, 3, 3, 3, name="first"), pads=[1] * 4))
    rows = net.op("Reshape", net.op("Transpose", deep, perm=[0, 2, 1, 3]), net.const([0, 16, 64], dtype=np.int64))
    scores = net.op("MatMul", rows, net.op("Transpose", rows, perm=[0, 2, 1]), name="scores")
    apart = np.arange(16)[:, None] // 8 != np.arange(16) // 8
    if added:
        masked = net.op("Add", scores, net.const(np.where(apart, -np.inf, 0.0)), name="masked")
    else:
        masked = net.op("Where", net.const(apart, dtype=np.bool_), net.const(-np.inf), scores, name="masked")
    mixed = net.op("MatMul", net.op("Softmax", net.op("Mul", masked, net.const(0.5)), axis=-1), rows)
    back = net.op("Reshape", mixed, net.const([0, 16, 8, 8], dtype=np.int64))
    last = net.op(
        "Conv", net.op("Transpose", back, perm=[0, 2, 1, 3]), net.random(3, 8, 3, 3, name="last"), pads=[1] * 4
    )
    net.output(net.op("Add", "image", last, name="restored"))
    onnx.save(net.model(), tmp_path / "net.onnx")
    feeds = [{"image": np.random.default_rng(0).random((1, 3, 16, 8), np.float32)}]
    for config in (Fp16Config(), Fp16Config(rescale=False)):
        report = convert_fp16(tmp_path / "net.onnx", tmp_path / "out.onnx", feeds, config)
        assert report.reasons["is infinite where a mask says so"] >= 2
        assert report.agreement_db is not None
        assert report.agreement_db > 60
    broken = onnx.load(tmp_path / "net.onnx")
    first = next(tensor for tensor in broken.graph.initializer if tensor.name == "first")
    first.CopyFrom(numpy_helper.from_array(np.full((8, 3, 3, 3), 3e38, np.float32), "first"))
    onnx.save(broken, tmp_path / "broken.onnx")
    with pytest.raises(CalibrationError, match="is not finite in the float32 model"):
        convert_fp16(tmp_path / "broken.onnx", tmp_path / "out.onnx", feeds)
