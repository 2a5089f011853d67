"""How many windows the router needs: experts chosen and PSNR against windows that cover the picture, and the time.

    python -m tests.bench.routing_windows PHOTOS [--photos 32] [--small NAME.router.onnx]

``--small``: a router graph of the same network for smaller windows (``clusir-export --tile 128``), of which 9, 16 and
25 spread over the picture are tried too. Photos are enlarged to a megapixel at most, degraded in turn, and routed from
sets of windows as large as a tile. The PSNR is that of the tile in the middle, restored with each routing. Processor
time on one thread, ONNX Runtime.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clusir.degrade.recipe import degrade
from clusir.quality import psnr
from clusir.runtimes.restore.routing import Routing, combine
from clusir.runtimes.restore.tiling import plan_picture
from clusir.runtimes.runners.base import Array, Runner
from clusir.runtimes.runners.files import find_model
from clusir.runtimes.runners.opening import open_runner

KINDS = ("clean", "noise", "jpeg", "haze", "low_light", "rain", "gaussian_blur")
Places = list[tuple[int, int]]


def evenly(length: int, tile: int, count: int) -> list[int]:
    """The first pixels of ``count`` windows along an axis, on JPEG's grid."""
    return [round(i * (length - tile) / max(1, count - 1)) // 8 * 8 for i in range(count)]


def window_sets(height: int, width: int, tile: int, nine: tuple[Sequence[int], Sequence[int]]) -> dict[str, Places]:
    """By name: windows that cover all, the nine that are used, and fewer of those."""
    ys, xs = nine
    rows, columns = (evenly(length, tile, -(-length // tile)) for length in (height, width))
    corners = [(y, x) for y in evenly(height, tile, 2) for x in evenly(width, tile, 2)]
    return {
        "all": [(y, x) for y in rows for x in columns],
        "nine": [(y, x) for y in ys for x in xs],
        "corners and middle": [(ys[i], xs[j]) for i, j in ((0, 0), (0, 2), (1, 1), (2, 0), (2, 2))],
        "corners": corners,
        "three": [(ys[i], xs[j]) for i, j in ((0, 1), (1, 2), (2, 0))],
        "middle": [(ys[1], xs[1])],
    }


def degraded(path: Path, kind: str, rng: np.random.Generator) -> tuple[Array, Array]:
    """(clean, degraded) HxWx3 in 0..1, of a megapixel at most."""
    image = Image.open(path).convert("RGB")
    scale = min(1.75, (2**20 / (image.width * image.height)) ** 0.5)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    clean = np.asarray(image, np.float32) / np.float32(255)
    damaged = clean if kind == "clean" else degrade(clean, kind, float(rng.uniform(0.15, 0.8)), rng)
    return clean, np.rint(np.clip(damaged, 0, 1) * 255).astype(np.float32) / np.float32(255)


def crop(picture: Array, y: int, x: int, tile: int) -> Array:
    return np.ascontiguousarray(picture[y : y + tile, x : x + tile].transpose(2, 0, 1), np.float32)


def small_sets(height: int, width: int, side: int) -> dict[str, Places]:
    """By name: grids of windows of ``side`` px."""
    grids = {n: [(y, x) for y in evenly(height, side, n) for x in evenly(width, side, n)] for n in (3, 4, 5)}
    return {f"{n * n} of {side} px": places for n, places in grids.items()}


def routed(router: Runner, picture: Array, places: Places) -> tuple[Routing, float]:
    """The routing from these windows, and its seconds."""
    spec = router.spec
    feeds = {spec.input_name: np.stack([crop(picture, y, x, spec.tile_px) for y, x in places])}
    if spec.families:
        feeds["permissions"] = np.full((1, len(spec.families)), -1, np.float32)
    begin = time.process_time()
    out = router.run(feeds)
    return combine(out, spec), time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=32)
    parser.add_argument("--small", type=Path)
    asked = parser.parse_args()
    files, rng = find_model(), np.random.default_rng(1)
    assert files.tile is not None
    assert files.router is not None
    photos = sorted(asked.folder.glob("*.jpg"))
    rng.shuffle(photos)  # type: ignore[arg-type]  # numpy takes any mutable sequence
    router, tile = (open_runner(path, "ort", "cpu", 1) for path in (files.router, files.tile))
    small = None if asked.small is None else open_runner(asked.small, "ort", "cpu", 1)
    side, other, gain, spent = router.spec.tile_px, {}, {}, {}
    done = 0
    for photo in photos:
        clean, damaged = degraded(photo, KINDS[done % len(KINDS)], rng)
        height, width = clean.shape[:2]
        plan = plan_picture(height, width, router.spec)
        nine = plan.y.sample(), plan.x.sample()
        if min(map(len, nine)) < 3:
            continue
        middle = ((height - side) // 2, (width - side) // 2)
        truth = crop(clean, *middle, side)
        known: dict[str, tuple[tuple[int, ...], float]] = {}
        sets = [(router, name, places) for name, places in window_sets(height, width, side, nine).items()]
        if small is not None:
            sets += [(small, name, places) for name, places in small_sets(height, width, small.spec.tile_px).items()]
        for runner, name, places in sets:
            routing, seconds = routed(runner, damaged, places)
            got = tile.run({tile.spec.input_name: crop(damaged, *middle, side)[None]} | routing.feeds(1))
            restored = np.clip(got[tile.spec.output_name][0], 0, 1)
            known[name] = tuple(map(int, np.flatnonzero(routing.gate))), psnr(truth, restored)
            other.setdefault(name, []).append(known[name][0] != known["all"][0])
            gain.setdefault(name, []).append(known[name][1] - known["all"][1])
            spent.setdefault(name, []).append(seconds)
        done += 1
        if done == asked.photos:
            break
    print(f"{done} photos; against windows that cover the picture")
    for name in other:
        cost = sum(spent[name]) / sum(spent["nine"])
        near = sum(abs(value) <= 0.02 for value in gain[name])
        print(
            f"{name}: other experts {sum(other[name])}; PSNR median {np.median(gain[name]):+.3f} dB, worst "
            f"{min(gain[name]):+.2f}, within 0.02 {near}; {cost:.2f} of the nine's time"
        )


if __name__ == "__main__":
    main()
