"""Permissions in exported files: the router under every kind of vector, and the way of a picture through it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs_under_test import shallow

from clusir.degrade.recipe import FAMILY_NAMES
from clusir.export.pipeline import ExportConfig, write_graphs
from clusir.export.validate.parity import permission_vectors, reference_outputs
from clusir.network import checkpoint
from clusir.network.model import CONFIGS, ClusIR
from clusir.runtimes.restore.restorer import Restorer
from clusir.runtimes.runners.opening import open_runner

THRESHOLDS = (0.0, 0.0, 0.0, 0.0, 0.01, 0.99)
FLOORS = (0.0, 0.0, 0.99, 0.0, 0.0, 0.01)


@pytest.fixture(scope="module")
def model() -> ClusIR:
    small = replace(shallow(CONFIGS["tiny"]), permissions=True, widths=(8, 16))
    made = checkpoint.random_model(small)
    assert made.evidence is not None
    made.evidence.thresholds.copy_(torch.tensor(THRESHOLDS))
    made.evidence.floors.copy_(torch.tensor(FLOORS))
    return made


@pytest.fixture(scope="module")
def files(model: ClusIR, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("permissions")
    write_graphs(model, folder, "model", ExportConfig(name="told", tile_px=48, halo_px=4))
    return folder / "model.onnx"


def test_files_say_what_they_can_be_told(files: Path) -> None:
    for part in ("", ".tile", ".router"):
        with open_runner(files.with_name(f"model{part}.onnx"), "ort") as runner:
            assert runner.spec.families == FAMILY_NAMES
            assert runner.spec.evidence_thresholds == pytest.approx(THRESHOLDS)
            assert runner.spec.evidence_floors == pytest.approx(FLOORS)


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_the_router_obeys_as_in_pytorch(model: ClusIR, files: Path, backend: str) -> None:
    pytest.importorskip("onnxruntime" if backend == "ort" else backend)
    image = np.random.default_rng(0).random((3, 3, 48, 48), np.float32)
    with open_runner(files.with_name("model.router.onnx"), backend) as router:
        vectors = permission_vectors(router.spec)
        seen = []
        for _ in range(6):
            feeds = {"image": image} | vectors({"image": image})
            found, expected = router.run(feeds), reference_outputs(model, feeds, "router")
            assert set(found) == {"posterior", "expert_probability", "statistics", "evidence"}
            for name, values in found.items():
                assert np.abs(values - expected[name]).max() <= 2e-5, (name, feeds["permissions"])
            seen.append(found["statistics"])
        assert all(np.abs(seen[0] - other).max() > 1e-4 for other in seen[1:])


def test_six_batches_tell_a_router_every_kind_of_permission(files: Path) -> None:
    with open_runner(files.with_name("model.router.onnx"), "ort") as router:
        vectors = permission_vectors(router.spec)
    told = np.concatenate([vectors({})["permissions"] for _ in range(6)])
    for low, high in ((-2, -2), (-2, -1), (-1, -1), (-1, 0), (0, 0), (0, 1), (1, 1)):
        inside = (told == low) if low == high else (told > low) & (told < high)
        assert inside.any(), (low, high)


def test_a_whole_graph_mends_what_it_may_unasked(model: ClusIR, files: Path) -> None:
    image = np.random.default_rng(1).random((2, 3, 48, 48), np.float32)
    with open_runner(files, "ort") as whole:
        found = whole.run({"image": image})
    told = torch.tensor([[1.0, 1, 1, 1, 1, 0]]).expand(2, -1)  # evidence lies between 0.01 and 0.99
    with torch.no_grad():
        expected = model(torch.from_numpy(image), permissions=told)
    assert np.abs(found["restored"] - expected.restored.numpy()).max() < 2e-5
    assert expected.evidence is not None
    assert np.abs(found["evidence"] - expected.evidence.numpy()).max() < 2e-5


def test_all_is_what_there_is_a_trace_of(files: Path) -> None:
    picture = np.random.default_rng(3).integers(0, 256, (70, 90, 3), np.uint8)
    steered = {}
    for fix in ("all", "noise,jpeg,rain,haze,low-light", "auto"):  # blur is under its floor
        with Restorer(files, fix=fix) as restorer:
            steered[fix] = restorer.restore(picture)
    np.testing.assert_array_equal(steered["all"], steered["noise,jpeg,rain,haze,low-light"])
    assert (steered["all"] != steered["auto"]).any()


def test_one_tile_and_many_obey_the_same_and_so_does_a_checkpoint(model: ClusIR, files: Path, tmp_path: Path) -> None:
    picture = np.random.default_rng(2).integers(0, 256, (48, 48, 3), np.uint8)
    checkpoint.save(model, tmp_path / "model.safetensors")
    with Restorer(files) as alone, Restorer(files, fix="noise,jpeg,blur,rain,haze") as told:
        assert np.abs(alone.restore(picture).astype(int) - told.restore(picture)).max() <= 1
    with Restorer(files, fix="noise", strength="noise=0.5") as onnx:
        wide = onnx.restore(np.concatenate([picture, picture], axis=1))
    with Restorer(tmp_path / "model.safetensors", "torch", fix="noise", strength="noise=0.5") as reference:
        assert reference.spec.families == FAMILY_NAMES
        small = reference.restore(picture)
    assert wide.shape == (48, 96, 3)
    assert small.shape == (48, 48, 3)
