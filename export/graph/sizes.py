"""The shapes of a graph of open height and width at one size: what ONNX Runtime makes of it when it opens it.

ONNX's own inference stops where a size is divided, or a range is made of it.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx

from clusir.errors import ExportError, first_line

__all__ = ["Sized", "has_open_sides", "runtime_shapes"]


class Sized(NamedTuple):
    """The shape of a value, and whether it is float32."""

    shape: tuple[int, ...]
    floats: bool


def has_open_sides(model: onnx.ModelProto) -> bool:
    """Whether an input leaves its height and width open."""
    given = {tensor.name for tensor in model.graph.initializer}
    shapes = [i.type.tensor_type.shape.dim for i in model.graph.input if i.name not in given]
    return any(len(dims) == 4 and all(not dim.HasField("dim_value") for dim in list(dims)[2:]) for dims in shapes)


def runtime_shapes(model: onnx.ModelProto, batch: int, sides: tuple[int, int]) -> dict[str, Sized]:
    """By name, the values whose shape is known once open axes of the inputs have the lengths ``batch`` (axis 0) and
    ``sides`` (the last two of four). Nothing is computed but shapes. Raises ExportError where the graph does not open
    at that size."""
    import onnxruntime

    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    graph = sized.graph
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if dim.HasField("dim_value"):
                continue
            if axis and not (len(dims) == 4 and axis >= 2):
                raise ExportError(f"input {value.name} leaves axis {axis} open, which is no height or width")
            dim.dim_value = sides[axis - 2] if axis else batch
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    del graph.value_info[:]
    known = {value.name for value in graph.output}
    made = [name for node in graph.node for name in node.output if name and name not in known]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    # Shapes that are computed from shapes are folded to numbers; nothing else is changed.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        session = onnxruntime.InferenceSession(sized.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own types, which are not public
        raise ExportError(f"the graph does not open at {sides[0]}x{sides[1]}: {first_line(error)}") from error
    values = [*session.get_inputs(), *session.get_outputs()]
    whole = [value for value in values if all(isinstance(length, int) for length in value.shape)]
    found = {value.name: Sized(tuple(value.shape), value.type == "tensor(float)") for value in whole}
    kept = onnx.TensorProto.FLOAT
    return found | {t.name: Sized(tuple(t.dims), t.data_type == kept) for t in model.graph.initializer}
