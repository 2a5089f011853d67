"""Legal graphs that are near a pass's pattern and not it: the same answers, or refused with a reason."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import Net, changed, refused, same

from clusir.export.passes.fuse_haar import FuseHaar
from clusir.export.passes.fuse_resize import FuseResize
from clusir.export.passes.fuse_upsample import FuseUpsample
from clusir.export.passes.gram_attention import GramAttention
from clusir.export.passes.mean_as_convolution import MeanAsConvolution
from clusir.export.passes.order_gelu import OrderGelu
from clusir.export.passes.pair_depthwise import PairDepthwise
from clusir.export.passes.pixel_major import PixelMajor
from clusir.export.passes.split_convolution import SplitConvolution

ONES = np.ones


def upsample(mode: str = "DCR", **conv: object) -> Net:
    net = Net()
    made = net.op("Conv", net.input("x", "n", 6, 5, 7), net.random(8, 6, 1, 1, name="w"), name="c", **conv)
    net.output(net.op("DepthToSpace", made, name="y", blocksize=2, mode=mode))
    return net


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_upsampling_takes_either_order_of_the_cell(mode: str) -> None:
    model = changed(FuseUpsample(), upsample(mode))
    assert [n.op_type for n in model.graph.node] == ["ConvTranspose"]


def test_upsampling_refuses_padding_strides_and_groups() -> None:
    refused(FuseUpsample(), upsample(pads=[1, 1, 1, 1]), "has padding")
    refused(FuseUpsample(), upsample(pads=[0, 1, 0, 0]), "has padding")
    refused(FuseUpsample(), upsample(strides=[2, 2]), "no plain convolution")
    net = Net()
    made = net.op("Conv", net.input("x", "n", 6, 5, 7), net.random(8, 3, 1, 1), group=2)
    net.output(net.op("DepthToSpace", made, blocksize=2))
    refused(FuseUpsample(), net, "no plain convolution")


def test_a_dilation_is_no_plain_convolution() -> None:
    """Of a 1x1 kernel it changes nothing, of the 2x2 one behind a Haar step it does."""
    net = Net()
    bands = haar(net, net.input("x", "n", 2, 12, 12))
    net.output(net.op("Conv", bands, net.random(3, 8, 2, 2), dilations=[2, 2]))
    model = changed(FuseHaar(), net)
    assert len([n for n in model.graph.node if n.op_type == "Conv"]) > 1, "not merged with it"
    for attributes in ({"strides": [2, 2]}, {"strides": [1, 2]}):
        net = Net()
        net.output(net.op("Conv", haar(net, net.input("x", "n", 2, 12, 12)), net.random(3, 8, 2, 2), **attributes))
        same(FuseHaar(), net)


def test_upsampling_refuses_other_readers_and_outputs() -> None:
    for other in ("reader", "branch", "output"):
        net = upsample()
        net.output(net.op("Neg", "c") if other == "reader" else net.branch("c") if other == "branch" else "c")
        refused(FuseUpsample(), net, "something else reads")


def test_a_weight_that_is_computed_or_an_input_is_no_constant() -> None:
    net = upsample()
    net.defaults.append("w")
    refused(FuseUpsample(), net, "no plain convolution with constant weights")
    net = Net()
    weight = net.op("Mul", net.random(8, 6, 1, 1), net.input("gain", 1))
    net.output(net.op("DepthToSpace", net.op("Conv", net.input("x", "n", 6, 5, 7), weight), blocksize=2))
    refused(FuseUpsample(), net, "no plain convolution with constant weights")
    for source in ("computed", "input"):
        net = Net()
        bands = haar(net, net.input("x", "n", 2, 12, 12))
        weight = net.op("Mul", net.random(3, 8, 1, 1), net.input("gain", 1)) if source == "computed" else "w2"
        if source == "input":
            net.input("w2", 3, 8, 1, 1)
        net.output(net.op("Conv", bands, weight))
        same(FuseHaar(), net)
        net = Net()
        made = net.op("Conv", net.input("x", "n", 3, 6, 6), net.random(8, 3, 1, 1), net.input("bias", 8))
        net.output(shuffled(net, made, 8, 6, 6))
        same(FuseHaar(), net)


def haar(net: Net, x: str, scale: float | np.ndarray = 1.0, reach: float | np.ndarray = 0.0) -> str:
    """Four bands of cells by slices, times ``scale``; ``reach`` of the third band comes from the next cell. Both are
    numbers, or [1, C, 1, 1]."""
    ends = net.const([2**31 - 1] * 2, dtype=np.int64)
    axes, steps = net.const([2, 3], dtype=np.int64), net.const([2, 2], dtype=np.int64)
    parts = [
        net.op("Slice", x, net.const([i, j], dtype=np.int64), ends, axes, steps) for i in range(2) for j in range(2)
    ]
    a, b, c, d = parts
    bands = []
    for k, signs in enumerate(((1, 1, 1, 1), (1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1))):
        total = ""
        for sign, part in zip(signs, (a, b, c, d), strict=True):
            term = net.op("Mul", part, net.const(0.5 * scale * sign))
            total = net.op("Add", total, term) if total else term
        if k == 2 and np.any(reach):
            ahead = [
                net.op(
                    "Slice",
                    a,
                    net.const([lo], dtype=np.int64),
                    net.const([hi], dtype=np.int64),
                    net.const([3], dtype=np.int64),
                )
                for lo, hi in ((1, 2**31 - 1), (0, 1))
            ]
            rolled = net.op("Concat", *ahead, axis=3)
            total = net.op("Add", total, net.op("Mul", rolled, net.const(scale * reach)))
        bands.append(total)
    return net.op("Concat", *bands, axis=1)


def shuffled(net: Net, value: str, channels: int, height: int, width: int) -> str:
    """pixel_shuffle by 2, as exporters write it."""
    out = channels // 4
    parts = net.reshape(value, [0, out, 2, 2, height, width])
    turned = net.op("Transpose", parts, perm=[0, 1, 4, 2, 5, 3])
    return net.reshape(turned, [0, out, 2 * height, 2 * width])


@pytest.mark.parametrize("channels", [1, 2])
def test_a_cell_transform_is_taken_at_any_scale_and_held_to_it(channels: int) -> None:
    for scale in (1e-7, 1.0, 1e7):
        for reach, found in ((0.0, True), (0.3, False), (1e-4, False)):
            net = Net()
            bands = haar(net, net.input("x", "n", channels, 8, 8), scale, reach)
            net.output(net.op("Mul", net.op("Relu", bands), net.const(1 / scale)))
            result = same(FuseHaar(), net)
            assert any("is 4 depthwise convolutions" in note for note in result.notes) is found, result.notes


def test_channels_are_not_mixed_however_faintly() -> None:
    """A mixing of 5e-6 is all that is left of a channel whose own share is taken away again, and made loud."""
    net = Net()
    bands = haar(net, net.input("x", "n", 2, 8, 8))
    turned = net.op("Gather", bands, net.const([1, 0, 3, 2, 5, 4, 7, 6], dtype=np.int64), axis=1)
    mixing = net.op("Add", bands, net.op("Mul", turned, net.const(5e-6)))
    mixed = net.op("Relu", mixing)
    net.output(mixed, net.op("Mul", net.op("Sub", mixed, net.op("Relu", haar(net, "x"))), net.const(2e5)))
    result = same(FuseHaar(), net, rounding=1.0)
    assert any("depthwise" in note for note in result.notes)
    assert not any(note.startswith(f"{mixing} is") for note in result.notes), result.notes


def test_a_faint_channel_behind_a_loud_weight_is_held_to_its_own_size() -> None:
    """Its cells reach into each other, which is nothing beside the other channel, until the convolution behind."""
    net = Net()
    loudness = np.array([1.0, 1e-6]).reshape(1, 2, 1, 1)
    joined = haar(net, net.input("x", "n", 2, 8, 8), loudness, np.array([0.0, 0.5]).reshape(1, 2, 1, 1))
    weight = net.rng.standard_normal((3, 8, 1, 1)) * np.tile([1.0, 1e6], 4).reshape(1, 8, 1, 1)
    net.output(net.op("Conv", joined, net.const(weight)))
    refused(FuseHaar(), net, "no 2x2 cell transform")


def test_a_convolution_behind_a_cell_transform_keeps_its_padding_and_bias() -> None:
    for pads in ([1, 1, 1, 1], [0, 1, 2, 0]):
        net = Net()
        bands = haar(net, net.input("x", "n", 2, 8, 8))
        net.output(net.op("Conv", bands, net.random(3, 8, 3, 3), net.random(3), pads=pads))
        result = same(FuseHaar(), net)
        assert any("are one strided convolution" in note for note in result.notes), result.notes


def test_a_cell_transform_that_is_an_output_is_written_once() -> None:
    net = Net()
    bands = haar(net, net.input("x", "n", 2, 8, 8))
    net.output(bands, net.op("Conv", bands, net.random(8, 8, 3, 3), pads=[1, 1, 1, 1]))
    nodes = changed(FuseHaar(), net).graph.node
    assert "Slice" not in {n.op_type for n in nodes}
    assert any(n.op_type == "Conv" and bands in n.input for n in nodes), "what is written anyway is read"


def resize(gain: bool = False, split: bool = False, opset: int = 18, **how: object) -> Net:
    net = Net(opset)
    x = net.input("x", "n", 4, 10, 9)
    mode = {k: v for k, v in how.items() if k not in ("roi", "scales", "sizes")}
    names = [
        net.const(how[k], f"{k}_given", np.int64 if k == "sizes" else np.float32) if k in how else ""
        for k in ("roi", "scales", "sizes")
    ]
    y = net.op("Resize", x, *names, name="y", **mode)
    if split:
        y, rest = net.split(y, [3, 1])
        net.output(rest)
    if gain:
        height, width = (
            np.array(how["sizes"])[-2:]
            if "sizes" in how
            else (np.array([10, 9]) * np.array(how["scales"])[-2:]).astype(int)
        )
        other = net.input("other", "n", 3 if split else 4, int(height), int(width))
        y = net.op("Add", other, net.op("Mul", other, y))
    net.output(y)
    return net


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize(
    "transform", ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"]
)
def test_resize_keeps_a_fractional_scale(mode: str, transform: str) -> None:
    net = resize(mode=mode, coordinate_transformation_mode=transform, scales=[1, 1, 1.25, 1.3])
    changed(FuseResize(), net)


def test_resize_keeps_regions_axes_and_policies() -> None:
    crop = {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear"}
    roi = [0, 0, 0.1, -0.2, 1, 1, 0.8, 1.3]
    changed(FuseResize(), resize(roi=roi, scales=[1, 1, 1.5, 2], **crop))
    changed(FuseResize(), resize(roi=roi, scales=[1, 1, 1.5, 2], gain=True, split=True, **crop))
    refused(
        FuseResize(),
        resize(roi=roi, scales=[1, 1, 1.5, 2], extrapolation_value=3.0, **crop),
        "no product of one matrix",
    )
    changed(FuseResize(), resize(mode="linear", axes=[2, 3], scales=[1.5, 2.0]))
    changed(FuseResize(), resize(mode="linear", axes=[3, 2], sizes=[17, 12]))
    changed(FuseResize(), resize(mode="cubic", axes=[-1], sizes=[17], antialias=1))
    refused(
        FuseResize(),
        resize(mode="linear", axes=[2, 3], sizes=[30, 18], keep_aspect_ratio_policy="not_larger"),
        "aspect ratio",
    )
    changed(FuseResize(), resize(mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5, scales=[1, 1, 1.25, 2]))


def test_resize_puts_the_one_inside_only_where_weights_sum_to_one() -> None:
    plain = changed(FuseResize(), resize(gain=True, split=True, mode="linear", scales=[1, 1, 2, 2]))
    assert "Add" in {n.op_type for n in plain.graph.node}
    assert not [n for n in plain.graph.node if n.op_type == "Resize"]
    roi = [0, 0, -0.3, -0.2, 1, 1, 1.4, 1.3]
    outside = resize(
        gain=True, roi=roi, scales=[1, 1, 2, 2], mode="linear", coordinate_transformation_mode="tf_crop_and_resize"
    )
    changed(FuseResize(), outside)
    for seen in (-2, -3):  # the product, or the map itself, is an output: it is made of the same products
        net = resize(gain=True, mode="linear", scales=[1, 1, 2, 2])
        net.output(net.nodes[seen].output[0])
        assert "Resize" not in {n.op_type for n in changed(FuseResize(), net).graph.node}


def test_a_split_over_rows_stays_behind_a_resize() -> None:
    for axis, sizes in ((2, [15, 5]), (3, [8, 10]), (-3, [1, 3])):
        net = Net()
        wide = net.op("Resize", net.input("x", "n", 4, 10, 9), "", net.const([1, 1, 2, 2]), mode="linear")
        net.output(*net.split(wide, sizes, axis=axis))
        changed(FuseResize(), net)


def depthwise(order: tuple[int, ...] = (0, 1), both: dict[str, object] | None = None, **second: object) -> Net:
    net = Net()
    parts = net.split(net.op("Relu", net.input("x", "n", 12, 6, 6)), [6, 6])
    first = both or {"pads": [1] * 4}
    convs = [
        net.op("Conv", parts[0], net.random(6, 1, 3, 3), group=6, **first),
        net.op("Conv", parts[1], net.random(6, 1, 3, 3), group=6, **{**first, **second}),
    ]
    net.output(net.op("Concat", *(convs[k] for k in order), axis=1))
    return net


def test_depthwise_lanes_are_joined_in_their_own_order_only() -> None:
    changed(PairDepthwise(), depthwise())
    refused(PairDepthwise(), depthwise((1, 0)), "no Split - depthwise Conv - Concat")
    refused(PairDepthwise(), depthwise(dilations=[2, 2], pads=[2] * 4), "no Split - depthwise Conv - Concat")
    net = depthwise()
    net.nodes[-1].input[1] = net.nodes[-1].input[0]
    refused(PairDepthwise(), net, "no Split - depthwise Conv - Concat")
    for node in (1, 2, 3):  # a part of the split, or what a convolution makes of it, is an output
        net = depthwise()
        net.output(net.nodes[node].output[0])
        refused(PairDepthwise(), net, "no Split - depthwise Conv - Concat")


@pytest.mark.parametrize(
    "both",
    [
        {"dilations": [2, 2], "pads": [1] * 4},
        {"dilations": [1, 2], "pads": [1] * 4},
        {"strides": [2, 2], "pads": [1] * 4},
        {"pads": [0] * 4},
        {"pads": [2, 1, 0, 1]},
        {"auto_pad": "SAME_UPPER"},
    ],
)
def test_depthwise_lanes_that_change_the_size_or_shift_the_map_are_not_joined(both: dict[str, object]) -> None:
    refused(PairDepthwise(), depthwise(both=both), "no Split - depthwise Conv - Concat")


def split_convolution(out: str = "", **conv: object) -> Net:
    net = Net()
    made = net.op("Conv", net.input("x", "n", 5, 8, 8), net.random(40, 5, 3, 3), net.random(40), **conv)
    a, b = net.split(made, [16, 24])
    net.output(net.op("Relu", a), net.op("Neg", b), *([a] if out == "part" else [made] if out == "whole" else []))
    return net


def test_a_split_convolution_keeps_pads_strides_dilations() -> None:
    changed(SplitConvolution(), split_convolution(pads=[1, 0, 2, 1]))
    for attributes in ({"strides": [2, 1]}, {"dilations": [2, 1], "pads": [0, 2, 1, 0]}, {"auto_pad": "SAME_UPPER"}):
        same(SplitConvolution(), split_convolution(**attributes))
    refused(SplitConvolution(), split_convolution("part"), "no convolution is only split")
    refused(SplitConvolution(), split_convolution("whole"), "no convolution is only split")


def attention(pads: int = 0, scale: float = 0.3, out: str = "", norm: int | None = None) -> Net:
    net = Net()
    x = net.input("x", "n", 6, 4, 5)
    pixels = (4 + 2 * pads) * (5 + 2 * pads)
    heads = []
    for _ in range(3):
        made = net.op("Conv", x, net.random(6, 6, 1, 1), pads=[pads] * 4)
        heads.append(net.reshape(made, [0, 2, 3, pixels]))
    q, k, v = heads
    query = net.op("Mul", q, net.const(scale))
    product = net.op("MatMul", query, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    mixed = net.op("MatMul", net.op("Softmax", product, axis=-1), v)
    net.output(net.reshape(mixed, [0, 6, 4 + 2 * pads, 5 + 2 * pads]), *([q] if out == "q" else []))
    if norm is not None:
        net.output(net.op("ReduceSum", net.op("Mul", query, query), net.const([norm], dtype=np.int64), keepdims=1))
    return net


def test_attention_is_taken_from_projections_without_padding_only() -> None:
    changed(GramAttention(), attention())
    refused(GramAttention(), attention(pads=1), "no attention between channels")
    for scale in (0.0, 1e-7, 1e7, 1e-12):
        same(GramAttention(), attention(scale=scale))
    same(GramAttention(), attention(out="q"))
    for axis in (-1, 3):
        changed(GramAttention(), attention(norm=axis))
    for axis in (2, -2, 1):  # no squared norm over the pixels
        refused(GramAttention(), attention(norm=axis), "no attention between channels")


def flattened(target: list[int], **how: object) -> Net:
    net = Net()
    made = net.op("Conv", net.input("x", "n", 3, 12, 12), net.random(16, 3, 1, 1))
    if how.pop("shared", False):
        net.output(net.op("Neg", made))
    flat = net.op("Reshape", made, net.const(target, dtype=np.int64), **how)
    net.output(net.op("MatMul", flat, net.random(144, 5)))
    return net


def test_a_transpose_in_front_of_a_product_keeps_the_shape_that_is_asked_for() -> None:
    changed(PixelMajor(), flattened([0, 16, 144]))
    changed(PixelMajor(), flattened([-1, 144], shared=True))
    for target in ([0, 0, 144], [0, 0, -1]):
        refused(PixelMajor(), flattened(target), "no product reads")
    changed(PixelMajor(), flattened([-1, 16, 144], allowzero=1))
    # Here the 0 is a length, not the batch's: only a map of no pictures has it.
    refused(PixelMajor(), flattened([0, 16, 144], allowzero=1), "no product reads")


def test_gelu_is_reordered_only_where_nobody_sees_the_difference() -> None:
    def gelu(root: float = 2**0.5, one: float = 1.0, half: float = 0.5, seen: int = -1) -> Net:
        net = Net()
        x = net.input("x", "n", 4, 3, 3)
        steps = [net.op("Div", x, net.const(root))]
        steps.append(net.op("Erf", steps[-1]))
        steps.append(net.op("Add", steps[-1], net.const(one)))
        steps.append(net.op("Mul", steps[-1], net.const(half)))
        net.output(net.op("Mul", x, steps[-1]))
        if seen >= 0:
            net.output(steps[seen])
        return net

    changed(OrderGelu(), gelu())
    for net in (gelu(root=1.5), gelu(one=0.9), gelu(half=0.4), gelu(seen=1), gelu(seen=2), gelu(seen=3)):
        refused(OrderGelu(), net, "no GELU")


def test_a_mean_over_channels_keeps_names_and_outputs() -> None:
    net = Net()
    x = net.input("x", "n", 4, 3, 3)
    mean = net.op("ReduceMean", x, net.const([1], dtype=np.int64), name="y")
    net.output(mean, net.op("Abs", x, name="y/before"), net.op("Sub", x, mean, name="y/mean"))
    changed(MeanAsConvolution(), net)
    for axes, keep in (([1, 2], 1), ([1], 0), ([-3], 1), ([0], 1)):
        net = Net()
        net.output(net.op("ReduceMean", net.input("x", 2, 4, 3, 3), net.const(axes, dtype=np.int64), keepdims=keep))
        same(MeanAsConvolution(), net)
