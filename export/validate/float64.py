"""A model's answer in float64, also where its code asks for float32 by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clusir.export.subjects.checks import reference
from clusir.export.subjects.copies import copied

__all__ = ["InFloat64"]


class InFloat64:
    """A float64 copy of a model: BxCxHxW of any precision to its answer, one picture at a time.

    Code that says ``.float()`` gives float32 to a float64 weight, which raises; what it asks for is float64 then, and
    what it makes without saying is, too. Raises what the model raises all the same.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._named = copied(model).double(), False

    def __call__(self, pictures: Tensor) -> Tensor:
        if not self._named:
            try:
                return reference(self._model, pictures.double())
            except Exception:
                self._named = True
        with _float64_by_default(), _Float64ForFloat32():
            return reference(self._model, pictures.double())


class _Float64ForFloat32(TorchFunctionMode):
    """Within it, who asks for float32 by name is given float64."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is Tensor.float:
            function = Tensor.double
        named = {name: _wide(value) for name, value in (kwargs or {}).items()}
        return function(*map(_wide, args), **named)


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextlib.contextmanager
def _float64_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
