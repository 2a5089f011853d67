"""OpenCV's DNN module (5.0, ``cv2.dnn``): one ONNX file of one size, for ``readNetFromONNX`` with ENGINE_NEW.

OpenCV answers with wrong numbers, and without an error, where it misreads a graph: that it opens a file says nothing.
The lint therefore runs the graph in OpenCV and holds the answer against ONNX Runtime's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

import onnx
from onnx import ModelProto, helper

from clusir.errors import BackendError, ExportError
from clusir.export.formats.hosts.base import Array, HostForm, OnnxHost, Source, need
from clusir.export.formats.hosts.child import Refused, answers, first_fault, trial_pictures
from clusir.export.formats.hosts.form import host_form
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.index import sort_nodes
from clusir.export.passes.simplify import SimplifyGraph

__all__ = ["OpenCV"]

_LIMITS = {"Tanh": (-20.0, 20.0), "Softplus": (-80.0, 80.0)}  # of the inputs

_CHILD = """
import sys, cv2, numpy
folder, count = sys.argv[1], int(sys.argv[2])
net = cv2.dnn.readNetFromONNX(folder + "/model.onnx", cv2.dnn.ENGINE_NEW)
for index in range(count):
    net.setInput(numpy.load(f"{folder}/{index}.npy"), "input")
    numpy.save(f"{folder}/{index}.out.npy", net.forward())
"""


class OpenCV(OnnxHost):
    """``model.onnx``: input ``input``, output ``output``, 1x3xTxT, constants folded."""

    name: ClassVar[str] = "opencv"

    def requires(self) -> None:
        super().requires()
        need("cv2", self.name)
        import cv2

        if int(cv2.__version__.split(".")[0]) < 5:
            raise BackendError(
                f'--target opencv: OpenCV {cv2.__version__} is here, 5 is needed; pip install "clusir[hosts]"'
            )

    def form(self, source: Source) -> HostForm:
        # One size: of graphs whose size is open, OpenCV does not follow what is computed from shapes.
        return HostForm("input", "output", side_px=source.spec.size.static_px or source.spec.tile_px)

    def lint(self, source: Source) -> list[str]:
        form = self.form(source)
        content = self._simple(host_form(source, form)).SerializeToString()
        images = trial_pictures(form.side_px, source.spec.channels)
        try:
            found = answers(sys.executable, _CHILD, {"model.onnx": content}, images)
        except Refused as reason:
            return [f"OpenCV refuses the graph: {reason}"]
        fault = first_fault(source, form, images, found, self.bound)
        return [f"OpenCV opens the graph and answers wrong: {fault}"] if fault else []

    def write(self, source: Source, model: ModelProto, folder: Path) -> None:
        onnx.save(self._simple(model), str(folder / "model.onnx"))

    def run(self, folder: Path, image: Array) -> Array:
        return self.runs(folder, [image])[0]

    def runs(self, folder: Path, images: list[Array]) -> list[Array]:
        try:
            return self.answers(folder, images)
        except Refused as reason:
            raise ExportError(f"OpenCV refuses {folder / 'model.onnx'}: {reason}") from reason

    def answers(self, folder: Path, images: list[Array]) -> list[Array]:
        """What OpenCV makes of each picture with the file in a folder. Raises Refused."""
        return answers(sys.executable, _CHILD, {"model.onnx": (folder / "model.onnx").read_bytes()}, images)

    @staticmethod
    def _simple(model: ModelProto) -> ModelProto:
        return within_reach(SimplifyGraph().apply(model).model)


def within_reach(model: ModelProto) -> ModelProto:
    """The same function without the values at which OpenCV 5.0 overflows: its Tanh is NaN above 44.3 (it computes
    exp(2 x)), its Softplus infinite above 88.7. Far below either, tanh is 1 and softplus(x) is x in float32."""
    edit = GraphEdit(model)
    for node in [n for n in edit.model.graph.node if n.op_type in _LIMITS]:
        lowest, highest = (edit.constant(value, "opencv/limit") for value in _LIMITS[node.op_type])
        given = node.input[0]
        node.input[0] = edit.node("Clip", [given, lowest, highest], f"{node.output[0]}/within")
        if node.op_type == "Softplus":
            answer = node.output[0]
            node.output[0] = edit.fresh(f"{answer}/before")
            edit.model.graph.node.append(helper.make_node("Max", [given, node.output[0]], [answer], name=answer))
    ordered = sort_nodes(edit.model.graph.node)
    del edit.model.graph.node[:]
    edit.model.graph.node.extend(ordered)
    return edit.model
