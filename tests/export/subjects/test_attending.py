"""Attention of published restorers at any size: grids, rectangles, overlapping windows, stripes, order, prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attending
import numpy as np
import pytest
import torch
from habits import Habit, Together

from clusir.export.module import export_module
from clusir.export.subjects.portable import SORTS, portable
from clusir.runtimes import open_runner

pytestmark = pytest.mark.usefixtures("small_measures")

KINDS: dict[str, tuple[Habit, ...]] = {
    "windows": (attending.sparse_grid, attending.rectangles, attending.overlapping),
    "order": (attending.strongest_channels, attending.by_brightness),
    "prompts": (attending.prompted, attending.anchored),
    "categories": (attending.by_category,),
}


def assert_right(path: Path, kind: str, *shapes: tuple[int, int, int]) -> None:
    for backend in ("ort", "openvino"):
        with open_runner(path, backend, "cpu", 1) as runner:
            for batch, height, width in shapes:
                image = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height))
                with torch.no_grad(), portable():
                    want = torch.cat([Together(*KINDS[kind]).eval()(one[None]) for one in image]).numpy()
                got = runner.run({"image": image.numpy()})["restored"]
                np.testing.assert_allclose(got, want, atol=1e-5 * max(1.0, np.abs(want).max()), rtol=0)


@pytest.mark.parametrize("kind", ["windows", "order", "prompts"])
def test_attention_exports_for_any_size_and_batch(kind: str, tmp_path: Path) -> None:
    made = export_module(Together(*KINDS[kind]).eval(), "1x3x64x64", tmp_path / "model.onnx")
    assert (made.spec.size.multiple_of, made.spec.size.static_px) == (1, 0)
    assert not any("fixes" in note for note in made.notes)
    # Sizes that are whole windows, and that are not; 64x64 is where nothing is padded.
    assert_right(made.path, kind, (2, 64, 64), (1, 50, 83), (2, 96, 40))


def test_tokens_sorted_by_category_keep_their_order_within_one(tmp_path: Path) -> None:
    """Few categories and many tokens: PyTorch on a CPU orders those of one category as it likes."""
    network = Together(*KINDS["categories"]).eval()
    made = export_module(network, "1x3x64x64", tmp_path / "model.onnx")
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
