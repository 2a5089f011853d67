"""Pictures like none that the shipped network has seen: stripes, checks and dithering. Its answer to them is nonsense,
up to 1e14, and they come back as they went in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from clusir.runtimes.restore.restorer import Restorer
from tests import needs

Grey = NDArray[np.float64]
_BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]) / 16


def patterns(height: int, width: int) -> Iterator[tuple[str, Grey]]:
    """Grey pictures in 0..1 by name."""
    row, column = np.indices((height, width))
    yield "stripes", column % 2 * 1.0
    yield "grey stripes", 0.43 + column % 2 * 0.16
    yield "checks", (row + column) % 2 * 1.0
    yield "dots", row % 2 * (column % 2) * 1.0
    yield "dithering", (column / width > np.tile(_BAYER, (height // 4, width // 4))) * 1.0
    photo = 0.5 + 0.2 * np.sin(row / 37) * np.cos(column / 53)
    photo[80:144, 80:144] = (row + column)[80:144, 80:144] % 2
    yield "a patch of checks in a smooth picture", photo


@pytest.mark.parametrize(
    ("backend", "fix"),
    [
        ("ort", "auto"),
        ("openvino", "all"),
        pytest.param("ort", "all", marks=needs.FULL),
        pytest.param("openvino", "auto", marks=needs.FULL),
    ],
)
def test_what_is_answered_with_nonsense_comes_back_as_it_was(backend: str, fix: str) -> None:
    with Restorer(backend=backend, threads=1, fix=fix) as restorer:
        for height, width in ((256, 256), (256, 384)):  # one tile, and two
            for name, grey in patterns(height, width):
                picture = np.repeat(np.rint(grey * 255).astype(np.uint8)[..., None], 3, axis=2)
                assert np.array_equal(restorer.restore(picture), picture), (name, width)


def test_asked_outright_nonsense_is_kept_back_too() -> None:
    with Restorer(backend="ort", threads=1, fix="noise,jpeg,rain") as restorer:
        for name, grey in patterns(256, 256):
            if name in ("stripes", "checks", "dots"):
                picture = np.repeat(np.rint(grey * 255).astype(np.uint8)[..., None], 3, axis=2)
                assert np.array_equal(restorer.restore(picture), picture), name
