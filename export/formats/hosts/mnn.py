"""MNN (PyPI ``MNN``): ``model.mnn`` for phones.

MNN computes convolutions by Winograd's tiles of many pixels, which cost three digits of float32: a 3x3 convolution of
32 channels differs by 6e-4 of its largest value. The hint WINOGRAD_MEMORY_LEVEL 0 keeps it to small tiles; the
comparison is made with it, and with it the file has to be opened (docs/hosts.md). What its converter takes for a GELU
it approximates, to 2e-4 of the largest value: the graph is written so that it takes nothing for one.

Its command ``mnnconvert`` installs a package and sends what was converted to a server; the function behind it does not,
and is what is called here.
"""

from __future__ import annotations

from typing import ClassVar

from onnx import ModelProto, helper

from clusir.export.formats.hosts.converted import Converted
from clusir.export.graph.edit import GraphEdit
from clusir.export.graph.index import sort_nodes

__all__ = ["Mnn"]

_CONVERTER = """
import os, sys
folder = sys.argv[1]
import _tools
for name, more in (("model.mnn", []), ("model_fp16.mnn", ["--fp16"])):
    _tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--modelFile", folder + "/model.onnx",
                       "--MNNModel", folder + "/" + name, "--bizCode", "clusir", *more])
"""

# The third hint of MNN's HintMode, by number: its Python gives it no name.
_RUNNER = """
import sys
import numpy
from MNN import expr, nn
folder, count = sys.argv[1], int(sys.argv[2])
manager = nn.create_runtime_manager(({"backend": "CPU", "precision": "high", "numThread": 1},))
manager.set_hint(3, 0)  # WINOGRAD_MEMORY_LEVEL
net = nn.load_module_from_file(folder + "/model.mnn", ["input"], ["output"], runtime_manager=manager)
for index in range(count):
    image = numpy.load(f"{folder}/{index}.npy")
    answer = net.forward([expr.const(image, list(image.shape), expr.NCHW)])[0]
    numpy.save(f"{folder}/{index}.out.npy", expr.convert(answer, expr.NCHW).read().copy())
"""


class Mnn(Converted):
    """``model.mnn``, and ``model_fp16.mnn`` with the weights of convolutions in float16."""

    name: ClassVar[str] = "mnn"
    module: ClassVar[str] = "MNN"
    variable: ClassVar[str] = "CLUSIR_MNN"
    install: ClassVar[str] = "MNN numpy"
    files: ClassVar[tuple[str, ...]] = ("model.mnn",)
    half: ClassVar[tuple[tuple[str, str], ...]] = (("model_fp16.mnn", "model.mnn"),)
    no_int8: ClassVar[str] = "MNN 3.6.1 gets the axes of a graph with QuantizeLinear wrong and ends with an error"
    converter: ClassVar[str] = _CONVERTER
    runner: ClassVar[str] = _RUNNER

    def rewrite(self, model: ModelProto) -> ModelProto:
        return without_gelu(super().rewrite(model))


def without_gelu(model: ModelProto) -> ModelProto:
    """The same numbers with erf(x) as -erf(-x)."""
    edit = GraphEdit(model)
    for node in [node for node in edit.model.graph.node if node.op_type == "Erf"]:
        answer = node.output[0]
        node.input[0] = edit.node("Neg", [node.input[0]], f"{answer}/turned")
        node.output[0] = edit.fresh(f"{answer}/less")
        edit.model.graph.node.append(helper.make_node("Neg", [node.output[0]], [answer], name=answer))
    ordered = sort_nodes(edit.model.graph.node)
    del edit.model.graph.node[:]
    edit.model.graph.node.extend(ordered)
    return edit.model
