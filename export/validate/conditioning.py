"""How much of a difference is the model's own rounding: where float32 itself moves its answer."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from clusir.export.subjects.checks import last_bit_moved, reference
from clusir.export.validate.float64 import InFloat64
from clusir.export.validate.tolerances import tolerance

__all__ = ["ROUNDING_FACTOR", "Roundings", "jumps", "rounding", "undecided_pixels", "well_conditioned"]

# Two roundings of an ill-conditioned model may fall on either side of its exact answer, and not equally far.
ROUNDING_FACTOR = 4.0
_LAST_BITS = 2.0**-22
# Of a sum over the 2^14 pixels of the smallest picture, by the order of summing: 2^-24 times the root of their number.
_BITS_OF_SUMS = 2.0**-17
_BIT = 2.0**-24
_DRAWS = 3
_MORE_DRAWS = 8  # of a choice that falls to one side of two, half of the draws do not tell
_MOVED, _FAR = 7, 32.0
_MOST_PIXELS = 1e-4  # of a picture: as many may be left open by the reference


@torch.no_grad()
def rounding(model: nn.Module, pictures: Tensor, answers: Tensor | None = None, enough: float = 0.0) -> float:
    """How far the model's float32 answer is from its float64 answer, relative as in Agreement; 0 without float64.
    ``answers``: the float32 one, where it is known.

    The phase of a spectrum that is nearly zero is noise: a network that uses it amplifies the last bit, in PyTorch too.
    How much is a matter of luck: of eight answers of a network that convolves phases, to pictures that differ by their
    last bits, the best was 18 times as near as the worst. So where that falls short of ``enough``, and not by far, the
    answers to up to seven such pictures are looked at, and the farthest counts.
    """
    single = reference(model, pictures) if answers is None else answers
    try:
        exact = InFloat64(model)
        found = _apart(single, exact(pictures))
    except Exception:  # a model that holds float32 of its own has no float64 form, hence no allowance
        return 0.0
    if found < enough / _FAR:
        return found
    for draw in range(_MOVED):
        if found >= enough:
            break
        moved = last_bit_moved(pictures, draw)
        found = max(found, _apart(reference(model, moved), exact(moved)))
    return found


def _apart(single: Tensor, double: Tensor) -> float:
    return float((single - double).abs().max()) / max(1.0, float(single.abs().max()))


class Roundings:
    """:func:`rounding` of one model, asked once about the same pictures, however many runtimes miss their bound; again
    where one misses it by more."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: dict[bytes, tuple[float, float]] = {}  # by the digest of the pictures: what was enough, and found

    def __call__(self, pictures: Tensor, answers: Tensor, enough: float = 0.0) -> float:
        digest = hashlib.sha256(pictures.numpy().tobytes()).digest()
        asked, found = self._known.get(digest, (0.0, 0.0))
        if digest not in self._known or enough > max(asked, found):
            found = max(found, rounding(self._model, pictures, answers, enough))
            self._known[digest] = enough, found
        return found


@torch.no_grad()
def well_conditioned(user: nn.Module, plain: Tensor, answers: Tensor) -> Tensor:
    """Of each plain picture BxCxHxW, whether the model's own answer moves little with the last bit: of the picture, or
    of the spectra, sums and products that the model takes.

    The spectrum of a flat picture is rounding but for one bin, so that its phase means nothing, in PyTorch neither: it
    has exact zeros there, or not, as the size of the picture happens to be factored. What a flat map differs from its
    mean by is rounding too, and means nothing where it is divided by its deviation. Where the largest of many values
    are taken, the last of them and the next one may be nearer than the sums of so many equal numbers are known: one
    draw may keep their order that another one turns. Zeros stay zeros: what a missing epsilon does to a black picture
    is seen.
    """
    largest = answers.abs().flatten(1).amax(1).clamp(min=1.0)
    sure = torch.ones(len(plain), dtype=torch.bool)
    for draw in range(_DRAWS):
        with _OtherwiseRounded(draw):
            moved = reference(user, last_bit_moved(plain))
        change = (answers - moved).abs().flatten(1).amax(1) / largest
        sure &= change <= (tolerance("brought").max_abs or 0.0) / ROUNDING_FACTOR
    return sure


@torch.no_grad()
def jumps(user: nn.Module, picture: Tensor, answer: Tensor, got: Tensor, least: float) -> float:
    """How far the model's own answer to a picture 1xCxHxW moves, where a file's answer ``got`` is farthest from it,
    when its pixels and its sums are rounded another way; relative to the larger of 1 and its largest magnitude: the
    first of some ways that moves it by ``least``, or the largest of all.

    A network that looks up the nearest code of a book, or rounds what it computes, has two answers where float32 does
    not tell which is nearer.
    """
    largest, found = max(1.0, float(answer.abs().max())), 0.0
    where = int((answer - got).abs().argmax())
    for draw in range(_MORE_DRAWS):
        found = max(found, float((answer - _moved(user, picture, draw)).abs().flatten()[where]) / largest)
        if found >= least:
            break
    return found


