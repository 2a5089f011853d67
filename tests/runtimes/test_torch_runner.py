"""The reference as a runner: three graphs from one checkpoint, with the names and shapes of the exported ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clusir.errors import BackendError, UsageError
from clusir.runtimes import open_runner


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from clusir.network.checkpoint import save
    from clusir.network.model import CONFIGS, ClusIR

    torch.manual_seed(0)
    model = ClusIR(CONFIGS["tiny"])
    torch.nn.init.normal_(model.head.weight, std=0.02)
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save(model, path)
    return path


def test_tile_graph_with_the_whole_graphs_routing_gives_the_same_picture(checkpoint: Path) -> None:
    image = np.random.default_rng(0).random((2, 3, 32, 48), dtype=np.float32)
    with open_runner(checkpoint, backend="torch", device="cpu", threads=1) as runner:
        whole = runner.run({"image": image})
        spec = runner.spec
    assert runner.name == "torch:cpu"
    assert whole["posterior"].shape == (2, sum(spec.clusters))
    assert whole["gate"].shape == (2, sum(spec.experts))
    with open_runner(checkpoint, device="cpu", graph="router") as runner:
        one_by_one = [runner.run({"image": image[i : i + 1]}) for i in range(2)]
        together = runner.run({"image": image})
    router = {name: np.concatenate([out[name] for out in one_by_one]) for name in together}
    np.testing.assert_allclose(router["posterior"], whole["posterior"], atol=1e-6)
    assert {len(values) for values in together.values()} == {1}  # a router takes its batch for one picture
    assert (np.count_nonzero(whole["gate"], axis=1) == spec.top_k * len(spec.experts)).all()
    with open_runner(checkpoint, device="cpu", graph="tile") as runner:
        given = {"image": image, **{name: whole[name] for name in ("posterior", "gate")}}
        given["statistics"] = router["statistics"]
        tile = runner.run(given)
        # What is given is really used: other gates, or the statistics of the other picture of the batch.
        others = [{"gate": np.roll(whole["gate"], 1, axis=1)}, {"statistics": router["statistics"][::-1].copy()}]
        restored = [runner.run(given | other)["restored"] for other in others]
    assert router["statistics"].shape == (2, runner.spec.statistics)
    np.testing.assert_allclose(tile["restored"], whole["restored"], atol=1e-5)
    for picture in restored:
        assert np.abs(picture - whole["restored"]).max() > 1e-6


def test_restorer_on_a_checkpoint(checkpoint: Path) -> None:
    from clusir.runtimes import Restorer

    pixels = np.random.default_rng(0).integers(0, 255, (20, 300, 3), np.uint8)
    with Restorer(checkpoint, device="cpu", threads=1) as restorer:
        assert (restorer.name, restorer.routing) == ("torch:cpu", "shared")
        restored, work = restorer.restore_and_tell(pixels)
    assert restored.shape == pixels.shape
    assert work.tiles == 2
    assert work.routing is not None
    assert work.routing.shared


def test_refusals(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_runner(checkpoint) as runner, pytest.raises(UsageError, match="multiples of 16"):
        runner.run({"image": np.zeros((1, 3, 20, 32), np.float32)})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="no CUDA device"):
        open_runner(checkpoint, device="cuda")
    with pytest.raises(UsageError, match="does not read"):
        open_runner(checkpoint, backend="ort")
