"""Picture formats by their names and by their first bytes: what is read, what is written, what is only recognised."""

from __future__ import annotations

import importlib.util
from functools import cache

__all__ = [
    "ALL_SUFFIXES",
    "MAX_SIDES",
    "RAW_SUFFIXES",
    "READ_SUFFIXES",
    "SUFFIX_FORMATS",
    "WRITE_SUFFIXES",
    "install_hint",
    "is_picture_name",
    "looks_like",
    "readable",
    "unread_format",
]

_SUFFIXES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".mpo"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
    "JXL": (".jxl",),
}
ALL_SUFFIXES = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes}
# The package that reads a format, and the extra of this project that brings it.
_PLUGINS = {"HEIF": ("pillow_heif", "pillow-heif", "heif"), "JXL": ("pillow_jxl", "pillow-jxl-plugin", "jxl")}
# GIF holds 256 colours, too few for a restored picture.
_READ_ONLY = ("GIF",)
# Pixels that a side may have, where the format or its library sets a limit that pictures reach.
MAX_SIDES = {"JPEG": 65500, "WEBP": 16383, "AVIF": 65536, "HEIF": 16384}
RAW_SUFFIXES = frozenset(
    [
        ".3fr",
        ".ari",
        ".arw",
        ".bay",
        ".cap",
        ".cr2",
        ".cr3",
        ".crw",
        ".dcr",
        ".dng",
        ".eip",
        ".erf",
        ".fff",
        ".gpr",
        ".iiq",
        ".k25",
        ".kdc",
        ".mdc",
        ".mef",
        ".mos",
        ".mrw",
        ".nef",
        ".nrw",
        ".orf",
        ".pef",
        ".ptx",
        ".pxn",
        ".r3d",
        ".raf",
        ".raw",
        ".rw2",
        ".rwl",
        ".rwz",
        ".sr2",
        ".srf",
        ".srw",
        ".x3f",
    ]
)
_OTHER_SUFFIXES = frozenset(
    [
        ".apng",
        ".bpg",
        ".cin",
        ".cur",
        ".dcm",
        ".dds",
        ".djvu",
        ".dpx",
        ".eps",
        ".exr",
        ".fits",
        ".flif",
        ".hdr",
        ".icns",
        ".ico",
        ".j2c",
        ".j2k",
        ".jng",
        ".jp2",
        ".jpc",
        ".jpf",
        ".jpx",
        ".jxr",
        ".mng",
        ".pam",
        ".pbm",
        ".pcx",
        ".pfm",
        ".pgm",
        ".pic",
        ".pict",
        ".pnm",
        ".ppm",
        ".psb",
        ".psd",
        ".qoi",
        ".ras",
        ".rgb",
        ".rgbe",
        ".sgi",
        ".svg",
        ".tga",
        ".wbmp",
        ".wdp",
        ".wmf",
        ".xbm",
        ".xcf",
        ".xpm",
        ".avifs",
        ".heics",
        ".heifs",
        ".jph",
        ".jls",
    ]
)


@cache
def readable(kind: str) -> bool:
    """Whether this installation reads a format."""
    if kind in _PLUGINS:
        return importlib.util.find_spec(_PLUGINS[kind][0]) is not None
    if kind == "AVIF":
        from PIL import features

        return bool(features.check("avif"))
    return kind in _SUFFIXES


def install_hint(kind: str) -> str:
    """How to make :func:`readable` true."""
    if kind in _PLUGINS:
        _, package, extra = _PLUGINS[kind]
        return f"pip install {package} (or clusir[{extra}])"
    return "pip install --upgrade pillow, whose own wheels hold it" if kind == "AVIF" else ""


def _suffixes(writing: bool) -> dict[str, str]:
    """Suffix to format. Plug-ins are looked for when the module is imported, which costs no import of theirs; AVIF is
    in every Pillow wheel since 11.3, and checked when a file of it is met."""
    kinds = [k for k in _SUFFIXES if k not in _PLUGINS or readable(k)]
    return {s: k for k in kinds if not (writing and k in _READ_ONLY) for s in _SUFFIXES[k]}


