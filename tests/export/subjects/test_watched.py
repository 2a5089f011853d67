"""What a picture is found to depend on: reads of pixels are told from reads of the network's own numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clusir.export.subjects.unused import watch


class Spare(nn.Module):
    """Has a layer whose answer is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.level = nn.Parameter(torch.full([1], 0.2))
        self.register_buffer("count", torch.tensor(2))

    def forward(self, x: Tensor) -> Tensor:
        self.spare(x)
        return self.used(x) * self.level


class ReadsItsOwnNumbers(Spare):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.level.item() / int(self.count)


class ReadsConstants(Spare):
    """As torchvision's normalize does: the deviation must not be 0."""

    def forward(self, x: Tensor) -> Tensor:
        deviation = torch.as_tensor([0.5, 0.5, 0.5], dtype=x.dtype)
        if (deviation == 0).any() or bool((self.level * 2 > 9).all()):
            raise ValueError("a deviation of 0")
        return super().forward(x / deviation.view(-1, 1, 1))


class PicksByMasks(Spare):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        bright = torch.zeros_like(y)
        bright[y > 0] = y[y > 0]
        return bright + y


class Routes(Spare):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if bool(x.mean() > 2) else x * self.level


class RoutesByAWrittenTable(Spare):
    def forward(self, x: Tensor) -> Tensor:
        table = torch.zeros(2)
        table[0] = x.mean()
        table.mul_(2.0)
        return super().forward(x) if table.max() > 4 else x * self.level


def test_a_spare_layer_is_told_from_one_that_another_picture_may_need() -> None:
    picture = torch.rand(1, 3, 8, 8)
    for kind in (Spare, ReadsItsOwnNumbers, ReadsConstants, PicksByMasks):
        watched = watch(kind().eval(), picture)
        assert not watched.read, kind
        assert watched.unreached == {"spare.weight", "spare.bias"}, kind
    for kind, line in ((Routes, "bool(x.mean() > 2)"), (RoutesByAWrittenTable, "table.max() > 4")):
        routed = watch(kind().eval(), picture)
        assert line in routed.read, kind
        assert "used.weight" in routed.unreached, kind


class DropsAlways(nn.Module):
    """Dropout that is also drawn in eval mode, beside one that is not."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always, self.drop = always, nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        half = nn.functional.dropout(torch.full_like(x, 0.5), training=self.always)
        return self.drop(x) * half


def test_dropout_in_eval_mode_draws() -> None:
    picture = torch.rand(1, 3, 16, 16)
    assert "dropout(torch.full_like" in watch(DropsAlways(True).eval(), picture).drew
    assert not watch(DropsAlways(False).eval(), picture).drew
