"""From the float32 graphs of an export to FP16 and INT8: draw, calibrate, keep the budget, measure, advise."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from clusir.calibration.balance import BalanceConfig, Draw
from clusir.calibration.base import CalibrationSource, Sample
from clusir.calibration.coverage import Coverage
from clusir.calibration.manifest import Manifest, write_manifest
from clusir.calibration.model_source import for_model
from clusir.calibration.sources import hold_out, open_source
from clusir.errors import BackendError, BudgetError, CalibrationError, ClusirError, ExportError, UsageError
from clusir.export.precision.advice import Advice, Timing, advise, time_variants
from clusir.export.precision.evaluate import Evaluator
from clusir.export.precision.frontier import BudgetConfig, Frontier, search_budget
from clusir.export.precision.frontier_plot import frontier_svg
from clusir.export.precision.loss import QualityLoss
from clusir.export.precision.record import undamaged, undamaged_loss, write_losses
from clusir.export.precision.sensitivity import Journal
from clusir.export.quantize.data import Reference, calibrate, crop_px_of, draw_calibration, draw_evaluation
from clusir.export.quantize.float16 import Fp16Config, Fp16Report, convert_fp16
from clusir.export.quantize.steps import QuantizeConfig, Quantizer, QuantizeReport, write_atomically
from clusir.names import BFLOAT16, ONNX_BACKENDS, PRECISIONS, installed_backends

__all__ = ["PrecisionConfig", "PrecisionReport", "evaluation_samples", "make_precisions"]

ENGINES = ("ort", "nncf")
_FP16_CROPS = 8


@dataclass(frozen=True)
class PrecisionConfig:
    """What ``clusir-export --precision`` asks for; ``bf16`` makes no file, its loss is measured.

    ``calibration``: a folder (None: built-in photos); ``manifest``: a former calibration.json to draw from again.
    ``evaluation_crops`` crops of every degradation measure the loss; no calibration crop is among them. ``backends``:
    on which the files are measured and timed.
    """

    precisions: tuple[str, ...] = ("fp32",)
    engine: str = "ort"
    calibration: Path | None = None
    calibration_mode: str = "auto"
    manifest: Path | None = None
    seed: int = 0
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    evaluation_crops: int = 4
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    fp16: Fp16Config = field(default_factory=Fp16Config)
    timing_runs: int = 15
    backends: tuple[str, ...] = ONNX_BACKENDS

    def __post_init__(self) -> None:
        allowed = (*PRECISIONS, BFLOAT16)
        wrong = [p for p in self.precisions if p not in allowed]
        if wrong or not self.precisions:
            raise UsageError(f"precision {wrong[0] if wrong else ''!r} is not one of {', '.join(allowed)}")
        if self.engine not in ENGINES:
            raise UsageError(f"quantisation engine {self.engine!r} is not one of {', '.join(ENGINES)}")


@dataclass
class PrecisionReport:
    """Everything that was made and measured. ``files``: (precision, graph) to path. ``losses``: (backend, variant), the
    variant a precision, with the graph's name behind it where that is not the tile graph."""

    files: dict[tuple[str, str], Path] = field(default_factory=dict)
    coverage: Coverage | None = None
    manifest_sha256: str = ""
    fp16: dict[str, Fp16Report] = field(default_factory=dict)
    int8: dict[str, QuantizeReport] = field(default_factory=dict)
    frontier: Frontier | None = None
    losses: dict[tuple[str, str], QualityLoss] = field(default_factory=dict)
    timings: list[Timing] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "files": {f"{precision}:{graph}": path.name for (precision, graph), path in self.files.items()},
            "coverage": self.coverage.to_json() if self.coverage else None,
            "manifest_sha256": self.manifest_sha256,
            "fp16": {graph: report.to_json() for graph, report in self.fp16.items()},
            "int8": {graph: report.to_json() for graph, report in self.int8.items()},
            "frontier": self.frontier.to_json() if self.frontier else None,
            "losses": {f"{backend}:{variant}": loss.to_json() for (backend, variant), loss in self.losses.items()},
            "timings": [asdict(timing) for timing in self.timings],
            "advice": [entry.to_json() for entry in self.advice],
            "notes": self.notes,
        }

    def to_markdown(self) -> str:
        """Sections for the report: advice, losses per degradation, frontier, coverage, what stays in float."""
        parts: list[str] = []
        if self.advice:
            parts.append("### Which precision to use here\n\n" + "\n".join(f"- {a.sentence}" for a in self.advice))
        if self.losses:
            parts.append("### What each precision costs\n\n" + self._losses_table())
        if self.frontier is not None:
            parts.append("### Quality against size\n\n" + self.frontier.to_markdown())
        if self.coverage is not None:
            parts.append("### Calibration coverage\n\n" + self.coverage.to_markdown())
        parts += [f"### FP16, {graph} graph\n\n{made.to_markdown()}" for graph, made in self.fp16.items()]
        parts += [f"### INT8, {graph} graph\n\n{made.to_markdown()}" for graph, made in self.int8.items()]
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts)

    def _losses_table(self) -> str:
        kinds = list(next(iter(self.losses.values())).drop_db)
        lines = ["| dB lost against fp32 | " + " | ".join([*kinds, "mean", "agreement dB", "gates flipped"]) + " |"]
        lines.append("|---|" + "---:|" * (len(kinds) + 3))
        for (backend, variant), loss in self.losses.items():
            cells = [f"{loss.drop_db[kind]:.3f}" for kind in kinds]
            flips = "" if loss.flips is None else f"{100 * loss.flips:.1f} %"
            row = [f"{variant} on {backend}", *cells, f"{loss.mean_db:.3f}", f"{loss.agreement_db:.1f}", flips]
            lines.append("| " + " | ".join(row) + " |")
        return "\n".join(lines)


