"""What a training run is: :class:`TrainConfig`, and the learning rate that follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from clusir.degrade.recipe import ALL_KINDS
from clusir.errors import UsageError
from clusir.network.model import CONFIGS, ModelConfig
from clusir.training.data import DEFAULT_COUNTS, DEFAULT_SEVERITIES, DEFAULT_WEIGHTS
from clusir.training.precision import ARITHMETICS

__all__ = ["FINE_TUNE_DEFAULTS", "Stage", "TrainConfig", "learning_rate"]

FINE_TUNE_DEFAULTS: dict[str, Any] = {
    "learning_rate": 7e-4, "calibrate_at": (), "bend_until": 0.0, "router_noise_until": 0.0,
}  # fmt: skip
"""What ``clusir-train --start-from`` changes of TrainConfig's defaults: what only random weights need is left out."""


@dataclass(frozen=True)
class Stage:
    """From ``start`` (share of the budget, 0..1) on, batches have this shape."""

    start: float
    batch: int
    crop_px: int
    quads: int


@dataclass(frozen=True)
class TrainConfig:
    """A run. Exactly one of ``steps`` and ``seconds`` is the budget; figures not explained were chosen by trial."""

    model: str = "tiny"
    # Whether the network takes permissions, one for each family of degradations (see ModelConfig.permissions).
    permissions: bool = False
    # The share of crops outside quads that come with permissions of their own.
    restricted: float = 0.5
    # The share of undamaged crops that are as soft and noisy as a camera's pixels, and are to be kept so, and of crops
    # with a camera's noise that are as soft.
    as_taken: float = 0.0
    # Pictures of text and flat walls that join the photos (see clusir.training.drawn).
    drawn_pictures: int = 0
    seed: int = 0
    steps: int = 0
    seconds: float = 0.0
    learning_rate: float = 1.5e-3
    final_learning_rate: float = 2e-6
    warmup_steps: int = 200
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    # Small crops first: most of what there is to learn is local, and a step costs what its pixels cost. The last part
    # sees crops as large as pooling, channel attention and the Fourier split will see tiles.
    stages: tuple[Stage, ...] = (
        Stage(0.0, 8, 64, 1),
        Stage(0.35, 12, 64, 2),
        Stage(0.7, 6, 96, 1),
        Stage(0.88, 4, 128, 1),
    )
    weights: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_WEIGHTS))
    # The shares of pictures with no degradation, one kind, two, three at a time.
    counts: tuple[float, ...] = DEFAULT_COUNTS
    # The range of severities of each kind that is not drawn from all of 0..1.
    severities: dict[str, tuple[float, float]] = field(default_factory=lambda: dict(DEFAULT_SEVERITIES))
    # Until this share of the budget the restoration loss bends from the RMSE to its logarithm (see losses): with the
    # logarithm from the first step, random weights had not learnt haze and low light after 3000.
    bend_until: float = 0.5
    # How far it bends: 0 keeps the RMSE, 1 ends at the logarithm, where a picture that is nearly right already pulls
    # ten times as hard as a dark or hazy one.
    bend_to: float = 1.0
    # Weights of the losses, relative to the restoration loss, whose values run from 3 (untrained) to 1.
    spectrum: float = 0.05
    orthogonality: float = 0.1
    balance: float = 0.1
    cluster: float = 0.02
    # Small on purpose: with 0.4, haze and low light were still not learnt after 4000 steps, although alone they are in
    # 50, and this loss's gradient was several times the restoration's. Other settings changed in the same restart, so
    # that the weight was the cause is likely, not shown.
    agreement: float = 0.1
    # Until this share of the budget the routers draw noise, so that every expert learns everything; from then on the
    # balance loss sees the choices that inference will make, which noise evens out for it.
    router_noise_until: float = 0.5
    # Until this share of the budget dense convolutions may run in bfloat16.
    half_until: float = 0.85
    # One of train_precision.ARITHMETICS, or "auto": on a CPU what is fastest there, on a GPU float32 channels_last. A
    # resumed run keeps what it began with; two runs end in the same bits only with the same arithmetic.
    arithmetic: str = "auto"
    # On one CUDA device: replay steps as CUDA graphs (see train_graph).
    cuda_graphs: bool = True
    # Steps before which the routers' projections are set to what separates the degradation seen so far (see
    # train_routing).
    calibrate_at: tuple[int, ...] = (0, 300, 900, 2000)
    calibration_batches: int = 20
    # Batches of 16 crops of 96 px on which the deblurring blend is fitted before the first step (see train_deblur):
    # about three minutes of one core. 0: it is learnt with the rest.
    deblur_batches: int = 300
    # Crops of 256 px on which the evidence for each family is fitted after the last step (clusir.training.judge), and
    # as many each for the heads behind it and the filter: about half an hour of one core. 0: every family is sure.
    evidence_crops: int = 8000
    # Feel the rounding of the INT8 file (see train_qat); ranges are measured on this many batches of 8.
    qat: bool = False
    qat_batches: int = 12
    validate_every_s: float = 900.0
    save_every_s: float = 300.0
    validation_photos: int = 8
    validation_crop_px: int = 192

    def __post_init__(self) -> None:
        if self.model not in CONFIGS:
            raise UsageError(f"no configuration named {self.model!r}; there are {', '.join(CONFIGS)}")
        if (self.steps > 0) == (self.seconds > 0):
            raise UsageError("give exactly one of steps (--steps) and seconds (--time-budget)")
        if self.qat and CONFIGS[self.model].feed_forward != "conv":
            raise UsageError(
                f"qat trains configurations of dense convolutions (tiny); {self.model} is quantised as it is"
            )
        if not self.counts or min(self.counts) < 0 or abs(sum(self.counts) - 1) > 1e-6:
            raise UsageError(f"counts {list(self.counts)} are not shares that sum to 1")
        for kind, (low, high) in self.severities.items():
            if kind not in ALL_KINDS or not 0.0 <= low <= high <= 1.0:
                raise UsageError(
                    f"severities: {kind} from {low} to {high} is no range within 0..1 of one of {', '.join(ALL_KINDS)}"
                )
        self._check_numbers()
        if self.arithmetic not in ("auto", *ARITHMETICS):
            raise UsageError(f"arithmetic {self.arithmetic!r} is not one of auto, {', '.join(ARITHMETICS)}")
        if not self.stages or self.stages[0].start != 0 or list(self.stages) != sorted(self.stages, key=_start):
            raise UsageError("stages must begin at 0 and follow each other")
        for stage in self.stages:
            if stage.crop_px % CONFIGS[self.model].size_multiple or stage.batch < max(1, 4 * stage.quads):
                raise UsageError(
                    f"stage {stage}: crop_px must be a multiple of {CONFIGS[self.model].size_multiple} "
                    "and batch at least 4 x quads"
                )

    def _check_numbers(self) -> None:
        for kind, weight in self.weights.items():
            if kind not in ALL_KINDS:
                raise UsageError(f"weights: {kind!r} is no kind of degradation; there are {', '.join(ALL_KINDS)}")
            if not 0.0 <= weight < math.inf:
                raise UsageError(f"weights: {kind} {weight} is not a number from 0 up")
        if not sum(self.weights.values()) > 0:
            raise UsageError("weights: no kind of degradation has a weight over 0; there is nothing to train on")
        for name in ("bend_until", "bend_to", "router_noise_until", "half_until", "restricted", "as_taken"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"{name} {getattr(self, name)} is not within 0..1")
        for name in ("learning_rate", "clip_norm"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} {getattr(self, name)} is not a number over 0")
        losses = ("spectrum", "orthogonality", "balance", "cluster", "agreement")
        periods = ("validate_every_s", "save_every_s")
        for name in (*losses, *periods, "final_learning_rate", "weight_decay", "warmup_steps", "deblur_batches"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} {getattr(self, name)} is not a number from 0 up")
        for name, least in (
            ("drawn_pictures", 0),
            ("evidence_crops", 0),
            ("calibration_batches", 1),
            ("validation_photos", 1),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"{name} {getattr(self, name)} is not at least {least}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise UsageError(f"ema_decay {self.ema_decay} is not within 0..1, 1 left out")
        if any(step < 0 for step in self.calibrate_at):
            raise UsageError(f"calibrate_at {list(self.calibrate_at)} names a step before the first, 0")
        multiple = self.network().size_multiple
        if self.validation_crop_px < multiple or self.validation_crop_px % multiple:
            raise UsageError(f"validation_crop_px {self.validation_crop_px} must be a multiple of {multiple}")

    def network(self) -> ModelConfig:
        """The configuration of the network that this run trains."""
        return replace(CONFIGS[self.model], permissions=self.permissions)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """From JSON or TOML. Raises UsageError on unknown fields and on values that do not fit."""
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            allowed = ", ".join(cls.__dataclass_fields__)
            raise UsageError(f"training config: unknown field {sorted(unknown)[0]!r}; there are {allowed}")
        values = dict(values)
        try:
            if "stages" in values:
                values["stages"] = tuple(Stage(**s) if isinstance(s, dict) else Stage(*s) for s in values["stages"])
            if "counts" in values:
                values["counts"] = tuple(float(share) for share in values["counts"])
            if "severities" in values:
                values["severities"] = {k: (float(low), float(high)) for k, (low, high) in values["severities"].items()}
            if "calibrate_at" in values:
                values["calibrate_at"] = tuple(int(step) for step in values["calibrate_at"])
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise UsageError(f"training config: {error}") from error


def _start(stage: Stage) -> float:
    return stage.start


def learning_rate(config: TrainConfig, step: int, used: float) -> float:
    """Linear warm-up over ``warmup_steps``, then a cosine over the share ``used`` of the budget."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(used, 1.0)))
    rate = config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * cosine
    return rate * min(1.0, (step + 1) / max(config.warmup_steps, 1))
