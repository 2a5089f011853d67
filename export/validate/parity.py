"""Parity: an artefact against the PyTorch reference, over backends, sizes, batches and degradations."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import count, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clusir.calibration.photos import built_in_photos
from clusir.degrade.recipe import KINDS, degrade
from clusir.errors import ValidationError
from clusir.export.validate.compare import Agreement, Gates, compare
from clusir.export.validate.tolerances import Tolerance
from clusir.network.model import ClusIR, Restoration
from clusir.network.pooled import PooledStatistics
from clusir.runtimes.runners.base import Array, Runner
from clusir.spec import ModelSpec

__all__ = [
    "ParityCase",
    "ParityRow",
    "check_rows",
    "output_names",
    "parity_cases",
    "permission_vectors",
    "reference_outputs",
    "remembered_answers",
    "run_case",
    "uniform_routing",
]

_MIDDLE_SEVERITY = 0.5
_KEPT_PIXELS = 4 * 256 * 256  # of a case whose pictures are kept: each file of an export is compared on the same
_LARGEST_STATISTIC = 1 / 32  # rows of channel attention then sum to about 1, as after a softmax


@dataclass(frozen=True)
class ParityCase:
    """One input: ``image`` float32 Bx3xHxW in 0..1, all of one degradation."""

    degradation: str
    image: Array

    @property
    def size(self) -> str:
        return f"{self.image.shape[2]}x{self.image.shape[3]}"


@dataclass(frozen=True)
class ParityRow:
    """One comparison: an Agreement (see there for the figures) and what it is of. ``fault``: why it is not ``ok``."""

    artefact: str
    runner: str
    degradation: str
    size: str
    batch: int
    max_abs: float
    psnr_db: float
    flips: int
    ok: bool
    routing_db: float = float("inf")
    decisions: int = 0
    flip_share: float = 0.0
    fault: str = ""

    @classmethod
    def of(cls, found: Agreement, artefact: str, runner: str, case: ParityCase, bound: Tolerance) -> ParityRow:
        return cls(
            artefact, runner, case.degradation, case.size, len(case.image), found.max_abs, found.psnr_db, found.flips,
            found.ok, found.routing_db, found.decisions, bound.flip_share, found.fault,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "routing_db": None if self.routing_db == float("inf") else self.routing_db}


def parity_cases(
    sizes: Sequence[tuple[int, int]], batches: Sequence[int], kinds: Iterable[str] = (*KINDS, "none")
) -> Iterator[ParityCase]:
    """Degraded crops of free photos: every degradation at every size (height, width in pixels) and batch."""
    for kind, (height, width), batch in product(kinds, sizes, batches):
        make = _kept_pictures if batch * height * width <= _KEPT_PIXELS else _pictures
        yield ParityCase(kind, make(kind, height, width, batch).copy())


def _pictures(kind: str, height: int, width: int, batch: int) -> Array:
    photos = built_in_photos(16).photos
    rng = np.random.default_rng([height, width, batch, *kind.encode()])
    pictures = []
    for _ in range(batch):
        photo = photos[int(rng.integers(len(photos)))]
        crop = fill(photo.crop(0, 0, max(photo.height, photo.width)), height, width)
        pictures.append(crop if kind == "none" else degrade(crop, kind, _MIDDLE_SEVERITY, rng))
    return np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2))


_kept_pictures = lru_cache(32)(_pictures)


def fill(image: Array, height: int, width: int) -> Array:
    """Crop HxWx3 to the size from its middle, mirrored outwards where it is smaller."""
    missing = [(max(0, want - have), want) for want, have in zip((height, width), image.shape, strict=False)]
    image = np.pad(image, [*((0, m) for m, _ in missing), (0, 0)], mode="symmetric")
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


_Answers = dict[tuple[int, str, bytes], dict[str, Array]]
_REMEMBERED: ContextVar[_Answers | None] = ContextVar("answers of PyTorch", default=None)


@contextlib.contextmanager
def remembered_answers() -> Iterator[None]:
    """Within it :func:`reference_outputs` runs once for the same numbers, however many files are compared with them.
    The models that are asked must live and stay as they are meanwhile."""
    before = _REMEMBERED.set({})
    try:
        yield
    finally:
        _REMEMBERED.reset(before)


def reference_outputs(model: ClusIR, feeds: Mapping[str, Array], graph: str = "whole") -> dict[str, Array]:
    """What PyTorch (float32, eval, sparse experts) says, under the tensor names of ``graph``."""
    known = _REMEMBERED.get()
    if known is None:
        return _answers(model, feeds, graph)
    numbers = hashlib.sha256()
    for name, array in sorted(feeds.items()):
        numbers.update(repr((name, array.shape, array.dtype.str)).encode() + array.tobytes())
    key = (id(model), graph, numbers.digest())
    if key not in known:
        known[key] = _answers(model, feeds, graph)
    return dict(known[key])


def _answers(model: ClusIR, feeds: Mapping[str, Array], graph: str) -> dict[str, Array]:
    with torch.inference_mode():
        image = torch.from_numpy(feeds["image"])
        routing, pooled = None, PooledStatistics(together=graph == "router")
        if graph == "tile":
            pooled = PooledStatistics(torch.from_numpy(feeds["statistics"]))
            routing = _split_routing(model, feeds)
        asked = torch.from_numpy(feeds["permissions"]) if "permissions" in feeds else None
        done: Restoration = model(image, routing, pooled, asked)
    outputs = {
        "restored": done.restored,
        "posterior": torch.cat(done.posteriors, dim=1),
        "gate": torch.cat(done.gates, dim=1),
        "expert_probability": torch.cat(done.expert_probabilities, dim=1),
    }
    if graph != "tile":
        outputs["statistics"] = pooled.recorded()
    if done.evidence is not None:
        outputs["evidence"] = done.evidence
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def _statistics_under(model: ClusIR, image: Array, routing: Mapping[str, Array]) -> Array:
    """The pooled statistics BxS that ``model`` finds in ``image`` where its routing is given."""
    pooled = PooledStatistics()
    with torch.inference_mode():
        model(torch.from_numpy(image), _split_routing(model, routing), pooled)
    found: Array = pooled.recorded().numpy()
    return found


def _split_routing(model: ClusIR, feeds: Mapping[str, Array]) -> tuple[tuple[Tensor, Tensor], ...]:
    config = model.config
    posteriors = torch.split(torch.from_numpy(feeds["posterior"]), list(config.clusters), dim=1)
    gates = torch.split(torch.from_numpy(feeds["gate"]), [config.experts] * config.levels, dim=1)
    return tuple(zip(posteriors, gates, strict=True))


def uniform_routing(spec: ModelSpec, model: ClusIR | None = None) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """Routing feeds for a tile graph: gates that send neighbouring samples and levels to different experts, so that
    over a batch and the calls that follow every expert of every level runs.

    With ``model`` the posterior and the gate's weight are what it finds in the picture, and the statistics what it
    finds under that routing, each moved by up to 2 % so that none can be left out or taken for another. Without, the
    posterior is even, weights are 0.75 and statistics small, positive and all different: right for untrained weights,
    while trained ones answered such numbers with values of 13,550 in the picture, of which PyTorch's own float32
    differed from float64 by 0.05.
    """
    turn = count()

    def feeds(given: Mapping[str, Array]) -> dict[str, Array]:
        batch = len(given["image"])
        start = next(turn)
        own = reference_outputs(model, given) if model is not None else None
        posterior = np.concatenate([np.full((batch, n), 1.0 / n, np.float32) for n in spec.clusters], axis=1)
        gates = []
        first = 0
        for level, experts in enumerate(spec.experts):
            chosen = (start + level + np.arange(batch)[:, None] + np.arange(spec.top_k)) % experts
            gate = np.zeros((batch, experts), np.float32)
            weight = np.full((batch, 1), 0.75 if spec.top_k == 1 else 1.0, np.float32)
            if own is not None:
                weight = own["gate"][:, first : first + experts].sum(axis=1, keepdims=True)
            np.put_along_axis(gate, chosen, np.broadcast_to(weight / spec.top_k, chosen.shape), axis=1)
            gates.append(gate)
            first += experts
        made = {"posterior": posterior if own is None else own["posterior"], "gate": np.concatenate(gates, axis=1)}
        if spec.statistics:
            rng = np.random.default_rng(start)
            if model is None:
                values = rng.uniform(0, _LARGEST_STATISTIC, (batch, spec.statistics))
            else:
                moved = rng.uniform(0.98, 1.02, (batch, spec.statistics))
                values = _statistics_under(model, given["image"], made) * moved
            made["statistics"] = values.astype(np.float32)
        return made

    return feeds


def output_names(spec: ModelSpec) -> tuple[str, ...]:
    """The outputs that a graph must have, in the order of the form."""
    statistics = ("statistics",) if spec.statistics else ()
    if spec.graph == "router":
        evidence = ("evidence",) if spec.families else ()
        return ("posterior", "expert_probability", *statistics, *evidence)
    if spec.graph == "tile" or not spec.routed:
        return ("restored",)
    return ("restored", "posterior", "gate", "evidence") if spec.families else ("restored", "posterior", "gate")


def permission_vectors(spec: ModelSpec) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """What a router is told, in turn: nothing, all, no family at all, one family alone, several in part, and, where
    there are floors, all of which there is a trace. Six at most, as many as an export compares a router on."""
    families = len(spec.families)
    kinds = [-1.0, 1.0, 0.0, *([-2.0] if spec.evidence_floors else [])]
    parts = [0.4, -0.5, *([-1.25] if spec.evidence_floors else [])]
    turn = count()

    def feeds(given: Mapping[str, Array]) -> dict[str, Array]:
        start = next(turn)
        kind = start % (len(kinds) + 2)
        permissions = np.full((1, families), kinds[kind] if kind < len(kinds) else 0.0, np.float32)
        if kind == len(kinds):
            permissions[0, start % families] = 1.0
        elif kind > len(kinds):
            permissions[0] = np.resize(parts, families)
        return {"permissions": permissions}

    return feeds


def run_case(
    runner: Runner,
    feeds: Mapping[str, Array],
    reference: Mapping[str, Array],
    case: ParityCase,
    bound: Tolerance,
    artefact: str,
) -> ParityRow:
    """Run one case and hold every output against the reference's for the same feeds (see :func:`reference_outputs`)."""
    spec = runner.spec
    gates = Gates(spec.experts, spec.top_k, reference.get("expert_probability")) if spec.routed else None
    expected = {name: reference[name] for name in output_names(spec)}
    found = compare(expected, runner.run(feeds), bound, gates)
    return ParityRow.of(found, artefact, runner.name, case, bound)


