"""What of a picture is kept, changed, or left out with a note, for every pair of formats: one table, which decides.

:func:`settle` applies it to a picture, ``python -m clusir.runtimes.images.metadata.keeping`` prints it as Markdown (the
table in docs/running.md), and a test writes a file for every cell. Pieces are named by their rows, so that no reader
can hand over what the table does not know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clusir.markdown import table
from clusir.runtimes.images.metadata.jpeg_segments import MAX_SEGMENT
from clusir.runtimes.images.metadata.tags import has_maker_note
from clusir.runtimes.images.picture import Extra, PictureInfo

__all__ = ["BIG_TIFF", "CHANGED", "KEPT", "NOTED", "ROWS", "TARGETS", "Row", "as_markdown", "settle"]

KEPT, CHANGED, NOTED = "kept", "changed", "noted"
TARGETS = ("PNG", "JPEG", "TIFF", "WEBP", "AVIF", "HEIF", "JXL", "BMP")
BIG_TIFF = 4_000_000_000  # bytes of pixels, from which on a TIFF is written as BigTIFF
_EIGHT_BIT = ("JPEG", "WEBP", "AVIF", "HEIF", "JXL", "BMP")
# Where a MakerNote's offsets stay valid: formats that hold an EXIF block as one piece.
_BLOCK = ("PNG", "JPEG", "WEBP", "AVIF", "HEIF", "JXL")


@dataclass(frozen=True)
class Row:
    """One thing that a picture file may hold. ``present`` says whether a picture that is to be written as a format
    has it; ``kept`` and ``changed`` are the formats that hold it as it is, or otherwise (``how``); for all others
    ``note`` is said. A row of extras has the kind of its pieces as key, and no ``present``."""

    label: str
    note: str
    kept: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    how: str = ""
    tell: bool = False  # whether a change is said as well
    present: Callable[[PictureInfo, str], bool] | None = None

    def verdict(self, target: str) -> str:
        """``kept``, ``changed`` or ``noted``."""
        return KEPT if target in self.kept else CHANGED if target in self.changed else NOTED


def _grey_profile(info: PictureInfo, target: str) -> bool:
    return _space(info.icc) == b"GRAY" and info.channels <= 2


def _space(icc: bytes | None) -> bytes:
    return icc[16:20] if icc else b""


def _fitting_profile(info: PictureInfo, target: str) -> bool:
    return bool(info.icc) and info.channels > 2


_EXIF_LIMIT = MAX_SEGMENT - 6

ROWS: dict[str, Row] = {
    "sixteen": Row("16 bit", "16 bit become 8", ("PNG", "TIFF"), present=lambda i, t: i.dtype == np.uint16),
    "float": Row(
        "floating point", "floating point becomes 8 bit", ("TIFF",), ("PNG",), "floating point becomes 16 bit", True,
        lambda i, t: i.dtype == np.float32,
    ),
    "profile": Row(
        "ICC profile (RGB)", "the ICC profile is left out: colours will be taken for sRGB",
        ("PNG", "JPEG", "TIFF", "WEBP", "AVIF", "HEIF", "JXL"), present=_fitting_profile,
    ),
    "grey_profile": Row(
        "ICC profile (grey)", "the grey ICC profile is left out: the file holds RGB", ("PNG", "JPEG", "TIFF"),
        present=_grey_profile,
    ),
    "exif": Row(
        "EXIF, TIFF's descriptive tags", "EXIF is left out", _BLOCK, ("TIFF",), "the same tags, laid out anew",
        present=lambda i, t: bool(i.exif),
    ),
    "maker_note": Row(
        "MakerNote in EXIF", "", _BLOCK, ("TIFF",), "the MakerNote is moved, and offsets inside it may no longer be "
        "valid", True, lambda i, t: has_maker_note(i.exif),
    ),
    "xmp": Row(
        "XMP", "XMP is left out", ("PNG", "JPEG", "TIFF", "WEBP", "AVIF", "HEIF", "JXL"),
        present=lambda i, t: bool(i.xmp),
    ),
    "resolution": Row(
        "resolution", "the resolution is left out", ("PNG", "TIFF"), ("JPEG", "BMP"), "whole numbers",
        present=lambda i, t: i.dpi is not None,
    ),
    "aspect": Row(
        "shape of pixels that are not square", "the shape of its pixels, which are not square, is left out",
        ("PNG", "JPEG", "TIFF"), present=lambda i, t: i.aspect is not None,
    ),
    "iptc": Row("IPTC record of TIFF", "the IPTC record is left out", ("TIFF",), ("JPEG",), "in a Photoshop block"),
    "photoshop": Row("IPTC and Photoshop's block", "IPTC and Photoshop's block are left out", ("JPEG", "TIFF")),
    "comment": Row("comment of JPEG, GIF", "the comment is left out", ("JPEG",), ("PNG",), "a text chunk"),
    "text": Row("text chunks of PNG", "text chunks are left out", ("PNG",)),
    "png_colour": Row("gAMA, cHRM, cICP, mDCV, cLLI of PNG", "says what its colours mean and is left out", ("PNG",)),
    "srgb": Row("sRGB of PNG", "", ("PNG",), TARGETS[1:], "what files without a profile are taken for"),
    "png_other": Row("other chunks of PNG that may be copied", "further chunks are left out", ("PNG",)),
    "tied": Row("chunks tied to the old pixels (tIME, sBIT, C2PA)", "tied to the old pixels, and left out"),
    "segments": Row("other segments of JPEG (FLIR, C2PA)", "further segments are left out"),
}  # fmt: skip


def settle(info: PictureInfo, target: str) -> PictureInfo:
    """``info`` as what a file of format ``target`` can hold, with a note for all that it cannot.

    Channels are as they will be written. What is left in ``icc``, ``exif``, ``xmp``, ``dpi``, ``aspect`` and
    ``extras`` is what the writer has to write.
    """
    notes = list(info.notes)
    settled = info
    if info.icc and _space(info.icc) != (b"GRAY" if info.channels <= 2 else b"RGB "):
        notes.append("the ICC profile, which is for other colours than the file's, is left out")
        settled = replace(settled, icc=None)
    for key, row in ROWS.items():
        if row.present is None or not row.present(settled, target):
            continue
        verdict = row.verdict(target)
        if key == "maker_note" and info.format == "TIFF":
            verdict = CHANGED
        if key == "resolution" and verdict == NOTED and settled.exif and target in _BLOCK:
            continue  # EXIF holds it too
        if verdict == NOTED and row.note:
            notes.append(row.note)
        elif verdict == CHANGED and row.tell:
            notes.append(row.how)
        if verdict == NOTED:
            settled = _without(settled, key)
    kept, said = _settled_extras(settled, target)
    settled = replace(settled, extras=kept)
    notes += said
    if target == "JPEG" and settled.exif and len(settled.exif) > _EXIF_LIMIT:
        notes.append(f"EXIF of {len(settled.exif)} bytes is left out: JPEG holds {_EXIF_LIMIT}")
        settled = replace(settled, exif=None)
    if target == "TIFF" and settled.exif and settled.bytes_decoded > BIG_TIFF:
        notes.append("EXIF's and GPS's directories are left out of a TIFF over 4 GB")
    if target in _EIGHT_BIT:
        settled = replace(settled, dtype=np.dtype(np.uint8))
    elif target == "PNG" and settled.dtype == np.float32:
        settled = replace(settled, dtype=np.dtype(np.uint16))
    return replace(settled, format=target, notes=tuple(dict.fromkeys(notes)))


def _without(info: PictureInfo, key: str) -> PictureInfo:
    fields = {
        "profile": "icc",
        "grey_profile": "icc",
        "exif": "exif",
        "xmp": "xmp",
        "resolution": "dpi",
        "aspect": "aspect",
    }
    gone: dict[str, Any] = {fields[key]: None} if key in fields else {}
    return replace(info, **gone)


def _settled_extras(info: PictureInfo, target: str) -> tuple[tuple[Extra, ...], list[str]]:
    kept, said = [], []
    for extra in info.extras:
        row = ROWS[extra.kind]
        too_long = target == "JPEG" and extra.kind == "comment" and len(extra.data) > MAX_SEGMENT
        if row.verdict(target) != NOTED and not too_long:
            kept.append(extra)
        else:
            said.append(
                f"{extra.name} {row.note}"
                if extra.kind in ("png_colour", "tied")
                else f"{row.note} ({extra.name})"
                if extra.name
                else row.note
            )
    return tuple(kept), said


def as_markdown() -> str:
    """The table of docs/running.md."""
    rows = [
        [row.label, *(row.how if row.verdict(t) == CHANGED else row.verdict(t) for t in TARGETS)]
        for row in ROWS.values()
    ]
    return table(["", *TARGETS], rows, left=1 + len(TARGETS))


if __name__ == "__main__":
    print(as_markdown(), end="")
