"""A routed network for programs that show a picture in parts and want its noise mended. Where it cannot be told to, its
routing is decided once and for all: no part then gets other experts, or other statistics, than its neighbour.

The tile graph gets the posterior, the gate and the statistics as constants: what its router says of noisy photos.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

from clusir.export.formats.hosts.base import Source
from clusir.export.formats.hosts.routing.told import MENDED, beside, told, unrouted
from clusir.export.graph.session import Feeds, Probe
from clusir.export.subjects.onnx_probe import natural_picture
from clusir.runtimes.restore.routing import combine, router_outputs
from clusir.spec import ModelSpec

__all__ = ["for_noise", "frozen_for_noise", "with_constants"]

_SIGMAS = (10, 15, 20, 25, 30, 35, 40, 50)  # of Gaussian noise, in levels of 8 bits; one photo each


def for_noise(source: Source) -> Source:
    """The source for a program that shows a picture in parts, tiles or frames, and wants its noise mended: told to do
    so where it can be told, else its routing as constants; as it is where it has none.

    Raises UnsupportedModelError where the tile or the router graph is not beside the whole one.
    """
    if not source.spec.routed:
        return source
    return told(source) if set(MENDED) <= set(source.spec.families) else frozen_for_noise(source)


def frozen_for_noise(source: Source) -> Source:
    """An unrouted whole graph: the source's tile graph under what its router says of noisy photos, all of them
    averaged. Networks that can be told of families are told to mend noise and nothing else.

    Raises UnsupportedModelError where the tile or the router graph is not beside the whole one, or its size is open and
    its batch is not.
    """
    tile, router = beside(source)
    spec, router_spec = (ModelSpec.from_metadata({p.key: p.value for p in g.metadata_props}) for g in (tile, router))
    probe = Probe(router, threads=1)
    side = router_spec.size.static_px or router_spec.size.padded(256)
    rng = np.random.default_rng(11)
    said: dict[str, list[np.ndarray]] = {name: [] for name in router_outputs(router_spec)}
    for seed, sigma in enumerate(_SIGMAS):
        photo = natural_picture(side, side, source.spec.channels, seed)
        noise = rng.normal(0, sigma / 255, photo.shape)
        feeds = {"image": (photo + noise).clip(0, 1).astype(np.float32)}
        if router_spec.families:
            asked = [float(family in MENDED) for family in router_spec.families]
            feeds["permissions"] = np.asarray([asked], np.float32)
        answers = probe.run(feeds)
        for name in said:
            said[name].append(answers[name])
    routing = combine({name: np.concatenate(values) for name, values in said.items()}, router_spec)
    return Source(with_constants(tile, routing.feeds(1)), unrouted(spec), source.name)


def with_constants(tile: ModelProto, values: Feeds) -> ModelProto:
    """The tile graph whose inputs other than the picture are constants, for one picture at a time."""
    made = ModelProto()
    made.CopyFrom(tile)
    kept = [value for value in made.graph.input if value.name not in values]
    made.graph.ClearField("input")
    made.graph.input.extend(kept)
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in values.items())
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.shape.dim[0].CopyFrom(onnx.TensorShapeProto.Dimension(dim_value=1))
    made.graph.ClearField("value_info")
    return made
