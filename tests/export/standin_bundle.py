"""A bundle of the stand-in's graphs, in seconds: its own unspoilt files say what PyTorch would say of a network."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from clusir.export.formats import extras
from clusir.export.validate import files, parity
from clusir.runtimes.runners.metadata import read_metadata
from clusir.spec import ModelSpec, SizeRequirements

GOLDEN = Path(__file__).parents[1] / "golden"
GRAPHS = {"whole": "standin.onnx", "tile": "standin.tile.onnx", "router": "standin.router.onnx"}
NAMES = {"whole": "model.onnx", "tile": "model.tile.onnx", "router": "model.router.onnx"}


@functools.cache
def session(graph: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # two would spin while they wait
    return onnxruntime.InferenceSession(GOLDEN / GRAPHS[graph], options, providers=["CPUExecutionProvider"])


def answers(graph: str, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    run = session(graph)
    names = [port.name for port in run.get_inputs()]
    return dict(zip([o.name for o in run.get_outputs()], run.run(None, {n: feeds[n] for n in names}), strict=True))


def reference(_: Any, feeds: Mapping[str, np.ndarray], graph: str = "whole") -> dict[str, np.ndarray]:
    """In the place of ``clusir.export.validate.parity.reference_outputs``."""
    if graph != "whole":
        return answers(graph, feeds)
    each = [answers("router", {"image": picture[None]}) for picture in feeds["image"]]
    more = {name: np.concatenate([one[name] for one in each]) for name in ("expert_probability", "statistics")}
    return answers("whole", feeds) | more


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """Let the reference be the stand-in's own files, on three kinds of degradation."""
    for module in (files, extras):
        patch.setattr(module, "reference_outputs", reference)
    patch.setattr(files, "uniform_routing", lambda spec, model: parity.uniform_routing(spec))
    patch.setattr(files, "KINDS", ("noise", "haze"))


def spec_of(path: Path) -> ModelSpec:
    return ModelSpec.from_metadata(read_metadata(path))


def seal(folder: Path) -> None:
    """A manifest that fits what is there."""
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"]
    extras.write_manifest(folder, spec_of(GOLDEN / GRAPHS["whole"]), sorted(names))


def write_bundle(folder: Path, *, formats: bool) -> Path:
    """The three graphs, a variant that calls itself fp16, golden cases; with ``formats`` openvino/ and mobile/ too."""
    folder.mkdir(parents=True, exist_ok=True)
    for graph, name in NAMES.items():
        shutil.copy(GOLDEN / GRAPHS[graph], folder / name)
    half = onnx.load(folder / "model.onnx")
    helper.set_model_props(half, replace(spec_of(folder / "model.onnx"), precision="fp16").to_metadata())
    onnx.save(half, folder / "model.fp16.onnx")
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        extras.write_golden_cases(None, folder, spec_of(folder / "model.onnx"))  # type: ignore[arg-type]
    if formats:
        from clusir.export.formats.openvino import write_openvino
        from clusir.export.formats.ort_mobile import write_ort_mobile

        paths = [folder / name for name in NAMES.values()]
        write_openvino(paths, folder / "openvino")
        write_ort_mobile(paths, folder / "mobile")
    seal(folder)
    return folder


@dataclass(frozen=True)
class Edit:
    """Changes to one ONNX file, in place."""

    path: Path

    def change(self, edit: Callable[[ModelProto], None]) -> None:
        model = onnx.load(self.path)
        edit(model)
        onnx.save(model, self.path)

    def output(self, name: str, kind: str, value: float) -> None:
        """``name`` becomes ``kind``(name, value), for example Mul and 0.1."""

        def edit(model: ModelProto) -> None:
            for node in model.graph.node:
                node.input[:] = [f"{name}_before" if n == name else n for n in node.input]
                node.output[:] = [f"{name}_before" if n == name else n for n in node.output]
            model.graph.initializer.append(numpy_helper.from_array(np.float32(value), f"{name}_value"))
            model.graph.node.append(helper.make_node(kind, [f"{name}_before", f"{name}_value"], [name]))

        self.change(edit)

    def rolled(self, name: str) -> None:
        """The values of ``name`` moved by one column: other experts are chosen."""

        def edit(model: ModelProto) -> None:
            width = next(o for o in model.graph.output if o.name == name).type.tensor_type.shape.dim[1].dim_value
            for node in model.graph.node:
                node.output[:] = [f"{name}_before" if n == name else n for n in node.output]
            order = np.roll(np.arange(width), 1).astype(np.int64)
            model.graph.initializer.append(numpy_helper.from_array(order, f"{name}_order"))
            model.graph.node.append(helper.make_node("Gather", [f"{name}_before", f"{name}_order"], [name], axis=1))

        self.change(edit)

    def without(self, *names: str) -> None:
        """The outputs ``names`` are no outputs any more."""

        def edit(model: ModelProto) -> None:
            kept = [o for o in model.graph.output if o.name not in names]
            del model.graph.output[:]
            model.graph.output.extend(kept)

        self.change(edit)

    def spec(self, **fields: Any) -> None:
        """The file says something else of itself."""
        described = replace(spec_of(self.path), **fields)
        self.change(lambda model: helper.set_model_props(model, described.to_metadata()))


def constant_nan(path: Path) -> None:
    """Replace a file by one that gives NaN for every output, of the right shapes."""

    def edit(model: ModelProto) -> None:
        for output in list(model.graph.output):
            name = output.name
            for node in model.graph.node:
                node.output[:] = [f"{name}_before" if n == name else n for n in node.output]
                node.input[:] = [f"{name}_before" if n == name else n for n in node.input]
            model.graph.initializer.append(numpy_helper.from_array(np.float32("nan"), f"{name}_nan"))
            model.graph.node.append(helper.make_node("Add", [f"{name}_before", f"{name}_nan"], [name]))

    Edit(path).change(edit)


def write_dynamic(path: Path, axis: int, largest: int) -> None:
    """restored = image, except where ``axis`` is longer than ``largest``."""
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"], start=axis, end=axis + 1),
        helper.make_node("Greater", ["shape", "largest"], ["longer"]),
        helper.make_node("Cast", ["longer"], ["more"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["image", "more"], ["restored"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 3, "h", "w"]) for n in ("image", "restored")]
    constants = [numpy_helper.from_array(np.array([largest]), "largest")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, ModelSpec(size=SizeRequirements(16, 16)).to_metadata())
    onnx.save(model, path)
