"""A graph that pools over its picture, as two: one that computes what is pooled, one that is given it.

The tile graph takes ``statistics`` [B, S] beside the picture. The statistics graph takes a batch of windows of one
picture, ``weight`` [B, 1, H, W] (which of their pixels count), and statistics that are known already: ``given`` [1, S],
``known`` [1, S] (1 where they are). It returns ``statistics`` [1, S], pooled over all windows together, each one
computed from windows whose earlier statistics are pooled over all of them too; ``level`` [S], how many statistics stand
before it in a row, itself included; and ``largest`` [S], 1 where parts of a picture are combined by their maximum, 0
where by their mean.

The first number is how many pixels the picture has; whoever runs the statistics graph says it in ``given``. Of all
others a mean over the pixels is kept, whatever the reduction: a sum is the mean times the pixels of the picture, and
where the graph counts the pixels that it sees, to divide by, it counts those of the picture too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.index import GraphIndex
from clusir.export.graph.norm import sum_over_map
from clusir.export.pooling.explicit import reduced_axes
from clusir.export.pooling.find import Found, Statistic
from clusir.export.pooling.masks import Masks

__all__ = ["Split", "split_statistics"]

_SUMS = ("sum", "square", "norm", "size", "product")


@dataclass(frozen=True)
class Split:
    """The two graphs, without metadata; ``count``: how many numbers are shared; ``levels``: how many of them follow
    from each other in a row."""

    tile: ModelProto
    statistics: ModelProto
    count: int
    levels: int


def split_statistics(found: Found) -> Split:
    """Cut ``found.model`` at its statistics, of which there must be some."""
    parts = found.statistics
    return Split(
        _tile_graph(found, parts),
        _statistics_graph(found, parts),
        _count(parts),
        max(part.level for part in parts),
    )


def _count(parts: tuple[Statistic, ...]) -> int:
    return 1 + sum(part.length for part in parts)


def _tile_graph(found: Found, parts: tuple[Statistic, ...]) -> ModelProto:
    edit = GraphEdit(found.model)
    batch = edit.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or "batch"
    edit.model.graph.input.append(
        helper.make_tensor_value_info("statistics", TensorProto.FLOAT, [batch, _count(parts)])
    )
    pixels = _Pixels(edit, "statistics")
    pixels.replace_counts(found)
    start = 1
    for part in parts:
        mean = _piece(edit, "statistics", start, part)
        edit.redirect(part.name, _as_value(edit, mean, part, pixels))
        start += part.length
    edit.drop_unused()
    return edit.model


def _statistics_graph(found: Found, parts: tuple[Statistic, ...]) -> ModelProto:
    edit = GraphEdit(found.model)
    graph = edit.model.graph
    count = _count(parts)
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_value or "batch"
    sides = [dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim][2:]
    graph.input.extend(
        [
            helper.make_tensor_value_info("weight", TensorProto.FLOAT, [batch, 1, *sides]),
            helper.make_tensor_value_info("given", TensorProto.FLOAT, [1, count]),
            helper.make_tensor_value_info("known", TensorProto.FLOAT, [1, count]),
        ]
    )
    pixels = _Pixels(edit, "given")
    pixels.replace_counts(found)
    masks, index = Masks(edit, found.axes), GraphIndex(found.model.graph)
    windows = edit.node("Shape", ["weight"], "windows", start=0, end=1)
    start, means = 1, [pixels.column]
    for part in parts:
        mean = _pooled(edit, part, masks, index)
        means.append(mean)
        known = edit.node("Greater", [_piece(edit, "known", start, part), edit.constant(0.5, "half")], "is_known")
        used = edit.node("Where", [known, _piece(edit, "given", start, part), mean], f"{part.name}/used")
        length = edit.constant([part.length], "length", np.int64)
        each = edit.node("Expand", [used, edit.node("Concat", [windows, length], "rows", axis=0)], f"{part.name}/each")
        edit.redirect(part.name, _as_value(edit, each if part.pictures else used, part, pixels))
        start += part.length
    del graph.output[:]
    rows = {"level": [float(p.level) for p in parts], "largest": [float(p.kind in ("max", "min")) for p in parts]}
    lengths = [1, *(p.length for p in parts)]
    numbers = {key: np.repeat(np.array([0.0, *values], np.float32), lengths) for key, values in rows.items()}
    made = {"statistics": edit.node("Concat", means, "pooled", axis=1)}
    # Not constants: a runtime may fold an output that depends on no input out of the graph.
    zero = edit.node(
        "Mul", [edit.node("ReduceSum", ["known"], "sum_known", keepdims=0), edit.constant(0.0, "nought")], "zero"
    )
    made |= {
        key: edit.node("Add", [edit.constant(values, f"{key}_of"), zero], f"{key}_out")
        for key, values in numbers.items()
    }
    for key, value in made.items():
        graph.node.append(helper.make_node("Identity", [value], [key], name=f"out/{key}"))
        shape = [1, count] if key == "statistics" else [count]
        graph.output.append(helper.make_tensor_value_info(key, TensorProto.FLOAT, shape))
    edit.drop_unused()
    return edit.model


class _Pixels:
    """How many numbers a reduction pools of the whole picture; ``source`` is the input that says its pixels first."""

    def __init__(self, edit: GraphEdit, source: str) -> None:
        self.edit = edit
        self._made: dict[tuple[float, float], str] = {}
        first = [edit.constant(n, "first_number", np.int64) for n in ([0, 0], [1, 1], [0, 1])]
        self.column = edit.node("Slice", [source, *first], "picture_pixels")

    def __call__(self, per_pixel: float, more: float = 0.0) -> str:
        """``per_pixel`` numbers for each pixel, and ``more``: [1, 1]."""
        if (per_pixel, more) not in self._made:
            times = self.edit.node("Mul", [self.column, self.edit.constant(per_pixel, "per_pixel")], "pixels")
            more_of = [times, self.edit.constant(more, "further")]
            self._made[per_pixel, more] = self.edit.node("Add", more_of, "pixels_and") if more else times
        return self._made[per_pixel, more]

    def replace_counts(self, found: Found) -> None:
        """Let the graph count the pixels of the picture where it counts those that it sees."""
        for name, line in found.axes.counts.items():
            self.edit.redirect(name, self.edit.reshape(self(*line), found.axes.shape(name), f"{name}/of_picture"))


def _piece(edit: GraphEdit, source: str, start: int, part: Statistic) -> str:
    """Columns of a matrix: the numbers of one statistic."""
    ends = [edit.constant([n], "bound", np.int64) for n in (start, start + part.length, 1)]
    return edit.node("Slice", [source, *ends], f"{part.name}/{source}")


def _as_value(edit: GraphEdit, mean: str, part: Statistic, pixels: _Pixels) -> str:
    """From means [B, length] to the value that the reduction had for these B pictures."""
    value = mean
    if part.kind in _SUMS:
        value = edit.node("Mul", [value, pixels(float(part.per_pixel))], f"{part.name}/total")
    if part.kind == "norm":
        value = edit.node("Sqrt", [value], f"{part.name}/root")
    shape = [-1, *part.shape[1:]] if part.pictures else list(part.shape)
    if not part.pictures:  # a number for all pictures together: that of the first
        first = [edit.constant([n], "bound", np.int64) for n in (0, 1, 0)]
        value = edit.node("Slice", [value, *first], f"{part.name}/first")
    return edit.reshape(value, shape, f"{part.name}/shared")


def _pooled(edit: GraphEdit, part: Statistic, masks: Masks, index: GraphIndex) -> str:
    """The statistic [1, length] over all windows, of the pixels that count."""
    node, name = part.node, part.name
    source = node.input[0]
    if part.kind in ("max", "min"):
        return _largest(edit, part, masks)
    if part.kind in ("square", "norm"):
        source = edit.node("Mul", [source, source], f"{name}/square")
    elif part.kind == "size":
        source = edit.node("Abs", [source], f"{name}/size")
    counted = edit.node("Mul", [source, masks.of(part)], f"{name}/counted")
    if part.kind == "product":
        inputs = [counted, node.input[1]]
        extra = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        total = edit.node(node.op_type, inputs, f"{name}/totals", **extra)
    else:
        over_map = masks.rank(part) == 4 and _axes(index, part.node) == (2, 3)
        summed = f"{name}/summed"
        total = (
            sum_over_map(edit, counted, summed)
            if over_map
            else _reduced(edit, "ReduceSum", counted, part, masks.rank(part))
        )
    return edit.node("Div", [_rows(edit, total, part, "ReduceSum"), masks.total(part.per_pixel)], f"{name}/mean_of_all")


def _largest(edit: GraphEdit, part: Statistic, masks: Masks) -> str:
    kind, beyond = ("ReduceMax", -3e38) if part.kind == "max" else ("ReduceMin", 3e38)
    counts = edit.node("Greater", [masks.of(part), edit.constant(0.5, "half")], f"{part.name}/counts")
    left = edit.node("Where", [counts, part.node.input[0], edit.constant(beyond, "beyond")], f"{part.name}/left")
    found = _reduced(edit, kind, left, part, masks.rank(part))
    return _rows(edit, found, part, kind)


def _reduced(edit: GraphEdit, kind: str, source: str, part: Statistic, rank: int) -> str:
    """The reduction of the node itself, with another operator of the same family."""
    node = part.node
    if node.op_type.startswith("Global"):
        axes, keep = edit.constant(np.arange(2, rank), "spatial_axes", np.int64), 1
    else:
        keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        axes = node.input[1] if len(node.input) > 1 else ""
    return edit.node(kind, [source, axes] if axes else [source], f"{part.name}/reduced", keepdims=keep)


def _axes(index: GraphIndex, node: NodeProto) -> tuple[int, ...] | None:
    """Over which axes of a map [B, C, H, W] a reduction goes."""
    return (2, 3) if node.op_type.startswith("Global") else reduced_axes(index, node, 4)


def _rows(edit: GraphEdit, value: str, part: Statistic, kind: str) -> str:
    """One row [1, length] of what was reduced of each window."""
    each = edit.reshape(value, [-1, part.length], f"{part.name}/rows")
    return edit.node(kind, [each, edit.constant([0], "first_axis", np.int64)], f"{part.name}/of_all", keepdims=1)
