"""Values that do not depend on the picture, read while a model is traced: ``self.gain.item()``, ``if self.gate > 0``.

A traced weight has no values, so a tracer takes such a number for one that the picture decides. What a tensor was
computed from is in the graph that is being traced; where that is weights and constants alone, it is computed again with
the values that they have.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["READS", "Constants", "node_of", "written_elsewhere"]

READS = frozenset(
    {Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, torch.is_nonzero}
)


class Constants:
    """The values of a model's weights, for what is computed from them alone.

    ``weights``: called while the model is traced, gives the traced tensor and the real one of each.
    """

    def __init__(self, weights: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
        self._weights = weights
        self._known: dict[fx.Node, Tensor] | None = None

    def read(self, func: Callable[..., Any], traced: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What a function of :data:`READS` gives; NotImplemented where it depends on the picture or its size."""
        mode = get_proxy_mode()
        node = node_of(traced, mode.tracer) if mode is not None else None
        if mode is None or node is None:
            return NotImplemented
        if self._known is None:
            pairs = ((node_of(fake, mode.tracer), real) for fake, real in self._weights())
            self._known = {n: real for n, real in pairs if n is not None}
        order = self._made_of(node)
        if order is None or written_elsewhere(order):
            return NotImplemented
        values = dict(self._known)
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
            for step in order:
                if step.op == "get_attr":
                    values[step] = _attribute(getattr(mode.tracer, "root", None), str(step.target))
                    continue
                given, named = fx.map_arg((step.args, step.kwargs), lambda n: values[n])
                values[step] = step.target(*given, **named)  # type: ignore[operator]
            return func(values[node], *args, **kwargs)

    def _made_of(self, node: fx.Node) -> list[fx.Node] | None:
        """The calls that make a node of weights and constants, in order; None where something else goes in."""
        assert self._known is not None
        order: list[fx.Node] = []
        seen: set[fx.Node] = set()
        stack = [(node, False)]
        while stack:
            current, ready = stack.pop()
            if ready:
                order.append(current)
                continue
            if current in self._known or current in seen:
                continue
            seen.add(current)
            is_call = current.op == "call_function" and callable(current.target)
            if current.op != "get_attr" and not is_call:
                return None
            stack.append((current, True))
            stack.extend((made, False) for made in current.all_input_nodes)
        return order


def _attribute(root: Any, path: str) -> Tensor:
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    constant = getattr(value, "constant", None)  # of a fake tensor
    real: Tensor = value if constant is None else constant
    return real


def written_elsewhere(nodes: Collection[fx.Node]) -> bool:
    """Whether something that is not among ``nodes`` writes into the tensor of one of them, or into a view of it."""
    queue, seen = list(nodes), set(nodes)
    while queue:
        for user in queue.pop().users:
            schema = getattr(user.target, "_schema", None)
            if schema is None or user in seen:
                continue
            seen.add(user)
            if schema.is_mutable:
                return True
            if any(returned.alias_info is not None for returned in schema.returns):
                queue.append(user)
    return False


def node_of(tensor: Tensor, tracer: Any) -> fx.Node | None:
    """The node of a tensor in the graph that is being traced; None where it is not in it."""
    slot = get_proxy_slot(tensor, tracer, None)
    proxy = getattr(slot, "proxy", slot)
    node = getattr(proxy, "node", None)
    return node if isinstance(node, fx.Node) else None
