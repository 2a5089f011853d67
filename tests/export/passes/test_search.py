"""A search for legal graphs on which a pass is wrong: small random graphs around the pattern of each.

Strides, padding, dilation, groups, shared and computed weights, other readers, branches, outputs in the way, names that
the pass would choose itself, faint and loud maps, opsets 18 to 22. The same answers, or refused with a reason.
``CLUSIR_SEARCH=1000`` tries that many of each instead of thirty.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_graphs import Net, same

from clusir.export.base import Pass
from clusir.export.passes.fuse_haar import FuseHaar
from clusir.export.passes.fuse_resize import FuseResize
from clusir.export.passes.fuse_spectral import FuseSpectralFilter
from clusir.export.passes.fuse_upsample import FuseUpsample
from clusir.export.passes.gram_attention import GramAttention
from clusir.export.passes.mean_as_convolution import MeanAsConvolution
from clusir.export.passes.order import fusing_passes
from clusir.export.passes.order_gelu import OrderGelu
from clusir.export.passes.pair_depthwise import PairDepthwise
from clusir.export.passes.pixel_major import PixelMajor
from clusir.export.passes.split_convolution import SplitConvolution

Draw = Callable[[st.SearchStrategy], object]
EXAMPLES = int(os.environ.get("CLUSIR_SEARCH", "30"))
SEARCH = settings(
    max_examples=EXAMPLES,
    derandomize="CLUSIR_SEARCH" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
NAMES = (
    "before",
    "transposed",
    "kernel",
    "gain",
    "band0",
    "cells",
    "mixed",
    "pixels",
    "lane0",
    "mean",
    "columns",
    "small",
)


class Search:
    """Draws for one graph. ``disturb`` puts something legal in the way of a pattern that is built."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.net = Net(self.one(18, 19, 20, 21, 22), seed=self.number(0, 9))

    def one(self, *values: object) -> object:
        return self.data.draw(st.sampled_from(values))

    def number(self, low: int, high: int) -> int:
        return self.data.draw(st.integers(low, high))

    def weight(self, *shape: int) -> str:
        """A weight: constant as a rule; or computed, or the default of a graph input, at any scale."""
        kind = self.one("constant", "constant", "constant", "computed", "default")
        name = self.net.random(*shape, scale=self.one(1.0, 1.0, 1e-7, 1e7))
        if kind == "computed":
            return self.net.op("Mul", name, self.net.const(2.0) if self.one(True, False) else self.net.input("gain", 1))
        if kind == "default":
            self.net.defaults.append(name)
        return name

    def conv(self, x: str, outputs: int, inputs: int, size: int = 0, depthwise: bool = False) -> str:
        """A convolution, plain as a rule, with everything that a convolution can have now and then."""
        size = size or self.one(1, 1, 3)
        how: dict[str, object] = {"pads": [size // 2] * 4}
        match self.one("plain", "plain", "plain", "pads", "strides", "dilations", "auto", "groups"):
            case "pads":
                how["pads"] = [self.number(0, 1) for _ in range(4)]
            case "strides":
                how["strides"] = [self.number(1, 2), self.number(1, 2)]
            case "dilations":
                how["dilations"] = [self.number(1, 2), self.number(1, 2)]
            case "auto":
                how = {"auto_pad": self.one("SAME_UPPER", "SAME_LOWER", "VALID")}
            case "groups" if not depthwise and inputs % 2 == outputs % 2 == 0:
                how["group"] = 2
        if depthwise:
            how["group"] = inputs
        weight = self.weight(outputs, inputs // int(how.get("group", 1)), size, size)
        bias = [self.weight(outputs)] if self.one(False, False, True) else []
        return self.net.op("Conv", x, weight, *bias, **how)

    def disturb(self, *ends: str) -> None:
        """Make ``ends`` outputs, and let something else see, name or share a part of the pattern."""
        net = self.net
        net.output(*ends)
        made = [n.output[0] for n in net.nodes]
        value = self.one(*made)
        match self.one("nothing", "nothing", "output", "reader", "branch", "name", "twin"):
            case "output":
                net.output(value)
            case "reader":
                net.output(net.op("Neg", value))
            case "branch":
                net.output(net.branch(value))
            case "name":
                net.output(net.op("Abs", next(iter(net.inputs)), name=f"{value}/{self.one(*NAMES)}"))
            case "twin":
                node = next(n for n in net.nodes if value in n.output)
                if len(node.output) == 1:  # the same operator again, on the same inputs and constants
                    twin = net.op("Neg", value)
                    copy = type(node)()
                    copy.CopyFrom(node)
                    copy.name, copy.output[0] = f"{node.name}_twin", f"{value}_twin"
                    net.nodes[-1:] = [copy]
                    net.output(copy.output[0])
                    del twin


def upsample(s: Search) -> None:
    x = s.net.input("x", s.one("n", 2), 6, 4, 6)
    made = s.conv(x, 8, 6)
    s.disturb(s.net.op("DepthToSpace", made, blocksize=2, mode=s.one("DCR", "CRD")))


def slices(s: Search, x: str, i: int, j: int) -> str:
    ints = lambda *v: s.net.const(v, dtype=np.int64)  # noqa: E731
    return s.net.op("Slice", x, ints(i, j), ints(2**31 - 1, 2**31 - 1), ints(2, 3), ints(2, 2))


def analysis(s: Search) -> None:
    net, channels = s.net, s.number(1, 3)
    x = net.input("x", s.one("n", 3), channels, 8, 12)
    parts = [slices(s, x, i, j) for i in range(2) for j in range(2)]
    if s.one(False, False, True):  # a sample of the next cell, faint or not
        rolled = net.op("Concat", *reversed(net.split(parts[0], [2, 4], axis=3)), axis=3)
        parts[0] = net.op("Add", parts[0], net.op("Mul", rolled, net.const(s.one(1e-7, 1e-4, 1.0))))
    scale = s.one(1e-7, 1.0, 1e7)
    bands = []
    for _ in range(s.one(1, 2, 4)):
        total = ""
        for part in parts:
            factor = net.const(net.rng.choice([-0.5, 0.5, 1.0]) * scale)
            if s.one(False, False, False, True):
                factor = net.const(net.rng.standard_normal((1, channels, 1, 1)) * scale)
            term = net.op("Mul", part, factor)
            total = net.op("Add", total, term) if total else term
        bands.append(total)
    joined = net.op("Concat", *bands, axis=1)
    if s.one(True, False):
        joined = s.conv(joined, s.number(2, 4), channels * len(bands))
    s.disturb(net.op("Mul", net.op("Relu", joined), net.const(1 / scale)))


def synthesis(s: Search) -> None:
    net, channels = s.net, s.number(1, 2)
    x = net.input("x", s.one("n", 3), 3, 4, 6)
    made = net.op("Tanh", x) if s.one(False, True) else x
    made = s.conv(made, 4 * channels, 3)
    made = net.op("Mul", made, net.random(1, s.one(1, 4 * channels), 1, 1))
    shape = [0, channels, 2, 2, -1, 6] if s.one(True, False) else [0, channels, 2, 2, 4, -1]
    cells = net.op(
        "Transpose", net.reshape(made, shape), perm=s.one([0, 1, 4, 2, 5, 3], [0, 1, 4, 2, 5, 3], [0, 1, 4, 3, 5, 2])
    )
    s.disturb(net.reshape(cells, [0, channels, 8, -1]))


def resize(s: Search) -> None:
    net, height, width = s.net, s.number(3, 9), s.number(3, 9)
    x = net.input("x", s.one("n", 2), 3, height, width)
    how: dict[str, object] = {"mode": s.one("linear", "linear", "cubic", "nearest")}
    how["coordinate_transformation_mode"] = s.one(
        "half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize", "half_pixel_symmetric"
    )
    for name, values in (("exclude_outside", (0, 1)), ("antialias", (0, 1)), ("extrapolation_value", (0.0, 2.0))):
        if s.one(False, False, True) and not (name == "exclude_outside" and how["mode"] != "cubic"):
            how[name] = s.one(*values)
    crop = how["coordinate_transformation_mode"] == "tf_crop_and_resize"
    roi = net.const([0, 0, 0.1, s.one(0.2, -0.3), 1, 1, 0.9, s.one(0.8, 1.4)]) if crop else ""
    by_size = s.one(True, False)
    sizes = [s.one(2, 3, 1), 3, height + s.number(0, 6), width + s.number(-1, 6)]
    sizes[:2] = [2, 3]
    if by_size:
        if "n" in net.inputs["x"]:
            how["axes"] = [2, 3]
            roi = net.const([0.1, -0.3, 0.9, 1.4]) if crop else ""
            how |= {"keep_aspect_ratio_policy": s.one("stretch", "not_larger", "not_smaller")}
            sizes = sizes[2:]
        value = net.op("Resize", x, roi, "", net.const(sizes, dtype=np.int64), **how)
    else:
        value = net.op(
            "Resize", x, roi, net.const([1, 1, s.one(1.0, 1.25, 1.5, 2.0), s.one(1.0, 1.25, 2.0, 3.0)]), **how
        )
    if s.one(True, False):
        first, second = net.split(value, [1, 2])
        value = net.op("Concat", net.op("Neg", second), first, axis=1)
    if s.one(True, False):
        other = net.op("Sigmoid", value)
        value = net.op("Add", other, net.op("Mul", value, other))
    s.disturb(value)


def spectral(s: Search) -> None:
    """rfft2 and irfft2 by their matrices, with a mask, a gain or nothing between."""
    net, channels, height, width = s.net, s.number(1, 2), s.one(4, 6, 5), s.one(4, 6)
    x, bins = net.input("x", s.one("n", 2), channels, height, width), width // 2 + 1
    eye = np.eye(width)
    rows = np.stack([np.fft.rfft(eye).real, np.fft.rfft(eye).imag], -1).reshape(width, 2 * bins)
    wide = net.reshape(net.op("MatMul", x, net.const(rows)), [0, channels, height, bins, 2])
    turned = net.op("Transpose", wide, perm=[0, 1, 3, 2, 4])
    turned = net.reshape(turned, [0, channels, bins, 2 * height])

    def columns(inverse: bool) -> str:
        matrix = np.conj(np.fft.fft(np.eye(height))) if inverse else np.fft.fft(np.eye(height))
        block = np.array([[matrix.real, matrix.imag], [-matrix.imag, matrix.real]])  # re, im in; re, im out
        return net.const(block.transpose(2, 0, 3, 1).reshape(2 * height, 2 * height))

    def back(value: str) -> str:
        return net.op("Transpose", net.reshape(value, [0, channels, bins, height, 2]), perm=[0, 1, 3, 2, 4])

    spectrum = back(net.op("MatMul", turned, columns(False)))
    scale = s.one(1e-7, 1.0, 1e7)
    kind = s.one("mask", "mask", "lopsided", "made", "gain", "number", "nothing")
    if kind in ("mask", "lopsided", "made"):
        mask = net.rng.random((s.one(1, channels), height, bins))
        mask = mask if kind == "lopsided" else mask + mask[:, -np.arange(height) % height]
        mask = net.const((mask * scale)[..., None])
        if kind == "made":
            plain = net.op("Squeeze", mask, net.const([3], dtype=np.int64))
            level = net.op("ReduceMean", x, net.const([2, 3], dtype=np.int64))
            mask = net.op("Unsqueeze", net.op(s.one("Mul", "Add"), plain, level), net.const([4], dtype=np.int64))
        spectrum = net.op("Mul", spectrum, mask)
    elif kind == "gain":
        spectrum = net.op("Mul", spectrum, net.random(channels, 1, 1, 1, scale=scale))
    elif kind == "number":
        spectrum = net.op("Mul", spectrum, net.const(scale))
    turned = net.reshape(net.op("Transpose", spectrum, perm=[0, 1, 3, 2, 4]), [0, channels, bins, 2 * height])
    rest = net.reshape(back(net.op("MatMul", turned, columns(True))), [0, channels, height, 2 * bins])
    pairs = np.eye(2 * bins).reshape(2 * bins, bins, 2)
    inverse = np.fft.irfft(pairs[..., 0] + 1j * pairs[..., 1], n=width) / height
    s.disturb(net.op("MatMul", rest, net.const(inverse)))


def attention(s: Search) -> None:
    net = s.net
    x = net.input("x", s.one("n", 2), 6, 4, 4)
    maps = [s.conv(x, 6, 6, 1) for _ in range(3)] if s.one(True, False) else net.split(s.conv(x, 18, 6, 1), [6, 6, 6])
    q, k, v = (net.reshape(m, [0, 2, 3, -1]) for m in maps)
    if s.one(True, False):
        q = net.op("Mul", q, net.const(s.one(0.3, 1e-7, 1e7, 0.0)))
    product = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    if s.one(True, False):
        squares = net.op("ReduceSum", net.op("Mul", q, q), net.const([s.one(-1, 3, 2)], dtype=np.int64), keepdims=1)
        if s.one(True, False):
            net.output(squares)
    mixed = net.op("MatMul", product if s.one(True, False) else net.op("Softmax", product, axis=-1), v)
    s.disturb(mixed)


def mean(s: Search) -> None:
    x = s.net.op("Relu", s.net.input("x", s.one("n", 2), 5, 3, 4))
    axes = s.net.const(s.one([1], [-3], [1, 2], [2]), dtype=np.int64)
    if s.one(False, False, True):
        s.net.defaults.append("none")
        s.net.const([0.0], "none")
    made = s.net.op("ReduceMean", x, axes, keepdims=s.one(0, 1, 1))
    s.disturb(made, *([s.net.op("ReduceMean", x, axes, keepdims=1)] if s.one(True, False) else []))


def gelu(s: Search) -> None:
    net = s.net
    x = net.op("Mul", net.input("x", 2, 3, 4), net.const(s.one(1e-7, 1.0, 1e7)))
    scaled = net.op("Div", x, net.const(2**0.5)) if s.one(True, False) else net.op("Mul", net.const([[[0.5**0.5]]]), x)
    total = net.op("Add", net.op("Erf", scaled), net.const(s.one(1.0, 1.0, 0.5)))
    half = net.op("Mul", net.const([[0.5]]), total)
    s.disturb(net.op("Mul", *s.one((x, half), (half, x), (half, half))))


def lanes(s: Search) -> None:
    net = s.net
    widths = [s.one(2, 4, 8) for _ in range(s.number(2, 4))]
    x = net.op("Relu", net.input("x", s.one("n", 2), sum(widths), 6, 6))
    parts = net.split(x, widths)
    size = s.one(1, 3)
    kernels = [size if s.one(True, False) else 3 for _ in widths]
    convs = []
    for part, width, kernel in zip(parts, widths, kernels, strict=True):
        bias = [net.random(width)] if s.one(False, True) else []
        how = (
            {"dilations": [2, 2], "pads": [kernel - 1] * 4}
            if s.one(*[False] * 5, True)
            else {"pads": [kernel // 2] * 4}
        )
        scale = s.one(1.0, 1.0, 1e-7)
        convs.append(net.op("Conv", part, net.random(width, 1, kernel, kernel, scale=scale), *bias, group=width, **how))
    convs = convs[::-1] if s.one(*[False] * 3, True) else convs
    s.disturb(net.op("Concat", *convs, axis=1))


def split_convolution(s: Search) -> None:
    net = s.net
    widths = [s.one(16, 17, 24, 8) for _ in range(s.number(2, 3))]
    value = s.conv(net.input("x", s.one("n", 2), 4, 5, 5), sum(widths), 4)
    if s.one(True, False):
        value = s.conv(value, sum(widths), sum(widths), 1, depthwise=True)
    if s.one(False, True) and len(widths) == 2:
        parts = net.many("Split", [value], ["part_a", "part_b"], axis=1, num_outputs=2)
    else:
        parts = net.split(value, widths)
    s.disturb(*(net.op("Relu", p) for p in parts))


def pixels(s: Search) -> None:
    net, channels, side = s.net, s.one(16, 20, 8), 12
    made = s.conv(net.input("x", s.one("n", 2), 3, side, side), channels, 3)
    made = net.op("Tanh", made) if s.one(True, False) else made
    flat = net.reshape(made, s.one([0, channels, -1], [0, 0, -1], [-1, channels, side * side]), allowzero=0)
    if s.one(True, False):
        flat = net.op("Mul", flat, net.const(s.one(0.5, 1e7)))
    product = net.op("MatMul", net.random(3, channels), flat)
    s.disturb(product, *([net.op("Neg", made)] if s.one(True, False) else []))


PATTERNS: dict[str, tuple[Pass, Callable[[Search], None]]] = {
    "upsample": (FuseUpsample(), upsample),
    "haar analysis": (FuseHaar(), analysis),
    "haar synthesis": (FuseHaar(), synthesis),
    "resize": (FuseResize(), resize),
    "spectral": (FuseSpectralFilter(), spectral),
    "attention": (GramAttention(), attention),
    "mean": (MeanAsConvolution(), mean),
    "gelu": (OrderGelu(), gelu),
    "depthwise": (PairDepthwise(), lanes),
    "split": (SplitConvolution(), split_convolution),
    "pixels": (PixelMajor(), pixels),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pass_keeps_the_answers_or_refuses(name: str) -> None:
    step, build = PATTERNS[name]
    found = {True: 0, False: 0}

    @SEARCH
    @given(st.data())
    def search(data: st.DataObject) -> None:
        s = Search(data)
        build(s)
        try:
            s.net.model()
        except Exception:  # the draw is no legal graph (a size does not fit)
            return
        found[same(step, s.net, rounding=2e-4 if name == "attention" else 2e-5).modified] += 1

    search()
    assert min(found.values()) >= 3, f"the search reaches both ways: {found}"


@SEARCH
@given(st.data())
def test_all_passes_together_keep_the_answers(data: st.DataObject) -> None:
    s = Search(data)
    name = s.one(*PATTERNS)
    PATTERNS[str(name)][1](s)
    try:
        model = s.net.model()
    except Exception:
        return
    feeds = s.net.feeds()
    from small_graphs import run

    expected = run(model, feeds)
    for step in fusing_passes():
        model = step.apply(model).model
    for key, got in run(model, feeds).items():
        size = float(np.abs(expected[key]).max())
        assert float(np.abs(got - expected[key]).max()) <= 2e-4 * size, (name, key)
