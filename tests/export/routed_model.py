"""A routed restorer of a few kilobytes whose weights are named as the exporter names them, and photos to draw from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clusir.calibration.balance import BalanceConfig, Draw
from clusir.calibration.sources import SyntheticSource
from clusir.export.quantize.data import Reference, calibrate, draw_calibration
from clusir.export.quantize.ranges import Calibration
from clusir.spec import ModelSpec, SizeRequirements

SIZE, WIDTH = 32, 8
SPEC = ModelSpec(
    name="routed",
    checkpoint_sha256="0" * 64,
    size=SizeRequirements(static_px=SIZE),
    tile_px=SIZE,
    halo_px=4,
    clusters=(2, 2),
    experts=(2, 2),
)


class Builder:
    """Nodes and constants of one graph; methods return the name of what they add."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"node_{name}", **attributes))
        return name

    def conv(self, name: str, x: str, out: int, into: int, scale: float, weight: np.ndarray | None = None) -> str:
        if weight is None:
            weight = self.rng.standard_normal((out, into, 3, 3)) * scale
        return self.op("Conv", x, self.constant(f"{name}.weight", weight.astype(np.float32)), pads=[1] * 4)

    def routing(self, level: int) -> tuple[str, str]:
        """Posterior and gate of one level from the picture: level 0 asks for high frequencies, level 1 for light."""
        kernel = np.zeros((1, 3, 3, 3))
        kernel[0, :, 1, 1] = 1.0 / 3
        if level == 0:
            kernel[0, :, :, 1] = np.array([-1, 2, -1]) / 3
        features = self.op("Relu", self.conv(f"encoder.{level}.chooser.describe", "image", 1, 3, 0, kernel))
        pooled = self.op("Flatten", self.op("GlobalAveragePool", features))
        slope, threshold = ((400.0, 0.02), (60.0, 0.45))[level]
        weight = self.constant(f"slope_{level}", np.array([[-slope, slope]], np.float32))
        bias = self.constant(f"bias_{level}", np.array([slope * threshold, -slope * threshold], np.float32))
        posterior = self.op("Softmax", self.op("Gemm", pooled, weight, bias), axis=1)
        top = self.op("ReduceMax", posterior, self.constant(f"axis_{level}", np.array([1])), keepdims=1)
        chosen = self.op("Cast", self.op("GreaterOrEqual", posterior, top), to=TensorProto.FLOAT)
        return posterior, self.op("Mul", posterior, chosen)

    def level(self, level: int, x: str, gate: str) -> str:
        name = f"encoder.{level}"
        hidden = self.op("Relu", self.conv(f"{name}.block.expand", x, WIDTH, WIDTH, 0.15))
        x = self.op("Add", x, self.conv(f"{name}.block.project", hidden, WIDTH, WIDTH, 0.1))
        shape = self.constant(f"shape_{level}", np.array([0, 1, 1, 1]))
        for expert in range(2):
            inside = f"{name}.experts.experts.{expert}"
            hidden = self.op("Relu", self.conv(f"{inside}.enter", x, WIDTH, WIDTH, 0.15))
            result = self.conv(f"{inside}.leave", hidden, WIDTH, WIDTH, 0.1)
            ends = [
                self.constant(f"at_{level}_{expert}_{i}", np.array([v])) for i, v in enumerate((expert, expert + 1, 1))
            ]
            weight = self.op("Reshape", self.op("Slice", gate, *ends), shape)
            x = self.op("Add", x, self.op("Mul", result, weight))
        return x

    def restore(self, gates: tuple[str, str]) -> None:
        x = self.conv("stem", "image", WIDTH, 3, 0.3)
        for level, gate in enumerate(gates):
            x = self.level(level, x, gate)
        self.op("Add", "image", self.conv("head", x, 3, WIDTH, 0.02), output="restored")

    def save(self, path: Path, spec: ModelSpec, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        shapes = {name: ["batch", 4] for name in ("posterior", "gate")}
        shapes |= {name: ["batch", 3, SIZE, SIZE] for name in ("image", "restored")}
        ports = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, shapes[n]) for n in g] for g in (inputs, outputs)]
        proto = helper.make_graph(self.nodes, spec.graph, *ports, self.constants)
        model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        helper.set_model_props(model, spec.to_metadata())
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)


def write_routed(folder: Path) -> None:
    whole = Builder(seed=3)
    levels = [whole.routing(level) for level in range(2)]
    whole.op("Concat", *(posterior for posterior, _ in levels), output="posterior", axis=1)
    whole.op("Concat", *(gate for _, gate in levels), output="gate", axis=1)
    whole.restore((levels[0][1], levels[1][1]))
    whole.save(folder / "model.onnx", SPEC, ("image",), ("restored", "posterior", "gate"))
    tile = Builder(seed=3)
    ends = tile.constant("two", np.array([2], np.int64))
    gates = tile.op("Slice", "gate", tile.constant("zero", np.array([0])), ends, tile.constant("one", np.array([1])))
    second = tile.op("Slice", "gate", ends, tile.constant("four", np.array([4])), "one")
    tile.restore((gates, second))
    tile.save(folder / "model.tile.onnx", replace(SPEC, graph="tile"), ("image", "posterior", "gate"), ("restored",))


@dataclass
class Routed:
    """The two graphs on disk, a source of crops, and a balanced draw from it."""

    folder: Path
    source: SyntheticSource
    photos: Path
    reference: Reference = field(init=False)
    draw: Draw = field(init=False)

    def __post_init__(self) -> None:
        self.reference = Reference(self.whole)
        self.draw, self.manifest = draw_calibration(self.source, self.reference, BalanceConfig(size=16, pool=48))

    @property
    def whole(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def tile(self) -> Path:
        return self.folder / "model.tile.onnx"

    def calibration(self, graph: Path | None = None) -> Calibration:
        return calibrate(graph or self.whole, self.draw, self.reference)
