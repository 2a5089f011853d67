"""What is written for other runtimes is compared in them: no NaN passes, and nothing of the process is left changed."""

from __future__ import annotations

import logging
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from standin_bundle import GOLDEN, GRAPHS, Edit, constant_nan, spec_of

from clusir.errors import ValidationError
from clusir.export.formats import executorch, ort_mobile
from clusir.export.formats.openvino import write_openvino
from clusir.export.formats.ort_mobile import _quiet
from clusir.export.trace.forms import GRAPHS as FORMS
from clusir.runtimes.runners.quiet import import_openvino, unreported


@pytest.mark.parametrize("graph", list(GRAPHS))
def test_an_ort_file_is_compared_in_every_output(tmp_path: Path, graph: str) -> None:
    good = GOLDEN / GRAPHS[graph]
    spec = spec_of(good)
    assert ort_mobile._compare(good, good, spec) == 0.0
    spoilt = tmp_path / "spoilt.onnx"
    outputs = {"whole": ("restored", "posterior", "gate"), "tile": ("restored",)}
    for name in outputs.get(graph, ("posterior", "expert_probability", "statistics")):
        for kind, value in (("Add", 0.01), ("Mul", float("nan"))):
            shutil.copy(good, spoilt)
            Edit(spoilt).output(name, kind, value)
            # A gate of which all experts are above zero is another choice, before it is another number.
            why = f"(output {name}|other experts are chosen)" if name == "gate" else f"output {name}"
            with pytest.raises(ValidationError, match=rf"^spoilt\.onnx against {good.name}: {why}"):
                ort_mobile._compare(good, spoilt, spec)
    shutil.copy(good, spoilt)
    constant_nan(spoilt)
    with pytest.raises(ValidationError, match="not finite"):
        ort_mobile._compare(good, spoilt, spec)


def test_the_converter_is_quiet_and_the_program_is_not() -> None:
    """Its logger alone says nothing, and is what it was afterwards; other loggers speak as before."""
    with _quiet():  # the library sets the level of its logger where it is imported first
        pass
    its = logging.getLogger("ort_format_model.utils")
    before = logging.root.manager.disable, its.level
    with _quiet():
        assert not its.isEnabledFor(logging.WARNING)
        assert logging.getLogger("another.program").isEnabledFor(logging.WARNING)
    assert (logging.root.manager.disable, its.level) == before


def test_a_conversion_reports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the statistics' package is in use: each event would fork this process. Afterwards it is as it was."""
    openvino = import_openvino()
    from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker
    from openvino_telemetry.utils.sender import TelemetrySender

    sent, asked, convert = [], [], openvino.convert_model
    monkeypatch.setattr(TelemetrySender, "send", lambda *event: sent.append(event))
    monkeypatch.setattr(OptInChecker, "check", lambda *_: ConsentCheckResult.NO_FILE)

    def report(path: Path) -> Any:
        asked.append(OptInChecker().check(False))
        TelemetrySender.send(TelemetrySender(), None, None)
        return convert(path)

    monkeypatch.setattr(openvino, "convert_model", report)
    write_openvino([GOLDEN / GRAPHS["router"]], tmp_path)
    with unreported():
        with unreported():
            pass
        report(GOLDEN / GRAPHS["router"])
    assert (asked, sent) == ([ConsentCheckResult.DECLINED] * 2, [])
    report(GOLDEN / GRAPHS["router"])
    assert (asked[-1], len(sent) > 0) == (ConsentCheckResult.NO_FILE, True)


NAN = float("nan")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda a: a, ""),
        (lambda a: [a[0], a[1] * NAN, a[2]], "output posterior: its values are not finite"),
        (lambda a: [a[0] * NAN, a[1], a[2]], "output restored"),
        (lambda a: [a[0], a[1], a[2] * NAN], "output gate"),
        (lambda a: [a[0] + 2e-4, a[1], a[2]], "output restored: differs by 0.0002"),
        (lambda a: [a[0], a[1], a[2][:, :1]], "output gate: its shape"),
        (lambda a: a[:2], "it has 2 outputs, 3 are expected"),
        (lambda a: [], "it has 0 outputs"),
    ],
)
def test_an_executorch_program_is_compared_in_every_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, why: str
) -> None:
    """With a runtime that answers what it is told to: the real one needs an environment of its own."""
    answer = [torch.rand(1, 3, 4, 4), torch.rand(1, 4), torch.rand(1, 4)]

    class Stub:
        get = staticmethod(lambda: Stub)
        load_program = staticmethod(lambda _: Stub)
        load_method = staticmethod(lambda _: Stub)
        execute = staticmethod(lambda _: spoil(answer))

    for name in ("executorch", "executorch.runtime"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules["executorch.runtime"], "Runtime", Stub, raising=False)

    class Reference(torch.nn.Module):
        def forward(self, _: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(answer)

    def compare() -> float:
        return executorch._compare(tmp_path / "x.pte", Reference(), (torch.rand(1),), FORMS["whole"], "x.pte")

    if not why:
        assert compare() == 0.0
        return
    with pytest.raises(ValidationError, match=why):
        compare()
