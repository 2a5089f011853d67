"""What it is worth that calibration reaches every expert: covered against blind draws of one size, seed by seed.

``python tests/bench/calibration.py EXPORT PHOTOS [--size 16] [--seeds 3] [--crops 5]``

Not a test. EXPORT: the folder of an export (NAME.onnx and NAME.tile.onnx). PHOTOS: clean photos of at least 256 px, to
measure on; calibration draws from the built-in ones. Experts' own convolutions, which by default stay float, become
integers here: otherwise no draw could hurt them. Prints Markdown: dB lost in the tile graph on ONNX Runtime per
degradation, and per expert on the crops that the router sends to it, with the calibration crops that it got.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from clusir.calibration.balance import BalanceConfig, draw_balanced, draw_blind
from clusir.calibration.photos import folder_photos
from clusir.calibration.sources import SyntheticSource, open_source
from clusir.export.precision.evaluate import Evaluator
from clusir.export.quantize.data import Reference, calibrate, crop_px_of, draw_evaluation
from clusir.export.quantize.steps import QuantizeConfig, Quantizer

DRAWS = {"covered": draw_balanced, "blind": draw_blind}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--crops", type=int, default=5)
    options = parser.parse_args()
    tile = next(p for p in options.export.glob("*.tile.onnx") if not {"int8", "fp16"} & set(p.name.split(".")))
    reference = Reference(tile.with_name(tile.name.replace(".tile", "")))
    size = crop_px_of(reference.spec)
    samples = draw_evaluation(SyntheticSource(folder_photos(options.photos, size), size), options.crops)
    evaluator = Evaluator(reference, samples, tile)
    served = np.concatenate([feeds["gate"] for feeds in evaluator.feeds]) != 0
    base = np.array(evaluator.base.psnr_db)
    kinds = list(dict.fromkeys(sample.degradation for sample in samples))
    names = [f"{level + 1}.{e}" for level, count in enumerate(reference.experts) for e in range(count)]
    print("| seed | draw | mean | worst | " + " | ".join(kinds) + " |\n|---|---|---:|---:|" + "---:|" * len(kinds))
    rows = []
    for seed in range(options.seeds):
        for label, draw_crops in DRAWS.items():
            config = BalanceConfig(size=options.size)
            draw = draw_crops(open_source(None, size, seed), reference.route(), reference.experts, config)
            under_served = draw.coverage.under_served if label == "covered" else ()
            quantizer = Quantizer(
                tile, calibrate(tile, draw, reference), QuantizeConfig().without("KeepLittleArithmetic"), under_served
            )
            loss, reached = evaluator.loss_on(quantizer.build(), range(len(samples)))
            cells = " | ".join(f"{loss.drop_db[kind]:.2f}" for kind in kinds)
            print(
                f"| {seed} | {label} | {loss.mean_db:.3f} | {loss.worst_db:.2f} ({loss.worst}) | {cells} |", flush=True
            )
            drop = base - np.array(reached)
            counts = [count for level in draw.coverage.experts for count in level]
            own = [f"{drop[served[:, e]].mean():.2f} ({counts[e]})" for e in range(len(names))]
            rows.append(f"| {seed} | {label} | {' | '.join(own)} |")
    print("\ndB lost where the router chose the expert (level.number), and its calibration crops\n")
    print("| seed | draw | " + " | ".join(names) + " |\n|---|---|" + "---:|" * len(names))
    print("\n".join(rows))


if __name__ == "__main__":
    main()
