"""A file that takes one picture against any function of it: photos, noise, black and white, at several sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clusir.errors import BackendError, ExportError, ValidationError
from clusir.export.subjects.onnx_probe import natural_picture
from clusir.export.validate.compare import Agreement, check, compare
from clusir.export.validate.tolerances import Tolerance, tolerance
from clusir.runtimes import open_runner
from clusir.runtimes.runners.base import Array

__all__ = ["PictureCheck", "compare_pictures"]

Row = tuple[str, str, Agreement]


@dataclass(frozen=True)
class PictureCheck:
    """``reference``: BxCxHxW to the outputs by name; ``sizes``: heights and widths in pixels; ``batches``: whether the
    file takes several pictures at once; ``backends``: the runtimes to ask; ``bound``: of the float32 file; ``pool``:
    BxCxHxW to the statistics [B, S] that a tile graph is given; ``photo``: whether one photo at each size is enough."""

    reference: Callable[[Array], Mapping[str, Array]]
    sizes: Sequence[tuple[int, int]]
    channels: int
    batches: bool
    backends: Sequence[str]
    bound: Tolerance
    pool: Callable[[Array], Array] | None = None
    photo: bool = False

    def of(self, precision: str) -> PictureCheck:
        """The same with the bound of a lower precision."""
        return replace(self, bound=tolerance(precision))


def compare_pictures(
    path: Path, given: PictureCheck, precision: str = "fp32", progress: Callable[[str], None] = lambda _: None
) -> list[Row]:
    """(backend, what, agreement) of every case, each within the bound. INT8 is held to photos alone: its ranges are
    those of photos, and what it loses there is measured against the truth.

    Raises ValidationError where one is not or there is none, ExportError where a runtime refuses the file.
    """
    found: list[Row] = []
    for backend in given.backends:
        progress(f"comparing on {backend}")
        try:
            opened = open_runner(path, backend, "cpu")
        except BackendError:
            raise
        except Exception as error:
            raise ExportError(f"{backend} refuses {path.name} ({error}); leave it out with --backends") from error
        with opened as run:
            for what, image in _cases(given, precision):
                feeds = {"image": image}
                if run.spec.graph == "tile" and given.pool is not None:
                    feeds["statistics"] = given.pool(image)
                agreement = compare(given.reference(image), run.run(feeds), given.bound)
                found.append((backend, what, check(agreement, f"{backend}, {what}")))
    if not found:
        raise ValidationError(f"{path.name}: nothing was compared")
    return found


def _cases(given: PictureCheck, precision: str) -> Iterator[tuple[str, Array]]:
    for height, width in given.sizes:
        shape = (1, given.channels, height, width)
        photo = natural_picture(height, width, given.channels)
        if given.photo:
            pictures = {"photo": photo}
        elif precision == "int8":
            other = natural_picture(height, width, given.channels, seed=1)
            pictures = {"photo": photo, "second photo": other, "dark photo": 0.2 * photo}
        else:
            noise = np.random.default_rng(1).random(shape, dtype=np.float32)
            pictures = {"photo": photo, "noise": noise}
            pictures |= {"black": np.zeros(shape, np.float32), "white": np.ones(shape, np.float32)}
        if given.batches:
            pictures["two at once"] = np.concatenate(list(pictures.values())[:2])
        for name, image in pictures.items():
            yield f"{height}x{width}, {name}", image
