"""A routed model of a few kilobytes, for tests of the runtimes in every language.

It has the three graphs, the tensor names and the metadata of a shipped model (see ``clusir.spec``), two routed levels,
experts that differ visibly, and global operations, so that a wrong tile, a wrong gate, a swapped channel or a missing
reflection shows in its output. Its weights are random: it restores nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from clusir.spec import ModelSpec, SizeRequirements

__all__ = ["standin_spec", "write_enlarging", "write_masked", "write_numbered", "write_standin"]

_FEATURES = 8


def standin_spec(tile_px: int = 48, halo_px: int = 8, top_k: int = 1, **fields: Any) -> ModelSpec:
    """The spec of the stand-in: static square tiles, two levels of 4 and 3 clusters with 4 and 3 experts."""
    return ModelSpec(
        name="standin",
        checkpoint_sha256="0" * 64,
        size=SizeRequirements(multiple_of=16, minimum=16, static_px=tile_px),
        tile_px=tile_px,
        halo_px=halo_px,
        clusters=(4, 3),
        experts=(4, 3),
        top_k=top_k,
        cluster_labels=(("noise", "jpeg", "rain", "haze"), ("noise", "gaussian_blur", "low_light")),
        **fields,
    )


class _Graph:
    """Collects nodes and random constants; every method returns the name of what it made."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: NDArray[np.generic]) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, *shape: int, scale: float) -> str:
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def spoil(self, output: str) -> None:
        """Make ``output`` NaN, where the graph computes it; what else reads it still gets the sound one."""
        for node in self.nodes:
            if output in node.output:
                node.output[list(node.output).index(output)] = f"{output}_sound"
                for reader in self.nodes:
                    reader.input[:] = [f"{output}_sound" if name == output else name for name in reader.input]
                self.op("Mul", f"{output}_sound", self.constant(np.array(np.nan, np.float32)), output=output)
                return

    def slice(self, value: str, start: int, stop: int) -> str:
        ends = (self.constant(np.array([i], np.int64)) for i in (start, stop, 1))
        return self.op("Slice", value, *ends)


def _router(graph: _Graph, spec: ModelSpec, statistics: bool) -> None:
    """image -> posterior, expert_probability, from the means of random convolutions; with ``statistics`` also those,
    and the means are over the batch too where the graph is a router."""
    features = graph.op("Conv", spec.input_name, graph.weight(_FEATURES, 3, 3, 3, scale=1.0), pads=[1, 1, 1, 1])
    pooled = graph.op("Flatten", graph.op("GlobalAveragePool", graph.op("Abs", features)))
    if statistics and spec.graph == "router":
        pooled = graph.op("ReduceMean", pooled, graph.constant(np.array([0], np.int64)), keepdims=1)
    for sizes, output in ((spec.clusters, "posterior"), (spec.experts, "expert_probability")):
        parts = [
            graph.op("Softmax", graph.op("MatMul", pooled, graph.weight(_FEATURES, n, scale=1.5)), axis=1)
            for n in sizes
        ]
        graph.op("Concat", *parts, output=output, axis=1)
    if statistics:
        mixed = graph.op("MatMul", pooled, graph.weight(_FEATURES, _FEATURES, scale=1.0))
        found = graph.op("Tanh", mixed, output=None if spec.families else "statistics")
        if spec.families:
            _permissions(graph, spec, pooled, found)


def _permissions(graph: _Graph, spec: ModelSpec, pooled: str, found: str) -> None:
    """pooled, and in a router permissions -> evidence, and statistics that follow from what is permitted."""
    families = len(spec.families)
    odds = graph.op("MatMul", pooled, graph.weight(_FEATURES, families, scale=0.2))
    graph.op("Sigmoid", odds, output="evidence")
    asked = "permissions" if spec.graph == "router" else graph.constant(np.full((1, families), -1, np.float32))
    least = graph.constant(np.array(spec.evidence_thresholds, np.float32))
    share = graph.op("Neg", asked)
    if spec.evidence_floors:
        one = graph.constant(np.ones(1, np.float32))
        anything = graph.op("Greater", share, one)
        least = graph.op("Where", anything, graph.constant(np.array(spec.evidence_floors, np.float32)), least)
        share = graph.op("Where", anything, graph.op("Sub", share, one), share)
    sure = graph.op("Cast", graph.op("GreaterOrEqual", "evidence", least), to=TensorProto.FLOAT)
    told = graph.op("Less", asked, graph.constant(np.zeros(1, np.float32)))
    permitted = graph.op("Where", told, graph.op("Mul", share, sure), asked)
    moved = graph.op("MatMul", permitted, graph.weight(families, _FEATURES, scale=1.0))
    graph.op("Add", found, moved, output="statistics")


