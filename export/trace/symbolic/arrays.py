"""NumPy's functions where a size is symbolic: arrays as long as the picture, and small arrays of sizes.

``np.arange(h)`` or ``np.hanning(h)`` has to know how many numbers it makes, so a tracer pins ``h``. While a model is
traced such arrays are ``torch._numpy`` arrays, which are tensors with NumPy's functions and types, until
``torch.from_numpy`` or ``torch.tensor`` takes the tensor out. An array of a few sizes, ``np.array(x.shape[-2:])``, is
:class:`Sizes`: Python's numbers in an array of objects, with roundings and conversions that keep symbols.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch._numpy
from torch._numpy import _dtypes
from torch.utils import _pytree as pytree

from clusir.errors import UnsupportedModelError
from clusir.export.quiet import replaced
from clusir.export.subjects.user_code import calling_user_line

__all__ = [
    "Sizes",
    "as_tensor",
    "call_numpy",
    "grids",
    "holds_symbols",
    "is_array",
    "numpy_names",
    "within_torch",
    "without_arrays",
]

tnp: Any = torch._numpy
_SYMBOLS = (torch.SymInt, torch.SymFloat)
_SCALARS = (int, float, *_SYMBOLS)


def is_array(value: Any) -> bool:
    """Whether a value stands for an array as long as the picture."""
    return isinstance(value, tnp.ndarray)


def _has(values: Any, kinds: tuple[type, ...]) -> bool:
    return any(
        isinstance(v, kinds)
        or (isinstance(v, (list, tuple)) and _has(v, kinds))
        or (isinstance(v, slice) and _has((v.start, v.stop, v.step), kinds))
        for v in (values.values() if isinstance(values, dict) else values)
    )


def holds_symbols(args: Any, kwargs: Any) -> bool:
    """Whether arguments of a NumPy function hold a symbolic number or an array of them, in lists as well."""
    kinds = (*_SYMBOLS, tnp.ndarray, Sizes)
    return _has(args, kinds) or _has(kwargs, kinds)


# -- small arrays of sizes ---------------------------------------------------------------------------------------------


def _floor(x: Any) -> Any:
    return float(math.floor(x)) if isinstance(x, (int, float)) else torch.sym_float(math.floor(torch.sym_float(x)))


def _ceil(x: Any) -> Any:
    return -_floor(-x)


def _round(x: Any) -> Any:
    low, high = _ceil(x - 0.5), _floor(x + 0.5)
    return low + (high - low) * (low % 2)


def _root(x: Any) -> Any:
    return torch._sym_sqrt(torch.sym_float(x))  # type: ignore[attr-defined]


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "floor": _floor,
    "ceil": _ceil,
    "rint": _round,
    "trunc": lambda x: torch.sym_float(torch.sym_int(x)),
    "sqrt": _root,
    "maximum": torch.sym_max,
    "minimum": torch.sym_min,
}


class Sizes(np.ndarray):
    """An array of numbers of which some are symbolic."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        plain = [np.asarray(i).astype(object) if isinstance(i, np.ndarray) else i for i in inputs]
        known = _ELEMENTWISE.get(ufunc.__name__)
        if known is None:
            made = getattr(ufunc, method)(*plain, **kwargs)
        elif method == "__call__":
            made = np.frompyfunc(known, len(plain), 1)(*plain)
        elif method == "reduce" and plain[0].ndim == 1:
            made = functools.reduce(known, plain[0])
        else:
            return NotImplemented
        return made.view(Sizes) if isinstance(made, np.ndarray) else made

    def round(self, decimals: int = 0, out: Any = None) -> Any:  # type: ignore[override]
        """Half to even."""
        return np.rint(self)

    def astype(self, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        """Whole numbers towards zero, and fractions, of symbols too."""
        kind = np.dtype(dtype).kind
        convert = torch.sym_int if kind in "iu" else torch.sym_float if kind == "f" else None
        if convert is None:
            return super().astype(dtype, *args, **kwargs)
        return np.frompyfunc(convert, 1, 1)(np.asarray(self)).view(Sizes)


def _of_sizes(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An array made of a list of numbers, or NotImplemented."""
    if name not in ("array", "asarray", "asanyarray") or not isinstance(args[0], (list, tuple)):
        return NotImplemented
    if not all(isinstance(leaf, _SCALARS) for leaf in pytree.tree_leaves(list(args[0]))):
        return NotImplemented
    made = np.array(args[0], dtype=object).view(Sizes)
    dtype = args[1] if len(args) > 1 else kwargs.get("dtype")
    return made if dtype is None else made.astype(dtype)


# -- arrays as long as the picture -------------------------------------------------------------------------------------


def _linspace(start: Any, stop: Any, num: Any = 50, endpoint: bool = True, **more: Any) -> Any:
    if endpoint:
        return tnp.linspace(start, stop, num, **more)
    return tnp.arange(num) * ((stop - start) / num) + start


def _indices(dimensions: Any, **_: Any) -> Any:
    return tnp.stack(tnp.meshgrid(*(tnp.arange(n) for n in dimensions), indexing="ij"))


_OWN: dict[str, Callable[..., Any]] = {"linspace": _linspace, "indices": _indices}


class _Grid:
    """``np.mgrid`` and ``np.ogrid``, whose bounds may be symbolic."""

    def __init__(self, real: Any, sparse: bool) -> None:
        self.real, self.sparse = real, sparse

    def __getitem__(self, key: Any) -> Any:
        parts = key if isinstance(key, tuple) else (key,)
        if not _has(parts, _SYMBOLS):
            return self.real[key]
        axes = [tnp.arange(0 if p.start is None else p.start, p.stop, 1 if p.step is None else p.step) for p in parts]
        if len(axes) == 1:
            return axes[0]
        made = tnp.meshgrid(*axes, indexing="ij", sparse=self.sparse)
        return made if self.sparse else tnp.stack(made)


def grids() -> dict[str, Any]:
    """NumPy's objects that make arrays when they are indexed, by name."""
    return {"mgrid": _Grid(np.mgrid, False), "ogrid": _Grid(np.ogrid, True)}


def call_numpy(real: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A NumPy function of which some arguments hold symbols."""
    name = real.__name__
    made = _of_sizes(name, args, kwargs) if args else NotImplemented
    if made is not NotImplemented:
        return made
    if _has(args, (Sizes,)) and not _has(args, (tnp.ndarray,)):
        return real(*args, **kwargs)
    function = _OWN.get(name) or getattr(tnp, name, None)
    try:
        if function is not None:
            return function(*args, **kwargs)
    except NotImplementedError:
        pass
    raise UnsupportedModelError(
        f"{calling_user_line()}: numpy.{name} of an array as long as the picture is not known to the exporter; "
        "write it with torch"
    )


def numpy_names() -> list[str]:
    """The functions of NumPy that such arrays have, which code may import by name."""
    return [n for n in dir(tnp) if not n.startswith("_") and callable(getattr(np, n, None))]


def _dtype(real: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """NumPy's own types name torch's as well, which ``torch._numpy`` does not know."""

    def find(arg: Any) -> Any:
        is_numpys = isinstance(arg, np.dtype) or isinstance(getattr(arg, "dtype", None), np.dtype)
        is_class = isinstance(arg, type) and issubclass(arg, np.generic)
        return real(np.dtype(arg).name if is_numpys or is_class else arg)

    return find


@contextlib.contextmanager
def within_torch() -> Iterator[None]:
    """Inside, torch takes such arrays where it takes NumPy's."""
    from_numpy, dtype = torch.from_numpy, _dtypes.dtype

    def taken(data: Any) -> Any:
        made = as_tensor(data)
        return from_numpy(data) if made is NotImplemented else made

    with replaced(torch, "from_numpy", taken), replaced(_dtypes, "dtype", _dtype(dtype)):
        yield


def as_tensor(data: Any, dtype: Any = None) -> Any:
    """torch.tensor, as_tensor or from_numpy of such an array, or of one symbolic number; else NotImplemented."""
    if is_array(data):
        data = data.tensor
    elif isinstance(data, Sizes):
        data = torch.tensor(data.tolist())
    elif isinstance(data, _SYMBOLS):
        kind = torch.int64 if isinstance(data, torch.SymInt) else torch.get_default_dtype()
        return torch.scalar_tensor(data, dtype=dtype or kind)  # type: ignore[arg-type]
    else:
        return NotImplemented
    return data if dtype is None else data.to(dtype)


def without_arrays(args: Any) -> Any:
    """Arguments of a torch function with the tensors of such arrays."""
    return pytree.tree_map_only(tnp.ndarray, lambda a: a.tensor, args, is_leaf=is_array)
