"""What is compared of a model that takes long: the least always, the rest while there is time, and what is left out is
said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clusir.export import compared
from clusir.export.module import export_module
from clusir.export.validate import effort
from clusir.export.validate.cases import Case, ModuleCheck, cases_of
from clusir.export.validate.effort import Effort

SIZES = [(72, 152), (80, 48), (64, 176), (8, 8), (488, 584)]
OURS = ("ort", "openvino")


class Clock:
    """Processor time that passes only where a model runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr(effort.time, "process_time", lambda: self.seconds)


class Slow(nn.Module):
    """A restorer that takes ``a_megapixel`` seconds for one, or with ``power`` more for large ones."""

    def __init__(self, clock: Clock, a_megapixel: float, power: float = 1.0) -> None:
        super().__init__()
        self.clock, self.a_megapixel, self.power, self.asked = clock, a_megapixel, power, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.clock.seconds += self.a_megapixel * (x.shape[2] * x.shape[3] / 1e6) ** self.power
        self.asked.append(x)
        return x


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def asked(model: nn.Module, seconds: float, **more: object) -> tuple[list[Case], Effort]:
    left = Effort(seconds)
    given = ModuleCheck(model, model, SIZES, backends=OURS, photo_px=(512, 384, 256), effort=left, **more)  # type: ignore[arg-type]
    return cases_of(given, ["restored"], lambda _: None), left


def labels(cases: Sequence[Case]) -> list[str]:
    return [case.label for case in cases]


def test_everything_is_compared_where_there_is_time(clock: Clock) -> None:
    cases, left = asked(Slow(clock, 1.0), 60.0)
    assert not left.told()
    for height, width in SIZES:
        assert {f"{height}x{width} pictures", f"{height}x{width} black, white and one-coloured"} <= set(labels(cases))
    assert "512x512, photo" in labels(cases)
    pictures = torch.cat([case.pictures for case in cases if case.size == SIZES[0] and not case.plain])
    assert len({picture.numpy().tobytes() for picture in pictures}) == 8


def test_the_least_is_compared_whatever_it_takes(clock: Clock) -> None:
    """Two untraced sizes and the smallest, two pictures alone and together, and plain ones; the rest is said."""
    model = Slow(clock, 1e6)
    cases, left = asked(model, 60.0)
    found = {case.label: case for case in cases}
    assert {case.size for case in cases} == {(72, 152), (80, 48), (8, 8)}
    for height, width in ((72, 152), (80, 48), (8, 8)):
        assert {(0, 1), (1, 2), (0, 2)} == set(found[f"{height}x{width} pictures"].groups)
        plain = found[f"{height}x{width} black, white and one-coloured"]
        assert plain.plain
        assert len(plain.pictures) == 3
    (told,) = left.told()
    for size in ("72x152 more pictures", "64x176 pictures", "488x584 pictures", "512x512, photo", "256x256, photo"):
        assert size in told
    assert "1000000 s a megapixel" in told
    assert "60 s" in told


def test_what_a_slow_model_is_asked_for_stays_within_its_time(clock: Clock) -> None:
    """As slow as PromptIR: the photo is a smaller one, and the size of the trace is left out."""
    least = Slow(clock, 88.0)
    asked(least, 0.0)
    start, model = clock.seconds, Slow(clock, 88.0)
    cases, left = asked(model, 60.0)
    runs = sum(math.prod(x.shape[2:]) for x in model.asked) - sum(math.prod(x.shape[2:]) for x in least.asked)
    assert 3 * 88.0 * runs / 1e6 <= 60.0, "the model and two runtimes take longer than was said"
    assert "384x384, photo" in labels(cases) or "256x256, photo" in labels(cases)
    assert any("488x584" in what for what in left.left_out)
    assert clock.seconds - start < 60.0


def test_a_size_where_another_file_was_wrong_is_never_left_out(clock: Clock) -> None:
    cases, _ = asked(Slow(clock, 1e4), 60.0, least=[(64, 176)])
    assert (64, 176) in {case.size for case in cases}


def test_attention_over_all_pixels_is_expected_to_grow_as_it_does(clock: Clock) -> None:
    left = Effort(60.0)
    model = Slow(clock, 100.0, power=2.0)
    for side in (64, 128):
        with left.timed(side * side, 1):
            model(torch.zeros(1, 1, side, side))
    assert left.expects(512 * 512) == pytest.approx(100.0 * (512 * 512 / 1e6) ** 2)
    assert left.another(30.0).expects(512 * 512) == left.expects(512 * 512)
    with left.timed(4, 1):  # of a small picture nothing but calls is seen
        clock.seconds += 0.1
    assert left.expects(512 * 512) == pytest.approx(100.0 * (512 * 512 / 1e6) ** 2)


def test_a_fixed_batch_is_asked_once_for_each_picture(clock: Clock) -> None:
    for batch in (1, 3, 9):
        cases, _ = asked(Slow(clock, 1.0), 60.0, batch=batch)
        of_first = [case for case in cases if case.size == SIZES[0] and not case.plain]
        assert sum(len(case.pictures) for case in of_first) == -(-8 // batch) * batch
        assert all(stop - start == batch for case in cases if not case.plain for start, stop in case.groups)


@pytest.mark.usefixtures("small_measures")
def test_an_export_says_what_there_was_no_time_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the sizes that it says are verified are those that were."""
    monkeypatch.setattr(compared, "SECONDS", 0.0)
    made = export_module(nn.Conv2d(3, 3, 3, padding=1).eval(), "1x3x16x16", tmp_path / "model.onnx", backends=("ort",))
    (told,) = [note for note in made.notes if note.startswith("not compared")]
    assert "photo" in told
    assert len(made.sizes) == 3
    for height, width in made.sizes:
        assert sum(row.what.startswith(f"{height}x{width} ") for row in made.agreements) >= 4
        assert f"{height}x{width} pictures" not in told
    assert not any("photo" in row.what for row in made.agreements)
