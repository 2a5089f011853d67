"""What the picture depends on, found by one backward pass; and whether the code reads pixels to decide what to do."""

from __future__ import annotations

import inspect
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from clusir.export.subjects.gradients import gradients
from clusir.export.subjects.user_code import calling_user_line

__all__ = ["Watched", "watch"]

_READS = frozenset(
    """__bool__ item tolist __int__ __float__ __index__ __complex__ numpy __array__ nonzero argwhere unique
    unique_consecutive masked_select equal allclose is_nonzero""".split()  # noqa: SIM905
)
_DRAWS = frozenset(
    """rand randn randint rand_like randn_like randint_like normal normal_ uniform_ bernoulli bernoulli_ multinomial
    exponential_ random_ randperm gumbel_softmax log_normal_ cauchy_ geometric_ poisson""".split()  # noqa: SIM905
)
_DROPS = ("dropout", "rrelu")  # in the names of functions that draw where their argument ``training`` is true


class _Watch(TorchFunctionMode):
    """Notes the first line of the user's code that reads values made of the picture, and the first that draws numbers.

    What is made of the network's own numbers and of constants (``if (std == 0).any()``) is the same for every picture,
    and what a mask picks (``x[mask]``) is traced as a whole or not at all: neither can make a trace lose a branch.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self._of_image: Any = WeakIdKeyDictionary({image: True})
        self.read = self.drew = ""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        concerned = any(tensor in self._of_image for tensor in given)
        if not self.read and name in _READS and concerned:
            self.read = calling_user_line()
        if not self.drew and (name in _DRAWS or (any(part in name for part in _DROPS) and _drops(func, args, kwargs))):
            self.drew = calling_user_line()
        result = func(*args, **(kwargs or {}))
        if concerned:
            writes = name.startswith(("__i", "__setitem")) or (name.endswith("_") and not name.startswith("__"))
            written = given[:1] if writes else []
            for tensor in (*written, *(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))):
                self._of_image[tensor] = True
        return result


def _drops(func: Any, args: tuple[Any, ...], kwargs: Any) -> bool:
    """Whether a function of the family of dropout is told to draw; where that cannot be read, not."""
    try:
        given = inspect.signature(func).bind(*args, **(kwargs or {}))
    except (TypeError, ValueError):
        return False
    given.apply_defaults()
    return bool(given.arguments.get("training", False)) and given.arguments.get("p", 1) != 0


@dataclass(frozen=True)
class Watched:
    """What a model did with a picture.

    ``unreached``: parameters from which no gradient leads to the restored picture. ``read``: the first line that read
    values of a tensor (routing is made of that), ``drew``: the first that drew random numbers, ``outside``: whether
    Python's or NumPy's own random numbers were drawn; empty or False where none.
    """

    unreached: frozenset[str] = field(default_factory=frozenset)
    read: str = ""
    drew: str = ""
    outside: bool = False


def watch(model: nn.Module, image: Tensor) -> Watched:
    """Run ``model`` (image BxCxHxW -> restored) once with gradients. The parameters' flags are as before afterwards."""
    state = _outside()
    mode = _Watch(image)
    with gradients(model) as parameters:
        with mode:
            restored = model(image)
        gone: frozenset[str] = frozenset()
        if restored.requires_grad:
            gone = _unreached(restored, parameters)
    return Watched(gone, mode.read, mode.drew, state != _outside())


def _unreached(restored: Tensor, parameters: dict[str, nn.Parameter]) -> frozenset[str]:
    """Parameters without a gradient; none where the code writes over what a gradient needs: nothing is excused then."""
    try:
        grads = torch.autograd.grad(restored.sum(), list(parameters.values()), allow_unused=True)
    except RuntimeError:
        return frozenset()
    return frozenset(name for name, grad in zip(parameters, grads, strict=True) if grad is None)


def _outside() -> tuple[Any, ...]:
    """The state of the generators of Python and of NumPy, which torch does not see."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - what the user's code draws from
    return random.getstate(), name, np.asarray(keys).tobytes(), rest
