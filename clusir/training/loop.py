"""Training: :func:`train` and its loop.

The loop is budgeted in steps or in seconds; the learning rate, the crop's size and the arithmetic all follow the
share of the budget that is used up, so that the same configuration serves a smoke test and a night. A run lives in
one folder: ``state`` to resume from, ``ema.safetensors`` to load with :func:`clusir.network.checkpoint.load`,
``log.csv``.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clusir.errors import BackendError, UsageError
from clusir.network import checkpoint
from clusir.network.model import ClusIR, Restoration
from clusir.network.router import ClusterRouter
from clusir.training import losses
from clusir.training.card import RunFacts, write_card
from clusir.training.config import FINE_TUNE_DEFAULTS, Stage, TrainConfig, learning_rate
from clusir.training.cuda_graph import GraphedForward
from clusir.training.curve import curve_svg, read_curve
from clusir.training.data import Batch, BatchPlan, PhotoSet, Prefetcher, draw_batch
from clusir.training.deblur import DEBLUR_WEIGHTS, calibrate_deblur
from clusir.training.judge.evidence import judge_weights
from clusir.training.labels import label_weights
from clusir.training.monitor import LOG_NAME, RouterMonitor, TrainLog, validate
from clusir.training.precision import choose_arithmetic, half_convolutions, is_half, layout_of
from clusir.training.quantised import Ranges, RoundedTwin, prepare
from clusir.training.routing import CALIBRATED, calibrate_routers
from clusir.training.state import Average, read_header, read_state, restore_optimizer, write_state

__all__ = ["FINE_TUNE_DEFAULTS", "Progress", "Stage", "TrainConfig", "learning_rate", "resumed_config", "train"]

STATE_NAME, AVERAGE_NAME = "state.safetensors", "ema.safetensors"
_AHEAD = 3  # batches prepared in advance
_MOST_WORKERS = 8


@dataclass
class Progress:
    """What the loop tells its observer after each step."""

    step: int
    used: float
    seconds: float
    losses: dict[str, float]
    validation: dict[str, float] | None = None


class _Run:
    """The state of a run and one step of it."""

    def __init__(
        self,
        config: TrainConfig,
        data: Path,
        out: Path,
        device: str,
        resume: bool,
        start: Path | None,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.out = config, out
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.device = torch.device(device)
        self.photos = PhotoSet(data, "train", drawn=config.drawn_pictures)
        self.validation = PhotoSet(data, "validation") if self.rank == 0 else None
        torch.manual_seed(config.seed)  # the same weights on every rank
        model = ClusIR(config.network())
        fresh = [name for name, _ in model.named_parameters()] if start is None else start_from(model, start)
        if model.evidence is not None:
            model.evidence.floors.zero_()
            model.evidence.thresholds.zero_()  # nothing is held back until the end of the run says what is sure
        model = model.to(self.device)
        self.arithmetic = self._arithmetic(model, resume)
        model = model.to(memory_format=layout_of(self.arithmetic))  # type: ignore[call-overload]
        self.model = model
        if config.deblur_batches and not resume and any(name.startswith("deblur.") for name in fresh):
            say("fitting the deblurring blend (a few minutes; deblur_batches in the configuration)")
            self.calibrate_deblur()
        self.ranges = self._rounding_ranges(resume) if config.qat else None
        self.average = Average(model, config.ema_decay)
        decayed = [p for p in model.parameters() if p.ndim > 1]
        plain = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99))
        # Running joint cluster distribution of partners, per level; its row sums are the running mean posterior.
        self.running = [torch.full((n, n), 1.0 / n**2, device=self.device) for n in model.config.clusters]
        self.step, self.seconds = 0, 0.0
        self.start = "" if start is None else str(start)
        if resume:
            header = read_header(out / STATE_NAME)
            self.start = str(header.get("start", ""))
            tensors, running = read_state(out / STATE_NAME, model, self.average)
            restore_optimizer(self.optimizer, model, tensors)
            self.running = [r.to(self.device) for r in running]
            self.step, self.seconds = int(header["step"]), float(header["seconds"])
        self.wrapped: nn.Module = model
        if self.ranges is not None:
            self.wrapped = RoundedTwin(model, self.ranges)
        if dist.is_initialized():
            ids = [self.device.index] if self.device.type == "cuda" else None
            # Experts that no sample of a batch chose have no gradient in it.
            self.wrapped = nn.parallel.DistributedDataParallel(
                self.wrapped, device_ids=ids, find_unused_parameters=True
            )
        if self.rank:  # of its own noise; also where rank 0's random state was read
            torch.manual_seed(config.seed + 1000 * self.rank + self.step)
        self.routers = [m for m in model.modules() if isinstance(m, ClusterRouter)]
        self.graphed: GraphedForward | None = None
        graphs = config.cuda_graphs and not config.permissions  # captured with one input
        if self.wrapped is model and self.device.type == "cuda" and graphs:
            self.graphed = GraphedForward(model)

    def used(self) -> float:
        """The share of the budget used up, the same on every rank."""
        config = self.config
        share = self.step / config.steps if config.steps else self.seconds / config.seconds
        if dist.is_initialized():
            held = torch.tensor([share], device=self.device, dtype=torch.float64)
            dist.broadcast(held, 0)
            share = float(held)
        return share

    def plan(self, used: float) -> BatchPlan:
        config = self.config
        stage = [s for s in config.stages if s.start <= used or s.start == 0][-1]
        restricted = config.restricted if config.permissions and not config.qat else 0.0
        shape = (stage.batch, stage.crop_px, stage.quads)
        return BatchPlan(*shape, config.counts, config.severities, restricted, config.as_taken)

    def advance(self, batch: Batch, used: float, monitor: RouterMonitor) -> dict[str, float]:
        """One optimizer step; returns the losses as numbers."""
        config = self.config
        rate = learning_rate(config, self.step, used)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.wrapped.train()
        for router in self.routers:
            router.train(used < config.router_noise_until)
        degraded, clean = batch.degraded.to(self.device), batch.clean.to(self.device)
        degraded = degraded.contiguous(memory_format=layout_of(self.arithmetic))
        half = is_half(self.arithmetic) and used < config.half_until
        if self.graphed is not None:
            output = self.graphed(degraded, half=half)
        else:
            with half_convolutions(self.model) if half else nullcontext():
                if config.permissions and not config.qat:
                    output = self.wrapped(degraded, permissions=batch.permissions.to(self.device))
                else:
                    output = self.wrapped(degraded)
        if self.ranges is not None:  # the restored pictures stand there twice: in float, and rounded
            clean = torch.cat((clean, clean))
        power = config.bend_to * (min(1.0, used / config.bend_until) if config.bend_until else 1.0)
        terms = self.loss_terms(output, clean, batch, power)
        weight = {"error": 1.0} | {name: float(getattr(config, name)) for name in terms if name != "error"}
        total = torch.stack([weight[name] * term for name, term in terms.items()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        # Everything that the host wants to know, at once: a GPU is waited for once a step.
        *values, length = torch.stack([*(t.detach() for t in terms.values()), norm]).tolist()
        finite = math.isfinite(length)
        if finite:  # one bad batch must not end a night's run: it is skipped, and counted in the log
            self.optimizer.step()
            self.average.update(self.model, self.step)
            with torch.no_grad():
                for past, posterior in zip(self.running, output.posteriors, strict=True):
                    joint = losses.partner_joint(posterior.detach(), batch.recipe, batch.photo)
                    if joint is not None:
                        past.lerp_(joint, 0.05)
        self.step += 1
        free = (batch.permissions == 1).all(dim=1).tolist()  # others go where they may, not where they belong
        names = [name if may else "" for name, may in zip(batch.names, free, strict=True)]
        monitor.add([p.detach() for p in output.posteriors], [g.detach() for g in output.gates], names)
        figures = {f"loss/{name}": value for name, value in zip(terms, values, strict=True)}
        return figures | {"grad_norm": length, "learning_rate": rate, "skipped": float(not finite)}

    def _arithmetic(self, model: ClusIR, resume: bool) -> str:
        """How steps compute, the same on every rank: as configured, as the resumed run did, or by trial."""
        config = self.config
        if resume:
            return str(
                read_header(self.out / STATE_NAME).get("arithmetic", "bfloat16" if config.half_until else "float32")
            )
        if config.arithmetic != "auto":
            return config.arithmetic
        if self.device.type != "cpu":
            return "float32 channels_last"  # convolutions round to TF32, torch's default
        stage = config.stages[0]
        found = [choose_arithmetic(model, stage.batch, stage.crop_px, half=config.half_until > 0)]
        if dist.is_initialized():
            dist.broadcast_object_list(found, 0)
        return found[0]

    def _rounding_ranges(self, resume: bool) -> Ranges:
        """The ranges of an INT8 file, from batches that are the same on every rank; a resumed run keeps its own."""
        if resume:
            return Ranges.from_json(read_header(self.out / STATE_NAME)["ranges"])
        config, plan = self.config, BatchPlan(8, self.config.stages[0].crop_px, 0)
        seeds = ((config.seed, 0, 0, index + 1) for index in range(config.qat_batches))
        images = (draw_batch(self.photos, plan, seed, config.weights).degraded for seed in seeds)
        return prepare(self.model, images)

    def calibrate(self) -> None:
        """Set the routers' projections from batches that are all quads; the same on every rank."""
        config = self.config
        plan = BatchPlan(16, config.stages[0].crop_px, 4)
        batches = (
            draw_batch(self.photos, plan, (config.seed, self.step, 0, index + 1), config.weights)
            for index in range(config.calibration_batches)
        )
        for parameter in calibrate_routers(self.model, batches):
            self.optimizer.state.pop(parameter, None)  # moments of weights that are gone
        # The averaged weights, which are validated and shipped, take them too: half of the old would last 350 steps.
        theirs = dict(self.average.model.named_parameters())
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if any(name.endswith(f"router.{part}") for part in CALIBRATED):
                    theirs[name].copy_(parameter)
        for past in self.running:
            past.fill_(1.0 / len(past) ** 2)

    def calibrate_deblur(self) -> None:
        """Teach the deblurring blend what to blend, from batches that are the same on every rank."""
        config = self.config
        plan = BatchPlan(16, 96, 0, config.counts, config.severities)
        seeds = ((config.seed, 0, 1, index + 1) for index in range(config.deblur_batches))
        batches = (draw_batch(self.photos, plan, seed, DEBLUR_WEIGHTS, "blur") for seed in seeds)
        calibrate_deblur(self.model, batches, config.seed)

    def loss_terms(self, output: Restoration, clean: Tensor, batch: Batch, power: float) -> dict[str, Tensor]:
        recipe, photo = batch.recipe, batch.photo
        return {
            "error": losses.log_error(output.restored, clean, power),
            "spectrum": losses.spectrum_error(output.restored, clean, power),
            "orthogonality": losses.orthogonality_loss([r.unit_prototypes() for r in self.routers]),
            "balance": losses.balance_loss(output.expert_probabilities, output.gates),
            "cluster": losses.cluster_loss(output.posteriors, [joint.sum(1) for joint in self.running]),
            "agreement": losses.agreement_loss(output.posteriors, self.running, recipe, photo),
        }

    def facts(self) -> RunFacts:
        """What the card says of the run."""
        held = len(self.validation) if self.validation is not None else 0
        return RunFacts(self.step, self.seconds, self.arithmetic, str(self.device), len(self.photos), held, self.start)

    def save(self, *, done: bool = False) -> None:
        """The state to resume from, and the averaged weights as a checkpoint. Rank 0 only."""
        if self.rank:
            return
        header = {"step": self.step, "seconds": self.seconds, "done": done, "config": asdict(self.config)}
        header |= {"arithmetic": self.arithmetic, "start": self.start}
        if self.ranges is not None:
            header["ranges"] = self.ranges.to_json()
        write_state(self.out / STATE_NAME, self.model, self.average, self.optimizer, self.running, header)
        note = json.dumps({k: header[k] for k in ("step", "seconds", "config")})
        checkpoint.save(self.average.model, self.out / AVERAGE_NAME, {"training": note})


