"""``--precision auto``: what may be chosen, what is taken, what is kept; no test looks at a clock."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from shutil import copy

import models
import numpy as np
import pytest

from clusir.errors import UsageError
from clusir.names import installed_backends
from clusir.runtimes import Restorer
from clusir.runtimes.machine.choice import Request, Speeds, choose, fastest, known_speeds, measure_apart, time_all
from clusir.runtimes.runners import digests
from clusir.runtimes.runners.files import find_model, variants
from clusir.runtimes.runners.losses import Loss, losses_path, losses_text, read_losses

SMALL, LARGE = Loss(0.05, 0.2, "haze"), Loss(0.05, 0.4, "haze")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    whole = models.save_bundle(tmp_path / "bundle")
    for graph in ("", ".tile"):
        copy(whole.with_name(f"model{graph}.onnx"), whole.with_name(f"model.int8{graph}.onnx"))
    return whole.parent


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLUSIR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "speed"


def record(bundle: Path, **losses: Loss) -> None:
    """``ort_int8=SMALL`` and the like into the losses of the bundle."""
    found = variants(find_model(bundle))
    keyed = {(name.partition("_")[0], name.partition("_")[2]): loss for name, loss in losses.items()}
    text = losses_text(keyed, {precision: files.sha256() for precision, files in found.items()})
    losses_path(found["fp32"].whole).write_text(text)


def times(**given: float) -> tuple[list[Request], object]:
    """A measure that says ``ort_int8=3`` milliseconds and the like, and the requests that it got."""
    asked: list[Request] = []

    def measure(request: Request) -> Speeds:
        asked.append(request)
        said = {f"{name.partition('_')[2]} on {name.partition('_')[0]}": ms for name, ms in given.items()}
        labels = [line[0] for line in request.candidates]
        return Speeds({x: said[x] for x in labels if x in said}, {x: "no such kernel" for x in labels if x not in said})

    return asked, measure


def test_the_fastest_is_taken_where_its_loss_is_small(bundle: Path) -> None:
    record(bundle, ort_int8=SMALL)
    asked, measure = times(ort_fp32=10, openvino_fp32=9.8, ort_int8=5)
    choice = choose(bundle, measure=measure)  # type: ignore[arg-type]
    assert (choice.backend, choice.precision, choice.files.whole.name) == ("ort", "int8", "model.int8.onnx")
    assert choice.files.router == bundle / "model.router.onnx"
    for part in ("int8 on ort, 5.0 ms", "fp32 on ort 10.0", "0.050 dB", "0.20 dB on haze"):
        assert part in choice.why
    (request,) = asked
    assert [line[0] for line in request.candidates] == ["fp32 on ort", "fp32 on openvino", "int8 on ort"]
    assert request.candidates[2] == ("int8 on ort", str(bundle / "model.int8.tile.onnx"), "ort", False)


def test_a_loss_over_a_bound_is_no_candidate(bundle: Path) -> None:
    for loss in (LARGE, Loss(0.11, 0.2, "haze"), Loss(float("nan"), 0.1, "haze"), Loss(0.0, float("inf"), "haze")):
        record(bundle, ort_int8=loss)
        asked, measure = times(ort_fp32=10, openvino_fp32=20, ort_int8=1)
        choice = choose(bundle, measure=measure)  # type: ignore[arg-type]
        assert choice.precision == "fp32"
        assert len(asked[0].candidates) == 2
    record(bundle, ort_int8=LARGE)
    assert "lose too much, at least 0.40 dB on haze" in choose(bundle, measure=measure).why  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", ["none", "other float32 file", "other int8 file", "no json", "a list", "no numbers"])
def test_losses_of_other_files_or_none_leave_float32(bundle: Path, broken: str) -> None:
    record(bundle, ort_int8=SMALL)
    path = bundle / "model.losses.json"
    if broken == "none":
        path.unlink()
    elif broken == "other float32 file":
        models.save_whole(bundle / "model.onnx", models.spec(halo=4))
    elif broken == "other int8 file":
        models.save_tile(bundle / "model.int8.tile.onnx", models.spec("tile", halo=4))
    elif broken == "no json":
        path.write_text("{")
    elif broken == "a list":
        path.write_text("[1]")
    else:
        data = json.loads(path.read_text())
        data["losses"][0]["mean_db"] = None
        path.write_text(json.dumps(data))
    _, measure = times(ort_fp32=10, openvino_fp32=20, ort_int8=1)
    choice = choose(bundle, measure=measure)  # type: ignore[arg-type]
    assert (choice.backend, choice.precision) == ("ort", "fp32")
    assert "no model.losses.json of these files says what other precisions lose" in choice.why


def test_bfloat16_is_computed_from_the_float32_files(bundle: Path) -> None:
    record(bundle, openvino_bf16=SMALL)
    asked, measure = times(ort_fp32=10, openvino_fp32=9, openvino_bf16=4)
    choice = choose(bundle, measure=measure)  # type: ignore[arg-type]
    assert (choice.backend, choice.precision, choice.files.whole.name) == ("openvino", "bf16", "model.onnx")
    assert asked[0].candidates[-1] == ("bf16 on openvino", str(bundle / "model.tile.onnx"), "openvino", True)


def test_what_does_not_run_is_left_out_and_nothing_is_refused(bundle: Path) -> None:
    record(bundle, openvino_bf16=SMALL)
    _, measure = times(ort_fp32=10)
    choice = choose(bundle, measure=measure)  # type: ignore[arg-type]
    assert (choice.backend, choice.precision) == ("ort", "fp32")
    _, measure = times()
    choice = choose(bundle, measure=measure)  # type: ignore[arg-type]
    assert (choice.backend, choice.precision) == ("auto", "fp32")
    assert "nothing could be measured here (no such kernel)" in choice.why


def test_one_candidate_is_not_measured(bundle: Path) -> None:
    asked, measure = times()
    choice = choose(bundle, "ort", measure=measure)  # type: ignore[arg-type]
    assert (choice.backend, choice.precision, asked) == ("ort", "fp32", [])
    assert choice.why.startswith("precision auto: fp32 on ort, the only one to choose")
    with pytest.raises(UsageError, match="no such file"):
        choose(bundle / "nowhere.onnx", measure=measure)  # type: ignore[arg-type]


def test_a_named_file_without_float32_beside_it_is_taken_as_it_is(bundle: Path, tmp_path: Path) -> None:
    alone = copy(bundle / "model.int8.onnx", tmp_path / "alone.int8.onnx")
    choice = choose(alone, "ort")
    assert (choice.precision, choice.files.whole) == ("int8", Path(alone))


def test_a_little_faster_is_not_worth_a_loss() -> None:
    assert fastest(["a", "b"], {"a": 10.0, "b": 9.6}) == "a"
    assert fastest(["a", "b"], {"a": 10.0, "b": 9.4}) == "b"
    assert fastest(["a", "b", "c"], {"b": 2.0, "c": 1.0}) == "c"
    assert fastest(["a"], {}) is None


def test_what_opening_takes_counts_for_few_tiles() -> None:
    for tiles, taken in ((1.0, "a"), (15.0, "a"), (30.0, "b"), (None, "b")):
        assert fastest(["a", "b"], {"a": 10.0, "b": 5.0}, {"a": 20.0, "b": 100.0}, tiles) == taken


def test_few_pixels_are_not_worth_a_runtime_that_opens_slowly(bundle: Path, cache: Path) -> None:
    record(bundle, openvino_bf16=SMALL)
    labels = {"fp32 on ort": (10.0, 20.0), "bf16 on openvino": (4.0, 500.0)}

    def measure(request: Request) -> Speeds:
        return Speeds({x: labels[x][0] for x in labels}, {}, {x: labels[x][1] for x in labels})

    tile = 64 - 2 * 8
    for pixels, precision in ((1, "fp32"), (40 * tile**2, "fp32"), (400 * tile**2, "bf16"), (None, "bf16")):
        choice = choose(bundle, measure=measure, pixels=pixels)
        assert choice.precision == precision, pixels
        assert ("with what opening takes" in choice.why) is (precision == "fp32")
    assert len(list(cache.glob("*.json"))) == 1, "how much there is to restore is no reason to measure again"


def test_speeds_are_kept_for_this_machine_and_these_files(
    bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(bundle, ort_int8=SMALL)
    asked, measure = times(ort_fp32=10, openvino_fp32=20, ort_int8=5)
    first = choose(bundle, measure=measure)  # type: ignore[arg-type]
    again = choose(bundle, measure=measure)  # type: ignore[arg-type]
    assert (len(asked), again) == (1, first)
    (row,) = known_speeds()
    assert (row["fastest"], row["milliseconds"]["int8 on ort"]) == ("int8 on ort", 5)
    assert row["model"] == str(bundle / "model.onnx")

    choose(bundle, threads=1, measure=measure)  # type: ignore[arg-type]
    assert len(asked) == 2, "another number of threads"
    models.save_router(bundle / "model.router.onnx", models.spec("router", halo=4))
    choose(bundle, measure=measure)  # type: ignore[arg-type]
    assert len(asked) == 3, "other files"
    monkeypatch.setattr("clusir.runtimes.machine.choice.cpu_model", lambda: "another")
    choose(bundle, measure=measure)  # type: ignore[arg-type]
    assert len(asked) == 4, "another machine"
    assert {row["model"] for row in known_speeds()} == {str(bundle / "model.onnx")}
    assert len(known_speeds()) == 1, "those of the other machine are not shown"


@pytest.mark.parametrize("content", ["", "[]", '{"format": 2}', "null", "times", "opening"])
def test_a_damaged_cache_is_measured_again(bundle: Path, cache: Path, content: str) -> None:
    asked, measure = times(ort_fp32=10, openvino_fp32=20)
    choose(bundle, measure=measure)  # type: ignore[arg-type]
    (kept,) = cache.glob("*.json")
    if content == "times":
        data = json.loads(kept.read_text())
        content = json.dumps(data | {"milliseconds": {"fp32 on ort": 0}})
    elif content == "opening":
        content = json.dumps(json.loads(kept.read_text()) | {"opening": {"fp32 on ort": "soon"}})
    kept.write_text(content)
    assert known_speeds() == []
    choose(bundle, measure=measure)  # type: ignore[arg-type]
    assert len(asked) == 2
    assert len(known_speeds()) == 1


def test_all_candidates_take_turns_on_one_tile(bundle: Path) -> None:
    lines = tuple(
        (f"fp32 on {backend}", str(bundle / "model.tile.onnx"), backend, False) for backend in ("ort", "openvino")
    )
    broken = ("broken", str(bundle / "nothing.onnx"), "ort", False)
    rounds: list[int] = []

    def timer(steps: Mapping[str, object], runs: int, warmup: int) -> dict[str, list[float]]:
        rounds.append(runs)
        for step in steps.values():
            assert "restored" in step()  # type: ignore[operator]
        return {label: [0.25 if label.endswith("ort") else 0.5] * runs for label in steps}

    speeds = time_all(Request((*lines, broken), "auto", 1), timer)
    assert speeds.milliseconds == {"fp32 on ort": 250, "fp32 on openvino": 500}
    assert rounds == [1, 4], "three seconds of rounds of 0.75"
    assert set(speeds.opening) == set(speeds.milliseconds)
    assert min(speeds.opening.values()) > 0
    assert "no such file" in speeds.failed["broken"]


def test_a_process_of_its_own_measures(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    request = Request((("fp32 on ort", str(bundle / "model.tile.onnx"), "ort", False),), "auto", 1)
    speeds = measure_apart(request)
    assert speeds.failed == {}
    assert speeds.milliseconds["fp32 on ort"] > 0
    assert speeds.opening["fp32 on ort"] > 0
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nkill -SEGV $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    assert measure_apart(request).milliseconds == {}
    choice = choose(bundle)
    assert "nothing could be measured here (the process that measures ended without an answer" in choice.why


def test_the_restorer_takes_it_and_says_so(bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(bundle, ort_int8=SMALL)
    _, measure = times(ort_fp32=10, openvino_fp32=20, ort_int8=5)
    monkeypatch.setattr("clusir.runtimes.machine.choice.measure_apart", measure)
    picture = np.random.default_rng(0).random((70, 90, 3), dtype=np.float32)
    with (
        Restorer(bundle, precision="auto", threads=1) as chosen,
        Restorer(bundle, precision="int8", threads=1) as named,
    ):
        assert chosen.files.whole.name == "model.int8.onnx"
        assert chosen.name == "ort:cpu"
        assert chosen.chosen.startswith("precision auto: int8 on ort")
        assert named.chosen == ""
        np.testing.assert_array_equal(chosen.restore(picture), named.restore(picture))


@pytest.mark.parametrize(("backend", "router"), [("auto", "ort:cpu"), ("openvino", "openvino:cpu")])
def test_bfloat16_by_choice_leaves_the_router_to_onnx_runtime(
    bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, backend: str, router: str
) -> None:
    core = pytest.importorskip("openvino").Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16")
    record(bundle, openvino_bf16=SMALL)
    _, measure = times(ort_fp32=10, openvino_fp32=9, openvino_bf16=4)
    monkeypatch.setattr("clusir.runtimes.machine.choice.measure_apart", measure)
    picture = np.random.default_rng(0).random((70, 90, 3), dtype=np.float32)
    with Restorer(bundle, backend, precision="auto", threads=1) as low, Restorer(bundle, threads=1) as full:
        found, expected = (restorer.restore_and_tell(picture)[1].routing for restorer in (low, full))
        assert low.precision == "bf16"
        assert [runner.name for runner in low._open_sidecars()] == ["openvino:cpu", router]
    assert found is not None
    assert expected is not None
    np.testing.assert_allclose(found.posterior, expected.posterior, atol=1e-6)


def test_a_zip_is_open_as_long_as_what_was_chosen_from_it(bundle: Path, tmp_path: Path, cache: Path) -> None:
    import zipfile

    record(bundle, ort_int8=SMALL)
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        for path in bundle.iterdir():
            archive.write(path, path.name)
    _, measure = times(ort_fp32=10, openvino_fp32=20, ort_int8=5)
    choice = choose(tmp_path / "bundle.zip", measure=measure)  # type: ignore[arg-type]
    assert choice.files.whole.name == "model.int8.onnx"
    assert choice.files.whole.is_file()
    choice.files.close()
    assert not choice.files.whole.exists()


def test_a_choice_reads_each_file_once_and_again_when_it_changes(
    bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(bundle, ort_int8=SMALL)
    read: list[str] = []
    computed = digests._computed

    def counted(path: Path, algorithm: str) -> bytes:
        read.append(path.name)
        return computed(path, algorithm)

    monkeypatch.setattr(digests, "_computed", counted)
    _, measure = times(ort_fp32=10, openvino_fp32=20, ort_int8=5)
    choose(bundle, measure=measure)  # type: ignore[arg-type]
    assert read.count("model.onnx") > 1, "a file that is this new may change without a trace"
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)
    read.clear()
    before = choose(bundle, measure=measure)  # type: ignore[arg-type]
    assert sorted(read) == sorted(path.name for path in bundle.glob("*.onnx"))
    models.save_tile(bundle / "model.int8.tile.onnx", models.spec("tile", halo=4))
    assert choose(bundle, measure=measure).precision != before.precision  # type: ignore[arg-type]
    assert read.count("model.int8.tile.onnx") == 2


def test_losses_without_a_float32_file_say_nothing(bundle: Path) -> None:
    record(bundle, ort_int8=SMALL)
    assert read_losses({"int8": find_model(bundle, "int8")}) == {}
    assert set(read_losses(variants(find_model(bundle)))) == {("ort", "int8")}
    assert {"ort", "openvino"} <= set(installed_backends())
