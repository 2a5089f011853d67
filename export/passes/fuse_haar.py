"""FuseHaar: 2x2 cell transforms (Haar and its kin) in the form that CPU runtimes run fastest.

Written with slices or pixel_unshuffle, a wavelet step is a dozen memory-bound operators. Whatever its writing, it is a
linear map from 2x2 cells to bands, found by probing:

- analysis, x [B,C,2h,2w] -> bands [B,mC,h,w]: m constant depthwise 2x2 convolutions of stride 2, which stay in the
  convolutions' blocked layout. Where one convolution follows, both become one (a Haar stem and its 3x3 convolution are
  one 6x6 convolution of stride 2).
- synthesis, bands [B,4C,h,w] -> x [B,C,2h,2w]: one 4x4 MatMul over the bands and DepthToSpace, or, from 64x64 cells on,
  a transposed convolution channel by channel. Where one convolution makes the bands, the 4x4 goes into its weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph.edit import GraphEdit, plain_convolution
from clusir.export.graph.probe import LinearGraph, Region

__all__ = ["FuseHaar"]

Kernel = NDArray[np.float64]
_ROUNDING = 1e-5  # between a region and the transform that it is taken for, of what one channel gives another
# From here on ONNX Runtime's DepthToSpace costs more than a transposed convolution with one channel in each group (1.0
# against 0.2 ms for 32 channels of 64x64 cells); OpenVINO takes as long for either. On smaller planes OpenVINO loses
# more with the latter than ONNX Runtime gains.
_LARGE_PLANE = 64 * 64
# Height and width at which a graph that leaves them open is looked at, and those at which what was found has to hold.
# It is measured on small maps where these have a cell for each number of one.
_SIDES, _OTHER_SIDES = (256, 288), (320, 224)
_SMALL_SIDES = (64, 96)


@dataclass(frozen=True)
class _Found:
    """A region proved to be a cell transform; ``kernel`` [K, C, 2, 2] relates band k to pixel (u, v) of channel c."""

    region: Region
    kernel: Kernel


class FuseHaar(GraphPass):
    """Replace 2x2 cell transforms by strided convolutions (analysis), and MatMul + DepthToSpace or a transposed one
    (synthesis)."""

    name = "FuseHaar"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        edit = GraphEdit(model, _SIDES)
        notes: list[str] = []
        # The last values first: a transform is then seen whole, before its own intermediate values.
        for value in [n.output[0] for n in reversed(edit.model.graph.node)]:
            linear = edit.linear()
            if value not in linear.producer or linear.linear_operands(linear.producer[value]) is None:
                continue
            for attempt in (_analyse, _synthesise):
                note = attempt(edit, linear, value)
                if note:
                    notes.append(note)
                    edit.drop_unused()
                    break
        if not notes:
            return PassResult(model, False, ("no 2x2 cell transform was found",))
        return PassResult(edit.model, True, tuple(notes))


def _analyse(edit: GraphEdit, linear: LinearGraph, value: str) -> str | None:
    found = _find(linear, value, halves=True)
    if found is None:
        return None
    source, kernel = found.region.sources[0], found.kernel
    bands, channels = kernel.shape[:2]
    users = linear.users.get(value, [])
    if len(users) == 1 and value not in linear.outputs and list(users[0].input).count(value) == 1:
        merged = _merge_behind(linear, users[0], value, kernel)
        if merged is not None:
            weight, pads = merged
            node = users[0]
            edit.replace_convolution(node, source, weight, pads, stride=2)
            return f"cell transform {source} and convolution {node.name or node.output[0]} are one strided convolution"
    if bands % channels or not _is_depthwise(kernel):
        return None
    parts = []
    for j in range(bands // channels):
        mine = np.stack([kernel[j * channels + c, c] for c in range(channels)])[:, None]
        parts.append(edit.convolution(source, mine, stride=2, group=channels, hint=f"{value}/band{j}"))
    edit.redirect(value, parts[0] if len(parts) == 1 else edit.node("Concat", parts, f"{value}/bands", axis=1))
    return f"{value} is {len(parts)} depthwise convolutions of stride 2"


def _synthesise(edit: GraphEdit, linear: LinearGraph, value: str) -> str | None:
    found = _find(linear, value, halves=False)
    if found is None:
        return None
    sources, kernel = found.region.sources, found.kernel
    bands, channels = kernel.shape[:2]
    shape = linear.shapes[value]
    maker = linear.producer.get(sources[0]) if len(sources) == 1 else None
    if maker is not None and bands == 4 * channels and _constant(linear, maker) and len(linear.users[sources[0]]) <= 3:
        inside = {id(n) for n in found.region.nodes}
        if all(id(u) in inside for u in linear.users[sources[0]]) and sources[0] not in linear.outputs:
            mixed = edit.mix_outputs(maker, kernel.transpose(2, 3, 1, 0).reshape(4 * channels, bands))
            edit.redirect(value, edit.node("DepthToSpace", [mixed], f"{value}/cells", blocksize=2, mode="DCR"))
            return f"{value}: the inverse cell transform is in the weights of {maker.name or maker.output[0]}"
    butterfly = kernel[::channels, 0].reshape(-1, 4) if bands == 4 * channels else None
    if butterfly is None or not _is_depthwise(kernel):
        return None
    joined = sources[0] if len(sources) == 1 else edit.node("Concat", list(sources), f"{value}/bands", axis=1)
    rows, columns = shape[2] // 2, shape[3] // 2

    def planes(flat: str, hint: str) -> str:
        """[.., pixels] as the bands' own shape."""
        if linear.sized:
            return edit.node("Reshape", [flat, edit.node("Shape", [joined], f"{hint}/shape")], hint)
        return edit.reshape(flat, [0, bands, rows, columns], hint)

    if rows * columns >= _LARGE_PLANE:
        split = edit.reshape(joined, [0, 4, channels, -1], f"{value}/by_band")
        turned = edit.node("Transpose", [split], f"{value}/by_channel", perm=[0, 2, 1, 3])
        grouped = planes(turned, f"{value}/grouped")
        weight = edit.constant(np.tile(butterfly.reshape(4, 1, 2, 2), (channels, 1, 1, 1)), f"{value}/cell")
        cells = edit.node("ConvTranspose", [grouped, weight], f"{value}/cells", strides=[2, 2], group=channels)
        edit.redirect(value, cells)
        return f"{value} is a transposed convolution channel by channel"
    flat = edit.reshape(joined, [0, 4, -1], f"{value}/flat")
    mixed = edit.node("MatMul", [edit.constant(butterfly.T, f"{value}/butterfly"), flat], f"{value}/mixed")
    cells = planes(mixed, f"{value}/phases")
    edit.redirect(value, edit.node("DepthToSpace", [cells], f"{value}/cells", blocksize=2, mode="DCR"))
    return f"{value} is one 4x4 MatMul and DepthToSpace"


