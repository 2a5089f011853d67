"""bfloat16 on OpenVINO: asked for by name, near float32, refused in one line where it cannot be."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import pytest

from clusir.errors import BackendError, UsageError
from clusir.runtimes import Restorer, open_runner
from clusir.runtimes.runners.files import find_model

ov = pytest.importorskip("openvino")


def has_bfloat16() -> bool:
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return models.save_bundle(tmp_path / "bundle")


def test_it_opens_the_float32_file_on_openvino_or_says_what_is_missing(bundle: Path) -> None:
    assert find_model(bundle, "bf16").whole.name == "model.onnx"
    picture = np.random.default_rng(0).random((100, 150, 3), dtype=np.float32)
    if not has_bfloat16():
        with pytest.raises(BackendError, match="no bfloat16"):
            Restorer(bundle, precision="bf16")
        return
    with Restorer(bundle, precision="bf16", threads=1) as low, Restorer(bundle, threads=1) as full:
        assert (low.name, low.precision, full.precision) == ("openvino:cpu", "bf16", "fp32")
        a, b = low.restore(picture), full.restore(picture)
    difference = np.abs(a - b)
    assert 0 < difference.max() < 0.02  # it is another arithmetic, and a near one


def test_the_routing_stays_float32(bundle: Path) -> None:
    if not has_bfloat16():
        with pytest.raises(BackendError, match="no bfloat16"):
            open_runner(bundle / "model.onnx", bf16=True)
        return
    picture = np.random.default_rng(1).random((100, 150, 3), dtype=np.float32)
    with Restorer(bundle, "openvino", precision="bf16") as low, Restorer(bundle, "openvino") as full:
        routings = [restorer.restore_and_tell(picture)[1].routing for restorer in (low, full)]
    assert routings[0] is not None
    assert routings[1] is not None
    np.testing.assert_array_equal(routings[0].posterior, routings[1].posterior)


@pytest.mark.parametrize("backend", ["ort", "torch"])
def test_other_backends_refuse(bundle: Path, backend: str) -> None:
    with pytest.raises(UsageError, match="bf16 runs on backend openvino"):
        Restorer(bundle, backend, precision="bf16")
