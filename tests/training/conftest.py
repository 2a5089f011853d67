"""A small folder of photos, and one thread: the bits of a run do not hang on the machine's cores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_photos) -> Path:
    return write_photos(tmp_path_factory.mktemp("train"), 45, size=64)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
