"""The figures of docs/running.md: ``python tests/bench/run_command.py start|throughput|memory|seams``.

Not a test: times depend on the machine. The model is the shipped one.
"""

from __future__ import annotations

import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

RUN = [sys.executable, "-c", "from clusir.cli.run import main; main()"]


def start(folder: Path) -> None:
    """Process start to the first restored 256x256 picture: seconds, best and median of 7, and the processor's part,
    which another load on the machine does not change much."""
    Image.fromarray(skimage.data.astronaut()[:256, :256]).save(folder / "a.png")
    seconds = []
    for _ in range(7):
        begin = time.perf_counter()
        subprocess.run([*RUN, str(folder / "a.png"), "-o", str(folder / "b.png"), "-q", "--backend", "ort"], check=True)
        seconds.append(time.perf_counter() - begin)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"processor time of one start: {(used.ru_utime + used.ru_stime) / len(seconds):.2f} s")
    print(f"start to first picture: median {statistics.median(seconds):.2f} s, best {min(seconds):.2f} s")


def throughput(folder: Path) -> None:
    """100 photos through the pipeline against the same graphs run bare on the same tiles, alternating, five rounds."""
    from clusir.runtimes.batch.jobs import plan_jobs
    from clusir.runtimes.batch.pipeline import Pipeline
    from clusir.runtimes.restore.restorer import Restorer, Work
    from clusir.runtimes.restore.tiling import plan_picture

    photos = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()]
    (folder / "in").mkdir()
    rng = np.random.default_rng(0)
    sizes = []
    for i in range(100):
        photo = photos[i % 4]
        y, x = rng.integers(0, photo.shape[0] - 200), rng.integers(0, photo.shape[1] - 320)
        crop = photo[y : y + 200, x : x + 320]
        sizes.append(crop.shape[:2])
        Image.fromarray(crop).save(folder / "in" / f"{i:03}.{('png', 'jpg')[i % 2]}", quality=92)
    tile = np.random.default_rng(1).random((256, 256, 3), dtype=np.float32)
    with Restorer(backend="ort", device="cpu") as restorer:
        restorer.warm_up()
        rates: dict[str, list[float]] = {"pipeline": [], "bare": []}
        for part in range(5):
            jobs = plan_jobs([str(folder / "in")], folder / f"out{part}")[part * 20 : part * 20 + 20]
            begin = time.perf_counter()
            Pipeline(restorer).run(jobs, lambda outcome: None)
            rates["pipeline"].append(len(jobs) / (time.perf_counter() - begin))
            routing = restorer.restore_and_tell(np.zeros((300, 300, 3), np.uint8))[1].routing
            _, router = restorer._open_sidecars()
            begin = time.perf_counter()
            for height, width in sizes[part * 20 : part * 20 + 20]:
                plan = plan_picture(height, width, restorer.spec)
                shared = plan.count > 1
                samples = len(plan.y.sample()) * len(plan.x.sample()) if shared else 0
                batches = [samples] if router.spec.statistics else [1] * samples
                for batch in filter(None, batches):
                    router.run({"image": np.repeat(tile.transpose(2, 0, 1)[None], batch, axis=0)})
                for _ in range(plan.count):
                    restorer.infer([tile], Work(tiles=plan.count, routing=routing if shared else None))
            rates["bare"].append(20 / (time.perf_counter() - begin))
    ratios = [p / b for p, b in zip(rates["pipeline"], rates["bare"], strict=True)]
    print({k: [round(r, 2) for r in v] for k, v in rates.items()})
    print(f"pipeline / bare inference: median {statistics.median(ratios):.3f}, each {[round(r, 3) for r in ratios]}")


def memory(folder: Path) -> None:
    """Peak resident memory (ru_maxrss of the child) for 10000x10000 pixels under --max-memory 1500M."""
    photo = np.tile(skimage.data.astronaut(), (20, 20, 1))[:10000, :10000]
    Image.fromarray(photo).save(folder / "big.png", compress_level=1)
    code = (
        "import resource, subprocess, sys; c = subprocess.run(sys.argv[1:]).returncode;"
        "print(c, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024, 'MiB')"
    )
    out = folder / "big_out.png"
    command = [*RUN, str(folder / "big.png"), "-o", str(out), "--max-memory", "1500M", "--json"]
    subprocess.run([sys.executable, "-c", code, *command], check=True)


def seams(folder: Path) -> None:
    """Gradient across tile borders over the gradient elsewhere: tiled against one piece (PyTorch, any size)."""
    from importlib.resources import files

    from clusir.runtimes import open_runner
    from clusir.runtimes.restore.restorer import Restorer
    from clusir.runtimes.restore.tiling import plan_axis

    rng = np.random.default_rng(0)
    slope = np.linspace(0.1, 0.82, 704)[None, :, None] + np.linspace(0, 0.1, 256)[:, None, None]
    pictures = {
        "gradient": np.repeat(slope, 3, axis=2),
        "coffee": skimage.data.coffee()[:256, :592] / 255,
        "rocket": skimage.data.rocket()[100:356, :640] / 255,
    }
    for name in list(pictures):
        pictures[f"{name} + noise 25"] = np.clip(pictures[name] + rng.normal(0, 25 / 255, pictures[name].shape), 0, 1)
    with open_runner(str(files("clusir.weights") / "tiny.safetensors"), backend="torch") as runner:
        for name, picture in pictures.items():
            image = picture.astype(np.float32)
            piece = runner.run({"image": image.transpose(2, 0, 1)[None].copy()})["restored"][0].transpose(1, 2, 0)
            row = {"input": image, "one piece": np.clip(piece, 0, 1)}
            for routing in ("shared", "tile"):
                with Restorer(backend="ort", routing=routing) as restorer:
                    row[routing] = restorer.restore(image)
                    axis = plan_axis(image.shape[1], restorer.spec)
            print(f"{name:20}", {k: round(seam_ratio(v, axis.starts, axis.tile), 4) for k, v in row.items()})


def seam_ratio(picture: np.ndarray, starts: tuple[int, ...], tile: int, reach: int = 12) -> float:
    """Mean absolute horizontal gradient within ``reach`` pixels of the blends' middles, over that elsewhere."""
    gradient = np.abs(np.diff(picture.astype(np.float64), axis=1)).mean(axis=(0, 2))
    near = np.zeros(len(gradient), bool)
    for first, second in itertools.pairwise(starts):
        middle = (first + second + tile) // 2
        near[middle - reach : middle + reach] = True
    return float(gradient[near].mean() / gradient[~near].mean())


if __name__ == "__main__":
    chosen = {f.__name__: f for f in (start, throughput, memory, seams)}.get((sys.argv[1:] or [""])[0])
    if chosen is None:
        sys.exit(str(__doc__))
    with tempfile.TemporaryDirectory() as scratch:
        chosen(Path(scratch))
    print(json.dumps({"measured": sys.argv[1]}))
