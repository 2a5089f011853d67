"""A user's description of a scan, in a few lines: what the state is multiplied by, what is added, how it is read.

A recurrence behind a kernel of its own (CUDA, Triton) cannot be traced, nor one that runs in a way which no tracer
understands. What it *means* can be said::

    register_scan(
        "net.ssm.selective_scan",                              # called as selective_scan(u, delta, A, B, C)
        decay=lambda u, delta, A, B, C: torch.exp(delta[..., None] * A[:, None]),        # B D L N
        entry=lambda u, delta, A, B, C: (delta * u)[..., None] * B.transpose(1, 2)[:, None],
        axis=2,
        read=lambda states, u, delta, A, B, C: torch.einsum("bdln,bnl->bdl", states, C),
    )

that is ``state[t] = decay[t] * state[t - 1] + entry[t]`` along ``axis``, and the function returns ``read(states)``.
The description lives beside the user's factory; the user's own code stays as it is and is what the file is compared
with.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clusir.errors import UnsupportedModelError, UsageError
from clusir.export.lowering.scan import linear_scan
from clusir.export.subjects.outputs import tensors_of

__all__ = ["ScanDescription", "as_described", "check_scans", "clear_scans", "described_scans", "register_scan"]


@dataclass(frozen=True)
class ScanDescription:
    """What a scan means; every callable gets the arguments that the described function was called with.

    ``decay`` and ``entry``: tensors that broadcast to one shape, whose axis ``axis`` is the one that is walked along.
    ``start``: the state before the first, of that shape without the axis (None: zero). ``read(states, ...)``: what is
    returned, given all states (None: the states).
    """

    decay: Callable[..., Tensor]
    entry: Callable[..., Tensor]
    axis: int
    start: Callable[..., Tensor] | None = None
    read: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        decay, entry = torch.broadcast_tensors(self.decay(*args, **kwargs), self.entry(*args, **kwargs))
        decay, entry = (t.movedim(self.axis, 0).contiguous() for t in (decay, entry))
        first = torch.zeros_like(entry[0])
        if self.start is not None:
            first = self.start(*args, **kwargs).expand(first.shape).contiguous()
        states = linear_scan(decay, entry, first).movedim(0, self.axis)
        return states if self.read is None else self.read(states, *args, **kwargs)


_REGISTRY: dict[str, tuple[Any, ScanDescription]] = {}


def register_scan(
    target: Callable[..., Any] | str,
    *,
    decay: Callable[..., Tensor],
    entry: Callable[..., Tensor],
    axis: int,
    start: Callable[..., Tensor] | None = None,
    read: Callable[..., Any] | None = None,
) -> None:
    """Describe a function, the class of a block (its arguments then begin with the block) or of an autograd function.

    ``target`` is the object, or its name ``"package.module.name"``. See ScanDescription. A second description of a
    target replaces the first. Raises UsageError where ``target`` is neither.
    """
    if isinstance(target, str):
        name = target
    else:
        name = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    if "." not in name.strip(".") or not (isinstance(target, str) or callable(target)):
        raise UsageError(f"register_scan: {target!r} is neither a function, a class nor 'package.module.name'")
    _REGISTRY[name] = (target, ScanDescription(decay, entry, axis, start, read))


def clear_scans() -> None:
    """Forget all descriptions (for tests and long-lived processes)."""
    _REGISTRY.clear()


def _found(name: str) -> tuple[Any, str, Any]:
    """(who holds it, under which name, the object) of ``package.module.name``."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:count]))
            for part in parts[count:-1]:
                owner = getattr(owner, part)
            return owner, parts[-1], getattr(owner, parts[-1])
        except (ImportError, AttributeError):
            continue
    raise UsageError(f"register_scan: {name!r} is nowhere; name it package.module.name as it is imported")


@contextlib.contextmanager
def described_scans(model: nn.Module, stand: Callable[[str, Any, ScanDescription], Any]) -> Iterator[None]:
    """Inside, ``stand(name, the original, its description)`` is called in place of every described target.

    Functions are replaced wherever a loaded module or a part of the model holds them.
    """
    undo: list[Callable[[], None]] = []
    functions: dict[int, Any] = {}
    for name, (target, description) in _REGISTRY.items():
        owner, leaf, original = _found(name) if isinstance(target, str) else (None, "", target)
        if isinstance(original, type):
            of_autograd = issubclass(original, torch.autograd.Function)
            leaf = "apply" if of_autograd else "forward"
            made = stand(name, getattr(original, leaf), description)
            undo.append(_put(original, leaf, staticmethod(made) if of_autograd else made))
            continue
        functions[id(original)] = stand(name, original, description)
        if owner is not None:
            undo.append(_put(owner, leaf, functions[id(original)]))
    if functions:
        for held in [vars(m) for m in list(sys.modules.values())] + [vars(part) for part in model.modules()]:
            for key, value in list(held.items()):
                if id(value) in functions:
                    undo.append(functools.partial(held.__setitem__, key, value))
                    held[key] = functions[id(value)]
    try:
        yield
    finally:
        for step in reversed(undo):
            step()


def _put(owner: Any, name: str, value: Any) -> Callable[[], None]:
    """Set an attribute; returns what undoes it."""
    own = vars(owner).get(name, owner)
    setattr(owner, name, value)
    return functools.partial(delattr, owner, name) if own is owner else functools.partial(setattr, owner, name, own)


def as_described(name: str, original: Any, description: ScanDescription) -> Any:
    """What a tracer sees of a described target."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return description(*args, **kwargs)

    return call


def _shapes(tensors: list[Tensor]) -> str:
    return ", ".join("x".join(map(str, t.shape)) for t in tensors) or "no tensor"


@torch.no_grad()
def check_scans(model: nn.Module, image: Tensor) -> None:
    """Run ``model`` once and compare every described scan with its description on what it is called with.

    Raises UnsupportedModelError where one says something else than its code does, to 1e-4 of the largest value.
    """

    def both(name: str, original: Any, description: ScanDescription) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            made = original(*args, **kwargs)
            said = description(*args, **kwargs)
            want, got = (list(tensors_of(value).values()) for value in (made, said))
            fits = [a.shape for a in want] == [b.shape for b in got]
            pairs = zip(want, got, strict=True) if fits else ()
            off = [float((a - b).abs().max() / a.abs().max().clamp(min=torch.finfo(a.dtype).tiny)) for a, b in pairs]
            wrong = [apart for apart in off if not (apart <= 1e-4)]
            if wrong or not fits:
                what = f"by {max(wrong):.2g}" if wrong else f"in shape: {_shapes(want)} and {_shapes(got)}"
                raise UnsupportedModelError(
                    f"the description of {name} in register_scan does not say what it does: answers differ "
                    f"{what}; check decay, entry, axis, start and read"
                )
            return made

        return call

    if _REGISTRY:
        with described_scans(model, both):
            model(image)
