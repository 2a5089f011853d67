"""Which page of a TIFF is the picture, and how its samples are meant; what is not restored is refused by its name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clusir.errors import ImageError
from clusir.runtimes.images.formats import RAW_SUFFIXES
from clusir.runtimes.images.tiff.segments import BYTE_SCHEMES, JPEG_SCHEME, SampleLayout, scheme_name

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

__all__ = [
    "GREY",
    "PALETTE",
    "RGB",
    "SEPARATED",
    "WHITE_IS_ZERO",
    "YCBCR",
    "TiffPicture",
    "opened_tiff",
    "read_picture",
]

WHITE_IS_ZERO, GREY, RGB, PALETTE, SEPARATED, YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {WHITE_IS_ZERO: 1, GREY: 1, RGB: 3, PALETTE: 1, SEPARATED: 4, YCBCR: 3}
_OTHER_PHOTOMETRIC = {
    4: "a transparency mask", 8: "CIE L*a*b*", 9: "ICC L*a*b*", 10: "ITU L*a*b*", 32803: "a colour filter array",
    32844: "LogL", 32845: "LogLuv", 34892: "linear raw", 51177: "a depth map",
}  # fmt: skip
_RAW_PHOTOMETRIC = (32803, 34892)
_MAX_PAGES = 1000
_ASSOCIATED, _UNASSOCIATED = 1, 2
_MAX_CHANNELS = 64


@dataclass(frozen=True)
class TiffPicture:
    """The page that is restored. ``colours`` of its ``channels`` samples a pixel are colour; ``alpha`` is the index
    of the channel of opacity, ``premultiplied`` whether colours are multiplied by it. ``orientation`` is 0 where the
    file says nothing. ``segment`` is (rows, columns) of a strip
    or tile, ``offsets`` and ``counts`` where those lie; ``palette`` is [3, entries] of 16 bit."""

    width: int
    height: int
    photometric: int
    channels: int
    colours: int
    alpha: int | None
    premultiplied: bool
    planar: bool
    orientation: int
    segment: tuple[int, int]
    tiled: bool
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    layout: SampleLayout
    palette: NDArray[np.uint16] | None
    ycbcr: tuple[tuple[float, ...], tuple[float, ...]]
    directory: int
    notes: tuple[str, ...]


def opened_tiff(path: Path) -> TiffFile:
    """The directories of a TIFF, read by tifffile. Raises ImageError where they are damaged."""
    import tifffile

    logger = logging.getLogger("tifffile")
    if not logger.handlers:  # without one, Python prints its warnings to the terminal
        logger.addHandler(logging.NullHandler())
    try:
        return tifffile.TiffFile(path, _multifile=False)
    except Exception as error:
        raise ImageError(f"damaged: its directory cannot be read ({error})") from error


def read_picture(path: Path, tif: TiffFile) -> TiffPicture:
    """The picture among the pages. Raises ImageError for raw photos, for several pictures, and for layouts that are not
    restored, each by its name."""
    pages = list(_pages(tif))
    if not pages:
        raise ImageError("damaged: it holds no page")
    if (
        path.suffix.lower() in RAW_SUFFIXES
        or 50706 in pages[0].tags
        or any(_number(p, 262) in _RAW_PHOTOMETRIC for p in pages)
    ):
        raise ImageError("a raw photo, whose first page is only a preview: develop it to TIFF, PNG or JPEG first")
    full = [page for page in pages if not _is_side_page(page)]
    if len(full) > 1:
        raise ImageError(f"it has {len(full)} pages; extract the one to restore")
    page = full[0] if full else max(pages, key=lambda p: int(p.imagewidth) * int(p.imagelength))
    picture = _described(page)
    if len(pages) > 1:
        note = f"page {pages.index(page) + 1} is restored, its {len(pages) - 1} reduced copies or masks are left out"
        picture = replace(picture, notes=(*picture.notes, note))
    return picture


def _pages(tif: TiffFile) -> Iterator[TiffPage]:
    """The chained pages and those in SubIFDs, in the order of the file."""
    seen: set[int] = set()
    for i in range(_MAX_PAGES):
        try:
            page: Any = tif.pages[i]
        except IndexError:
            return
        if page.offset in seen:
            return
        seen.add(page.offset)
        yield page
        for inner in list(page.pages or ())[:_MAX_PAGES] if page.subifds else ():
            if inner.offset not in seen and hasattr(inner, "tags"):
                seen.add(inner.offset)
                yield inner


def _number(page: TiffPage, tag: int, default: int = 0) -> int:
    value: Any = page.tags[tag].value if tag in page.tags else default
    value = value[0] if isinstance(value, tuple) and value else value
    return int(value) if isinstance(value, int) else default


def _is_side_page(page: TiffPage) -> bool:
    """A reduced copy or a mask, by NewSubfileType or by its forerunner."""
    return bool(_number(page, 254) & 0b101) or _number(page, 255) == 2 or _number(page, 262, 1) == 4


def _described(page: TiffPage) -> TiffPicture:
    width, height, channels = int(page.imagewidth), int(page.imagelength), int(page.samplesperpixel)
    photometric = _number(page, 262, -1)
    if photometric < 0:
        raise ImageError("a TIFF without PhotometricInterpretation does not say what its numbers mean; save it anew")
    if photometric not in _COLOURS:
        name = _OTHER_PHOTOMETRIC.get(photometric, f"photometric interpretation {photometric}")
        raise ImageError(f"a TIFF of {name} is not restored; convert it to grey or RGB of 8 or 16 bit")
    if not (width and height and int(page.imagedepth) == 1):
        raise ImageError(f"damaged: a page of {width}x{height} pixels")
    colours = _COLOURS[photometric]
    if not colours <= channels <= _MAX_CHANNELS:
        raise ImageError(f"damaged: {channels} channels a pixel, its colours alone are {colours}")
    planar = int(page.planarconfig or 1) == 2 and channels > 1
    layout = _layout(page, photometric, 1 if planar else channels)
    alpha, premultiplied, notes = _extra_channels(page, colours, channels)
    if premultiplied and photometric not in (GREY, RGB):
        raise ImageError("a TIFF of premultiplied alpha is read as grey or RGB only; save it with straight alpha")
    tiled = bool(page.is_tiled)
    segment = (int(page.tilelength), int(page.tilewidth)) if tiled else (min(int(page.rowsperstrip), height), width)
    if not (0 < segment[0] <= height + 65536 and 0 < segment[1] <= width + 65536):
        raise ImageError(f"damaged: strips or tiles of {segment[1]}x{segment[0]} pixels")
    wanted = -(-height // segment[0]) * -(-width // segment[1]) * (channels if planar else 1)
    offsets, counts = tuple(map(int, page.dataoffsets)), tuple(map(int, page.databytecounts))
    if min(len(offsets), len(counts)) < wanted:
        raise ImageError(f"truncated: {min(len(offsets), len(counts))} of its {wanted} strips or tiles are there")
    orientation = _number(page, 274)
    return TiffPicture(
        width=width, height=height, photometric=photometric, channels=channels, colours=colours, alpha=alpha,
        premultiplied=premultiplied, planar=planar, orientation=orientation if 0 <= orientation <= 8 else 1,
        segment=segment, tiled=tiled, offsets=offsets[:wanted], counts=counts[:wanted], layout=layout,
        palette=_palette(page, layout.bits) if photometric == PALETTE else None, ycbcr=_ycbcr(page),
        directory=int(page.offset), notes=tuple(notes),
    )  # fmt: skip


def _layout(page: TiffPage, photometric: int, channels: int) -> SampleLayout:
    bits, kind = _sample_type(page)
    compression, predictor = int(page.compression), int(page.predictor or 1)
    if compression not in (*BYTE_SCHEMES, JPEG_SCHEME):
        raise ImageError(f"its {scheme_name(compression)} is not read in TIFF; save it with LZW, deflate or ZSTD")
    if compression == JPEG_SCHEME and (bits, kind) != (8, "u"):
        raise ImageError(f"a TIFF of {bits}-bit JPEG is not read; save it with LZW or deflate")
    if compression in (2, 3, 4) and (bits, channels) != (1, 1):
        raise ImageError(f"damaged: {scheme_name(compression)} of {bits} bit and {channels} channels")
    fits = {1: True, 2: (kind == "u" and bits in (8, 16)) or (kind == "f"), 3: kind == "f"}
    if compression == JPEG_SCHEME or compression in (2, 3, 4):
        predictor = 1
    if not fits.get(predictor, False):
        raise ImageError(
            f"a TIFF of {bits}-bit samples with predictor {predictor} is not read; save it with predictor 1"
        )
    subsampling = (1, 1)
    if photometric == YCBCR:
        if (bits, kind) != (8, "u"):
            raise ImageError(f"a TIFF of {bits}-bit YCbCr is not read; save it as RGB")
        h, v = (int(n) for n in (page.tags[530].value if 530 in page.tags else (2, 2)))
        if compression != JPEG_SCHEME and (h, v) != (1, 1):
            if h not in (1, 2, 4) or v not in (1, 2, 4) or channels != 3 or predictor != 1:
                raise ImageError(
                    f"a TIFF of YCbCr with {h}x{v} subsampling, stored like this, is not read; save it as RGB"
                )
            subsampling = (h, v)
    tables = page.jpegtables
    return SampleLayout(
        bits=bits, kind=kind, channels=channels, order=str(page.parent.byteorder), compression=compression,
        predictor=predictor, reversed_bits=int(page.fillorder or 1) == 2,
        jpeg_tables=bytes(tables) if isinstance(tables, bytes) else b"", transform=photometric == YCBCR,
        fax=tuple((tag, _number(page, tag)) for tag in (292, 293) if tag in page.tags), subsampling=subsampling,
    )  # fmt: skip


def _sample_type(page: TiffPage) -> tuple[int, str]:
    """Bits, and ``u`` or ``f``; the samples of a pixel must agree."""
    widths: Any = page.tags[258].value if 258 in page.tags else 1
    formats: Any = page.tags[339].value if 339 in page.tags else 1
    widths, formats = (v if isinstance(v, tuple) else (v,) for v in (widths, formats))
    if len(set(widths)) > 1 or len(set(formats)) > 1:
        raise ImageError(
            f"a TIFF whose samples differ in depth ({', '.join(map(str, widths))} bit) is not read; save it with 8 or "
            f"16"
        )
    bits, code = int(widths[0]), int(formats[0])
    if code == 4:
        code = 1  # "undefined" is what writers put that mean plain integers
    names = {1: "unsigned", 2: "signed", 3: "floating-point", 5: "complex integer", 6: "complex floating-point"}
    if code == 1 and 1 <= bits <= 16:
        return bits, "u"
    if code == 3 and bits in (16, 32, 64):
        return bits, "f"
    name = names.get(code, f"format {code}")
    raise ImageError(f"a TIFF of {bits}-bit {name} samples is not restored; save it as 16-bit unsigned or 32-bit float")


def _extra_channels(page: TiffPage, colours: int, channels: int) -> tuple[int | None, bool, list[str]]:
    """(index of alpha, premultiplied, notes)."""
    value: Any = page.tags[338].value if 338 in page.tags else ()
    kinds = [int(v) for v in (value if isinstance(value, tuple) else (value,))]
    kinds = (kinds + [0] * channels)[: channels - colours]
    found = next((i for i, kind in enumerate(kinds) if kind in (_ASSOCIATED, _UNASSOCIATED)), None)
    others = len(kinds) - (found is not None)
    notes = [f"{others} extra channel{'s' * (others > 1)} of no stated meaning left out"] if others else []
    if found is None:
        return None, False, notes
    if kinds[found] == _ASSOCIATED:
        notes.append("premultiplied alpha becomes straight alpha")
    return colours + found, kinds[found] == _ASSOCIATED, notes


def _palette(page: TiffPage, bits: int) -> NDArray[np.uint16]:
    table = np.asarray(page.tags[320].value if 320 in page.tags else (), np.uint16)
    if table.size != 3 << bits:
        raise ImageError(f"damaged: a palette of {table.size} values for {bits}-bit indices")
    table = table.reshape(3, -1)
    return table * np.uint16(257) if table.max() < 256 else table  # old writers stored 8-bit values


def _ycbcr(page: TiffPage) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(coefficients of luminance, reference black and white), as floats."""

    def ratios(tag: int, default: tuple[float, ...]) -> tuple[float, ...]:
        value: Any = page.tags[tag].value if tag in page.tags else ()
        pairs = list(zip(value[::2], value[1::2], strict=False)) if isinstance(value, tuple) else []
        if len(pairs) != len(default) or any(not below for _, below in pairs):
            return default
        return tuple(above / below for above, below in pairs)

    return ratios(529, (0.299, 0.587, 0.114)), ratios(532, (0.0, 255.0, 128.0, 255.0, 128.0, 255.0))
