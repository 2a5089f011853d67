"""Scripted submodules as ordinary modules: what was compiled for speed holds parameters that a tracer cannot name."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clusir.errors import UnsupportedModelError

__all__ = ["Unscripted", "unscripted"]

# Arithmetic on sizes, which may be symbolic: Python's, not TorchScript's.
_NUMBERS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "neg": operator.neg,
    "floordiv": operator.floordiv, "remainder": operator.mod, "eq": operator.eq, "ne": operator.ne, "lt": operator.lt,
    "le": operator.le, "gt": operator.gt, "ge": operator.ge, "__not__": operator.not_, "__is__": operator.is_,
    "__isnot__": operator.is_not, "__getitem__": operator.getitem, "len": len, "dim": lambda x: x.dim(),
    "size": lambda x, dim=None: list(x.shape) if dim is None else x.shape[dim], "append": lambda x, y: x.append(y) or x,
}  # fmt: skip
_BUILT: dict[str, Callable[..., Any]] = {
    "prim::ListConstruct": list,
    "prim::TupleConstruct": tuple,
    "prim::dtype": lambda values: values[0].dtype,
    "prim::device": lambda values: values[0].device,
    "prim::RaiseException": lambda values: _raised(values),
    "prim::unchecked_cast": lambda values: values[0],
    "prim::Uninitialized": lambda values: None,
}


class Unscripted(nn.Module):
    """The same function as a ScriptModule, read from its graph, its weights as parameters under their names."""

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        graph: Any = script.forward.graph.copy()  # type: ignore[attr-defined]
        torch._C._jit_pass_inline(graph)
        for name, weight in script.named_parameters():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(weight.detach(), requires_grad=False))
        for name, buffer in script.named_buffers():
            self.register_buffer(name.replace(".", "_"), buffer.detach())
        self.script = _Shared((graph, script))

    def forward(self, *inputs: Any) -> Any:
        graph, script = self.script.held
        given = [_Part(self, script, ""), *inputs]
        made = _run(graph, {v.debugName(): value for v, value in zip(graph.inputs(), given, strict=True)})
        return made[0] if len(made) == 1 else tuple(made)


class _Part:
    """A module inside a TorchScript graph: its tensors are those of the module that stands for the whole."""

    def __init__(self, whole: nn.Module, script: Any, place: str) -> None:
        self._whole, self._script, self._place = whole, script, place

    def attribute(self, name: str) -> Any:
        found, place = getattr(self._script, name), f"{self._place}{name}"
        if isinstance(found, torch.jit.ScriptModule):
            return _Part(self._whole, found, f"{place}.")
        known = getattr(self._whole, place.replace(".", "_"), None)
        return known if isinstance(found, Tensor) and known is not None else found


class _Shared:
    """Holds what copies of a module share."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


def _run(block: Any, values: dict[str, Any]) -> list[Any]:
    """The outputs of a block of a TorchScript graph, its nodes called one after the other."""
    for node in block.nodes():
        kind, inputs = node.kind(), [values[v.debugName()] for v in node.inputs()]
        outputs = [v.debugName() for v in node.outputs()]
        if kind == "prim::Constant":
            made = [node.output().toIValue()]
        elif kind == "prim::If":
            taken = list(node.blocks())[0 if inputs[0] else 1]
            made = _run(taken, values)
        elif kind == "prim::GetAttr":
            made = [inputs[0].attribute(node.s("name"))]
        elif kind in ("prim::ListUnpack", "prim::TupleUnpack"):
            made = list(inputs[0])
        elif kind in _BUILT:
            made = [_BUILT[kind](inputs)]
        elif kind.startswith("aten::"):
            result = _called(kind.removeprefix("aten::"), inputs)
            made = [result] if len(outputs) == 1 else list(result)
        else:
            raise UnsupportedModelError(f"a scripted submodule holds {kind}; return the nn.Module that it was made of")
        values.update(zip(outputs, made, strict=False))
    return [values[v.debugName()] for v in block.outputs()]


def _called(name: str, inputs: list[Any]) -> Any:
    plain = name in ("size", "dim", "len", "append", "__is__", "__isnot__") or not isinstance(inputs[0], Tensor)
    if name in _NUMBERS and plain:
        return _NUMBERS[name](*inputs)
    return getattr(torch.ops.aten, name)(*inputs)


def _raised(values: list[Any]) -> Any:
    raise RuntimeError(str(values[0]))


def unscripted(model: nn.Module) -> nn.Module:
    """``model`` with every scripted submodule replaced, in place.

    Raises UnsupportedModelError, with the name, where that cannot be done.
    """
    for parent in list(model.modules()):
        if isinstance(parent, torch.jit.ScriptModule):
            continue
        for name, child in list(parent.named_children()):
            if not isinstance(child, torch.jit.ScriptModule):
                continue
            try:
                setattr(parent, name, Unscripted(child).eval())
            except Exception as error:
                place = next((n for n, m in model.named_modules() if m is child), name)
                raise UnsupportedModelError(
                    f"the submodule {place} is TorchScript and cannot be unpacked ({error}); return the nn.Module that "
                    "it was made of"
                ) from error
    return model
