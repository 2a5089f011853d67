"""From names to jobs: folders, globs, lists and watched folders by one set of rules, every name reserved."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import hostile_files
import pytest
from PIL import Image

from clusir.errors import UsageError
from clusir.runtimes.batch.jobs import pixels_of, plan_jobs
from clusir.runtimes.batch.journal import Journal
from clusir.runtimes.batch.watch import watch
from clusir.runtimes.images.names import is_comparison
from clusir.runtimes.report.compare import write_comparison


def photos(folder: Path, count: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        hostile_files.photo(i, (20 + i % 7, 30)).save(folder / f"photo{i:03}.{('png', 'jpg', 'webp', 'bmp')[i % 4]}")


def test_jobs_keep_structure_and_refuse_collisions(tmp_path: Path) -> None:
    photos(tmp_path / "in" / "sub", 2)
    photos(tmp_path / "in")
    (tmp_path / "in" / "notes.txt").write_text("x")
    (tmp_path / "in" / ".hidden.png").write_text("x")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    out = tmp_path / "in" / "out"
    out.mkdir()
    (out / "earlier.png").write_text("x")
    targets = [j.target.relative_to(out).as_posix() for j in plan_jobs([str(tmp_path / "in")], out)]
    assert targets == ["photo000.png", "sub/photo000.png", "sub/photo001.jpg"]
    assert len(plan_jobs([str(tmp_path / "in")], out, recursive=False)) == 1
    pattern = str(tmp_path / "in" / "**" / "*.png")
    globbed = [j.target.relative_to(out).as_posix() for j in plan_jobs([pattern], out)]
    assert "sub/photo000.png" in globbed
    both = plan_jobs([str(tmp_path / "in" / "photo000.png"), str(tmp_path / "in" / "sub" / "photo000.png")], out)
    assert [j.refusal is None for j in both] == [True, False]
    onto_itself = plan_jobs([str(tmp_path / "in" / "photo000.png")], tmp_path / "in" / "photo000.png")
    assert "is an input" in str(onto_itself[0].refusal)
    assert plan_jobs([str(tmp_path / "in" / "photo000.png")], tmp_path / "x.tif")[0].target == tmp_path / "x.tif"
    assert {j.target.suffix for j in plan_jobs([str(tmp_path / "in")], out, suffix=".webp")} == {".webp"}
    with pytest.raises(UsageError, match="nothing matches"):
        plan_jobs([str(tmp_path / "*.nothing")], out)
    with pytest.raises(UsageError):
        plan_jobs([], out)


def test_watch_hands_out_what_stopped_growing(tmp_path: Path) -> None:
    first = tmp_path / "a.png"
    first.write_bytes(b"1")
    steps: list[Any] = [
        lambda: first.write_bytes(b"12"),  # still growing
        lambda: None,
        lambda: (tmp_path / "b.png").write_bytes(b"new"),
        lambda: None,
        lambda: first.write_bytes(b"changed later"),
        lambda: None,
    ]

    def sleep(_: float) -> None:
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    seen = []
    with contextlib.suppress(KeyboardInterrupt):
        for batch in watch(lambda: plan_jobs([str(tmp_path)], tmp_path / "out"), sleep=sleep):
            seen.append([j.source.name for j in batch])  # noqa: PERF401
    assert seen == [["a.png"], ["b.png"], ["a.png"]]


def restored(out: Path, *names: str) -> None:
    """Outputs, as a run leaves them."""
    journal = Journal(out, "model", {})
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        hostile_files.photo(50).save(out / name)
        journal.record(out / name, out / name, "restored", None, "0" * 64)
    journal.close()


def sources(inputs: list[str], out: Path, **options: Any) -> list[str]:
    root = Path(os.path.commonpath([out.parent, *(i for i in inputs if "*" not in i)]))
    return [os.path.relpath(job.source, root) for job in plan_jobs(inputs, out, **options)]


def test_globs_obey_the_rules_of_folders(tmp_path: Path) -> None:
    photos(tmp_path / "a")
    photos(tmp_path / "a" / "b")
    photos(tmp_path / ".hidden")
    photos(tmp_path / "a" / ".hidden")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    out = tmp_path / "out"
    restored(out, "a/photo000.png", "other.png")
    every = ["a/b/photo000.png", "a/photo000.png"]
    for pattern in ("**/*.png", "**/*", "**"):
        assert sources([f"{tmp_path}/{pattern}"], out) == every, pattern
    assert sources([str(tmp_path)], out) == every
    assert sources([f"{tmp_path}/*/*.png"], out) == every[1:]
    assert sources([f"{tmp_path}/a/**/*.png"], out) == every
    assert sources([f"{tmp_path}/[ab]/photo*.png"], out) == every[1:]
    assert sources([f"{tmp_path}/.hid*/*.png"], out) == [".hidden/photo000.png"]  # asked for by name
    assert sources([f"{tmp_path}/notes.t*"], out, waiting=True) == []
    assert sources([f"{tmp_path}/*.txt"], out) == ["notes.txt"]  # asked for by name: opening it says what it is
    assert sources([f"{tmp_path}/**/*.png"], out, recursive=False) == every[1:]


def test_what_clusir_wrote_is_no_input_wherever_it_is_met(tmp_path: Path) -> None:
    photos(tmp_path, 2)
    out, earlier = tmp_path / "out", tmp_path / "earlier"
    restored(out, "photo000.png")
    restored(earlier, "deep/photo000.png", "changed.png")
    hostile_files.photo(1, (40, 40)).save(earlier / "changed.png")  # by the user, since
    hostile_files.photo(2).save(earlier / "mine.png")
    pixels = hostile_files.photo(3)
    write_comparison(pixels, pixels, tmp_path / "photo000.compare.jpg")
    hostile_files.photo(4).save(tmp_path / "holiday.compare.jpg")  # a photo that is called so
    expected = ["earlier/changed.png", "earlier/mine.png", "holiday.compare.jpg", "photo000.png", "photo001.jpg"]
    assert sources([str(tmp_path)], out) == expected
    assert sources([f"{tmp_path}/**/*"], out) == expected
    # A list that a shell made of a glob: outputs are passed over, and the originals are not refused for them.
    named = [str(tmp_path / n) for n in ("photo000.png", "photo000.compare.jpg", "out/photo000.png")]
    jobs = plan_jobs(named, out)
    assert [(job.source.name, job.refusal) for job in jobs] == [("photo000.png", None)]
    with pytest.raises(UsageError, match="written by clusir itself"):
        plan_jobs(named[2:], out)


def test_an_original_in_the_output_folder_is_never_overwritten(tmp_path: Path) -> None:
    photos(tmp_path / "in", 2)
    out = tmp_path / "out"
    photos(out)
    jobs = plan_jobs([*(str(p) for p in sorted((tmp_path / "in").iterdir())), str(out / "photo000.png")], out)
    assert ["is an input" in str(job.refusal) for job in jobs] == [True, False, True]


def test_a_request_that_cannot_be_meant_is_a_usage_error(tmp_path: Path) -> None:
    photos(tmp_path / "in", 2)
    for inputs, out, words in (
        (["missing.png", "in"], "out", "missing.png: no such file or folder"),
        (["in"], "in", "it is the input folder"),
        (["in/photo000.png"], "in", "is an input"),
        (["in/*.png"], "in", "is an input"),
        (["in/*.tif"], "out", "nothing matches"),
    ):
        with pytest.raises(UsageError, match=words):
            plan_jobs([str(tmp_path / i) for i in inputs], tmp_path / out)
    assert not (tmp_path / "out").exists()


def test_an_output_name_that_no_disk_takes_is_refused_before_work(tmp_path: Path) -> None:
    name = "ü" * 125 + ".png"
    (tmp_path / name).write_bytes(b"x")
    (job,) = plan_jobs([str(tmp_path)], tmp_path / "out", suffix=".webp")
    assert job.refusal is None  # 255 bytes
    (tmp_path / name).rename(tmp_path / ("x" + name))
    (job,) = plan_jobs([str(tmp_path)], tmp_path / "out", suffix=".webp")
    assert "too long" in str(job.refusal)


def test_every_comparison_has_a_name_of_its_own(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    names = ["a.jpg", "a.png", "b.jpg", "b.compare.jpg", "c.png", "ü" * 124 + ".png", "ü" * 124 + "x.png"]
    for name in names:
        (folder / name).write_bytes(b"x")
    out.mkdir()
    (out / "c.compare.jpg").write_bytes(b"a user's picture")
    jobs = {job.source.name: job for job in plan_jobs([str(folder)], out, compare=True)}
    made = {name: str(job.comparison and job.comparison.name) for name, job in jobs.items()}
    assert made["a.jpg"] == "a.compare.jpg"
    assert made["a.png"] == "a.png.compare.jpg"
    assert made["b.jpg"] == "b.jpg.compare.jpg"
    assert made["b.compare.jpg"] == "b.compare.compare.jpg"
    assert made["c.png"] == "c.png.compare.jpg"
    assert len({*made.values(), *names}) == 14
    assert all(len(os.fsencode(name)) <= 255 for name in made.values())
    pixels = hostile_files.photo()
    write_comparison(pixels, pixels, out / "c.png.compare.jpg")  # its own of the run before: written again
    assert is_comparison(out / "c.png.compare.jpg")
    again = {job.source.name: job.comparison for job in plan_jobs([str(folder)], out, compare=True)}
    assert again["c.png"] == out / "c.png.compare.jpg"
    assert all(job.comparison is None for job in plan_jobs([str(folder)], out))


def test_a_watched_glob_may_be_empty(tmp_path: Path) -> None:
    first = tmp_path / "in" / "a.png"
    pattern = str(tmp_path / "in" / "*.png")
    first.parent.mkdir()
    steps: list[Any] = [
        lambda: first.write_bytes(b"1"),
        lambda: None,
        lambda: None,
        first.unlink,
        lambda: None,
        lambda: first.write_bytes(b"22"),
        lambda: None,
        lambda: None,
    ]

    def sleep(_: float) -> None:
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    seen = []
    with contextlib.suppress(KeyboardInterrupt):
        for batch in watch(lambda: plan_jobs([pattern], tmp_path / "out", waiting=True), sleep=sleep):
            seen.append([job.source.name for job in batch])  # noqa: PERF401
    assert seen == [["a.png"], ["a.png"]]


def test_pixels_are_counted_by_the_headers_of_few_pictures(tmp_path: Path) -> None:
    for index in range(17):
        Image.new("RGB", (20 + index, 10)).save(tmp_path / f"{index:02}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    jobs = plan_jobs([str(tmp_path)], tmp_path / "out")
    assert pixels_of(jobs) is None
    assert pixels_of([*jobs[:2], jobs[-1]]) == 20 * 10 + 21 * 10
