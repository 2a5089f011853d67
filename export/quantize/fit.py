"""Graphs whose numbers fit float16: what would leave its range is kept as a power of two less of itself.

A sum over 65,536 pixels, the constant part of a Fourier transform, and the squares of either are beyond 65504. Such a
tensor t is computed as t / 2^e: the factor goes in where the numbers are still small and comes out where they are small
again, behind the square root or the quotient that a norm ends with. Powers of two round nothing; in float32 the graph
gives the same numbers as before, but for what becomes so small that float16 would lose it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, helper

from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.index import sort_nodes

__all__ = ["LARGEST", "Fitted", "fit_float16"]

LARGEST = 65504.0
_SMALLEST = 2.0**-24
_INFINITE = 1e12  # a constant that is larger is to be larger than anything
_STEP = 14  # powers of two that float16 holds, in one factor

# Of degree one in their first input; the others do not hold numbers of the picture.
_ALIKE = frozenset((
    "Abs", "AveragePool", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "Identity", "LeakyRelu", "MaxPool", "Neg", "PRelu", "ReduceMax", "ReduceMin", "Relu", "Reshape", "Resize", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze",
))  # fmt: skip
_SUMS = frozenset(("CumSum", "GlobalAveragePool", "ReduceL1", "ReduceMean", "ReduceSum"))
_EVEN = {"Add": 0, "Sub": 0, "Sum": 0, "Max": 0, "Min": 0, "Concat": 0, "Clip": 0, "Where": 1}  # from which input on
_COMPARED = frozenset(("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"))
_NORMS = frozenset(("LayerNormalization", "InstanceNormalization", "GroupNormalization"))
_SATURATING = frozenset(("Sigmoid", "Tanh", "Erf", "HardSigmoid", "Softsign"))  # infinity is as good as a million


@dataclass(frozen=True)
class Fitted:
    """``model``: the same function of the inputs. ``exponents``: of each tensor that is kept smaller, the power of two
    that it lacks; ``rescaled``: how many tensors are multiplied by one on their way. ``left``: node name to reason, of
    what has no such form and stays beyond float16's range."""

    model: ModelProto
    exponents: dict[str, int]
    left: dict[str, str] = field(default_factory=dict)
    rescaled: int = 0


def fit_float16(
    model: ModelProto, peaks: Mapping[str, float], sizes: Mapping[str, int], headroom: float = 8.0
) -> Fitted:
    """``peaks``: the largest magnitude that each float tensor took; ``sizes``: how many elements it had. A tensor fits
    where ``headroom`` times its peak does."""
    return _Fitter(model, peaks, sizes, headroom).run()


