"""Routed blocks of published architectures, described once for everybody who brings weights of one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from clusir.export.experts.registry import MoEDescription, top_k_gate

__all__ = ["PUBLISHED"]


def _seemore_gate(block: Any, picture: Tensor, key: Tensor) -> Tensor:
    return top_k_gate(block.gate(picture).softmax(1), block.num_expert)


# By the names that spandrel gives their classes; what a user describes goes first.
PUBLISHED = {
    "spandrel.architectures.SeemoRe.__arch.seemore_arch.MoELayer": MoEDescription(
        experts="experts",
        gate=_seemore_gate,
        expert=lambda block, expert, picture, key: expert(picture, key),
        combine=lambda block, mixed, gate, picture, key: picture + mixed,
    ),
}
