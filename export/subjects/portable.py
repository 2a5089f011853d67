"""Code that was only ever run on a GPU, in half precision, on one picture, run here on the CPU in float32 on several:
eagerly and while tracing.

A call such as ``.cuda()``, ``.to("cuda")`` or ``torch.zeros(..., device="cuda")`` has no meaning without a GPU, and
``.half()`` or autocast only says how exactly to compute. Inside :func:`portable` the first four keep their tensor where
it is and the others leave float32. A map made for a batch of one (a noise level, coordinates) that is concatenated with
the channels of several pictures is repeated for each. A sort leaves equal values as they stand, and topk
takes the first of them: on a CPU PyTorch orders them as it likes, tokens sorted by category would mix, and the
brightest thousandth of a dark channel would be other pixels. The user's code is not touched. What was changed is told
by :attr:`Portable.notes`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Portable", "portable"]

HALF = "half precision inside the model is computed in float32"
SORTS = "sorts leave equal values as they stand, which PyTorch promises for stable=True alone"
TOPS = "of equal values topk takes the first, which PyTorch does not promise"

_DEVICE = re.compile(r"(cuda|xpu|mps|npu|hip)(:\d+)?")
_NARROW = (torch.float16, torch.bfloat16)
_NARROW_CALLS = ("half", "bfloat16")
_MOVES = ("cuda", "xpu", "ipu", "hpu", "pin_memory")
_JOINS = (torch.cat, torch.concat, torch.concatenate)
_SORTS = (torch.sort, Tensor.sort, torch.argsort, Tensor.argsort)
_TOPS = (torch.topk, Tensor.topk)


def _without_gpu(value: Any) -> Any:
    """An argument of a torch function with a GPU replaced by the CPU and a 16-bit type by float32; nested too."""
    if isinstance(value, torch.device):
        return torch.device("cpu") if _DEVICE.fullmatch(value.type) else value
    if isinstance(value, str):
        if _DEVICE.fullmatch(value):
            return "cpu"
        if value.startswith("torch.cuda."):
            value = value.replace(".cuda", "")
        return "torch.FloatTensor" if value in ("torch.HalfTensor", "torch.BFloat16Tensor") else value
    if isinstance(value, torch.dtype):
        return torch.float32 if value in _NARROW else value
    if isinstance(value, type) and getattr(value, "__module__", "") == "torch.cuda":  # torch.cuda.FloatTensor
        return _without_gpu(f"torch.cuda.{value.__name__}")
    return value


def _for_each_picture(tensors: Any, dim: Any = 0) -> Any:
    """What is concatenated along another axis than the batch, those for one picture repeated for all of a batch."""
    alone = isinstance(tensors, (list, tuple)) and all(isinstance(t, Tensor) and t.dim() > 1 for t in tensors)
    if not alone or not isinstance(dim, int) or not dim % tensors[0].dim():
        return tensors
    many = next((n for t in tensors if not isinstance(n := t.shape[0], int) or n != 1), 1)
    if isinstance(many, int) and many == 1:
        return tensors
    return [t.expand(many, *t.shape[1:]) if isinstance(t.shape[0], int) and t.shape[0] == 1 else t for t in tensors]


class Portable(TorchFunctionMode):
    """The mode behind :func:`portable`; ``notes`` says what the code asked for and did not get."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _MOVES and args and isinstance(args[0], Tensor):
            return args[0]
        if name in _NARROW_CALLS and args and isinstance(args[0], Tensor):
            self.notes.add(HALF)
            return args[0].float()
        plain = tuple(_without_gpu(a) for a in args)
        named = {key: _without_gpu(value) for key, value in kwargs.items()}
        if any(a in _NARROW for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype)):
            self.notes.add(HALF)
        if func is Tensor.to and len(plain) > 1 and isinstance(plain[1], int):
            plain = (plain[0], "cpu", *plain[2:])  # .to(0): the number of a GPU
        if func in _JOINS and plain:
            plain = (_for_each_picture(plain[0], *plain[1:2], **named), *plain[1:])
        if func in _SORTS and not named.get("stable"):
            self.notes.add(SORTS)
            named |= dict(zip(("dim", "descending"), plain[1:], strict=False)) | {"stable": True}
            plain = plain[:1]
        if func in _TOPS and not torch.compiler.is_exporting():  # ONNX promises the first; PyTorch takes any
            return self._first_of_equals(*plain, **named)
        return func(*plain, **named)

    def _first_of_equals(self, input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
        """What topk returns, its order and its choice among equal values as a stable sort has them."""
        values, indices = torch.sort(input, dim=dim, descending=largest, stable=True)
        if 0 < k < values.shape[dim] and (values.select(dim, k - 1) == values.select(dim, k)).any():
            self.notes.add(TOPS)
        return torch.return_types.topk((values.narrow(dim, 0, k), indices.narrow(dim, 0, k)))


def _load_on_cpu(load: Any) -> Any:
    def loaded(*args: Any, **kwargs: Any) -> Any:
        if len(args) < 2 or not callable(args[1]):
            args, kwargs = args[:1] or (), {**kwargs, "map_location": "cpu"}
        return load(*args, **kwargs)

    return loaded


@contextlib.contextmanager
def portable() -> Iterator[Portable]:
    """Within it user code that names a GPU, half precision or autocast computes on the CPU in float32."""
    mode = Portable()

    def entered(self: Any) -> Any:
        if self._enabled:
            mode.notes.add(HALF)
        return self

    with contextlib.ExitStack() as stack:
        kinds = [name for name in vars(torch.cuda) if name.endswith("Tensor") and hasattr(torch, name)]
        for owner, name, value in (
            *((torch.cuda, name, getattr(torch, name)) for name in kinds),
            (torch.autocast, "__enter__", entered),
            (torch.autocast, "__exit__", lambda self, *_: False),
            (torch.cuda, "synchronize", lambda *_, **__: None),
            (torch.cuda, "current_device", lambda *_, **__: 0),
            (torch, "load", _load_on_cpu(torch.load)),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(mode)
        yield mode
