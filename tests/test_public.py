"""The public names, room by room: a change of this list is a change that a user's program may notice."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from tests.test_house import PACKAGES, modules

PUBLIC = {
    "clusir":
        "CONFIGS ClusIR ClusirError ModelConfig ModelSpec Restorer load open_runner save shipped",
    "clusir.calibration":
        "BalanceConfig CalibrationSource Coverage Draw FolderSource Manifest PairSource PhotoSet Sample "
        "SyntheticSource built_in_photos draw_balanced folder_photos measure_coverage open_source replay "
        "write_manifest",
    "clusir.degrade":
        "ALL_KINDS CAMERA_PRESETS FAMILIES FAMILY_NAMES KINDS PRESETS Recipe Step degrade degrade_mixture "
        "draw_recipe draw_step",
    "clusir.export":
        "ExportConfig ExportReport GraphPass ModuleExport Pass PassResult Pipeline export_bundle "
        "export_module register_moe register_scan",
    "clusir.export.cuda":
        "MatrixPlan MatrixReport MatrixRow run_matrix",
    "clusir.export.experts":
        "BranchExperts DensifyExperts MoEDescription check_onnx check_program clear_registry register_moe "
        "top_k_gate",
    "clusir.export.formats":
        "ExportReport MobileReport check_golden export_bundle write_executorch write_ort_mobile",
    "clusir.export.formats.hosts":
        "Finding Host HostForm NotRunHere Source TARGETS export_targets open_source target verify_target",
    "clusir.export.graph":
        "GraphEdit GraphIndex LinearGraph Probe count_macs",
    "clusir.export.lowering":
        "FORMS lower_complex translation_table",
    "clusir.export.passes":
        "AttachMetadata CheckStandard SimplifyGraph fusing_passes",
    "clusir.export.passes.plain":
        "PlainOperators",
    "clusir.export.pooling":
        "Blocked Found Split Statistic find_statistics split_statistics",
    "clusir.export.precision":
        "Advice BudgetConfig PrecisionConfig PrecisionReport QualityLoss Sensitivity advise compare_quality "
        "make_precisions measure_quality measure_sensitivity search_budget",
    "clusir.export.quantize":
        "Calibration Fp16Config Fp16Report QuantizeConfig QuantizeReport Quantizer convert_fp16 quantize_int8",
    "clusir.export.scans":
        "ScanDescription clear_scans register_scan",
    "clusir.export.subjects":
        "declare_unused load_factory parse_input",
    "clusir.export.trace":
        "GRAPHS OPSET GraphForm TracedModel size_rule trace_module write_onnx",
    "clusir.export.validate":
        "TOLERANCES Divergence ParityCase ParityRow Tolerance bisect_values check_rows tolerance",
    "clusir.network":
        "CONFIGS ClusIR ModelConfig Restoration Routing load read_metadata resolve save shipped",
    "clusir.quality":
        "BASELINES ClusterReport QualityPlan QualityRow QualityTable cluster_report label_clusters psnr quality_table "
        "ssim",
    "clusir.runtimes":
        "Restorer Runner open_runner",
    "clusir.runtimes.batch":
        "Job Journal MemoryGate Outcome Pipeline parse_size plan_jobs",
    "clusir.runtimes.images":
        "READ_SUFFIXES WRITE_SUFFIXES Limits Picture PictureInfo open_picture output_info probe_picture save_picture",
    "clusir.runtimes.machine":
        "Case Diagnosis Measurement bench_case bench_cases list_devices",
    "clusir.runtimes.page":
        "PageServer packed page_files write_page",
    "clusir.runtimes.report":
        "ReportWriter write_comparison",
    "clusir.runtimes.restore":
        "ALPHA_MODES ROUTINGS Restorer Routing account explain_lines plan_picture routing_levels",
    "clusir.runtimes.runners":
        "BACKENDS DEVICES ModelFiles Runner find_model open_runner read_metadata",
    "clusir.training":
        "FINE_TUNE_DEFAULTS PhotoSet Progress Stage TrainConfig draw_batch learning_rate resumed_config train "
        "validate",
}  # fmt: skip
# Rooms without public names: commands are called from a shell, weights are data, a host is asked for by its target.
_HOSTS = "clusir.export.formats.hosts"
NONE = {
    "clusir.cli",
    "clusir.weights",
    "clusir.training.judge",
    "clusir.export.trace.symbolic",
    "clusir.runtimes.images.metadata",
    "clusir.runtimes.images.tiff",
}
NONE |= {f"{_HOSTS}.{room}" for room in ("coreml", "executorch", "ncnn", "routing")}


def rooms() -> dict[str, Path]:
    return {name: path for name, path in modules().items() if path.name == "__init__.py"}


def typed(path: Path) -> set[str]:
    """The names that a type checker sees: imported under TYPE_CHECKING."""
    blocks = (n for n in ast.parse(path.read_text("utf-8")).body if isinstance(n, ast.If))
    return {alias.name for block in blocks for n in block.body if isinstance(n, ast.ImportFrom) for alias in n.names}


def test_every_room_is_listed() -> None:
    assert set(rooms()) == set(PUBLIC) | NONE


@pytest.mark.parametrize("room", sorted(PUBLIC))
def test_the_public_names_are_these(room: str) -> None:
    package = importlib.import_module(room)
    names = set(PUBLIC[room].split())
    assert set(package.__all__) - {"__version__"} == names
    assert set(dir(package)) - {"__version__"} == names
    assert typed(rooms()[room]) == names
    for name in names:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = package.nonsense


@pytest.mark.parametrize("room", sorted(PUBLIC))
def test_no_public_name_is_a_module_of_the_room(room: str) -> None:
    """An import of the module would put it in the name's place."""
    folder = rooms()[room].parent
    files = {path.stem for path in folder.glob("*.py")} | {path.name for path in folder.iterdir() if path.is_dir()}
    files |= set(PACKAGES) if room == "clusir" else set()
    assert files & set(PUBLIC[room].split()) == set()


@pytest.mark.parametrize("room", sorted({*PUBLIC, *NONE}))
def test_every_room_says_what_belongs_in_it(room: str) -> None:
    text = ast.get_docstring(ast.parse(rooms()[room].read_text("utf-8"))) or ""
    assert 1 <= len(text.splitlines()) <= 10
    if room not in {"clusir", "clusir.weights"}:
        assert "Belongs here:" in text
        assert "Not here:" in text