def _find(linear: LinearGraph, value: str, halves: bool) -> _Found | None:
    """The largest region behind ``value`` whose sources have twice (``halves``) or half its height and width."""
    shape = linear.shape(value)
    if shape is None or len(shape) != 4 or (not halves and (shape[2] % 2 or shape[3] % 2)):
        return None
    wanted = (shape[2] * 2, shape[3] * 2) if halves else (shape[2] // 2, shape[3] // 2)
    best = None
    for region in linear.cuts(value, widest=1 if halves else 4):
        shapes = [linear.shape(s) for s in region.sources]
        fits = all(s is not None and len(s) == 4 and s[2:] == wanted and s[0] == shape[0] for s in shapes)
        if fits and all(linear.is_float(s) and (s in linear.open) == (value in linear.open) for s in region.sources):
            best = region
    if best is None or len(best.nodes) < 3:  # a lone SpaceToDepth or strided convolution is as good as it gets
        return None
    kernel = _measure(_where_small(linear, best, halves), best, halves)
    if kernel is None or (linear.sized and not _holds_elsewhere(linear, best, halves, kernel)):
        return None
    return _Found(best, kernel)


def _where_small(linear: LinearGraph, region: Region, halves: bool) -> LinearGraph:
    """A graph of open size at a small one, where that has a cell for each number of one."""
    small = linear.at(_SMALL_SIDES) if linear.sized else linear
    return small if _is_shaped(small, region, halves) and _impulses(small, region, halves) is not None else linear


def _holds_elsewhere(linear: LinearGraph, region: Region, halves: bool, kernel: Kernel) -> bool:
    """Whether a region of a graph of open size is the transform ``kernel`` at another, large size."""
    other = linear.at(_OTHER_SIDES)
    if not other.sized or not _is_shaped(other, region, halves):
        return False
    shapes = [other.shapes[s] for s in region.sources]
    size = (shapes[0][0], kernel.shape[1 if halves else 0], *shapes[0][2:])
    x = np.random.default_rng(3).standard_normal(size, dtype=np.float32)
    return _agrees(other.runner(region)(_parted(x, region, shapes)), x, kernel, halves)


def _is_shaped(linear: LinearGraph, region: Region, halves: bool) -> bool:
    """Whether a region's output has half the height and width of each source (``halves``), or twice, and its batch."""
    out = linear.shape(region.output)
    shapes = [linear.shape(source) for source in region.sources]
    if out is None or len(out) != 4:
        return False
    wanted = (out[2] * 2, out[3] * 2) if halves else (out[2] / 2, out[3] / 2)
    return all(s is not None and len(s) == 4 and s[2:] == wanted and s[0] == out[0] for s in shapes)


def _impulses(
    linear: LinearGraph, region: Region, halves: bool
) -> list[tuple[tuple[int, ...], tuple[int, int, int]]] | None:
    """For each number of a cell of the sources, (channel, row, column), a cell of its own; None where there are too
    few."""
    batch, _, height, width = linear.shapes[region.output]
    cells = (batch, height, width) if halves else (batch, height // 2, width // 2)
    channels = sum(linear.shapes[source][1] for source in region.sources)
    inside = [(u, v) for u in range(2) for v in range(2)] if halves else [(0, 0)]
    numbers = [(c, u, v) for c in range(channels) for u, v in inside]
    if len(numbers) > math.prod(cells):
        return None
    return list(zip(np.ndindex(cells), numbers, strict=False))


def _measure(linear: LinearGraph, region: Region, halves: bool) -> Kernel | None:
    """[K, C, 2, 2] of a region that is a cell transform; None if it is not one."""
    impulses = _impulses(linear, region, halves)
    if impulses is None:
        return None
    shapes = [linear.shapes[s] for s in region.sources]
    batch, out_channels, _, _ = linear.shapes[region.output]
    in_channels = sum(s[1] for s in shapes)
    # One impulse in each cell: the response of its cell is a column of the map.
    whole = np.zeros((batch, in_channels, *shapes[0][2:]), np.float32)
    step = 2 if halves else 1
    for (b, i, j), (c, u, v) in impulses:
        whole[b, c, step * i + u, step * j + v] = 1.0
    run = linear.runner(region)
    response = run(_parted(whole, region, shapes))
    kernel = np.zeros((out_channels, in_channels, 2, 2) if halves else (in_channels, out_channels, 2, 2))
    for (b, i, j), (c, u, v) in impulses:
        if halves:
            kernel[:, c, u, v] = response[b, :, i, j]
        else:
            kernel[c] = response[b, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
    x: NDArray[np.float32] = np.random.default_rng(1).standard_normal(whole.shape, dtype=np.float32)
    for loudness in _loudnesses(kernel, batch, in_channels, halves):
        given = x * loudness
        if not _agrees(run(_parted(given, region, shapes)), given, kernel, halves):
            return None
    return kernel


def _agrees(got: NDArray[np.float32], x: NDArray[np.float32], kernel: Kernel, halves: bool) -> bool:
    """Whether a region's answer to ``x`` is its cell transform, each channel held to its own size."""
    expected = _transformed(x, kernel, halves)
    error = np.abs(got - expected).max(axis=(2, 3))
    return bool((error <= _ROUNDING * np.abs(expected).max(axis=(2, 3))).all())


def _loudnesses(kernel: Kernel, batch: int, inputs: int, halves: bool) -> Iterator[NDArray[np.float32]]:
    """Factors [batch, inputs, 1, 1] for the channels of the pictures that a kernel is tried on.

    A faint channel may be the loudest behind a later gain, so each output is held to its own size, and the inputs are
    equally loud, then loud and faint, then faint and loud. Where outputs are sums over channels, each comes alone: as
    many runs as there are channels, which a shuffle of pixels, whose outputs are sums of nothing, does without.
    """
    yield np.ones((batch, inputs, 1, 1), np.float32)
    if _moves(kernel, halves) or (len(kernel) % kernel.shape[1] == 0 and _is_depthwise(kernel)):
        exponents = np.random.default_rng(2).permutation(np.linspace(-6.0, 6.0, inputs))
        for sign in (1, -1):
            yield (10.0 ** (sign * exponents)).astype(np.float32).reshape(1, -1, 1, 1)
        return
    for first in range(0, inputs, batch):
        alone = np.zeros((batch, inputs, 1, 1), np.float32)
        for picture, channel in enumerate(range(first, min(first + batch, inputs))):
            alone[picture, channel] = 1.0
        yield alone


def _moves(kernel: Kernel, halves: bool) -> bool:
    """Whether each number that a kernel makes is one of those given, times a factor."""
    read = np.count_nonzero(kernel, axis=(1, 2, 3) if halves else 0)
    return bool(read.max() <= 1)


def _transformed(x: NDArray[np.float32], kernel: Kernel, halves: bool) -> NDArray[np.float64]:
    """The cell transform ``kernel`` of ``x``."""
    b, c, h, w = x.shape
    if halves:
        return np.einsum("bchuwv,kcuv->bkhw", x.reshape(b, c, h // 2, 2, w // 2, 2), kernel, optimize=True)
    cells = np.einsum("bkhw,kcuv->bchuwv", x, kernel, optimize=True)
    return cells.reshape(b, kernel.shape[1], 2 * h, 2 * w)


def _parted(
    whole: NDArray[np.float32], region: Region, shapes: list[tuple[int, ...]]
) -> dict[str, NDArray[np.float32]]:
    """The sources' parts of an array that stacks them along the channels."""
    ends = np.cumsum([s[1] for s in shapes])[:-1]
    return dict(zip(region.sources, np.split(whole, ends, axis=1), strict=True))


def _is_depthwise(kernel: Kernel) -> bool:
    """Whether band j*C + c (or pixel channel c) depends on channel c only, by the same four weights for every c."""
    bands, channels = kernel.shape[:2]
    blocks = kernel.reshape(bands // channels, channels, channels, 2, 2)
    own = np.einsum("jccuv->jcuv", blocks)
    off = blocks * (1 - np.eye(channels))[None, :, :, None, None]
    alike = np.abs(own - own[:, :1]) <= _ROUNDING * np.abs(own[:, :1])
    return bool(not off.any() and alike.all())


def _constant(linear: LinearGraph, conv: onnx.NodeProto) -> bool:
    """Whether a node is a plain convolution of float32 maps whose weight and bias are constants."""
    if not plain_convolution(conv) or not linear.is_float(conv.input[0]):
        return False
    constants = all(i in linear.constants for i in conv.input[1:] if i)
    return constants and linear.constants[conv.input[1]].ndim == 4


def _merge_behind(
    linear: LinearGraph, conv: onnx.NodeProto, value: str, kernel: Kernel
) -> tuple[Kernel, list[int]] | None:
    """(weight, pads) of the strided convolution that is the cell transform ``value`` and then ``conv``, if it costs no
    more."""
    if not _constant(linear, conv) or conv.input[0] != value:
        return None
    weight = linear.constants[conv.input[1]].astype(np.float64)
    outputs, bands, rows, columns = weight.shape
    channels = kernel.shape[1]
    if bands != len(kernel) or outputs * channels * 4 * rows * columns > weight.size + 4 * kernel.size:
        return None
    merged = np.zeros((outputs, channels, 2 * rows, 2 * columns))
    for p in range(rows):
        for q in range(columns):
            merged[:, :, 2 * p : 2 * p + 2, 2 * q : 2 * q + 2] = np.einsum("ok,kcuv->ocuv", weight[:, :, p, q], kernel)
    pads = next((list(a.ints) for a in conv.attribute if a.name == "pads"), [0, 0, 0, 0])
    return merged, [2 * p for p in pads]
