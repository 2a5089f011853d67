"""SplitConvolution: a convolution whose output is only split into channels is several convolutions.

The split copies the whole map and leaves the blocked layout; the parts' weights cost nothing to cut.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from clusir.export.base import GraphPass, PassResult
from clusir.export.graph_edit import GraphEdit, plain_convolution
from clusir.export.graph_probe import LinearGraph

__all__ = ["SplitConvolution"]


class SplitConvolution(GraphPass):
    """Conv -> Split over channels, where convolutions read a part, becomes one Conv for each part."""

    name = "SplitConvolution"

    def apply(self, model: onnx.ModelProto) -> PassResult[onnx.ModelProto]:
        edit = GraphEdit(model)
        notes: list[str] = []
        for first in [n.output[0] for n in edit.model.graph.node if n.op_type == "Split"]:
            linear = edit.linear()
            node = linear.producer[first]
            conv = linear.producer.get(node.input[0])
            if conv is None or not self._fits(linear, node, conv):
                continue
            weight = edit.array(conv.input[1])
            bias = edit.array(conv.input[2]) if len(conv.input) > 2 and conv.input[2] else None
            kept = {a.name: helper.get_attribute_value(a) for a in conv.attribute if a.name in ("pads", "strides")}
            source, parts = conv.input[0], list(node.output)
            ends = np.cumsum([linear.shapes[part][1] for part in parts])[:-1]
            biases = [None] * len(parts) if bias is None else np.split(bias, ends)
            for part, mine, shift in zip(parts, np.split(weight, ends), biases, strict=True):
                inputs = [source, edit.constant(mine, f"{part}/weight")]
                if shift is not None:
                    inputs.append(edit.constant(shift, f"{part}/bias"))
                edit.redirect(part, edit.node("Conv", inputs, f"{part}/conv", **kept))
            edit.drop_unused()
            notes.append(f"{len(parts)} convolutions instead of a split of {conv.output[0]}")
        if not notes:
            return PassResult(model, False, ("no convolution is split for other convolutions",))
        return PassResult(edit.model, True, tuple(notes))

    @staticmethod
    def _fits(linear: LinearGraph, split: onnx.NodeProto, conv: onnx.NodeProto) -> bool:
        """Only the split reads the convolution, over channels, and other convolutions read the parts."""
        axis = next((a.i for a in split.attribute if a.name == "axis"), 0)
        readers = [u.op_type for part in split.output for u in linear.users.get(part, [])]
        return (
            axis == 1
            and plain_convolution(conv)
            and conv.input[1] in linear.constants
            and len(linear.users[conv.output[0]]) == 1
            and all(linear.shape(part) is not None and part not in linear.outputs for part in split.output)
            and readers.count("Conv") == len(readers)
        )
