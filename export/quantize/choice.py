"""Which layers stay in float by choice, the measuring of the rest, and which sums join them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from onnx import NodeProto

from clusir.errors import ExportError
from clusir.export.quantize.equalise import hidden_maps
from clusir.export.quantize.prepared import Described, Prepared
from clusir.export.quantize.ranges import owners_of
from clusir.export.quantize.rounding import supported
from clusir.export.quantize.siblings import statistics_of
from clusir.export.quantize.statistics import record

__all__ = ["LITTLE", "AddResiduals", "KeepLittleArithmetic", "KeepRouting", "Measure", "sums_behind"]

LITTLE = "little arithmetic"


@dataclass(frozen=True)
class KeepRouting(Described):
    """What the graph's own routers see stays in float: it routes as the float32 graph does."""

    def apply(self, prepared: Prepared) -> Prepared:
        seen = prepared.graph.nodes_before_routing()
        return prepared.keeping({x.name: "a router sees it" for x in prepared.layers if x.node in seen})


@dataclass(frozen=True)
class KeepLittleArithmetic(Described):
    """Convolutions that integers hardly make faster stay in float (see ``clusir.rounding.is_dense``)."""

    def apply(self, prepared: Prepared) -> Prepared:
        return prepared.keeping({x.name: LITTLE for x in prepared.layers if not x.dense})


@dataclass(frozen=True)
class Measure(Described):
    """Run the calibration crops and record what every later step needs, once; where another graph of the model was
    measured on the same crops, its record serves.

    A layer whose expert saw no crop stays in float.
    """

    def apply(self, prepared: Prepared) -> Prepared:
        graph, layers = prepared.graph, prepared.chosen
        owners = owners_of(graph, prepared.layers)
        moments: Mapping[str, NodeProto] = {x.name: node for x in layers if supported(node := graph.node(x), graph)}
        tensors = prepared.tensors(layers) | hidden_maps(graph)
        found = None
        if prepared.sibling is not None:
            found = statistics_of(prepared.sibling, graph, tensors, moments, prepared.calibration)
        if found is None:
            found = record(graph, tensors, moments, prepared.calibration, owners)
        blind = {x.name for x in layers if not prepared.touched(x) <= found.maps.keys()}
        return replace(prepared, statistics=found).keeping(dict.fromkeys(blind, "its expert saw no calibration crop"))


@dataclass(frozen=True)
class AddResiduals(Described):
    """Sums of two maps of which one comes straight from an integer layer, or from another such sum, are integers too.

    Stands before Measure, and excludes ScaleOutputs, whose maps are put back in float before a sum.
    """

    def apply(self, prepared: Prepared) -> Prepared:
        if prepared.statistics.maps:
            raise ExportError("AddResiduals stands before Measure in the list of steps: its sums are measured as well")
        return replace(prepared, sums=tuple(sums_behind(prepared)))


def sums_behind(prepared: Prepared) -> list[str]:
    """Names of the additions that become integers with the chosen layers."""
    graph, found = prepared.graph, []
    integer = {t for x in prepared.chosen for t in prepared.touched(x) - {graph.node(x).input[0]}}
    outside = {*graph.inputs, *graph.outputs}
    for node in graph.model.graph.node:
        names = {*node.input, *node.output}
        if node.op_type != "Add" or names & (graph.initialisers.keys() | outside):
            continue
        shapes = [graph.shapes.get(name, ()) for name in (*node.input, *node.output)]
        if integer & set(node.input) and len(shapes[0]) == 4 and shapes.count(shapes[0]) == 3:
            found.append(node.name)
            integer |= set(node.output)
    return found
