"""A file that takes one picture against any function of it: photos, noise, black and white, at several sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from clusir.errors import BackendError, ExportError, ValidationError
from clusir.export.subjects.onnx_probe import natural_picture
from clusir.export.validate.compare import Agreement, check, compare
from clusir.export.validate.effort import Effort
from clusir.export.validate.memory import Memory
from clusir.export.validate.tolerances import Tolerance, tolerance, widened
from clusir.runtimes import open_runner
from clusir.runtimes.runners.base import Array

__all__ = ["PictureCheck", "compare_pictures"]

Row = tuple[str, str, Agreement]


@dataclass(frozen=True)
class PictureCheck:
    """``reference``: BxCxHxW to the outputs by name; ``sizes``: heights and widths in pixels; ``batches``: whether the
    file takes several pictures at once; ``backends``: the runtimes to ask; ``bound``: of the float32 file; ``pool``:
    BxCxHxW to the statistics [B, S] that a tile graph is given; ``photo``: whether one photo at each size is enough;
    ``allowance``: pictures and their restored ones to how far off a file may be where it misses the bound, since the
    reference is not surer itself (infinity: of nothing), asked for float32 alone; ``effort``: the time for other sizes
    than the first and the smallest; ``memory``: what fits into it is compared."""

    reference: Callable[[Array], Mapping[str, Array]]
    sizes: Sequence[tuple[int, int]]
    channels: int
    batches: bool
    backends: Sequence[str]
    bound: Tolerance
    pool: Callable[[Array], Array] | None = None
    photo: bool = False
    allowance: Callable[[Array, Array], float] | None = None
    effort: Effort = field(default_factory=Effort)
    memory: Memory = field(default_factory=Memory)

    def of(self, precision: str) -> PictureCheck:
        """The same with the bound of a lower precision."""
        return replace(self, bound=tolerance(precision), allowance=None)


def compare_pictures(
    path: Path, given: PictureCheck, precision: str = "fp32", progress: Callable[[str], None] = lambda _: None
) -> list[Row]:
    """(backend, what, agreement) of every case, each within the bound. INT8 is held to photos alone: its ranges are
    those of photos, and what it loses there is measured against the truth.

    Raises ValidationError where one is not or there is none, ExportError where a runtime refuses the file.
    """
    found: list[Row] = []
    given = replace(given, sizes=_afforded(given))
    known: dict[str, tuple[Mapping[str, Array], dict[str, Array]]] = {}  # by case: what is wanted, and what is fed
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
                runtime, (count, _, *size) = f"{backend}, {path.name}", image.shape
                if not given.memory.fits(runtime, (size[0], size[1]), count):
                    given.memory.tell(runtime, (size[0], size[1]))
                    continue
                if what not in known:
                    pool = given.pool if run.spec.graph == "tile" else None
                    known[what] = given.reference(image), {} if pool is None else {"statistics": pool(image)}
                want, more = known[what]
                with given.memory.watched(runtime, (size[0], size[1])) if count == 1 else nullcontext():
                    got = run.run({"image": image, **more})
                agreement = _agreement(given, image, want, got)
                if agreement is not None:
                    found.append((backend, what, check(agreement, f"{backend}, {what}")))
    if not found:
        raise ValidationError(f"{path.name}: nothing was compared")
    return found


def _agreement(
    given: PictureCheck, image: Array, want: Mapping[str, Array], got: Mapping[str, Array]
) -> Agreement | None:
    """None where the reference is sure of nothing."""
    found = compare(want, got, given.bound)
    if found.ok or given.allowance is None or not math.isfinite(found.max_abs):
        return found
    allowed = given.allowance(image, want["restored"])
    if math.isinf(allowed):
        return None
    wider = widened(given.bound, allowed)
    return found if wider is None else replace(compare(want, got, wider), allowed=allowed)


def _afforded(given: PictureCheck) -> list[tuple[int, int]]:
    """The first size, the smallest one, and of the others, from small to large, those that there is time for."""
    sizes = [(height, width) for height, width in given.sizes]
    least = [*sizes[:1], min(sizes, key=math.prod)] if sizes else []
    pictures = 6 if given.batches else 4
    runs = pictures * (1 + len(given.backends) + (2 if given.pool is not None else 0))  # it pools over all, masked
    afforded = [
        size
        for size in sorted(sizes, key=math.prod)
        if size in least or given.effort.affords(f"{size[0]}x{size[1]}, tile graph", math.prod(size), runs)
    ]
    return [size for size in sizes if size in afforded]


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
