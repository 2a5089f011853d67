"""The figures of docs/quantisation.md: what INT8 and FP16 cost on each degradation, and what they gain.

``python tests/bench/int8.py WEIGHTS PHOTOS [--crops 6] [--calibration-crops N] [--rounds 15]
[--without STEP]``

Not a test: times depend on the machine. WEIGHTS is a checkpoint (.safetensors), which is exported and quantised into a
temporary folder as ``clusir-export`` does it, or the folder of an export (its only NAME.tile.onnx with
NAME.int8.tile.onnx and so on). PHOTOS: clean photos of at least 256 px, degraded with seed 0; none of them calibrates.
STEP: a step of the quantiser to leave out, such as RoundLeastSquares.
Prints Markdown: dB lost per degradation on both runtimes, gates flipped, sizes, ratios of processor time on one thread
(the fastest of alternating runs in one process), and the largest sum that a CPU without VNNI keeps in 16 bits.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnx

from clusir.calibration.balance import BalanceConfig
from clusir.calibration.photos import folder_photos
from clusir.calibration.sources import SyntheticSource, open_source
from clusir.export.pipeline import ExportConfig, write_graphs
from clusir.export.precision.evaluate import Evaluator
from clusir.export.quantize.data import Reference, calibrate, crop_px_of, draw_calibration, draw_evaluation
from clusir.export.quantize.float16 import convert_fp16
from clusir.export.quantize.saturation import largest_pair_sums
from clusir.export.quantize.steps import QuantizeConfig, default_steps, quantize_int8
from clusir.network import checkpoint
from clusir.runtimes import open_runner

BACKENDS = {"ort": "ONNX Runtime", "openvino": "OpenVINO"}


def make_files(weights: Path, folder: Path, crops: int | None, without: list[str]) -> None:
    """All graphs of a checkpoint in float32, FP16 and INT8, calibrated on the built-in photos."""
    write_graphs(checkpoint.load(weights), folder, "model", ExportConfig())
    reference = Reference(folder / "model.onnx")
    source = open_source(None, crop_px_of(reference.spec))
    draw, manifest = draw_calibration(source, reference, BalanceConfig(size=crops) if crops else None)
    print(f"{len(draw.samples)} calibration crops; per expert {draw.coverage.experts}", flush=True)
    for graph in ("", ".tile"):
        path = folder / f"model{graph}.onnx"
        calibration = calibrate(path, draw, reference)
        convert_fp16(path, folder / f"model.fp16{graph}.onnx", calibration.feeds[:8])
        report = quantize_int8(
            path,
            folder / f"model.int8{graph}.onnx",
            calibration,
            QuantizeConfig(manifest_sha256=manifest.sha256).without(*without),
            under_served=draw.coverage.under_served,
        )
        print(f"{path.name}: {len(report.quantised)} layers in integers, {len(report.kept)} in float", flush=True)


def quality(folder: Path, stem: str, photos: Path, crops: int) -> dict[str, dict[str, object]]:
    """Prints the tables of losses; returns one crop's inputs per graph, for timing."""
    reference = Reference(folder / f"{stem}.onnx")
    size = crop_px_of(reference.spec)
    samples = draw_evaluation(SyntheticSource(folder_photos(photos, size), size), crops)
    kinds = list(dict.fromkeys(sample.degradation for sample in samples))
    print(f"\n{crops} crops of {size} px per degradation from {photos.name}; dB lost against float32\n")
    print("| file | runtime | mean | worst | " + " | ".join(kinds) + " | gates flipped |")
    print("|---|---|---:|---:|" + "---:|" * (len(kinds) + 1))
    feeds = {}
    for graph in ("tile", "whole"):
        suffix = ".tile" if graph == "tile" else ""
        evaluator = Evaluator(reference, samples, folder / f"{stem}{suffix}.onnx")
        feeds[graph] = dict(evaluator.feeds[0])
        for precision in ("int8", "fp16"):
            for backend, label in BACKENDS.items():
                loss = evaluator.loss_of_file(folder / f"{stem}.{precision}{suffix}.onnx", backend)
                cells = " | ".join(f"{loss.drop_db[kind]:.3f}" for kind in kinds)
                flips = "given" if loss.flips is None else f"{100 * loss.flips:.1f} %"
                worst = f"{loss.worst_db:.3f} ({loss.worst})"
                row = [f"{precision} {graph}", label, f"{loss.mean_db:.3f}", worst, cells, flips]
                print(f"| {' | '.join(row)} |", flush=True)
    return feeds


