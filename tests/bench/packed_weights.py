"""What a model loses by ``clusir page --out``, whose weights are stored as float16: photo by photo, beside the model as
it is. A measurement.

    python -m tests.bench.packed_weights PHOTOS [--limit 8]

PSNR against the clean photo for every degradation of the model card, unasked (``auto``): mean difference, worst
difference, and in how many pictures a level moves at all.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from clusir.quality.evaluate import ROWS, list_pictures, make_recipe, read_picture
from clusir.runtimes.page.packing import packed
from clusir.runtimes.restore.restorer import Restorer
from clusir.runtimes.runners.files import find_model


def psnr(picture: np.ndarray, clean: np.ndarray) -> float:
    error = np.mean((picture.astype(np.float64) - clean) ** 2)
    return min(10 * np.log10(255.0**2 / max(error, 1e-9)), 100.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--limit", type=int, default=8)
    options = parser.parse_args()
    found = find_model()
    graphs = {path.name: path for path in (found.whole, found.tile, found.router) if path is not None}
    with tempfile.TemporaryDirectory() as folder:
        for name, content in packed(graphs, f"{found.whole.name}.data").items():
            (Path(folder) / name).write_bytes(content)
        sizes = {path.name: path.stat().st_size for path in sorted(Path(folder).iterdir())}
        print(f"{sum(sizes.values()):,} bytes: {sizes}")
        before = Restorer(found.whole, backend="ort", device="cpu", threads=1)
        after = Restorer(Path(folder) / found.whole.name, backend="ort", device="cpu", threads=1)
        everything = []
        for row in ROWS:
            changes, moved, same, most = [], 0, [], 0
            for path in list_pictures(options.photos, options.limit):
                clean = read_picture(path)
                recipe = make_recipe(row, 0, path.name)
                degraded = recipe.apply(clean.astype(np.float32) / np.float32(255.0))
                given = np.rint(np.clip(degraded, 0.0, 1.0) * 255.0).astype(np.uint8)
                plain, fewer = np.asarray(before.restore(given)), np.asarray(after.restore(given))
                changes.append(psnr(fewer, clean) - psnr(plain, clean))
                same.append(psnr(fewer, plain))
                most = max(most, int(np.abs(plain.astype(int) - fewer).max()))
                moved += not np.array_equal(plain, fewer)
            everything += changes
            print(
                f"{row:24s} mean {np.mean(changes):+.4f} dB, worst {min(changes):+.4f}; {moved} of {len(changes)} "
                f"differ, by {most} levels at most, {min(same):.1f} dB from each other at least",
                flush=True,
            )
        print(f"all: mean {np.mean(everything):+.4f} dB, worst {min(everything):+.4f}, best {max(everything):+.4f}")


if __name__ == "__main__":
    main()
