"""FuseSpectralFilter: rfft2, a real mask, irfft2 in the real Fourier basis.

A real mask that is the same at +f and -f of the height scales every cosine and sine of the picture by one real number.
So the filter is four real products with orthogonal matrices around one Mul: no complex values, no half spectrum, no
mirrored rows. From N = 96 the matrices are factorised (``dft_plan``), and their coefficients stay in the order in which
the factors leave them: the mask is permuted instead, in its constants.

The transforms are recognised by probing, so it does not matter who wrote them, and how. The mask may depend on the
input in any way, as long as its height and width enter through constants and elementwise operators.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from clusir.export.base import GraphPass, PassResult
from clusir.export.dft_plan import RealPlan, plan
from clusir.export.graph_edit import GraphEdit
from clusir.export.graph_probe import LinearGraph, Region

__all__ = ["FuseSpectralFilter"]

_TOLERANCE = 1e-4
_UNARY = frozenset(("Sigmoid", "Exp", "Neg", "Sqrt", "Relu", "Tanh", "Clip", "Abs", "Log", "HardSigmoid", "Softplus"))
_BINARY = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max"))


class _Refused(Exception):
    """Why a filter stays as it is; becomes a note."""


@dataclass(frozen=True)
class _Filter:
    """``output`` = scale * basis^T (mask * (basis ``source``)), the mask being ``mask`` [..., H, W//2+1, 1]."""

    source: str
    mask: str
    output: str
    scale: float


class FuseSpectralFilter(GraphPass):
    """Compute rfft2 -> real symmetric mask -> irfft2 in the real Fourier basis."""

    name = "FuseSpectralFilter"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        edit = GraphEdit(model)
        notes: list[str] = []
        changed = False
        for product in [n.output[0] for n in edit.model.graph.node if n.op_type == "Mul"]:
            linear = edit.linear()
            if product not in linear.producer:
                continue
            found = _find(linear, product)
            if found is None:
                continue
            try:
                notes.append(_rewrite(edit, linear, found))
                changed = True
            except _Refused as reason:
                notes.append(f"{found.output} keeps its complex spectrum: {reason}")
        if not changed:
            return PassResult(
                model, False, tuple(notes) or ("no rfft2 -> real mask -> irfft2 of fixed size was found",)
            )
        edit.drop_unused()
        return PassResult(edit.model, True, tuple(notes))


def _find(linear: LinearGraph, product: str) -> _Filter | None:
    shape = linear.shape(product)
    if shape is None or len(shape) < 4 or shape[-1] != 2 or product in linear.outputs:
        return None
    inputs = linear.producer[product].input
    for spectrum, mask in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        mask_shape = linear.shape(mask)
        if mask_shape is None or not mask_shape or mask_shape[-1] != 1 or len(linear.users[spectrum]) != 1:
            continue
        forward = _transform(linear, spectrum, inverse=False)
        if forward is None:
            continue
        picture = linear.shapes[forward[0].sources[0]]
        for output in _behind(linear, product, picture):
            inverse = _transform(linear, output, inverse=True, source=product)
            inside = {id(n) for n in inverse[0].nodes} if inverse else set()
            if inverse and all(id(u) in inside for u in linear.users[product]):
                scale = forward[1] * inverse[1] * picture[-1] * picture[-2]
                return _Filter(forward[0].sources[0], mask, output, scale)
    return None


def _behind(linear: LinearGraph, product: str, shape: tuple[int, ...]) -> list[str]:
    """Values of a shape that linear operators reach from ``product``, nearest first."""
    found, queue, seen = [], [product], {product}
    while queue and len(seen) < 64:
        for user in linear.users.get(queue.pop(0), []):
            if linear.linear_operands(user) is None:
                continue
            for value in user.output:
                if value not in seen:
                    seen.add(value)
                    queue.append(value)
                    if linear.shape(value) == shape:
                        found.append(value)
    return found


def _transform(
    linear: LinearGraph, value: str, inverse: bool, source: str | None = None
) -> tuple[Region, float] | None:
    """The region behind ``value`` that is an rfft2 (irfft2) times a factor, and that factor."""
    shape = linear.shape(value)
    if shape is None:
        return None
    for region in linear.cuts(value):
        start = linear.shape(region.sources[0])
        if start is None or (source is not None and region.sources[0] != source):
            continue
        if inverse:
            fits = start == (*shape[:-1], shape[-1] // 2 + 1, 2)
        else:
            fits = shape == (*start[:-1], start[-1] // 2 + 1, 2)
        if not fits or len(region.nodes) < 2:
            continue
        feeds = linear.random(region.sources)
        given, found = feeds[region.sources[0]].astype(np.float64), linear.run(region, feeds)
        if inverse:
            expected = np.fft.irfft2(given[..., 0] + 1j * given[..., 1], s=shape[-2:], norm="forward")
        else:
            bins = np.fft.rfft2(given)
            expected = np.stack([bins.real, bins.imag], axis=-1)
        scale = float((found * expected).sum() / (expected * expected).sum())
        if scale and np.abs(found - scale * expected).max() <= _TOLERANCE * abs(scale) * np.abs(expected).max():
            return region, scale
    return None


def _rewrite(edit: GraphEdit, linear: LinearGraph, found: _Filter) -> str:
    shape = linear.shapes[found.source]
    rows, columns = plan(shape[-2]), plan(shape[-1])
    mask = _permuted_mask(edit, linear, found.mask, rows, columns)
    hint = found.output
    lead = [-1, *shape[1:-2]]
    if columns.factor == 1:
        value = edit.node("MatMul", [found.source, edit.constant(columns.stage1.T, f"{hint}/columns")], f"{hint}/wide")
        value = _rows(edit, value, rows, shape, f"{hint}/rows", back=False)
        value = edit.reshape(value, [*lead, *shape[-2:]], f"{hint}/spectrum") if rows.factor > 1 else value
        value = edit.node("Mul", [value, mask], f"{hint}/masked")
        value = _rows(edit, value, rows, shape, f"{hint}/rows_back", back=True)
        value = edit.reshape(value, [*lead, *shape[-2:]], f"{hint}/tall") if rows.factor > 1 else value
        back = edit.constant(columns.stage1 * found.scale, f"{hint}/columns_back")
        value = edit.node("MatMul", [value, back], f"{hint}/filtered")
    else:
        value = _rows(edit, found.source, rows, shape, f"{hint}/rows", back=False)
        # The width comes to the front for its two stages, and the mask with it; the coefficients stay there.
        value = edit.reshape(value, [-1, shape[-1]], f"{hint}/flat")
        value = edit.node("Transpose", [value], f"{hint}/width_first", perm=[1, 0])
        value = _columns(edit, value, columns, f"{hint}/columns", back=False)
        value = edit.reshape(value, [shape[-1], *lead, shape[-2]], f"{hint}/spectrum")
        value = edit.node("Mul", [value, _width_first(edit, mask, len(shape))], f"{hint}/masked")
        value = _columns(edit, value, columns, f"{hint}/columns_back", back=True, scale=found.scale)
        value = edit.reshape(value, [shape[-1], -1], f"{hint}/flat_back")
        value = edit.node("Transpose", [value], f"{hint}/width_last", perm=[1, 0])
        value = edit.reshape(value, [*lead, *shape[-2:]], f"{hint}/picture")
        value = _rows(edit, value, rows, shape, f"{hint}/rows_back", back=True)
        value = edit.reshape(value, [*lead, *shape[-2:]], f"{hint}/filtered") if rows.factor > 1 else value
    edit.redirect(found.output, value)
    forms = " and ".join(
        f"{axis} {p.n} {'direct' if p.factor == 1 else f'{p.factor}x{p.n // p.factor}'}"
        for axis, p in (("height", rows), ("width", columns))
    )
    return f"{found.output} filters in the real Fourier basis ({forms})"


def _rows(edit: GraphEdit, value: str, axis: RealPlan, shape: tuple[int, ...], hint: str, back: bool) -> str:
    """The height's transform, or its inverse: products from the left, picture by picture."""
    if axis.factor == 1:
        matrix = axis.stage1.T if back else axis.stage1
        return edit.node("MatMul", [edit.constant(matrix, f"{hint}/basis"), value], hint)
    rest, width = axis.n // axis.factor, shape[-1]
    steps = [
        ("long", axis.stage1, [-1, axis.factor, rest * width]),
        ("short", axis.stage2, [-1, axis.factor // 2, 2 * rest, width]),
    ]
    return _stages(edit, value, steps, hint, back)


def _columns(edit: GraphEdit, value: str, axis: RealPlan, hint: str, back: bool, scale: float = 1.0) -> str:
    """The width's transform, or its inverse, with the width in front of everything else."""
    rest = axis.n // axis.factor
    steps = [
        ("long", axis.stage1 * (scale if back else 1.0), [axis.factor, -1]),
        ("short", axis.stage2, [axis.factor // 2, 2 * rest, -1]),
    ]
    return _stages(edit, value, steps, hint, back)


def _stages(
    edit: GraphEdit, value: str, steps: list[tuple[str, NDArray[np.float64], list[int]]], hint: str, back: bool
) -> str:
    for name, matrix, shape in reversed(steps) if back else steps:
        value = edit.reshape(value, shape, f"{hint}/{name}_in")
        matrix = np.swapaxes(matrix, -1, -2) if back else matrix
        value = edit.node("MatMul", [edit.constant(matrix, f"{hint}/{name}_matrix"), value], f"{hint}/{name}")
    return value


def _width_first(edit: GraphEdit, mask: str, rank: int) -> str:
    """A mask [..., H, W] as [W, ..., H], broadcast to ``rank`` axes."""
    shape = edit.linear().shape(mask)
    if shape is None:
        raise _Refused(f"the rank of the mask {mask} is unknown")
    if len(shape) < rank:
        mask = edit.node("Unsqueeze", [mask, _axes(edit, range(rank - len(shape)), mask)], f"{mask}/ranked")
    return edit.node("Transpose", [mask], f"{mask}/width_first", perm=[rank - 1, *range(rank - 1)])


def _permuted_mask(edit: GraphEdit, linear: LinearGraph, mask: str, rows: RealPlan, columns: RealPlan) -> str:
    """The mask [..., H, W//2+1, 1] again, as [..., H, W] in the order of the coefficients."""
    bins = columns.n // 2 + 1

    def permuted(array: NDArray[np.generic], name: str) -> NDArray[np.generic]:
        if array.ndim >= 2 and array.shape[-2] == rows.n and rows.n > 1:
            mirrored = np.take(array, -np.arange(rows.n) % rows.n, axis=-2)
            if np.abs(mirrored - array).max() > 1e-6 * max(1.0, float(np.abs(array).max())):
                raise _Refused(f"the mask's constant {name} tells +f from -f of the height")
            array = np.take(array, rows.frequency, axis=-2)
        if array.ndim >= 1 and array.shape[-1] == bins and bins > 1:
            array = np.take(array, columns.frequency, axis=-1)
        return array

    def again(value: str) -> str:
        if value in linear.constants:
            array = linear.constants[value]
            changed = permuted(array, value)
            return value if changed is array else edit.constant(changed, f"{value}/permuted", array.dtype)
        shape = linear.shape(value)
        if shape is None:
            raise _Refused(f"the shape of {value}, a part of the mask, is unknown")
        if all(s == 1 for s in shape[-2:]):
            return value
        node = linear.producer.get(value)
        kind = None if node is None else node.op_type
        if node is None or kind is None or kind not in _UNARY | _BINARY:
            raise _Refused(f"the mask's height and width pass through {kind or 'a graph input'} ({value})")
        inputs = [again(i) for i in (node.input if kind in _BINARY else node.input[:1])]
        inputs += list(node.input[len(inputs) :])
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in copy.attribute}
        return edit.node(kind, inputs, f"{value}/permuted", **attributes)

    if mask in linear.constants:
        plain = linear.constants[mask][..., 0]
        return edit.constant(permuted(plain, mask), f"{mask}/permuted")
    node = linear.producer.get(mask)
    if node is None or node.op_type not in ("Unsqueeze", "Reshape"):
        raise _Refused(f"the mask {mask} does not come from a real map")
    shape, inner = linear.shape(mask), linear.shape(node.input[0])
    if shape is None or inner != shape[:-1]:
        raise _Refused(f"the mask {mask} is reshaped in a way that is not understood")
    return again(node.input[0])


def _axes(edit: GraphEdit, axes: range, hint: str) -> str:
    return edit.constant(list(axes), f"{hint}/axes", np.int64)
