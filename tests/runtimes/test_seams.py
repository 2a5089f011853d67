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
from measure_run import seam_ratio

from clusir.metrics import psnr
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


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from clusir.checkpoint import random_model, save
    from clusir.model import CONFIGS

    path = tmp_path_factory.mktemp("random") / "random.safetensors"
    save(random_model(CONFIGS["tiny"]), path)
    return path


# Neither is a seam (the step at the border is smaller than elsewhere); both miss what earlier weights kept, and why is
# known in part. Slope: the weights of run 10 lay a faint pattern over it (56.6 dB from the slope itself, run 6 61.3),
# and inside the first tile, 28 to 84 px from the edge, it is another one than in one piece: the ratio is 0.63, not
# 0.76, and without deblurring and cue 0.66, not 0.78, so these are not the cause. Photo: 56.8 dB, 69 without
# deblurring.
_SLOPE = pytest.mark.xfail(reason="the network's own pattern on a bare slope differs inside a tile", strict=True)
_RANDOM = pytest.mark.xfail(reason="deblurring of untrained weights differs between tiles and one piece", strict=True)


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        pytest.param("shipped", "slope", marks=_SLOPE),
        ("shipped", "photo"),
        ("random", "slope"),
        pytest.param("random", "photo", marks=_RANDOM),
    ],
)
def test_no_seam_with_shared_routing(weights: str, name: str, random_weights: Path) -> None:
    path = random_weights if weights == "random" else WEIGHTS / "tiny.safetensors"
    picture = pictures()[name]
    with open_runner(path, backend="torch", device="cpu", threads=1) as runner:
        piece = runner.run({"image": picture.transpose(2, 0, 1)[None].copy()})["restored"][0].transpose(1, 2, 0)
    piece = np.clip(piece, 0, 1)
    with Restorer(path, backend="torch", device="cpu", threads=1, routing="shared") as restorer:
        tiled, work = restorer.restore_and_tell(picture)
        axis = plan_axis(SIZE[1], restorer.spec)
    assert work.tiles == 3
    for reach in (1, 12):  # the middle of the blend, and the whole of it
        expected = seam_ratio(piece, axis.starts, axis.tile, reach)
        assert seam_ratio(tiled, axis.starts, axis.tile, reach) == pytest.approx(expected, rel=0.05)
    # The gradient's mean alone would not see tiles whose brightness drifts: it is the same picture as well.
    assert psnr(tiled, piece) > 60


def test_the_measure_sees_a_seam() -> None:
    picture = pictures()["photo"]
    axis_starts, tile = (0, 224, 336), 256
    stepped = picture.copy()
    stepped[:, (0 + 224 + 256) // 2 :] += 0.2
    clean = seam_ratio(picture, axis_starts, tile, 1)
    assert seam_ratio(stepped, axis_starts, tile, 1) > 1.05 * clean
