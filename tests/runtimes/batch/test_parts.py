"""What is kept of a picture on its way: its digest, and how it looks before and after."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clusir.errors import ImageError
from clusir.runtimes.batch.memory import look_bytes, look_step
from clusir.runtimes.batch.parts import Stamp, Watched, look_at
from clusir.runtimes.images.files import open_picture


def saved(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("step", [1, 2, 7, 100])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_a_look_is_the_same_on_the_way_and_afterwards(tmp_path: Path, step: int, scale: int) -> None:
    rng = np.random.default_rng(0)
    before = rng.integers(0, 255, (61, 47, 3), np.uint8)
    after = rng.integers(0, 255, (61 * scale, 47 * scale, 4), np.uint8)
    source, target = open_picture(saved(tmp_path / "a.png", before)), open_picture(saved(tmp_path / "b.png", after))
    watched = Watched(source, target.info, step)
    for start, stop in ((40, 61), (0, 20), (20, 33), (33, 61)):  # routing looks first, and some rows twice
        np.testing.assert_array_equal(watched.rows(start, stop), before[start:stop])
    bands = [after[at : at + 17] for at in range(0, len(after), 17)]
    assert sum(len(band) for band in watched.taken(iter(bands))) == len(after)
    for look in (watched.look(), look_at(source, target, step)):
        np.testing.assert_array_equal(look.after, after[::step, ::step])
        np.testing.assert_array_equal(look.before, before.repeat(scale, 0).repeat(scale, 1)[::step, ::step])


def test_pictures_of_other_sizes_are_not_compared(tmp_path: Path) -> None:
    a = open_picture(saved(tmp_path / "a.png", np.zeros((20, 30, 3), np.uint8)))
    for size in ((21, 30), (40, 30), (10, 15)):
        with pytest.raises(ImageError, match="nothing to compare"):
            look_at(a, open_picture(saved(tmp_path / "b.png", np.zeros((*size, 3), np.uint8))), 1)


def test_a_look_takes_no_more_than_its_room() -> None:
    for width, height, pixel_bytes in ((100, 100, 6), (20000, 15000, 12), (1, 50000, 2)):
        for room in (1 << 30, 50 << 20, 1 << 20, 100):
            step = look_step(width, height, pixel_bytes, room)
            assert look_bytes(width, height, pixel_bytes, step) <= room
            assert step == 1 or look_bytes(width, height, pixel_bytes, step - 1) > room or width * height > 16 << 20
    assert look_step(4000, 4000, 6, 1 << 40) == 1


def test_a_stamp_is_of_the_bytes_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    stamp = Stamp.of(path)
    assert stamp is not None
    stamp.check()
    state = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # of the same size and date
    with pytest.raises(ImageError, match="changed while it was read"):
        stamp.check()
    path.unlink()
    with pytest.raises(ImageError, match="changed while it was read"):
        stamp.check()
    assert Stamp.of(path) is None
    assert Stamp.of(tmp_path) is None


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.png")
    assert Stamp.of(tmp_path / "p.png") is None


def test_a_file_that_does_not_stand_still_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real, grown = tmp_path / "a.png", Path.stat, []
    path.write_bytes(b"one")

    def growing(self: Path, **options: bool) -> os.stat_result:
        if self == path:
            grown.append(1)
            with open(path, "ab") as stream:
                stream.write(b"x")
        return real(self, **options)

    monkeypatch.setattr(Path, "stat", growing)
    with pytest.raises(ImageError, match="being written"):
        Stamp.of(path)
