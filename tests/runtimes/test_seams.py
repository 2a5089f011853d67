"""A model in tiles against the same model in one piece: no seam on slopes and on a photo.

Through PyTorch, which runs the host's code and the three graphs without an export; that ONNX files say the same as
PyTorch is tested in tests/export.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch

from clusir.network.checkpoint import load, random_model, save
from clusir.network.model import CONFIGS
from clusir.network.pooled import PooledStatistics
from clusir.quality.metrics import psnr
from clusir.runtimes import Restorer
from clusir.runtimes.restore.routing import Routing
from clusir.runtimes.restore.tiling import Axis, plan_axis
from tests.bench.run_command import seam_ratio

WEIGHTS = Path(str(files("clusir.weights")))
SIZE = (256, 592)  # three tiles in a row


def pictures() -> dict[str, np.ndarray]:
    slope = np.linspace(0.1, 0.8, SIZE[1])[None, :, None] + np.linspace(0, 0.1, SIZE[0])[:, None, None]
    photo = skimage.data.coffee()[: SIZE[0], : SIZE[1]] / 255
    noise = np.random.default_rng(0).normal(0, 25 / 255, photo.shape)
    made = {"slope": np.repeat(slope, 3, axis=2), "photo": np.clip(photo + noise, 0, 1)}
    return {name: picture.astype(np.float32) for name, picture in made.items()}


@contextlib.contextmanager
def checkpoint(weights: str) -> Iterator[Path]:
    if weights == "shipped":
        yield WEIGHTS / "tiny.safetensors"
        return
    with tempfile.TemporaryDirectory() as folder:
        save(random_model(CONFIGS["tiny"]), path := Path(folder) / "random.safetensors")
        yield path


@functools.cache
def in_one_piece(weights: str, name: str) -> tuple[np.ndarray, Routing]:
    """The restored picture HxWx3, and the routing and statistics that all of it gave."""
    statistics, picture = PooledStatistics(), pictures()[name]
    with checkpoint(weights) as path:
        model = load(path)
    with torch.inference_mode():
        found = model(torch.from_numpy(picture.transpose(2, 0, 1)[None].copy()), None, statistics)
    routing = Routing(
        torch.cat(found.posteriors, dim=1)[0].numpy(),
        torch.cat(found.gates, dim=1)[0].numpy(),
        shared=True,
        statistics=statistics.recorded()[0].numpy(),
        evidence=np.empty(0, np.float32) if found.evidence is None else found.evidence[0].numpy(),
    )
    return np.clip(found.restored[0].permute(1, 2, 0).numpy(), 0, 1), routing


@functools.cache
def in_tiles(weights: str, name: str, statistics: str) -> tuple[np.ndarray, Axis]:
    """The picture restored in three tiles, with routing and statistics of the whole picture ("own") or with those found
    on samples."""
    with checkpoint(weights) as path, pytest.MonkeyPatch.context() as patch:
        if statistics == "own":
            routing = in_one_piece(weights, name)[1]
            patch.setattr("clusir.runtimes.restore.restorer.combine", lambda sampled, spec: routing)
        with Restorer(path, backend="torch", device="cpu", threads=1, routing="shared") as restorer:
            tiled, work = restorer.restore_and_tell(pictures()[name])
            assert work.tiles == 3
            return tiled, plan_axis(SIZE[1], restorer.spec)


@pytest.mark.parametrize("statistics", ["own", "sampled"])
@pytest.mark.parametrize("name", ["slope", "photo"])
@pytest.mark.parametrize("weights", ["shipped", "random"])
def test_no_seam_with_shared_routing(weights: str, name: str, statistics: str) -> None:
    piece, _ = in_one_piece(weights, name)
    tiled, axis = in_tiles(weights, name, statistics)
    for reach in (1, 12):  # the middle of the blend, and the whole of it
        expected = seam_ratio(piece, axis.starts, axis.tile, reach)
        assert seam_ratio(tiled, axis.starts, axis.tile, reach) == pytest.approx(expected, rel=0.05)


# Given the statistics of the whole picture, tiles differ by what their borders' padding does. Those found on samples,
# of which neighbours overlap, are others by a little: a shift of up to a third of a grey level everywhere. How far
# depends on how much the weights lean on them.
def _misses(db: float) -> pytest.MarkDecorator:
    return pytest.mark.xfail(reason=f"{db} dB: statistics found on samples are not the picture's own", strict=True)


# The gradient's mean alone would not see tiles whose brightness drifts: it is the same picture as well.
@pytest.mark.parametrize(
    ("weights", "name", "statistics"),
    [
        ("shipped", "slope", "own"),
        ("shipped", "photo", "own"),
        ("random", "slope", "own"),
        ("random", "photo", "own"),
        ("shipped", "slope", "sampled"),
        ("shipped", "photo", "sampled"),
        ("random", "slope", "sampled"),
        pytest.param("random", "photo", "sampled", marks=_misses(56.8)),
    ],
)
def test_tiles_are_the_picture_in_one_piece(weights: str, name: str, statistics: str) -> None:
    assert psnr(in_tiles(weights, name, statistics)[0], in_one_piece(weights, name)[0]) > 60


def test_the_measure_sees_a_seam() -> None:
    picture = pictures()["photo"]
    axis_starts, tile = (0, 224, 336), 256
    stepped = picture.copy()
    stepped[:, (0 + 224 + 256) // 2 :] += 0.2
    clean = seam_ratio(picture, axis_starts, tile, 1)
    assert seam_ratio(stepped, axis_starts, tile, 1) > 1.05 * clean
