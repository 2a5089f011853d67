"""ONNX operators on whole maps and along axes, as layers of ncnn's: convolutions, products, sums, cuts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from clusir.export.formats.hosts.ncnn.layers import Blob, Layers, kept
from clusir.export.formats.hosts.ncnn.operators import FOUR, Node, coalesced, unary_of
from clusir.export.passes.coalesce import coalesced_axes
from clusir.export.passes.plain.resize import resize_kind

__all__ = ["MAPS", "resizes"]

_FEW = 4  # runs of neighbours that are cut out one by one
# ncnn's numbers of permutations: which of (w, h, d, c) each of the new (w, h, d, c) is.
_ORDERS = {
    2: ["wh", "hw"],
    3: ["whc", "hwc", "wch", "cwh", "hcw", "chw"],
    4: ["whdc", "hwdc", "wdhc", "dwhc", "hdwc", "dhwc", "whcd", "hwcd", "wchd", "cwhd", "hcwd", "chwd",
        "wdch", "dwch", "wcdh", "cwdh", "dcwh", "cdwh", "hdcw", "dhcw", "hcdw", "chdw", "dchw", "cdhw"],
}  # fmt: skip
_LETTERS = {2: "hw", 3: "chw", 4: "cdhw"}


def plane(node: Node, index: int = 0) -> Blob:
    """A map 1xCxHxW (or 1xCxL, as one row) as a blob (C, H, W)."""
    shape = node.shape(index)
    if len(shape) not in (3, 4) or shape[0] != 1:
        node.refuse(f"it works on {list(shape)}; ncnn has one map CxHxW")
    return node.to.view(node.inputs[index], (shape[1], 1, shape[2]) if len(shape) == 3 else shape[1:])


def two(node: Node, name: str, default: int = 1) -> tuple[int, int]:
    """An attribute of the two sides of a window: down, across."""
    given = [int(value) for value in node.get(name, [])]
    row = len(node.shape(0)) == 3
    if not given:
        return default, default
    return (default if name != "kernel_shape" else 1, given[0]) if row else (given[0], given[1])


def pads(node: Node) -> tuple[int, int, int, int]:
    """Top, left, bottom, right."""
    if node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        node.refuse("auto_pad is not written out")
    given = [int(pad) for pad in node.get("pads", [])] or [0] * 4
    top, left, bottom, right = given if len(given) == 4 else (0, given[0], 0, given[1])
    return top, left, bottom, right


def convolution(node: Node) -> None:
    weight, bias = node.known(1).astype(np.float32), node.constant(2)
    turned, groups = node.kind == "ConvTranspose", int(node.get("group", 1))
    if turned:  # ONNX has the inputs first, ncnn the outputs, in each group
        inside, outside = weight.shape[0] // groups, weight.shape[1]
        weight = weight.reshape(groups, inside, outside, *weight.shape[2:]).swapaxes(1, 2)
        weight = weight.reshape(groups * outside, inside, *weight.shape[3:])
        if any(node.get("output_padding", [0])) or "output_shape" in node.attributes:
            node.refuse("output_padding and output_shape have no form here")
    (kh, kw), (sh, sw), (dh, dw) = (*weight.shape[2:], 1, 1)[:2], two(node, "strides"), two(node, "dilations")
    if weight.ndim == 3:
        kh, kw = 1, weight.shape[2]
    top, left, bottom, right = pads(node)
    outputs = weight.shape[0]
    parameters = {0: outputs, 1: kw, 11: kh, 2: dw, 12: dh, 3: sw, 13: sh, 4: left, 14: top, 15: right, 16: bottom,
                  5: int(bias is not None), 6: weight.size}  # fmt: skip
    kind = "Deconvolution" if turned else "Convolution"
    if groups > 1:
        kind, parameters[7] = f"{kind}DepthWise", groups
    weights = [(weight, True), *([(bias, False)] if bias is not None else [])]
    sides = node.out[2:] if len(node.out) == 4 else (1, node.out[2])
    step = None
    if kind == "Convolution" and (found := node.to.rounded.get(node.inputs[1])) is not None:
        # ncnn rounds the input to multiples of peak/127, sums integers, and answers in float.
        step = np.broadcast_to(found[0], (outputs,)).astype(np.float32)
        parameters[8] = 1
        weights += [(1 / step, False), (np.array([127 / found[1]], np.float32), False)]
    (blob,) = node.to.add(kind, [plane(node)], parameters, (outputs, *sides), weights=weights, step=step)
    node.answer(blob)


def pool(node: Node) -> None:
    if node.get("ceil_mode", 0) or set(node.get("dilations", [1])) != {1}:
        node.refuse("ceil_mode and dilations have no form here")
    (kh, kw), (sh, sw), (top, left, bottom, right) = two(node, "kernel_shape"), two(node, "strides"), pads(node)
    parameters = {0: int(node.kind == "AveragePool"), 1: kw, 11: kh, 2: sw, 12: sh, 3: left, 13: top, 14: right,
                  15: bottom, 5: 1, 6: int(node.get("count_include_pad", 0))}  # fmt: skip
    sides = node.out[2:] if len(node.out) == 4 else (1, node.out[2])
    node.answer(node.to.one("Pooling", plane(node), parameters, (node.out[1], *sides)))


def blocks(node: Node) -> None:
    size = int(node.get("blocksize", 1))
    if node.kind == "DepthToSpace":
        parameters = {0: size, 1: int(node.get("mode", "DCR") == "DCR")}
        node.answer(node.to.one("PixelShuffle", plane(node), parameters, node.out[1:]))
    else:
        node.answer(node.to.one("Reorg", plane(node), {0: size, 1: 1}, node.out[1:]))


def product(to: Layers, a: Blob, b: Blob) -> Blob:
    """The product of matrices, of blobs with as many axes as each other."""
    batch = np.broadcast_shapes(a.dims[:-2], b.dims[:-2])
    return to.one("MatMul", [a, b], {}, (*batch, a.dims[-2], b.dims[-1]))


def linear(node: Node, given: Blob, weight: NDArray[Any], bias: NDArray[Any] | None) -> Blob:
    """(K) or (M, K) times a constant KxN, plus N numbers."""
    inputs, outputs = weight.shape
    weights = [(weight.T, True), *([(bias, False)] if bias is not None else [])]
    parameters = {0: outputs, 1: int(bias is not None), 2: inputs * outputs}
    (blob,) = node.to.add("InnerProduct", [given], parameters, (*given.dims[:-1], outputs), weights=weights)
    return blob


def matrices(node: Node) -> None:
    a, b = node.shape(0), node.shape(1)
    if min(len(a), len(b)) < 2:
        node.refuse("it multiplies a vector")
    if node.inputs[1] in node.to.constants and len(b) == 2 and math.prod(a[:-2]) == 1:
        given = node.to.view(node.inputs[0], a[-1:] if a[-2] == 1 else a[-2:])
        return node.answer(linear(node, given, node.known(1), None))
    rank = max(len(a), len(b), 3)
    shapes = [(1,) * (rank - len(shape)) + shape for shape in (a, b)]
    if shapes[0][0] == shapes[1][0] == 1:
        shapes = [shape[1:] for shape in shapes]
    batches = coalesced([shape[:-2] for shape in shapes], FOUR - 2)
    shapes = [batch + shape[-2:] for batch, shape in zip(batches, shapes, strict=True)]
    blobs = [node.to.view(name, shape) for name, shape in zip(node.inputs, shapes, strict=True)]
    return node.answer(product(node.to, *blobs))


def gemm(node: Node) -> None:
    if node.get("transA", 0):
        node.refuse("transA has no form here")
    weight, alpha, beta = node.known(1).astype(np.float32), node.get("alpha", 1.0), node.get("beta", 1.0)
    weight = (weight.T if node.get("transB", 0) else weight) * np.float32(alpha)
    bias = node.constant(2)
    if bias is not None:
        if math.prod(bias.shape[:-1]) != 1:
            node.refuse("its third input differs from row to row")
        bias = np.broadcast_to(bias.reshape(-1) * np.float32(beta), (weight.shape[1],))
    rows = node.shape(0)[0]
    given = node.to.view(node.inputs[0], node.shape(0)[1:] if rows == 1 else node.shape(0))
    node.answer(linear(node, given, weight, bias))


_SUMS = {"ReduceSum": 0, "ReduceSumSquare": 2, "ReduceMean": 3, "ReduceMax": 4, "ReduceMin": 5, "ReduceProd": 6,
         "ReduceL1": 7, "ReduceL2": 2}  # fmt: skip


def reduce(node: Node) -> None:
    shape = node.shape(0)
    given = node.constant(1) if len(node.inputs) > 1 else node.get("axes", None)
    if given is None and node.get("noop_with_empty_axes", 0):
        return node.to.alias(node.outputs[0], node.inputs[0])
    axes = sorted(int(axis) % len(shape) for axis in (range(len(shape)) if given is None else given))
    dims = kept(shape)
    inner = [axis - (len(shape) - len(dims)) for axis in axes]
    inner = [axis for axis in inner if axis >= 0]
    if len(dims) > FOUR:
        if inner != list(range(inner[0], inner[-1] + 1)):
            node.refuse("it reduces axes that are not neighbours, of more than four")
        dims = (
            math.prod(dims[: inner[0]]),
            math.prod(dims[inner[0] : inner[-1] + 1]),
            math.prod(dims[inner[-1] + 1 :]),
        )
        inner = [1]
    blob = node.to.view(node.inputs[0], dims)
    if inner:
        out = [1 if axis in inner else side for axis, side in enumerate(dims)]
        blob = node.to.one("Reduction", blob, {0: _SUMS[node.kind], 1: 0, 3: inner, 4: 1, 5: 1}, out)
    elif node.kind in ("ReduceSumSquare", "ReduceL1", "ReduceL2"):
        node.refuse("it reduces an axis of one")
    return node.answer(unary_of(node.to, 5, blob) if node.kind == "ReduceL2" else blob)


def whole_mean(node: Node) -> None:
    blob = plane(node)
    node.answer(node.to.one("Reduction", blob, {0: 3, 1: 0, 3: [1, 2], 4: 1, 5: 1}, (blob.dims[0], 1, 1)))


def around(node: Node, axis: int) -> tuple[int, int, int]:
    """How many there are before an axis, along it, behind it."""
    shape = node.shape(0)
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def cut_out(to: Layers, blob: Blob, axis: int, start: int, end: int) -> Blob:
    dims = list(blob.dims)
    dims[axis] = end - start
    return to.one("Crop", blob, {9: [start], 10: [end], 11: [axis]}, dims)


def picked(to: Layers, blob: Blob, places: Sequence[int]) -> Blob:
    """The elements at ``places`` along the middle of three axes: neighbours are cut out, others come by a product with
    a matrix of zeros and ones, which is exact."""
    breaks = [k for k, (one, next_) in enumerate(pairwise(places), 1) if next_ != one + 1]
    runs = [(places[a], places[b - 1] + 1) for a, b in pairwise([0, *breaks, len(places)])]
    if len(runs) <= _FEW:
        parts = [cut_out(to, blob, 1, start, end) for start, end in runs]
        out = (blob.dims[0], len(places), blob.dims[2])
        return parts[0] if len(parts) == 1 else to.one("Concat", parts, {0: 1}, out)
    chosen = np.zeros((1, len(places), blob.dims[1]), np.float32)
    chosen[0, range(len(places)), places] = 1
    return product(to, to.array(chosen), blob)


def gather(node: Node) -> None:
    axis = int(node.get("axis", 0)) % len(node.shape(0))
    before, length, behind = around(node, axis)
    places = [int(place) % length for place in node.known(1).reshape(-1)]
    node.answer(picked(node.to, node.to.view(node.inputs[0], (before, length, behind)), places))


def slices(node: Node) -> None:
    starts, ends, axes, steps = (node.constant(index) for index in (1, 2, 3, 4))
    assert starts is not None
    assert ends is not None
    shape = list(node.shape(0))
    over = range(len(starts)) if axes is None else [int(axis) % len(shape) for axis in axes]
    blob = node.to.held(node.inputs[0])
    for index, axis in enumerate(over):
        step = 1 if steps is None else int(steps[index])
        length = shape[axis]
        places = range(*slice(int(starts[index]), int(ends[index]), step).indices(length))
        if len(places) == length and step == 1:
            continue
        before, behind = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        if step > 1 and length % step == 0 and len(places) == length // step:
            folded = node.to.reshape(blob, (before * length // step, step, behind))
            blob = cut_out(node.to, folded, 1, places[0], places[0] + 1)
        elif step == 1 and axis >= len(shape) - len(blob.dims) and blob.dims == kept(shape):
            blob = cut_out(node.to, blob, axis - (len(shape) - len(blob.dims)), places.start, places.stop)
        else:
            blob = picked(node.to, node.to.reshape(blob, (before, length, behind)), list(places))
        shape[axis] = len(places)
    node.answer(blob)


def split(node: Node) -> None:
    axis = int(node.get("axis", 0)) % len(node.shape(0))
    before, length, behind = around(node, axis)
    sides = [node.to.shapes[name][axis] for name in node.outputs]
    given = node.to.view(node.inputs[0], (before, length, behind))
    made = node.to.add("Slice", [given], {0: sides, 1: 1}, *[(before, side, behind) for side in sides])
    for name, blob in zip(node.outputs, made, strict=True):
        node.to.bind(name, blob)


def join(node: Node) -> None:
    axis = int(node.get("axis", 0)) % len(node.out)
    cut = 1 if node.out[0] == 1 and len(node.out) > 1 and axis > 0 else 0
    shapes = [node.shape(index)[cut:] for index in range(len(node.inputs))]
    axis, out = axis - cut, node.out[cut:]
    if len(out) > FOUR:
        shapes = [(math.prod(shape[:axis]), math.prod(shape[axis:])) for shape in shapes]
        axis, out = 1, (math.prod(out[:axis]), math.prod(out[axis:]))
    blobs = [node.to.view(name, shape) for name, shape in zip(node.inputs, shapes, strict=True)]
    node.answer(node.to.one("Concat", blobs, {0: axis}, out))


def permuted(to: Layers, blob: Blob, shape: Sequence[int], order: Sequence[int]) -> Blob:
    """The elements of ``blob``, which are an array of ``shape``, with its axes in that order.

    Where more than four axes are left when neighbours are one, the one that will be first is brought there, and the
    rest follows.
    """
    dims, moved = coalesced_axes(shape, order)
    if len(dims) < 2:
        return blob
    if len(dims) in _LETTERS:
        wanted = "".join(_LETTERS[len(dims)][axis] for axis in moved)[::-1]
        given = to.reshape(blob, dims)
        return to.one("Permute", given, {0: _ORDERS[len(dims)].index(wanted)}, [dims[axis] for axis in moved])
    first = moved[0]
    ahead, behind = dims[:first], dims[first + 1 :]
    if ahead:
        blob = permuted(to, blob, (math.prod(ahead), dims[first], math.prod(behind)), (1, 0, 2))
        dims = [dims[first], *ahead, *behind]
        moved = [0, *(axis + (axis < first) for axis in moved[1:])]
        return permuted(to, blob, dims, moved)
    inner = to.reshape(blob, (dims[0], dims[1], math.prod(dims[2:])))
    second = moved[1]  # not 1: the two would be one run
    sizes = (dims[0], math.prod(dims[1:second]), dims[second], math.prod(dims[second + 1 :]))
    blob = permuted(to, inner, sizes, (0, 2, 1, 3))
    dims = [dims[0], dims[second], *dims[1:second], *dims[second + 1 :]]
    return permuted(to, blob, dims, [0, 1, *(axis + (axis < second) for axis in moved[2:])])


def transpose(node: Node) -> None:
    shape = node.shape(0)
    order = [int(axis) for axis in node.get("perm", range(len(shape))[::-1])]
    node.answer(permuted(node.to, node.to.held(node.inputs[0]), shape, order))


def pad(node: Node) -> None:
    amounts = node.known(1).astype(int)
    shape = node.shape(0)
    if node.has(3):
        axes = [int(axis) % len(shape) for axis in node.known(3)]
        whole = np.zeros((2, len(shape)), int)
        whole[:, axes] = amounts.reshape(2, -1)
    else:
        whole = amounts.reshape(2, -1)
    mode = {"constant": 0, "edge": 1, "reflect": 2}.get(node.get("mode", "constant"))
    front = whole[:, :-2]
    if mode is None or (whole < 0).any() or whole.shape[1] < 2 or front[:, :-1].any() or (mode and front.any()):
        node.refuse("only constant, edge and reflect, and not negative, of the last two axes have a form here")
    fill = node.scalar(2) if node.has(2) else 0.0
    if fill is None:
        node.refuse("what it fills with is computed")
    inner = (1,) * max(0, 3 - len(shape)) + shape[-3:]
    given = node.to.view(node.inputs[0], inner if math.prod(shape[:-3]) == 1 else (math.prod(shape[:-2]), *shape[-2:]))
    (top, bottom), (left, right) = whole[:, -2].tolist(), whole[:, -1].tolist()
    ahead, behind = whole[:, -3].tolist() if whole.shape[1] > 2 else (0, 0)
    if (ahead or behind) and math.prod(shape[:-3]) != 1:
        node.refuse("it pads the channels of several maps")
    dims = (given.dims[0] + ahead + behind, given.dims[1] + top + bottom, given.dims[2] + left + right)
    parameters = {0: top, 1: bottom, 2: left, 3: right, 4: mode, 5: fill, 7: ahead, 8: behind}
    node.answer(node.to.one("Padding", given, parameters, dims))


def expand(node: Node) -> None:
    shape, out = node.shape(0), node.out
    full = (1,) * (len(out) - len(shape)) + shape
    cut = 1 if len(out) > 1 and out[0] == 1 else 0
    given = node.to.view(node.inputs[0], full[cut:] or (1,))
    times = [there // here for here, there in zip(full, out, strict=True)][cut:]
    if all(count == 1 for count in times):
        return node.answer(given)
    return node.answer(node.to.one("Tile", given, {2: times}, out[cut:]))


def layer_norm(node: Node) -> None:
    shape = node.shape(0)
    size = math.prod(shape[int(node.get("axis", -1)) % len(shape) :])
    scale, bias = node.known(1).reshape(-1), node.constant(2)
    bias = np.zeros(size, np.float32) if bias is None else bias.reshape(-1)
    given = node.to.view(node.inputs[0], (math.prod(shape) // size, size))
    parameters = {0: size, 1: float(node.get("epsilon", 1e-5)), 2: 1}
    node.answer(node.to.add("LayerNorm", [given], parameters, given.dims, weights=[(scale, False), (bias, False)])[0])


def instances(node: Node) -> None:
    shape = node.shape(0)
    if shape[0] != 1:
        node.refuse("it works on several maps at once")
    given = node.to.view(node.inputs[0], (shape[1], 1, math.prod(shape[2:])))
    weights = [(node.known(index).reshape(-1), False) for index in (1, 2)]
    parameters = {0: shape[1], 1: float(node.get("epsilon", 1e-5)), 2: 1}
    node.answer(node.to.add("InstanceNorm", [given], parameters, given.dims, weights=weights)[0])


_MODES = {"nearest": 1, "linear": 2, "cubic": 3}


def resizes(node: onnx.NodeProto, shape: Sequence[int], out: Sequence[int]) -> bool:
    """Whether ncnn's Interp computes this Resize: pixels repeated, and linear and cubic as PyTorch has them."""
    return resize_kind(node, shape, out) in ("repeats", "linear", "linear corners", "cubic", "cubic corners")


def resize(node: Node) -> None:
    mode = node.get("mode", "nearest")
    corners = node.get("coordinate_transformation_mode", "half_pixel") == "align_corners"
    parameters = {0: _MODES[mode], 3: node.out[2], 4: node.out[3], 6: int(corners)}
    node.answer(node.to.one("Interp", plane(node), parameters, node.out[1:]))


MAPS: dict[str, Callable[[Node], None]] = {
    "Conv": convolution, "ConvTranspose": convolution, "AveragePool": pool, "MaxPool": pool, "DepthToSpace": blocks,
    "SpaceToDepth": blocks, "MatMul": matrices, "Gemm": gemm, "GlobalAveragePool": whole_mean, "Gather": gather,
    "Slice": slices, "Split": split, "Concat": join, "Transpose": transpose, "Pad": pad, "Expand": expand,
    "LayerNormalization": layer_norm, "InstanceNormalization": instances, "Resize": resize,
    **dict.fromkeys(_SUMS, reduce),
}  # fmt: skip
