"""A whole graph is opened by the first picture of one tile, and not before."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import onnx
import pytest

from clusir.errors import ModelFormatError, UsageError
from clusir.runtimes.restore.restorer import Restorer


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
