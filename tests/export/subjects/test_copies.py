"""A copy of a network has its own hooks, and may be made of one whose layers keep weights that autograd made."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clusir.export.subjects.copies import copied
from clusir.export.subjects.fresh import Fresh


class Hooked(nn.Module):
    """A hook and an activation that know the network by its name, another that keeps maps in a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.seen: list[Tensor] = []
        maps: list[Tensor] = []
        lock = threading.Lock()
        self.act = lambda x: self.gain * x if lock is not None else x

        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.seen.append(output)
            maps.append(output)

        self.mix.register_forward_hook(keep)
        self.maps = lambda: maps

    def forward(self, x: Tensor) -> Tensor:
        self.seen.clear()
        y = self.last(self.act(self.mix(x)))
        return y + self.seen[-1] + self.maps().pop()


def test_functions_of_a_copy_know_the_copy() -> None:
    model = Hooked().eval()
    made = Fresh(model).make()
    assert isinstance(made, Hooked)
    image = torch.rand(1, 3, 4, 4)
    want = copied(model)(image)
    torch.testing.assert_close(made(image), want)
    assert not model.seen
    assert not model.maps()
    assert made.gain is model.gain
    own = copied(model)
    own.gain.data.fill_(3.0)
    assert float(model.gain) == 0.5
    assert not torch.allclose(own(image), want)


@pytest.mark.filterwarnings("ignore")
def test_layers_under_weight_norm_are_copied() -> None:
    model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 3, 1)), nn.utils.spectral_norm(nn.Conv2d(3, 3, 1))).eval()
    model(torch.rand(1, 3, 4, 4))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    image = torch.rand(2, 3, 5, 5)
    torch.testing.assert_close(Fresh(model).make()(image), model(image))


class Kept:
    """An object beside the layers that keeps what a hook gave it, as feature extractors do."""

    features: Tensor

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.features = output


class Extracting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.kept = nn.Conv2d(3, 3, 1), Kept()
        self.mix.register_forward_hook(self.kept)
        self.mix(torch.rand(1, 3, 4, 4))  # asks its layers for their sizes

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) + self.kept.features


def test_what_an_object_of_theirs_kept_is_copied() -> None:
    model = Extracting().eval()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    made, image = copied(model), torch.rand(1, 3, 4, 4)
    before = model.kept.features
    torch.testing.assert_close(made(image), 2 * made.mix(image))
    assert model.kept.features is before
    assert made.kept.features is not before


class Pool:
    """An object of a user's that holds what cannot be copied."""

    def __init__(self) -> None:
        self.lock, self.rows = threading.Lock(), (row for row in range(3))
        self.gains = [0.5]


class Singular(nn.Conv2d):
    """A layer with a lock and a running generator, and with a ``__setstate__`` that was pasted from another class."""

    def __init__(self) -> None:
        super().__init__(3, 3, 1)
        self.pool, self.name = Pool(), "singular"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super(Hooked, self).__setstate__(state)


def test_what_cannot_be_copied_is_shared() -> None:
    model = nn.Sequential(Singular(), Singular())
    made = copied(model, {id(p): p for p in model.parameters()})
    first, second = model[0], made[0]
    assert isinstance(first, Singular)
    assert isinstance(second, Singular)
    assert second is not first
    assert second.pool is not first.pool
    assert second.pool.lock is first.pool.lock
    assert second.pool.gains == [0.5]
    assert second.pool.gains is not first.pool.gains
    assert second.weight is first.weight
    image = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(made(image), model(image))
    assert "__setstate__" in vars(Singular)
    with pytest.raises(TypeError):
        copy.deepcopy(first)
