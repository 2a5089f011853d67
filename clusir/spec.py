"""What a model demands and promises, as data that travels inside the artefact.

A :class:`ModelSpec` is written into the ONNX file's ``metadata_props`` (one ``clusir.<field>`` key per field, each
value JSON) so that every runtime, in every language, tiles, pads and names tensors in the same way without a side file.
Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from clusir.errors import ModelFormatError

__all__ = ["SPEC_VERSION", "ModelSpec", "SizeRequirements"]

SPEC_VERSION = 1
MAX_STATISTICS = 1 << 24  # 64 MiB of float32; the configuration "base" has half a million
_PREFIX = "clusir."
_GRAPHS = ("whole", "tile", "router")


@dataclass(frozen=True)
class SizeRequirements:
    """Which heights and widths, in pixels, a graph accepts.

    ``static_px`` is the one square size of a static graph (0 = dynamic); a dynamic graph takes any height and width
    that is a multiple of ``multiple_of`` and at least ``minimum``.
    """

    multiple_of: int = 16
    minimum: int = 16
    static_px: int = 0

    def padded(self, length: int) -> int:
        """The smallest accepted length (pixels) that is at least ``length``; a static graph always says its own."""
        if self.static_px:
            return self.static_px
        length = max(length, self.minimum)
        return -(-length // self.multiple_of) * self.multiple_of


@dataclass(frozen=True)
class ModelSpec:
    """The contract between an artefact and whoever runs it.

    Tensors: input ``image`` float32 NCHW RGB in 0..1; output ``restored`` of the same shape, unclipped; ``posterior``
    [B, sum(clusters)]: the cluster posteriors of all routed levels, concatenated, each part summing to 1; ``gate``
    [B, sum(experts)]: the gates after top-k, concatenated likewise.

    ``graph`` is ``whole`` (image -> restored, posterior, gate), ``tile`` (image, posterior, gate, statistics ->
    restored: what is pooled over the picture is given, so that all its tiles share it) or ``router`` (image ->
    posterior, expert_probability, the probabilities before top-k, statistics). A model brought by the user has no
    routing: ``clusters`` and ``experts`` are empty. ``statistics`` is the length S of the pooled statistics [B, S]
    (``clusir.network.pooled``) that a tile graph takes and its router graph gives; 0 where the two go without (as in
    files of the first exports), and in a whole graph.
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

    def __post_init__(self) -> None:
        def refuse(what: str) -> None:
            raise ModelFormatError(f"model metadata: {what}; export the model again with clusir-export")

        if self.spec_version != SPEC_VERSION:
            refuse(f"spec version {self.spec_version} is not {SPEC_VERSION}, the one this clusir reads")
        if self.graph not in _GRAPHS:
            refuse(f"graph {self.graph!r} is not one of {', '.join(_GRAPHS)}")
        if self.layout != "NCHW" or self.colour_order != "RGB":
            refuse(f"layout {self.layout!r}/{self.colour_order!r} is not NCHW/RGB")
        if self.channels not in (1, 3):
            refuse(f"channels {self.channels} is not 1 or 3")
        size = self.size
        if not (1 <= size.multiple_of <= 4096 and 1 <= size.minimum <= 65536 and 0 <= size.static_px <= 65536):
            refuse(f"size rule {size} is out of bounds")
        if not (1 <= self.tile_px <= 65536 and self.halo_px >= 0 and 2 * self.halo_px < self.tile_px):
            refuse(f"tile {self.tile_px} px with halo {self.halo_px} px leaves no core")
        if size.padded(self.tile_px) != self.tile_px:
            refuse(f"tile {self.tile_px} px does not fit the size rule {size}")
        if len(self.clusters) != len(self.experts) or any(n < 1 for n in (*self.clusters, *self.experts)):
            refuse(f"clusters {self.clusters} and experts {self.experts} do not name the same levels")
        if self.experts and not 1 <= self.top_k <= min(self.experts):
            refuse(f"top_k {self.top_k} is not within 1..{min(self.experts)}")
        if not 0 <= self.statistics <= MAX_STATISTICS:
            refuse(f"statistics {self.statistics} are not within 0..{MAX_STATISTICS}")
        if self.cluster_labels and tuple(map(len, self.cluster_labels)) != self.clusters:
            refuse("cluster labels do not match the clusters")

    @property
    def routed(self) -> bool:
        """Whether the model has routed levels, hence posteriors and gates."""
        return bool(self.clusters)

    def to_metadata(self) -> dict[str, str]:
        """``{"clusir.<field>": JSON}`` for ONNX ``metadata_props``; without ``statistics`` where there are none, as in
        the first exports."""
        values = {k: v for k, v in asdict(self).items() if k != "statistics" or v}
        return {_PREFIX + k: json.dumps(v, sort_keys=True) for k, v in values.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ModelSpec:
        """The spec in ONNX ``metadata_props``. Raises ModelFormatError where it is absent, malformed or
        contradictory."""
        known = {f.name: f for f in fields(cls)}
        found = {k.removeprefix(_PREFIX): v for k, v in metadata.items() if k.startswith(_PREFIX)}
        if "spec_version" not in found:
            raise ModelFormatError(
                "the model carries no clusir metadata (key clusir.spec_version); export it with clusir-export"
            )
        values: dict[str, Any] = {}
        for key, text in found.items():
            if key not in known:
                continue  # a newer writer may add fields; the spec version says when they matter
            try:
                values[key] = _coerce(key, json.loads(text))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise ModelFormatError(f"model metadata: clusir.{key} cannot be read ({error})") from error
        return cls(**values)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected an integer, got {type(value).__name__}")
    return value


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, got {type(value).__name__}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"expected a number, got {type(value).__name__}")
    return float(value)


def _coerce(key: str, value: Any) -> Any:
    if key == "size":
        return SizeRequirements(**{k: _integer(v) for k, v in value.items()})
    if key == "value_range":
        low, high = value
        return (_number(low), _number(high))
    if key in ("clusters", "experts"):
        return tuple(_integer(v) for v in value)
    if key == "cluster_labels":
        return tuple(tuple(_string(label) for label in level) for level in value)
    if key == "tolerances":
        return {_string(k): _number(v) for k, v in value.items()}
    if key in ("spec_version", "channels", "tile_px", "halo_px", "top_k", "statistics"):
        return _integer(value)
    return _string(value)
