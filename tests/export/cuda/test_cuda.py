"""CUDA: what can be held without a card (placement, bound tensors, the matrix on the CPU), and what needs one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from graphs_under_test import shallow

from clusir.errors import BackendError
from clusir.runtimes.machine.probe import Probe, probe
from clusir.runtimes.runners.cuda import (
    CPU,
    CUDA,
    BoundSession,
    cuda_options,
    open_session,
    profile_nodes,
    read_profile,
    refuse_cpu_operators,
)
from tests import needs

MODEL = Path(__file__).parents[2] / "golden" / "standin.onnx"


def _image(batch: int = 1, side: int = 48, seed: int = 0) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(seed).random((batch, 3, side, side), dtype=np.float32)}


def _event(op: str, provider: str, kind: str, shape: list[int]) -> dict[str, Any]:
    args = {"op_name": op, "provider": provider, "output_type_shape": [{kind: shape}], "input_type_shape": []}
    return {"cat": "Node", "name": f"{op}_kernel_time", "args": args}


def test_profile_tells_tensors_on_the_cpu_from_shape_arithmetic() -> None:
    report = read_profile(
        [
            _event("Conv", CUDA, "float", [1, 8, 64, 64]),
            _event("Gather", CPU, "int64", [1000]),
            _event("Mul", CPU, "float", [4]),
            _event("DFT", CPU, "float", [1, 8, 64, 33, 2]),
            _event("Add", CPU, "float16", [1, 8, 64, 64]),
            _event("MemcpyToHost", CUDA, "float", [1, 8, 64, 64]),
            {"cat": "Session", "name": "model_run", "args": {}},
            {"cat": "Node", "name": "Conv_fence_before", "args": {}},
        ]
    )
    assert report.nodes == {CUDA: 1, CPU: 4}
    assert report.tensor_on_cpu == {"DFT": 1, "Add": 1}
    assert report.copies == 1
    assert report.share() == pytest.approx(0.2)


def test_profile_of_a_real_run_sees_every_node() -> None:
    report = profile_nodes(MODEL, "cpu", _image(), static=True)
    assert set(report.nodes) == {CPU}
    assert report.nodes[CPU] > 30
    assert report.tensor_on_cpu["Conv"] > 0  # judged only where CUDA was asked for


class _Assigned:
    """A session that reports a placement, as onnxruntime does."""

    def __init__(self, **placed: list[str]) -> None:
        self._placed = placed

    def get_provider_graph_assignment_info(self) -> list[Any]:
        def part(ep: str, ops: list[str]) -> Any:
            nodes = [type("Node", (), {"op_type": op})() for op in ops]
            return type("Part", (), {"ep_name": ep, "get_nodes": lambda self: nodes})()

        return [part({"cpu": CPU, "cuda": CUDA}[k], ops) for k, ops in self._placed.items()]


def test_operators_that_fell_to_the_cpu_are_named() -> None:
    refuse_cpu_operators(_Assigned(cuda=["Conv", "DFT"], cpu=["Shape", "Gather", "Concat"]), MODEL)
    with pytest.raises(BackendError, match=r"2 DFT, 1 Resize of standin\.onnx would run on the CPU"):
        refuse_cpu_operators(_Assigned(cuda=["Conv"], cpu=["DFT", "Shape", "DFT", "Resize"]), MODEL)


def test_assignment_of_a_real_session_is_understood() -> None:
    with pytest.raises(BackendError, match="Conv"):
        refuse_cpu_operators(open_session(MODEL, "cpu", static=True), MODEL)


def test_bound_session_equals_a_plain_run_and_takes_new_values() -> None:
    session = open_session(MODEL, "cpu", static=True)
    first, second = _image(seed=1), _image(seed=2)
    bound = BoundSession(session, first, "cpu")
    for feeds in (first, second):
        bound.write(feeds)
        bound.run()
        names = [o.name for o in session.get_outputs()]
        expected = dict(zip(names, session.run(None, feeds), strict=True))
        for name, array in bound.read().items():
            np.testing.assert_array_equal(array, expected[name])


class _Recorder:
    """A session whose plain runs are counted."""

    def __init__(self, session: Any, *, graphs: bool) -> None:
        self._session, self._graphs, self.plain = session, graphs, 0
        self.get_outputs = session.get_outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {CUDA: {"enable_cuda_graph": "1" if self._graphs else "0"}}

    def run(self, *given: Any) -> Any:
        self.plain += 1
        return self._session.run(*given)


def test_the_first_run_of_a_session_with_graphs_is_bound(tmp_path: Path) -> None:
    # ONNX Runtime records the first run that it sees, with its addresses: after a plain one, bound outputs stayed as
    # they were [H200: 4.8 dB from the picture].
    import onnx

    static = onnx.load(str(MODEL))
    for value in (*static.graph.input, *static.graph.output):
        for axis, size in enumerate((None, 3, 48, 48)):
            if size and len(value.type.tensor_type.shape.dim) == 4:
                value.type.tensor_type.shape.dim[axis].dim_value = size
    onnx.save(static, tmp_path / "static.onnx")
    recorder = _Recorder(open_session(tmp_path / "static.onnx", "cpu", static=True), graphs=True)
    bound = BoundSession(recorder, _image(2), "cpu")
    bound.run()
    assert recorder.plain == 0
    assert bound.read()["restored"].shape == (2, 3, 48, 48)

    outputs = [type("Output", (), {"name": "restored", "type": "tensor(float)", "shape": ["batch", 3, "h", "w"]})()]
    recorder.get_outputs = lambda: outputs
    with pytest.raises(BackendError, match="export with a static tile"):
        BoundSession(recorder, _image(2), "cpu")
    assert recorder.plain == 0


def test_tf32_and_graphs_are_off_unless_asked_for() -> None:
    assert cuda_options(static=True)["use_tf32"] == "0"
    assert cuda_options(static=True, allow_tf32=True)["use_tf32"] == "1"
    assert cuda_options(static=True)["enable_cuda_graph"] == "0"
    assert cuda_options(static=True, cuda_graph=True)["enable_cuda_graph"] == "1"
    assert cuda_options(static=False, cuda_graph=True)["enable_cuda_graph"] == "0"
    assert cuda_options(static=True)["cudnn_conv_algo_search"] == "EXHAUSTIVE"
    assert cuda_options(static=False)["cudnn_conv_algo_search"] == "HEURISTIC"


def test_matrix_without_a_card_ends_with_3_and_the_line_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clusir.cli.bench import main

    monkeypatch.setattr(
        "clusir.runtimes.machine.probe.probe", lambda name: Probe(name, False, reason="fell back to the CPU")
    )
    done = CliRunner().invoke(main, ["--cuda-matrix", str(tmp_path / "out")])
    assert done.exit_code == 3
    assert 'pip install "clusir[gpu]"' in done.stderr or "onnxruntime-gpu[cuda,cudnn]" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def micro(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A function that runs the matrix on the CPU with a network of a few thousand weights."""
    from clusir.export.cuda.matrix import run_matrix
    from clusir.export.cuda.plan import QUICK
    from clusir.network.model import CONFIGS

    small = replace(shallow(CONFIGS["tiny"]), widths=(8, 16))
    monkeypatch.setitem(CONFIGS, "micro", small)
    plan = replace(QUICK, models=("micro",), batches=(2,), torch_modes=("eager",), tile_px=32)

    def run(folder: Path, **changes: Any) -> Any:
        return run_matrix(folder, "cpu", runs=2, plan=replace(plan, **changes))

    return run


