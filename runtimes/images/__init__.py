"""Picture files: pixels in and out, and what else a file says (profile, orientation, resolution, alpha). One reader and
one writer for each family of formats.

Belongs here: whatever knows a file format. Not here: pixels of a restored array (``restore``), pages (``report``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.runtimes.images.files import Picture, open_picture, output_info, probe_picture, save_picture
    from clusir.runtimes.images.formats import READ_SUFFIXES, WRITE_SUFFIXES
    from clusir.runtimes.images.picture import Limits, PictureInfo

__all__ = [
    "READ_SUFFIXES",
    "WRITE_SUFFIXES",
    "Limits",
    "Picture",
    "PictureInfo",
    "open_picture",
    "output_info",
    "probe_picture",
    "save_picture",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "files": "Picture open_picture output_info probe_picture save_picture",
        "formats": "READ_SUFFIXES WRITE_SUFFIXES",
        "picture": "Limits PictureInfo",
    },
)
