"""Which pixels of a window count, on the grid and along the axes on which a reduction pools them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from onnx import TensorProto, helper

from clusir.export.graph.edit import GraphEdit
from clusir.export.pooling.axes import Axes, Grid
from clusir.export.pooling.find import Statistic

__all__ = ["Masks"]


class Masks:
    """Builds masks out of the graph's input ``weight`` [B, 1, H, W]; each is built once."""

    def __init__(self, edit: GraphEdit, axes: Axes) -> None:
        self.edit, self.axes = edit, axes
        self._made: dict[object, str] = {}

    def rank(self, part: Statistic) -> int:
        return len(self.axes.shape(part.node.input[0]))

    def of(self, part: Statistic) -> str:
        """1 where a pixel counts, else 0 (or the share of it), in a shape that multiplies the reduction's operand."""
        source = part.node.input[0]
        rank, entries = self.rank(part), self.axes.pictures_axis(source)
        key = (part.grid, part.axes, part.copies, rank, entries, self.axes.sides(source))
        if key not in self._made:
            edit = self.edit
            mask = self._on(part.grid)
            if len(part.axes) == 2:
                mask = edit.node("Squeeze", [mask, self._ints([1])], "mask_map")
                if (sides := self.axes.sides(source)) is not None and sides[0] > sides[1]:
                    mask = edit.node("Transpose", [mask], "mask_turned", perm=[0, 2, 1])
            else:
                mask = edit.reshape(mask, [0, -1], "mask_row")
                mask = self._repeated(mask, part.copies, flat=True)
            mask = self._repeated(mask, entries, flat=False) if entries > 1 else mask
            others = [axis for axis in range(1, rank) if axis not in part.axes]
            self._made[key] = edit.node("Unsqueeze", [mask, self._ints(others)], "mask") if others else mask
        return self._made[key]

    def total(self, per_pixel: Fraction) -> str:
        """How many numbers of all windows count together: a scalar."""
        if "sum" not in self._made:
            self._made["sum"] = self.edit.node("ReduceSum", ["weight"], "weight_sum", keepdims=0)
        if per_pixel not in self._made:
            factor = self.edit.constant(float(per_pixel), "per_pixel")
            self._made[per_pixel] = self.edit.node("Mul", [self._made["sum"], factor], "weight_total")
        return self._made[per_pixel]

    def _on(self, grid: Grid) -> str:
        """The weight on a coarser or finer grid."""
        if grid.step == 1:
            return "weight"
        if grid not in self._made:
            if grid.step > 1:
                side = int(grid.step)
                made = self.edit.node("AveragePool", ["weight"], "weight_on_grid", kernel_shape=[side, side],
                                      strides=[side, side])  # fmt: skip
            else:
                times = float(1 / grid.step)
                scales = self.edit.constant([1, 1, times, times], "scales")
                made = self.edit.node("Resize", ["weight", "", scales], "weight_on_grid", mode="nearest",
                                      coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
            self._made[grid] = made
        return self._made[grid]

    def _repeated(self, mask: str, times: int, *, flat: bool) -> str:
        """Each picture's mask several times: one behind the other in its row (``flat``), or as further entries of
        axis 0."""
        if times == 1:
            return mask
        edit = self.edit
        between = edit.node("Unsqueeze", [mask, self._ints([1])], "mask_between")
        tail = edit.node("Shape", [mask], "mask_tail", start=1)
        shape = edit.node("Concat", [self._ints([1, times]), self._ones_like(tail)], "mask_times", axis=0)
        many = edit.node("Expand", [between, shape], "mask_many")
        if flat:
            return edit.reshape(many, [0, -1], "mask_copies")
        return edit.node(
            "Reshape", [many, edit.node("Concat", [self._ints([-1]), tail], "mask_shape", axis=0)], "mask_entries"
        )

    def _ones_like(self, shape: str) -> str:
        count = self.edit.node("Shape", [shape], "mask_rank")
        one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
        return self.edit.node("ConstantOfShape", [count], "mask_ones", value=one)

    def _ints(self, values: list[int]) -> str:
        return self.edit.constant(np.asarray(values), "ints", np.int64)
