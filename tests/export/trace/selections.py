"""Functions of a picture that choose by distance, by order or by masks, for the tests of operators."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SELECTIONS"]


def distances(f: Tensor) -> Tensor:
    """Between channels, of which torch takes the differences themselves up to 25, by every norm it knows."""
    rows, others = f.flatten(2), torch.cat([f, f.flip(1), f * f], 1).flatten(2)
    orders = (0.0, 1.0, 2.0, 3.0, float("inf"))
    near = [torch.cdist(rows, others, p=p) / (f.shape[-1] * f.shape[-2]) ** (1 / p if p else 1) for p in orders]
    return f + torch.cat(near, 2).mean(2)[..., None, None]


def nearest_rows(f: Tensor) -> Tensor:
    """The nearer half of the channels of each picture, picked by a mask that a loop makes, as Wave-Mamba does."""
    rows = torch.cat([f, f * f.mean((2, 3), keepdim=True)], 1).flatten(2)
    nearest = torch.cdist(rows, rows.flip(1) * 0.5).topk(1, largest=False)
    places = nearest.values.squeeze(-1).sort(1).indices.sort(1).indices
    mask = torch.stack([torch.where(places[i] < 3, True, False) for i in range(f.shape[0])])
    chosen = nearest.indices.squeeze(-1).masked_select(mask).reshape(f.shape[0], 3)
    return rows.gather(1, chosen[..., None].expand(-1, -1, rows.shape[2])).view(f.shape)


def masks_of_masks(f: Tensor) -> Tensor:
    """``where`` among masks, which ONNX Runtime has no kernel for."""
    bright, dark = f > 0.5, f < -0.5
    return torch.where(torch.where(f.mean(1, keepdim=True) > 0, bright, dark), f, 0.1 * f)


SELECTIONS = (distances, nearest_rows, masks_of_masks)
