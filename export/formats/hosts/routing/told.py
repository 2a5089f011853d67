"""A routed network that decides in each tile which experts run, and was told beforehand what it may mend.

The router graph with its permissions as constants stands before the tile graph, in one graph of one input. A tile may
then be taken for more or less noisy than its neighbour, never for hazy or dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from clusir.errors import UnsupportedModelError
from clusir.export.formats.hosts.base import Source
from clusir.export.graph.edit import GraphEdit
from clusir.export.passes.simplify import SimplifyGraph
from clusir.spec import ModelSpec

__all__ = ["MENDED", "beside", "gate_nodes", "told", "unrouted"]

MENDED = ("noise",)
"""The families that a program's task ``denoise`` stands for."""


def told(source: Source, families: Sequence[str] = MENDED) -> Source:
    """An unrouted whole graph for one picture: the source's router and tile graph, told to mend ``families`` and
    nothing else. It answers as clusir-run --fix does for a picture that is one tile.

    Raises UnsupportedModelError where either graph is not beside the whole one, or the network takes no permissions.
    """
    tile, router = beside(source)
    spec = ModelSpec.from_metadata({p.key: p.value for p in router.metadata_props})
    if unknown := [family for family in families if family not in spec.families]:
        raise UnsupportedModelError(
            f"{source.name} cannot be told to mend {', '.join(unknown)}; it knows {', '.join(spec.families) or 'none'}"
        )
    edit = GraphEdit(onnx.compose.add_prefix(router, "router/"))
    behind = onnx.compose.add_prefix(tile, "tile/")
    graph = edit.model.graph
    graph.initializer.extend(behind.graph.initializer)
    graph.node.extend(behind.graph.node)
    edit = GraphEdit(edit.model)
    graph = edit.model.graph
    asked = edit.constant([[float(family in families) for family in spec.families]], "permissions")
    known = {"image": "router/image", "posterior": "router/posterior", "statistics": "router/statistics"}
    given = {f"tile/{name}": value for name, value in known.items()}
    given |= {"tile/gate": gate_nodes(edit, "router/expert_probability", spec), "router/permissions": asked}
    for old, new in given.items():
        edit.redirect(old, new)
    image = next(value for value in graph.input if value.name == "router/image")
    restored = next(value for value in behind.graph.output if value.name == f"tile/{spec.output_name}")
    for value in (image, restored):
        value.type.tensor_type.shape.dim[0].CopyFrom(onnx.TensorShapeProto.Dimension(dim_value=1))
    _shared(edit.model)
    for kept, values in ((graph.input, [image]), (graph.output, [restored])):
        values = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in values]
        del kept[:]
        kept.extend(values)
    graph.ClearField("value_info")
    edit.drop_unused()
    joined = SimplifyGraph().apply(edit.model).model  # what both compute, once
    for value, name in ((joined.graph.input[0], spec.input_name), (joined.graph.output[0], spec.output_name)):
        _rename(joined, value.name, name)
    return Source(joined, unrouted(spec), source.name)


def beside(source: Source) -> tuple[ModelProto, ModelProto]:
    """The tile and the router graph. Raises UnsupportedModelError where one is missing."""
    if source.tile is None or source.router is None:
        raise UnsupportedModelError(
            f"{source.name} decides its experts anew for each tile; give --from a bundle, which holds the tile and the "
            "router graph too"
        )
    return source.tile, source.router


def unrouted(spec: ModelSpec) -> ModelSpec:
    """The description of a graph whose routing is inside."""
    return replace(spec, graph="whole", clusters=(), experts=(), cluster_labels=(), top_k=1, statistics=0,
                   families=(), evidence_thresholds=(), evidence_floors=())  # fmt: skip


def gate_nodes(edit: GraphEdit, probability: str, spec: ModelSpec) -> str:
    """``clusir.runtimes.restore.routing.top_k_gate`` of each level, joined: ranks counted by comparison."""
    ends = np.cumsum(spec.experts)
    gates = []
    for level, (experts, end) in enumerate(zip(spec.experts, ends, strict=True)):
        at = f"gate/{level}"
        start, stop, axis = (edit.constant([value], f"{at}/{what}", np.int64)
                             for what, value in (("start", end - experts), ("stop", end), ("axis", 1)))  # fmt: skip
        share = edit.node("Slice", [probability, start, stop, axis], f"{at}/share")
        mine, other = (
            edit.reshape(share, [1, experts, 1], f"{at}/mine"),
            edit.reshape(share, [1, 1, experts], f"{at}/other"),
        )
        earlier = edit.constant(np.tri(experts, k=-1)[None] > 0, f"{at}/earlier", np.bool_)
        tied = edit.node("And", [edit.node("Equal", [other, mine], f"{at}/equal"), earlier], f"{at}/tied")
        beaten = edit.node("Or", [edit.node("Greater", [other, mine], f"{at}/more"), tied], f"{at}/beaten")
        number = edit.node("Cast", [beaten], f"{at}/number", to=TensorProto.FLOAT)
        last = edit.constant([2], f"{at}/last", np.int64)
        rank = edit.node("ReduceSum", [number, last], f"{at}/rank", keepdims=0)
        chosen = edit.node("Less", [rank, edit.constant(spec.top_k, f"{at}/k")], f"{at}/chosen")
        kept = edit.node("Mul", [share, edit.node("Cast", [chosen], f"{at}/of", to=TensorProto.FLOAT)], f"{at}/kept")
        if spec.top_k > 1:
            total = edit.node("ReduceSum", [kept, axis], f"{at}/total", keepdims=1)
            least = edit.constant(np.finfo(np.float32).tiny, f"{at}/least")  # all of them 0: the gate is 0
            kept = edit.node("Div", [kept, edit.node("Max", [total, least], f"{at}/over")], f"{at}/whole")
        gates.append(kept)
    return edit.node("Concat", gates, "gate", axis=1)


def _shared(model: ModelProto) -> None:
    """Constants that are equal become one: the router and the tile graph hold the same encoder."""
    first: dict[bytes, str] = {}
    names: dict[str, str] = {}
    kept = []
    for tensor in model.graph.initializer:
        bare = TensorProto()
        bare.CopyFrom(tensor)
        bare.ClearField("name")
        names[tensor.name] = first.setdefault(bare.SerializeToString(deterministic=True), tensor.name)
        if names[tensor.name] == tensor.name:
            kept.append(tensor)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _rename(model: ModelProto, old: str, new: str) -> None:
    for value in (*model.graph.input, *model.graph.output):
        if value.name == old:
            value.name = new
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
