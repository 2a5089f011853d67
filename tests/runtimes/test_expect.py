"""A graph of open size, opened once more for the size of many tiles: the same pictures, whatever ran before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

from clusir.errors import UsageError
from clusir.runtimes import Restorer, open_runner
from clusir.runtimes.runners.ort import OrtRunner

BACKENDS = ("ort", "openvino")
MANY, FEW = (80, 800), (80, 300)  # 2 x 17 and 2 x 6 tiles of 48 x 64 px


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return models.save_bundle(tmp_path / "open", static=False)


def picture(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((*size, 3), dtype=np.float32)


def feeds(size: tuple[int, int], batch: int = 1) -> dict[str, np.ndarray]:
    routing = {"posterior": sum(models.CLUSTERS), "gate": sum(models.EXPERTS)}
    image = picture(size).transpose(2, 0, 1)[None].repeat(batch, axis=0)
    return {"image": image, **{name: np.full((batch, count), 0.25, np.float32) for name, count in routing.items()}}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_expected_size_runs_in_a_form_of_its_own(bundle: Path, backend: str) -> None:
    with open_runner(bundle.with_name("model.tile.onnx"), backend, threads=1) as runner:
        general = runner.run(feeds((32, 48)))["restored"]
        runner.expect((32, 48))
        np.testing.assert_allclose(runner.run(feeds((32, 48)))["restored"], general, atol=1e-6)
        both: Any = runner
        name = "_session" if backend == "ort" else "_request"
        kept = getattr(both, name)
        setattr(both, name, None)  # whatever needs the general form fails from here on
        np.testing.assert_allclose(runner.run(feeds((32, 48)))["restored"], general, atol=1e-6)
        setattr(both, name, kept)
        assert runner.run(feeds((48, 32)))["restored"].shape == (1, 3, 48, 32)
        assert runner.run(feeds((32, 48), batch=2))["restored"].shape == (2, 3, 32, 48)
        with pytest.raises(UsageError, match="multiples of 16"):
            runner.run(feeds((32, 40)))
        runner.expect(None)
        np.testing.assert_array_equal(runner.run(feeds((32, 48)))["restored"], general)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_static_graph_has_one_form(tmp_path: Path, backend: str) -> None:
    path = models.save_bundle(tmp_path).with_name("model.tile.onnx")
    with open_runner(path, backend, threads=1) as runner:
        runner.expect((64, 64))
        both: Any = runner
        assert both._fixed == {}
        assert runner.run(feeds((64, 64)))["restored"].shape == (1, 3, 64, 64)


@pytest.mark.parametrize("routing", ["shared", "tile"])
def test_only_pictures_of_many_tiles_are_announced(bundle: Path, monkeypatch: pytest.MonkeyPatch, routing: str) -> None:
    said: list[tuple[str, object]] = []
    monkeypatch.setattr(OrtRunner, "expect", lambda self, size: said.append((self.spec.graph, size)))
    graph = "tile" if routing == "shared" else "whole"
    with Restorer(bundle, "ort", routing=routing) as restorer:
        for size in (MANY, FEW):
            restorer.restore(picture(size))
    assert said == [(graph, (48, 64)), (graph, None)]
    said.clear()
    with Restorer(bundle, "ort", routing=routing, batch=2) as restorer:
        restorer.restore(picture(MANY))
    assert said == [(graph, None)], "several tiles at a time"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_picture_does_not_hang_on_what_ran_before(bundle: Path, backend: str) -> None:
    small, large = picture(FEW), picture(MANY, 1)
    with Restorer(bundle, backend, threads=1) as fresh:
        first = fresh.restore(small)
    with Restorer(bundle, backend, threads=1) as used, Restorer(bundle, backend, threads=1, batch=2) as plain:
        restored = used.restore(large)
        np.testing.assert_array_equal(used.restore(small), first)
        np.testing.assert_array_equal(used.restore(large), restored)
        np.testing.assert_allclose(plain.restore(large), restored, atol=1e-6)


def test_warming_up_holds_all_forms_that_a_run_may_open(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, object]] = []
    monkeypatch.setattr(OrtRunner, "expect", lambda self, size: said.append((self.spec.graph, size)))
    with Restorer(bundle, "ort") as restorer:
        restorer.warm_up()
    assert ("tile", (64, 64)) in said