@pytest.mark.slow
def test_matrix_runs_resumes_and_sees_a_wrong_artefact(
    micro: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = micro(tmp_path, dft_operator=False)
    assert report.passed
    assert [(row.engine, row.form) for row in report.rows] == [("ort", "dense"), ("torch eager", "sparse")]
    assert all(row.p50_ms > 0 and row.megapixels_per_s > 0 and not row.error for row in report.rows)
    ours = report.rows[0]
    assert ours.psnr_db > 90
    assert ours.nodes[CPU] > 0
    markdown = (tmp_path / "cpu.md").read_text()
    assert "| fp32 >= 90 dB and <= 0.0001 max abs, gates equal | met |" in markdown
    data = json.loads((tmp_path / "cpu.json").read_text())
    assert data["passed"] is True
    assert len(data["rows"]) == 2

    # Finished rows are not opened again, exported files are not made again: only the row that is new runs.
    import clusir.export.cuda.matrix as matrix

    models = tmp_path / "models"
    path = next(models.glob("micro-dense-auto-*.onnx"))
    shutil.copy(path, models / path.name.replace("auto", "op"))
    opened: list[str] = []
    really = matrix._open

    def watch(row: Any, *rest: Any) -> Any:
        opened.append(row.form)
        return really(row, *rest)

    monkeypatch.setattr(matrix, "_open", watch)
    again = micro(tmp_path)
    assert opened == ["dense, DFT operator"]
    assert again.rows[:2] == report.rows
    assert again.rows[2].p50_ms > 0

    # The exported files are kept; one whose weights changed is seen.
    import onnx

    (tmp_path / "rows.jsonl").unlink()
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 4:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1.01, tensor.name))
    onnx.save(model, str(path))
    report = micro(tmp_path, torch_modes=(), dft_operator=False)
    assert not report.passed
    assert not report.rows[0].ok
    assert report.rows[0].psnr_db < 90


