"""Model servers: the model repository that Triton Inference Server reads, and OpenVINO Model Server too.

``restorer/config.pbtxt`` and ``restorer/1/model.onnx``. The configuration is held against Triton's own protobuf where
tritonclient[grpc] is installed; no server is on this machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import onnx
from onnx import ModelProto

from clusir.errors import ExportError
from clusir.export.formats.hosts.base import Array, HostForm, NotRunHere, OnnxHost, Source

__all__ = ["Triton"]

NAME = "restorer"


class Triton(OnnxHost):
    """A folder for ``tritonserver --model-repository`` or ``ovms --model_path``."""

    name: ClassVar[str] = "triton"

    def form(self, source: Source) -> HostForm:
        side = source.spec.size.static_px
        return HostForm("image", "restored", batch="batch", side_px=side, any_size=not side)

    def write(self, source: Source, model: ModelProto, folder: Path) -> None:
        path = self.model(folder)
        path.parent.mkdir(parents=True)
        onnx.save(model, str(path))
        (folder / NAME / "config.pbtxt").write_text(configuration(model), encoding="utf-8")

    def model(self, folder: Path) -> Path:
        return folder / NAME / "1" / "model.onnx"

    def check(self, folder: Path) -> None:
        try:
            from google.protobuf import text_format
            from tritonclient.grpc import model_config_pb2
        except (ImportError, RuntimeError):  # the second is what tritonclient raises without its extra "grpc"
            return
        text = (folder / NAME / "config.pbtxt").read_text(encoding="utf-8")
        try:
            text_format.Parse(text, model_config_pb2.ModelConfig())
        except text_format.ParseError as error:
            raise ExportError(f"{folder / NAME / 'config.pbtxt'}: Triton refuses it ({error})") from error

    def run(self, folder: Path, image: Array) -> Array:
        raise NotRunHere("no Triton Inference Server and no OpenVINO Model Server")


def configuration(model: ModelProto) -> str:
    """``config.pbtxt`` of a graph in the host form: an open first axis is the server's batch, other open axes -1."""
    (given,), (answer,) = model.graph.input, model.graph.output
    shapes = [[dim.dim_value or -1 for dim in v.type.tensor_type.shape.dim] for v in (given, answer)]
    batched = shapes[0][0] == -1
    dims = [", ".join(str(length) for length in (shape[1:] if batched else shape)) for shape in shapes]
    return (
        f'name: "{NAME}"\nplatform: "onnxruntime_onnx"\nmax_batch_size: {8 if batched else 0}\n'
        f'input [{{ name: "{given.name}" data_type: TYPE_FP32 dims: [ {dims[0]} ] }}]\n'
        f'output [{{ name: "{answer.name}" data_type: TYPE_FP32 dims: [ {dims[1]} ] }}]\n'
    )
