"""Tracing without work that an export has no use for: half the time of a trace with symbolic sizes."""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch._decomp.decompositions
import torch._dynamo.config
import torch._export.utils
import torch._meta_registrations
import torch.fx.experimental.proxy_tensor
import torch.fx.proxy
from onnx_ir.schemas import OpSignature
from torch import Tensor
from torch._subclasses.fake_impls import op_implementations_dict
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.fx.passes.shape_prop import _extract_tensor_metadata

from clusir.export.quiet import replaced

__all__ = ["quick_tracing", "quick_views"]

_MOST_PARTS = 64  # of a length that a scale factor divides exactly


def _transformed(out: Tensor, x: Tensor, sizes: Sequence[Any], dim: Sequence[int], *, forward: bool) -> Tensor:
    """What a Fourier transform returns, in plain order. torch's own form sorts the strides of the picture: each
    comparison of two is a question to the solver and a guard of the program, and strides are no part of ONNX."""
    return x.new_empty(sizes, dtype=out.dtype)


def _resized(
    input_size: Sequence[Any], output_size: Sequence[Any] | None, scale_factors: Sequence[float] | None
) -> Any:
    """Height and width of a map resized by scale factors. torch's own form rounds a product of floats, which stands in
    every size behind it: at half the size, and half of that, each question about a shape takes the solver longer."""
    if output_size is not None or scale_factors is None:
        return output_size
    return [_times(length, factor) for length, factor in zip(input_size[2:], scale_factors, strict=True)]


def _times(length: Any, factor: float) -> Any:
    """``floor(length * factor)``; in whole numbers where the factor is a fraction that a float holds exactly."""
    exact = Fraction(factor)
    if exact.denominator > _MOST_PARTS:
        return torch.sym_int(length * factor)
    return length * exact.numerator // exact.denominator


def _resampled(whole: Callable[..., Tensor], size_of: Callable[..., Sequence[Any]]) -> Callable[..., Tensor]:
    """A resampling of a map ``x`` to height and width ``size_of(...)``, which torch writes out for a tensor of symbolic
    sizes: a hundred operators for cubic weights, each with questions to the solver. Where only the shape is asked, a
    fake tensor's while nothing is recorded, that is all that is made; otherwise it is ``whole``."""

    def answer(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(x, FakeTensor) and x.is_floating_point() and get_proxy_mode() is None:
            return x.new_empty((*x.shape[:2], *size_of(*args, **kwargs)))
        return whole(x, *args, **kwargs)

    return answer


def _given_size(size: Sequence[Any], *_: Any, **__: Any) -> Sequence[Any]:
    return size


def _size_of_grid(grid: Tensor, *_: Any, **__: Any) -> Sequence[Any]:
    return grid.shape[1:3]


_RESAMPLED = tuple(
    (name, _resampled(getattr(torch._decomp.decompositions, name), size))
    for name, size in (
        ("_upsample_linear", _given_size),
        ("upsample_bicubic2d_default", _given_size),
        ("_grid_sampler_2d", _size_of_grid),
    )
)

_materialise = torch._export.utils._materialize_cpp_cia_ops
_materialised: list[str] = []


def _materialise_once() -> None:
    """Every composite operator looked up in ``torch.ops``, where there are others than the last time. torch does it for
    each of its namespaces, two dozen times for a trace."""
    names = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
    if names != _materialised:
        _materialise()
        _materialised[:] = names


class _Call(NamedTuple):
    """What a ``traceback.StackSummary`` is made of, which reads the line where none is given."""

    filename: str
    lineno: int
    name: str
    line: str | None = None


class _Calls:
    """The calls that lead to a node. torch's own reads the source line of each, of which a tracer keeps the few in
    ``forward``."""

    def __init__(self, innermost: FrameType) -> None:
        self._innermost = innermost

    @classmethod
    def extract(cls) -> _Calls:
        return cls(sys._getframe(1))

    def summary(self) -> list[_Call]:
        """Outermost first."""
        calls = [(frame.f_code, line) for frame, line in traceback.walk_stack(self._innermost)]
        return [_Call(code.co_filename, line, code.co_name) for code, line in reversed(calls)]


# Whether a map lies in memory in plain order or channels last is asked for each node, with questions to the solver; an
# export reads a node's value alone.
_without_memory_format = functools.partial(_extract_tensor_metadata, include_contiguity=False)


_signature = OpSignature.from_op_schema
_SIGNATURES: dict[tuple[str, int], OpSignature] = {}


def _signature_once(schema: Any) -> OpSignature:
    """The signature of an operator of ONNX, which torch works out again for each node that it writes."""
    if schema.domain:
        return _signature(schema)
    key = schema.name, schema.since_version
    if key not in _SIGNATURES:
        _SIGNATURES[key] = _signature(schema)
    return _SIGNATURES[key]


# What a class must have to be of a protocol is worked out for each question whether a value is, several for a node;
# Python 3.12 keeps it itself.
_OF_PROTOCOL = (
    ((typing, "_get_protocol_attrs", functools.cache(vars(typing)["_get_protocol_attrs"])),)
    if sys.version_info < (3, 12)
    else ()
)


@contextlib.contextmanager
def quick_tracing() -> Iterator[None]:
    """Inside, fake tensors are not looked up in torch's cache (with symbolic sizes hardly one is found, and what goes
    in is made a second time to be checked), transforms and resampled maps are asked for their sizes alone, resized maps
    have sizes in whole numbers, operators are looked up once, no node is asked how it lies in memory, of the calls
    that lead to it the kept ones alone are read, and what ONNX and protocols ask for is worked out once."""
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (torch._meta_registrations, "_exec_fft", _transformed),
            (torch._decomp.decompositions, "upsample_compute_output_size", _resized),
            *((torch._decomp.decompositions, name, value) for name, value in _RESAMPLED),
            (torch._dynamo.config, "fake_tensor_cache_enabled", False),
            (torch._export.utils, "_materialize_cpp_cia_ops", _materialise_once),
            (torch.fx.experimental.proxy_tensor, "_extract_tensor_metadata", _without_memory_format),
            (torch.fx.proxy, "CapturedTraceback", _Calls),
            (OpSignature, "from_op_schema", _signature_once),
            *_OF_PROTOCOL,
        ):
            stack.enter_context(replaced(owner, name, value))
        yield


def _viewed(whole: Callable[..., Any]) -> Callable[..., Any]:
    """A view of other sizes, in plain order; ``whole`` where all sizes are numbers. torch's own form looks for a way
    from the old sizes to the new ones axis by axis, each step with questions to the solver."""

    def answer(mode: Any, function: Any, x: FakeTensor, *shape: Any, **options: Any) -> Any:
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (list, tuple)) else shape
        if all(isinstance(size, int) for size in (*x.shape, *sizes)):
            return whole(mode, function, x, *shape, **options)
        known = [size for size in sizes if not (isinstance(size, int) and size == -1)]
        rest = x.numel() // math.prod(known) if len(known) < len(sizes) else 0
        return x.new_empty([rest if isinstance(size, int) and size == -1 else size for size in sizes])

    return answer


_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


@contextlib.contextmanager
def quick_views() -> Iterator[None]:
    """Inside, views are not proved: for a program that is run again, whose first run said for which sizes it is."""
    kept = {view: op_implementations_dict[view] for view in _VIEWS}
    op_implementations_dict.update({view: _viewed(whole) for view, whole in kept.items()})
    try:
        yield
    finally:
        op_implementations_dict.update(kept)
