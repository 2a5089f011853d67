"""How much of a difference is the model's own rounding: where float32 itself moves its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clusir.export.subjects.checks import last_bit_moved, reference
from clusir.export.subjects.copies import copied
from clusir.export.validate.tolerances import tolerance

__all__ = ["ROUNDING_FACTOR", "rounding", "well_conditioned"]

# Two roundings of an ill-conditioned model may fall on either side of its exact answer, and not equally far.
ROUNDING_FACTOR = 4.0
_LAST_BITS = 2.0**-22
# Of a sum over the 2^14 pixels of the smallest picture, by the order of summing: 2^-24 times the root of their number.
_BITS_OF_SUMS = 2.0**-17


@torch.no_grad()
def rounding(model: nn.Module, pictures: Tensor) -> float:
    """How far the model's float32 answer is from its float64 answer, relative as in Agreement; 0 without float64.

    The phase of a spectrum that is nearly zero is noise: a network that uses it amplifies the last bit, in PyTorch too.
    """
    single = reference(model, pictures)
    try:
        double = reference(copied(model).double(), pictures.double())
    except Exception:  # a model that pins float32 somewhere has no float64 form, hence no allowance
        return 0.0
    return float((single - double).abs().max()) / max(1.0, float(single.abs().max()))


@torch.no_grad()
def well_conditioned(user: nn.Module, plain: Tensor, answers: Tensor) -> Tensor:
    """Of each plain picture BxCxHxW, whether the model's own answer moves little with the last bit: of the picture, or
    of the spectra and sums that the model takes.

    The spectrum of a flat picture is rounding but for one bin, so that its phase means nothing, in PyTorch neither: it
    has exact zeros there, or not, as the size of the picture happens to be factored. What a flat map differs from its
    mean by is rounding too, and means nothing where it is divided by its deviation. Zeros stay zeros: what a missing
    epsilon does to a black picture is seen.
    """
    with _OtherwiseRounded():
        moved = reference(user, last_bit_moved(plain))
    largest = answers.abs().flatten(1).amax(1).clamp(min=1.0)
    change = (answers - moved).abs().flatten(1).amax(1) / largest
    return change <= (tolerance("brought").max_abs or 0.0) / ROUNDING_FACTOR


class _OtherwiseRounded(TorchFunctionMode):
    """Within it, spectra are off by some last bits of their largest value, and means, sums and deviations by their own
    last bits, as those of another transform or another order of summing would be."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        if function in _TRANSFORMS and found.is_complex():
            parts = torch.view_as_real(found)
            return torch.view_as_complex(parts + parts.abs().amax() * _off(parts))
        if function in _TRANSFORMS:
            return found + found.abs().amax() * _off(found)
        if function in _SUMS and isinstance(found, Tensor) and found.is_floating_point():
            return found * (1 + _off(found, _BITS_OF_SUMS))
        return found


def _off(like: Tensor, bits: float = _LAST_BITS) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return bits * (torch.rand(like.shape, generator=generator, dtype=like.dtype) - 0.5)


_TRANSFORMS = {getattr(torch.fft, name) for name in torch.fft.__all__ if name.endswith(("fft", "fft2", "fftn"))}
_SUMS = {getattr(owner, name) for owner in (torch, Tensor) for name in ("mean", "sum", "std", "var")}
