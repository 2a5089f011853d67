"""LiteRT (PyPI ``ai-edge-litert``): ``model.tflite`` for phones, run by XNNPACK.

onnx2tf and litert-torch lose their way in the network (axes of matrices taken for channels; no real FFT). The graph is
therefore written operator by operator with TensorFlow, whose own converter makes the file (``litert_child.py``, in the
environment that has TensorFlow). Maps have their channels last, as Android's bitmaps: input and output are 1xTxTx3.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from clusir.export.formats.hosts.child import Refused
from clusir.export.formats.hosts.converted import Converted
from clusir.export.graph.index import inferred

__all__ = ["Litert"]

_CONVERTER = (Path(__file__).parent / "litert_child.py").read_text(encoding="utf-8")

_RUNNER = """
import sys
import numpy
from ai_edge_litert.interpreter import Interpreter
folder, count = sys.argv[1], int(sys.argv[2])
interpreter = Interpreter(model_path=folder + "/model.tflite", num_threads=1)
interpreter.allocate_tensors()
(given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
for index in range(count):
    image = numpy.load(f"{folder}/{index}.npy")
    interpreter.set_tensor(given["index"], numpy.ascontiguousarray(image.transpose(0, 2, 3, 1)))
    interpreter.invoke()
    out = interpreter.get_tensor(answer["index"])
    numpy.save(f"{folder}/{index}.out.npy", numpy.ascontiguousarray(out.transpose(0, 3, 1, 2)))
"""


class Litert(Converted):
    """``model.tflite``."""

    name: ClassVar[str] = "litert"
    module: ClassVar[str] = "ai_edge_litert"
    variable: ClassVar[str] = "CLUSIR_LITERT"
    install: ClassVar[str] = "tensorflow-cpu ai-edge-litert"
    files: ClassVar[tuple[str, ...]] = ("model.tflite",)
    converter: ClassVar[str] = _CONVERTER
    runner: ClassVar[str] = _RUNNER

    def hand_over(self, model: ModelProto, folder: Path) -> None:
        """``plan.json`` and ``weights.npz``, so that no onnx has to be where TensorFlow is. Raises Refused."""
        graph = model.graph
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        shapes: dict[str, list[int]] = {}
        notes = inferred(model)
        for value in (*notes.value_info, *graph.output):
            shape = value.type.tensor_type.shape
            shapes[value.name] = [dim.dim_value for dim in shape.dim]
        nodes = []
        for node in graph.node:
            if unknown := [name for name in node.output if name and math.prod(shapes.get(name, [0])) == 0]:
                raise Refused(f"the shape of {unknown[0]} is not known")
            attributes = {a.name: _plain(helper.get_attribute_value(a)) for a in node.attribute}
            nodes.append({
                "op": node.op_type, "inputs": list(node.input), "outputs": list(node.output),
                "shapes": [shapes[name] for name in node.output if name], "attributes": attributes,
            })  # fmt: skip
        height, width = (dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim[2:])
        plan = {"input": graph.input[0].name, "output": graph.output[0].name, "size": [height, width], "nodes": nodes}
        (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        np.savez(folder / "weights.npz", allow_pickle=False, **weights)


def _plain(value: Any) -> Any:
    """An attribute as JSON has it."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, int | float | str):
        return value
    if isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        return value
    raise Refused("a node has an attribute that is a tensor or a graph")
