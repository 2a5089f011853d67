"""Files that appear whole: their permissions and links, writers on several machines, and what is cleaned up."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from clusir import atomic
from clusir.atomic import PARTIAL, remove_dead_partials, whole_file, write_whole
from clusir.errors import ImageError
from clusir.runtimes.images.files import save_picture
from clusir.runtimes.images.picture import PictureInfo

posix = pytest.mark.skipif(os.name == "nt", reason="permissions, links and locks of POSIX")
HOLDER = """
import sys, time
from pathlib import Path
from clusir.atomic import whole_file
with whole_file(Path(sys.argv[1])) as stream:
    stream.write(b"half")
    stream.flush()
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _umask() -> object:
    before = os.umask(0o022)
    yield
    os.umask(before)


def rights(path: Path) -> int:
    return path.stat().st_mode & 0o777


def put(path: Path, data: bytes = b"new", like: Path | None = None) -> None:
    with whole_file(path, like) as stream:
        stream.write(data)


@posix
def test_a_new_file_is_no_more_open_than_what_it_was_made_from(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    for mode, expected in ((0o600, 0o600), (0o640, 0o640), (0o644, 0o644), (0o666, 0o644), (0o444, 0o644), (0, 0o600)):
        source.chmod(mode)
        target = tmp_path / f"{mode:o}"
        put(target, like=source)
        assert rights(target) == expected, f"{mode:o}"
    put(tmp_path / "plain")
    assert rights(tmp_path / "plain") == 0o644


@posix
def test_a_replaced_file_keeps_its_permissions_and_a_link_stays_one(tmp_path: Path) -> None:
    real, private = tmp_path / "deep" / "real", tmp_path / "private"
    real.parent.mkdir()
    real.write_bytes(b"old")
    real.chmod(0o664)
    private.write_bytes(b"x")
    private.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to("deep/real")
    put(link, b"through", private)
    assert link.is_symlink()
    assert real.read_bytes() == b"through"
    assert rights(real) == 0o664
    dangling = tmp_path / "dangling"
    dangling.symlink_to("deep/later")
    put(dangling)
    assert (tmp_path / "deep" / "later").read_bytes() == b"new"


@posix
def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "a.png"
    os.mkfifo(pipe)
    with pytest.raises(ImageError, match="device or pipe"):
        save_picture(pipe, [np.zeros((4, 4, 3), np.uint8)], PictureInfo("PNG", 4, 4, 3, np.dtype(np.uint8)))
    assert pipe.is_fifo()


def test_nothing_is_left_where_the_writer_fails(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 250)
    target.write_bytes(b"old")

    def fail(stream: object) -> None:
        raise ValueError("no")

    with pytest.raises(ImageError, match="cannot be written"):
        write_whole(target, fail, "report")
    assert [p.name for p in tmp_path.iterdir()] == [target.name]
    assert target.read_bytes() == b"old"


@posix
def test_only_what_is_dead_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    living = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out / "living.png")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out / "killed.png")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert living.stdout is not None
    assert killed.stdout is not None
    assert living.stdout.readline() == killed.stdout.readline() == b"writing\n"
    killed.kill()
    killed.communicate()
    other_machine = out / f".a.png.{'0' * 12}.{'1' * 16}{PARTIAL}"
    long_ago = out / f".b.png.{'0' * 12}.{'2' * 16}{PARTIAL}"
    strange = out / f".c.png{PARTIAL}"
    for path in (other_machine, long_ago, strange, out / "photo.png"):
        path.write_bytes(b"x")
    week = time.time() - 8 * 86400
    os.utime(long_ago, (week, week))
    assert len(list(out.iterdir())) == 6
    remove_dead_partials(out)
    names = sorted(p.name for p in out.iterdir())
    assert [n for n in names if "killed" in n or "b.png" in n] == []
    assert len(names) == 4
    living.communicate()
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ["living.png", "photo.png", other_machine.name, strange.name]
    )


@posix
def test_a_file_found_by_another_process_before_it_was_locked_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = atomic.fcntl.flock, []

    def flock(handle: int, kind: int) -> None:
        if not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].unlink()
        real(handle, kind)

    monkeypatch.setattr(atomic.fcntl, "flock", flock)
    put(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == len(taken) == 1
