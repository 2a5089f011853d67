"""Whether a split says what the graph says: along rows and along columns, on as little of a picture as shows it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from clusir.export.pooling.check import SplitRun
from clusir.spec import ModelSpec, SizeRequirements

Picture = NDArray[np.float32]


class Means(SplitRun):
    """The picture and its mean, whose two graphs are functions: ``weigh`` is what the statistics make of the weights of
    pixels, ``off`` what the tile graph adds."""

    def __init__(self, weigh: Callable[[Picture], Picture] = lambda weight: weight, off: float = 0.0) -> None:
        self.weigh, self.off, self.pixels = weigh, off, 0

    def pool(self, image: Picture, weight: Picture | None = None) -> Picture:
        self.pixels += image[0, 0].size
        counted = self.weigh(np.ones_like(image[:, :1]) if weight is None else weight)
        mean = (image * counted).sum() / (3 * counted.sum())
        return np.array([[image[0, 0].size, mean]], np.float32)

    def given(self, statistics: Picture) -> Callable[[Picture], Picture]:
        return lambda image: image + np.float32(statistics[0, 1] + self.off)


def fault(split: Means, multiple: int = 8, least: int = 8) -> str:
    spec = ModelSpec(size=SizeRequirements(multiple, least), channels=3)
    return split.fault(lambda image: image + np.float32(image.mean()), 16, spec)


@pytest.mark.parametrize(("multiple", "least"), [(8, 8), (64, 64), (8, 256)])
def test_a_mean_over_the_picture_is_no_fault(multiple: int, least: int) -> None:
    split = Means()
    assert fault(split, multiple, least) == ""
    assert least > 8 or split.pixels <= 8 * 192 * 96, "more of a picture is pooled than shows it"


@pytest.mark.parametrize("least", [8, 256])
@pytest.mark.parametrize("axis", [2, 3])
def test_pixels_that_count_for_others_are_seen_along_either_axis(axis: int, least: int) -> None:
    """A statistic that takes a row for all of its pixels, or a column."""
    split = Means(lambda weight: np.broadcast_to(weight.max(axis, keepdims=True), weight.shape))
    assert "not as assumed" in fault(split, least=least)


def test_another_answer_is_a_fault() -> None:
    assert "answers something else" in fault(Means(off=0.01))
