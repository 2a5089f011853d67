"""PositionwiseSpectrum: rfft2, functions of single values, irfft2, with the spectrum in the order that is cheapest.

A ReLU of real and imaginary parts, a soft threshold, a clipped magnitude: what is done to a bin does not depend on
where it stands, so the bins need not stand in their usual order, and both transforms are computed in two stages each
(``spectral_halves``). Convolutions over real and imaginary channels, masks and shifts keep the usual spectrum.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.index import captured
from clusir.export.graph.probe import LinearGraph
from clusir.export.lowering.plan import half_plan
from clusir.export.passes.spectral_find import find_transform, inverses, spectra
from clusir.export.passes.spectral_halves import there_and_back

__all__ = ["PositionwiseSpectrum"]

_ONE = frozenset((
    *("Abs", "Atan", "Ceil", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish"),
    *("Identity", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin"),
    *("Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu"),
))  # fmt: skip
_TWO = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max"))


@dataclass(frozen=True)
class _Part:
    """The real (0) or imaginary (1) part of every bin; or, where ``which`` is None, what a node makes of such parts and
    of numbers, by their names."""

    which: int | None = None
    node: str = ""
    inputs: tuple[_Part | str, ...] = ()


_Parts = tuple[_Part, ...]
"""What a value holds: one part of each bin, or both behind one another along its last axis."""


class PositionwiseSpectrum(GraphPass):
    """Compute rfft2 -> functions of single values -> irfft2 with the bins in the order of the transforms' stages."""

    name = "PositionwiseSpectrum"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        edit = GraphEdit(model)
        notes = []
        for spectrum, joined in list(spectra(edit.linear())):
            if not joined and spectrum in edit.linear().producer:
                note = _try(edit, spectrum)
                if note is not None:
                    notes.append(note)
                    edit.drop_unused()
        if not notes:
            return PassResult(model, False, ("no rfft2 -> functions of single values -> irfft2 that factorises",))
        return PassResult(edit.model, True, tuple(notes))


def _try(edit: GraphEdit, spectrum: str) -> str | None:
    linear = edit.linear()
    shape = linear.shapes[spectrum][:-1]
    rows, forward = half_plan(shape[-2]), None
    if rows is not None:
        forward = find_transform(linear, spectrum, inverse=False)
    if rows is None or forward is None:
        return None
    source = forward[0].sources[0]
    picture = linear.shapes[source]
    columns = half_plan(picture[-1])
    if columns is None:
        return None
    for value, parts in _followed(linear, spectrum):
        for region, scale in inverses(linear, value, picture):
            if _needed_elsewhere(linear, spectrum, region.output):
                return None

            def between(half: str, sign: int, parts: _Parts = parts, hint: str = region.output) -> str:
                return _emitted(edit, linear, parts, half, f"{hint}/{'+-'[sign]}f")

            scales = (forward[1], scale)
            result = there_and_back(edit, source, picture, (rows, columns), scales, between, region.output)
            edit.redirect(region.output, result)
            forms = f"height {rows.factor}x{rows.rest}, width {columns.factor}x{columns.rest}"
            return f"{region.output}: the spectrum stands in the order of its stages ({forms})"
    return None


def _followed(linear: LinearGraph, spectrum: str) -> Iterator[tuple[str, _Parts]]:
    """The values with the spectrum's shape that functions of single values make of it, in the order of the graph."""
    known: dict[str, _Parts] = {spectrum: (_Part(0), _Part(1))}
    shape = linear.shapes[spectrum]
    for node in linear.graph.node:
        if len(node.output) == 1 and any(i in known for i in node.input):
            parts = _made(linear, node, known, shape)
            if parts is not None:
                known[node.output[0]] = parts
                if len(parts) == 2 and node.op_type != "Identity":
                    yield node.output[0], parts
        elif node.op_type == "Split" and node.input[0] in known:
            sizes = [linear.shapes.get(o) for o in node.output]
            if len(known[node.input[0]]) == 2 and sizes == [(*shape[:-1], 1)] * 2:
                known |= {o: (p,) for o, p in zip(node.output, known[node.input[0]], strict=True)}