def check_rows(rows: Sequence[ParityRow], artefacts: Iterable[str] = ()) -> None:
    """Raise ValidationError where any row is not right (naming the worst), where there is none, where one of
    ``artefacts`` has none, or where more of a file's experts than its tolerance allows are chosen otherwise."""
    missing = [name for name in artefacts if all(row.artefact != name for row in rows)]
    if not rows or missing:
        raise ValidationError(f"{missing[0] if missing else 'the export'}: nothing was compared with the reference")
    failed = [row for row in rows if not row.ok]
    if failed:
        worst = min(failed, key=lambda row: row.psnr_db)
        raise ValidationError(
            f"{worst.artefact} on {worst.runner} disagrees with the reference in {len(failed)} of {len(rows)} cases; "
            f"worst: {worst.degradation} {worst.size} batch {worst.batch}: {worst.fault} (max abs {worst.max_abs:.2e}, "
            f"{worst.psnr_db:.1f} dB, {worst.flips} route flips)"
        )
    for artefact, runner in dict.fromkeys((row.artefact, row.runner) for row in rows):
        mine = [row for row in rows if (row.artefact, row.runner) == (artefact, runner)]
        flips, decisions = (sum(getattr(row, name) for row in mine) for name in ("flips", "decisions"))
        if not (flips <= mine[0].flip_share * decisions):
            raise ValidationError(
                f"{artefact} on {runner} chooses other experts than the reference in {flips} of {decisions} cases; "
                f"allowed is a share of {mine[0].flip_share:g}"
            )
