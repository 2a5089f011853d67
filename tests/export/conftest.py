"""Exports shared by the tests of this folder: made once a session, small tiles, untrained weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import routed_model

from clusir.calibration.sources import SyntheticSource, open_source
from clusir.checkpoint import random_model
from clusir.export.pipeline import ExportConfig, GraphRecord, write_graphs
from clusir.model import CONFIGS, ClusIR

Export = tuple[ClusIR, dict[str, GraphRecord]]


def write(folder: Path, model: ClusIR, config: ExportConfig) -> dict[str, GraphRecord]:
    return {record.graph: record for record in write_graphs(model, folder, "model", config)}


@pytest.fixture(scope="session")
def tiny() -> ClusIR:
    return random_model(CONFIGS["tiny"])


@pytest.fixture(scope="session")
def static_export(tiny: ClusIR, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The three graphs of an untrained ``tiny`` on static tiles of 64 px."""
    folder = tmp_path_factory.mktemp("static")
    return tiny, write(folder, tiny, ExportConfig(tile_px=64, halo_px=8))


@pytest.fixture(scope="session")
def dynamic_export(tiny: ClusIR, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The whole and the tile graph of the same weights at dynamic size."""
    folder = tmp_path_factory.mktemp("dynamic")
    return tiny, write(folder, tiny, ExportConfig(dynamic=True, graphs=("whole", "tile")))


@pytest.fixture(scope="session")
def routed(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> routed_model.Routed:
    """The routed restorer of ``routed_model``, with a source of crops and a balanced draw."""
    folder = tmp_path_factory.mktemp("routed")
    routed_model.write_routed(folder)
    photos = write_photos(folder / "photos", 4, size=56)
    source = open_source(photos, routed_model.SIZE)
    assert isinstance(source, SyntheticSource)
    return routed_model.Routed(folder, source, photos)
