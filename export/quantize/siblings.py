"""Two graphs of one model on the same crops: what one was measured on need not be measured on the other.

The tile graph is given the routing that the whole graph decides, and then computes the same maps. Layers are known by
the names of their weights, which both graphs share; names of maps they do not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from clusir.export.graph.session import Probe
from clusir.export.quantize.layers import Graph
from clusir.export.quantize.ranges import Calibration
from clusir.export.quantize.statistics import Statistics

__all__ = ["Sibling", "statistics_of"]

_CROPS = 3  # on which the maps of both graphs are compared
_CLOSE = 1e-3  # of a map's largest value; two graphs add up in other orders


@dataclass(frozen=True)
class Sibling:
    """A graph that was measured: ``statistics`` of ``graph`` on the crops of ``calibration``."""

    graph: Graph
    statistics: Statistics
    calibration: Calibration


def statistics_of(
    sibling: Sibling, graph: Graph, tensors: Collection[str], layers: Collection[str], calibration: Calibration
) -> Statistics | None:
    """The statistics of ``tensors`` and the moments of ``layers`` of ``graph``, taken from its sibling; None where one
    was not measured there, where the crops are others, or where the maps of the first crops differ."""
    theirs = dict(_ends(sibling.graph))
    same = {name: theirs[end] for end, name in _ends(graph) if name in tensors and end in theirs}
    known, crops = sibling.statistics, (calibration, sibling.calibration)
    if (
        not same.keys() >= set(tensors)
        or not known.watched >= set(same.values())
        or not known.moments.keys() >= set(layers)
        or list(crops[0].keys) != list(crops[1].keys)
        or not np.array_equal(crops[0].gates, crops[1].gates)
        or not _agree(sibling, graph, same, calibration)
    ):
        return None
    maps = {name: known.maps[other] for name, other in same.items() if other in known.maps}
    return replace(known, maps=maps, moments={n: known.moments[n] for n in layers}, watched=frozenset(tensors))


def _ends(graph: Graph) -> Iterator[tuple[tuple[str, str], str]]:
    """(layer, which end) and the map there: what each layer reads and gives, and the ReLU that alone reads it."""
    for node in graph.convolutions():
        layer, output = node.input[1], node.output[0]
        yield (layer, "input"), node.input[0]
        yield (layer, "output"), output
        readers = graph.consumers.get(output, [])
        if len(readers) == 1 and readers[0].op_type == "Relu":
            yield (layer, "relu"), readers[0].output[0]


def _agree(sibling: Sibling, graph: Graph, same: dict[str, str], calibration: Calibration) -> bool:
    """Whether the maps are the same numbers, up to rounding, for the first crops."""
    mine, theirs = Probe(graph.model, list(same)), Probe(sibling.graph.model, sorted(set(same.values())))
    for own, other in list(zip(calibration.feeds, sibling.calibration.feeds, strict=True))[:_CROPS]:
        found, expected = mine.run(own), theirs.run(other)
        for name, counterpart in same.items():
            a, b = found[name], expected[counterpart]
            if a.shape != b.shape or not (np.abs(a - b).max() <= _CLOSE * max(float(np.abs(b).max()), 1e-12)):
                return False
    return True
