"""What may be restored: arrays, Pillow's images, picture files; and what comes back for each."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from clusir.errors import ImageError
from clusir.runtimes.restore.canvas import Pixels, RowSource

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ArraySource", "Restorable", "opened_source"]

Restorable: TypeAlias = "Pixels | Image | str | os.PathLike[str]"


class ArraySource:
    """A picture that is already an array: HxW or HxWxC."""

    def __init__(self, pixels: Pixels) -> None:
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if pixels.ndim != 3 or 0 in pixels.shape or pixels.shape[2] > 4:
            raise ImageError(
                f"array of shape {pixels.shape}: a picture is HxW or HxWxC with 1 to 4 channels, not empty"
            )
        self.pixels = pixels
        self.height, self.width, self.channels = pixels.shape

    def rows(self, start: int, stop: int) -> Pixels:
        return self.pixels[start:stop]


def opened_source(picture: Restorable) -> tuple[RowSource, Callable[[Pixels], Any]]:
    """The rows of a picture, and what makes of restored rows the kind of thing that was given.

    Raises ImageError for what is neither an array of numbers, nor a Pillow image, nor the path of a picture file.
    """
    if isinstance(picture, (str, os.PathLike)):
        from clusir.runtimes.images.files import open_picture

        return open_picture(os.fspath(picture)), lambda restored: restored
    from PIL import Image

    if isinstance(picture, Image.Image):
        return _from_pillow(picture)
    if not isinstance(picture, np.ndarray):
        raise ImageError(f"{type(picture).__name__}: a picture is a NumPy array, a Pillow image or a path of a file")
    flat = picture.ndim == 2
    return ArraySource(picture), lambda restored: restored[:, :, 0] if flat else restored


def _from_pillow(image: Image) -> tuple[RowSource, Callable[[Pixels], Any]]:
    """Upright and in a mode that is restored; profile, EXIF, XMP and resolution go on with the result."""
    from PIL import Image, ImageOps

    from clusir.runtimes.images.metadata.colour import cmyk_to_srgb
    from clusir.runtimes.images.metadata.exif import PREFIX, plain_exif, settled_exif
    from clusir.runtimes.images.pillow_reader import rgb_of

    mode, _ = rgb_of(image)
    turned = ImageOps.exif_transpose(image)
    kept: dict[Any, Any] = {key: turned.info[key] for key in ("icc_profile", "xmp", "dpi") if key in turned.info}
    if turned.mode == "CMYK":
        pixels = cmyk_to_srgb(kept.pop("icc_profile"))(np.asarray(turned))
    else:
        pixels = np.asarray(turned.convert(mode) if mode != turned.mode else turned)
    exif = plain_exif(turned.getexif().tobytes()) if turned.getexif() else None

    def dressed(restored: Pixels) -> Image.Image:
        made = Image.fromarray(restored[:, :, 0] if restored.shape[2] == 1 else restored)
        made.info |= kept
        settled = settled_exif(exif, 1, made.width, made.height)[0] if exif else None
        if settled is not None:
            made.info["exif"] = PREFIX + settled
        return made

    native = pixels.dtype.newbyteorder("=")
    return ArraySource(pixels.astype(native, copy=False)), dressed
