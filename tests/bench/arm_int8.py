"""INT8 on Arm beside INT8 on x86 and float32 on both: how far the pictures are apart, and what INT8 costs against the
clean photo.

    python tests/bench/arm_int8.py EXPORT PHOTOS [--count 2]

EXPORT: the folder of ``clusir-export --onnx EXPORT --precision fp32,int8``. PHOTOS: clean photos of at least 256 px;
the middle of each is degraded in four ways with a fixed seed. Arm runs under emulation (see arm), the C++ library on
ONNX Runtime on either. Prints Markdown.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from arm import arm_command, arm_ort_library
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from toolchain import build_cpp, openvino_cmake, ort_library, run

from clusir.quality.metrics import psnr

SIDE = 256
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def noise(clean: Bytes) -> Bytes:
    drawn = np.random.default_rng(0).normal(0, 25, clean.shape)
    return np.asarray(np.clip(np.rint(clean + drawn), 0, 255), dtype=np.uint8)


def jpeg(clean: Bytes) -> Bytes:
    file = io.BytesIO()
    Image.fromarray(clean).save(file, "JPEG", quality=15)
    return np.asarray(Image.open(file))


def blur(clean: Bytes) -> Bytes:
    return np.asarray(Image.fromarray(clean).filter(ImageFilter.GaussianBlur(1.6)))


def low_light(clean: Bytes) -> Bytes:
    return np.asarray(np.rint(255 * (0.35 * (clean / 255.0) ** 1.8)), dtype=np.uint8)


DEGRADATIONS: tuple[Callable[[Bytes], Bytes], ...] = (noise, jpeg, blur, low_light)


def middle(path: Path) -> Bytes:
    """The middle SIDE x SIDE pixels of a photo, RGB [SIDE, SIDE, 3]."""
    photo = Image.open(path).convert("RGB")
    if min(photo.size) < SIDE:
        raise SystemExit(f"{path}: {photo.width} x {photo.height}; give photos of at least {SIDE} px")
    left, top = (photo.width - SIDE) // 2, (photo.height - SIDE) // 2
    return np.asarray(photo.crop((left, top, left + SIDE, top + SIDE)))


def decibels(a: Floats, b: Floats) -> float:
    return float(psnr(np.clip(a, 0, 1), np.clip(b, 0, 1)))


def largest(a: Floats, b: Floats) -> float:
    return float(np.abs(a - b).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--count", type=int, default=2, help="photos, in order of their names")
    asked = parser.parse_args()
    others = (".int8.", ".fp16.")
    tile = next(p for p in sorted(asked.export.glob("*.tile.onnx")) if not any(part in p.name for part in others))
    stem = tile.name.removesuffix(".tile.onnx")
    models = {"fp32": asked.export / f"{stem}.tile.onnx", "int8": asked.export / f"{stem}.int8.tile.onnx"}
    openvino = f"-DOpenVINO_DIR={openvino_cmake()}"
    build = build_cpp(
        "bench", "-DCMAKE_BUILD_TYPE=Release", openvino, "-DCLUSIR_BUILD_TESTS=ON", targets=("clusir-raw",)
    )
    machines = {"x86": ([build / "clusir-raw"], ort_library()), "Arm": (arm_command("clusir-raw"), arm_ort_library())}

    def restore(machine: str, precision: str, degraded: Bytes, folder: Path) -> Floats:
        program, library = machines[machine]
        degraded.tofile(folder / "in.rgb")
        arguments = ["ort", library, "2", str(SIDE), str(SIDE), folder / "in.rgb", folder / "out.f32"]
        run(*program, models[precision], *arguments)
        return np.fromfile(folder / "out.f32", np.float32).reshape(degraded.shape)

    print("| photo | fp32: Arm from x86 | INT8: Arm from x86 | INT8 from fp32: x86 | Arm | INT8 loses: x86 | Arm |")
    print("|---|---|---|---|---|---|---|")
    losses: dict[str, list[float]] = {machine: [] for machine in machines}
    with tempfile.TemporaryDirectory() as name:
        for path in sorted(p for p in asked.photos.iterdir() if p.is_file())[: asked.count]:
            clean = middle(path)
            truth = clean.astype(np.float32) / np.float32(255)
            for degradation in DEGRADATIONS:
                degraded = degradation(clean)
                x86, arm = (
                    {precision: restore(machine, precision, degraded, Path(name)) for precision in models}
                    for machine in machines
                )
                cost = {
                    m: decibels(o["fp32"], truth) - decibels(o["int8"], truth) for m, o in (("x86", x86), ("Arm", arm))
                }
                for machine, lost in cost.items():
                    losses[machine].append(lost)
                print(
                    f"| {path.stem}, {degradation.__name__} | {largest(arm['fp32'], x86['fp32']):.1e} "
                    f"| {largest(arm['int8'], x86['int8']):.4f}, {decibels(arm['int8'], x86['int8']):.1f} dB "
                    f"| {decibels(x86['int8'], x86['fp32']):.1f} dB | {decibels(arm['int8'], arm['fp32']):.1f} dB "
                    f"| {cost['x86']:.3f} dB | {cost['Arm']:.3f} dB |",
                    flush=True,
                )
    for machine, lost in losses.items():
        print(f"\n{machine}: INT8 loses {np.mean(lost):.3f} dB in the mean, {max(lost):.3f} at most")


if __name__ == "__main__":
    main()
