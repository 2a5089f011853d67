"""Outputs that a float sum reads get a scale per channel: the convolution computes y / s in integers, s joins in float.

A quantised map has one scale, and a loud channel sets it for the quiet ones. Dividing output channel c of the weights
and of the bias by s_c costs nothing (weights have a scale per output channel anyway), and one multiplication puts it
back before the sum. Left out where a ReLU or an integer layer reads the map: there equalisation does the same for free.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from clusir.export.graph.session import Probe
from clusir.export.quantize.layers import Graph, Layer, groups_of
from clusir.export.quantize.ranges import HISTOGRAM_BINS, Calibration, Owners, clip_least_error

__all__ = ["Scales", "channel_scales", "count_channels", "even_scale", "output_scales", "scale_outputs"]

# As in equalisation: a channel that is nearly silent on the calibration crops must not be blown up.
_LARGEST_SPREAD = 100.0

Scales = Mapping[str, NDArray[np.float64]]


def output_scales(graph: Graph, layers: Collection[Layer], calibration: Calibration, owners: Owners) -> Scales:
    """Layer name to the scale of each output channel (see :func:`channel_scales`), for the ``layers`` that can take
    one."""
    nodes = {layer.name: node for layer in layers if (node := _scalable(graph, layer, layers)) is not None}
    found = channel_scales(graph, {node.output[0] for node in nodes.values()}, calibration, owners)
    return {name: found[node.output[0]] for name, node in nodes.items() if node.output[0] in found}


def channel_scales(
    graph: Graph, names: Collection[str], calibration: Calibration, owners: Owners
) -> dict[str, NDArray[np.float64]]:
    """Tensor name to the scale of each channel, of geometric mean 1, for maps BxCxHxW of ``graph``.

    Each is the larger end of the channel's own best range (see ``clip_least_error``) on the calibration crops. Maps
    that are not finite, and those whose expert saw no crop, are left out.
    """
    if not names:
        return {}
    probe = Probe(graph.model, sorted(names))
    peaks: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, NDArray[np.int64]] = {}
    for final in (False, True):
        for crop, feeds in enumerate(calibration.feeds):
            values = probe.run(feeds)
            for name in names:
                value = values[name]
                if not calibration.serves(crop, owners.get(name)):
                    continue
                if not final:
                    peak = np.abs(value).max(axis=(0, 2, 3)).astype(np.float64)
                    peaks[name] = np.maximum(peaks[name], peak) if name in peaks else peak
                elif np.isfinite(peaks[name]).all():
                    counts[name] = counts.get(name, 0) + count_channels(value, peaks[name])
    return {name: even_scale(found, peaks[name]) for name, found in counts.items()}


def even_scale(counts: NDArray[np.int64], peak: NDArray[np.float64]) -> NDArray[np.float64]:
    """The scale of each channel, of geometric mean 1, from histograms C x bins over -``peak``..``peak`` (C)."""
    edges = np.linspace(-1.0, 1.0, HISTOGRAM_BINS + 1)
    ends: NDArray[np.float64] = np.array([max(map(abs, clip_least_error(row, edges))) for row in counts])
    ends = np.maximum(ends * peak, 1e-12)
    ends = np.maximum(ends, ends.max() / _LARGEST_SPREAD)
    even: NDArray[np.float64] = ends / np.exp(np.log(ends).mean())
    return even


def count_channels(value: NDArray[np.float32], peak: NDArray[np.float64]) -> NDArray[np.int64]:
    """Histograms C x bins of a map BxCxHxW, channel c over -peak_c..peak_c."""
    channels = value.shape[1]
    factor = (0.5 * HISTOGRAM_BINS / np.maximum(peak, 1e-12)).astype(np.float32)[:, None, None]
    index = np.clip(value * factor + np.float32(0.5 * HISTOGRAM_BINS), 0, HISTOGRAM_BINS - 1).astype(np.int64)
    index += (np.arange(channels) * HISTOGRAM_BINS)[:, None, None]
    counts: NDArray[np.int64] = np.bincount(index.ravel(), minlength=channels * HISTOGRAM_BINS)
    return counts.reshape(channels, HISTOGRAM_BINS)


def _scalable(graph: Graph, layer: Layer, layers: Collection[Layer]) -> NodeProto | None:
    """The layer's node if its output is a map inside the graph that only float operations read, and its weights and
    bias are its own."""
    node = graph.node(layer)
    readers = graph.consumers.get(node.output[0], [])
    integer = {other.node for other in layers}
    if not readers or node.output[0] in graph.outputs or len(graph.shapes.get(node.output[0], ())) != 4:
        return None
    if any(reader.op_type == "Relu" or reader.name in integer for reader in readers):
        return None
    groups = groups_of(node)
    own = all(name in graph.initialisers and len(graph.consumers[name]) == 1 for name in node.input[1:] if name)
    return node if own and (groups == 1 or node.op_type == "Conv") else None


def scale_outputs(model: ModelProto, scales: Scales) -> ModelProto:
    """A copy of ``model`` that computes the same, with the layers named in ``scales`` (weight name to scale per output
    channel) scaled as :func:`output_scales` says. The convolution's own result is then called ``<output>.even``."""
    out = ModelProto()
    out.CopyFrom(model)
    if not scales:
        return out
    tensors = {tensor.name: tensor for tensor in out.graph.initializer}
    nodes: list[NodeProto] = []
    for node in out.graph.node:
        nodes.append(node)
        if node.op_type not in ("Conv", "ConvTranspose") or node.input[1] not in scales:
            continue
        scale = scales[node.input[1]]
        axis = 0 if node.op_type == "Conv" else 1
        for name, where in zip(node.input[1:], (axis, 0), strict=False):
            value = numpy_helper.to_array(tensors[name])
            shape = [1] * value.ndim
            shape[where] = len(scale)
            tensors[name].CopyFrom(numpy_helper.from_array((value / scale.reshape(shape)).astype(np.float32), name))
        result = node.output[0]
        node.output[0] = f"{result}.even"
        constant = numpy_helper.from_array(scale.astype(np.float32).reshape(1, -1, 1, 1), f"{result}.scale")
        out.graph.initializer.append(constant)
        nodes.append(helper.make_node("Mul", [node.output[0], constant.name], [result], name=f"{node.name}.scale"))
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del out.graph.node[:]
    out.graph.node.extend(copies)
    return out
