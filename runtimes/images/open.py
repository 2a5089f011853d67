"""Opening a picture file: PNG, JPEG, TIFF, WebP, BMP and still GIF, 8 and 16 bit.

A file is hostile until proven otherwise: sizes are compared with :class:`clusir.runtimes.images.picture.Limits` and
with the file's own length before anything is allocated, and whatever a decoder throws becomes one ImageError line.
"""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from clusir.errors import ClusirError, ImageError
from clusir.runtimes.images.picture import SUFFIX_FORMATS, Limits, PictureInfo
from clusir.runtimes.images.pillow_reader import PillowRows, describe, upright
from clusir.runtimes.images.png_reader import SIGNATURE, PngHeader, PngRows, read_header
from clusir.runtimes.images.tiff_tags import read_orientation, reset_orientation, reset_xmp_orientation

__all__ = ["Picture", "Probe", "open_picture", "probe_picture"]

_FORMATS = ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF"]
# Pillow registers these two only when they are imported; the others it knows at once.
_REGISTERED = (TiffImagePlugin, WebPImagePlugin)
# Deflate packs at most 1032:1, and a flat JPEG about 1000:1; more is a header that lies.
_MAX_RATIO = 1200
_pillow_limit = threading.Lock()
_WHOLE_BYTES = 32 << 20
# Bytes of a pixel as the file can pack it, where that is less than one per channel.
_MODE_BYTES = {"1": 1 / 8, "P": 1 / 8, "L": 1, "RGB": 3, "YCbCr": 3, "LA": 2, "PA": 2, "I;16": 2, "I;16B": 2}


class _Rows(Protocol):
    def rows(self, start: int, stop: int) -> NDArray[Any]: ...


