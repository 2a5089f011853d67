"""Crops for a model that enlarges: a photo and the same out of focus, in turn."""

from __future__ import annotations

import numpy as np
import pytest

from clusir.calibration.model_source import SHRUNK, SMOOTH, for_model, shrink
from clusir.calibration.sources import open_source


@pytest.mark.parametrize(("scale", "channels"), [(2, 3), (4, 1)])
def test_every_second_crop_of_an_enlarger_is_smooth(scale: int, channels: int) -> None:
    source = for_model(open_source(None, 64), scale, channels)
    sharp, smooth = source.sample(4), source.sample(5)
    assert (sharp.degradation, smooth.degradation) == source.degradations == (SHRUNK, SMOOTH)
    assert sharp.key.split("#")[0] == smooth.key.split("#")[0]
    errors = []
    for sample in (sharp, smooth):
        truth = sample.clean
        assert truth is not None
        assert truth.shape == (1, channels, 64, 64)
        np.testing.assert_array_equal(sample.image, shrink(truth, scale))
        assert 0 <= truth.min() <= truth.max() <= 1
        repeated = sample.image.repeat(scale, axis=2).repeat(scale, axis=3)
        errors.append(float(np.square(repeated - truth).mean()))
    assert errors[1] < errors[0] / 2, "smooth is no nearer to what enlarging without a network makes"
    levels = 255 * smooth.clean if smooth.clean is not None else np.zeros(1)
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)


def test_a_model_of_one_size_sees_crops_as_they_are() -> None:
    source = open_source(None, 64)
    grey = for_model(source, 1, 1)
    assert grey.degradations == source.degradations
    assert len(grey) == len(source)
    assert grey.sample(3).key == source.sample(3).key
