"""Pictures that would not fit into memory are not compared, what is compared instead fits, and it is said."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_graphs import Net
from torch import Tensor, nn

from clusir.export.passes.simplify import AttachMetadata
from clusir.export.validate.cases import ModuleCheck
from clusir.export.validate.foreign import validate
from clusir.export.validate.memory import TORCH, Memory, Watched, steps_to
from clusir.runtimes.machine.allowed import held_bytes
from clusir.spec import ModelSpec, SizeRequirements

Size = tuple[int, int]
SIDES = [(512, 512), (384, 384), (256, 256)]


class Machine:
    """One with ``free`` bytes, where a picture takes ``takes`` bytes by height and width, on top of 1000."""

    def __init__(self, free: int, takes: Callable[[int, int], float]) -> None:
        self.takes, self.now, self.most = takes, 1000, 0
        self.memory = Memory(free=lambda: free, held=lambda: self.now)

    def answer(self, size: Size, runtime: str = "ort") -> None:
        with self.memory.watched(runtime, size):
            took = int(self.takes(*size))
            self.most, self.now = max(self.most, took), 1000 + took
            time.sleep(0.02)
            self.now = 1000


def attending(h: int, w: int) -> float:
    return 0.01 * (h * w) ** 2


def along_an_axis(h: int, w: int) -> float:
    return 500 + h * w * max(h, w)


def plain(h: int, w: int) -> float:
    return 10_000 + 64 * h * w


@pytest.mark.parametrize("takes", [attending, along_an_axis, plain])
def test_no_picture_is_expected_to_take_less_than_it_does(takes: Callable[[int, int], float]) -> None:
    machine = Machine(0, takes)
    for size in ((76, 148), (80, 52), (8, 8), (76, 260)):
        machine.answer(size)
    for h, w in ((80, 48), (76, 260), (128, 960), (200, 200), (512, 512), (1024, 256)):
        need = machine.memory.need("ort", (h, w))
        assert takes(h, w) <= need <= 60 * takes(h, w)
    assert machine.memory.need("openvino", (512, 512)) == 0
    for size in ((160, 160), (320, 320)):
        machine.answer(size, "squares")
    assert machine.memory.need("squares", (128, 960)) >= takes(128, 960), "a long one"
    machine.answer((128, 480), "squares")
    assert takes(128, 960) <= machine.memory.need("squares", (128, 960)) <= 4.01 * takes(128, 960), "by half of it"


def test_of_the_sizes_that_fit_the_largest_is_reached_in_steps() -> None:
    machine = Machine(int(2 * along_an_axis(512, 512)), along_an_axis)
    for size in ((8, 8), (76, 148)):
        machine.answer(size)
    assert not machine.memory.fits("ort", (512, 512)), "nothing is known of it yet"
    asked = []
    for size in machine.memory.ways("ort", SIDES):
        asked.append(size)
        machine.answer(size)
    assert asked[-1] == (512, 512)
    assert len(asked) == 3
    assert machine.memory.sentences() == ()


@pytest.mark.parametrize("share", [0.002, 0.2, 0.6])
def test_what_is_asked_for_fits_and_what_is_not_is_told(share: float) -> None:
    free = int(share * attending(512, 512))
    machine = Machine(free, attending)
    for size in ((8, 8), (76, 148)):
        machine.answer(size)
    asked = []
    for size in machine.memory.ways("ort", SIDES):
        asked.append(size)
        machine.answer(size)
    assert machine.most <= free
    (told,) = machine.memory.sentences()
    assert told.startswith("a picture of 512x512 would take up to 0.7 GB of memory on ort and 0.")
    assert told.endswith(f"{'{}x{}'.format(*asked[-1]) if asked else 'nothing'} was compared instead")
    assert bool(asked) == (share > 0.1)


def test_memory_that_is_held_for_a_moment_is_seen() -> None:
    memory = Memory()
    run = Watched(memory, "ort", lambda image: np.ones(64 << 20, np.uint8)[:1])
    run(np.zeros((1, 3, 64, 64), np.float32))
    assert 60 << 20 < memory.need("ort", (64, 64)) < 200 << 20
    assert run.fits(64, 64)
    assert Memory(free=lambda: 1).fits("ort", (64, 64)), "of the first picture nothing is known"
    assert held_bytes() > 0


def test_pages_of_a_library_take_nothing() -> None:
    """Linux drops them under load and reads them again when they are called."""
    library = max(Path(torch.__file__).parent.glob("lib/*"), key=lambda path: path.stat().st_size)
    pages, memory = np.memmap(library, np.uint8, "r", shape=64 << 20), Memory()
    Watched(memory, "ort", lambda image: image + pages[:: 1 << 12].max())(np.zeros((1, 3, 64, 64), np.float32))
    assert memory.need("ort", (64, 64)) < 20 << 20


def test_what_a_picture_left_hides_nothing_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [1000]
    monkeypatch.setattr("clusir.export.validate.memory._give_back", lambda: held.__setitem__(0, 1000))
    memory = Memory(free=lambda: 0, held=lambda: held[0])
    for side in (8, 16, 12):
        with memory.watched("ort", (side, side)):
            held[0] = max(held[0], 1000 + side**2)
    assert [memory.need("ort", (side, side)) for side in (8, 16, 12)] == [64, 256, 144]


def doubling(folder: Path) -> Path:
    net = Net()
    net.output(net.op("Mul", net.input("image", "b", 3, "h", "w"), net.const([2.0]), name="restored"))
    path = folder / "model.onnx"
    onnx.save(AttachMetadata(ModelSpec(size=SizeRequirements(1, 1))).apply(net.model()).model, path)
    return path


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize(("runtime", "photo"), [(None, 64), ("ort", 48), (TORCH, 48)])
def test_a_photo_that_does_not_fit_is_made_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str | None, photo: int
) -> None:
    path = doubling(tmp_path)
    given = ModuleCheck(Doubled(), Doubled(), [(24, 40), (8, 8)], photo_px=(64, 48, 32))

    def need(_: Memory, where: str, size: Size) -> int:
        return 10**15 if where == runtime and size[0] > 50 else 0

    monkeypatch.setattr(Memory, "need", need)
    rows = validate(path, given)
    photos = [row.what for row in rows if "photo" in row.what]
    assert photos == [f"{photo}x{photo}, photo"]
    told = given.memory.sentences()
    assert len(told) == (runtime is not None)
    assert all("64x64 would take up to 1000000.0 GB" in line and "48x48 was compared" in line for line in told)


def test_pictures_are_given_together_where_so_many_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = doubling(tmp_path)
    monkeypatch.setattr(Memory, "need", lambda *_: 1)
    for free, most in ((10**6, 4), (2, 1)):
        memory = Memory(free=lambda free=free: free)  # type: ignore[misc]
        given = ModuleCheck(Doubled(), Doubled(), [(24, 40)], memory=memory)
        rows = validate(path, given)
        counts = {row.count // (3 * 24 * 40) for row in rows}
        assert max(counts) == most
        assert sum("black" in row.what for row in rows) == (1 if most > 1 else 3)


def test_double_precision_is_asked_for_where_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells whether a model that misses its bound is ill-conditioned, and takes twice as much."""
    doubled = list[torch.dtype]()

    class Watching(Doubled):
        def forward(self, x: Tensor) -> Tensor:
            doubled.append(x.dtype)
            return 2 * x + 0.1

    path = doubling(tmp_path)
    monkeypatch.setattr(Memory, "need", lambda *_: 1)
    for free, asked in ((10**6, True), (2, False)):
        doubled.clear()
        given = ModuleCheck(Watching(), Watching(), [(8, 8)], memory=Memory(free=lambda free=free: free))  # type: ignore[misc]
        with pytest.raises(Exception, match="differs by"):
            validate(path, given)
        assert (torch.float64 in doubled) == asked


def test_a_large_size_comes_behind_smaller_ones() -> None:
    rule = SizeRequirements(16, 32)
    assert steps_to([(512, 520), (64, 64)], rule.padded) == [(128, 144), (256, 272), (512, 520), (64, 64)]
    assert steps_to([(256, 256)], rule.padded) == [(256, 256)]
    assert steps_to([(512, 512)], SizeRequirements(static_px=512).padded) == [(512, 512)]
