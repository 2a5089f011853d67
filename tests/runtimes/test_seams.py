"""The shipped model in tiles against the same model in one piece: no seam on slopes and on a photo."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from measure_run import seam_ratio

from clusir.runtimes import Restorer, open_runner
from clusir.runtimes.tiling import plan_axis

pytest.importorskip("torch")
WEIGHTS = Path(str(files("clusir.weights")))
SIZE = (256, 592)  # three tiles in a row


def pictures() -> dict[str, np.ndarray]:
    slope = np.linspace(0.1, 0.8, SIZE[1])[None, :, None] + np.linspace(0, 0.1, SIZE[0])[:, None, None]
    photo = skimage.data.coffee()[: SIZE[0], : SIZE[1]] / 255
    noise = np.random.default_rng(0).normal(0, 25 / 255, photo.shape)
    made = {"slope": np.repeat(slope, 3, axis=2), "photo": np.clip(photo + noise, 0, 1)}
    return {name: picture.astype(np.float32) for name, picture in made.items()}


# Sharing the routing is not enough on a bare slope: pooled statistics (attention, cut-offs) still differ from tile to
# tile, and the first weights brighten its tiles differently. Strict, so that the cure is noticed.
UNMET = pytest.mark.xfail(strict=True, reason="first weights: 4.3 times the gradient on a slope, bar 1.05")


@pytest.mark.parametrize("name", [pytest.param("slope", marks=UNMET), "photo"])
def test_no_seam_with_shared_routing(name: str) -> None:
    picture = pictures()[name]
    with open_runner(WEIGHTS / "tiny.safetensors", backend="torch", device="cpu", threads=1) as runner:
        piece = runner.run({"image": picture.transpose(2, 0, 1)[None].copy()})["restored"][0].transpose(1, 2, 0)
    with Restorer(backend="ort", device="cpu", threads=1, routing="shared") as restorer:
        tiled, work = restorer.restore_and_tell(picture)
        axis = plan_axis(SIZE[1], restorer.spec)
    assert work.tiles == 3
    for reach in (1, 12):  # the middle of the blend, and the whole of it
        expected = seam_ratio(np.clip(piece, 0, 1), axis.starts, axis.tile, reach)
        assert seam_ratio(tiled, axis.starts, axis.tile, reach) == pytest.approx(expected, rel=0.05)


def test_the_measure_sees_a_seam() -> None:
    picture = pictures()["photo"]
    axis_starts, tile = (0, 224, 336), 256
    stepped = picture.copy()
    stepped[:, (0 + 224 + 256) // 2 :] += 0.2
    clean = seam_ratio(picture, axis_starts, tile, 1)
    assert seam_ratio(stepped, axis_starts, tile, 1) > 1.05 * clean
