"""A user's description of a routed block, in a few lines, and the pass that makes such blocks dense.

Sparse dispatch depends on data, so it cannot be traced: a tracer keeps the experts that its sample chose. What the
block *means* can be said without dispatch::

    register_moe("mynet.blocks.SparseMoE", experts="experts", gate=lambda block, x: top1(block.router(x)))

that is: these are the experts, this is the weight of each expert for each sample, and the block's output is the sum of
weight times expert. The description lives beside the user's factory; the user's own classes stay untouched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from clusir.errors import ExportError, UsageError
from clusir.export.base import PassResult
from clusir.export.experts.together import gathered_sum, merged_sum, with_at_most
from clusir.export.subjects.copies import copied

__all__ = [
    "DenseBlock",
    "DensifyRegistered",
    "MoEDescription",
    "as_form",
    "clear_registry",
    "dense_blocks",
    "register_moe",
    "top_k_gate",
]


def _call_expert(block: nn.Module, expert: nn.Module, *inputs: Any) -> Any:
    """The usual expert: a function of the block's first input alone."""
    return expert(inputs[0])


def _return_sum(block: nn.Module, mixed: Tensor, gate: Tensor, *inputs: Any) -> Any:
    """The usual block: the weighted sum is the output."""
    return mixed


@dataclass(frozen=True)
class MoEDescription:
    """What a routed block means; every callable gets the block first and the block's own inputs last.

    ``experts``: the attribute that holds the experts (dotted, a ModuleList or a list), or ``block -> sequence``.
    ``gate(block, *inputs)``: the weights, zero where an expert is not chosen: BxE, one weight per sample, or BxExHxW,
    one per pixel. ``expert(block, expert, *inputs)``: how one expert is called; its result is a tensor of B samples.
    ``combine(block, mixed, gate, *inputs)``: what the block returns, given ``mixed`` = sum over e of gate_e * expert_e
    (for example a residual, or a tuple with a loss).
    """

    experts: str | Callable[[nn.Module], Sequence[nn.Module]]
    gate: Callable[..., Tensor]
    expert: Callable[..., Any] = _call_expert
    combine: Callable[..., Any] = _return_sum


_REGISTRY: dict[str, MoEDescription] = {}


