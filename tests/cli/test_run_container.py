"""clusir-run in a container: a control group with little memory and half a core."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hostile_files
import models
import pytest
from PIL import Image

from tests import needs

COMMAND = [sys.executable, "-c", "from clusir.cli.run import main; main()"]
V1 = Path("/sys/fs/cgroup/memory")
Start = Callable[..., "subprocess.CompletedProcess[str]"]
COUNT = 1000 if os.environ.get("CLUSIR_FULL") else 40


def write(path: Path, text: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # limits on swap are not everywhere
        path.write_text(text)


@pytest.fixture
def container() -> Iterator[Callable[[int, float], Start]]:
    """Makes a group of so many megabytes and cores, and gives a function that runs a command in it."""
    made: list[Path] = []

    def make(megabytes: int, share: float) -> Start:
        name, size = f"clusir-test-{os.getpid()}", str(megabytes << 20)
        roots = [V1, V1.parent / "cpu"] if V1.is_dir() else [V1.parent]
        try:
            for root in roots:
                (root / name).mkdir()
                made.append(root / name)
            if V1.is_dir():
                (V1 / name / "memory.limit_in_bytes").write_text(size)
                write(V1 / name / "memory.memsw.limit_in_bytes", size)
                (made[1] / "cpu.cfs_period_us").write_text("100000")
                (made[1] / "cpu.cfs_quota_us").write_text(str(int(share * 100000)))
            else:
                (made[0] / "memory.max").write_text(size)
                write(made[0] / "memory.swap.max", "0")
                (made[0] / "cpu.max").write_text(f"{int(share * 100000)} 100000")
        except OSError as error:
            needs.skip("cgroup", str(error))

        def start(*arguments: object) -> subprocess.CompletedProcess[str]:
            join = " && ".join(f"echo $$ > {folder}/cgroup.procs" for folder in made)
            command = ["sh", "-c", f'{join} && exec "$@"', "sh", *COMMAND, *map(str, arguments)]
            return subprocess.run(command, capture_output=True, text=True, timeout=1500)

        return start

    yield make
    for folder in made:
        for _ in range(50):  # until the last process is gone
            with contextlib.suppress(OSError):
                folder.rmdir()
            if not folder.exists():
                break
            time.sleep(0.1)


def test_a_picture_that_does_not_fit_is_refused_and_the_small_one_is_done(
    container: Callable[[int, float], Start], tmp_path: Path
) -> None:
    model = models.save_identity(tmp_path / "model.onnx")
    (tmp_path / "in").mkdir()
    Image.new("RGB", (9000, 9000), (90, 120, 60)).save(tmp_path / "in" / "a.jpg", quality=30)
    hostile_files.photo().save(tmp_path / "in" / "b.png")
    done = container(300, 1.0)(tmp_path / "in", "-o", tmp_path / "out", "--model", model)
    assert done.returncode == 1, done
    assert "a.jpg: it takes about" in done.stderr
    assert "--max-memory" in done.stderr
    assert (tmp_path / "out" / "b.png").is_file()


def test_asking_for_more_than_there_is(container: Callable[[int, float], Start], tmp_path: Path) -> None:
    model = models.save_identity(tmp_path / "model.onnx")
    hostile_files.photo().save(tmp_path / "b.png")
    done = container(300, 1.0)(tmp_path / "b.png", "-o", tmp_path / "c.png", "--model", model, "--max-memory", "8G")
    assert done.returncode == 0, done
    assert "this process may use 300 MB" in done.stderr


def test_many_pictures_of_ten_formats(container: Callable[[int, float], Start], tmp_path: Path) -> None:
    """A thousand with CLUSIR_FULL=1: nothing piles up."""
    model = models.save_bundle(tmp_path / "model", tile=256, halo=16)
    folder = tmp_path / "in"
    folder.mkdir()
    grey = hostile_files.photo(1, (90, 120)).convert("L")
    rgba = hostile_files.photo(2, (90, 120)).convert("RGBA")
    kinds: list[tuple[str, Image.Image, dict[str, object]]] = [
        ("png", hostile_files.photo(0, (300, 320)), {}),
        ("png", grey.convert("I;16"), {}),
        ("png", rgba, {}),
        ("jpg", hostile_files.photo(3, (900, 1200)), {}),
        ("tif", grey, {"compression": "tiff_lzw"}),
        ("tif", hostile_files.photo(4, (200, 300)), {"compression": "tiff_deflate"}),
        ("webp", rgba, {"lossless": True}),
        ("bmp", hostile_files.photo(5, (120, 90)), {}),
        ("gif", grey, {}),
        ("jpeg", hostile_files.photo(6, (90, 120)), {"progressive": True}),
    ]
    for kind, (suffix, picture, options) in enumerate(kinds):
        picture.save(folder / f"{kind}-0000.{suffix}", **options)
        for copy in range(1, COUNT // len(kinds)):
            os.link(folder / f"{kind}-0000.{suffix}", folder / f"{kind}-{copy:04}.{suffix}")
    Image.new("RGB", (6000, 4000), (9, 90, 200)).save(folder / "large.png", compress_level=1)
    Image.new("RGB", (4000, 2500), (9, 90, 200)).save(folder / "large.jpg")
    out = tmp_path / "out"
    done = container(512, 0.5)(folder, "-o", out, "--model", model, "-q")
    assert (done.returncode, done.stderr) == (0, "")
    written = [p for p in out.iterdir() if not p.name.startswith(".")]
    assert len(written) == COUNT + 2
    for path in itertools.islice(written, 0, None, 7):
        with Image.open(path) as image:
            image.load()