def test_a_started_row_that_never_finished_is_noted(tmp_path: Path) -> None:
    from clusir.export.cuda.matrix import _Log
    from clusir.export.cuda.plan import MatrixRow

    log = _Log(tmp_path / "rows.jsonl")
    done, opened, killer = (MatrixRow("tiny", engine, "dense", "static", "fp32", 1) for engine in "abc")
    for row in (done, opened, killer):
        log.start(row)
    log.finish(done)
    with (tmp_path / "rows.jsonl").open("a") as stream:
        stream.write('{"torn')
    again = _Log(tmp_path / "rows.jsonl")
    assert set(again.rows) == {done.key, killer.key}
    assert "ended in this row" in again.rows[killer.key].error


def test_bars_say_met_missed_and_not_measured() -> None:
    from clusir.export.cuda.plan import FULL, MatrixRow
    from clusir.export.cuda.report import MatrixReport
    from clusir.runtimes.machine.fingerprint import fingerprint

    def row(engine: str, precision: str, p50: float, **more: Any) -> MatrixRow:
        good = {"max_abs": 1e-5, "psnr_db": 99.0, "flips": 0, "ok": True, "within": True, "p50_ms": p50, "p95_ms": p50}
        return MatrixRow("tiny", engine, "dense", "static", precision, 1, **{**good, **more})

    plan = replace(FULL, models=("tiny",), batches=(1, 4))
    rows = [row("ort", "fp32", 2.0), row("ort", "fp16", 1.0), row("torch compile", "fp16", 1.5)]
    report = MatrixReport(fingerprint(), "cuda", plan, 5, rows)
    met = {bar: (state, figure) for bar, state, figure in report.bars()}
    assert report.passed
    assert met["fp32 >= 80 dB and <= 0.001 max abs, gates equal"][0] is True
    assert met["int8 >= 30 dB"] == (None, "not measured")
    assert met["no tensor operator on the CPU"][0] is True
    assert met["tiny fp16 batch 1: ORT at least as fast as torch.compile"] == (True, "1.00 ms against 1.50 ms")
    assert met["tiny fp16 batch 4: ORT at least as fast as torch.compile"][0] is None

    rows[1] = row("ort", "fp16", 2.0, tensor_on_cpu={"DFT": 3}, ok=False)
    report = MatrixReport(fingerprint(), "cuda", plan, 5, rows)
    met = {bar: (state, figure) for bar, state, figure in report.bars()}
    assert not report.passed
    assert met["no tensor operator on the CPU"][0] is False
    assert met["tiny fp16 batch 1: ORT at least as fast as torch.compile"][0] is False
    assert "3 DFT" in report.to_markdown()
    # What is there to compare with may be wrong without failing the run; an INT8 form that is refused, too.
    rows[1] = row("ort", "fp16", 1.0)
    rows += [
        replace(row("ort", "fp32", 9.0, ok=False), form="dense, DFT operator"),
        row("ort", "int8", 0.0, error="no"),
    ]
    rows[-1].ok = False
    assert MatrixReport(fingerprint(), "cuda", plan, 5, rows).passed


