"""Picture files in and out: 8 and 16 bit, with everything about them that is not pixels.

``open_picture`` reads PNG, JPEG, TIFF, WebP, BMP and still GIF; ``save_picture`` writes them (GIF excepted) atomically.
A file is hostile until proven otherwise: sizes are compared with :class:`clusir.runtimes.picture.Limits` and with the
file's own length before anything is allocated, and whatever a decoder throws becomes one ImageError line.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from clusir.errors import ClusirError, ImageError
from clusir.runtimes.picture import SUFFIX_FORMATS, WRITE_SUFFIXES, Limits, PictureInfo
from clusir.runtimes.pillow_reader import PillowRows, describe, upright
from clusir.runtimes.pillow_writer import PillowWriter
from clusir.runtimes.png_reader import SIGNATURE, PngHeader, PngRows, read_header
from clusir.runtimes.png_writer import PngWriter
from clusir.runtimes.tiff_tags import read_orientation, reset_orientation, reset_xmp_orientation
from clusir.runtimes.tiff_writer import TiffWriter

__all__ = ["Picture", "open_picture", "output_info", "partial_name", "save_picture"]

_FORMATS = ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF"]
# Pillow registers these two only when they are imported; the others it knows at once.
_REGISTERED = (TiffImagePlugin, WebPImagePlugin)
# Deflate packs at most 1032:1, and a flat JPEG about 1000:1; more is a header that lies.
_MAX_RATIO = 1200
_pillow_limit = threading.Lock()
_WHOLE_BYTES = 64 << 20


class _Rows(Protocol):
    def rows(self, start: int, stop: int) -> NDArray[Any]: ...


class _Writer(Protocol):
    def write(self, band: NDArray[Any]) -> None: ...
    def finish(self) -> None: ...


_WRITERS: dict[str, Callable[[BinaryIO, PictureInfo], _Writer]] = {
    "PNG": PngWriter,
    "TIFF": TiffWriter,
    "JPEG": PillowWriter,
    "WEBP": PillowWriter,
    "BMP": PillowWriter,
}


class Picture:
    """An opened picture file: a :class:`clusir.runtimes.restore.RowSource` with its ``info`` and ``path``."""

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


def open_picture(path: str | Path, limits: Limits | None = None) -> Picture:
    """Open and check a picture file; small ones are decoded at once, large PNGs band by band later.

    Raises ImageError, one line that names the file, where it is missing, not a picture, damaged, animated, of several
    pages, named as another format than it is, over ``limits``, or of a kind that cannot be restored without loss.
    """
    path, limits = Path(path), limits or Limits()
    with _as_image_error(path):
        head = _first_bytes(path)
        if head.startswith(SIGNATURE):
            _check_suffix(path, "PNG")
            header = read_header(path, limits)
            _check_size(path, header.width, header.height, header.channels * max(8, header.depth) // 8, limits, "PNG")
            if header.frames > 1:
                raise ImageError(f"animated: it has {header.frames} frames; extract the one to restore")
            if header.streams:
                return _streamed_png(path, header)
            if header.depth == 16 and header.channels in (2,):
                raise ImageError("interlaced 16-bit grey with alpha is not read; save it without interlacing")
        return _with_pillow(path, limits)


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


def _check_size(path: Path, width: int, height: int, pixel_bytes: int, limits: Limits, kind: str) -> None:
    if width * height > limits.pixels:
        raise ImageError(f"{width}x{height} pixels are over the {limits.pixels} allowed; see --max-pixels")
    raw, stored = width * height * pixel_bytes, path.stat().st_size
    if kind in ("PNG", "JPEG") and raw > _MAX_RATIO * stored + (1 << 16):
        raise ImageError(f"its header claims {width}x{height} pixels, more than its {stored} bytes can hold")


def _streamed_png(path: Path, header: PngHeader) -> Picture:
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
    rows = PngRows(path, header)
    if orientation == 1:
        return Picture(path, info, rows)
    return Picture(path, info, _Whole(upright(rows.rows(0, header.height), orientation)))


def _with_pillow(path: Path, limits: Limits) -> Picture:
    with _pillow_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # Limits decide, with a message of their own
        try:
            image = Image.open(path, formats=_FORMATS)
        except UnidentifiedImageError as error:
            raise ImageError("not a picture that is read here (PNG, JPEG, TIFF, WebP, BMP, GIF)") from error
        finally:
            Image.MAX_IMAGE_PIXELS = before
    with image:
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        _check_suffix(path, kind)
        _check_size(path, image.width, image.height, len(image.getbands()), limits, kind)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":
            what = "pages" if kind == "TIFF" else "frames"
            raise ImageError(f"it has {frames} {what}; extract the one to restore")
        exif = image.info.get("exif")
        if isinstance(exif, bytes) and len(exif) > limits.exif_bytes:
            raise ImageError(f"its EXIF block of {len(exif)} bytes is over the {limits.exif_bytes} allowed; strip it")
        orientation = _orientation(image)
        info = describe(image, path, orientation)
        needed = image.width * image.height * (4 if info.dtype == np.uint8 and info.channels > 1 else info.channels * 2)
        if needed > limits.decoded_bytes:
            raise ImageError(
                f"decoding its {image.width}x{image.height} pixels takes {needed >> 20} MB and "
                f"{limits.decoded_bytes >> 20} MB are allowed; raise --max-memory, or make it a PNG, which is streamed"
            )
        return Picture(path, info, PillowRows(image, info, path, orientation))


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # Pillow turns TIFF by itself when it decodes, and has swapped width and height already
    exif = image.info.get("exif")
    return read_orientation(exif.removeprefix(b"Exif\0\0")) if isinstance(exif, bytes) else 1


def output_info(info: PictureInfo, target: str | Path, alpha: str = "keep") -> PictureInfo:
    """What a restored picture is as file ``target``: format by its suffix, channels and depth that it can hold.

    Raises ImageError where the suffix is unknown or cannot hold alpha.
    """
    target = Path(target)
    suffix = target.suffix.lower()
    if suffix not in WRITE_SUFFIXES:
        raise ImageError(f"{target}: {suffix or 'no suffix'} cannot be written; use one of {', '.join(WRITE_SUFFIXES)}")
    kind = SUFFIX_FORMATS[suffix]
    channels = info.channels - 1 if info.has_alpha and alpha == "drop" else info.channels
    if kind in ("JPEG", "BMP") and channels in (2, 4):
        raise ImageError(f"{target}: {kind} holds no alpha; use another suffix or --alpha drop")
    dtype = info.dtype
    if kind in ("JPEG", "WEBP", "BMP"):
        dtype = np.dtype(np.uint8)
    elif kind == "PNG" and dtype == np.float32:
        dtype = np.dtype(np.uint16)
    icc = info.icc if kind != "BMP" else None
    chunks = info.png_chunks if kind == "PNG" else ()
    lossless = info.lossless or info.format != kind
    return replace(info, format=kind, channels=channels, dtype=dtype, icc=icc, png_chunks=chunks, lossless=lossless)


def partial_name(target: Path) -> Path:
    """The name beside ``target`` under which it is written until it is complete."""
    return target.with_name(f".{target.name}.{os.getpid()}.clusir-partial")


def save_picture(target: str | Path, bands: Iterable[NDArray[Any]], info: PictureInfo) -> None:
    """Write bands of rows (HxWxC of ``info.dtype``) as ``info.format``; ``target`` appears complete or not at all.

    Raises ImageError where the disk is full, the folder cannot be written, or the format refuses.
    """
    target = Path(target)
    partial = partial_name(target)
    try:
        with partial.open("wb") as stream:
            writer = _WRITERS[info.format](stream, info)
            for band in bands:
                writer.write(band)
            writer.finish()
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, target)
    except OSError as error:
        raise ImageError(f"{target}: it cannot be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)
