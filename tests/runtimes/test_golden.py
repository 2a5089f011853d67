"""The golden cases that C++ and JavaScript answer to hold Python's Restorer as well: pixels, posterior, gates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clusir.runtimes import Restorer
from tests.golden.make.cases import GoldenCase, load_golden

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CASES = [case for case in load_golden(GOLDEN) if case.model.is_file()]


def test_there_are_cases() -> None:
    assert len(CASES) >= 7


ON_OPENVINO = [case for case in CASES if case.name in ("nine_tiles_u8", "two_experts_alpha_u8")]
PAIRS = [(case, "ort") for case in CASES] + [(case, "openvino") for case in ON_OPENVINO]


@pytest.mark.parametrize(("case", "backend"), PAIRS, ids=lambda value: getattr(value, "name", value))
def test_golden_case(case: GoldenCase, backend: str) -> None:
    with Restorer(case.model, backend=backend, device="cpu") as restorer:
        restored, work = restorer.restore_and_tell(case.pixels)
    assert work.routing is not None
    np.testing.assert_allclose(work.routing.posterior, case.posterior, atol=case.tolerance)
    np.testing.assert_allclose(work.routing.gate, case.gate, atol=case.tolerance)
    top = 1.0 if case.pixels.dtype.kind == "f" else float(np.iinfo(case.pixels.dtype).max)
    colours = restored[..., :3].astype(np.float64)
    # One level of an integer picture for the rounding, the fp32 tolerance for a float one.
    allowed = case.tolerance if top == 1.0 else max(1.0, case.tolerance * top)
    assert np.abs(colours - np.clip(case.restored, 0, 1) * top).max() <= allowed
    if case.pixels.shape[2] == 4:
        np.testing.assert_array_equal(restored[..., 3], case.pixels[..., 3])
