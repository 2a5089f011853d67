"""One file for the weights of several graphs: ONNX's external data, in which a tensor that all of them hold is stored
once.

Runtimes that open a graph by its path find the file beside it. It has the name of the whole graph and ``.data`` behind
it, as PyTorch's exporter calls its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import onnx

from clusir.runtimes.runners.external import DATA_SUFFIX

__all__ = ["share_weights"]

_LEAST_BYTES = 1024  # what is smaller stays in its graph: shapes are read before the weights are
_ALIGNED_BYTES = 64  # a cache line: runtimes that map the file use the tensors where they lie


def share_weights(graphs: Sequence[Path]) -> Path | None:
    """Move the weights of ``graphs``, in place, into one file beside them, named after the first.

    The first tensor of every graph says the file's SHA-1 (``checksum``), so that weights of another export are not
    taken for these. None, and no change, where no graph has a tensor of 1 kB or more.
    """
    models = [onnx.load(path) for path in graphs]
    place = graphs[0].with_name(graphs[0].name + DATA_SUFFIX)
    content = bytearray()
    stored: dict[bytes, int] = {}
    for tensor in (tensor for model in models for tensor in _large(model)):
        digest = hashlib.sha256(tensor.raw_data).digest()
        if digest not in stored:
            content += bytes(-len(content) % _ALIGNED_BYTES)
            stored[digest] = len(content)
            content += tensor.raw_data
    if not stored:
        return None
    checksum = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    place.write_bytes(content)
    for path, model in zip(graphs, models, strict=True):
        for number, tensor in enumerate(_large(model)):
            at = stored[hashlib.sha256(tensor.raw_data).digest()]
            entries = {"location": place.name, "offset": str(at), "length": str(len(tensor.raw_data))}
            for key, value in (entries if number else entries | {"checksum": checksum}).items():
                tensor.external_data.add(key=key, value=value)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.ClearField("raw_data")
        path.write_bytes(model.SerializeToString())
    return place


def _large(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The tensors that leave the graph; those of branches stay, which not every runtime looks for elsewhere."""
    return [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= _LEAST_BYTES]
