"""Calls that no exporter or runtime has right, as other calls with the same values: samples in space, ties, bounds."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from clusir.export.lowering.scan import linear_scan
from clusir.export.trace.resample import is_symbolic

__all__ = ["REWRITES", "between", "with_float_tensor"]


def _grid_sample(input: Tensor, grid: Tensor, mode: str = "bilinear", padding_mode: str = "zeros",
                 align_corners: bool | None = None) -> Any:  # fmt: skip
    """grid_sample of a volume, BxCxDxHxW at BxD'xH'xW'x3: a weighted sum of gathered corners (ONNX has it for maps
    only before opset 20, and OpenVINO for none)."""
    if input.dim() != 5:
        return NotImplemented
    corners = bool(align_corners)
    sizes = tuple(reversed(input.shape[2:]))  # of x, y, z
    places = [_place(grid[..., axis], sizes[axis], padding_mode, corners) for axis in range(3)]
    if mode == "nearest":
        return _corner(input, [_side(p.round(), n, padding_mode) for p, n in zip(places, sizes, strict=True)])
    sides = []  # of each axis, what the eight corners share
    for p, n in zip(places, sizes, strict=True):
        low = p.floor()
        part = p - low
        sides.append((_side(low, n, padding_mode, 1 - part), _side(low + 1, n, padding_mode, part)))
    total: Any = None
    for number in range(8):
        term = _corner(input, [sides[axis][number >> axis & 1] for axis in range(3)])
        total = term if total is None else total + term
    return total


def _place(x: Tensor, size: Any, padding: str, corners: bool) -> Tensor:
    """Coordinates in -1..1 as pixels, brought inside as the padding says."""
    x = (x + 1) / 2 * (size - 1) if corners else ((x + 1) * size - 1) / 2
    if padding == "reflection":
        low, span = (0.0, size - 1) if corners else (-0.5, size)
        if isinstance(span, int) and span == 0:
            return x * 0
        x = (x - low).abs()
        turns = torch.floor(x / span)
        rest = x - turns * span
        odd = turns - 2 * torch.floor(turns / 2)
        x = torch.where(odd == 0, rest, span - rest) + low
    return x if padding == "zeros" else between(x, 0, size - 1)


def _side(where: Tensor, size: Any, padding: str, share: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Whole coordinates along one axis as indices, and the share that they have of a sample (None: all): nothing
    outside where the padding is zeros."""
    inside = between(where, 0, size - 1)
    if padding == "zeros":
        kept = (where == inside).to(where.dtype)
        share = kept if share is None else share * kept
    return inside.long(), share