def _key(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def register_moe(
    block: type[nn.Module] | str,
    *,
    experts: str | Callable[[nn.Module], Sequence[nn.Module]],
    gate: Callable[..., Tensor],
    expert: Callable[..., Any] = _call_expert,
    combine: Callable[..., Any] = _return_sum,
) -> None:
    """Describe every block of a class, named as the class or as ``"package.module.Class"``. See MoEDescription.

    A second description of a class replaces the first. Raises UsageError where ``block`` is neither.
    """
    name = _key(block) if isinstance(block, type) else block
    if not isinstance(name, str) or "." not in name:
        raise UsageError(f"register_moe: {block!r} is neither a class nor 'package.module.Class'")
    _REGISTRY[name] = MoEDescription(experts, gate, expert, combine)


def clear_registry() -> None:
    """Forget all descriptions (for tests and long-lived processes)."""
    _REGISTRY.clear()


def description_of(block: nn.Module) -> MoEDescription | None:
    """The description of a block's class or of the nearest described base class: the user's, or a published one's."""
    from clusir.export.experts.published import PUBLISHED  # describes with what stands here

    names = [_key(c) for c in type(block).__mro__]
    return next((table[name] for table in (_REGISTRY, PUBLISHED) for name in names if name in table), None)


def top_k_gate(scores: Tensor, k: int, *, renormalise: bool = False) -> Tensor:
    """scores BxE (probabilities) -> BxE with the k largest of each row kept and the rest zero; ties: lowest index.

    Written with comparisons only, which every runtime orders alike: expert e stays where fewer than k experts beat it.
    ``renormalise`` divides by the sum of those kept.
    """
    if not 1 <= k <= scores.shape[1]:
        raise UsageError(f"top-k of {k} does not fit {scores.shape[1]} experts")
    index = torch.arange(scores.shape[1], device=scores.device)
    rival, own = scores.unsqueeze(1), scores.unsqueeze(2)  # [B, e, rival]
    beaten = (rival > own) | ((rival == own) & (index[None, None, :] < index[None, :, None]))
    kept = scores * (beaten.to(scores.dtype).sum(2) < k).to(scores.dtype)
    return with_at_most(kept / kept.sum(1, keepdim=True) if renormalise else kept, k)


@dataclass
class DenseBlock:
    """The dense forward of one described block. ``gates`` collects the gate of each call; ``forced`` overrides it.

    ``forced`` is BxE and replaces the gate that the block computes (at every pixel, where it is one per pixel), so that
    each expert can be compared on its own. ``form``: ``dense``, one expert after another; ``merged`` or ``gathered``.
    """

    name: str
    block: nn.Module
    description: MoEDescription
    forced: Tensor | None = None
    gates: list[Tensor] = field(default_factory=list)
    form: str = "dense"

    @property
    def experts(self) -> list[nn.Module]:
        found = self.description.experts
        if callable(found):
            return list(found(self.block))
        value: Any = self.block
        for part in found.split("."):
            value = getattr(value, part)
        return list(value.values()) if isinstance(value, (nn.ModuleDict, dict)) else list(value)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if named:
            inputs = (*inputs, *named.values())
        gate = self.description.gate(self.block, *inputs)
        experts = self.experts
        if not isinstance(gate, Tensor) or gate.dim() < 2 or gate.shape[1] != len(experts):
            given = tuple(gate.shape) if isinstance(gate, Tensor) else type(gate).__name__
            raise ExportError(
                f"block {self.name}: its gate is {given}; it must be Bx{len(experts)}, one weight per expert"
            )
        if self.forced is not None:
            forced = self.forced.to(gate.dtype)
            gate = forced.reshape(*forced.shape, *([1] * (gate.dim() - 2))).expand_as(gate)
        self.gates.append(gate)
        mixed = _SUMS[self.form](self, gate, inputs)
        return self.description.combine(self.block, mixed, gate, *inputs)

    def call(self, expert: nn.Module, *inputs: Any) -> Any:
        """One expert, as the description says."""
        return self.description.expert(self.block, expert, *inputs)


def _dense_sum(block: DenseBlock, gate: Tensor, inputs: Sequence[Any]) -> Any:
    """sum_e gate_e * expert_e(inputs), one after another. gate: BxE or BxExHxW."""
    mixed: Any = None
    for index, expert in enumerate(block.experts):
        out = block.call(expert, *inputs)
        weight = gate[:, index : index + 1]
        weight = weight.reshape(-1, *([1] * (out.dim() - 1))) if gate.dim() == 2 else weight
        mixed = weight * out if mixed is None else mixed + weight * out
    return mixed


_SUMS: dict[str, Callable[[DenseBlock, Tensor, Sequence[Any]], Any]] = {
    "dense": _dense_sum,
    "merged": merged_sum,
    "gathered": gathered_sum,
}


@contextlib.contextmanager
def as_form(model: nn.Module, router: str) -> Iterator[None]:
    """Inside, the described blocks of a model sum up as ``router`` says; branches are made of the dense sum later."""
    blocks = dense_blocks(model)
    for block in blocks:
        block.form = router if router in _SUMS else "dense"
    try:
        yield
    finally:
        for block in blocks:
            block.form = "dense"


def dense_blocks(model: nn.Module) -> list[DenseBlock]:
    """The dense forwards that DensifyRegistered has put into a model, in the order of ``named_modules``."""
    forwards = (m.__dict__.get("forward") for m in model.modules())
    return [f for f in forwards if isinstance(f, DenseBlock)]


class DensifyRegistered:
    """Give every described block (on a copy of the model) its dense forward; parameters keep their names."""

    name = "DensifyRegistered"

    def requires(self, model: nn.Module) -> None:
        if model.training:
            raise ExportError("the model is in training mode; call eval() first")

    def apply(self, model: nn.Module) -> PassResult[nn.Module]:
        names = [name for name, module in model.named_modules() if description_of(module) is not None]
        if not names:
            return PassResult(model, False, ("no block of the model is described as routed",))
        model = copied(model)
        for name in names:
            block = model.get_submodule(name)
            description = description_of(block)
            assert description is not None
            dense = DenseBlock(name, block, description)
            if not dense.experts:
                raise ExportError(f"block {name} ({type(block).__name__}): its description finds no experts")
            block.__dict__["forward"] = dense
        return PassResult(model, True, (f"{len(names)} described blocks now run every expert: {', '.join(names)}",))

    def ensures(self, model: nn.Module) -> None:
        pass
