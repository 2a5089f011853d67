"""Everything a file says made true of the upright picture that is restored from it."""

from __future__ import annotations

from dataclasses import replace

from clusir.runtimes.images.metadata.exif import settled_exif
from clusir.runtimes.images.metadata.photoshop import settled_photoshop
from clusir.runtimes.images.metadata.tags import read_ifd, read_orientation
from clusir.runtimes.images.metadata.xmp import settled_xmp, xmp_orientation
from clusir.runtimes.images.picture import Extra, PictureInfo

__all__ = ["enlarged_info", "orientation_of", "turned", "upright_info"]


def orientation_of(exif: bytes | None, xmp: bytes | None) -> int:
    """How pixels are to be turned, 1..8: as EXIF says, and where EXIF says nothing, as XMP does."""
    return read_orientation(exif) or xmp_orientation(xmp) or 1


def turned(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Width and height of the upright picture."""
    return (height, width) if orientation >= 5 else (width, height)


def upright_info(info: PictureInfo, orientation: int) -> PictureInfo:
    """``info`` (its width and height those of the upright picture, all else as it was read) with EXIF, XMP, Photoshop's
    block and the resolution true of a picture that is turned by ``orientation``. What had to go is in its notes."""
    notes = list(info.notes)
    exif, xmp = info.exif, info.xmp
    dpi = info.dpi if info.dpi is not None else _exif_resolution(exif)
    if exif is not None:
        exif, gone = settled_exif(exif, orientation, info.width, info.height)
        notes += [f"{what} left out" for what in gone]
    if xmp is not None:
        xmp, gone = settled_xmp(xmp, orientation, info.width, info.height)
        notes += [f"{what} left out" for what in gone]
    extras = []
    for extra in info.extras:
        if extra.kind == "photoshop":
            data, gone = settled_photoshop(extra.data, orientation)
            notes += [f"{what} left out" for what in gone]
            if not data:
                continue
            extra = Extra(extra.kind, data, extra.name)
        extras.append(extra)
    aspect = info.aspect
    if orientation >= 5:
        dpi = dpi and (dpi[1], dpi[0])
        aspect = aspect and (aspect[1], aspect[0])
    return replace(info, exif=exif, xmp=xmp, extras=tuple(extras), dpi=dpi, aspect=aspect, notes=tuple(notes))


def enlarged_info(info: PictureInfo, scale: int) -> PictureInfo:
    """``info`` of the upright picture ``scale`` times as wide and high: sizes in EXIF and XMP follow, the resolution
    (pixels an inch) stays, positions in pixels that EXIF may name are taken out with a note."""
    if scale == 1:
        return info
    width, height = scale * info.width, scale * info.height
    exif, xmp, notes = info.exif, info.xmp, list(info.notes)
    if exif is not None:
        exif, gone = settled_exif(exif, 1, width, height, moved=True)
        notes += [f"{what} left out" for what in gone]
    if xmp is not None:
        xmp, gone = settled_xmp(xmp, 1, width, height)
        notes += [f"{what} left out" for what in gone]
    return replace(info, width=width, height=height, exif=exif, xmp=xmp, notes=tuple(notes))


def _exif_resolution(exif: bytes | None) -> tuple[float, float] | None:
    order, tags = read_ifd(exif or b"")
    pair = [tags[n].ratio(order) if n in tags else None for n in (282, 283)]
    unit = tags[296].integer(order) if 296 in tags else 2
    if unit not in (2, 3) or pair[0] is None or pair[1] is None or not (0 < pair[0] < 1e6 and 0 < pair[1] < 1e6):
        return None
    scale = 2.54 if unit == 3 else 1.0
    return pair[0] * scale, pair[1] * scale
