"""Habits of research code: exported right at sizes that the export did not see, or refused with what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import habits
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clusir.export.module import ModuleExport, export_module
from clusir.export.subjects.portable import portable
from clusir.runtimes import open_runner

BACKENDS = ("ort", "openvino")
TOLERANCE = 1e-5


def pictures(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height))


def export(model: nn.Module, folder: Path, **options: object) -> ModuleExport:
    return export_module(model.eval(), "1x3x64x64", folder / "model.onnx", **options)  # type: ignore[arg-type]


def assert_right(made: ModuleExport, factory: Callable[[], nn.Module], *shapes: tuple[int, int, int]) -> None:
    """The file agrees with a fresh module on both runtimes at shapes (batch, height, width)."""
    for backend in BACKENDS:
        with open_runner(made.path, backend, "cpu", 1) as runner:
            for batch, height, width in shapes:
                for image in (pictures(batch, height, width), torch.zeros(batch, 3, height, width)):
                    with torch.no_grad(), portable():
                        want = torch.cat([factory().eval()(one[None]) for one in image]).numpy()
                    got = runner.run({"image": image.numpy()})["restored"]
                    np.testing.assert_allclose(got, want, atol=TOLERANCE * max(1.0, np.abs(want).max()), rtol=0)


SHAPES = ((2, 64, 64), (1, 50, 83), (1, 96, 40))

KINDS: dict[str, tuple[habits.Habit, ...]] = {
    "sizes": (
        habits.rounded,
        habits.by_numpy,
        habits.by_math,
        habits.longest,
        habits.root,
        habits.windowed,
        habits.vignette,
    ),
    "writes": (
        habits.quarters,
        habits.border_written,
        habits.interleaved,
        habits.through_a_mask,
        habits.by_pixel_mask,
    ),
    "pools": (
        habits.adaptive,
        habits.areas,
        habits.antialiased,
        habits.pooled_by_size,
        habits.wrapped,
        habits.grown_back,
        habits.pads_if_needed,
    ),
    "order": (
        habits.median,
        habits.sorted_tokens,
        habits.attention_of_three_axes,
        habits.attention_of_five_axes,
        habits.kernel_of_each_picture,
    ),
    "numbers": (
        habits.mixed_scalars,
        habits.in_half,
        habits.on_the_card,
        habits.tiny_epsilon,
        habits.inverse_error,
        habits.small_inverse,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_habits_export_for_any_size(kind: str, tmp_path: Path) -> None:
    made = export(habits.Together(*KINDS[kind]), tmp_path)
    assert (made.spec.size.multiple_of, made.spec.size.static_px) == (1, 0)
    assert_right(made, lambda: habits.Together(*KINDS[kind]), *SHAPES)
    if kind == "numbers":
        assert any("half precision" in note for note in made.notes)
