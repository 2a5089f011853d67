"""The benchmark page: limits on what may never end, the journal, and what the page says of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from clusir.errors import UsageError
from tests.bench import graphs as bench_graphs
from tests.bench.graphs import Page, Row, _open, _save, bench_network
from tests.bench.pages import prepare as bench_prepare
from tests.bench.pages.page import as_markdown
from tests.bench.pages.prepare import Prepared, failure, prepare
from tests.bench.pages.transforms import CASES
from tests.bench.timing import Time

MACHINE = {"processor": "a CPU", "threads": 1, "clock": "wall", "picture_px": 8, "runs": 1, "torch": "2",
           "onnxruntime": "1", "openvino": "2026"}  # fmt: skip


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_a_command_that_does_not_end_is_stopped_with_its_children(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    nested = f"import time; time.sleep(1); open({str(alive)!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {nested!r}])"
    assert failure(python(code), 0.3, tmp_path) == "did not finish in 0.3 s"
    assert failure(python("import time; time.sleep(1)"), None, tmp_path) == ""  # no limit, and time for the child
    assert not alive.exists()


def test_the_last_line_says_why(tmp_path: Path) -> None:
    assert failure(python("raise SystemExit('first\\nTypeError: no experts')"), 9, tmp_path) == "TypeError: no experts"
    assert failure(python("import os; os.kill(os.getpid(), 9)"), 9, tmp_path) == "ended by signal 9"
    assert failure(python("raise SystemExit(0)"), 9, tmp_path) == ""


def stand_in() -> bytes:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 8, 8])
    graph = helper.make_graph([helper.make_node("Sigmoid", ["image"], ["y"])], "g", [image], [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


class Child:
    """In place of the child process: the plain exporter never ends, ours writes a graph."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def __call__(self, command: list[str], limit_s: float | None, cache: Path) -> str:
        form, file = command[3], Path(command[-1])
        self.started.append(form)
        if form == "plain":
            return failure(python("import time; time.sleep(9)"), limit_s, cache)
        file.write_bytes(stand_in())
        return ""


def test_page_says_that_the_plain_exporter_did_not_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = Child()
    monkeypatch.setattr(bench_prepare, "failure", child)
    made = prepare("tiny", ["plain", "ours"], 8, 1, tmp_path, 0.2, 9)
    assert [m.why for m in made] == ["did not finish in 0.2 s", ""]
    assert prepare("tiny", ["plain", "ours"], 8, 1, tmp_path, 0.2, 9) == made
    assert child.started == ["plain", "ours"]  # what was made, or failed, is not tried again ...
    prepare("tiny", ["plain", "ours"], 8, 1, tmp_path, 0.3, 9)
    assert child.started == ["plain", "ours", "plain"]  # ... unless with another limit

    monkeypatch.setattr(bench_graphs, "network", lambda _: nn.Sigmoid())
    monkeypatch.setattr(bench_graphs, "densified", lambda _, model: model)
    monkeypatch.setattr(bench_graphs, "convolution_peak", lambda *_: 100.0)
    wrong = Prepared("dense", tmp_path / "missing.onnx", "TypeError: no experts")
    page = Page(MACHINE)
    with torch.no_grad():
        bench_network(page, "tiny", [*made, wrong], 8, 2, 1, cpu_clock=False)
    text = as_markdown(page)
    assert "| plain export | | | | | | did not finish in 0.2 s |" in text
    assert "densified network | | | | | | does not export: TypeError: no experts |" in text
    ours = [row for row in page.networks["tiny"] if row.what.startswith("ours")]
    assert [row.what for row in ours] == ["ours, ONNX Runtime", "ours, OpenVINO"]
    assert all(row.time and row.error is not None and row.error < 1e-6 for row in ours)


def test_an_answer_that_is_wrong_is_called_so() -> None:
    expected = np.ones((1, 3), np.float32)
    calls: dict = {}
    assert bench_graphs._row("a", lambda: lambda: [expected * 2], expected, calls).why == "wrong"
    assert "instead of" in bench_graphs._row("b", lambda: lambda: [expected[0]], expected, calls).why
    assert bench_graphs._row("c", lambda: lambda: torch.ones(1, 3), expected, calls).why == ""
    assert list(calls) == ["a", "c"]


def measured() -> Page:
    rows = [Row("PyTorch eager", 0.0, Time(20.0, 22.0)), Row("plain export, ONNX Runtime", 1e-7, Time(30.0, 33.0)),
            Row("ours, ONNX Runtime", 1e-7, Time(10.0, 11.0)), Row("ours, OpenVINO", why="does not run")]  # fmt: skip
    return Page(MACHINE, {}, {"tiny": rows}, {"tiny": 1.0}, {"tiny": 200.0}, {"tiny": {"ONNX Runtime": {"Conv": 7.0}}})


def test_page_compares_with_the_best_of_both() -> None:
    text = as_markdown(measured())
    assert "| ours, ONNX Runtime | 10.0 | 11.0 | 2.00 | 50% | 1e-07 |  |" in text
    assert "Ours is 3.00 times as fast as the plain export on ONNX Runtime." in text


def test_a_page_goes_on_where_it_was_and_only_there(tmp_path: Path) -> None:
    page = measured()
    _save(page, tmp_path)
    assert _open(tmp_path, MACHINE) == page
    assert json.loads((tmp_path / "graphs.json").read_text())["peak"] == {"tiny": 200.0}
    with pytest.raises(UsageError, match=r"another threads \(1, now 2\)"):
        _open(tmp_path, {**MACHINE, "threads": 2})


def transform_row(cases: tuple[str, ...]) -> dict[str, dict[str, float]]:
    times = {"torch.fft": 2.0, "MatMul": 6.0, "ours": 3.0}
    return {f"{what}{case}": {"minimum_ms": t, "error": 4e-7} for case in cases for what, t in times.items()}


def test_transforms_have_a_column_for_each_case() -> None:
    page = measured()
    page.transforms = {96: transform_row(CASES)}
    text = as_markdown(page)
    assert "| N | torch.fft | MatMul | ours | torch.fft, masked |" in text
    assert "| ours, rectified | largest error |" in text
    assert f"| 96 | {' | '.join(['2.00 | 6.00 (3.00x) | 3.00 (1.50x)'] * 3)} | 4e-07 |" in text


def test_sizes_measured_without_a_case_are_measured_again(tmp_path: Path) -> None:
    page = measured()
    page.transforms = {96: transform_row(CASES), 128: transform_row(CASES[:2])}
    _save(measured(), tmp_path)
    journal = tmp_path / "graphs.json"
    journal.write_text(json.dumps({**json.loads(journal.read_text()), "transforms": page.transforms}))
    assert list(_open(tmp_path, MACHINE).transforms) == [96]


def test_command_names_an_unknown_network() -> None:
    with pytest.raises(click.BadParameter, match="'huge' is not one of tiny"):
        bench_graphs._names("tiny,huge", "--networks")
