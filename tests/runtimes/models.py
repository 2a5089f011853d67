"""Small ONNX models with the metadata and tensor names of the real ones, made with onnx.helper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clusir.spec import ModelSpec, SizeRequirements

CLUSTERS, EXPERTS = (3, 2), (4, 4)


def spec(graph: str = "whole", tile: int = 64, halo: int = 8, static: bool = True, top_k: int = 1) -> ModelSpec:
    size = SizeRequirements(static_px=tile if static else 0)
    return ModelSpec(
        name="test", graph=graph, size=size, tile_px=tile, halo_px=halo, clusters=CLUSTERS, experts=EXPERTS, top_k=top_k
    )


def _save(path: Path, graph: onnx.GraphProto, model_spec: ModelSpec | None) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    for key, value in (model_spec.to_metadata() if model_spec else {}).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def _images(model_spec: ModelSpec, *names: str) -> list[onnx.ValueInfoProto]:
    side: list[int | str] = [model_spec.size.static_px or "height", model_spec.size.static_px or "width"]
    return [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", model_spec.channels, *side]) for n in names]


def _vectors(**lengths: int) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", k]) for n, k in lengths.items()]


def _constants(**arrays: np.ndarray) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(a, name) for name, a in arrays.items()]


def blur_kernel() -> np.ndarray:
    """3 -> 3 channels, 5x5 average of each channel: local (a halo of 2 makes tiles equal the whole)."""
    kernel = np.zeros((3, 3, 5, 5), np.float32)
    for c in range(3):
        kernel[c, c] = 1 / 25
    return kernel


def _routing_nodes() -> list[onnx.NodeProto]:
    """posterior and expert probability from the mean brightness of the input: they differ between dark and bright."""
    return [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "to_posterior"], ["posterior"]),
        helper.make_node("MatMul", ["mean", "to_expert"], ["expert"]),
    ]


def _routing_constants(channels: int = 3) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(3)
    return _constants(
        axes=np.array([2, 3], np.int64),
        to_posterior=rng.uniform(0.1, 1, (3, sum(CLUSTERS)))[:channels].astype(np.float32),
        to_expert=rng.uniform(0.1, 1, (3, sum(EXPERTS)))[:channels].astype(np.float32),
    )


def save_identity(path: Path, scale: float = 1.0, model_spec: ModelSpec | None = None) -> Path:
    """restored = image * scale; the cheapest whole graph."""
    made = model_spec or spec()
    nodes = [
        helper.make_node("Mul", ["image", "scale"], ["restored"]),
        *_routing_nodes(),
        helper.make_node("Identity", ["expert"], ["gate"]),
    ]
    outputs = _images(made, "restored") + _vectors(posterior=sum(CLUSTERS), gate=sum(EXPERTS))
    constants = [*_routing_constants(made.channels), *_constants(scale=np.array(scale, np.float32))]
    return _save(path, helper.make_graph(nodes, "identity", _images(made, "image"), outputs, constants), made)


def save_whole(path: Path, model_spec: ModelSpec | None = None) -> Path:
    """A 5x5 blur plus half the mean of what it sees: the second term makes tiles disagree, as routing per tile does."""
    made = model_spec or spec()
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["blurred"], pads=[2, 2, 2, 2]),
        helper.make_node("ReduceMean", ["image", "all_axes"], ["level"], keepdims=1),
        helper.make_node("Mul", ["level", "half"], ["shift"]),
        helper.make_node("Add", ["blurred", "shift"], ["restored"]),
        *_routing_nodes(),
        helper.make_node("Identity", ["expert"], ["gate"]),
    ]
    outputs = _images(made, "restored") + _vectors(posterior=sum(CLUSTERS), gate=sum(EXPERTS))
    constants = _routing_constants() + _constants(
        kernel=blur_kernel(), all_axes=np.array([1, 2, 3], np.int64), half=np.array(0.5, np.float32)
    )
    return _save(path, helper.make_graph(nodes, "whole", _images(made, "image"), outputs, constants), made)


def save_tile(path: Path, model_spec: ModelSpec | None = None) -> Path:
    """The same with the shift taken from the given routing: mean(posterior) + mean(gate)."""
    made = model_spec or spec("tile")
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["blurred"], pads=[2, 2, 2, 2]),
        helper.make_node("Concat", ["posterior", "gate"], ["routing"], axis=1),
        helper.make_node("ReduceMean", ["routing", "one"], ["level"], keepdims=1),
        helper.make_node("Reshape", ["level", "shape"], ["level4"]),
        helper.make_node("Add", ["blurred", "level4"], ["restored"]),
    ]
    inputs = _images(made, "image") + _vectors(posterior=sum(CLUSTERS), gate=sum(EXPERTS))
    constants = _constants(kernel=blur_kernel(), one=np.array([1], np.int64), shape=np.array([-1, 1, 1, 1], np.int64))
    return _save(path, helper.make_graph(nodes, "tile", inputs, _images(made, "restored"), constants), made)


def save_router(path: Path, model_spec: ModelSpec | None = None) -> Path:
    made = model_spec or spec("router")
    nodes = [*_routing_nodes(), helper.make_node("Identity", ["expert"], ["expert_probability"])]
    outputs = _vectors(posterior=sum(CLUSTERS), expert_probability=sum(EXPERTS))
    graph = helper.make_graph(nodes, "router", _images(made, "image"), outputs, _routing_constants())
    return _save(path, graph, made)


def save_bundle(folder: Path, tile: int = 64, halo: int = 8, static: bool = True, top_k: int = 1) -> Path:
    """model.onnx with its two sidecars; returns the path of model.onnx."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tile(folder / "model.tile.onnx", spec("tile", tile, halo, static, top_k))
    save_router(folder / "model.router.onnx", spec("router", tile, halo, static, top_k))
    return save_whole(folder / "model.onnx", spec("whole", tile, halo, static, top_k))


def save_enlarging(path: Path, scale: int = 2, channels: int = 3, static: bool = False) -> Path:
    """A whole graph without routing: a 5x5 blur, every pixel then ``scale`` x ``scale`` times; local as ``save_whole``
    is not."""
    made = ModelSpec(
        name="enlarging", size=SizeRequirements(8, 8, 64 if static else 0), tile_px=64, halo_px=8, channels=channels,
        scale=scale,
    )  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["blurred"], pads=[2, 2, 2, 2]),
        helper.make_node("Resize", ["blurred", "", "scales"], ["restored"], mode="nearest", nearest_mode="floor",
                         coordinate_transformation_mode="asymmetric"),
    ]  # fmt: skip
    large: list[int | str] = [64 * scale if static else "large_height", 64 * scale if static else "large_width"]
    output = helper.make_tensor_value_info("restored", TensorProto.FLOAT, ["batch", channels, *large])
    kernel = blur_kernel()[:channels, :channels]
    constants = _constants(kernel=kernel, scales=np.array([1, 1, scale, scale], np.float32))
    return _save(path, helper.make_graph(nodes, "enlarging", _images(made, "image"), [output], constants), made)
