"""Opening a picture file: PNG, JPEG, TIFF, WebP, BMP, AVIF and still GIF; HEIF and JPEG XL where their plug-ins are.

A file is hostile until proven otherwise: sizes are compared with :class:`clusir.runtimes.images.picture.Limits` and
with the file's own length before anything is allocated, and whatever a decoder throws becomes one ImageError line.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clusir.errors import ClusirError, ImageError
from clusir.runtimes.images.formats import ALL_SUFFIXES, install_hint, looks_like, readable
from clusir.runtimes.images.metadata.orientation import upright
from clusir.runtimes.images.metadata.truth import orientation_of, turned, upright_info
from clusir.runtimes.images.picture import Limits, PictureInfo
from clusir.runtimes.images.pillow_reader import WholeRows, probe_with_pillow
from clusir.runtimes.images.png_header import PngHeader, read_header
from clusir.runtimes.images.png_reader import PngRows, read_interlaced

__all__ = ["Picture", "Probe", "open_picture", "probe_picture"]

# Deflate packs at most 1032:1, and a flat JPEG about 1000:1; more is a header that lies.
_MAX_RATIO = 1200
_WHOLE_BYTES = 32 << 20
_READ = "PNG, JPEG, TIFF, WebP, BMP, GIF, AVIF, HEIF, JPEG XL"


class _Rows(Protocol):
    def rows(self, start: int, stop: int) -> NDArray[Any]: ...


class Picture:
    """An opened picture file: a :class:`clusir.runtimes.restore.restorer.RowSource` with its ``info`` and ``path``."""

    def __init__(self, path: Path, info: PictureInfo, source: _Rows) -> None:
        self.path, self.info, self._source = path, info, source
        self.height, self.width, self.channels = info.height, info.width, info.channels
        if info.bytes_decoded <= _WHOLE_BYTES:
            self._source = WholeRows(source.rows(0, info.height))

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start`` to ``stop``, HxWxC of ``info.dtype``. Raises ImageError where the file is damaged there."""
        with _as_image_error(self.path):
            return self._source.rows(start, stop)


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
        kind = looks_like(_first_bytes(path))
        if kind is None:
            raise ImageError(f"not a picture that is read here ({_READ})")
        if kind not in ALL_SUFFIXES.values():
            develop = "; develop it to TIFF, PNG or JPEG first" if kind.startswith("a raw") else ""
            raise ImageError(f"it is {kind}, which is not read here{develop or f'; {_READ} are'}")
        _check_suffix(path, kind)
        if not readable(kind):
            raise ImageError(f"{kind} is not read by this installation; {install_hint(kind)}")
        if kind == "PNG":
            return _probe_png(path, read_header(path, limits), limits)
        return _probe_tiff(path, limits) if kind == "TIFF" else _probe_with_pillow(path, kind, limits)


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
    named = ALL_SUFFIXES.get(path.suffix.lower())
    if named is not None and named != found:
        raise ImageError(f"the name says {named}, the content is {found}; rename it")


def _check_size(path: Path, width: int, height: int, pixel_bytes: float, limits: Limits, kind: str) -> None:
    if width * height > limits.pixels:
        raise ImageError(f"{width}x{height} pixels are over the {limits.pixels} allowed; see --max-pixels")
    raw, stored = width * height * pixel_bytes, path.stat().st_size
    if kind in ("PNG", "JPEG") and raw > _MAX_RATIO * stored + (1 << 16):
        raise ImageError(f"its header claims {width}x{height} pixels, more than its {stored} bytes can hold")


def _check_memory(info: PictureInfo, needed: int, limits: Limits) -> None:
    if needed > limits.decoded_bytes:
        raise ImageError(
            f"decoding its {info.width}x{info.height} pixels takes {needed >> 20} MB and {limits.decoded_bytes >> 20} "
            f"MB "
            "are allowed; raise --max-memory, or make it a PNG, which is streamed"
        )


def _probe_png(path: Path, header: PngHeader, limits: Limits) -> Probe:
    _check_size(path, header.width, header.height, header.stored_channels * header.depth / 8, limits, "PNG")
    if header.frames > 1:
        raise ImageError(f"animated: it has {header.frames} frames; extract the one to restore")
    orientation = orientation_of(header.exif, header.xmp)
    width, height = turned(header.width, header.height, orientation)
    notes = []
    if header.colour_type == 3:
        notes.append("the palette becomes RGB" + "A" * (header.channels == 4))
    elif header.depth < 8:
        notes.append(f"{header.depth} bit becomes 8 bit grey")
    info = PictureInfo(
        format="PNG",
        width=width,
        height=height,
        channels=header.channels,
        dtype=np.dtype(np.uint16 if header.depth == 16 else np.uint8),
        icc=header.icc,
        exif=header.exif,
        xmp=header.xmp,
        extras=tuple(header.extras),
        notes=tuple(notes),
        **_physical(header),
    )
    info = upright_info(info, orientation)
    if orientation == 1 and not header.interlaced:
        return Probe(path, info, min(info.bytes_decoded, _WHOLE_BYTES), lambda: PngRows(path, header))
    needed = 2 * info.bytes_decoded
    _check_memory(info, needed, limits)

    def decode() -> _Rows:
        whole = read_interlaced(path, header) if header.interlaced else PngRows(path, header).rows(0, header.height)
        return WholeRows(upright(whole, orientation))

    return Probe(path, info, needed, decode)


def _physical(header: PngHeader) -> dict[str, Any]:
    if header.physical is None or not (header.physical[0] and header.physical[1]):
        return {}
    x, y, unit = header.physical
    if unit == 1:
        return {"dpi": (x * 0.0254, y * 0.0254)}
    return {"aspect": (float(x), float(y))} if x != y else {}


def _probe_tiff(path: Path, limits: Limits) -> Probe:
    from clusir.runtimes.images.tiff.reader import TiffRows, probe_tiff

    info, page = probe_tiff(path, limits)
    _check_size(path, info.width, info.height, 0, limits, "TIFF")
    segment = page.segment[0] * max(page.width, page.segment[1]) * page.channels * page.layout.dtype.itemsize
    needed = min(info.bytes_decoded, _WHOLE_BYTES) + 4 * segment
    needed += info.bytes_decoded if page.orientation != 1 else 0
    _check_memory(info, needed, limits)
    return Probe(path, info, needed, lambda: TiffRows(path, info, page))


def _probe_with_pillow(path: Path, kind: str, limits: Limits) -> Probe:
    def check(width: int, height: int, pixel_bytes: float) -> None:  # sizes first: what follows reads further
        _check_size(path, width, height, pixel_bytes, limits, kind)

    info, orientation, decode = probe_with_pillow(path, kind, limits, check)
    # Pillow takes 4 bytes a pixel for colour; a turned copy comes on top.
    needed = info.width * info.height * (4 if info.channels > 1 else info.dtype.itemsize)
    needed *= 2 if kind in ("WEBP", "AVIF", "HEIF", "JXL") else 1  # their libraries keep a canvas of their own
    needed += info.bytes_decoded if orientation != 1 or info.dtype == np.uint16 else 0
    _check_memory(info, needed, limits)
    return Probe(path, info, needed, decode)