SUFFIX_FORMATS = _suffixes(writing=False)
READ_SUFFIXES = tuple(SUFFIX_FORMATS)
WRITE_SUFFIXES = tuple(_suffixes(writing=True))


def is_picture_name(suffix: str) -> bool:
    """Whether a suffix (lower case, with its dot) is that of a picture, read here or not."""
    return suffix in ALL_SUFFIXES or suffix in RAW_SUFFIXES or suffix in _OTHER_SUFFIXES


def unread_format(suffix: str) -> str | None:
    """For a picture's suffix that this installation does not read: what it is and what to do. None for others."""
    if suffix in SUFFIX_FORMATS or not is_picture_name(suffix):
        return None
    if suffix in ALL_SUFFIXES:
        return install_hint(ALL_SUFFIXES[suffix])
    return "raw photos: develop them first" if suffix in RAW_SUFFIXES else "convert them to PNG, JPEG or TIFF"


_BRANDS = {
    "AVIF": (b"avif", b"avis"),
    "HEIF": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
    "a raw photo (CR3)": (b"crx ",),
}
_MAGIC = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"), (0, b"\xff\xd8\xff", "JPEG"), (0, b"II*\0", "TIFF"), (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"), (0, b"MM\0+", "TIFF"), (0, b"GIF8", "GIF"), (8, b"WEBP", "WEBP"), (0, b"BM", "BMP"),
    (0, b"\xff\x0a", "JXL"), (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"), (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"), (0, b"\x76\x2f\x31\x01", "OpenEXR"), (0, b"8BPS", "Photoshop"),
    (0, b"IIU\0", "a raw photo (RW2)"), (0, b"IIRO", "a raw photo (ORF)"), (0, b"IIRS", "a raw photo (ORF)"),
    (0, b"MMOR", "a raw photo (ORF)"), (0, b"FUJIFILMCCD-RAW", "a raw photo (RAF)"), (0, b"FOVb", "a raw photo (X3F)"),
    (0, b"\0MRM", "a raw photo (MRW)"), (6, b"HEAPCCDR", "a raw photo (CRW)"), (0, b"%PDF", "PDF"), (0, b"<svg", "SVG"),
    (0, b"DDS ", "DDS"), (0, b"qoif", "QOI"), (0, b"#?RADIANCE", "Radiance HDR"), (0, b"SIMPLE  =", "FITS"),
    (0, b"\0\0\1\0", "an icon"), (0, b"gimp xcf", "GIMP's XCF"), (0, b"%!PS", "PostScript"), (0, b"AT&TFORM", "DjVu"),
    (0, b"II\xbc", "JPEG XR"), (0, b"BPG\xfb", "BPG"), (0, b"SDPX", "DPX"), (0, b"XPDS", "DPX"), (0, b"\x8aMNG", "MNG"),
    (0, b"<!DOCTYPE", "a web page"), (0, b"<html", "a web page"), (0, b"PK\3\4", "a zip archive"),
)  # fmt: skip


def looks_like(head: bytes) -> str | None:
    """What the first bytes of a file (32 of them are enough) are the beginning of: a format of
    :data:`SUFFIX_FORMATS`, the name of another one, or None."""
    if head[4:8] == b"ftyp":
        brands = [head[i : i + 4] for i in (8, *range(16, len(head), 4))]
        for brand in brands:
            for name, known in _BRANDS.items():
                if brand in known and not (name == "HEIF" and b"avif" in brands):
                    return name
        return "a film"
    for at, magic, name in _MAGIC:
        if head[at : at + len(magic)] == magic and (name != "WEBP" or head.startswith(b"RIFF")):
            return name
    if len(head) > 2 and head[:1] == b"P" and head[1:2] in b"1234567fF" and head[2:3].isspace():
        return "PNM"
    return None