class _Fitter:
    def __init__(
        self, model: ModelProto, peaks: Mapping[str, float], sizes: Mapping[str, int], headroom: float
    ) -> None:
        copy = ModelProto()
        copy.CopyFrom(model)
        self.edit = GraphEdit(copy)
        self.peaks, self.sizes, self.headroom = peaks, sizes, headroom
        self.constants = {tensor.name for tensor in copy.graph.initializer}
        self.exponents: dict[str, int] = {}
        self.left: dict[str, str] = {}
        self._moved: dict[tuple[str, int], str] = {}

    def run(self) -> Fitted:
        graph = self.edit.model.graph
        outputs = {value.name for value in graph.output}
        for node in list(graph.node):
            self.tame(node)
            wanted = max((self.wanted(name) for name in node.output), default=0)
            if not wanted and not self.has_exponents(node) and not self.sums_too_much(node):
                continue
            names = list(node.output)
            natural = self.rule(node)(node, wanted)
            if natural is None:
                continue
            for index, name in enumerate(names):
                kept = 0 if name in outputs else self.wanted(name)
                if not name or natural == kept or name not in self.peaks:
                    self.note(name, natural if name in self.peaks else 0)
                    continue
                node.output[index] = self.edit.fresh(f"{name}/less")
                self.times(node.output[index], natural - kept, name)
                self.note(name, kept)
        self.edit.drop_unused()
        nodes = sort_nodes(graph.node)
        del graph.node[:]
        graph.node.extend(nodes)
        del graph.value_info[:]
        return Fitted(self.edit.model, self.exponents, self.left, len(self._moved))

    def note(self, name: str, exponent: int) -> None:
        if exponent:
            self.exponents[name] = exponent

    def wanted(self, name: str) -> int:
        """The least power of two that brings a tensor into range."""
        peak = self.peaks.get(name, 0.0) * self.headroom
        return max(0, math.ceil(math.log2(peak / LARGEST))) if peak > LARGEST else 0

    def tame(self, node: NodeProto) -> None:
        """Constants beyond the range are kept smaller too; what stands for infinity is not."""
        for place, name in enumerate(node.input):
            if name not in self.constants or name in self.exponents:
                continue
            value = self.edit.array(name)
            peak = float(np.abs(value).max(initial=0)) if value.dtype == np.float32 else 0.0
            if LARGEST < peak < _INFINITE:
                exponent = math.ceil(math.log2(peak / LARGEST))
                node.input[place] = self.moved(name, exponent)
                self.exponents[node.input[place]] = exponent

    def has_exponents(self, node: NodeProto) -> bool:
        return any(self.exponents.get(name) for name in node.input)

    def sums_too_much(self, node: NodeProto) -> bool:
        return (node.op_type in _SUMS and self.crowd(node) > 0) or (
            node.op_type in ("ReduceL2", "ReduceSumSquare") and self.crowd(node, 2) > 0
        )

    def crowd(self, node: NodeProto, degree: int = 1) -> int:
        """The power of two that keeps what is added up in range, whatever the order."""
        count = self.sizes.get(node.input[0], 1) / max(1, self.sizes.get(node.output[0], 1))
        total = count * self.peaks.get(node.input[0], 0.0) ** degree
        return max(0, math.ceil(math.log2(total / LARGEST) / degree)) if total > LARGEST else 0

    def rule(self, node: NodeProto) -> Callable[[NodeProto, int], int | None]:
        kind = node.op_type
        if kind in _ALIKE:
            return self.alike
        if kind in _SUMS:
            return self.sums
        if kind in _EVEN:
            return self.even
        if kind in _COMPARED:
            return self.compared
        if kind in _NORMS:
            return self.norm
        if kind in _SATURATING:
            return self.saturating
        rules = {
            "Mul": self.product, "MatMul": self.product, "Conv": self.product, "ConvTranspose": self.product,
            "Gemm": self.product, "Div": self.quotient, "Reciprocal": self.reciprocal, "Sqrt": self.root,
            "Pow": self.power, "ReduceSumSquare": self.squares, "ReduceL2": self.length,
        }  # fmt: skip
        return rules.get(kind, self.other)

    # Each rule writes the node's inputs as it needs them, and says what power of two its answer then lacks.

    def alike(self, node: NodeProto, wanted: int) -> int:
        return self.bring(node, 0, max(wanted, self.of(node, 0)))

    def sums(self, node: NodeProto, wanted: int) -> int:
        return self.bring(node, 0, max(wanted, self.of(node, 0), self.crowd(node)))

    def even(self, node: NodeProto, wanted: int) -> int:
        places = [i for i in range(_EVEN[node.op_type], len(node.input)) if node.input[i]]
        exponent = max([wanted, *(self.of(node, place) for place in places)])
        for place in places:
            self.bring(node, place, exponent)
        return exponent

    def compared(self, node: NodeProto, _: int) -> int:
        exponent = max(self.of(node, 0), self.of(node, 1))
        for place in (0, 1):
            self.bring(node, place, exponent)
        return 0

    def product(self, node: NodeProto, wanted: int) -> int | None:
        if node.op_type == "Gemm" and any(a.name in ("alpha", "beta") and a.f != 1 for a in node.attribute):
            return self.other(node, wanted)
        exponents = [self.of(node, 0), self.of(node, 1)]
        lacking = wanted - sum(exponents)
        if lacking > 0:
            fixed = [name in self.constants for name in node.input[:2]]
            if node.input[0] == node.input[1] or not any(fixed):
                more = [math.ceil(lacking / 2)] * 2  # half of it on each side
            else:
                more = [0 if fixed[0] else lacking, 0 if fixed[1] else lacking]
            exponents = [self.bring(node, i, exponents[i] + more[i]) for i in (0, 1)]
        if len(node.input) > 2 and node.input[2]:
            self.bring(node, 2, sum(exponents))
        return sum(exponents)

    def quotient(self, node: NodeProto, wanted: int) -> int:
        above, below = self.of(node, 0), self.of(node, 1)
        if wanted > above - below:
            above = self.bring(node, 0, wanted + below)
        return above - below

    def reciprocal(self, node: NodeProto, wanted: int) -> int | None:
        return -self.of(node, 0) if not wanted else self.other(node, wanted)

    def root(self, node: NodeProto, wanted: int) -> int:
        exponent = max(2 * wanted, self.of(node, 0))
        return self.bring(node, 0, exponent + exponent % 2) // 2

    def power(self, node: NodeProto, wanted: int) -> int | None:
        degree = self.edit.array(node.input[1]) if node.input[1] in self.constants else None
        if degree is not None and degree.size == 1 and float(degree.reshape(())) == 2:
            return 2 * self.bring(node, 0, max(math.ceil(wanted / 2), self.of(node, 0)))
        if degree is not None and degree.size == 1 and float(degree.reshape(())) == 0.5:
            return self.root(node, wanted)
        return self.other(node, wanted)

    def squares(self, node: NodeProto, wanted: int) -> int:
        return 2 * self.bring(node, 0, max(math.ceil(wanted / 2), self.of(node, 0), self.crowd(node, 2)))

    def length(self, node: NodeProto, wanted: int) -> int:
        return self.bring(node, 0, max(wanted, self.of(node, 0), self.crowd(node, 2)))

    def norm(self, node: NodeProto, wanted: int) -> int:
        """What it answers does not change with its input's scale, if epsilon changes with its square."""
        peak = self.peaks.get(node.input[0], 0.0)
        squared = math.ceil(math.log2(peak**2 * self.headroom / LARGEST) / 2) if peak else 0
        exponent = self.bring(node, 0, max(0, squared, self.of(node, 0)))
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f *= 4.0**-exponent
                break
        else:
            node.attribute.append(helper.make_attribute("epsilon", 1e-5 * 4.0**-exponent))
        for place in range(1, len(node.input)):
            self.bring(node, place, wanted)
        return wanted

    def saturating(self, node: NodeProto, _: int) -> int:
        return self.bring(node, 0, 0)

    def other(self, node: NodeProto, wanted: int) -> int | None:
        if wanted or self.has_exponents(node):
            self.left[node.name] = f"{node.op_type} has values beyond float16's range and no form for smaller ones"
            for place in range(len(node.input)):
                self.bring(node, place, 0)
        return None

    def of(self, node: NodeProto, place: int) -> int:
        return self.exponents.get(node.input[place], 0)

    def bring(self, node: NodeProto, place: int, exponent: int) -> int:
        """Let an input lack that power of two; returns it."""
        name = node.input[place]
        if name and exponent != self.of(node, place):
            node.input[place] = self.moved(name, exponent)
        return exponent

    def moved(self, name: str, exponent: int) -> str:
        key = name, exponent
        if key not in self._moved:
            by = self.exponents.get(name, 0) - exponent
            if name in self.constants:
                value = self.edit.array(name)
                scaled = value * np.float32(2.0**by)
                # A constant that is added to a divisor, so that it is never 0, must not become 0.
                lost = (value != 0) & (np.abs(scaled) < _SMALLEST)
                self._moved[key] = self.edit.constant(
                    np.where(lost, np.sign(value) * _SMALLEST, scaled).astype(np.float32), f"{name}/less"
                )
                self.constants.add(self._moved[key])
            else:
                self._moved[key] = self.times(name, by, self.edit.fresh(f"{name}/by{by}"))
        return self._moved[key]

    def times(self, name: str, by: int, out: str) -> str:
        """``out``, which is ``name`` times a power of two."""
        steps = [int(math.copysign(_STEP, by))] * (abs(by) // _STEP)
        if rest := by - sum(steps):
            steps.append(rest)
        for index, step in enumerate(steps):
            answer = out if index == len(steps) - 1 else self.edit.fresh(f"{out}/part")
            factor = self.edit.constant(2.0**step, "power_of_two")
            self.edit.model.graph.node.append(helper.make_node("Mul", [name, factor], [answer], name=answer))
            name = answer
        return out
