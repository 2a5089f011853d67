"""Graphs of dynamic size against PyTorch, and the larger configurations, on ONNX Runtime and OpenVINO."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from graphs_under_test import check_plain, shallow

from clusir.export.pipeline import ExportConfig, GraphRecord, write_graphs
from clusir.export.quantize.layers import load_graph
from clusir.export.validate.files import ParityPlan, validate_files
from clusir.export.validate.parity import check_rows, parity_cases, reference_outputs, run_case
from clusir.export.validate.tolerances import tolerance
from clusir.network.checkpoint import random_model
from clusir.network.model import CONFIGS, ClusIR, ModelConfig
from clusir.runtimes import open_runner
from clusir.training.quantised import integer_convolutions
from tests import needs

FULL = "CLUSIR_FULL" in os.environ
BACKENDS = ("ort", "openvino")
THREADS = 1  # each runtime's own would spin on the core of the next test process


def whole_rows(model: ClusIR, path: Path, sizes: tuple[tuple[int, int], ...], batches: tuple[int, ...]) -> None:
    """The whole graph at chosen sizes and batches, two kinds of damage, on both runtimes."""
    rows = []
    cases = list(parity_cases(sizes, batches, ("noise", "haze")))
    references = [reference_outputs(model, {"image": case.image}) for case in cases]
    for backend in BACKENDS:
        with open_runner(path, backend, "cpu", THREADS) as runner:
            for case, reference in zip(cases, references, strict=True):
                rows.append(run_case(runner, {"image": case.image}, reference, case, tolerance("fp32"), path.name))
    check_rows(rows)


@pytest.fixture(scope="module")
def dynamic(few_levels: ClusIR, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[ClusIR, GraphRecord]]:
    """Graphs of dynamic size, each with its network: the tile graph of ``tiny``, and of a network with the options that
    it leaves out (LayerNorm, GDFN, depthwise attention, cross bands) the whole one. Both of both with CLUSIR_FULL."""
    small = random_model(replace(shallow(CONFIGS["small"]), widths=(16, 32), frequency_levels=(1,)))
    graphs = ("tile", "whole")
    made = []
    for model, wanted in ((few_levels, graphs if FULL else graphs[:1]), (small, graphs if FULL else graphs[1:])):
        folder = tmp_path_factory.mktemp("dynamic")
        records = write_graphs(model, folder, "model", ExportConfig(dynamic=True, graphs=wanted))
        made += [(model, record) for record in records]
    return made


def test_dynamic_graphs_agree_with_pytorch(dynamic: list[tuple[ClusIR, GraphRecord]]) -> None:
    """Every kind of damage at two sizes, and whole graphs at a large one, and in batches, with two kinds; everything at
    all three with CLUSIR_FULL."""
    plan = ParityPlan() if FULL else ParityPlan(sizes=((64, 64), (96, 160)), batches=(1,), threads=THREADS)
    damage = set[str]()
    for model, record in dynamic:
        rows = validate_files(model, [record.path], plan)
        check_rows(rows)
        assert {row.size for row in rows} == {f"{h}x{w}" for h, w in plan.sizes}
        damage |= {row.degradation for row in rows}
        if record.graph == "whole":
            whole_rows(model, record.path, ((272, 336),), (1,))
            whole_rows(model, record.path, ((64, 64), (96, 160)), (3,))
    assert len(damage) >= 10


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(CONFIGS["small"], id="small", marks=needs.FULL),
        pytest.param(CONFIGS["base"], id="base", marks=needs.FULL),
    ],
)
def test_larger_configurations_agree_with_pytorch(config: ModelConfig, tmp_path: Path) -> None:
    """They take every option that tiny leaves out: LayerNorm, GDFN, depthwise attention, cross bands."""
    model = random_model(config)
    records = write_graphs(model, tmp_path, "model", ExportConfig(dynamic=True, graphs=("whole",)))
    whole_rows(model, records[0].path, ((64, 64), (96, 160)), (1, 3))


def test_the_dynamic_graphs_are_plain_onnx(dynamic: list[tuple[ClusIR, GraphRecord]]) -> None:
    for _, record in dynamic:
        check_plain(record.path)


def test_training_rounds_the_convolutions_that_become_integers_in_the_tile_graph(
    dynamic: list[tuple[ClusIR, GraphRecord]],
) -> None:
    network, record = next(pair for pair in dynamic if pair[1].graph == "tile")
    layers = [x for x in load_graph(record.path).layers() if not x.keep and x.dense]
    exported = {x.name.removeprefix("model.").removesuffix(".weight") for x in layers if x.name.startswith("model.")}
    mine = set(integer_convolutions(network))
    upward = {name for name in mine if name.startswith("up.")}
    assert exported == mine - upward
    assert len(layers) - len(exported) == len(upward) == network.config.levels - 1, "one transposed convolution each"