def _top_k(graph: _Graph, spec: ModelSpec) -> None:
    """expert_probability -> gate, as the host does it for shared routing."""
    gates, at = [], 0
    for size in spec.experts:
        level = graph.slice("expert_probability", at, at + size)
        at += size
        values, indices = f"values_{at}", f"indices_{at}"
        k = graph.constant(np.array([spec.top_k], np.int64))
        graph.nodes.append(helper.make_node("TopK", [level, k], [values, indices], axis=1))
        if spec.top_k > 1:
            axes = graph.constant(np.array([1], np.int64))
            values = graph.op("Div", values, graph.op("ReduceSum", values, axes, keepdims=1))
        zeros = graph.op("Mul", level, graph.constant(np.zeros(1, np.float32)))
        gates.append(graph.op("ScatterElements", zeros, indices, values, axis=1))
    graph.op("Concat", *gates, output="gate", axis=1)


def _restorer(graph: _Graph, spec: ModelSpec, statistics: bool) -> None:
    """image, posterior, gate -> restored: a residual of gated convolutions, modulated by the posterior and a mean: the
    given statistics, or the tile's own."""
    value = graph.op("Conv", spec.input_name, graph.weight(_FEATURES, 3, 3, 3, scale=0.3), pads=[1, 1, 1, 1])
    spread = graph.constant(np.array([0, _FEATURES, 1, 1], np.int64))
    film = graph.op("MatMul", "posterior", graph.weight(sum(spec.clusters), _FEATURES, scale=0.5))
    value = graph.op("Add", value, graph.op("Reshape", film, spread))
    gate_shape = graph.constant(np.array([0, 1, 1, 1], np.int64))
    for expert in range(sum(spec.experts)):
        weight = graph.weight(_FEATURES, _FEATURES, 3, 3, scale=0.15)
        body = graph.op("Tanh", graph.op("Conv", value, weight, pads=[1, 1, 1, 1]))
        gate = graph.op("Reshape", graph.slice("gate", expert, expert + 1), gate_shape)
        value = graph.op("Add", value, graph.op("Mul", body, gate))
    mean = graph.op("Reshape", "statistics", spread) if statistics else graph.op("GlobalAveragePool", value)
    value = graph.op("Sub", value, mean)
    # Features that keep their mean are larger: with the same residual a quarter of the samples were clipped.
    scale = 0.005 if statistics else 0.02
    residual = graph.op("Conv", value, graph.weight(3, _FEATURES, 3, 3, scale=scale), pads=[1, 1, 1, 1])
    graph.op("Add", spec.input_name, residual, output=spec.output_name)


def _save(
    path: Path, graph: _Graph, spec: ModelSpec, inputs: dict[str, list[int | str]], outputs: dict[str, list[int | str]]
) -> None:
    def infos(ports: dict[str, list[int | str]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ports.items()]

    proto = helper.make_graph(graph.nodes, spec.graph, infos(inputs), infos(outputs), graph.constants)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="clusir")
    helper.set_model_props(model, spec.to_metadata())
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def write_standin(
    folder: Path,
    name: str = "standin",
    *,
    top_k: int = 1,
    tile_px: int = 48,
    halo_px: int = 8,
    statistics: bool = True,
    value_range: tuple[float, float] = (0.0, 1.0),
    names: tuple[str, str] = ("image", "restored"),
    spoilt: str = "",
    families: dict[str, float | tuple[float, float]] | None = None,
) -> Path:
    """Writes NAME.onnx, NAME.tile.onnx and NAME.router.onnx (about 30 kB together) and returns the first path.

    Without ``statistics`` tiles share the routing alone. ``names`` are those of the picture's tensors. The output
    ``spoilt`` is NaN in every graph that has it, for any picture. ``families`` and their thresholds, or thresholds
    and floors: the router takes permissions, and statistics follow them."""
    folder.mkdir(parents=True, exist_ok=True)
    told = _told(families) if families else {}
    named = {"value_range": value_range, "input_name": names[0], "output_name": names[1]}
    spec = standin_spec(tile_px, halo_px, top_k, **named, **told)
    sizes = {"statistics": _FEATURES} if statistics else {}
    tile_spec, router_spec = (replace(spec, graph=graph, **sizes) for graph in ("tile", "router"))  # type: ignore[arg-type]
    image: list[int | str] = ["batch", 3, tile_px, tile_px]
    posterior: list[int | str] = ["batch", sum(spec.clusters)]
    gate: list[int | str] = ["batch", sum(spec.experts)]

    router, tile, whole = _Graph(seed=1), _Graph(seed=2), _Graph(seed=1)
    _router(router, router_spec, statistics)
    _restorer(tile, tile_spec, statistics)
    _router(whole, spec, statistics)  # the same seed, hence the same router
    _top_k(whole, spec)
    whole.rng = np.random.default_rng(2)
    _restorer(whole, spec, statistics)

    for graph in (router, tile, whole):
        graph.spoil(spoilt)
    path = folder / f"{name}.onnx"
    given: dict[str, list[int | str]] = {"statistics": ["batch", _FEATURES]} if statistics else {}
    routing = {"posterior": posterior, "gate": gate}
    before, after = {names[0]: image}, {names[1]: image}
    evidence: dict[str, list[int | str]] = {"evidence": ["batch", len(families)]} if families else {}
    _save(path, whole, spec, before, after | routing | evidence)
    _save(folder / f"{name}.tile.onnx", tile, tile_spec, before | routing | given, after)
    found = {"posterior": posterior, "expert_probability": gate} | given | evidence
    if statistics:
        found = {name: [1, *shape[1:]] for name, shape in found.items()}
    asked: dict[str, list[int | str]] = {"permissions": [1, len(families)]} if families else {}
    _save(folder / f"{name}.router.onnx", router, router_spec, before | asked, found)
    return path


