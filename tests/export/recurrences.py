"""Recurrences along the pixels as research code writes them: Python loops over a map BxCxHxW, back to one like it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Every one takes the decays and the entries, BxCxHxW in 0..1 and about 0, and walks over all their pixels.


def tokens(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a.flatten(2), b.flatten(2)


def reference_scan(a: Tensor, b: Tensor) -> Tensor:
    """As the reference of selective scans has it: an einsum a turn, the last state kept."""
    step, u = tokens(a, b)
    rates = -torch.linspace(0.5, 2.0, 4)
    enter, leave = u[:, :1] * torch.ones(4, 1), torch.tanh(u[:, :1] + torch.arange(4.0)[:, None])
    decay = torch.exp(torch.einsum("bdl,n->bdln", step, rates))
    entry = torch.einsum("bdl,bnl,bdl->bdln", step, enter, u)
    x, ys, last = a.new_zeros((u.shape[0], u.shape[1], 4)), [], None
    for i in range(u.shape[2]):
        x = decay[:, :, i] * x + entry[:, :, i]
        y = torch.einsum("bdn,bn->bd", x, leave[:, :, i])
        if i == u.shape[2] - 1:
            last = x
        ys.append(y)
    return torch.stack(ys, dim=2).view(b.shape) + last.mean(2)[:, :, None, None]


def rows_first(a: Tensor, b: Tensor) -> Tensor:
    decay, entry = (t.transpose(1, 2) for t in tokens(a, b))
    h, ys = torch.zeros_like(entry[:, 0]), []
    for t in range(entry.size(1)):
        h = h * decay[:, t] + entry[:, t]
        ys.append((h * torch.sigmoid(entry[:, t])).unsqueeze(1))
    return torch.cat(ys, 1).transpose(1, 2).reshape(b.shape) + h[:, :, None, None]


def parts_side_by_side(a: Tensor, b: Tensor) -> Tensor:
    decay, entry = tokens(a, b)
    h, ys = 0.0, []
    for p, q in zip(decay.unbind(-1), entry.unbind(-1), strict=True):
        h = torch.addcmul(q, p, h) if isinstance(h, Tensor) else p * h + q
        ys += [F.gelu(h)]
    return torch.stack(ys, -1).view(b.shape)


def counted(a: Tensor, b: Tensor) -> Tensor:
    decay, entry = tokens(a, b)
    state, out = entry.new_ones(entry.shape[:2]), torch.zeros_like(entry)
    for i, x in enumerate(entry.permute(2, 0, 1)):
        state = state + (x - state) * (1 - decay[..., i])
        out[:, :, i] = state / (i + 1) ** 0.5
    return out.view(b.shape)


def backwards(a: Tensor, b: Tensor) -> Tensor:
    decay, entry = tokens(a, b)
    h, ys = torch.zeros(entry.shape[:2]), []
    for t in reversed(range(entry.shape[-1])):
        h = torch.lerp(entry[:, :, t], h, 0.9) * decay[:, :, t]
        ys.insert(0, h)
    back, down = torch.zeros(entry.shape[:2]), torch.empty_like(entry)
    for t in range(entry.shape[-1] - 1, -1, -1):
        back = 0.8 * back - entry[:, :, t]
        down[:, :, t] = back
    return (torch.stack(ys, 2) + down).view(b.shape)


def two_states(a: Tensor, b: Tensor) -> Tensor:
    """The second is fed by the first, the third only waits a turn."""
    decay, entry = tokens(a, b)
    h = s = torch.zeros_like(entry[:, :, 0])
    before, ys = entry[:, :, -1], []
    for t in range(entry.shape[2]):
        h = decay[:, :, t] * h + entry[:, :, t]
        s = 0.9 * s + torch.tanh(h)
        ys.append(s * before)
        before = entry[:, :, t]
    return torch.stack(ys, 2).view(b.shape)


def first_and_last(a: Tensor, b: Tensor) -> Tensor:
    decay, entry = tokens(a, b)
    ys, h = [], None
    for t in range(entry.shape[2]):
        h = entry[:, :, 0] if t == 0 else decay[:, :, t] * h + entry[:, :, t]
        ys.append(h if t < entry.shape[2] - 1 else -h)
    return torch.stack(ys, 2).view(b.shape)


def begins_with_none(a: Tensor, b: Tensor) -> Tensor:
    decay, entry = tokens(a, b)
    h, ys = None, []
    for t in range(entry.shape[2]):
        h = entry[:, :, t] if h is None else decay[:, :, t] * h + entry[:, :, t]
        ys.append(h)
    return torch.stack(ys, 2).view(b.shape)


def one_at_a_time(a: Tensor, b: Tensor) -> Tensor:
    """Slices of one token; a difference to the token before; the loop starts at the second."""
    decay, entry = tokens(a, b)
    h = entry[:, :, 0:1]
    ys = [h]
    for t in range(1, entry.shape[2]):
        change = entry[:, :, t : t + 1] - entry[:, :, t - 1 : t]
        h = h * decay[:, :, t : t + 1] + change
        ys.append(h)
    return torch.cat(ys, dim=2).view(b.shape)


def outer_products(a: Tensor, b: Tensor) -> Tensor:
    """Linear attention with a decay: the state is a matrix, read by a product."""
    decay, entry = tokens(a, b)
    state, ys = torch.zeros(entry.shape[0], entry.shape[1], 2), []
    for t in range(entry.shape[2]):
        key = torch.stack([entry[:, 0, t], decay[:, 1, t]], -1)
        state = state * decay[:, :, t, None] + entry[:, :, t].unsqueeze(-1) @ key.unsqueeze(-2)
        ys.append((state @ key.softmax(-1).unsqueeze(-1)).squeeze(-1))
    return torch.stack(ys, dim=-1).reshape(b.shape)


def along_rows(a: Tensor, b: Tensor) -> Tensor:
    """Row by row, all columns at once; no state in the second loop."""
    h, rows = torch.zeros_like(b[:, :, 0]), []
    for y in range(b.shape[2]):
        h = a[:, :, y] * h + b[:, :, y]
        rows.append(h)
    there = torch.stack(rows, 2)
    return torch.stack([F.softmax(there[..., x], dim=1) for x in range(b.shape[3])], dim=3)


RECURRENCES = (
    reference_scan,
    rows_first,
    parts_side_by_side,
    counted,
    backwards,
    two_states,
    first_and_last,
    begins_with_none,
    one_at_a_time,
    outer_products,
    along_rows,
)


# -- what is no linear recurrence --------------------------------------------------------------------------------------


def squashed(a: Tensor, b: Tensor) -> Tensor:
    decay, entry = tokens(a, b)
    h, ys = torch.zeros_like(entry[:, :, 0]), []
    for t in range(entry.shape[2]):
        h = torch.tanh(decay[:, :, t] * h + entry[:, :, t])
        ys.append(h)
    return torch.stack(ys, 2).view(b.shape)


def mixed(a: Tensor, b: Tensor) -> Tensor:
    _, entry = tokens(a, b)
    h, ys = torch.zeros_like(entry[:, :, 0]), []
    for t in range(entry.shape[2]):
        h = h @ torch.full((b.shape[1], b.shape[1]), 0.2) + entry[:, :, t]
        ys.append(h)
    return torch.stack(ys, 2).view(b.shape)


def through_memory(a: Tensor, b: Tensor) -> Tensor:
    decay, entry = tokens(a, b)
    out = entry.clone()
    for t in range(1, entry.shape[2]):
        out[:, :, t] = out[:, :, t - 1] * decay[:, :, t] + entry[:, :, t]
    return out.view(b.shape)


def by_parity(a: Tensor, b: Tensor) -> Tensor:
    _, entry = tokens(a, b)
    h = torch.zeros_like(entry[:, :, 0])
    for t in range(entry.shape[2]):
        h = 0.5 * h + (entry[:, :, t] if t % 2 else 0.0)
    return b + h[:, :, None, None]


REFUSED = {
    squashed: "h is not its last value times something plus something",
    mixed: "h is not its last value times something plus something",
    through_memory: "it reads what it has written itself",
    by_parity: "what a turn does depends on its number",
}
