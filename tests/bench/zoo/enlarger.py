"""What FP16 and INT8 of a published enlarger cost on photos: their PSNR against the photo, and float32's.

``python -m tests.bench.zoo.enlarger WEIGHTS PHOTOS OUT [--size 64] [--count 4] [--side 256]``: WEIGHTS is a file that
spandrel knows, exported for one size (``--size 0``: for any) into OUT, calibrated on the built-in photos (``--crops``),
with a budget in dB where one is given (``--max-drop``; of one that is missed the best is measured). Of each photo the
middle, ``--side`` times the scale as large, is shrunk by the scale (Pillow, bicubic) and enlarged again. Prints a table
in Markdown: PSNR in dB of the whole answer, and what lower precisions lose.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clusir.calibration.balance import BalanceConfig
from clusir.errors import BudgetError
from clusir.export.module import export_module
from clusir.export.precision.frontier import BudgetConfig
from clusir.export.precision.run import PrecisionConfig
from clusir.export.subjects.known import load_known
from clusir.quality.metrics import psnr
from clusir.runtimes import Restorer

PRECISIONS = ("fp16", "int8")
_SUFFIXES = (".jpg", ".jpeg", ".png")


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.zoo.enlarger")
    parser.add_argument("weights", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--crops", type=int, default=16)
    parser.add_argument("--max-drop", type=float)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.out / f"{options.weights.stem}.onnx"
    if not path.is_file():
        export(options.weights, path, options)
    table(path, chosen(options.photos, options.count), options.side)


def export(weights: Path, path: Path, options: argparse.Namespace) -> None:
    """The file of ``weights`` and its lower precisions."""
    network, crops = load_known(weights), options.crops
    config = PrecisionConfig(("fp32", *PRECISIONS), balance=BalanceConfig(size=crops, pool=crops, minimum=1),
                             evaluation_crops=2, timing_runs=1, backends=("ort",),
                             budget=BudgetConfig(max_drop_db=options.max_drop))  # fmt: skip
    try:
        made = export_module(
            network.network, network.shape, path, size=options.size, batch=1, precision=config, backends=("ort",),
            progress=lambda step: print(f"{time.process_time():6.1f} s  {step}", flush=True),
        )  # fmt: skip
    except BudgetError as error:
        print(error, flush=True)
        return
    print(f"{network.architecture}, x{made.spec.scale}: {', '.join(made.placed.files)}", flush=True)
    for note in made.notes:
        print(f"- {note}", flush=True)
    if made.placed.report is not None:
        print(made.placed.report.to_markdown(), flush=True)


def chosen(folder: Path, count: int) -> list[Path]:
    """``count`` photos of ``folder``, evenly spread over its names."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    return [found[n * len(found) // count] for n in range(min(count, len(found)))]


def pair(path: Path, scale: int, side: int) -> tuple[Any, Any]:
    """The middle of a photo, HxWx3 in 0..1, shrunk by ``scale`` to at most ``side`` px, and as it was."""
    with Image.open(path) as opened:
        photo = opened.convert("RGB")
    width, height = (min(side, length // scale) for length in photo.size)
    left, top = (photo.width - width * scale) // 2, (photo.height - height * scale) // 2
    truth = photo.crop((left, top, left + width * scale, top + height * scale))
    small = truth.resize((width, height), Image.Resampling.BICUBIC)
    return tuple(np.asarray(image, np.float32) / 255 for image in (small, truth))


def table(path: Path, photos: list[Path], side: int) -> dict[str, list[float]]:
    """Prints a row for each photo, and the mean and the worst; returns what each precision loses on each, in dB."""
    files = {"float32": path} | {p: path.with_name(f"{path.stem}.{p}.onnx") for p in PRECISIONS}
    print(f"\n| photo | shrunk, px | bicubic | float32 | {' | '.join(f'{p} loses' for p in PRECISIONS)} |")
    print("|---|---|---:|---:|" + "---:|" * len(PRECISIONS), flush=True)
    lost: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    restorers = {name: Restorer(file, backend="ort", device="cpu", threads=1) for name, file in files.items()}
    scale = restorers["float32"].spec.scale
    for photo in photos:
        small, truth = pair(photo, scale, side)
        found = {name: psnr(np.clip(restorer.restore(small), 0, 1), truth) for name, restorer in restorers.items()}
        for precision in PRECISIONS:
            lost[precision].append(found["float32"] - found[precision])
        cells = " | ".join(f"{lost[precision][-1]:.4f}" for precision in PRECISIONS)
        size, plain = f"{small.shape[1]}x{small.shape[0]}", psnr(bicubic(small, scale), truth)
        print(f"| {photo.stem} | {size} | {plain:.2f} | {found['float32']:.2f} | {cells} |", flush=True)
    for what, of in (("mean", np.mean), ("worst", np.max)):
        print(f"| {what} | | | | " + " | ".join(f"{of(lost[p]):.4f}" for p in PRECISIONS) + " |")
    print(", ".join(f"{name} {file.stat().st_size / 1e6:.2f} MB" for name, file in files.items()))
    for restorer in restorers.values():
        restorer.close()
    return lost


def bicubic(small: Any, scale: int) -> Any:
    """What enlarging without a network gives: HxWx3 in 0..1."""
    image = Image.fromarray((small * 255).round().astype(np.uint8))
    large = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    return np.asarray(large, np.float32) / 255


if __name__ == "__main__":
    main()
