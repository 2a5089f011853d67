"""Device webgpu: a plug-in of ONNX Runtime's, refused in one line where it cannot start; itself where it is."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import models
import numpy as np
import pytest

from clusir.errors import BackendError
from clusir.runtimes.runners import webgpu
from clusir.runtimes.runners.opening import open_runner
from clusir.runtimes.runners.ort import OrtRunner
from clusir.runtimes.runners.webgpu import WEBGPU, refuse_fallen, webgpu_device
from tests import needs


class Ort:
    """Stands for onnxruntime."""

    __version__ = "1.99"

    def __init__(self, names: tuple[str, ...] = (WEBGPU,), fault: str = "") -> None:
        self.names, self.fault = names, fault
        self.registered: list[tuple[str, str]] = []

    def register_execution_provider_library(self, name: str, library: str) -> None:
        if self.fault:
            raise RuntimeError(self.fault)
        assert library not in [path for _, path in self.registered], "registered twice"
        self.registered.append((name, library))

    def get_ep_devices(self) -> list[Any]:
        return [SimpleNamespace(ep_name=name) for name in self.names]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("onnxruntime_ep_webgpu")
    module.get_library_path = lambda: "/lib/webgpu.so"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_webgpu", module)
    monkeypatch.setattr(webgpu, "_registered", set())


def test_without_the_plug_in_the_line_that_installs_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_webgpu", None)
    path = models.save_identity(tmp_path / "m.onnx")
    with pytest.raises(BackendError, match=r'pip install "clusir\[webgpu\]", or use --device cpu') as caught:
        open_runner(path, backend="ort", device="webgpu")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3
    with pytest.warns(RuntimeWarning, match="falling back to the CPU"):
        runner = open_runner(path, backend="ort", device="webgpu", fallback=True)
    assert runner.name == "ort:cpu"
    with pytest.raises(BackendError, match="device webgpu: backend openvino runs on the CPU"):
        open_runner(path, backend="openvino", device="webgpu")


@pytest.mark.usefixtures("plugin")
def test_it_is_registered_once() -> None:
    ort = Ort(("CPUExecutionProvider", WEBGPU))
    assert [webgpu_device(ort).ep_name for _ in range(2)] == [WEBGPU] * 2
    assert ort.registered == [("clusir-webgpu", "/lib/webgpu.so")]


@pytest.mark.usefixtures("plugin")
def test_what_cannot_start_is_one_line() -> None:
    for ort, why in (
        (Ort(("CPUExecutionProvider",)), "finds no GPU here"),
        (Ort(fault="dlopen: libvulkan.so.1\nmore"), r"does not load \(dlopen: libvulkan\.so\.1\)"),
        (SimpleNamespace(__version__="1.20"), "1.20 takes no plug-ins"),
    ):
        webgpu._registered.clear()
        with pytest.raises(BackendError, match=why) as caught:
            webgpu_device(ort)
        assert "\n" not in str(caught.value)


def test_a_graph_that_stays_on_the_processor_is_refused(tmp_path: Path) -> None:
    def session(providers: list[str], names: list[str]) -> Any:
        parts = [SimpleNamespace(ep_name=name) for name in names]
        return SimpleNamespace(get_providers=lambda: providers, get_provider_graph_assignment_info=lambda: parts)

    refuse_fallen(session([WEBGPU], [WEBGPU, "CPUExecutionProvider"]), tmp_path / "m.onnx")
    with pytest.raises(BackendError, match=r"all of m\.onnx would run on the CPU"):
        refuse_fallen(session([WEBGPU], ["CPUExecutionProvider"]), tmp_path / "m.onnx")
    with pytest.raises(BackendError, match="could not be started, only CPUExecutionProvider"):
        refuse_fallen(session(["CPUExecutionProvider"], []), tmp_path / "m.onnx")


def test_an_answer_that_is_not_the_processors_is_refused(tmp_path: Path) -> None:
    """The first answer of a graph is held against the processor's, which computes it too."""
    path = models.save_identity(tmp_path / "m.onnx")
    image = {"image": np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)}
    for scale, wrong in ((1.0, False), (1.01, True), (np.nan, True)):
        with OrtRunner(path, "cpu") as runner, OrtRunner(path, "cpu") as judge:
            real = runner._session
            runner._session = SimpleNamespace(run=lambda *a, s=scale, r=real: [s * v for v in r.run(*a)])
            runner._judge = lambda session=judge._session: session
            if wrong:
                with pytest.raises(BackendError, match=r"answers m\.onnx otherwise than the processor"):
                    runner.run(image)
            else:
                runner.run(image)
                assert runner._judge is None


def test_a_card_answers_as_the_processor_does(tmp_path: Path) -> None:
    if importlib.util.find_spec("onnxruntime_ep_webgpu") is None:
        needs.skip("webgpu")
    path = models.save_identity(tmp_path / "m.onnx")
    try:
        runner = open_runner(path, backend="ort", device="webgpu")
    except BackendError as error:
        needs.skip("webgpu", str(error))
    with runner:
        image = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
        assert runner.name == "ort:webgpu"
        assert runner.placement()[WEBGPU] > 0
        with open_runner(path, backend="ort", device="cpu") as other:
            found, wanted = (r.run({"image": image})["restored"] for r in (runner, other))
        np.testing.assert_allclose(found, wanted, atol=1e-5)
