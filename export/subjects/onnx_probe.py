"""What a foreign graph does, found by running it: scale, sizes, how far a pixel looks, and whether answers repeat."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from clusir.calibration.photos import built_in_photos
from clusir.calibration.planes import channels_fault, colours_of, maps_for
from clusir.errors import ClusirError, UnsupportedModelError, UsageError, ValidationError, first_line
from clusir.export.graph.session import Probe
from clusir.export.subjects.sizes import largest_length
from clusir.spec import MAX_SCALE, SizeRequirements

__all__ = ["Reach", "measure_reach", "natural_picture", "one_at_a_time", "probe_answers", "probe_sizes"]

Array = NDArray[np.float32]
Run = Callable[[Array], Array]

# A size that most size rules divide: 2^6 * 3. Others are tried where it does not run.
_BASES = (192, 256, 240, 224, 128, 64, 320, 512)
_MULTIPLES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96, 128)
_QUARTER_LEVEL = 0.25 / 255
_LEVEL = 1 / 255
_LONGEST_PX = 4096  # of a strip; no tile is larger
_STRIP_PIXELS, _SQUARE_PX = 1 << 16, 512
_IN_A_BATCH = 1e-3  # of 0..1: a picture's answer beside another and alone


@dataclass(frozen=True)
class Reach:
    """How far from a pixel its answer is decided: ``pixels``, beyond which replacing the picture by its negative moves
    the answer by ``error`` (of 0..1). ``whole``: no distance within the picture that was tried is enough, as the
    picture of the number ``shown`` shows."""

    pixels: int
    error: float
    whole: bool
    shown: int = 0


def runner(model: ModelProto) -> Run:
    """image BxCxHxW to the answer, on ONNX Runtime, which raises ValidationError for a size at which it does not run.
    Raises ExportError where it refuses the graph."""
    probe = Probe(model, threads=1)

    def run(image: Array) -> Array:
        try:
            return probe.run({"image": image})["restored"]
        except ClusirError:
            raise
        except Exception as error:  # the runtime raises its own types, which are not public
            size = "x".join(map(str, image.shape[2:]))
            raise ValidationError(f"the file does not run at {size}: {first_line(error, 160)}") from error

    return run


def natural_picture(height: int, width: int, channels: int, seed: int = 0) -> Array:
    """A slightly noisy photo, 1xCxHxW in 0..1; smaller photos are repeated by reflection. Of more ``channels`` than a
    picture has the last are maps (:func:`clusir.calibration.planes.maps_for`)."""
    return _natural_picture(height, width, channels, seed).copy()


@functools.lru_cache(16)  # one export asks for the same few a dozen times
def _natural_picture(height: int, width: int, channels: int, seed: int) -> Array:
    photos = built_in_photos(16).photos
    photo = photos[seed % len(photos)]
    crop = photo.crop(0, 0, min(photo.height, photo.width, max(height, width)))
    crop = np.pad(crop, [(0, max(0, n - m)) for n, m in zip((height, width), crop.shape, strict=False)] + [(0, 0)],
                  mode="symmetric")[:height, :width]  # fmt: skip
    noisy = crop + np.random.default_rng(seed).normal(0, 5 / 255, crop.shape)
    picture = noisy.clip(0, 1).astype(np.float32).transpose(2, 0, 1)[None]
    colours = picture if colours_of(channels) == 3 else picture.mean(axis=1, keepdims=True)
    return np.ascontiguousarray(np.concatenate([colours, maps_for(channels, height, width, seed)[None]], axis=1))


def probe_sizes(run: Run, channels: int, fixed: tuple[int, int]) -> tuple[int, SizeRequirements]:
    """(scale, which sizes the graph takes). ``fixed``: height and width, 0 where the graph leaves them open.

    A size counts where the graph runs and answers with ``scale`` times it. Raises UnsupportedModelError where no size
    does, or where the graph fixes a picture that is no square.
    """
    height, width = fixed
    if height and width and height != width:
        raise UnsupportedModelError(
            f"the graph fixes {height}x{width} px, and tiles are square; export it at a square size"
        )
    side = height or width
    reasons: list[str] = []

    def answer(h: int, w: int) -> tuple[int, int] | None:
        try:
            found = run(natural_picture(h, w, channels))
        except Exception as error:  # the runtime raises its own types, which are not public
            reasons.append(first_line(error, 160))
            return None
        if found.ndim == 4 and (fault := channels_fault(colours_of(channels), found.shape[1])):
            raise UnsupportedModelError(
                f"the graph goes from {colours_of(channels)} to {found.shape[1]} channels; {fault}"
            )
        if found.ndim != 4:
            shape = "x".join(map(str, found.shape))
            reasons.append(f"an answer of {shape} to a picture of 1x{colours_of(channels)}x{h}x{w}")
            return None
        return found.shape[2], found.shape[3]

    for base in (side,) if side else _BASES:
        found = answer(base, base)
        if found is not None:
            break
    else:
        raise UnsupportedModelError(f"the graph does not run on pictures of {side or _BASES[0]} px: {reasons[0]}")
    scale, rest = divmod(found[0], base)
    if rest or found[0] != found[1] or not 1 <= scale <= MAX_SCALE:
        raise UnsupportedModelError(
            f"{base}x{base} px become {found[0]}x{found[1]}; an answer is 1 to {MAX_SCALE} times as large"
        )
    if side:
        return scale, SizeRequirements(1, 1, side)

    def fits(h: int, w: int) -> bool:
        return answer(h, w) == (scale * h, scale * w)

    multiple = next((m for m in _MULTIPLES if fits(base + m, base) and fits(base, base + m)), None)
    if multiple is None or not (fits(base + 3 * multiple, base + multiple)):
        return scale, SizeRequirements(1, 1, base)  # declared open, and only one size runs
    least = next(n for n in range(multiple, base + 1, multiple) if n >= 8 and fits(n, n))
    most = largest_length(fits, multiple, least, min(_LONGEST_PX, max(_STRIP_PIXELS // least, base)), _SQUARE_PX)
    return scale, SizeRequirements(multiple, least, maximum=most or 0)


def probe_answers(run: Run, side: int, channels: int) -> list[str]:
    """What is odd about the answers, as sentences. Raises UnsupportedModelError where they do not repeat or are not
    finite, UsageError where they are no picture in 0..1."""
    picture = natural_picture(side, side, channels)
    first, again = run(picture), run(picture)
    if not np.isfinite(first).all():
        raise UnsupportedModelError("the graph answers NaN or infinity for an ordinary photo")
    if not np.array_equal(first, again):
        raise UnsupportedModelError("the graph answers the same photo differently each time; export it in eval mode")
    scale = first.shape[2] // side
    picture = picture[:, : colours_of(channels)]
    small = first[0].reshape(-1, side, scale, side, scale).mean(axis=(2, 4))
    notes = []
    if small.std() < _LEVEL:
        raise UsageError(
            f"the graph answers a constant picture ({small.mean():.3g}); is its range 0..255? Say so with --range"
        )
    low, high = np.quantile(small, (0.01, 0.99))
    if low < -0.5 or high > 1.5:
        raise UsageError(
            f"the answer reaches from {low:.3g} to {high:.3g} for a photo in 0..1; describe the graph with --range, "
            "--mean or --deviation"
        )
    likeness = float(np.corrcoef(small.ravel(), picture.ravel())[0, 1])
    if not (likeness >= 0.5):
        notes.append(
            f"the answer is little like the picture (correlation {likeness:.2f}); check --range, --bgr, --layout"
        )
    moved = float(small.mean() - picture.mean())
    if abs(moved) > 0.1:
        notes.append(
            f"the answer is {'brighter' if moved > 0 else 'darker'} by {abs(moved):.2f} of the range on a photo"
        )
    return notes


def one_at_a_time(run: Run, side: int, channels: int) -> str:
    """Why the graph takes one picture at a time although its shapes say any number; empty where it takes two."""
    pair = [natural_picture(side, side, channels, seed) for seed in (0, 1)]
    try:
        together = run(np.concatenate(pair))
    except Exception as error:
        return f"takes one picture at a time: two raised {first_line(error)}"
    alone = np.concatenate([run(picture) for picture in pair])
    if together.shape != alone.shape or not np.allclose(together, alone, atol=_IN_A_BATCH):
        return "takes one picture at a time: its answer to a picture depends on the others of a batch"
    return ""


def measure_reach(run: Run, side: int, channels: int, first: int = 0) -> Reach:
    """How far the answer at the centre of a picture of ``side`` px depends on what surrounds it: on a photo, on noise
    and on a dark one, the surroundings are replaced by their negative beyond a growing distance. The first of them that
    shows that the whole picture decides is enough; ``first``: the number of the one to begin with."""
    middle, block = side // 2, 4
    rng = np.random.default_rng(0)
    noise = rng.random((1, channels, side, side), dtype=np.float32)
    pictures = [natural_picture(side, side, channels), noise, 0.1 * natural_picture(side, side, channels, seed=1)]
    colours = colours_of(channels)
    if channels > colours:  # what is not painted looks nowhere; which number of a mask says so, nobody knows
        pictures.append(pictures[0].copy())
        near = slice(side // 3, side - side // 3)
        for picture, number in ((pictures[0], 1), (pictures[2], 1), (pictures[3], 0)):
            picture[:, colours:, near, near] = number
    steps = [d for d in (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192) if block + d < middle]
    if not steps:
        raise ClusirError(f"a picture of {side} px is too small to measure how far a pixel looks")

    def centre(picture: Array) -> Array:
        whole = run(picture)
        scale = whole.shape[2] // side
        part = slice(scale * (middle - block), scale * (middle + block))
        return whole[..., part, part]

    answers: dict[int, Array] = {}  # by the number of the picture: the answer at the centre
    moved: dict[tuple[int, int], float] = {}  # by picture and step: by how much what lies beyond it moves that

    def enough(number: int, step: int) -> bool:
        if number not in answers:
            answers[number] = centre(pictures[number])
        if (number, step) not in moved:
            changed = 1 - pictures[number]
            keep = slice(middle - block - steps[step], middle + block + steps[step])
            changed[..., keep, keep] = pictures[number][..., keep, keep]
            moved[number, step] = float(np.abs(centre(changed) - answers[number]).max())
        return moved[number, step] <= _QUARTER_LEVEL

    order, last = sorted(range(len(pictures)), key=lambda number: number != first), len(steps) - 1
    for number in order:
        if not enough(number, last):
            return Reach(steps[last], moved[number, last], True, number)
    least = 0
    for number in order:  # what lies farther away matters less: a step is found by halving, and tried on the others
        if number != first and enough(number, least):
            continue
        low, high = least, last
        while low < high:
            half = (low + high) // 2
            low, high = (low, half) if enough(number, half) else (half + 1, high)
        least = high
    error = max(moved.get((number, least), 0.0) for number in order)
    return Reach(steps[least], error, False)
