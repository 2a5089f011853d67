"""When a graph is opened, and from what: late, and as ONNX Runtime has optimised it for a process before."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import onnx
import pytest

from clusir.errors import ModelFormatError, UsageError
from clusir.export.formats.weights import share_weights
from clusir.runtimes.restore.restorer import Restorer
from clusir.runtimes.runners import kept
from clusir.runtimes.runners.opening import open_runner

told = pytest.mark.skipif(not kept.cpu_features(), reason="this system does not tell what its processor has")


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_the_whole_graph_is_opened_for_the_first_picture_that_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    from clusir.runtimes.runners import opening

    opened: list[str] = []
    original = opening._open

    def noted(path: Path, *options):  # type: ignore[no-untyped-def]
        opened.append(Path(path).name)
        return original(path, *options)

    monkeypatch.setattr(opening, "_open", noted)
    with Restorer(models.save_bundle(tmp_path), backend=backend, device="cpu") as restorer:
        assert opened == []
        restorer.restore(np.zeros((100, 100, 3), np.uint8))
        assert opened == ["model.tile.onnx", "model.router.onnx"]
        assert sum(restorer.placement().values()) > 0  # of the tile graph: asking opens nothing
        assert len(opened) == 2
        restorer.restore(np.zeros((40, 50, 3), np.uint8))
        restorer.restore(np.zeros((40, 50, 3), np.uint8))
        assert opened[2:] == ["model.onnx"]
    with pytest.raises(UsageError, match="closed"):
        restorer.restore(np.zeros((40, 50, 3), np.uint8))


def test_a_whole_graph_that_no_runtime_takes_is_named_when_it_is_needed(tmp_path: Path) -> None:
    path = models.save_bundle(tmp_path)
    whole = onnx.load(path)
    whole.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(whole, path)
    with Restorer(path, backend="ort", device="cpu") as restorer:
        restorer.restore(np.zeros((100, 100, 3), np.uint8))
        with pytest.raises(ModelFormatError, match=r"model\.onnx: onnxruntime refuses"):
            restorer.restore(np.zeros((40, 50, 3), np.uint8))


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLUSIR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ort"


def answer(path: Path) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    with open_runner(path, "ort", "cpu", 1) as runner:
        side = runner.spec.size.static_px
        image = np.random.default_rng(0).random((1, 3, side, side), dtype=np.float32)
        return runner.run({"image": image}), runner.placement()


def places(room: Path) -> list[Path]:
    return sorted(room.iterdir()) if room.is_dir() else []


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first)


@told
def test_a_graph_is_kept_and_answers_the_same(tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = models.save_bundle(tmp_path)
    first, nodes = answer(path)
    assert len(places(room)) == 1
    monkeypatch.setattr(kept, "_keep", lambda *_: pytest.fail("it was optimised again"))
    second, again = answer(path)
    assert same(first, second)
    assert nodes == again


@told
def test_another_graph_or_version_has_its_own(tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = models.save_bundle(tmp_path)
    answer(path)
    model = onnx.load(path)
    model.doc_string = "another"
    onnx.save(model, path)
    answer(path)
    assert len(places(room)) == 2
    monkeypatch.setattr(kept, "cpu_model", lambda: "another")
    answer(path)
    assert len(places(room)) == 3


@told
def test_what_is_damaged_is_made_again(tmp_path: Path, room: Path) -> None:
    path = models.save_bundle(tmp_path)
    first, _ = answer(path)
    (place,) = places(room)
    for name in ("graph.onnx", "about.json"):
        (place / name).write_bytes(b"\x00")
        assert same(first, answer(path)[0])
        assert (place / name).stat().st_size > 1
    was = (place / "graph.onnx").read_bytes()
    number = was.index(np.float32(0.5).tobytes()) + 3  # of a weight, which is 8 then: it still opens
    (place / "graph.onnx").write_bytes(was[:number] + b"\x41" + was[number + 1 :])
    assert same(first, answer(path)[0])
    assert (place / "graph.onnx").read_bytes() == was


@told
def test_only_the_newest_are_kept(tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_MOST_KEPT", 1)
    path = models.save_bundle(tmp_path)
    answer(path)
    old = places(room)
    monkeypatch.setattr(kept, "cpu_model", lambda: "another")
    answer(path)
    assert len(places(room)) == 1
    assert places(room) != old


@told
def test_weights_elsewhere_are_kept_where_their_checksum_is_known(tmp_path: Path, room: Path) -> None:
    path = models.save_bundle(tmp_path)
    share_weights([path])
    first, _ = answer(path)
    assert len(places(room)) == 1
    assert same(first, answer(path)[0])
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        kept_entries = [entry for entry in tensor.external_data if entry.key != "checksum"]
        del tensor.external_data[:]
        tensor.external_data.extend(kept_entries)
    path.write_bytes(model.SerializeToString())
    answer(path)
    assert len(places(room)) == 1


@told
def test_what_the_runtime_refuses_is_said_and_not_kept(tmp_path: Path, room: Path) -> None:
    path = models.save_bundle(tmp_path)
    model = onnx.load(path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, path)
    with pytest.raises(ModelFormatError, match="onnxruntime refuses"):
        answer(path)
    assert not places(room)
