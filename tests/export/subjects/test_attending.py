"""Attention of published restorers at any size: grids, rectangles, overlapping windows, stripes, order, prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attending
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from habits import Habit, Together
from torch import Tensor, nn

from clusir.export.module import export_module
from clusir.export.subjects.portable import SORTS, TOPS, portable
from clusir.runtimes import open_runner

pytestmark = pytest.mark.usefixtures("small_measures")

KINDS: dict[str, tuple[Habit, ...]] = {
    "windows": (attending.sparse_grid, attending.rectangles, attending.overlapping),
    "order": (attending.strongest_channels, attending.by_brightness),
    "prompts": (attending.prompted, attending.anchored),
    "categories": (attending.by_category,),
}


def assert_right(path: Path, kind: str, *shapes: tuple[int, int, int]) -> None:
    images = [torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(h)) for b, h, w in shapes]
    with torch.no_grad(), portable():
        wanted = [torch.cat([Together(*KINDS[kind]).eval()(one[None]) for one in image]).numpy() for image in images]
    for backend in ("ort", "openvino"):
        with open_runner(path, backend, "cpu", 1) as runner:
            for image, want in zip(images, wanted, strict=True):
                got = runner.run({"image": image.numpy()})["restored"]
                np.testing.assert_allclose(got, want, atol=1e-5 * max(1.0, np.abs(want).max()), rtol=0)


@pytest.mark.parametrize("kind", ["windows", "order", "prompts"])
def test_attention_exports_for_any_size_and_batch(kind: str, tmp_path: Path) -> None:
    made = export_module(Together(*KINDS[kind]).eval(), "1x3x64x64", tmp_path / "model.onnx", backends=("ort",))
    assert (made.spec.size.multiple_of, made.spec.size.static_px) == (1, 0)
    assert not any("fixes" in note for note in made.notes)
    # Sizes that are whole windows, and that are not; 64x64 is where nothing is padded.
    assert_right(made.path, kind, (2, 64, 64), (1, 50, 83), (2, 96, 40))


def test_tokens_sorted_by_category_keep_their_order_within_one(tmp_path: Path) -> None:
    """Few categories and many tokens: PyTorch on a CPU orders those of one category as it likes."""
    network = Together(*KINDS["categories"]).eval()
    made = export_module(network, "1x3x64x64", tmp_path / "model.onnx", backends=("ort",))
    assert SORTS in made.notes
    assert made.spec.size.static_px == 0
    assert_right(made.path, "categories", (1, 64, 64), (1, 50, 83), (1, 96, 40))


@pytest.mark.parametrize("call", [torch.sort, torch.Tensor.sort, torch.argsort, torch.Tensor.argsort])
@pytest.mark.parametrize("args", [(), (1,), (1, True)])
def test_a_sort_leaves_equal_values_as_they_stand(call: Callable[..., Any], args: tuple[Any, ...]) -> None:
    values = (torch.arange(3000) * 7919 % 5).view(1, 3000)
    with portable() as mode:
        found = call(values, *args)
    order = found if isinstance(found, torch.Tensor) else found[1]
    assert torch.equal(order, torch.argsort(values, stable=True, dim=1, descending=len(args) == 2))
    assert mode.notes == {SORTS}


@pytest.mark.parametrize("call", [torch.topk, torch.Tensor.topk])
def test_topk_takes_the_first_of_equal_values(call: Callable[..., Any]) -> None:
    values = (torch.arange(3000) * 7919 % 5).view(1, 3000)
    with portable() as mode:
        found = call(values, 7, 1)
    assert found.indices.tolist() == [torch.nonzero(values[0] == 4).flatten()[:7].tolist()]
    assert found.values.tolist() == [[4] * 7]
    assert mode.notes == {TOPS}
    with portable() as mode:
        least = call(torch.tensor([3.0, 1.0, 2.0]), 2, largest=False)
    assert least.indices.tolist() == [1, 2]
    assert mode.notes == set()  # nothing was equal at the edge


def test_the_brightest_pixels_of_an_eroded_map_are_the_same_in_the_file(tmp_path: Path) -> None:
    """Dark channel prior (He 2009): a minimum over 9x9 px has equal values at many places, of which some are taken."""

    class Airlight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.leave = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            dark = -F.max_pool2d(-x.amin(1, keepdim=True), 9, 1, 4)
            brightest = dark.flatten(1).topk(12, 1).indices
            air = x.flatten(2).gather(2, brightest[:, None].expand(-1, 3, -1)).mean(2)
            return x + 0.2 * self.leave(x * (1 - dark) + air[..., None, None])

    made = export_module(Airlight().eval(), "1x3x64x64", tmp_path / "model.onnx")
    assert TOPS in made.notes
    assert made.spec.size.static_px == 0
