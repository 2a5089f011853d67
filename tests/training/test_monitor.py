"""What a run shows of itself: the router's health, and the learning curve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clusir.network.config import CONFIGS
from clusir.training import monitor as module
from clusir.training.curve import curve_svg, read_curve
from clusir.training.data import PhotoSet
from clusir.training.monitor import RouterMonitor, validate


def test_the_router_monitor_measures_purity_on_single_degradation_only() -> None:
    monitor = RouterMonitor()
    posterior = torch.eye(2)[torch.tensor([0, 0, 1, 1, 0])]
    gate = torch.eye(4)[torch.tensor([0, 0, 1, 1, 2])]
    monitor.add([posterior], [gate], ("noise", "poisson_gaussian", "jpeg", "jpeg", "noise+jpeg"))
    figures = monitor.read()
    assert figures["purity/1"] == pytest.approx(1)
    assert figures["clusters/1"] == 2
    assert figures["least_expert/1"] == 0
    assert monitor.read() == {}


def test_the_curve_takes_the_later_figure_of_a_repeated_step(tmp_path: Path) -> None:
    rows = [(10, "gain/haze", 1), (20, "gain/haze", 2), (20, "psnr/haze", 30), (20, "gain/haze", -3)]
    lines = ["step,seconds,name,value", *(f"{step},0,{name},{value}" for step, name, value in rows)]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    curves = read_curve(tmp_path / "log.csv")
    assert curves == {"haze": [(10, 1.0), (20, -3.0)]}
    assert "-3.00 dB" in curve_svg(curves)


class Dims(nn.Module):
    """Each picture by what it may mend of it."""

    config = replace(CONFIGS["tiny"], permissions=True)

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor([0.3, 0.1, 0.05, 0.02, 0.15, 0.2]))

    def forward(self, image: Tensor, permissions: Tensor) -> Any:
        return SimpleNamespace(restored=image * (1 - (permissions * self.share).sum(dim=1))[:, None, None, None])


def test_a_validation_of_several_pictures_at_a_time_is_that_of_each(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = PhotoSet(folder, "validation")
    together = validate(Dims(), photos, 32, 2)  # type: ignore[arg-type]
    assert len({together[name] for name in together if name.startswith("shift/")}) > 3
    monkeypatch.setattr(module, "_TOGETHER", 1)
    assert validate(Dims(), photos, 32, 2) == together  # type: ignore[arg-type]
