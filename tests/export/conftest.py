"""Exports shared by the tests of this folder: made once a session, small tiles, untrained weights."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import routed_model
import torch
from graphs_under_test import shallow

from clusir.calibration.sources import SyntheticSource, open_source
from clusir.export.pipeline import ExportConfig, GraphRecord, write_graphs
from clusir.export.subjects.sizes import largest_length
from clusir.network.checkpoint import random_model
from clusir.network.model import CONFIGS, ClusIR
from clusir.runtimes import open_runner

Export = tuple[ClusIR, dict[str, GraphRecord]]
Takes = Callable[[int, int], bool]


def write(folder: Path, model: ClusIR, config: ExportConfig) -> dict[str, GraphRecord]:
    return {record.graph: record for record in write_graphs(model, folder, "model", config)}


@pytest.fixture(scope="session")
def tiny() -> ClusIR:
    return random_model(CONFIGS["tiny"])


@pytest.fixture(scope="session")
def few_levels() -> ClusIR:
    """Two levels of an untrained ``tiny``, all with CLUSIR_FULL."""
    return random_model(CONFIGS["tiny"] if "CLUSIR_FULL" in os.environ else shallow(CONFIGS["tiny"]))


@pytest.fixture(scope="session")
def static_export(few_levels: ClusIR, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The three graphs on static tiles of 64 px, of a network that can be told what to mend."""
    folder, model = tmp_path_factory.mktemp("static"), random_model(replace(few_levels.config, permissions=True))
    assert model.evidence is not None
    model.evidence.thresholds.copy_(torch.tensor((0.0, 0.0, 0.0, 0.0, 0.01, 0.99)))
    model.evidence.floors.copy_(torch.tensor((0.0, 0.0, 0.99, 0.0, 0.0, 0.01)))
    return model, write(folder, model, ExportConfig(tile_px=64, halo_px=8))


@pytest.fixture(scope="session")
def routed(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> routed_model.Routed:
    """The routed restorer of ``routed_model``, with a source of crops and a balanced draw."""
    folder = tmp_path_factory.mktemp("routed")
    routed_model.write_routed(folder)
    photos = write_photos(folder / "photos", 4, size=56)
    source = open_source(photos, routed_model.SIZE)
    assert isinstance(source, SyntheticSource)
    return routed_model.Routed(folder, source, photos)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation of brought models with one thread a runtime: more would spin on the core of the next test process."""
    monkeypatch.setattr("clusir.export.validate.foreign.open_runner", functools.partial(open_runner, threads=1))


@pytest.fixture
def small_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """How far a pixel looks, what tiles cost and whether sizes end are measured on small pictures, for tests that ask
    for none of these: each export would run a dozen pictures of 320 px, a photo of two tiles of 256 px or more, and
    strips of 8,192 pixels. They fit into memory, however much others hold of it."""
    monkeypatch.setattr("clusir.export.validate.memory.Memory.spare", lambda _: 1 << 40)
    monkeypatch.setattr("clusir.export.tiled._REACH_PX", 96)

    def on_small(
        takes: Callable[[int, int], bool], multiple: int, minimum: int, longest: int, square: int
    ) -> int | None:
        small = max(minimum, 128 // multiple * multiple)
        return largest_length(takes, multiple, minimum, min(longest, small), min(square, small))

    monkeypatch.setattr("clusir.export.trace.sizes.largest_length", on_small)
    monkeypatch.setattr("clusir.export.subjects.tiles._TILE_PX", 64)
    for owner in ("subjects.tiles", "tiled"):
        monkeypatch.setattr(f"clusir.export.{owner}.WHOLE_TILES_PX", (96,))
    monkeypatch.setattr("clusir.export.subjects.tiles._WHOLE_HALO_PX", 16)
