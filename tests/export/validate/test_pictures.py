"""A file against a function of a picture: where the function is not sure of its answer, the file need not be surer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from clusir.errors import ValidationError
from clusir.export.passes.simplify import AttachMetadata
from clusir.export.validate.foreign import as_sure_as
from clusir.export.validate.pictures import PictureCheck, compare_pictures
from clusir.export.validate.tolerances import tolerance
from clusir.spec import ModelSpec, SizeRequirements

Picture = NDArray[np.float32]
OFF = 3e-4  # three times what is allowed


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that answers with the picture."""
    shape = ["batch", 3, "height", "width"]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "restored")]
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["restored"])], "same", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path_factory.mktemp("same") / "same.onnx"
    onnx.save(AttachMetadata(ModelSpec(size=SizeRequirements(1, 1))).apply(model).model, path)
    return path


def check(allowed: float | None, black: float = 0.0) -> PictureCheck:
    """Of a reference that is ``OFF`` the file; what is allowed for it, and for a black picture."""

    def allowance(image: Picture, _: Picture) -> float:
        return black if not image.any() else allowed or 0.0

    plain = PictureCheck(lambda image: {"restored": image + np.float32(OFF)}, [(16, 24)], 3, False, ("ort",),
                         tolerance("brought"))  # fmt: skip
    return plain if allowed is None else replace(plain, allowance=allowance)


@pytest.mark.parametrize("allowed", [None, OFF / 2])
def test_a_file_that_is_further_off_than_allowed_is_refused(same: Path, allowed: float | None) -> None:
    with pytest.raises(ValidationError, match="differs by"):
        compare_pictures(same, check(allowed, black=1.0))


def test_a_file_is_as_far_off_as_its_reference_may_be(same: Path) -> None:
    rows = compare_pictures(same, check(2 * OFF, black=2 * OFF))
    assert [found.allowed for _, _, found in rows] == [2 * OFF] * 4, "it is not told that the bound was missed"
    with pytest.raises(ValidationError, match="black"):
        compare_pictures(same, check(2 * OFF, black=OFF / 2))
    rows = compare_pictures(same, check(2 * OFF, black=float("inf")))
    assert not any("black" in what for _, what, _ in rows), "it was compared with an answer that means nothing"
    with pytest.raises(ValidationError, match="differs by"):
        compare_pictures(same, check(2 * OFF, black=2 * OFF).of("brought"))


def test_the_reference_is_asked_once_for_all_runtimes(same: Path) -> None:
    asked: list[bytes] = []

    def reference(image: Picture) -> dict[str, Picture]:
        asked.append(image.tobytes())
        return {"restored": image}

    given = replace(check(None), reference=reference, backends=("ort", "openvino"), sizes=[(16, 24), (8, 8)])
    rows = compare_pictures(same, given)
    assert len(rows) == 2 * len(asked) == 2 * len(set(asked)) == 16


class Amplified(nn.Module):
    """Layers over channels that hardly differ: what they differ by is divided by a deviation near 0, twice."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, x + 3e-4], 1) + 7.1
        for _ in range(2):
            y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, unbiased=False) + 1e-8).sqrt()
            y = 1e-4 * y + 5.3
        return 300 * (y[:, :3] - 5.3)


def test_a_network_is_as_sure_as_its_float64_form() -> None:
    image = np.zeros((1, 3, 16, 24), np.float32)

    def allowed(model: nn.Module, image: Picture) -> float:
        return as_sure_as(model)(image, model(torch.from_numpy(image)).numpy())

    assert allowed(nn.Identity(), image) == 0
    model = Amplified().eval()
    noise = np.random.default_rng(0).random(image.shape, dtype=np.float32)
    assert 4e-4 < allowed(model, noise) <= 1e-2
    assert allowed(model, image) == float("inf")


def test_rounding_is_asked_once_for_all_runtimes() -> None:
    asked: list[torch.dtype] = []

    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            asked.append(x.dtype)
            return x

    image = np.random.default_rng(0).random((1, 3, 16, 24), dtype=np.float32)
    allowance = as_sure_as(Counted().eval())
    for _ in range(3):
        assert allowance(image, image) == 0
    assert asked == [torch.float64], "PyTorch's own answer is known, or was asked for again"
    allowance(0.5 * image, 0.5 * image)
    assert asked == [torch.float64] * 2
