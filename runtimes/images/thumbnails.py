"""Pictures made small for reports and comparisons: any array, 8-bit RGB out."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clusir.errors import ImageError

__all__ = ["data_uri", "eight_bit", "most_changed", "shrunk"]

Picture = NDArray[np.generic]


def eight_bit(picture: Picture) -> NDArray[np.uint8]:
    """Any picture as [H,W,3] uint8: [H,W] or [H,W,1..4]; uint8, uint16 (0..65535) or float (0..1, clipped).

    Alpha is laid over a mid-grey, as a page has no background that suits every picture. Raises ImageError for anything
    else.
    """
    array = np.asarray(picture)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] > 4 or 0 in array.shape:
        raise ImageError(f"a picture of shape {np.shape(picture)} cannot be shown; it must be HxW or HxWx(1 to 4)")
    if array.dtype == np.uint16:
        array = (array // 257).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        array = np.rint(np.clip(np.nan_to_num(array), 0, 1) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"a picture of dtype {array.dtype} cannot be shown; it must be uint8, uint16 or float")
    if array.shape[2] in (2, 4):
        alpha = array[..., -1:].astype(np.float32) / 255
        array = np.rint(array[..., :-1].astype(np.float32) * alpha + 128 * (1 - alpha)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def shrunk(picture: NDArray[np.uint8], limit_px: int) -> NDArray[np.uint8]:
    """[H,W,3] with its longer side at most ``limit_px`` pixels; never enlarged, never thinner than one pixel."""
    height, width = picture.shape[:2]
    if max(height, width) <= limit_px:
        return picture
    scale = limit_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # reducing_gap averages whole blocks of pixels first: a 100-megapixel picture shrinks in a moment.
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0))


def most_changed(before: NDArray[np.uint8], after: NDArray[np.uint8], side_px: int) -> tuple[slice, slice]:
    """Rows and columns of the window of ``side_px`` pixels in which the two [H,W,3] pictures differ most.

    Windows are tried every half side. Restoration is about pixels, and a shrunk picture hides them: this is the part
    worth showing in its full size.
    """
    height, width = before.shape[:2]
    rows, cols = min(side_px, height), min(side_px, width)

    def starts(length: int, window: int) -> list[int]:
        return sorted({*range(0, length - window + 1, max(1, window // 2)), length - window})

    best, place = -1.0, (0, 0)
    for top in starts(height, rows):
        # One row of windows at a time, every fourth pixel: enough to rank them, and little memory for any picture.
        a, b = (p[top : top + rows : 4, ::4].astype(np.int16) for p in (before, after))
        columns = np.abs(a - b).sum(axis=(0, 2), dtype=np.int64)
        for left in starts(width, cols):
            change = float(columns[left // 4 : -(-(left + cols) // 4)].mean())
            if change > best:
                best, place = change, (top, left)
    top, left = place
    return slice(top, top + rows), slice(left, left + cols)


def data_uri(picture: NDArray[np.uint8], quality: int = 88) -> str:
    """[H,W,3] uint8 as a ``data:image/webp`` address."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