def speed(folder: Path, stem: str, feeds: dict[str, dict[str, object]], rounds: int) -> None:
    """Processor time on one thread, variants in turn; the fastest of each."""
    print("\n| graph | precision | size | of float32 | " + " | ".join(BACKENDS.values()) + " |")
    print("|---|---|---:|---:|" + "---:|" * len(BACKENDS))
    for graph, suffix in (("tile", ".tile"), ("whole", "")):
        paths = {p: folder / f"{stem}{'' if p == 'fp32' else '.' + p}{suffix}.onnx" for p in ("fp32", "fp16", "int8")}
        best: dict[tuple[str, str], float] = {}
        for backend in BACKENDS:
            runners = {p: open_runner(path, backend=backend, device="cpu", threads=1) for p, path in paths.items()}
            steps: dict[str, Callable[[], object]] = {
                p: lambda runner=runner, inputs=feeds[graph]: runner.run(inputs) for p, runner in runners.items()
            }
            for turn in range(rounds + 2):
                for precision, step in steps.items():
                    begin = time.process_time()
                    step()
                    taken = time.process_time() - begin
                    if turn >= 2:  # the first ones prepare memory
                        best[backend, precision] = min(taken, best.get((backend, precision), taken))
            for runner in runners.values():
                runner.close()
        sizes = {p: onnx.load(path).ByteSize() for p, path in paths.items()}  # with weights that lie beside them
        whole = sizes["fp32"]
        for precision, bytes_ in sizes.items():
            gains = (best[b, "fp32"] / best[b, precision] for b in BACKENDS)
            times = [f"{g:.2f}x ({1000 * best[b, precision]:.0f} ms)" for g, b in zip(gains, BACKENDS, strict=True)]
            row = [graph, precision, f"{bytes_ / 1e6:.2f} MB", f"{bytes_ / whole:.3f}x", *times]
            print(f"| {' | '.join(row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--crops", type=int, default=6)
    parser.add_argument("--calibration-crops", type=int)
    parser.add_argument("--rounds", type=int, default=15)
    steps = [step.name for step in default_steps() if step.name not in ("Measure", "ClipRanges", "ToIntegers")]
    parser.add_argument("--without", action="append", default=[], choices=steps)
    options = parser.parse_args()
    if options.without and options.weights.is_dir():
        parser.error("--without makes new files: give a checkpoint, not the folder of an export")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.weights
        if not folder.is_dir():
            folder = Path(scratch)
            make_files(options.weights, folder, options.calibration_crops, options.without)
        print(f"files after {time.monotonic() - begin:.0f} s", flush=True)
        tiles = [p for p in sorted(folder.glob("*.tile.onnx")) if not {"int8", "fp16"} & set(p.name.split("."))]
        stem = tiles[0].name.removesuffix(".tile.onnx")
        feeds = quality(folder, stem, options.photos, options.crops)
        speed(folder, stem, feeds, options.rounds)
        print()
        for graph in (".tile", ""):
            sums = largest_pair_sums(onnx.load(folder / f"{stem}.int8{graph}.onnx"))
            largest = max(sums.values())
            print(f"{stem}.int8{graph}.onnx: two products sum to at most {largest} of 32767 ({len(sums)} layers)")
    print(f"\n{time.monotonic() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
