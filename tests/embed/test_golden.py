"""Python holds itself to the golden cases that it wrote for the other languages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toolchain import BACKENDS, GOLDEN

from clusir.errors import UsageError
from clusir.runtimes.restore.restorer import Restorer
from tests.golden.make.cases import GoldenCase, load_golden
from tests.golden.make.standin import write_standin

CASES = load_golden(GOLDEN)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_python_gives_the_golden_pictures(case: GoldenCase, backend: str) -> None:
    with Restorer(case.model, backend=backend, device="cpu") as restorer:
        restored, work = restorer.restore_and_tell(case.image)
        integers = restorer.restore(case.pixels) if case.pixels.dtype.kind == "u" else None
    assert np.abs(restored - case.restored).max() <= case.tolerance
    assert work.routing is not None
    assert np.abs(work.routing.posterior - case.posterior).max() <= case.tolerance
    assert np.abs(work.routing.gate - case.gate).max() <= case.tolerance
    if integers is not None:
        top = np.iinfo(case.pixels.dtype).max
        off = np.abs(integers[..., :3].astype(np.int64) - np.rint(case.restored * top).astype(np.int64)).max()
        assert off <= (1 if top == 255 else 1 + case.tolerance * top)
        assert np.array_equal(integers[..., 3:], case.pixels[..., 3:])


def test_the_cases_reach_what_can_go_wrong() -> None:
    assert {case.pixels.dtype.kind + str(case.pixels.dtype.itemsize) for case in CASES} >= {"u1", "u2", "f4"}
    assert {case.pixels.shape[2] for case in CASES} == {3, 4}
    assert any(case.pixels.shape[:2] == (1, 1) for case in CASES)
    assert any(min(case.pixels.shape[:2]) > 48 + 32 for case in CASES)  # three tiles each way, in the stand-in's 48 px
    # A gate that chooses two experts of four, and pictures that the model visibly changes.
    assert any(np.count_nonzero(case.gate[:4]) == 2 for case in CASES)
    assert all(np.abs(case.restored - case.image).max() > 0.02 for case in CASES)


def test_the_stand_in_is_what_its_generator_writes(tmp_path: Path) -> None:
    for name, top_k in (("standin", 1), ("standin_k2", 2)):
        write_standin(tmp_path, name, top_k=top_k, statistics=top_k == 1)
        for part in ("", ".tile", ".router"):
            assert (tmp_path / f"{name}{part}.onnx").read_bytes() == (GOLDEN / f"{name}{part}.onnx").read_bytes()


def test_a_folder_without_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="write the cases with"):
        load_golden(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 9, "cases": []}')
    with pytest.raises(UsageError, match="format 9 is not 1"):
        load_golden(tmp_path)
