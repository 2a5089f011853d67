"""What a network's code keeps outside itself is put back before each run, wherever it keeps it."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from clusir.export.subjects.fresh import Fresh


class Calls:
    """A cache of its own making."""

    def __init__(self) -> None:
        self.forgotten = 0

    def cache_clear(self) -> None:
        self.forgotten += 1


def _module(name: str, folder: Path, patch: pytest.MonkeyPatch, **names: object) -> ModuleType:
    """A loaded module of the user's, with these names."""
    made = ModuleType(name)
    made.__file__ = str(folder / f"{name}.py")
    vars(made).update(names)
    patch.setitem(sys.modules, name, made)
    return made


@pytest.mark.parametrize("times", [1, 2, 3])
def test_names_and_containers_are_put_back_each_time(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"size": 8}
    one = _module("their_one", tmp_path, monkeypatch, window=None, grid=[1, 2], sizes=shared, helper=len)
    two = _module("their_two", tmp_path, monkeypatch, sizes=shared, masks=[np.zeros(3)])
    fresh = Fresh(nn.Identity())
    mask = two.masks[0]
    for _ in range(times):
        one.window, one.helper, one.late = torch.ones(2), max, 5
        del two.sizes
        one.grid.append(3)
        shared["size"] = 16
        two.masks[0] = np.ones(3)
        fresh.restore()
        assert (one.window, one.helper, one.grid) == (None, len, [1, 2])
        assert not hasattr(one, "late")
        assert one.sizes is shared
        assert shared == {"size": 8}
        assert two.masks[0] is mask


def test_a_name_that_takes_anothers_place_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many names, with the same values in the same order."""
    one = _module("their_one", tmp_path, monkeypatch, first=1, last=2)
    fresh = Fresh(nn.Identity())
    del one.last
    one.other = 2
    fresh.restore()
    assert not hasattr(one, "other")


def test_whatever_caches_is_told_to_forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrapped(size: int) -> int:
        return size

    told: list[int] = []
    wrapped.cache_clear = lambda: told.append(1)  # type: ignore[attr-defined]
    cached, calls = functools.lru_cache(lambda size: [size]), Calls()
    cached(8)
    _module("their_one", tmp_path, monkeypatch, cached=cached, wrapped=wrapped, calls=calls, kind=Calls)
    fresh = Fresh(nn.Identity())
    fresh.restore()
    assert (cached.cache_info().currsize, told, calls.forgotten) == (0, [1], 1)


def test_a_module_without_a_say_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of theirs is run by looking at their names."""

    class Eager:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"asked for {name}")

    one = _module("their_one", tmp_path, monkeypatch, eager=Eager())
    Fresh(nn.Identity()).restore()
    assert isinstance(one.eager, Eager)
