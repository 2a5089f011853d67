"""Python holds itself to the golden cases that C++ and JavaScript answer too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clusir.errors import ClusirError, UsageError
from clusir.runtimes.restore.pixels import from_unit, to_unit
from clusir.runtimes.restore.restorer import ArraySource, Restorer
from clusir.runtimes.runners.quiet import import_openvino
from tests.golden.make.cases import FAMILIES, GoldenCase, colours, load_golden
from tests.golden.make.standin import write_enlarging, write_masked, write_numbered, write_standin

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CASES = load_golden(GOLDEN)
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))
REFUSED = MANIFEST["refused"]
BACKENDS = ("ort", "openvino")
_KINDS = {"u8": "u1", "u16": "<u2", "f32": "<f4"}


@pytest.fixture(scope="module")
def opened() -> Iterator[Callable[..., Restorer]]:
    """A restorer of (model, backend, fix, strength), which all pictures of these share."""
    with ExitStack() as stack:

        @cache
        def open_once(model: Path, backend: str, fix: str | None, strength: str) -> Restorer:
            made = Restorer(model, backend=backend, device="cpu", fix=fix, strength=strength)
            return stack.enter_context(made)

        yield open_once


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_python_gives_the_golden_pictures(case: GoldenCase, backend: str, opened: Callable[..., Restorer]) -> None:
    restorer = opened(case.model, backend, case.fix, case.strength)
    restored, work = restorer.restore_and_tell(case.image)
    stored = {
        dtype: np.concatenate(list(restorer.stream(ArraySource(case.pixels), dtype=np.dtype(dtype))))
        for dtype in ("u1", "u2", "f4")
    }
    assert restored.shape == case.restored.shape
    assert np.abs(restored - case.restored).max() <= case.tolerance
    assert work.routing is not None
    assert np.abs(work.routing.posterior - case.posterior).max() <= case.tolerance
    assert np.abs(work.routing.gate - case.gate).max() <= case.tolerance
    np.testing.assert_allclose(work.routing.evidence, case.evidence, atol=case.tolerance)
    for dtype, made in stored.items():
        top = 1 if dtype == "f4" else np.iinfo(dtype).max
        expected = case.restored * np.float64(top)
        slack = case.tolerance if dtype == "f4" else 0.5 + case.tolerance * top
        assert np.abs(colours(made) - expected).max() <= slack
        alpha = case.pixels[..., case.restored.shape[2] :]
        same = alpha.dtype == np.dtype(dtype) or not alpha.size
        kept = alpha if same else from_unit(to_unit(alpha), np.dtype(dtype))
        np.testing.assert_array_equal(made[..., case.restored.shape[2] :], kept)


@pytest.mark.parametrize("entry", REFUSED, ids=lambda entry: entry["name"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_an_error_everywhere(entry: dict[str, object], backend: str) -> None:
    pixels = np.zeros((entry["height"], entry["width"], 3), np.uint8)
    options = {"fix": entry.get("fix"), "strength": entry.get("strength", 1.0)}
    with (
        pytest.raises(ClusirError, match=str(entry["says"])),
        Restorer(GOLDEN / str(entry["model"]), backend=backend, device="cpu", **options) as restorer,
    ):
        restorer.restore(pixels)


@pytest.mark.parametrize("entry", MANIFEST["enlarged"], ids=lambda entry: entry["name"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_python_restores_without_routing(entry: dict[str, Any], backend: str) -> None:
    kind = _KINDS[entry["type"]]
    shape = (entry["height"], entry["width"], entry["channels"])
    pixels = np.frombuffer((GOLDEN / entry["input"]).read_bytes(), kind).reshape(shape)
    large = (entry["scale"] * shape[0], entry["scale"] * shape[1], shape[2])
    expected = np.frombuffer((GOLDEN / entry["restored"]).read_bytes(), "<f4").reshape(large)
    maps: dict[str, Any] = dict(entry.get("maps", {}))
    for name, given in maps.items():
        if isinstance(given, dict):
            samples = np.frombuffer((GOLDEN / given["input"]).read_bytes(), _KINDS[given["type"]])
            maps[name] = samples.reshape(*shape[:2], -1)
    maps |= entry.get("numbers", {})
    with Restorer(GOLDEN / entry["model"], backend=backend, device="cpu", settings=maps) as restorer:
        restored = restorer.restore(pixels)
        assert np.abs(restorer.restore(to_unit(pixels)) - expected).max() <= entry["tolerance"]
    assert restored.dtype == pixels.dtype
    top = np.iinfo(pixels.dtype).max
    assert np.abs(restored - expected * np.float64(top)).max() <= 0.5 + entry["tolerance"] * top


def test_a_conversion_may_have_dropped_a_number_that_nothing_reads(tmp_path: Path) -> None:
    openvino = import_openvino()
    for end in ("", ".tile", ".statistics"):
        read = (GOLDEN / f"standin_numbered{end}.onnx").read_bytes()
        model = openvino.Core().read_model(model=read, weights=b"")
        openvino.save_model(model, tmp_path / f"standin_numbered{end}.xml", compress_to_fp16=False)
    assert "quality" not in {name for port in model.inputs for name in port.names}
    pixels = np.random.default_rng(0).random((70, 101, 3), dtype=np.float32)
    answers = []
    for path, backend in ((GOLDEN / "standin_numbered.onnx", "ort"), (tmp_path / "standin_numbered.xml", "openvino")):
        with Restorer(path, backend=backend, settings={"sigma": 40, "quality": 2}) as restorer:
            answers.append(restorer.restore(pixels))
    np.testing.assert_allclose(*answers, atol=1e-5)


def test_the_cases_reach_what_can_go_wrong() -> None:
    assert {case.pixels.dtype.kind + str(case.pixels.dtype.itemsize) for case in CASES} >= {"u1", "u2", "f4"}
    assert {case.pixels.shape[2] for case in CASES} == {1, 2, 3, 4}
    assert any(case.pixels.shape[:2] == (1, 1) for case in CASES)
    assert any(min(case.pixels.shape[:2]) > 48 + 32 for case in CASES)  # three tiles each way, in the stand-in's 48 px
    assert any(case.model.name == "standin_range.onnx" for case in CASES)
    assert len(REFUSED) >= 6
    numbered = [entry for entry in MANIFEST["enlarged"] if entry["model"] == "standin_numbered.onnx"]
    assert [sorted(entry.get("numbers", {})) for entry in numbered] == [[], ["quality", "sigma"], ["sigma"]]
    masked = {entry["name"] for entry in MANIFEST["enlarged"] if entry["model"] == "standin_masked.onnx"}
    assert masked == {"masked_u8", "masked_alpha_u16", "masked_grey_u8", "unmasked_u8"}
    assert sum(case.strength != "1" or case.fix is not None for case in CASES) >= 4
    # A gate that chooses two experts of four; pictures that the model visibly changes, and one in which it may not.
    assert any(np.count_nonzero(case.gate[:4]) == 2 for case in CASES)
    changes = {case.name: np.abs(case.restored - case.image).max() for case in CASES}
    at_rest = [name for name, change in changes.items() if change == 0]
    assert len(at_rest) == 1
    assert "at_rest" in at_rest[0]
    least = {case.name: 0.02 if case.strength == "1" else 0.008 for case in CASES}
    assert all(change > least[name] for name, change in changes.items() if name not in at_rest)


@pytest.mark.parametrize(
    ("name", "write"),
    [("standin_x2", write_enlarging), ("standin_masked", write_masked), ("standin_numbered", write_numbered)],
)
def test_the_other_stand_ins_are_what_their_generators_write(
    tmp_path: Path, name: str, write: Callable[[Path, str], Path]
) -> None:
    write(tmp_path, name)
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == sorted(path.name for path in GOLDEN.glob(f"{name}*.onnx"))
    assert all((tmp_path / one).read_bytes() == (GOLDEN / one).read_bytes() for one in made)


STANDINS: dict[str, dict[str, object]] = {
    "standin": {},
    "standin_k2": {"top_k": 2, "statistics": False},
    "standin_range": {"value_range": (-1.0, 3.0), "names": ("pixels", "better")},
    "standin_nan": {"spoilt": "restored"},
    "standin_told": {"families": FAMILIES},
}


@pytest.mark.parametrize("name", STANDINS)
def test_the_stand_in_is_what_its_generator_writes(tmp_path: Path, name: str) -> None:
    write_standin(tmp_path, name, **STANDINS[name])  # type: ignore[arg-type]
    for part in ("", ".tile", ".router"):
        assert (tmp_path / f"{name}{part}.onnx").read_bytes() == (GOLDEN / f"{name}{part}.onnx").read_bytes()


def test_a_folder_without_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="write the cases with"):
        load_golden(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 9, "cases": []}')
    with pytest.raises(UsageError, match="format 9 is not 2"):
        load_golden(tmp_path)
