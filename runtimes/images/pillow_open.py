"""Pillow's ``Image.open`` under this project's limits."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image

__all__ = ["opened_by_pillow"]

_lock = threading.Lock()


@contextmanager
def opened_by_pillow(source: Path | BinaryIO, formats: Sequence[str]) -> Iterator[Image.Image]:
    """The picture in ``source``, not yet decoded. Pillow's own limit of pixels is left out: callers have checked the
    size against theirs. Raises what Pillow raises."""
    with _lock:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(source, formats=list(formats))
        finally:
            Image.MAX_IMAGE_PIXELS = before
    with image:
        yield image
