"""What a model demands and promises, as data that travels inside the artefact.

A :class:`ModelSpec` is written into the ONNX file's ``metadata_props`` (one ``clusir.<field>`` key per field, each
value JSON) so that every runtime, in every language, tiles, pads and names tensors in the same way without a side file.
``spec.schema.json`` beside this file is the same description for other languages; ``tests/golden/tables/specs.json``
holds Python, C++ and JavaScript to it. Standard library only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from clusir.errors import ModelFormatError

__all__ = ["SPEC_VERSION", "ModelSpec", "SizeRequirements"]

SPEC_VERSION = 1  # written by default
# Written where ``scale`` is not 1, where there are maps, where there are numbers, and where sizes have a maximum, so
# that readers that know nothing of them refuse the file.
_SCALED_VERSION, _MAPPED_VERSION, _NUMBERED_VERSION, _BOUNDED_VERSION = 2, 3, 4, 5
MAX_SCALE = 8
# Beside noise or JPEG blur needs more evidence than alone: noise hides it, and sharpening lifts what is left of noise.
# Of 370 crops of held-out photos with evidence of both, mending the blur, too, lost 0.12 dB where its evidence was
# below 0.5 (0.43 on those without blur; on those with it it gained 0.01) and 0.01 up to 0.7, and gained 0.32 above.
BLUR_BESIDE_FAULTS = 0.6  # the evidence of blur from which on it is mended unasked beside noise or JPEG
MAX_STATISTICS = 1 << 24  # 64 MiB of float32; the configuration "base" has half a million
_PREFIX = "clusir."
_POOLING = ("pooled", "statistics")
_GRAPHS = ("whole", "tile", "router", *_POOLING)
_MAX_TILE_PX = 4096  # a tile is held in memory several times over
_MAX_PX = 65536
_MAX_LEVELS = 64
_MAX_CLUSTERS = 4096
_LEFT_OUT = (
    "statistics", "families", "evidence_thresholds", "evidence_floors", "maps", "map_defaults", "numbers",
    "number_defaults", "number_ranges",
)  # fmt: skip
_MOST_MAPS = MOST_NUMBERS = 8
OWN_ALPHA = "alpha"  # the map that is a picture's own alpha where nobody gives another: what RGBA has behind RGB
# Names of tensors that the graphs of a model have beside a number.
TENSORS = frozenset(("posterior", "gate", "expert_probability", "statistics", "permissions", "evidence", "weight",
                      "given", "known", "level", "largest"))  # fmt: skip
_MAX_TEXT = 1024  # characters
MAX_NUMBER = _MAX_BOUND = 1e6
_LEAST_WIDTH = 1e-3  # of a value range, and of its larger bound: less cannot be told apart in float32


@dataclass(frozen=True)
class SizeRequirements:
    """Which heights and widths, in pixels, a graph accepts.

    ``static_px`` is the one square size of a static graph (0 = dynamic); a dynamic graph takes any height and width
    that is a multiple of ``multiple_of``, at least ``minimum``, and at most ``maximum`` (0: there is none). Beyond it
    the network is another one, or none: a table of positions ends, a loop has a turn more.
    """

    multiple_of: int = 16
    minimum: int = 16
    static_px: int = 0
    maximum: int = 0

    def padded(self, length: int) -> int:
        """The smallest accepted length (pixels) that is at least ``length``, the largest one where none is; a static
        graph always says its own."""
        if self.static_px:
            return self.static_px
        length = max(length, self.minimum)
        length = -(-length // self.multiple_of) * self.multiple_of
        return min(length, self.maximum // self.multiple_of * self.multiple_of) if self.maximum else length

    def __str__(self) -> str:
        if self.static_px:
            return f"{self.static_px} px only"
        most = f"to {self.maximum} px" if self.maximum else "px on"
        return f"multiples of {self.multiple_of} px from {self.minimum} {most}"


@dataclass(frozen=True)
class ModelSpec:
    """The contract between an artefact and whoever runs it.

    Tensors: input ``image`` float32 NCHW RGB in 0..1; output ``restored`` of the same shape, or ``scale`` times as
    high and wide, unclipped; ``posterior``
    [B, sum(clusters)]: the cluster posteriors of all routed levels, concatenated, each part summing to 1; ``gate``
    [B, sum(experts)]: the gates after top-k, concatenated likewise.

    ``graph`` is ``whole`` (image -> restored, posterior, gate), ``tile`` (image, posterior, gate, statistics ->
    restored: what is pooled over the picture is given, so that all its tiles share it) or ``router`` (image ->
    posterior, expert_probability, the probabilities before top-k, statistics). A model brought by the user has no
    routing: ``clusters`` and ``experts`` are empty. ``statistics`` is the length S of the pooled statistics [B, S]
    (``clusir.network.pooled``) that a tile graph takes and its router graph gives; 0 where the two go without, and in a
    whole graph. Of a model without routing that pools over the whole picture, ``pooled`` is the graph that answers
    alone, a ``tile`` graph is given S statistics, and a ``statistics`` graph gives them
    (``clusir.export.pooling.split``); all three say S.

    ``families`` names the families of degradations that may be mended or not (empty: the model cannot be told). Its
    router graph then takes a second input, ``permissions`` [1, F] float32: 0..1 mends a family that far, -p as far as p
    where the picture's evidence for it reaches its ``evidence_thresholds``, and -1 - p as far as p where it reaches its
    ``evidence_floors`` (empty: the model has none); whole and router graph give ``evidence`` [B, F] in 0..1. A whole
    graph mends as if it were given -1 for all.

    ``maps`` names further pictures of one channel and of the picture's size that the network takes (a mask, a noise
    level for each pixel), 0..1: the last planes of ``image``, behind its ``channels``, in this order; ``map_defaults``
    are the numbers that fill them where nobody gives one. A grey picture has one map at most.

    ``numbers`` names further inputs [1] float32 of every graph of the model, one number for all of the picture (a noise
    level, a JPEG quality); ``number_defaults`` are fed where nobody gives one, ``number_ranges`` (least, most) say
    which are taken.
    """

    name: str = "clusir"
    graph: str = "whole"
    spec_version: int = SPEC_VERSION
    checkpoint_sha256: str = ""
    layout: str = "NCHW"
    colour_order: str = "RGB"
    value_range: tuple[float, float] = (0.0, 1.0)
    input_name: str = "image"
    output_name: str = "restored"
    channels: int = 3
    size: SizeRequirements = field(default_factory=SizeRequirements)
    tile_px: int = 256
    halo_px: int = 16
    precision: str = "fp32"
    router_form: str = "dense"
    dft_form: str = "matmul"
    clusters: tuple[int, ...] = ()
    experts: tuple[int, ...] = ()
    top_k: int = 1
    cluster_labels: tuple[tuple[str, ...], ...] = ()
    tolerances: Mapping[str, float] = field(default_factory=dict)
    statistics: int = 0
    scale: int = 1
    families: tuple[str, ...] = ()
    evidence_thresholds: tuple[float, ...] = ()
    evidence_floors: tuple[float, ...] = ()
    maps: tuple[str, ...] = ()
    map_defaults: tuple[float, ...] = ()
    numbers: tuple[str, ...] = ()
    number_defaults: tuple[float, ...] = ()
    number_ranges: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        def refuse(what: str) -> None:
            raise ModelFormatError(f"model metadata: {what}; export the model again with clusir-export")

        versions = (SPEC_VERSION, _SCALED_VERSION, _MAPPED_VERSION, _NUMBERED_VERSION, _BOUNDED_VERSION)
        if self.spec_version not in versions:
            refuse(f"spec version {self.spec_version} is not one of {versions}, those this clusir reads")
        if not 1 <= self.scale <= MAX_SCALE:
            refuse(f"scale {self.scale} is not within 1..{MAX_SCALE}")
        if self.scale != 1:
            object.__setattr__(self, "spec_version", _SCALED_VERSION)
        if self.maps:
            object.__setattr__(self, "spec_version", _MAPPED_VERSION)
        if self.numbers:
            object.__setattr__(self, "spec_version", _NUMBERED_VERSION)
        if self.size.maximum:
            object.__setattr__(self, "spec_version", _BOUNDED_VERSION)
        if self.graph in _POOLING and (self.routed or not self.statistics):
            refuse(f"a {self.graph} graph has statistics and no routing")
        if self.scale != 1 and self.routed:
            refuse(f"scale {self.scale} with routed levels is not read here")
        if self.graph not in _GRAPHS:
            refuse(f"graph {self.graph!r} is not one of {', '.join(_GRAPHS)}")
        if self.layout != "NCHW" or self.colour_order != "RGB":
            refuse(f"layout {self.layout!r}/{self.colour_order!r} is not NCHW/RGB")
        if self.channels not in (1, 3):
            refuse(f"channels {self.channels} is not 1 or 3")
        texts = (self.name, self.checkpoint_sha256, self.input_name, self.output_name, self.precision)
        for text in (
            *texts,
            self.router_form,
            self.dft_form,
            *(label for level in self.cluster_labels for label in level),
            *self.families,
            *self.maps,
            *self.numbers,
        ):
            if len(text) > _MAX_TEXT:
                refuse(f"{text[:20]!r}... is longer than {_MAX_TEXT} characters")
        low, high = self.value_range
        width = max(1.0, abs(low), abs(high)) * _LEAST_WIDTH
        if not (-_MAX_BOUND <= low < high <= _MAX_BOUND and high - low >= width):
            refuse(f"value range {low}..{high} does not rise by at least {width:g}, or leaves -1e6..1e6")
        size = self.size
        lengths = 1 <= size.multiple_of <= 4096 and 1 <= size.minimum <= _MAX_PX and 0 <= size.maximum <= _MAX_PX
        if not (lengths and 0 <= size.static_px <= _MAX_TILE_PX):
            refuse(f"size rule {size!r} is out of bounds")
        if size.maximum and (size.static_px or self.statistics):
            refuse(f"a maximum of {size.maximum} px beside one size, or beside statistics, is not read here")
        if not (1 <= self.tile_px <= _MAX_TILE_PX and 0 <= 2 * self.halo_px < self.tile_px):
            refuse(f"tile {self.tile_px} px with halo {self.halo_px} px leaves no core, or is over {_MAX_TILE_PX} px")
        if size.padded(self.tile_px) != self.tile_px:
            refuse(f"tile {self.tile_px} px does not fit the size rule: {size}")
        if len(self.clusters) != len(self.experts) or len(self.clusters) > _MAX_LEVELS:
            refuse(f"clusters {self.clusters} and experts {self.experts} do not name the same at most 64 levels")
        if any(not 1 <= n <= _MAX_CLUSTERS for n in (*self.clusters, *self.experts)):
            refuse(f"clusters {self.clusters} and experts {self.experts} are not within 1..{_MAX_CLUSTERS}")
        most = min(self.experts, default=_MAX_CLUSTERS)
        if not 1 <= self.top_k <= most:
            refuse(f"top_k {self.top_k} is not within 1..{most}")
        if not 0 <= self.statistics <= MAX_STATISTICS:
            refuse(f"statistics {self.statistics} are not within 0..{MAX_STATISTICS}")
        if self.cluster_labels and tuple(map(len, self.cluster_labels)) != self.clusters:
            refuse("cluster labels do not match the clusters")
        if len(set(self.families)) != len(self.families) or len(self.families) > _MAX_LEVELS:
            refuse(f"families {self.families} are not at most {_MAX_LEVELS} different names")
        if len(self.evidence_thresholds) != len(self.families):
            refuse(f"evidence thresholds {self.evidence_thresholds} are not one for each of the families")
        if any(not 0 <= threshold <= 1 for threshold in self.evidence_thresholds):
            refuse(f"evidence thresholds {self.evidence_thresholds} are not within 0..1")
        if self.evidence_floors and len(self.evidence_floors) != len(self.families):
            refuse(f"evidence floors {self.evidence_floors} are not one for each of the families")
        if any(not 0 <= floor <= 1 for floor in self.evidence_floors):
            refuse(f"evidence floors {self.evidence_floors} are not within 0..1")
        if len(set(self.maps)) != len(self.maps) or len(self.maps) > (_MOST_MAPS if self.channels == 3 else 1):
            refuse(f"maps {self.maps} are not different names, {_MOST_MAPS} at most and one of a grey picture")
        if self.maps and (self.routed or tuple(self.value_range) != (0.0, 1.0)):
            refuse(f"maps {self.maps} with routed levels, or with a value range that is not 0..1, are not read here")
        if len(self.map_defaults) != len(self.maps) or any(not 0 <= number <= 1 for number in self.map_defaults):
            refuse(f"map defaults {self.map_defaults} are not one for each of the maps, within 0..1")
        reserved = {*TENSORS, self.input_name, self.output_name, *self.maps}
        if len(set(self.numbers) - reserved) != len(self.numbers) or len(self.numbers) > MOST_NUMBERS:
            refuse(f"numbers {self.numbers} are not different names that no other tensor has, {MOST_NUMBERS} at most")
        if self.numbers and self.routed:
            refuse(f"numbers {self.numbers} with routed levels are not read here")
        if not len(self.numbers) == len(self.number_defaults) == len(self.number_ranges):
            refuse(
                f"number defaults {self.number_defaults} and ranges {self.number_ranges} are not one for each number"
            )
        for number, (low, high) in zip(self.number_defaults, self.number_ranges, strict=True):
            if not -_MAX_BOUND <= low <= number <= high <= _MAX_BOUND:
                refuse(f"number default {number} is not within {low}..{high}, or that leaves -1e6..1e6")
        if any(not 0 <= bound < math.inf for bound in self.tolerances.values()):
            refuse(f"tolerances {dict(self.tolerances)} are not finite numbers from 0 on")

    @property
    def shares_statistics(self) -> bool:
        """Whether tiles are given what a statistics graph pools over the whole picture."""
        return self.graph in _POOLING or (self.graph == "tile" and self.statistics > 0 and not self.routed)

    @property
    def routed(self) -> bool:
        """Whether the model has routed levels, hence posteriors and gates."""
        return bool(self.clusters)

    @property
    def planes(self) -> int:
        """How many channels the input ``image`` has: those of the picture, and its maps."""
        return self.channels + len(self.maps)

    def to_metadata(self) -> dict[str, str]:
        """``{"clusir.<field>": JSON}`` for ONNX ``metadata_props``; without ``statistics``, ``families``, their
        thresholds and floors, ``maps`` and ``numbers`` where there are none; ``scale`` is written, with spec version 2,
        where it is not 1. With maps the spec version is 3, with numbers 4, with a maximum of sizes 5."""
        values = {k: v for k, v in asdict(self).items() if k not in _LEFT_OUT or v}
        if not self.size.maximum:
            del values["size"]["maximum"]
        if self.scale == 1:
            del values["scale"]
        return {_PREFIX + k: json.dumps(v, sort_keys=True) for k, v in values.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ModelSpec:
        """The spec in ONNX ``metadata_props``. Numbers count by value (``4.0`` is an integer); fields that are not
        known, also within ``size``, are left to newer readers. Raises ModelFormatError where it is absent, malformed
        or contradictory."""
        known = {f.name: f for f in fields(cls)}
        found = {k.removeprefix(_PREFIX): v for k, v in metadata.items() if k.startswith(_PREFIX)}
        if "spec_version" not in found:
            raise ModelFormatError(
                "the model carries no clusir metadata (key clusir.spec_version); "
                "make one that does: clusir-export --onnx NEW.onnx --from THIS.onnx"
            )
        values: dict[str, Any] = {}
        for key, text in found.items():
            if key not in known:
                continue  # a newer writer may add fields; the spec version says when they matter
            try:
                values[key] = _coerce(key, json.loads(text, parse_constant=_no_number, parse_float=_finite))
            except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
                raise ModelFormatError(f"model metadata: clusir.{key} cannot be read ({error})") from error
        return cls(**values)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def _integer(value: Any) -> int:
    whole = not isinstance(value, bool) and isinstance(value, (int, float)) and value == int(value)
    if not whole or abs(value) > 1 << 53:
        raise TypeError(f"expected an integer, got {repr(value)[:40]}")
    return int(value)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, got {type(value).__name__}")
    value.encode()  # half of a surrogate pair is no text; UnicodeEncodeError is a ValueError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"expected a number, got {type(value).__name__}")
    return float(value)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {type(value).__name__}")
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {type(value).__name__}")
    return value


def _coerce(key: str, value: Any) -> Any:
    if key == "size":
        known = [f.name for f in fields(SizeRequirements)]
        return SizeRequirements(**{k: _integer(v) for k, v in _object(value).items() if k in known})
    if key == "value_range":
        low, high = _list(value)
        return (_number(low), _number(high))
    if key in ("clusters", "experts"):
        return tuple(_integer(v) for v in _list(value))
    if key == "number_ranges":
        pairs = (_list(v) for v in _list(value))
        return tuple((_number(low), _number(high)) for low, high in pairs)
    if key in ("families", "maps", "numbers"):
        return tuple(_string(v) for v in _list(value))
    if key in ("evidence_thresholds", "evidence_floors", "map_defaults", "number_defaults"):
        return tuple(_number(v) for v in _list(value))
    if key == "cluster_labels":
        return tuple(tuple(_string(label) for label in _list(level)) for level in _list(value))
    if key == "tolerances":
        return {_string(k): _number(v) for k, v in _object(value).items()}
    if key in ("spec_version", "channels", "tile_px", "halo_px", "top_k", "statistics", "scale"):
        return _integer(value)
    return _string(value)
