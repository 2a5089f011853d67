"""Described experts that are alike, computed as one with their weights stacked, or only those that were chosen.

Many small experts cost more in calls than in arithmetic, and of thirty a picture needs one. ``merged`` runs all of
them at once: one expert's code, over a stack of everybody's weights (each convolution becomes a grouped one).
``gathered`` picks the weights of the chosen experts out of the stack and runs only these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from clusir.errors import UnsupportedModelError

__all__ = ["at_most", "gathered_sum", "merged_sum", "unlike", "with_at_most"]

_MARK = "_clusir_at_most"
_PLAIN = (bool, int, float, str, tuple, type(None))


class Described(Protocol):
    """What is needed of a block: its ``experts``, and how one of them is called."""

    name: str

    @property
    def experts(self) -> list[nn.Module]: ...

    def call(self, expert: nn.Module, *inputs: Any) -> Any: ...


def with_at_most(gate: Tensor, most: int) -> Tensor:
    """``gate``, remembering that at most ``most`` of its columns are other than zero in any row."""
    setattr(gate, _MARK, most)
    return gate


def at_most(gate: Tensor) -> int:
    """How many columns of a gate are other than zero in a row, at most; 0 where nobody has said it."""
    return int(getattr(gate, _MARK, 0))


def unlike(experts: Sequence[nn.Module]) -> str:
    """Why experts have no common form: another class, setting, weight or hook; empty where they have one.

    Settings that are no plain values are not looked at: an export compares each expert with the user's own.
    """
    if len(experts) < 2:
        return "there is one expert only"
    first = _settings(experts[0])
    for index, expert in enumerate(experts):
        if any(m._forward_hooks or m._forward_pre_hooks for m in expert.modules()):
            return f"expert {index} has a hook"
        own = _settings(expert)
        if own != first:
            where = next((k for k in first if own.get(k) != first[k]), next(iter(own.keys() - first.keys()), ""))
            return f"expert {index} differs from expert 0 in {where or 'its class'}"
    if not _weights(experts[0]):
        return "they have no weights"
    return ""


def _settings(expert: nn.Module) -> dict[str, Any]:
    """Class, plain attributes and the shapes of weights of every part of an expert."""
    told: dict[str, Any] = {}
    for name, part in expert.named_modules():
        told[f"{name or 'its'} class"] = type(part)
        told |= {f"{name}.{k}".lstrip("."): v for k, v in vars(part).items() if k[0] != "_" and isinstance(v, _PLAIN)}
    for name, weight in _weights(expert).items():
        told[name] = (tuple(weight.shape), weight.dtype)
    return told


def _weights(expert: nn.Module) -> dict[str, Tensor]:
    return {**dict(expert.named_parameters()), **dict(expert.named_buffers())}


class _Call(nn.Module):
    """An expert as its block calls it, so that it can be run with the weights of another."""

    def __init__(self, block: Described, expert: nn.Module) -> None:
        super().__init__()
        self.expert = expert
        self.call: Callable[..., Any] = block.call

    def forward(self, *inputs: Any) -> Any:
        return self.call(self.expert, *inputs)


def _stacked(block: Described) -> tuple[_Call, dict[str, Tensor]]:
    experts = block.experts
    reason = unlike(experts)
    if reason:
        raise UnsupportedModelError(f"block {block.name}: its experts cannot run as one: {reason}")
    weights = [_weights(expert) for expert in experts]
    stacks = {f"expert.{name}": torch.stack([w[name] for w in weights]) for name in weights[0]}
    return _Call(block, experts[0]), stacks


def merged_sum(block: Described, gate: Tensor, inputs: Sequence[Any]) -> Tensor:
    """sum_e gate_e * expert_e(inputs), all experts at once. gate: BxE or BxExHxW."""
    call, stacks = _stacked(block)

    def one(weights: dict[str, Tensor]) -> Any:
        return torch.func.functional_call(call, weights, tuple(inputs))

    every: Tensor = torch.func.vmap(one)(stacks)  # ExBx...
    share = gate.transpose(0, 1)
    share = share.reshape(*share.shape, *[1] * (every.dim() - 2)) if gate.dim() == 2 else share.unsqueeze(2)
    return (share * every).sum(0)


def gathered_sum(block: Described, gate: Tensor, inputs: Sequence[Any]) -> Tensor:
    """The same sum over the chosen experts alone, for one picture. gate: 1xE, known to have few that are not zero.

    Raises UnsupportedModelError for a gate of several pictures or of pixels, and where nobody has said how many are
    chosen (``top_k_gate`` does).
    """
    if gate.dim() != 2 or not isinstance(gate.shape[0], int) or gate.shape[0] != 1:
        raise UnsupportedModelError(
            f"block {block.name}: weights are gathered for one picture and one weight an expert; give --batch 1"
        )
    most = at_most(gate)
    if not most:
        raise UnsupportedModelError(
            f"block {block.name}: weights are gathered where the gate comes from top_k_gate as it is, which says how "
            "many experts are chosen"
        )
    call, stacks = _stacked(block)
    picks = torch.topk(gate.abs(), most, dim=1).indices[0]
    total: Any = None
    for rank in range(most):
        pick = picks[rank : rank + 1]
        weights = {name: stack.index_select(0, pick).squeeze(0) for name, stack in stacks.items()}
        made: Tensor = torch.func.functional_call(call, weights, tuple(inputs))
        term = gate.index_select(1, pick).reshape(-1, *[1] * (made.dim() - 1)) * made
        total = term if total is None else total + term
    return total
