"""PSNR and SSIM against what is known of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clusir.errors import UsageError
from clusir.quality.metrics import psnr, ssim


def test_psnr_of_a_constant_error_is_its_formula() -> None:
    a = np.full((8, 9, 3), 0.5, np.float32)
    assert psnr(a, a + np.float32(0.1)) == pytest.approx(20.0, abs=1e-4)
    assert psnr(a, a) == math.inf


def test_psnr_sees_one_grey_level_in_one_pixel_of_a_large_picture() -> None:
    a = np.zeros((1000, 1000, 3), np.float32)
    b = a.copy()
    b[0, 0, 0] = 1 / 255
    assert psnr(a, b) == pytest.approx(10 * math.log10(3e6 * 255**2), abs=1e-3)


def test_ssim_is_one_for_equal_pictures_and_falls_with_noise() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((32, 32, 3))
    assert ssim(a, a) == pytest.approx(1)
    slight, strong = (ssim(a, a + rng.normal(0, s, a.shape)) for s in (0.05, 0.3))
    assert 1 > slight > strong + 0.2


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_pictures_of_two_shapes_are_refused(metric) -> None:
    with pytest.raises(UsageError, match="8x8x3 and 8x9x3"):
        metric(np.zeros((8, 8, 3)), np.zeros((8, 9, 3)))


def test_ssim_refuses_pictures_below_its_window() -> None:
    with pytest.raises(UsageError, match="7x7"):
        ssim(np.zeros((6, 20, 3)), np.zeros((6, 20, 3)))
