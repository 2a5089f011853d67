"""LiteRT (PyPI ``ai-edge-litert``): ``model.tflite`` for phones, run by XNNPACK.

onnx2tf and litert-torch lose their way in the network (axes of matrices taken for channels; no real FFT). The graph is
therefore written operator by operator with TensorFlow, whose own converter makes the file (``litert_child.py``, in the
environment that has TensorFlow). Maps have their channels last, as Android's bitmaps: input and output are 1xTxTx3.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from onnx import ModelProto

from clusir.export.formats.hosts.child import call
from clusir.export.formats.hosts.converted import Converted
from clusir.export.formats.hosts.integers import IntegerGraph
from clusir.export.formats.hosts.plan import write_plan

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
    """``model.tflite``, ``model_fp16.tflite`` with weights in float16, and ``model_int8.tflite``: dense convolutions in
    integers, the rest in float32."""

    name: ClassVar[str] = "litert"
    module: ClassVar[str] = "ai_edge_litert"
    variable: ClassVar[str] = "CLUSIR_LITERT"
    install: ClassVar[str] = "tensorflow-cpu ai-edge-litert"
    files: ClassVar[tuple[str, ...]] = ("model.tflite",)
    half: ClassVar[tuple[tuple[str, str], ...]] = (("model_fp16.tflite", "model.tflite"),)
    integers: ClassVar[tuple[tuple[str, str], ...]] = (("model_int8.tflite", "model.tflite"),)
    no_int8: ClassVar[str] = ""
    converter: ClassVar[str] = _CONVERTER
    runner: ClassVar[str] = _RUNNER

    def hand_over(self, model: ModelProto, folder: Path) -> None:
        """The graph as its writer reads it. Raises Refused."""
        write_plan(model, folder)

    def convert_int8(self, graph: IntegerGraph, folder: Path) -> None:
        write_plan(graph.model, folder, graph.steps)
        call(self.python, self.converter, folder, "int8")
