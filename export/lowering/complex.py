"""Complex arithmetic of a traced program, rewritten as arithmetic on pairs of real tensors.

ONNX has no complex tensors, so every operator of a program from ``torch.export`` that meets one is replaced by
operators on two real tensors (:class:`Pair`). A Fourier transform becomes one of the three operators of
``complex_fft``, which take and return ``[..., 2]`` reals. The result is a program without complex tensors: it can be
run and compared with the user's model before any ONNX file exists.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from clusir.errors import UnsupportedModelError
from clusir.export.lowering.complex_fft import FFT_HANDLERS
from clusir.export.lowering.complex_ops import COMPONENTWISE, HANDLERS
from clusir.export.lowering.complex_pair import Pair, as_pair, roll, safe_atan2
from clusir.export.lowering.splice import Splice, without_writes
from clusir.export.subjects.user_code import line_of_node

__all__ = ["holds_complex", "lower_complex"]

_REAL_REWRITES: dict[str, Callable[..., Any]] = {"roll": roll, "atan2": safe_atan2, "arctan2": safe_atan2}


def _value_is_complex(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_value_is_complex(v) for v in value)
    return isinstance(value, torch.Tensor) and value.is_complex()


def holds_complex(graph: fx.Graph) -> bool:
    """Whether a node of the graph produces a complex tensor, or calls an operator that this lowering replaces."""
    return any(
        _value_is_complex(node.meta.get("val")) or _name(node.target) in _REAL_REWRITES
        for node in graph.nodes
        if node.op != "output"
    )


def _name(target: Any) -> str:
    """``mul`` for ``torch.ops.aten.mul.Tensor``; empty for anything that is not an ATen operator."""
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return str(target._schema.name).removeprefix("aten::")
    return ""


def _any_complex(args: Any) -> bool:
    """Whether nested arguments hold a Pair, a complex scalar or a complex dtype."""
    if isinstance(args, (list, tuple)):
        return any(_any_complex(a) for a in args)
    if isinstance(args, dict):
        return any(_any_complex(a) for a in args.values())
    return isinstance(args, (Pair, complex)) or (isinstance(args, torch.dtype) and args.is_complex)


def _componentwise(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply a linear operator to the real and the imaginary parts separately; real tensors beside pairs gain a zero."""

    def part(value: Any, which: str, inside_list: bool = False) -> Any:
        if isinstance(value, Pair):
            return getattr(value, which)
        if isinstance(value, complex):
            return value.real if which == "re" else value.imag
        if isinstance(value, (list, tuple)):
            promote = any(isinstance(v, Pair) for v in value)  # a list to concatenate, not an index list
            return [part(v, which, promote) for v in value]
        if inside_list and isinstance(value, torch.Tensor) and which == "im":
            return torch.zeros_like(value)
        return value

    if _name(target) in ("slice_scatter", "select_scatter", "copy", "index_put", "scatter"):
        args = tuple(as_pair(a) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)
    kwargs = {k: v for k, v in kwargs.items() if not (isinstance(v, torch.dtype) and v.is_complex)}
    re = target(*(part(a, "re") for a in args), **{k: part(v, "re") for k, v in kwargs.items()})
    im = target(*(part(a, "im") for a in args), **{k: part(v, "im") for k, v in kwargs.items()})
    if isinstance(re, (list, tuple)):
        return [Pair(r, i) for r, i in zip(re, im, strict=True)]
    return Pair(re, im)


class _Rewriter:
    """What takes the place of one node: called with the node's arguments, complex values as Pairs."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node

    def concerns(self, args: Any, kwargs: Any) -> bool:
        """Whether the node cannot stay as it is."""
        name = _name(self.node.target)
        return (
            name in FFT_HANDLERS
            or name in _REAL_REWRITES
            or name in ("complex", "polar", "view_as_complex")
            or _any_complex(args)
            or _any_complex(kwargs)
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        target, name = self.node.target, _name(self.node.target)
        if name in FFT_HANDLERS:
            try:
                return FFT_HANDLERS[name](*args, **kwargs)
            except NotImplementedError as error:
                raise self._refuse(str(error)) from error
        if not (_any_complex(args) or _any_complex(kwargs) or name in ("complex", "polar", "view_as_complex")):
            return _REAL_REWRITES[name](*args, **kwargs)
        if target is operator.getitem:
            return args[0][args[1]]
        if name in HANDLERS:
            try:
                return HANDLERS[name](*args, **kwargs)
            except NotImplementedError as error:  # a form without a real counterpart: refused with the user's line
                raise self._refuse(f"{name}: {error}") from error
        if name in COMPONENTWISE:
            return _componentwise(target, args, kwargs)
        if name in _REAL_REWRITES:
            return _componentwise(_REAL_REWRITES[name], args, kwargs)
        raise self._refuse(f"{name or target} has no form for complex tensors")

    def _refuse(self, what: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{line_of_node(self.node)}: {what}")


def _split_input(value: Tensor) -> Pair:
    return Pair(value[..., 0], value[..., 1])


def _real_inputs(exported: torch.export.ExportedProgram) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and constants of a program with the complex ones as ``[..., 2]`` reals."""

    def real(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_complex()):
            return value
        pairs = torch.view_as_real(value.detach().resolve_conj()).clone()
        return nn.Parameter(pairs) if isinstance(value, nn.Parameter) else pairs

    state = {name: real(value) for name, value in exported.state_dict.items()}
    return state, {name: real(value) for name, value in exported.constants.items()}


def lower_complex(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The same program with complex values as real pairs; returned unchanged where it has none. Only the operators that
    meet complex values are made anew; the rest of the graph is copied, which spares a second trace of the model.

    Raises UnsupportedModelError, naming the line of the user's code, for a complex operator that has no real form.
    """
    if not holds_complex(exported.graph):
        return exported
    exported = without_writes(exported)
    splice = Splice(exported.graph)
    for node in exported.graph.nodes:
        if node.op == "placeholder" and _value_is_complex(node.meta.get("val")):
            splice.values[node] = splice.made_by(node, _split_input, splice.input_of_reals(node))
        elif node.op == "output":
            if any(isinstance(splice.values[source], Pair) for source in node.all_input_nodes):
                raise UnsupportedModelError(
                    f"{line_of_node(node)}: the model returns a complex tensor; ONNX has none: return "
                    "torch.view_as_real(...)"
                )
            splice.copy(node)
        else:
            rewriter = _Rewriter(node)
            args, kwargs = splice.arguments(node)
            if node.op == "call_function" and rewriter.concerns(args, kwargs):
                splice.values[node] = splice.made_by(node, rewriter, *args, **kwargs)
            else:
                splice.copy(node)
    state, constants = _real_inputs(exported)
    return splice.program(exported, state, constants)
