"""``--compare``: the picture before and after, in one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from clusir.atomic import write_whole
from clusir.errors import ImageError, UsageError
from clusir.runtimes.images.names import COMPARISON_MARK
from clusir.runtimes.images.thumbnails import Picture, eight_bit, shrunk

__all__ = ["write_comparison"]

_GAP_PX = 8
_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}


def write_comparison(
    before: Picture, after: Picture, path: str | Path, limit_px: int = 8000, like: Path | None = None
) -> Path:
    """Write ``before | after`` to ``path`` and return it; the file appears whole or not at all.

    Both pictures are [H,W] or [H,W,1..4] of uint8, uint16 or float 0..1, and of one height and width. They stand side
    by side with a white gap, or one above the other where the picture is more than twice as wide as it is high. Each is
    shrunk to ``limit_px`` pixels on its longer side at most; 8 bits per channel. Raises UsageError for a suffix that is
    no picture format, ImageError for pictures that do not match or a file that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(f"comparison {path}: unknown picture suffix {path.suffix!r}; use one of {', '.join(_FORMATS)}")
    if np.shape(before)[:2] != np.shape(after)[:2]:
        raise ImageError(
            f"comparison {path}: before is {np.shape(before)[:2]} and after {np.shape(after)[:2]} (height, width); "
            "they must be of one size"
        )
    pair = [shrunk(eight_bit(p), limit_px) for p in (before, after)]
    height, width = pair[0].shape[:2]
    stacked = width > 2 * height
    gap = np.full((_GAP_PX, width, 3) if stacked else (height, _GAP_PX, 3), 255, np.uint8)
    sheet = Image.fromarray(np.concatenate([pair[0], gap, pair[1]], axis=0 if stacked else 1))
    kind = _FORMATS[path.suffix.lower()]
    mark = {"comment": COMPARISON_MARK} if kind == "JPEG" else {}
    return write_whole(path, lambda stream: sheet.save(stream, kind, quality=95, **mark), "comparison", like)
