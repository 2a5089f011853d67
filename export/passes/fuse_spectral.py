"""FuseSpectralFilter: rfft2, a real mask, irfft2 in the real Fourier basis.

A real mask that is the same at +f and -f of the height scales every cosine and sine of the picture by one real number.
So the filter is four real products with orthogonal matrices around one Mul: no complex values, no half spectrum, no
mirrored rows. From N = 96 the matrices are factorised (``dft_plan``), and their coefficients stay in the order in which
the factors leave them: the mask is permuted instead, in its constants.

The mask may depend on the input in any way, as long as its height and width enter through constants and elementwise
operators; a gain that is the same at all frequencies may come from anywhere.

Other constants, complex ones too, mix sines with cosines; where they are the same for all channels, ``spectral_mix``
writes them as exchanges and products.

A pair with nothing between, or only a number, is written in the same way. It is the identity, and could go; but nobody
transforms a picture there and back for its own sake. Such a pair stands for the place where something will be done to
the spectrum (a filter that was switched off, the transforms' part of a measurement), so both transforms are computed,
and only their basis and the order of the coefficients between them are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import onnx
from numpy.typing import NDArray

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.probe import LinearGraph
from clusir.export.lowering.plan import RealPlan, plan
from clusir.export.passes.spectral_find import Filter, Refused, find_filter, find_fixed, find_pair, is_gain, spectra
from clusir.export.passes.spectral_mix import mix

__all__ = ["FuseSpectralFilter"]

_UNARY = frozenset(("Sigmoid", "Exp", "Neg", "Sqrt", "Relu", "Tanh", "Clip", "Abs", "Log", "HardSigmoid", "Softplus"))
_ROUNDING = 5e-7  # four units in the last place of a float32
_BINARY = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max"))


class FuseSpectralFilter(GraphPass):
    """Compute rfft2 -> real symmetric mask -> irfft2 in the real Fourier basis."""

    name = "FuseSpectralFilter"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        edit = GraphEdit(model)
        notes: dict[str, str] = {}
        changed = False
        for made in [n.output[0] for n in edit.model.graph.node if n.op_type == "Mul"]:
            if made in edit.linear().producer:
                changed |= _try(edit, notes, partial(find_filter, product=made))
        if changed:
            edit.drop_unused()  # or the pairs that were just replaced would be found again
        for find, (spectrum, joined) in product((find_pair, find_fixed), list(spectra(edit.linear()))):
            if spectrum in edit.linear().producer and _try(
                edit, notes, partial(find, spectrum=spectrum, joined=joined)
            ):
                changed = True
                edit.drop_unused()
        if not changed:
            return PassResult(
                model, False, tuple(notes.values()) or ("no rfft2 -> real mask -> irfft2 of fixed size was found",)
            )
        return PassResult(edit.model, True, tuple(notes.values()))


def _try(edit: GraphEdit, notes: dict[str, str], find: Callable[[LinearGraph], Filter | None]) -> bool:
    """Rewrite what ``find`` finds; whether it was. ``notes`` keep, for each output, what was done or why not;
    a later attempt has the last word."""
    linear = edit.linear()
    try:
        found = find(linear)
        if found is None:
            return False
        notes[found.output] = _rewrite(edit, linear, found)
        return True
    except Refused as reason:
        notes[str(reason).partition(" ")[0]] = str(reason)
        return False


def _rewrite(edit: GraphEdit, linear: LinearGraph, found: Filter) -> str:
    shape = linear.shapes[found.source]
    rows, columns = plan(shape[-2]), plan(shape[-1])
    hint, source, mask = found.output, found.source, None
    if found.mask is not None and is_gain(linear.shapes[found.mask]):
        # A gain commutes with the transforms. In front of them and not between: OpenVINO takes a factor for each
        # channel behind a product for one for each column, and fails to compile.
        source = edit.node("Mul", [source, _real_gain(edit, linear, found.mask)], f"{hint}/amplified")
    elif found.mask is not None:
        try:
            mask = _permuted_mask(edit, linear, found.mask, rows, columns)
        except Refused as reason:
            raise Refused(f"{hint} keeps its complex spectrum: {reason}") from reason
    lead = [-1, *shape[1:-2]]
    if columns.factor == 1:
        value = edit.node("MatMul", [source, edit.constant(columns.stage1.T, f"{hint}/columns")], f"{hint}/wide")
        value = _rows(edit, value, rows, shape, f"{hint}/rows", back=False)
        if mask is not None or found.response is not None:
            value = edit.reshape(value, [*lead, *shape[-2:]], f"{hint}/spectrum") if rows.factor > 1 else value
        if mask is not None:
            value = edit.node("Mul", [value, mask], f"{hint}/masked")
        if found.response is not None:
            value = mix(edit, value, found.response, (rows, columns), [*lead, *shape[-2:]], False, hint)
        value = _rows(edit, value, rows, shape, f"{hint}/rows_back", back=True)
        value = edit.reshape(value, [*lead, *shape[-2:]], f"{hint}/tall") if rows.factor > 1 else value
        back = edit.constant(columns.stage1 * found.scale, f"{hint}/columns_back")
        value = edit.node("MatMul", [value, back], f"{hint}/filtered")
    else:
        value = _rows(edit, source, rows, shape, f"{hint}/rows", back=False)
        # The width comes to the front for its two stages, and the mask with it; the coefficients stay there.
        value = edit.reshape(value, [-1, shape[-1]], f"{hint}/flat")
        value = edit.node("Transpose", [value], f"{hint}/width_first", perm=[1, 0])
        value = _columns(edit, value, columns, f"{hint}/columns", back=False)
        if mask is not None or found.response is not None:
            value = edit.reshape(value, [shape[-1], *lead, shape[-2]], f"{hint}/spectrum")
        if found.response is not None:
            value = mix(edit, value, found.response, (rows, columns), [shape[-1], *lead, shape[-2]], True, hint)
        if mask is not None:
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


def _real_gain(edit: GraphEdit, linear: LinearGraph, gain: str) -> str:
    """The gain without the axis of real and imaginary parts, where it has so many axes at all."""
    shape, node = linear.shapes[gain], linear.producer.get(gain)
    if not shape:
        return gain
    if gain in linear.constants:
        return edit.constant(linear.constants[gain][..., 0], f"{gain}/real")
    if node is not None and node.op_type == "Unsqueeze" and linear.shape(node.input[0]) == shape[:-1]:
        return node.input[0]
    return edit.node("Squeeze", [gain, _axes(edit, range(-1, 0), gain)], f"{gain}/real")


def _width_first(edit: GraphEdit, mask: str, rank: int) -> str:
    """A mask [..., H, W] as [W, ..., H], broadcast to ``rank`` axes."""
    shape = edit.linear().shape(mask)
    if shape is None:
        raise Refused(f"the rank of the mask {mask} is unknown")
    if len(shape) < rank:
        mask = edit.node("Unsqueeze", [mask, _axes(edit, range(rank - len(shape)), mask)], f"{mask}/ranked")
    return edit.node("Transpose", [mask], f"{mask}/width_first", perm=[rank - 1, *range(rank - 1)])


def _permuted_mask(edit: GraphEdit, linear: LinearGraph, mask: str, rows: RealPlan, columns: RealPlan) -> str:
    """The mask [..., H, W//2+1, 1] again, as [..., H, W] in the order of the coefficients."""
    bins = columns.n // 2 + 1

    def permuted(array: NDArray[np.generic], name: str) -> NDArray[np.generic]:
        if array.ndim >= 2 and array.shape[-2] == rows.n and rows.n > 1:
            mirrored = np.take(array, -np.arange(rows.n) % rows.n, axis=-2)
            # Value by value: what follows may subtract the large ones and multiply what is left.
            # A frequency that was written as 1 - k/N has lost as many bits as N / k has, and its square twice as many.
            rounding = _ROUNDING * rows.n
            if not (np.abs(mirrored - array) <= rounding * np.abs(array)).all():
                raise Refused(f"mask {name} is not symmetric in vertical frequency")
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
            raise Refused(f"the shape of {value}, a part of the mask, is unknown")
        if all(s == 1 for s in shape[-2:]):
            return value
        node = linear.producer.get(value)
        kind = None if node is None else node.op_type
        if node is None or kind is None or kind not in _UNARY | _BINARY:
            raise Refused(f"the mask's height and width pass through {kind or 'a graph input'} ({value})")
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
        raise Refused(f"the mask {mask} does not come from a real map")
    shape, inner = linear.shape(mask), linear.shape(node.input[0])
    if shape is None or inner != shape[:-1]:
        raise Refused(f"the mask {mask} is reshaped in a way that is not understood")
    return again(node.input[0])


def _axes(edit: GraphEdit, axes: range, hint: str) -> str:
    return edit.constant(list(axes), f"{hint}/axes", np.int64)
