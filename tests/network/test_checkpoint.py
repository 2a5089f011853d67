"""Checkpoints are data: strict keys, no pickle, one-line refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from clusir.errors import ModelFormatError, UsageError
from clusir.network import checkpoint
from clusir.network.model import CONFIGS


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    model = checkpoint.random_model(CONFIGS["tiny"], seed=3)
    path = tmp_path / "net.safetensors"
    checkpoint.save(model, path, {"note": "hello"})
    again = checkpoint.load(path)
    assert again.config == model.config
    assert not again.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert checkpoint.read_metadata(path)["note"] == "hello"
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        checkpoint.load(tmp_path / "none.safetensors")
    noise = tmp_path / "noise.safetensors"
    noise.write_bytes(b"not a model at all")
    with pytest.raises(ModelFormatError, match="is not a safetensors file"):
        checkpoint.load(noise)
    stranger = tmp_path / "stranger.safetensors"
    save_file({"x": torch.zeros(1)}, stranger)
    with pytest.raises(ModelFormatError, match="holds no clusir config"):
        checkpoint.load(stranger)


def test_wrong_keys_and_nan_are_refused(tmp_path: Path) -> None:
    model = checkpoint.random_model(CONFIGS["tiny"])
    path = tmp_path / "net.safetensors"
    with torch.no_grad():
        model.head.weight[0, 0, 0, 0] = float("nan")
    checkpoint.save(model, path)
    with pytest.raises(ModelFormatError, match="not finite"):
        checkpoint.load(path)
    tensors = {k: v for k, v in model.state_dict().items() if k != "head.weight"}
    save_file(tensors, path, checkpoint.read_metadata(path))
    with pytest.raises(ModelFormatError, match="does not fit its config"):
        checkpoint.load(path)


def test_resolve_names_what_there_is() -> None:
    with pytest.raises(UsageError, match="tiny"):
        checkpoint.resolve("random:huge")
    first, _ = checkpoint.resolve("random:tiny", seed=1)
    second, _ = checkpoint.resolve("random:tiny", seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(parameter.any() for parameter in first.parameters())
