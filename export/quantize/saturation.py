"""The proof that no CPU without VNNI saturates: bounds on the sums that its u8 x s8 kernels keep in 16 bits.

AVX2's ``vpmaddubsw`` (and SSSE3's) multiplies unsigned by signed bytes and adds two products into a signed 16-bit
number that stops at its limits. Whatever the picture, an activation is at most 255, so two weights a and b of an output
channel give at most 255 * (max(a, 0) + max(b, 0)) and at least 255 * (min(a, 0) + min(b, 0)).
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from clusir.errors import ExportError

__all__ = ["check_pair_sums", "largest_pair_sums"]

_LARGEST_ACTIVATION = 255
_LIMIT = 2**15 - 1


def largest_pair_sums(model: ModelProto) -> dict[str, int]:
    """Layer (its int8 weight) to the largest absolute sum of two products that any input can cause in it.

    Which two weights of an output channel meet depends on the kernel, so the two largest of one sign are taken.
    """
    integers = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.INT8}
    weights = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    found = {}
    for node in model.graph.node:
        name = weights.get(node.input[1], "") if node.op_type in ("Conv", "ConvTranspose") else ""
        if name not in integers:
            continue
        value = numpy_helper.to_array(integers[name]).astype(np.int64)
        value = value if node.op_type == "Conv" else value.swapaxes(0, 1)
        rows = np.pad(value.reshape(len(value), -1), ((0, 0), (2, 2)))
        ends = np.sort(rows, axis=1)[:, [0, 1, -2, -1]]
        largest = max(int(-ends[:, :2].sum(axis=1).min()), int(ends[:, 2:].sum(axis=1).max()))
        found[name] = _LARGEST_ACTIVATION * largest
    return found


def check_pair_sums(model: ModelProto) -> None:
    """Raises ExportError naming the first layer whose 16-bit sums could saturate."""
    for name, bound in largest_pair_sums(model).items():
        if bound > _LIMIT:
            raise ExportError(
                f"layer {name}: two products can sum to {bound}, more than the {_LIMIT} that CPUs without VNNI hold; "
                "quantise with weights of 7 bits"
            )
