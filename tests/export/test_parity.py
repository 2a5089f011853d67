"""The exported graphs against PyTorch: sizes, batches, degradations, every expert, on ONNX Runtime and OpenVINO."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from clusir import checkpoint
from clusir.errors import ValidationError
from clusir.export.bundle import Validation, validate_files
from clusir.export.dense_experts import DensifyExperts, MergedExperts
from clusir.export.pipeline import ExportConfig, GraphRecord, write_graphs
from clusir.export.simplify import operators
from clusir.export.tolerances import tolerance
from clusir.export.validate import check_rows, compare, parity_cases, reference_outputs
from clusir.model import CONFIGS, ClusIR, ModelConfig
from clusir.runtimes import open_runner

FULL = pytest.mark.skipif("CLUSIR_FULL" not in os.environ, reason="minutes of export; set CLUSIR_FULL=1")
Export = tuple[ClusIR, dict[str, GraphRecord]]
BACKENDS = ("ort", "openvino")


def paths(records: dict[str, GraphRecord]) -> list[Path]:
    return [record.path for record in records.values()]


def test_static_graphs_agree_with_pytorch(static_export: Export) -> None:
    model, records = static_export
    rows = validate_files(model, paths(records), Validation())
    check_rows(rows)
    assert {row.runner for row in rows} == {"ort:cpu", "openvino:cpu"}
    assert {row.size for row in rows} == {"64x64"}
    assert {row.batch for row in rows} == {1, 3}


def test_dynamic_graphs_agree_with_pytorch(dynamic_export: Export) -> None:
    model, records = dynamic_export
    # Batches of 3 at every size take most of two minutes; the static graphs have them always, these with CLUSIR_FULL.
    batches = (1, 3) if "CLUSIR_FULL" in os.environ else (1,)
    rows = validate_files(model, paths(records), Validation(batches=batches))
    check_rows(rows)
    assert {row.size for row in rows} == {"64x64", "96x160", "272x336"}
    assert len({row.degradation for row in rows}) >= 10


def shallow(name: str) -> ModelConfig:
    """A configuration with one block a level: every option of it, a fraction of the time to export."""
    return replace(CONFIGS[name], blocks=(1, 1, 1, 1), decoder_blocks=(1, 1, 1), refine_blocks=1)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(shallow("small"), id="shallow small"),
        pytest.param(CONFIGS["small"], id="small", marks=FULL),
        pytest.param(CONFIGS["base"], id="base", marks=FULL),
    ],
)
def test_larger_configurations_agree_with_pytorch(config: ModelConfig, tmp_path: Path) -> None:
    """They take every option that tiny leaves out: LayerNorm, GDFN, depthwise attention, cross bands."""
    model = checkpoint.random_model(config)
    records = write_graphs(model, tmp_path, "model", ExportConfig(dynamic=True, graphs=("whole",)))
    rows = []
    for backend in BACKENDS:
        with open_runner(records[0].path, backend, "cpu") as runner:
            for case in parity_cases(((64, 64), (96, 160)), (1, 3), ("noise", "haze")):
                feeds = {"image": case.image}
                rows.append(
                    compare(runner, feeds, reference_outputs(model, feeds), case, tolerance("fp32"), "model.onnx")
                )
    check_rows(rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_expert_is_in_the_graph_and_right(static_export: Export, backend: str) -> None:
    """The tile graph takes the gates as an input, so each expert of each level can be forced."""
    model, records = static_export
    config = model.config
    case = next(iter(parity_cases(((64, 64),), (1,), ("noise",))))
    posterior = np.concatenate([np.full((1, n), 1 / n, np.float32) for n in config.clusters], axis=1)
    statistics = reference_outputs(model, {"image": case.image})["statistics"]
    results = []
    with open_runner(records["tile"].path, backend, "cpu") as runner:
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
    with open_runner(records["whole"].path, backend, "cpu") as runner:
        together, again = runner.run({"image": batch}), runner.run({"image": batch})
        assert all(np.array_equal(together[name], again[name]) for name in together)
        for index, case in enumerate(cases):
            alone = runner.run({"image": case.image})
            for name in alone:
                np.testing.assert_allclose(alone[name][0], together[name][index], atol=2e-6)


@pytest.fixture
def lost_expert(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A dense pass that forgets the last expert."""
    whole = MergedExperts.forward

    def forward(self: MergedExperts, u: torch.Tensor, shared: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        kept = torch.cat((gate[:, :-1], torch.zeros_like(gate[:, -1:])), dim=1)
        return whole(self, u, shared, kept)

    monkeypatch.setattr(MergedExperts, "forward", forward)
    return


@pytest.mark.usefixtures("lost_expert")
def test_a_lost_expert_fails_validation(tiny: ClusIR, tmp_path: Path) -> None:
    records = write_graphs(tiny, tmp_path, "model", ExportConfig(tile_px=64, halo_px=8, graphs=("tile",)))
    rows = validate_files(tiny, [records[0].path], Validation(backends=("ort",)))
    with pytest.raises(ValidationError, match=r"model\.tile\.onnx on ort:cpu disagrees"):
        check_rows(rows)


def test_the_default_graph_is_plain_onnx(static_export: Export, dynamic_export: Export) -> None:
    for _, records in (static_export, dynamic_export):
        for record in records.values():
            model = onnx.load(record.path)
            counts = operators(model.graph)
            assert not {name for name in counts if "::" in name or name.startswith("Random") or name == "DFT"}
            assert model.opset_import[0].version == 18
            onnx.checker.check_model(model, full_check=True)


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
        with open_runner(folder / f"tiny{suffix}", "ort", "cpu") as runner:
            assert runner.spec.checkpoint_sha256 == digest, f"tiny{suffix} is stale: run make weights"


@pytest.mark.slow
def test_shipped_files_agree_with_pytorch() -> None:
    folder = checkpoint.shipped().parent
    files = [folder / f"tiny{suffix}" for suffix in (".onnx", ".tile.onnx", ".router.onnx")]
    check_rows(validate_files(checkpoint.load(checkpoint.shipped()), files, Validation()))
