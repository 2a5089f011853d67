"""How far a pixel of a graph looks: found with as few answers as show it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from clusir.export.subjects.onnx_probe import measure_reach

Picture = NDArray[np.float32]


class Asked:
    """A picture to itself and a part of one that lies ``far`` px to the left (None: of how far its mean is below a
    limit); counts its calls."""

    def __init__(self, far: int | None, part: float = 0.2, below: float = 1.0) -> None:
        self.far, self.part, self.below, self.calls = far, part, below, 0

    def __call__(self, image: Picture) -> Picture:
        self.calls += 1
        mean = max(0.0, self.below - float(image.mean()))
        rest = np.full_like(image, mean) if self.far is None else np.roll(image, self.far, axis=3)
        return np.asarray(image + np.float32(self.part) * rest, np.float32)


def test_one_picture_that_shows_the_whole_is_enough() -> None:
    run = Asked(None)
    found = measure_reach(run, 160, 3)
    assert found.whole
    assert found.pixels == 64
    assert run.calls == 2


def test_a_picture_that_does_not_show_it_leaves_it_to_the_next() -> None:
    run = Asked(None, below=0.2)  # the mean of dark pictures alone
    assert measure_reach(run, 160, 3).whole
    assert run.calls == 6


@pytest.mark.parametrize(("far", "pixels"), [(3, 4), (11, 12), (40, 48)])
def test_a_distance_is_the_least_step_that_is_enough(far: int, pixels: int) -> None:
    found = measure_reach(Asked(far), 160, 3)
    assert not found.whole
    assert found.pixels == pixels