@pytest.fixture(scope="module")
def card() -> None:
    done = probe("ort:CUDAExecutionProvider")
    if not done.ok:
        needs.skip("cuda", done.reason)


def test_shipped_model_on_the_card(card: None) -> None:
    from clusir.runtimes import open_runner
    from clusir.runtimes.runners.files import find_model

    files = find_model(None)
    side = 256
    feeds = _image(2, side)
    with open_runner(files.whole, "ort", "cuda") as there, open_runner(files.whole, "ort", "cpu") as here:
        got, expected = there.run(feeds), here.run(feeds)
        assert there.name == "ort:cuda"
    np.testing.assert_allclose(got["restored"], expected["restored"], atol=1e-3)
    np.testing.assert_array_equal(got["gate"] > 0, expected["gate"] > 0)
    report = profile_nodes(files.whole, "cuda", feeds, static=True)
    assert report.tensor_on_cpu == {}


def test_cuda_graph_replays_the_same_picture(card: None) -> None:
    feeds = _image()
    plain = BoundSession(open_session(MODEL, "cuda", static=True), feeds, "cuda")
    graph = BoundSession(open_session(MODEL, "cuda", static=True, cuda_graph=True), feeds, "cuda")
    for seed in (3, 4):
        for bound in (plain, graph):
            bound.write(_image(seed=seed))
            bound.run()
        np.testing.assert_array_equal(graph.read()["restored"], plain.read()["restored"])


def test_a_row_on_the_cpu_is_judged_by_its_answers_all_the_same() -> None:
    from clusir.export.cuda.plan import FULL, MatrixRow
    from clusir.export.cuda.report import MatrixReport
    from clusir.runtimes.machine.fingerprint import fingerprint

    bad = MatrixRow("tiny", "ort", "dense", "static", "fp32", 1, max_abs=0.9, psnr_db=3.0, tensor_on_cpu={"DFT": 1})
    for within in (False, True):
        report = MatrixReport(fingerprint(), "cuda", FULL, 5, [replace(bad, within=within)])
        bars = {bar: state for bar, state, _ in report.bars()}
        assert bars["fp32 >= 80 dB and <= 0.001 max abs, gates equal"] is within
        assert bars["no tensor operator on the CPU"] is False
        assert not report.passed


def test_a_row_belongs_to_its_device_and_tile(tmp_path: Path) -> None:
    from clusir.export.cuda.matrix import _belongs, _Log
    from clusir.export.cuda.plan import FULL, MatrixRow

    row = MatrixRow("tiny", "ort", "dense", "static", "fp32", 1, device="cpu", tile_px=64)
    log = _Log(tmp_path / "rows.jsonl")
    log.finish(row)
    log = _Log(tmp_path / "rows.jsonl")
    assert not log.lacks(row)
    for other in (replace(row, device="cuda"), replace(row, tile_px=256), replace(row, checkpoint="1")):
        assert log.lacks(other)
    assert _belongs(row, replace(FULL, tile_px=64), "cpu")
    assert not _belongs(row, FULL, "cpu")
    assert not _belongs(row, replace(FULL, tile_px=64), "cuda")


def test_pytorch_is_left_as_it_was() -> None:
    import torch

    from clusir.export.cuda.engines import exact_kernels

    def state() -> tuple[bool, bool, bool]:
        cudnn = torch.backends.cudnn
        return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark

    before = state()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        with exact_kernels():
            assert state() == (False, False, True)
        assert state() == (True, True, before[2])
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[:2]