class Picture:
    """An opened picture file: a :class:`clusir.runtimes.restore.restorer.RowSource` with its ``info`` and ``path``."""

    def __init__(self, path: Path, info: PictureInfo, source: _Rows) -> None:
        self.path, self.info, self._source = path, info, source
        self.height, self.width, self.channels = info.height, info.width, info.channels
        if info.bytes_decoded <= _WHOLE_BYTES:
            self._source = _Whole(source.rows(0, info.height))

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start`` to ``stop``, HxWxC of ``info.dtype``. Raises ImageError where the file is damaged there."""
        with _as_image_error(self.path):
            return self._source.rows(start, stop)


class _Whole:
    def __init__(self, pixels: NDArray[Any]) -> None:
        self.pixels = pixels

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        return self.pixels[start:stop]


@contextmanager
def _as_image_error(path: Path) -> Iterator[None]:
    """A decoder fed with hostile bytes may raise anything; the user gets one line that names the file."""
    try:
        yield
    except ImageError as error:
        if str(error).startswith(str(path)):
            raise
        raise ImageError(f"{path}: {error}") from error
    except (ClusirError, KeyboardInterrupt):
        raise
    except MemoryError as error:
        raise ImageError(f"{path}: it does not fit into memory") from error
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ImageError(f"{path}: it cannot be decoded ({reason[:200]})") from error


@dataclass(frozen=True)
class Probe:
    """A picture file whose header has been read and judged, and whose pixels have not been touched.

    ``decode_bytes`` is what :meth:`open` will allocate and keep; :meth:`open` may be called once.
    """

    path: Path
    info: PictureInfo
    decode_bytes: int
    _decode: Callable[[], _Rows]

    def open(self) -> Picture:
        """Decode, or for a large PNG make ready to. Raises ImageError where the file is damaged."""
        with _as_image_error(self.path):
            return Picture(self.path, self.info, self._decode())


def open_picture(path: str | Path, limits: Limits | None = None) -> Picture:
    """Open and check a picture file; small ones are decoded at once, large PNGs band by band later.

    Raises ImageError, one line that names the file, where it is missing, not a picture, damaged, animated, of several
    pages, named as another format than it is, over ``limits``, or of a kind that cannot be restored without loss.
    """
    return probe_picture(path, limits).open()


def probe_picture(path: str | Path, limits: Limits | None = None) -> Probe:
    """The first half of :func:`open_picture`: all that can be known, and refused, without decoding."""
    path, limits = Path(path), limits or Limits()
    with _as_image_error(path):
        head = _first_bytes(path)
        if head.startswith(SIGNATURE):
            _check_suffix(path, "PNG")
            header = read_header(path, limits)
            _check_size(path, header.width, header.height, header.channels * header.depth / 8, limits, "PNG")
            if header.frames > 1:
                raise ImageError(f"animated: it has {header.frames} frames; extract the one to restore")
            if header.streams:
                return _probe_png(path, header)
            if header.depth == 16 and (header.channels == 2 or header.transparency is not None):
                raise ImageError(
                    "16-bit PNG with a transparent colour, or interlaced grey + alpha, is not read; re-save it"
                )
        return _probe_with_pillow(path, limits)


def _first_bytes(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError("it is a folder, not a picture")
        if not stat.S_ISREG(mode):
            raise ImageError("it is not a regular file")
        with path.open("rb") as stream:
            head = stream.read(32)
    except FileNotFoundError as error:
        raise ImageError("broken link" if path.is_symlink() else "no such file") from error
    except OSError as error:
        raise ImageError(f"it cannot be read ({error.strerror or error})") from error
    if not head:
        raise ImageError("the file is empty")
    return head


def _check_suffix(path: Path, found: str) -> None:
    named = SUFFIX_FORMATS.get(path.suffix.lower())
    if named is not None and named != found:
        raise ImageError(f"the name says {named}, the content is {found}; rename it")


def _check_size(path: Path, width: int, height: int, pixel_bytes: float, limits: Limits, kind: str) -> None:
    if width * height > limits.pixels:
        raise ImageError(f"{width}x{height} pixels are over the {limits.pixels} allowed; see --max-pixels")
    raw, stored = width * height * pixel_bytes, path.stat().st_size
    if kind in ("PNG", "JPEG") and raw > _MAX_RATIO * stored + (1 << 16):
        raise ImageError(f"its header claims {width}x{height} pixels, more than its {stored} bytes can hold")


def _probe_png(path: Path, header: PngHeader) -> Probe:
    orientation = read_orientation(header.exif)
    turned = orientation >= 5
    info = PictureInfo(
        format="PNG",
        width=header.height if turned else header.width,
        height=header.width if turned else header.height,
        channels=header.channels,
        dtype=np.dtype(np.uint16 if header.depth == 16 else np.uint8),
        icc=header.icc,
        exif=reset_orientation(header.exif) if header.exif else None,
        xmp=reset_xmp_orientation(header.xmp) if header.xmp else None,
        png_chunks=header.kept,
    )
    if orientation == 1:
        return Probe(path, info, min(info.bytes_decoded, _WHOLE_BYTES), lambda: PngRows(path, header))

    def decode() -> _Rows:
        return _Whole(upright(PngRows(path, header).rows(0, header.height), orientation))

    return Probe(path, info, info.bytes_decoded, decode)


def _probe_with_pillow(path: Path, limits: Limits) -> Probe:
    with _opened(path) as image:
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        _check_suffix(path, kind)
        _check_size(path, image.width, image.height, _MODE_BYTES.get(image.mode, 4), limits, kind)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":
            what = "pages" if kind == "TIFF" else "frames"
            raise ImageError(f"it has {frames} {what}; extract the one to restore")
        exif = image.info.get("exif")
        if isinstance(exif, bytes) and len(exif) > limits.exif_bytes:
            raise ImageError(f"its EXIF block of {len(exif)} bytes is over the {limits.exif_bytes} allowed; strip it")
        orientation = _orientation(image)
        info = describe(image, path, orientation)
    # Pillow takes 4 bytes a pixel for colour; both halves of 16 bit, or a turned copy, come on top.
    pixels = info.width * info.height
    needed = pixels * (4 if info.channels > 1 else info.dtype.itemsize)
    needed *= 2 if info.format == "WEBP" else 1  # libwebp keeps a canvas of its own
    needed += info.bytes_decoded if info.dtype == np.uint16 or orientation != 1 else 0
    if needed > limits.decoded_bytes:
        raise ImageError(
            f"{path}: decoding its {info.width}x{info.height} pixels takes {needed >> 20} MB and "
            f"{limits.decoded_bytes >> 20} MB are allowed; raise --max-memory, or make it a PNG, which is streamed"
        )

    def decode() -> _Rows:
        with _opened(path) as image:
            return PillowRows(image, info, path, orientation)

    return Probe(path, info, needed, decode)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with _pillow_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # Limits decide, with a message of their own
        try:
            image = Image.open(path, formats=_FORMATS)
        except UnidentifiedImageError as error:
            raise ImageError("not a picture that is read here (PNG, JPEG, TIFF, WebP, BMP, GIF)") from error
        finally:
            Image.MAX_IMAGE_PIXELS = before
    with image:
        yield image


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns TIFF by itself when it decodes, and has swapped width and height already
    exif = image.info.get("exif")
    return read_orientation(exif.removeprefix(b"Exif\0\0")) if isinstance(exif, bytes) else 1