def _told(families: dict[str, float | tuple[float, float]]) -> dict[str, tuple[str, ...] | tuple[float, ...]]:
    """The fields of a spec with these families: thresholds, or each with a threshold and a floor."""
    pairs = [(least, None) if isinstance(least, float) else least for least in families.values()]
    floors = tuple(floor for _, floor in pairs if floor is not None)
    return {
        "families": tuple(families),
        "evidence_thresholds": tuple(threshold for threshold, _ in pairs),
        "evidence_floors": floors,
    }


def write_masked(folder: Path, name: str, mask: str = "mask", default: float = 0.0) -> Path:
    """``name.onnx``: a model without routing that takes a mask and a level for each pixel: where the mask is 1 it
    answers a blur of the picture with the level, elsewhere the picture. ``mask``: what it is called."""
    spec = ModelSpec(name="masked", size=SizeRequirements(8, 8, 48), tile_px=48, halo_px=8, dft_form="none",
                     maps=(mask, "level"), map_defaults=(default, 0.25))  # fmt: skip
    kernel = np.random.default_rng(22).uniform(-0.005, 0.02, (3, 5, 5, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Split", ["image", "parts"], ["colours", "mask", "level"], axis=1),
        helper.make_node("Conv", ["image", "kernel"], ["blur"], pads=[2, 2, 2, 2]),
        helper.make_node("Mul", ["level", "mask"], ["raised"]),
        helper.make_node("Sub", ["blur", "colours"], ["change"]),
        helper.make_node("Mul", ["change", "mask"], ["painted"]),
        helper.make_node("Sum", ["colours", "painted", "raised"], ["restored"]),
    ]
    pictures = [helper.make_tensor_value_info(port, TensorProto.FLOAT, ["batch", channels, 48, 48])
                for port, channels in (("image", 5), ("restored", 3))]  # fmt: skip
    constants = [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(np.array([3, 1, 1]), "parts")]
    graph = helper.make_graph(nodes, "masked", pictures[:1], pictures[1:], constants)
    return _saved(graph, spec, folder / f"{name}.onnx")


def write_numbered(folder: Path, name: str) -> Path:
    """``name.onnx``, ``name.tile.onnx`` and ``name.statistics.onnx``: a model without routing that takes ``sigma``
    (0..75, 15) and ``quality`` (-2..2, 1). It blurs as far as sigma says, and is brightened by its mean, which
    tiles share, as quality says."""
    spec = ModelSpec(name="numbered", size=SizeRequirements(8, 8, 0), tile_px=48, halo_px=8, dft_form="none",
                     statistics=2, checkpoint_sha256="1" * 64, numbers=("sigma", "quality"),
                     number_defaults=(15.0, 1.0), number_ranges=((0.0, 75.0), (-2.0, 2.0)), graph="pooled")  # fmt: skip
    pooled, tile, statistics = _Graph(seed=31), _Graph(seed=31), _Graph(seed=32)
    found = _mean_of(statistics, statistics.op("Mul", "image", "weight"), "weight")
    row = statistics.op("Concat", statistics.slice("given", 0, 1), found, axis=1)
    half = statistics.op("Greater", "known", statistics.constant(np.float32([0.5])))
    statistics.op("Where", half, "given", row, output="statistics")
    # Not constants: a runtime may fold an output that depends on no input out of the graph.
    none = statistics.op("Mul", statistics.op("ReduceSum", "known", keepdims=0), statistics.constant(np.float32([0])))
    statistics.op("Add", statistics.constant(np.float32([0, 1])), none, output="level")
    statistics.op("Add", statistics.constant(np.zeros(2, np.float32)), none, output="largest")
    image: list[int | str] = ["batch", 3, "height", "width"]
    numbers: dict[str, list[int | str]] = {"sigma": [1], "quality": [1]}
    for graph, mean in ((pooled, None), (tile, tile.slice("statistics", 1, 2))):
        own = _mean_of(graph, "image", None) if mean is None else mean
        blur = graph.op("Conv", "image", graph.weight(3, 3, 7, 7, scale=0.015), pads=[3, 3, 3, 3])
        far = graph.op("Mul", "sigma", graph.constant(np.float32([0.01])))
        bright = graph.op("Mul", graph.op("Mul", own, "quality"), graph.constant(np.float32([0.001])))
        bright = graph.op("Reshape", bright, graph.constant(np.array([-1, 1, 1, 1])))
        graph.op("Sum", "image", graph.op("Mul", blur, far), bright, output="restored")
    path = folder / f"{name}.onnx"
    _save(path, pooled, spec, {"image": image, **numbers}, {"restored": image})
    given: dict[str, list[int | str]] = {"statistics": ["batch", 2]}
    _save(folder / f"{name}.tile.onnx", tile, replace(spec, graph="tile"), {"image": image, **given, **numbers},
          {"restored": image})  # fmt: skip
    asked: dict[str, list[int | str]] = {"weight": ["batch", 1, "height", "width"], "given": [1, 2], "known": [1, 2]}
    _save(folder / f"{name}.statistics.onnx", statistics, replace(spec, graph="statistics"),
          {"image": image, **asked, **numbers}, {"statistics": [1, 2], "level": [2], "largest": [2]})  # fmt: skip
    return path


def _mean_of(graph: _Graph, value: str, weight: str | None) -> str:
    """[1, 1], or [B, 1] without a ``weight``: the mean of the pixels that count, times sigma."""
    if weight is None:
        mean = graph.op("ReduceMean", value, graph.constant(np.array([1, 2, 3])), keepdims=0)
        return graph.op("Mul", graph.op("Reshape", mean, graph.constant(np.array([-1, 1]))), "sigma")
    pixels = graph.op("Mul", graph.op("ReduceSum", weight), graph.constant(np.float32([3])))
    mean = graph.op("Div", graph.op("ReduceSum", value), pixels)
    return graph.op("Mul", graph.op("Reshape", mean, graph.constant(np.array([1, 1]))), "sigma")


def write_enlarging(folder: Path, name: str, scale: int = 2) -> Path:
    """``name.onnx``: a model without routing whose answer is ``scale`` times as large, made of what lies within 2
    px."""
    spec = ModelSpec(
        name="enlarging", size=SizeRequirements(8, 8, 48), tile_px=48, halo_px=8, scale=scale, dft_form="none"
    )
    rng = np.random.default_rng(21)
    kernel = rng.uniform(-0.02, 0.02, (3 * scale**2, 3, 5, 5)).astype(np.float32)
    kernel[np.arange(3 * scale**2), np.arange(3 * scale**2) // scale**2, 2, 2] += 0.9
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["spread"], pads=[2, 2, 2, 2]),
        helper.make_node("DepthToSpace", ["spread"], ["restored"], blocksize=scale, mode="CRD"),
    ]
    pictures = [
        helper.make_tensor_value_info(port, TensorProto.FLOAT, ["batch", 3, side, side])
        for port, side in (("image", 48), ("restored", 48 * scale))
    ]
    constants = [numpy_helper.from_array(kernel, "kernel")]
    graph = helper.make_graph(nodes, "enlarging", pictures[:1], pictures[1:], constants)
    return _saved(graph, spec, folder / f"{name}.onnx")


def _saved(graph: onnx.GraphProto, spec: ModelSpec, path: Path) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, spec.to_metadata())
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path
