"""Inputs to look at a graph with: a degraded photo, or numbers, in the shapes that the graph takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from clusir.calibration.photos import built_in_photos
from clusir.calibration.planes import maps_for
from clusir.degrade.recipe import degrade
from clusir.errors import ClusirError, UsageError
from clusir.export.validate.parity import fill, permission_vectors, uniform_routing
from clusir.runtimes.runners.base import Array
from clusir.runtimes.runners.metadata import read_metadata
from clusir.spec import ModelSpec

__all__ = ["bisection_feeds", "random_feeds"]


def bisection_feeds(path: Path, side: int | None = None) -> dict[str, Array]:
    """A degraded photo of ``side`` pixels (None: the size of the graph's tile), and even routing, or permissions that
    ask for nothing, where the graph takes them. A file without metadata of clusir gets numbers."""
    model = onnx.load(path)
    try:
        spec = ModelSpec.from_metadata(read_metadata(path))
    except ClusirError:
        return random_feeds(model, (64, 64))
    side = side or spec.size.padded(min(spec.tile_px, 256))
    photo = built_in_photos(16).photos[0]
    crop = fill(photo.crop(0, 0, max(photo.height, photo.width)), side, side)
    degraded = degrade(crop, "noise", 0.5, np.random.default_rng(0))[..., : spec.channels]
    image = np.concatenate([degraded.transpose(2, 0, 1), maps_for(spec.planes, side, side, 0)])[None]
    port = next((value for value in model.graph.input if value.name == spec.input_name), None)
    if port is None:
        raise UsageError(f"{path}: it has no input {spec.input_name}, which its metadata names")
    dims = port.type.tensor_type.shape.dim
    if dims and dims[0].dim_value > 1:
        image = np.repeat(image, dims[0].dim_value, axis=0)
    feeds = {spec.input_name: image}
    if spec.graph == "tile":
        feeds |= uniform_routing(spec)({"image": image})
    if any(value.name == "permissions" for value in model.graph.input):
        feeds |= permission_vectors(spec)({"image": image})  # the first of them: nothing is asked for
    return feeds


def random_feeds(model: ModelProto, size: Sequence[int], channels: int = 3, seed: int = 0) -> dict[str, Array]:
    """Seeded numbers for every input of a graph. Open axes of pictures (rank 4): 2, ``channels``, ``size`` (height and
    width); of others 2.

    Pictures are in 0..1; vectors are positive, and each row of one called ``gate`` has zeros, so that conditional
    experts take both ways.
    """
    rng = np.random.default_rng(seed)
    constants = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for port in model.graph.input:
        if port.name in constants:
            continue
        tensor = port.type.tensor_type
        free = (2, channels, *size) if len(tensor.shape.dim) == 4 else (2,) * len(tensor.shape.dim)
        shape = [dim.dim_value or free[axis] for axis, dim in enumerate(tensor.shape.dim)]
        kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if tensor.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            values = rng.random(shape)
            if port.name == "gate":
                values[:, ::2] = 0.0
            feeds[port.name] = values.astype(kind)
        else:
            feeds[port.name] = np.ones(shape, kind)
    return feeds