@torch.no_grad()
def undecided_pixels(user: nn.Module, pictures: Tensor, want: Tensor, got: Tensor) -> tuple[Tensor, Tensor] | None:
    """Which pixels BxHxW of a file's answers ``got`` to pictures are off the model's, ``want`` BxCxHxW, because
    rounding decides them, and which for no such reason; None where rounding decides no pixel, or more than one in ten
    thousand.

    The first are those where the file answers as the model itself does in float64, where its pixels and sums are
    rounded another way, or where a remainder is taken of a number a hair below 0. A hue of -1e-9 modulo 1 is 1 in
    float32, and code that paints by the six sixths of it leaves that pixel black.
    """
    others = [_moved(user, pictures, draw) for draw in range(_MORE_DRAWS)]
    with _HairBelow() as met:
        below = reference(user, pictures)
    if met.changed:
        others.append(below)
    with contextlib.suppress(Exception):  # a model that holds float32 of its own has no float64 form
        others.append(InFloat64(user)(pictures))
    largest = want.abs().flatten(1).amax(1).clamp(min=1.0).view(-1, 1, 1)
    bound = largest * (tolerance("brought").max_abs or 0.0)

    def near(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().amax(1) <= bound  # not of NaN

    off = ~near(got, want)
    undecided, wrong = torch.zeros_like(off), off
    for other in others:
        undecided = undecided | ~near(want, other)
        wrong = wrong & ~near(got, other)
    few = bool((undecided.flatten(1).double().mean(1) <= _MOST_PIXELS).all())
    return (off & ~wrong, wrong) if few and bool(undecided.any()) else None


def _moved(user: nn.Module, pictures: Tensor, draw: int) -> Tensor:
    with _OtherwiseRounded(draw, exact=True):
        return reference(user, last_bit_moved(pictures, draw))


class _HairBelow(TorchFunctionMode):
    """Within it, the remainder of a number that is a multiple of the divisor but for rounding is the divisor itself, as
    float32 makes it of a number a hair below that multiple. ``changed``: whether there was one."""

    changed = False

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        if function not in _REMAINDERS or not isinstance(found, Tensor) or not found.is_floating_point():
            return found
        divisor = torch.as_tensor(args[1] if len(args) > 1 else (kwargs or {})["other"], dtype=found.dtype)
        part = found / divisor
        at = (part < _BITS_OF_SUMS) | (part > 1 - _BITS_OF_SUMS)
        self.changed |= bool(at.any())
        return found.copy_(torch.where(at, divisor, found))


class _OtherwiseRounded(TorchFunctionMode):
    """Within it, spectra are off by some last bits of their largest value, and means, sums, deviations, norms and
    products by their own last bits, as those of another transform or another order of summing would be; ``draw``: of
    which bits, a number of its own for each. ``exact``: sums by what their own number of terms allows."""

    def __init__(self, draw: int, exact: bool = False) -> None:
        super().__init__()
        self._exact = exact
        self._generator = torch.Generator().manual_seed(7 + draw)

    def _off(self, like: Tensor, bits: float = _LAST_BITS) -> Tensor:
        return bits * (torch.rand(like.shape, generator=self._generator, dtype=like.dtype) - 0.5)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        found = function(*args, **named)
        if function in _TRANSFORMS and found.is_complex():
            parts = torch.view_as_real(found)
            return torch.view_as_complex(parts + parts.abs().amax() * self._off(parts))
        if function in _TRANSFORMS:
            return found + found.abs().amax() * self._off(found)
        if function in _SUMS and isinstance(found, Tensor) and found.is_floating_point():
            terms = args[0].numel() / max(1, found.numel()) if args and isinstance(args[0], Tensor) else 1.0
            return found * (1 + self._off(found, _BIT * math.sqrt(terms) if self._exact else _BITS_OF_SUMS))
        if function is functional.normalize:  # what it divides by is one number for all of them
            shared = found.narrow(args[2] if len(args) > 2 else named.get("dim", 1), 0, 1)
            return found * (1 + self._off(shared, _BITS_OF_SUMS))
        if function in _PRODUCTS and isinstance(found, Tensor) and found.is_floating_point():
            return found * (1 + self._off(found, _BIT * math.sqrt(args[0].shape[-1])))
        return found


_TRANSFORMS = {getattr(torch.fft, name) for name in torch.fft.__all__ if name.endswith(("fft", "fft2", "fftn"))}
_SUMS = {getattr(owner, name) for owner in (torch, Tensor) for name in ("mean", "sum", "std", "var", "norm")}
_SUMS |= {torch.linalg.vector_norm, torch.linalg.norm}
_REMAINDERS = {torch.remainder, Tensor.remainder, Tensor.remainder_, Tensor.__mod__, Tensor.__imod__}
_PRODUCTS = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__}
