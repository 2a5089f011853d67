"""From calibration crops to inputs of a graph: routing by the float32 whole graph, feeds for whole and tile graphs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from clusir.calibration.balance import BalanceConfig, Draw, Route, draw_balanced
from clusir.calibration.base import CalibrationSource, Sample
from clusir.calibration.manifest import Manifest, replay
from clusir.calibration.sources import CLEAN
from clusir.errors import CalibrationError, ExportError
from clusir.export.graph.session import Array, Feeds, Probe
from clusir.export.quantize.layers import load_graph
from clusir.export.quantize.ranges import Calibration
from clusir.spec import ModelSpec

__all__ = ["Reference", "calibrate", "crop_px_of", "draw_calibration", "draw_evaluation", "make_feeds"]

_DYNAMIC_CROP_PX = 128
_DYNAMIC_ANSWER_PX = 256  # of a model that enlarges: the built-in photos hold more than one such crop


def crop_px_of(spec: ModelSpec | None) -> int:
    """Side of calibration crops for a graph: its static size, or 128 px (padded to its rule) where it is dynamic; of a
    model that enlarges 3 to 8 times, as much less as keeps its answer at about 256 px."""
    if spec is None:
        return _DYNAMIC_CROP_PX
    return spec.size.padded(min(_DYNAMIC_CROP_PX, _DYNAMIC_ANSWER_PX // spec.scale))


@dataclass
class Reference:
    """The float32 whole graph: what routes crops, and what INT8 is held against. Extra inputs are not allowed.

    What it decides about a picture (:meth:`routing`, :meth:`statistics`) it remembers: several graphs of a model are
    calibrated on the same crops, in several precisions.
    """

    path: Path

    def __post_init__(self) -> None:
        graph = load_graph(self.path)
        self.spec = graph.spec
        self.model = graph.model
        if len(graph.inputs) != 1:
            raise ExportError(f"{self.path} has inputs {', '.join(graph.inputs)}; the whole graph takes one picture")
        self.input_name = graph.inputs[0]
        self.output_name = graph.spec.output_name if graph.spec is not None else graph.outputs[0]
        self.probe = Probe(graph.model)
        self._router: Probe | None = None
        self._decided: dict[bytes, dict[str, Array]] = {}

    def statistics(self, image: Array) -> Array:
        """The pooled statistics [1, S] that the router or statistics graph beside the file finds in a picture."""
        known = self._decided.setdefault(_digest(image), {})
        if "statistics" not in known:
            known["statistics"] = self._pooled(image)
        return known["statistics"]

    def _pooled(self, image: Array) -> Array:
        alone = self.spec is not None and self.spec.shares_statistics
        if self._router is None:
            path = self.path.with_name(f"{self.path.stem}.{'statistics' if alone else 'router'}.onnx")
            if not path.is_file():
                raise ExportError(f"{path} is not there, and the tile graph needs its statistics; export all graphs")
            self._router = Probe(load_graph(path).model)
        feeds = {self.input_name: image}
        if alone and self.spec is not None:
            given, known = np.zeros((2, 1, self.spec.statistics), np.float32)
            given[0, 0] = image.shape[2] * image.shape[3]
            feeds |= {"weight": np.ones_like(image[:, :1]), "given": given, "known": known}
        if "permissions" in self._router.inputs:
            feeds["permissions"] = np.full((1, len(self.spec.families) if self.spec else 0), -1.0, np.float32)
        return self._router.run(feeds)["statistics"]

    @property
    def experts(self) -> tuple[int, ...]:
        routed = self.spec is not None and self.spec.routed and "gate" in self.probe.outputs
        return self.spec.experts if routed and self.spec is not None else ()

    def run(self, image: Array) -> dict[str, Array]:
        """All outputs for one picture."""
        outputs = self.probe.run({self.input_name: image})
        decided: dict[str, Array] = {name: outputs[name] for name in ("posterior", "gate") if name in outputs}
        self._decided.setdefault(_digest(image), {}).update(decided)
        return outputs

    def routing(self, image: Array) -> dict[str, Array]:
        """Posterior and gate of one picture, where the graph has them."""
        known = self._decided.get(_digest(image), {})
        found = known if {"posterior", "gate"} & known.keys() else self.run(image)
        return {name: found[name] for name in ("posterior", "gate") if name in found}

    def route(self) -> Route | None:
        """The routing of the model, picture by picture (a static graph may fix the batch), or None without routing."""
        if not self.experts:
            return None

        def run(images: Array) -> tuple[Array, Array]:
            found = [self.routing(image[None]) for image in images]
            return np.concatenate([f["posterior"] for f in found]), np.concatenate([f["gate"] for f in found])

        return run


def draw_calibration(
    source: CalibrationSource, reference: Reference, config: BalanceConfig | None = None, manifest: Path | None = None
) -> tuple[Draw, Manifest]:
    """A balanced draw and its manifest; with ``manifest``, the very draw that file records.

    Raises CalibrationError where the source no longer gives the recorded crops.
    """
    if manifest is None:
        draw = draw_balanced(source, reference.route(), reference.experts, config)
        return draw, Manifest.of(source, draw.samples)
    recorded = Manifest.read(manifest)
    samples = replay(recorded, source)
    again = BalanceConfig(size=len(samples), pool=len(samples), minimum=(config or BalanceConfig()).minimum)
    draw = draw_balanced(_Listed(source, samples), reference.route(), reference.experts, again)
    return draw, recorded


@dataclass(frozen=True)
class _Listed:
    """Given samples as a source."""

    source: CalibrationSource
    samples: Sequence[Sample]

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def crop_px(self) -> int:
        return self.source.crop_px

    @property
    def degradations(self) -> tuple[str, ...]:
        return self.source.degradations

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int) -> Sample:
        return self.samples[index]

    def describe(self) -> dict[str, object]:
        return self.source.describe()


def draw_evaluation(source: CalibrationSource, per_degradation: int, after: Sequence[int] = ()) -> list[Sample]:
    """``per_degradation`` crops of each degradation, with truth, none of them among the indices ``after``.

    Untouched photos are left out: their PSNR is unbounded, so decibels say nothing there. Raises CalibrationError
    where the source has no truth, or no crop of a degradation; of too few crops all are taken.
    """
    used, found = set(after), dict[str, list[Sample]]()
    wanted = [kind for kind in source.degradations if kind != CLEAN]
    if not wanted:
        raise CalibrationError(
            f"every picture of the {source.name} source is labelled {CLEAN!r}, after the first folder below its root; "
            "decibels of pictures that are good already say nothing: name that folder after its degradation"
        )
    # From the end: calibration draws from the start.
    for index in range(len(source) - 1, -1, -1):
        if all(len(found.get(kind, ())) >= per_degradation for kind in wanted):
            break
        if index in used:
            continue
        sample = source.sample(index)
        if sample.clean is None:
            raise CalibrationError(
                f"the {source.name} source has no clean pictures to measure quality against; give pairs "
                "(degraded/ and clean/) or clean photos"
            )
        if sample.degradation in wanted and len(found.setdefault(sample.degradation, [])) < per_degradation:
            found[sample.degradation].append(sample)
    missing = [kind for kind in wanted if not found.get(kind)]
    if missing:
        raise CalibrationError(
            f"no crop is left to measure {', '.join(missing)} on: calibration took all {len(used)} of {len(source)}; "
            "give more photos or draw fewer crops"
        )
    return [sample for kind in wanted for sample in found[kind]]


def make_feeds(graph: Path | onnx.ModelProto, samples: Sequence[Sample], reference: Reference) -> list[Feeds]:
    """Inputs of ``graph`` for each sample: the picture, and for a tile graph that picture's own posterior, gate and
    pooled statistics (where it takes them)."""
    inputs = load_graph(graph).inputs
    image_name, routed = inputs[0], [name for name in inputs[1:] if name in ("posterior", "gate", "statistics")]
    if len(inputs) != 1 + len(routed):
        raise ExportError(
            f"graph inputs {', '.join(inputs)} are not a picture, or a picture with posterior, gate and statistics"
        )
    feeds: list[Feeds] = []
    for sample in samples:
        routing = reference.routing(sample.image) if routed else {}
        if "statistics" in routed:
            routing["statistics"] = reference.statistics(sample.image)
        feeds.append({image_name: sample.image, **{name: routing[name] for name in routed}})
    return feeds


def _digest(image: Array) -> bytes:
    return hashlib.sha256(image.tobytes()).digest() + repr(image.shape).encode()


def calibrate(graph: Path | onnx.ModelProto, draw: Draw, reference: Reference) -> Calibration:
    """What :func:`clusir.export.quantize.steps.quantize_int8` needs to know of a draw, for one graph."""
    keys = [sample.key for sample in draw.samples]
    return Calibration(make_feeds(graph, draw.samples, reference), keys, draw.gates, reference.experts)
