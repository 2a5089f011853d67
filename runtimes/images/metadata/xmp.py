"""XMP made true of the picture that is written, edited only where something in it would be false."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

__all__ = ["plain_xmp", "settled_xmp", "xmp_orientation"]

_TIFF_NS, _EXIF_NS = b"http://ns.adobe.com/tiff/1.0/", b"http://ns.adobe.com/exif/1.0/"
# What describes further pictures in or behind the file (gain map, film, depth, thumbnail), which are not written.
_COMPANIONS = (
    "http://ns.adobe.com/hdr-gain-map/",
    "http://ns.apple.com/HDRGainMap/",
    "http://ns.apple.com/pixeldatainfo/",
    "http://ns.google.com/photos/1.0/container/",
    "http://ns.google.com/photos/1.0/camera/",
    "http://ns.google.com/photos/1.0/depthmap/",
    "http://ns.google.com/photos/1.0/image/",
    "http://ns.google.com/photos/1.0/audio/",
    "http://ns.google.com/photos/dd/1.0/",
    "http://ns.adobe.com/xap/1.0/g/img/",
)
_THUMBNAILS = "{http://ns.adobe.com/xap/1.0/}Thumbnails"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_EXTENDED = b"http://ns.adobe.com/xmp/note/"


def plain_xmp(data: object) -> bytes | None:
    """The packet as UTF-8 bytes, without the zeros that some writers end it with."""
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogatepass")
    if not isinstance(data, bytes):
        return None
    if data[:2] in (b"\xfe\xff", b"\xff\xfe"):
        data = data.decode("utf-16", "replace").encode()
    return data.strip(b"\0") or None


def _prefixes(xmp: bytes, namespace: bytes, usual: bytes) -> bytes:
    found = re.findall(rb"xmlns:([\w.-]+)\s*=\s*[\"']" + re.escape(namespace) + rb"[\"']", xmp)
    return b"(?:" + b"|".join(sorted({usual, *found})) + b")"


def _value(xmp: bytes, namespace: bytes, usual: bytes, name: bytes) -> re.Pattern[bytes]:
    """Matches an attribute's or an element's number, the number in the second group."""
    return re.compile(
        rb"(\b" + _prefixes(xmp, namespace, usual) + rb":" + name + rb"\s*(?:=\s*[\"']|>)\s*)(\d+(?:/\d+)?)"
    )


def xmp_orientation(xmp: bytes | None) -> int:
    """tiff:Orientation 1..8; 0 where there is none or a senseless one."""
    found = _value(xmp, _TIFF_NS, b"tiff", b"Orientation").search(xmp) if xmp else None
    return int(found[2]) if found and found[2] in (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8") else 0


def settled_xmp(xmp: bytes, orientation: int, width: int, height: int) -> tuple[bytes | None, list[str]]:
    """(the packet of a picture turned by ``orientation`` that is now ``width`` x ``height``, what was taken out).

    tiff:Orientation becomes 1, stored sizes those of the picture, resolutions are swapped with the axes; what describes
    gain maps, films, depth maps and thumbnails that are not written is taken out. None where that cannot be done.
    """
    xmp = _value(xmp, _TIFF_NS, b"tiff", b"Orientation").sub(rb"\g<1>1", xmp)
    for namespace, usual, name, value in (
        (_TIFF_NS, b"tiff", b"ImageWidth", width),
        (_TIFF_NS, b"tiff", b"ImageLength", height),
        (_EXIF_NS, b"exif", b"PixelXDimension", width),
        (_EXIF_NS, b"exif", b"PixelYDimension", height),
    ):
        xmp = _value(xmp, namespace, usual, name).sub(rb"\g<1>%d" % value, xmp)
    if orientation >= 5:
        for namespace, usual, stem in ((_TIFF_NS, b"tiff", b""), (_EXIF_NS, b"exif", b"FocalPlane")):
            x, y = (_value(xmp, namespace, usual, stem + axis + b"Resolution") for axis in (b"X", b"Y"))
            found = x.search(xmp), y.search(xmp)
            if found[0] and found[1]:
                old_x, old_y = found[0][2], found[1][2]
                xmp = y.sub(rb"\g<1>" + old_x, x.sub(rb"\g<1>" + old_y, xmp))
    if not any(ns.encode() in xmp for ns in _COMPANIONS) and b":Thumbnails" not in xmp:
        return xmp, []
    return _without_companions(xmp)


def _without_companions(xmp: bytes) -> tuple[bytes | None, list[str]]:
    start, end = xmp.find(b"<x:xmpmeta"), xmp.rfind(b"</x:xmpmeta>")
    body = xmp[start : end + 12] if 0 <= start < end else xmp
    try:
        prefixes: dict[str, str] = {}
        parser: Any = ElementTree.XMLPullParser(("start-ns",))
        parser.feed(body)
        parser.close()
        for _, (prefix, uri) in parser.read_events():
            prefixes[prefix] = uri
        root = ElementTree.fromstring(body)
    except (ElementTree.ParseError, ValueError):
        return None, ["XMP that describes a gain map, film or thumbnail and cannot be edited"]
    for prefix, uri in prefixes.items():
        if prefix and not re.fullmatch(r"ns\d+", prefix):
            ElementTree.register_namespace(prefix, uri)
    if not _prune(root):
        return xmp, []
    edited = ElementTree.tostring(root, encoding="utf-8", xml_declaration=False)
    packed = xmp.replace(body, edited) if body is not xmp else edited
    return packed, ["what XMP says of a gain map, film, depth map or thumbnail that is not written"]


def _is_companion(name: str) -> bool:
    return name.startswith(tuple("{" + ns for ns in _COMPANIONS)) or name == _THUMBNAILS


def _prune(element: ElementTree.Element) -> bool:
    """Take companions out below ``element``; whether there were any."""
    changed = False
    for name in [n for n in element.attrib if _is_companion(n)]:
        del element.attrib[name]
        changed = True
    for child in list(element):
        if _is_companion(child.tag):
            element.remove(child)
            changed = True
        else:
            changed = _prune(child) or changed
    return changed
