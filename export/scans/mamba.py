"""A stand-in for ``mamba_ssm``, whose selective scan is a CUDA kernel: the same function on any device, traceable.

The package cannot be installed without a GPU's compiler, and networks import it at their top. Inside
:func:`mamba_importable` the import finds this where the package is not installed. The definition is that of A. Gu and
T. Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, arXiv 2312.00752.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clusir.errors import UnsupportedModelError
from clusir.export.lowering.scan import linear_scan
from clusir.export.subjects.importable import StandIn, importable

__all__ = ["NOTE", "mamba_importable", "selective_scan_fn"]

NOTE = "mamba_ssm is not installed; its selective scan is computed as the recurrence that it is published as"


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    """u, delta, z: BxDxL; A: DxN, real; B, C: DxN, BxNxL or BxGxNxL (G divides D); D, delta_bias: D. Returns BxDxL,
    and the last state, BxDxN, where it is asked for."""
    if any(t.is_complex() for t in (A, B, C)):
        raise UnsupportedModelError("a selective scan with complex A, B or C has no real form here; use a real one")
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    steps, entries = delta.permute(2, 0, 1), (delta * u).permute(2, 0, 1)  # LxBxD
    decay = torch.exp(steps.unsqueeze(-1) * A)
    entry = entries.unsqueeze(-1) * _over_channels(B, u.shape[1])
    states = linear_scan(decay, entry, torch.zeros_like(entry[0]))
    out = (states * _over_channels(C, u.shape[1])).sum(-1).permute(1, 2, 0)
    if D is not None:
        out = out + u * D[:, None]
    if z is not None:
        out = out * F.silu(z)
    return (out, states[-1]) if return_last_state else out


def _over_channels(matrix: Tensor, channels: int) -> Tensor:
    """DxN, BxNxL or BxGxNxL as something that broadcasts to LxBxDxN."""
    if matrix.dim() == 2:
        return matrix
    if matrix.dim() == 3:
        return matrix.permute(2, 0, 1).unsqueeze(2)
    groups = matrix.permute(3, 0, 1, 2)
    return groups if matrix.shape[1] == channels else groups.repeat_interleave(channels // matrix.shape[1], dim=2)


@contextlib.contextmanager
def mamba_importable() -> Iterator[StandIn]:
    """Inside, ``mamba_ssm.ops.selective_scan_interface`` can be imported; ``used`` says whether the stand-in was."""
    named = {"selective_scan_fn": selective_scan_fn, "selective_scan_ref": selective_scan_fn}
    with importable({"mamba_ssm": {}, "mamba_ssm.ops": {}, "mamba_ssm.ops.selective_scan_interface": named}) as used:
        yield used
