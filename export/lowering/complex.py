"""Complex arithmetic of a traced program, rewritten as arithmetic on pairs of real tensors.

ONNX has no complex tensors, so a program from ``torch.export`` that holds them is interpreted once more with every
complex value carried as two real tensors (:class:`Pair`) and traced anew. A Fourier transform becomes one of the three
operators of ``complex_fft``, which take and return ``[..., 2]`` reals. The result is an ordinary PyTorch module without
complex tensors: it can be run and compared with the user's model before any ONNX file exists.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from clusir.errors import UnsupportedModelError
from clusir.export.lowering.complex_fft import FFT_HANDLERS
from clusir.export.lowering.complex_ops import COMPONENTWISE, HANDLERS
from clusir.export.lowering.complex_pair import Pair, as_pair, roll, safe_atan2
from clusir.export.subjects.user_code import line_of_node

__all__ = ["RealProgram", "holds_complex", "lower_complex", "writes"]

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


def writes(node: fx.Node) -> bool:
    """Whether a node of a traced graph calls an operator that changes one of its operands."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


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


class _PairInterpreter(fx.Interpreter):
    """Runs a traced graph; a complex value is a Pair wherever it appears.

    ``constants`` maps the complex attributes of the graph module to its real ``[..., 2]`` copies of them.
    """

    def __init__(self, program: fx.GraphModule, constants: dict[str, str]) -> None:
        super().__init__(program)
        self.extra_traceback = False  # fx would append a page to the one-line refusal
        self._constants = constants

    def run_node(self, n: fx.Node) -> Any:
        self._node = n
        return super().run_node(n)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(self._constants.get(target, target), args, kwargs)
        return Pair(value[..., 0], value[..., 1]) if target in self._constants else value

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = _name(target)
        if name in FFT_HANDLERS:
            try:
                return FFT_HANDLERS[name](*args, **kwargs)
            except NotImplementedError as error:
                raise self._refuse(str(error)) from error
        if not (_any_complex(args) or _any_complex(kwargs) or name in ("complex", "polar", "view_as_complex")):
            rewrite = _REAL_REWRITES.get(name)
            return rewrite(*args, **kwargs) if rewrite else super().call_function(target, args, kwargs)
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

    def output(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _any_complex(args):
            raise self._refuse("the model returns a complex tensor; ONNX has none: return torch.view_as_real(...)")
        return super().output(target, args, kwargs)

    def _refuse(self, what: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{line_of_node(self._node)}: {what}")


class RealProgram(nn.Module):
    """A traced program as a module without complex tensors between its operators: same inputs, same outputs.

    ``program`` is the graph module of an exported program (``ExportedProgram.module(check_guards=False)``).
    """

    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__()
        self.program = program
        self.constants: dict[str, str] = {}
        for node in program.graph.find_nodes(op="get_attr"):
            value = operator.attrgetter(node.target)(program)
            if isinstance(value, torch.Tensor) and value.is_complex() and node.target not in self.constants:
                self.constants[node.target] = f"real_pairs_{len(self.constants)}"
                program.register_buffer(self.constants[node.target], torch.view_as_real(value.detach()).clone())

    def forward(self, image: torch.Tensor) -> Any:
        return _PairInterpreter(self.program, self.constants).run(image)


def lower_complex(
    exported: torch.export.ExportedProgram, image: torch.Tensor, dynamic: dict[int, Any]
) -> torch.export.ExportedProgram:
    """The same program traced again with complex values as real pairs; returned unchanged where it has none.

    ``image`` is the example input (BxCxHxW) and ``dynamic`` maps its dynamic axes to ``Dim.AUTO``. Raises
    UnsupportedModelError, naming the line of the user's code, for a complex operator that has no real form.
    """
    if not holds_complex(exported.graph):
        return exported
    if any(writes(node) for node in exported.graph.nodes):
        exported = exported.run_decompositions({})  # nothing is decomposed, but writes into views become functions
    program = RealProgram(exported.module(check_guards=False))
    return torch.export.export(program, (image,), dynamic_shapes=(dynamic,), strict=False)