def _corner(input: Tensor, sides: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    """Values at indices x, y, z, times the shares of all three."""
    _, height, width = input.shape[2:]
    (x, a), (y, b), (z, c) = sides
    index = (z * height + y) * width + x
    flat = index.flatten(1).unsqueeze(1).expand(-1, input.shape[1], -1)
    values = input.flatten(2).gather(2, flat).reshape(input.shape[:2] + index.shape[1:])
    return values if a is None or b is None or c is None else values * (a * b * c).unsqueeze(1)


def between(x: Tensor, low: Any, high: Any) -> Tensor:
    """clamp whose bounds may be sizes, which ATen has beside a number for none of its forms."""
    if low is not None:
        x = torch.maximum(x, x.new_ones(()) * low)
    return x if high is None else torch.minimum(x, x.new_ones(()) * high)


def _clamp(input: Tensor, min: Any = None, max: Any = None) -> Any:
    return between(input, min, max) if is_symbolic((min, max)) else NotImplemented


def _take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Any:
    """gather, either side broadcast where it has a length of one."""
    if dim is None or input.dim() != indices.dim() or not is_symbolic(tuple(input.shape), tuple(indices.shape)):
        return NotImplemented
    axes = [axis for axis in range(input.dim()) if axis != dim % input.dim()]
    for axis in axes:
        here, there = input.shape[axis], indices.shape[axis]
        if isinstance(there, int) and there == 1:
            indices = indices.expand(*indices.shape[:axis], here, *indices.shape[axis + 1 :])
        elif isinstance(here, int) and here == 1:
            input = input.expand(*input.shape[:axis], there, *input.shape[axis + 1 :])
    return input.gather(dim, indices)


def _bucketize(input: Any, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Any:
    """How many boundaries lie below (``right``: not above) each value."""
    if not isinstance(input, Tensor) or boundaries.dim() != 1:
        return NotImplemented
    values = input.unsqueeze(-1)
    passed = values >= boundaries if right else values > boundaries
    return passed.sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


def _searchsorted(sorted_sequence: Tensor, input: Any, *, out_int32: bool = False, right: bool = False,
                  side: str | None = None, sorter: Tensor | None = None) -> Any:  # fmt: skip
    if sorter is not None or not isinstance(input, Tensor):
        return NotImplemented
    right = right or side == "right"
    if sorted_sequence.dim() == 1:
        return _bucketize(input, sorted_sequence, out_int32=out_int32, right=right)
    values, edges = input.unsqueeze(-1), sorted_sequence.unsqueeze(-2)
    return (values >= edges if right else values > edges).sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


def _squeeze(input: Tensor, dim: Any = None) -> Any:
    """squeeze of the axes that have a length of one; ONNX takes no others, where torch leaves them as they are."""
    if input.dim() == 0:
        return NotImplemented
    asked = range(input.dim()) if dim is None else dim if isinstance(dim, (tuple, list)) else (dim,)
    if not all(isinstance(axis, int) for axis in asked):
        return NotImplemented
    ones = [axis % input.dim() for axis in asked if input.shape[axis] == 1]
    return input.squeeze(tuple(ones)) if ones else input


def _einsum(equation: Any, *operands: Any) -> Any:
    """An ellipsis as the letters that it stands for: OpenVINO takes it for nothing and answers with an empty tensor."""
    if not isinstance(equation, str) or "..." not in equation:
        return NotImplemented
    tensors = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    free = [c for c in string.ascii_letters if c not in equation]
    counts = [t.dim() - len(term.replace("...", "")) for term, t in zip(terms, tensors, strict=True) if "..." in term]
    most = max(counts)
    if any(n != most for n in counts):
        return NotImplemented
    letters = "".join(free[:most])
    if not arrow:
        once = sorted(c for c in set("".join(terms)) - set(".") if "".join(terms).count(c) == 1)
        right = "..." + "".join(once)
    spelt = ",".join(term.replace("...", letters) for term in terms) + "->" + right.replace("...", letters)
    return torch.einsum(spelt, *tensors)


def _meshgrid(*tensors: Any, indexing: str | None = None) -> Any:
    """Rows and columns of a grid; torch decomposes it only where ``indexing`` is given, which older code does not."""
    axes = list(tensors[0]) if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else list(tensors)
    if any(a.dim() > 1 for a in axes):
        return NotImplemented
    swap = indexing == "xy" and len(axes) > 1
    axes = [axes[1], axes[0], *axes[2:]] if swap else axes
    shape = [a.numel() if a.dim() else 1 for a in axes]
    made = [a.reshape([-1 if i == n else 1 for n in range(len(axes))]).expand(shape) for i, a in enumerate(axes)]
    if not swap:
        return tuple(made)
    return (made[1], made[0], *made[2:])


def _split(tensor: Tensor, split_size_or_sections: Any, dim: int = 0) -> Any:
    """Parts of a symbolic length: as many as there are at the size of the trace, the last one what is left."""
    step, length = split_size_or_sections, tensor.shape[dim]
    if isinstance(step, (list, tuple)):
        if not is_symbolic(step):
            return NotImplemented
        return tuple(tensor.narrow(dim, sum(step[:i]), n) for i, n in enumerate(step))
    if not is_symbolic(length, step):
        return NotImplemented
    count = int(-(-length // step))
    starts = [step * i for i in range(count)]
    return tuple(tensor.narrow(dim, at, length - at if i == count - 1 else step) for i, at in enumerate(starts))


def _chunk(input: Tensor, chunks: int, dim: int = 0) -> Any:
    """Parts of a length that is symbolic, as equal as torch makes them."""
    length = input.shape[dim]
    return _split(input, -(-length // chunks), dim) if is_symbolic(length) else NotImplemented


def _cumprod(input: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Any:
    """Products so far as a recurrence: torch's own form of them is a square of the axis, and ONNX has none."""
    if dtype is not None or not input.is_floating_point() or input.dim() == 0:
        return NotImplemented
    steps = input.movedim(dim, 0)
    return linear_scan(steps, torch.zeros_like(steps), torch.ones_like(steps[0])).movedim(0, dim)


def _erfinv(x: Tensor) -> Tensor:
    """The inverse error function to float32 (M. Giles, Approximating the erfinv function, 2012)."""
    w = -torch.log((1 - x) * (1 + x))
    near = _polynomial(w - 2.5, _ERFINV_NEAR)
    far = _polynomial(torch.sqrt(w.clamp(min=5)) - 3, _ERFINV_FAR)
    return torch.where(x.abs() == 1, x * math.inf, torch.where(w < 5, near, far) * x)


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    total = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        total = total * x + c
    return total


_ERFINV_NEAR = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503,
                -0.00417768164, 0.246640727, 1.50140941)  # fmt: skip
_ERFINV_FAR = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613,
               0.00943887047, 1.00167406, 2.83297682)  # fmt: skip


def _inverse(a: Tensor) -> Any:
    size = a.shape[-1]
    return (
        _eliminated(a, torch.eye(size, dtype=a.dtype, device=a.device).expand(a.shape)) if _small(a) else NotImplemented
    )


def _solve(A: Tensor, B: Tensor, *, left: bool = True) -> Any:
    """X of A X = B (``left``) or X A = B; B is a vector for each matrix where torch takes it for one."""
    if not _small(A) or B.dim() == 0:
        return NotImplemented
    vector = B.dim() == 1 or (B.dim() == A.dim() - 1 and B.shape == A.shape[:-1])
    if vector and not left:
        return NotImplemented
    a, b = (A, B.unsqueeze(-1) if vector else B) if left else (A.mT, B.mT)
    for axis in range(-3, -1 - max(a.dim(), b.dim()), -1):
        a, b = _alike(a, b, axis), _alike(b, a, axis)
    found = _eliminated(a, b)
    return found.squeeze(-1) if vector else found if left else found.mT


def _small(a: Tensor) -> bool:
    return isinstance(a.shape[-1], int) and a.shape[-1] <= _MOST_ROWS and not a.is_complex()


def _alike(t: Tensor, other: Tensor, axis: int) -> Tensor:
    """``t`` with the length of ``other`` along an axis, counted from the end, where it has none or one."""
    if t.dim() < -axis:
        return t.expand(other.shape[axis], *t.shape)
    if isinstance(t.shape[axis], int) and t.shape[axis] == 1 and other.dim() >= -axis:
        return t.expand(*t.shape[:axis], other.shape[axis], *t.shape[axis + 1 :])
    return t


def _eliminated(a: Tensor, right: Tensor) -> Tensor:
    """X of A X = ``right``, [..., n, n] and [..., n, k], by Gauss-Jordan elimination, the largest pivot of each column
    first."""
    size = a.shape[-1]
    both = torch.cat([a, right], -1)
    index = torch.arange(size, device=a.device)
    for column in range(size):
        sizes = torch.where(index >= column, both[..., column].abs(), -1.0)
        pivot = sizes.argmax(-1, keepdim=True)  # [..., 1]
        chosen = (index == pivot).to(a.dtype)  # [..., size]
        first = (index == column).to(a.dtype)
        row = (chosen[..., None] * both).sum(-2, keepdim=True)
        moved = both[..., column : column + 1, :]
        both = both + first[..., None] * (row - moved) + (chosen * (1 - first))[..., None] * (moved - row)
        row = both[..., column : column + 1, :] / both[..., column : column + 1, column : column + 1]
        factor = both[..., column : column + 1] * (1 - first)[..., None]
        both = both * (1 - first)[..., None] + first[..., None] * row - factor * row
    return both[..., size:]


_MOST_ROWS = 32  # each is a dozen operators of the graph


def with_float_tensor(func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Operands of arithmetic between whole numbers in a tensor and a fraction of a size, with the tensor as floats."""
    if func not in _ARITHMETIC or not any(isinstance(a, torch.SymFloat) for a in args):
        return args
    kind = torch.get_default_dtype()
    return tuple(a.to(kind) if isinstance(a, Tensor) and not a.is_floating_point() else a for a in args)


_ARITHMETIC = {
    getattr(owner, name)
    for owner, names in ((torch, "add sub mul div true_divide"), (Tensor, "add sub mul div __add__ __radd__ __sub__"),
                         (Tensor, "__rsub__ __mul__ __rmul__ __truediv__ __rtruediv__"))
    for name in names.split()
}  # fmt: skip

REWRITES: dict[Any, Callable[..., Any]] = {
    torch.nn.functional.grid_sample: _grid_sample,
    torch.clamp: _clamp,
    torch.clip: _clamp,
    Tensor.clamp: _clamp,
    Tensor.clip: _clamp,
    torch.take_along_dim: _take_along_dim,
    Tensor.take_along_dim: _take_along_dim,
    torch.bucketize: _bucketize,
    torch.searchsorted: _searchsorted,
    torch.einsum: _einsum,
    torch.meshgrid: _meshgrid,
    torch.chunk: _chunk,
    Tensor.chunk: _chunk,
    torch.split: _split,
    Tensor.split: _split,
    torch.cumprod: _cumprod,
    Tensor.cumprod: _cumprod,
    torch.erfinv: _erfinv,
    torch.special.erfinv: _erfinv,
    Tensor.erfinv: _erfinv,
    torch.linalg.inv: _inverse,
    torch.inverse: _inverse,
    Tensor.inverse: _inverse,
    torch.linalg.solve: _solve,
    torch.squeeze: _squeeze,
    Tensor.squeeze: _squeeze,
}
