"""Attention of published restorers at any size: grids, rectangles, overlapping windows, stripes, order, prompts."""

from __future__ import annotations

from pathlib import Path

import attending
import numpy as np
import pytest
import torch
from habits import Habit, Together

from clusir.export.module import export_module
from clusir.runtimes import open_runner

pytestmark = pytest.mark.usefixtures("small_measures")

KINDS: dict[str, tuple[Habit, ...]] = {
    "windows": (attending.sparse_grid, attending.rectangles, attending.overlapping),
    "order": (attending.strongest_channels, attending.by_brightness),
    "prompts": (attending.prompted, attending.anchored),
}


def assert_right(path: Path, kind: str, *shapes: tuple[int, int, int]) -> None:
    for backend in ("ort", "openvino"):
        with open_runner(path, backend, "cpu", 1) as runner:
            for batch, height, width in shapes:
                image = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height))
                with torch.no_grad():
                    want = torch.cat([Together(*KINDS[kind]).eval()(one[None]) for one in image]).numpy()
                got = runner.run({"image": image.numpy()})["restored"]
                np.testing.assert_allclose(got, want, atol=1e-5 * max(1.0, np.abs(want).max()), rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_exports_for_any_size_and_batch(kind: str, tmp_path: Path) -> None:
    made = export_module(Together(*KINDS[kind]).eval(), "1x3x64x64", tmp_path / "model.onnx")
    assert (made.spec.size.multiple_of, made.spec.size.static_px) == (1, 0)
    assert not any("fixes" in note for note in made.notes)
    # Sizes that are whole windows, and that are not; 64x64 is where nothing is padded.
    assert_right(made.path, kind, (2, 64, 64), (1, 50, 83), (2, 96, 40))
