"""The exported graphs against PyTorch: sizes, batches, degradations, every expert, permissions, on both runtimes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from graphs_under_test import check_plain
from standin_bundle import Edit, spec_of

from clusir.cli.verify import main as verify_main
from clusir.degrade.recipe import FAMILY_NAMES
from clusir.errors import ValidationError
from clusir.export.experts.dense import DensifyExperts
from clusir.export.formats.extras import write_golden_cases, write_manifest
from clusir.export.pipeline import GraphRecord
from clusir.export.validate.files import ParityPlan, validate_files
from clusir.export.validate.parity import check_rows, parity_cases, permission_vectors, reference_outputs
from clusir.network import checkpoint
from clusir.network.model import ClusIR
from clusir.runtimes import Restorer, open_runner

Export = tuple[ClusIR, dict[str, GraphRecord]]
BACKENDS = ("ort", "openvino")
THREADS = 1  # each runtime's own would spin on the core of the next test process


def paths(records: dict[str, GraphRecord]) -> list[Path]:
    return [record.path for record in records.values()]


def test_static_graphs_agree_with_pytorch(static_export: Export) -> None:
    model, records = static_export
    rows = validate_files(model, paths(records), ParityPlan(threads=THREADS))
    check_rows(rows)
    assert {row.runner for row in rows} == {"ort:cpu", "openvino:cpu"}
    assert {row.size for row in rows} == {"64x64"}
    assert {row.batch for row in rows} == {1, 3}


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_expert_is_in_the_graph_and_right(static_export: Export, backend: str) -> None:
    """The tile graph takes the gates as an input, so each expert of each level can be forced."""
    model, records = static_export
    config = model.config
    case = next(iter(parity_cases(((64, 64),), (1,), ("noise",))))
    posterior = np.concatenate([np.full((1, n), 1 / n, np.float32) for n in config.clusters], axis=1)
    statistics = reference_outputs(model, {"image": case.image})["statistics"]
    results = []
    with open_runner(records["tile"].path, backend, "cpu", THREADS) as runner:
        for index in range(config.levels * config.experts):
            gate = np.eye(config.levels * config.experts, dtype=np.float32)[index : index + 1]
            feeds = {"image": case.image, "posterior": posterior, "gate": gate, "statistics": statistics}
            got = runner.run(feeds)["restored"]
            expected = reference_outputs(model, feeds, "tile")["restored"]
            assert np.abs(got - expected).max() <= 1e-4
            results.append(got)
    assert min(np.abs(a - b).max() for i, a in enumerate(results) for b in results[:i]) > 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_and_runs_agree(static_export: Export, backend: str) -> None:
    _, records = static_export
    cases = list(parity_cases(((64, 64),), (1,), ("noise", "haze", "jpeg")))
    batch = np.concatenate([case.image for case in cases])
    with open_runner(records["whole"].path, backend, "cpu", THREADS) as runner:
        together, again = runner.run({"image": batch}), runner.run({"image": batch})
        assert all(np.array_equal(together[name], again[name]) for name in together)
        for index, case in enumerate(cases):
            alone = runner.run({"image": case.image})
            for name in alone:
                np.testing.assert_allclose(alone[name][0], together[name][index], atol=2e-6)


def test_a_lost_expert_fails_validation(static_export: Export, tmp_path: Path) -> None:
    """The tile graph with the last column of its gate multiplied by zero: a file from which one expert is missing."""
    model, records = static_export
    graph = onnx.load(records["tile"].path)
    kept = np.ones((1, model.config.levels * model.config.experts), np.float32)
    kept[0, -1] = 0
    graph.graph.initializer.append(onnx.numpy_helper.from_array(kept, "kept"))
    for node in graph.graph.node:
        node.input[:] = ["gate_kept" if name == "gate" else name for name in node.input]
    graph.graph.node.insert(0, onnx.helper.make_node("Mul", ["gate", "kept"], ["gate_kept"]))
    onnx.save(graph, tmp_path / "model.tile.onnx")
    rows = validate_files(model, [tmp_path / "model.tile.onnx"], ParityPlan(backends=("ort",), threads=THREADS))
    with pytest.raises(ValidationError, match=r"model\.tile\.onnx on ort:cpu disagrees"):
        check_rows(rows)


def test_the_static_graphs_are_plain_onnx(static_export: Export) -> None:
    for record in static_export[1].values():
        check_plain(record.path)


@pytest.mark.parametrize("merged", [True, False])
def test_dense_equals_sparse(tiny: ClusIR, merged: bool) -> None:
    dense = DensifyExperts(merged).apply(tiny).model
    case = next(iter(parity_cases(((64, 96),), (3,), ("jpeg",))))
    with torch.inference_mode():
        image = torch.from_numpy(case.image)
        torch.testing.assert_close(dense(image).restored, tiny(image).restored, atol=2e-6, rtol=0)


def test_shipped_files_come_from_the_shipped_checkpoint() -> None:
    folder, digest = checkpoint.shipped().parent, checkpoint.sha256(checkpoint.shipped())
    for suffix in (".onnx", ".tile.onnx", ".router.onnx"):
        with open_runner(folder / f"tiny{suffix}", "ort", "cpu", THREADS) as runner:
            assert runner.spec.checkpoint_sha256 == digest, f"tiny{suffix} is stale: run make weights"


@pytest.mark.slow
def test_shipped_files_agree_with_pytorch() -> None:
    folder = checkpoint.shipped().parent
    files = [folder / f"tiny{suffix}" for suffix in (".onnx", ".tile.onnx", ".router.onnx")]
    network, alone = checkpoint.load(checkpoint.shipped()), ParityPlan(threads=THREADS, batches=(1,))
    check_rows(validate_files(network, files, alone))
    # Every kind in a batch is compared on the small tiles of ``static_export``, on both runtimes.
    check_rows(validate_files(network, files[:1], replace(alone, batches=(3,), backends=("ort",)), kinds=("noise",)))


def seal(folder: Path) -> None:
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"]
    write_manifest(folder, spec_of(folder / "model.onnx"), sorted(names))


@pytest.mark.slow
def test_a_bundle_of_our_own_passes_and_a_spoilt_one_does_not(
    static_export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, records = static_export
    for record in records.values():
        shutil.copy(record.path, tmp_path / record.path.name)
    write_golden_cases(network, tmp_path, spec_of(tmp_path / "model.onnx"))
    seal(tmp_path)
    monkeypatch.setattr(checkpoint, "random_model", lambda *_, **__: network)
    arguments = ["--checkpoint", "random:tiny", "--backend", "ort", "--batches", "1"]
    done = CliRunner().invoke(verify_main, [str(tmp_path), *arguments])
    assert done.exit_code == 0, done.output + done.stderr
    good = tmp_path / "model.router.onnx"
    same = CliRunner().invoke(
        verify_main, ["--bisect", str(good), str(records["router"].path), "--out", str(tmp_path / "out")]
    )
    assert (same.exit_code, "No tensor is over the tolerance" in same.stdout) == (0, True)
    Edit(good).output("posterior", "Mul", 0.1)
    seal(tmp_path)
    done = CliRunner().invoke(verify_main, [str(tmp_path), *arguments])
    assert done.exit_code == 4
    assert "model.router.onnx on ort:cpu disagrees" in done.stderr
    assert "output posterior" in done.stderr


def test_files_say_what_they_can_be_told(static_export: Export) -> None:
    model, records = static_export
    assert model.evidence is not None
    for record in records.values():
        with open_runner(record.path, "ort") as runner:
            assert runner.spec.families == FAMILY_NAMES
            assert runner.spec.evidence_thresholds == pytest.approx(model.evidence.thresholds.tolist())
            assert runner.spec.evidence_floors == pytest.approx(model.evidence.floors.tolist())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_router_obeys_as_in_pytorch(static_export: Export, backend: str) -> None:
    model, records = static_export
    image = np.random.default_rng(0).random((3, 3, 64, 64), np.float32)
    with open_runner(records["router"].path, backend) as router:
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


def test_six_batches_tell_a_router_every_kind_of_permission(static_export: Export) -> None:
    with open_runner(static_export[1]["router"].path, "ort") as router:
        vectors = permission_vectors(router.spec)
    told = np.concatenate([vectors({})["permissions"] for _ in range(6)])
    for low, high in ((-2, -2), (-2, -1), (-1, -1), (-1, 0), (0, 0), (0, 1), (1, 1)):
        inside = (told == low) if low == high else (told > low) & (told < high)
        assert inside.any(), (low, high)


def test_a_whole_graph_mends_what_it_may_unasked(static_export: Export) -> None:
    model, records = static_export
    image = np.random.default_rng(1).random((2, 3, 64, 64), np.float32)
    with open_runner(records["whole"].path, "ort") as whole:
        found = whole.run({"image": image})
    told = torch.tensor([[1.0, 1, 1, 1, 1, 0]]).expand(2, -1)  # evidence lies between 0.01 and 0.99
    with torch.no_grad():
        expected = model(torch.from_numpy(image), permissions=told)
    assert np.abs(found["restored"] - expected.restored.numpy()).max() < 2e-5
    assert expected.evidence is not None
    assert np.abs(found["evidence"] - expected.evidence.numpy()).max() < 2e-5


def test_all_is_what_there_is_a_trace_of(static_export: Export) -> None:
    picture = np.random.default_rng(3).integers(0, 256, (70, 90, 3), np.uint8)
    steered = {}
    for fix in ("all", "noise,jpeg,rain,haze,low-light", "auto"):  # blur is under its floor
        with Restorer(static_export[1]["whole"].path, fix=fix) as restorer:
            steered[fix] = restorer.restore(picture)
    np.testing.assert_array_equal(steered["all"], steered["noise,jpeg,rain,haze,low-light"])
    assert (steered["all"] != steered["auto"]).any()


def test_one_tile_and_many_obey_the_same_and_so_does_a_checkpoint(static_export: Export, tmp_path: Path) -> None:
    model, files = static_export[0], static_export[1]["whole"].path
    picture = np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)
    checkpoint.save(model, tmp_path / "model.safetensors")
    with Restorer(files) as alone, Restorer(files, fix="noise,jpeg,blur,rain,haze") as told:
        assert np.abs(alone.restore(picture).astype(int) - told.restore(picture)).max() <= 1
    with Restorer(files, fix="noise", strength="noise=0.5") as onnx:
        wide = onnx.restore(np.concatenate([picture, picture], axis=1))
    with Restorer(tmp_path / "model.safetensors", "torch", fix="noise", strength="noise=0.5") as reference:
        assert reference.spec.families == FAMILY_NAMES
        small = reference.restore(picture)
    assert wide.shape == (64, 128, 3)
    assert small.shape == (64, 64, 3)
