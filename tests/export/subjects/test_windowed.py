"""Attention in windows, shifted, masked and biased, exported for any size of picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from windowed import ShiftedWindows

from clusir.export.module import export_module
from clusir.runtimes import open_runner


def windows() -> ShiftedWindows:
    torch.manual_seed(0)
    return ShiftedWindows(dim=4, blocks=2, size=8).eval()


@pytest.mark.usefixtures("small_measures")
def test_shifted_windows_are_right_at_any_size_and_batch(tmp_path: Path) -> None:
    made = export_module(windows(), "1x3x64x64", tmp_path / "windows.onnx", backends=("ort",))
    assert (made.spec.size.multiple_of, made.spec.size.static_px) == (1, 0)
    assert not any("fixes" in note for note in made.notes)
    for backend in ("ort", "openvino"):
        with open_runner(made.path, backend, "cpu", 1) as runner:
            # 32x32 is the size that the blocks were built for, and takes another path in them.
            for batch, height, width in ((2, 64, 64), (1, 32, 32), (2, 41, 87)):
                image = torch.rand(batch, 3, height, width)
                with torch.no_grad():
                    want = windows()(image).numpy()
                got = runner.run({"image": image.numpy()})["restored"]
                np.testing.assert_allclose(got, want, atol=1e-5, rtol=0)
