"""DensifyExperts: every expert runs for every sample and the gate masks the sum, so that nothing depends on data.

Sparse dispatch picks experts by index; a tracer then writes only those that its sample happened to choose. The dense
form is static, takes any batch, and is the one that every runtime understands.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.errors import ExportError
from clusir.export.base import PassResult
from clusir.network.experts import Expert, SparseExperts

__all__ = ["DensifyExperts", "MergedExperts", "SeparateExperts"]


class SeparateExperts(nn.Module):
    """sum_e gate_e * Expert_e(u, s), expert by expert: the form that ``--router conditional`` puts into branches."""

    def __init__(self, sparse: SparseExperts) -> None:
        super().__init__()
        self.experts = sparse.experts

    def forward(self, u: Tensor, shared: Tensor, gate: Tensor) -> Tensor:
        """u, shared: BxCxHxW; gate: BxE. Returns BxCxHxW."""
        terms = [gate[:, index].reshape(-1, 1, 1, 1) * expert(u, shared) for index, expert in enumerate(self.experts)]
        return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]


def cannot_merge(sparse: SparseExperts) -> str:
    """Why a block's experts do not fit the merged form; empty where they do."""
    for index, expert in enumerate(sparse.experts):
        if type(expert) is not Expert:
            return f"expert {index} is a {type(expert).__name__}"
        for name in ("enter", "modulate", "body", "leave"):
            conv = getattr(expert, name)
            if type(conv) is not nn.Conv2d:
                return f"{name} of expert {index} is a {type(conv).__name__}"
            size = conv.kernel_size[0]
            plain = conv.stride == conv.dilation == (1, 1) and conv.kernel_size == (size, size) and size % 2 == 1
            padded = conv.padding == (size // 2, size // 2) and conv.padding_mode == "zeros"
            depthwise = conv.groups == conv.in_channels == conv.out_channels
            grouped = depthwise if name == "body" else conv.groups == 1 and size == 1
            if conv.bias is not None or not (plain and padded and grouped):
                return f"{name} of expert {index} has a bias, or is not the convolution that is merged"
            if any(conv._forward_hooks) or any(conv._forward_pre_hooks):
                return f"{name} of expert {index} has a hook"
    return ""


class MergedExperts(nn.Module):
    """The same sum with the experts' 1x1 convolutions merged into three.

    With h_e = DW_e(A_e u) * SiLU(B_e s):  sum_e g_e (u + W_e h_e) = (sum_e g_e) u + [W_1 .. W_E] [g_1 h_1; ..; g_E
    h_E]. Experts of one kernel share one depthwise convolution.
    """

    def __init__(self, sparse: SparseExperts) -> None:
        super().__init__()
        reason = cannot_merge(sparse)
        if reason:
            raise ExportError(f"the experts' convolutions cannot be merged: {reason}")
        experts = [e for e in sparse.experts if isinstance(e, Expert)]
        self.order = sorted(range(len(experts)), key=lambda i: experts[i].body.kernel_size)
        experts = [experts[i] for i in self.order]
        self.ranks = [e.body.out_channels for e in experts]
        self.enter = self._stack([e.enter for e in experts], dim=0)
        self.modulate = self._stack([e.modulate for e in experts], dim=0)
        self.leave = self._stack([e.leave for e in experts], dim=1)
        kernels = sorted({e.body.kernel_size[0] for e in experts})
        groups = [[e.body for e in experts if e.body.kernel_size[0] == kernel] for kernel in kernels]
        self.bodies = nn.ModuleList(self._depthwise(group) for group in groups)
        self.splits = [sum(c.out_channels for c in group) for group in groups]

    @staticmethod
    def _stack(convolutions: list[nn.Conv2d], dim: int) -> nn.Conv2d:
        weight = torch.cat([c.weight.detach() for c in convolutions], dim=dim)
        merged = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
        merged.weight = nn.Parameter(weight, requires_grad=False)
        return merged

    @staticmethod
    def _depthwise(convolutions: list[nn.Conv2d]) -> nn.Conv2d:
        weight = torch.cat([c.weight.detach() for c in convolutions])
        kernel = weight.shape[-1]
        merged = nn.Conv2d(len(weight), len(weight), kernel, padding=kernel // 2, groups=len(weight), bias=False)
        merged.weight = nn.Parameter(weight, requires_grad=False)
        return merged

    def forward(self, u: Tensor, shared: Tensor, gate: Tensor) -> Tensor:
        """u, shared: BxCxHxW; gate: BxE. Returns BxCxHxW."""
        parts = torch.split(self.enter(u), self.splits, dim=1)
        hidden = torch.cat([body(part) for body, part in zip(self.bodies, parts, strict=True)], dim=1)
        hidden = hidden * F.silu(self.modulate(shared))
        weight = torch.cat(
            [gate[:, index : index + 1].expand(-1, rank) for index, rank in zip(self.order, self.ranks, strict=True)],
            dim=1,
        )
        out: Tensor = gate.sum(1).reshape(-1, 1, 1, 1) * u + self.leave(hidden * weight[:, :, None, None])
        return out


class DensifyExperts:
    """Replace every SparseExperts of a network (on a copy) by dense evaluation.

    ``merged`` joins the experts' convolutions where they are this project's; otherwise, and where they have a bias or
    are of another class, each expert stays a subgraph of its own.
    """

    name = "DensifyExperts"

    def __init__(self, merged: bool = True) -> None:
        self.merged = merged

    def requires(self, model: nn.Module) -> None:
        if model.training:
            raise ExportError("the model is in training mode; call eval() first")

    def apply(self, model: nn.Module) -> PassResult[nn.Module]:
        model = copy.deepcopy(model)
        found = {name: module for name, module in model.named_modules() if isinstance(module, SparseExperts)}
        if not found:
            return PassResult(model, False, ("the model holds no sparse experts",))
        notes, merged = [], 0
        for name, sparse in found.items():
            parent, _, leaf = name.rpartition(".")
            reason = cannot_merge(sparse) if self.merged else ""
            if reason:
                notes.append(f"{name} runs expert by expert: {reason}")
            form = MergedExperts if self.merged and not reason else SeparateExperts
            merged += form is MergedExperts
            setattr(model.get_submodule(parent), leaf, form(sparse).eval())
        said = f"{len(found)} blocks of experts now run densely ({merged} of them merged)"
        return PassResult(model, True, (said, *notes))

    def ensures(self, model: nn.Module) -> None:
        left = [name for name, module in model.named_modules() if isinstance(module, SparseExperts)]
        if left:
            raise ExportError(f"sparse experts are left in {', '.join(left)}")
