"""Graphs in which an expert is forced, one graph for many of them: the first value of the picture says which."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import TensorProto

from clusir.export.formats.hosts.base import Array, Source
from clusir.export.formats.hosts.routing.frozen import with_constants
from clusir.export.formats.hosts.routing.told import beside, unrouted
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.session import Probe
from clusir.runtimes.restore.routing import Routing, combine, router_outputs, split_levels
from clusir.spec import ModelSpec

__all__ = ["alone", "everywhere", "forced", "marked", "routed"]


def routed(source: Source, picture: Array) -> tuple[Routing, ModelSpec]:
    """What the router says of a picture, all families permitted, and the description of the tile graph."""
    tile, router = beside(source)
    spec, router_spec = (ModelSpec.from_metadata({p.key: p.value for p in g.metadata_props}) for g in (tile, router))
    feeds = {"image": picture}
    if router_spec.families:
        feeds["permissions"] = np.ones((1, len(router_spec.families)), np.float32)
    answers = Probe(router, threads=1).run(feeds)
    return combine({name: answers[name] for name in router_outputs(router_spec)}, router_spec), spec


def alone(routing: Routing, spec: ModelSpec) -> dict[str, Array]:
    """Gates in which one level runs another expert than the router's, with the weight that the router gave its own."""
    gates = {}
    levels = split_levels(routing.gate, spec.experts)
    for level, weights in enumerate(levels):
        for expert in range(len(weights)):
            mine = weights.max() * np.eye(len(weights), dtype=np.float32)[expert]
            gates[f"expert {expert + 1} of level {level + 1}"] = np.concatenate(
                [*levels[:level], mine, *levels[level + 1 :]]
            )
    return gates


def everywhere(spec: ModelSpec) -> dict[str, Array]:
    """Gates in which every level runs the same expert (of fewer experts: the last), with weight 1."""
    return {
        f"expert {expert + 1} of every level": np.concatenate(
            [np.eye(count, dtype=np.float32)[min(expert, count - 1)] for count in spec.experts]
        )
        for expert in range(max(spec.experts))
    }


def forced(source: Source, routing: Routing, gates: list[Array], spec: ModelSpec) -> Source:
    """The tile graph under ``routing``, but with the gate that :func:`marked` names."""
    tile, _ = beside(source)
    given = replace(routing, gate=np.zeros_like(routing.gate)).feeds(1)
    del given["gate"]
    edit = GraphEdit(with_constants(tile, given))
    ends = [edit.constant([end] * 4, f"which/{end}", np.int64) for end in (0, 1)]
    first = edit.node("Slice", [spec.input_name, *ends], "which/value")
    scaled = edit.node("Mul", [edit.reshape(first, [1, 1], "which/one"), edit.constant(255, "which/levels")], "which")
    off = edit.node("Sub", [scaled, edit.constant(np.arange(len(gates))[None], "which/numbers")], "which/off")
    near = edit.node("Less", [edit.node("Abs", [off], "which/far"), edit.constant(0.5, "which/half")], "which/near")
    chosen = edit.node("Cast", [near], "which/chosen", to=TensorProto.FLOAT)
    edit.redirect("gate", edit.node("MatMul", [chosen, edit.constant(np.stack(gates), "which/gates")], "which/gate"))
    kept = [value for value in edit.model.graph.input if value.name != "gate"]
    del edit.model.graph.input[:]
    edit.model.graph.input.extend(kept)
    edit.drop_unused()
    return Source(edit.model, unrouted(spec), source.name)


def marked(picture: Array, index: int) -> Array:
    """The picture, 1xCxHxW, whose first value names a gate."""
    made = picture.copy()
    made[0, 0, 0, 0] = np.float32(index / 255)
    return made