def train(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    device: str = "cpu",
    resume: bool = False,
    start: Path | None = None,
    workers: int | None = None,
    observe: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Train (or go on training) and return the path of the averaged weights.

    ``data`` is a folder of clean photos, ``out`` the run's folder. ``start``: a checkpoint whose weights a new run
    begins with; its routers are kept, so ``calibrate_at`` does not count (``FINE_TUNE_DEFAULTS`` has what else suits
    given weights). ``workers``: processes that draw batches; 0 is one thread of this one, None chooses (0 on a CPU).
    ``observe`` is called after every step, ``say`` with what takes long before the first; where
    ``stop`` returns true the state is saved and the function returns. Under torchrun every process calls this; rank 0
    writes. Raises UsageError and BackendError.
    """
    if start is not None:
        if resume:
            raise UsageError(
                f"a resumed run has its own weights: drop {start} (--start-from), or begin in a new folder"
            )
        config = replace(config, calibrate_at=())
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BackendError(f"device {device!r} was asked for and torch sees no CUDA device; use --device cpu")
    out.mkdir(parents=True, exist_ok=True)
    if not resume and (out / STATE_NAME).exists():
        raise UsageError(f"{out} already holds a run; go on with --resume, or choose another folder")
    run = _Run(config, data, out, device, resume, start, say)
    log = TrainLog(out) if run.rank == 0 else None
    monitor = RouterMonitor()
    saved = validated = run.seconds
    window: dict[str, list[float]] = {}
    if workers is None:
        workers = min(_MOST_WORKERS, max(1, (os.cpu_count() or 2) - 2)) if run.device.type == "cuda" else 0
    ahead = max(_AHEAD, 2 * workers)
    with Prefetcher(run.photos, config.seed, run.rank, config.weights, workers) as prefetcher:
        used = run.used()
        clock = time.monotonic()
        while used < 1.0 and not stop():
            # A batch's shape is fixed when it is asked for, a few steps ahead of its use.
            for later in range(ahead):
                prefetcher.ask(run.step + later, run.plan(_at(run, used, later)))
            if run.step in config.calibrate_at:
                run.calibrate()
            figures = run.advance(prefetcher.get(run.step), used, monitor)
            now = time.monotonic()
            run.seconds, clock = run.seconds + now - clock, now
            used = run.used()
            for name, value in figures.items():
                window.setdefault(name, []).append(value)
            validation = None
            if log is not None and run.step % 100 == 0:
                means = {name: sum(values) / len(values) for name, values in window.items()}
                log.write(run.step, run.seconds, means | monitor.read() | {"used": used})
                window.clear()
            if run.rank == 0 and (run.seconds - validated >= config.validate_every_s or used >= 1.0):
                validated = run.seconds
                validation = run_validation(run, log)
            if run.seconds - saved >= config.save_every_s:
                saved = run.seconds
                run.save()
            observe(Progress(run.step, used, run.seconds, figures, validation))
    run.save(done=used >= 1.0)
    if used >= 1.0 and run.validation is not None:
        label_weights(out / AVERAGE_NAME, run.validation, config.validation_crop_px, config.validation_photos)
        if config.permissions and config.evidence_crops:
            say("fitting the evidence for each family (minutes; evidence_crops in the configuration)")
            judge_weights(out / AVERAGE_NAME, run.photos, run.validation, config.weights, config.evidence_crops)
    if log is not None:
        log.close()
        if used >= 1.0 and run.validation is not None:
            write_card(out, data, out / AVERAGE_NAME, config, run.facts())
        if curves := read_curve(out / LOG_NAME):
            (out / "curve.svg").write_text(curve_svg(curves), "utf-8")
    return out / AVERAGE_NAME


def start_from(model: ClusIR, path: Path) -> list[str]:
    """Copy the weights of a checkpoint into ``model``; parameters that it lacks keep their start, and are returned.

    That lets a configuration grow: a part that starts as the identity joins trained ones. Raises UsageError where the
    checkpoint's other parts do not fit.
    """
    found = checkpoint.load(path).state_dict()
    mine = model.state_dict()
    wrong = [n for n, t in found.items() if n not in mine or mine[n].shape != t.shape]
    if wrong:
        raise UsageError(f"{path} does not fit the {len(mine)} tensors of this model: {wrong[0]} differs; see --model")
    model.load_state_dict(mine | found)
    return [name for name in mine if name not in found]


def _at(run: _Run, used: float, ahead: int) -> float:
    """The share of a step budget ``ahead`` steps on; of a time budget, the share now (a step is little of it)."""
    return (run.step + ahead) / run.config.steps if run.config.steps else used


def run_validation(run: _Run, log: TrainLog | None) -> dict[str, float]:
    assert run.validation is not None
    config = run.config
    figures = validate(run.average.model, run.validation, config.validation_crop_px, config.validation_photos)
    if log is not None:
        log.write(run.step, run.seconds, figures)
    return figures


def resumed_config(out: Path, **changes: Any) -> TrainConfig:
    """The configuration that the run in ``out`` was started with, with ``changes`` to its budget or its logging."""
    return replace(TrainConfig.from_dict(read_header(out / STATE_NAME)["config"]), **changes)