def _made(linear: LinearGraph, node: onnx.NodeProto, known: dict[str, _Parts], shape: tuple[int, ...]) -> _Parts | None:
    """What a node makes of known values; None where it is no function of single values."""
    kind, output = node.op_type, linear.shapes.get(node.output[0])
    first = known.get(node.input[0])
    wide, thin, bare = shape, (*shape[:-1], 1), shape[:-1]
    if output not in (wide, thin, bare):
        return None
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    same = first is not None and (output == wide) == (len(first) == 2)
    if kind in ("Reshape", "Squeeze", "Unsqueeze", "Expand"):
        return first if same else None
    if kind in ("Gather", "Slice") and first is not None and len(first) == 2 and output != wide:
        which = _taken(linear, node, len(shape), attributes)
        return None if which is None else (first[which],)
    if kind == "Concat" and output == wide and attributes["axis"] % len(shape) == len(shape) - 1:
        inputs = [known.get(i) for i in node.input]
        return tuple(p[0] for p in inputs if p) if all(p and len(p) == 1 for p in inputs) else None
    if kind in _ONE and same and first is not None and all(i in linear.constants for i in node.input[1:] if i):
        return tuple(_Part(None, node.output[0], (part, *node.input[1:])) for part in first)
    if kind in _TWO:
        operands = [_operand(linear, i, known, output, shape) for i in node.input]
        if any(o is None for o in operands):
            return None
        count = 2 if output == wide else 1
        return tuple(
            _Part(None, node.output[0], tuple(o if isinstance(o, str) else o[n % len(o)] for o in operands if o))
            for n in range(count)
        )
    return None


def _operand(
    linear: LinearGraph, name: str, known: dict[str, _Parts], output: tuple[int, ...], shape: tuple[int, ...]
) -> _Parts | str | None:
    """A value that is known and broadcasts bin by bin, or a constant number."""
    if name in linear.constants:
        return name if linear.constants[name].size == 1 else None
    if name not in known:
        return None
    # Without its last axis a part would be broadcast along another one.
    return None if linear.shapes[name] == shape[:-1] and output != shape[:-1] else known[name]


def _taken(linear: LinearGraph, node: onnx.NodeProto, rank: int, attributes: dict[str, Any]) -> int | None:
    """Which of the two parts a Gather or a Slice takes along the last axis; None for anything else."""
    constants = [linear.constants[i].ravel().tolist() if i in linear.constants else None for i in node.input[1:] if i]
    if node.op_type == "Gather":
        index = constants[0]
        if attributes.get("axis", 0) % rank != rank - 1 or index not in ([0], [1], [-1], [-2]):
            return None
        return int(index[0]) % 2
    if len(constants) < 3 or any(c is None or len(c) != 1 for c in constants) or constants[3:] not in ([], [[1]]):
        return None
    start, end, axis = (c[0] for c in constants[:3] if c)
    places = range(2)[start:end]
    return places[0] if axis % rank == rank - 1 and len(places) == 1 else None


def _needed_elsewhere(linear: LinearGraph, spectrum: str, output: str) -> bool:
    """Whether anything but ``output`` needs the spectrum: then its usual order is computed all the same."""
    queue, seen = list(linear.outputs), {output}
    while queue:
        value = queue.pop()
        if value in seen:
            continue
        seen.add(value)
        node = linear.producer.get(value)
        queue += [] if node is None else captured(node)
    return spectrum in seen


def _emitted(edit: GraphEdit, linear: LinearGraph, parts: _Parts, half: str, hint: str) -> str:
    """``parts`` of one half of the spectrum, [blocks, 2 * places, ...] as it comes: the same function of both parts is
    computed of both at once, others part by part."""
    nodes = {o: node for o, node in linear.producer.items() if len(node.output) == 1}
    done: dict[_Part, str] = {}

    def emit(part: _Part | str, leaves: tuple[str, ...]) -> str:
        if isinstance(part, str):
            constant = linear.constants[part] if part else np.zeros(())
            # A number of another rank would add axes.
            return edit.constant(constant.reshape(()), f"{hint}/number", constant.dtype) if constant.ndim else part
        if part.which is not None:
            return leaves[part.which]
        if part not in done:
            node = nodes[part.node]
            inputs = [emit(i, leaves) for i in part.inputs]
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            done[part] = edit.node(node.op_type, inputs, f"{hint}/{part.node}", **attributes)
        return done[part]

    def key(part: _Part | str, which: int) -> object:
        """What a part computes of part ``which`` alone; None where it reads the other one too."""
        if isinstance(part, str):
            return (linear.constants[part].tobytes(), str(linear.constants[part].dtype)) if part else ()
        if part.which is not None:
            return "bin" if part.which == which else None
        keys = [key(i, which) for i in part.inputs]
        told = sorted(a.SerializeToString() for a in nodes[part.node].attribute)
        return None if None in keys else (nodes[part.node].op_type, *told, *keys)

    if key(parts[0], 0) is not None and key(parts[0], 0) == key(parts[1], 1):
        return emit(parts[0], (half, ""))
    split = [edit.fresh(f"{hint}/real"), edit.fresh(f"{hint}/imaginary")]
    edit.model.graph.node.append(helper.make_node("Split", [half], split, name=split[0], axis=1, num_outputs=2))
    return edit.node("Concat", [emit(part, tuple(split)) for part in parts], f"{hint}/parts", axis=1)