def make_precisions(
    folder: Path,
    stem: str,
    config: PrecisionConfig,
    *,
    state: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> PrecisionReport:
    """Make the lower precisions of ``folder/stem.onnx`` and, where it is there, ``folder/stem.tile.onnx``.

    What is measured, timed, and kept within the budget is the tile graph, which restores all pictures that clusir runs,
    with the routing of the float32 graphs; of the whole graph, quality and flipped gates are measured too. Without a
    tile graph the whole graph takes its place.

    Writes ``stem.fp16[.tile].onnx``, ``stem.int8[.tile].onnx``, ``calibration.json`` (the manifest), ``frontier.svg``,
    and ``stem.losses.json`` (what ``--precision auto`` reads) into ``folder``. ``state``: a folder that outlives a
    failed export; the journal of measurements there lets the same command go on where it was stopped. Raises
    BudgetError (exit code 4) where the budget cannot be met, after the best has been written, with the report as its
    ``report`` attribute.
    """
    report = PrecisionReport()
    if not set(config.precisions) - {"fp32"}:
        return report
    whole = folder / f"{stem}.onnx"
    tile = folder / f"{stem}.tile.onnx"
    graphs = ({"tile": tile} if tile.is_file() else {}) | {"whole": whole}
    reference = Reference(whole)
    scale, channels = (reference.spec.scale, reference.spec.planes) if reference.spec is not None else (1, 3)
    crop_px = scale * crop_px_of(reference.spec)
    photos = open_source(config.calibration, crop_px, config.seed, mode=config.calibration_mode)
    skipped = getattr(getattr(photos, "photos", None), "skipped", ())
    calibrating, held = hold_out(photos)
    source = for_model(calibrating, scale, channels)
    held_out = for_model(held, scale, channels) if held is not None else None
    samples = evaluation_samples(held_out, crop_px, (scale, channels), config, report.notes)
    failure: BudgetError | None = None
    if {"fp16", "int8"} & set(config.precisions):
        progress("drawing calibration crops")
        draw, manifest = draw_calibration(source, reference, config.balance, config.manifest)
        write_manifest(manifest, folder / "calibration.json")
        report.coverage, report.manifest_sha256 = draw.coverage, manifest.sha256
        report.notes += [f"calibration leaves out {why}" for why in skipped]
        measuring = Evaluator(reference, samples, next(iter(graphs.values())))
        evaluators = {
            graph: measuring.of(path) if path != measuring.graph else measuring for graph, path in graphs.items()
        }
        failure = _make_files(
            graphs, stem, config, _Drawn(reference, draw, manifest, evaluators), report, state, progress
        )
    else:
        first = next(iter(graphs))
        evaluators = {first: Evaluator(reference, samples, graphs[first])}
    _measure_and_advise(graphs, config, evaluators, report, progress)
    progress("quality on undamaged photos")
    _record(graphs, whole, evaluators, report)
    if failure is not None:
        failure.report = report  # type: ignore[attr-defined]
        raise failure
    return report


def _variant(path: Path, stem: str, precision: str) -> Path:
    return path.with_name(path.name.replace(stem, f"{stem}.{precision}", 1))


def evaluation_samples(
    held_out: CalibrationSource | None, crop_px: int, form: tuple[int, int], config: PrecisionConfig, notes: list[str]
) -> list[Sample]:
    """Crops with truth of photos that calibrate nothing: those held out, or the built-in ones where there are none.
    ``crop_px``: of the truth; ``form``: scale and channels of the model."""
    if held_out is None:
        if config.calibration is None:
            raise CalibrationError("the photos inside scikit-image are one only; give a folder with --calibration")
        held_out = for_model(open_source(None, crop_px, config.seed + 1), *form)
        notes.append(
            "quality is measured on the built-in photos: the calibration folder has no photo to spare, or no truth"
        )
    samples = draw_evaluation(held_out, config.evaluation_crops)
    counts = Counter(sample.degradation for sample in samples)
    short = {kind: count for kind, count in counts.items() if count < config.evaluation_crops}
    if short:
        found = ", ".join(f"{count} of {kind}" for kind, count in short.items())
        notes.append(f"quality is measured on fewer crops than the {config.evaluation_crops} wanted: {found}")
    return samples


@dataclass(frozen=True)
class _Drawn:
    """The float32 graph, the crops that calibrate it, and what measures its variants on other crops."""

    reference: Reference
    draw: Draw
    manifest: Manifest
    evaluators: dict[str, Evaluator]


def _make_files(
    graphs: dict[str, Path],
    stem: str,
    config: PrecisionConfig,
    drawn: _Drawn,
    report: PrecisionReport,
    state: Path | None,
    progress: Callable[[str], None],
) -> BudgetError | None:
    if "fp16" in config.precisions:
        for graph, path in graphs.items():
            progress(f"fp16 {graph} graph")
            out = _variant(path, stem, "fp16")
            feeds = calibrate(path, drawn.draw, drawn.reference).feeds[:_FP16_CROPS]
            report.fp16[graph] = convert_fp16(path, out, feeds, config.fp16)
            report.files["fp16", graph] = out
    if "int8" in config.precisions:
        return _make_int8(graphs, stem, config, drawn, report, state, progress)
    return None


def _make_int8(
    graphs: dict[str, Path],
    stem: str,
    config: PrecisionConfig,
    drawn: _Drawn,
    report: PrecisionReport,
    state: Path | None,
    progress: Callable[[str], None],
) -> BudgetError | None:
    reference, draw, manifest = drawn.reference, drawn.draw, drawn.manifest
    first = next(iter(graphs))
    evaluator = drawn.evaluators[first]
    settings = replace(config.quantize, manifest_sha256=manifest.sha256)
    under_served = draw.coverage.under_served
    for level, expert in under_served:
        report.notes.append(
            f"expert {expert} of level {level + 1} got {draw.coverage.experts[level][expert]} calibration crops, "
            f"{draw.coverage.minimum} are needed: its layers stay in float"
        )
    if config.engine == "nncf":
        from clusir.export.precision.nncf import PUT_BACK, quantize_nncf

        back: list[str] = []
        for graph, path in graphs.items():
            progress(f"int8 {graph} graph (NNCF)")
            out = _variant(path, stem, "int8")
            limit = config.budget.max_drop_db if graph == first else None
            found = quantize_nncf(
                path, out, calibrate(path, draw, reference), settings, under_served, (evaluator, limit), back
            )
            back = [name for name, why in found.kept.items() if why == PUT_BACK]
            report.int8[graph], report.files["int8", graph] = found, out
        loss = evaluator.loss_of_file(report.files["int8", first], "ort")
        return None if config.budget.holds(loss) else _over_budget(loss, config, report)
    failure = None
    float_layers: dict[str, str] = {}
    quantizer: Quantizer | None = None
    for graph, path in graphs.items():
        progress(f"int8 {graph} graph: activation ranges")
        quantizer = Quantizer(path, calibrate(path, draw, reference), settings, under_served, quantizer)
        if graph == first:
            identity = (
                _digest(path),
                manifest.sha256,
                evaluator.sha256,
                json.dumps(settings.to_json(), sort_keys=True),
            )
            journal = Journal(state / "quantize.journal.jsonl" if state is not None else None, identity)
            frontier = search_budget(quantizer, evaluator.loss, config.budget, journal, progress)
            float_layers = dict.fromkeys(frontier.best.float_layers, "put back by the decibel budget")
            report.frontier = frontier
            (path.parent / "frontier.svg").write_text(frontier_svg(frontier, config.budget.max_drop_db), "utf-8")
            if not frontier.met:
                failure = _over_budget(frontier.best.loss, config, report)
        known = {layer.name for layer in quantizer.layers}
        mine = {name: why for name, why in float_layers.items() if name in known}
        model = quantizer.build(mine)
        out = _variant(path, stem, "int8")
        write_atomically(model, out)
        report.int8[graph] = quantizer.report(model, mine)
        report.files["int8", graph] = out
    return failure


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _over_budget(loss: QualityLoss, config: PrecisionConfig, report: PrecisionReport) -> BudgetError:
    why = report.frontier.stopped if report.frontier is not None else ""
    if report.frontier is not None and not report.frontier.best.int8_share and config.budget.holds(loss):
        return BudgetError(f"{why} Leave int8 out of --precision")
    return BudgetError(
        f"INT8 loses {loss.worst_db:.3f} dB on {loss.worst} and {loss.mean_db:.3f} dB on average; allowed are "
        f"{config.budget.max_drop_db} and {config.budget.mean_drop_db}. The best is written. {why} "
        "Allow more with --max-drop, or more time with --time-limit".replace("  ", " ")
    )


def _measure_and_advise(
    graphs: dict[str, Path],
    config: PrecisionConfig,
    evaluators: dict[str, Evaluator],
    report: PrecisionReport,
    progress: Callable[[str], None],
) -> None:
    first = next(iter(graphs))
    backends = installed_backends(config.backends)
    for backend in backends:
        for (precision, graph), path in report.files.items():
            variant = precision if graph == first else f"{precision} {graph}"
            progress(f"quality of {variant} on {backend}")
            try:
                report.losses[backend, variant] = evaluators[graph].loss_of_file(path, backend)
            except (BackendError, ExportError) as error:
                report.notes.append(f"{variant} was not measured on {backend}: {error}")
            except ClusirError as error:
                report.notes.append(f"{variant} fails on {backend}: {error}")
    if BFLOAT16 in config.precisions:
        progress("quality of bf16 on openvino")
        try:
            if "openvino" not in backends:
                raise BackendError("it is computed by OpenVINO, which is not among the backends, or not installed")
            found = evaluators[first].loss_of_file(graphs[first], "openvino", bf16=True)
            report.losses["openvino", BFLOAT16] = found
        except ClusirError as error:
            report.notes.append(f"bf16 was not measured: {error}")
    if not report.files:
        return
    progress("timing")
    variants = {"fp32": graphs[first]} | {p: path for (p, graph), path in report.files.items() if graph == first}
    feeds = dict.fromkeys(variants, evaluators[first].feeds[0])
    timings, problems = time_variants(variants, feeds, backends, config.timing_runs)
    report.timings, report.notes = timings, report.notes + problems
    report.advice = advise(timings, report.losses)


def _record(graphs: dict[str, Path], whole: Path, evaluators: dict[str, Evaluator], report: PrecisionReport) -> None:
    """``stem.losses.json``: the losses of the graph that is run, for every precision and backend that was measured."""
    first = next(iter(graphs))
    measured = {key: loss for key, loss in report.losses.items() if key[1] in (*PRECISIONS, BFLOAT16)}
    samples = undamaged(evaluators[first].samples)
    more: dict[tuple[str, str], QualityLoss] = {}
    if samples and measured:
        evaluator = Evaluator(evaluators[first].reference, samples, graphs[first])
        for backend, precision in measured:
            low = precision == BFLOAT16
            path = graphs[first] if low else report.files[precision, first]
            more[backend, precision] = undamaged_loss(evaluator, evaluator.quality_of_file(path, backend, bf16=low))
    write_losses(whole, measured, more)
