"""The exported graphs against PyTorch: sizes, batches, degradations, every expert, on ONNX Runtime and OpenVINO."""

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
from clusir.errors import ValidationError
from clusir.export.experts.dense import DensifyExperts
from clusir.export.formats.extras import write_golden_cases, write_manifest
from clusir.export.pipeline import GraphRecord
from clusir.export.quantize.layers import load_graph
from clusir.export.validate.files import ParityPlan, validate_files
from clusir.export.validate.parity import check_rows, parity_cases, reference_outputs
from clusir.network import checkpoint
from clusir.network.model import CONFIGS, ClusIR
from clusir.runtimes import open_runner
from clusir.training.quantised import integer_convolutions

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


def test_training_rounds_the_convolutions_that_become_integers_in_the_tile_graph(static_export: Export) -> None:
    network, records = static_export
    layers = [x for x in load_graph(records["tile"].path).layers() if not x.keep and x.dense]
    exported = {x.name.removeprefix("model.").removesuffix(".weight") for x in layers if x.name.startswith("model.")}
    mine = set(integer_convolutions(network))
    upward = {name for name in mine if name.startswith("up.")}
    assert exported == mine - upward
    assert len(layers) - len(exported) == len(upward) == network.config.levels - 1, "one transposed convolution each"


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
    # Every kind in a batch is compared on the small tiles of ``static_export``.
    check_rows(validate_files(network, files[:1], replace(alone, batches=(3,)), kinds=("noise",)))


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
    monkeypatch.setitem(CONFIGS, "tiny", network.config)
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
