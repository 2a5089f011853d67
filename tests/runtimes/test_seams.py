"""A model in tiles against the same model in one piece: no seam on slopes and on a photo.

Through PyTorch, which runs the host's code and the three graphs without an export; that ONNX files say the same as
PyTorch is tested in tests/export.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch

from clusir.network.checkpoint import load
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


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from clusir.network.checkpoint import random_model, save
    from clusir.network.model import CONFIGS

    path = tmp_path_factory.mktemp("random") / "random.safetensors"
    save(random_model(CONFIGS["tiny"]), path)
    return path


def in_one_piece(path: Path, picture: np.ndarray) -> tuple[np.ndarray, Routing]:
    """The restored picture HxWx3, and the routing and statistics that all of it gave."""
    model, statistics = load(path), PooledStatistics()
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


def in_tiles(
    path: Path, picture: np.ndarray, routing: Routing | None, monkeypatch: pytest.MonkeyPatch
) -> tuple[np.ndarray, Axis]:
    """The picture restored in three tiles, with ``routing`` and its statistics or (None) those found on samples."""
    if routing is not None:
        monkeypatch.setattr("clusir.runtimes.restore.restorer.combine", lambda sampled, spec: routing)
    with Restorer(path, backend="torch", device="cpu", threads=1, routing="shared") as restorer:
        tiled, work = restorer.restore_and_tell(picture)
        assert work.tiles == 3
        return tiled, plan_axis(SIZE[1], restorer.spec)


@pytest.mark.parametrize("statistics", ["own", "sampled"])
@pytest.mark.parametrize("name", ["slope", "photo"])
@pytest.mark.parametrize("weights", ["shipped", "random"])
def test_no_seam_with_shared_routing(
    weights: str, name: str, statistics: str, random_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = random_weights if weights == "random" else WEIGHTS / "tiny.safetensors"
    picture = pictures()[name]
    piece, routing = in_one_piece(path, picture)
    tiled, axis = in_tiles(path, picture, routing if statistics == "own" else None, monkeypatch)
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
def test_tiles_are_the_picture_in_one_piece(
    weights: str, name: str, statistics: str, random_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = random_weights if weights == "random" else WEIGHTS / "tiny.safetensors"
    picture = pictures()[name]
    piece, routing = in_one_piece(path, picture)
    tiled, _ = in_tiles(path, picture, routing if statistics == "own" else None, monkeypatch)
    assert psnr(tiled, piece) > 60


def test_the_measure_sees_a_seam() -> None:
    picture = pictures()["photo"]
    axis_starts, tile = (0, 224, 336), 256
    stepped = picture.copy()
    stepped[:, (0 + 224 + 256) // 2 :] += 0.2
    clean = seam_ratio(picture, axis_starts, tile, 1)
    assert seam_ratio(stepped, axis_starts, tile, 1) > 1.05 * clean
