"""What README and docs advise is there: commands, options, links, and the Python of README runs."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clusir.cli.main import COMMANDS
from tests.test_house import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
TOP = {
    ".ci", ".gitattributes", ".gitignore", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in",
    "Makefile", "README.md", "SECURITY.md", "calibration", "clusir", "docs", "export", "pyproject.toml", "runtimes",
    "tests",
}  # fmt: skip


def blocks(page: Path, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(name, words behind it) of every call of a command of this package."""
    joined = re.sub(r"\\\n\s*", " ", text)
    calls = re.findall(r"\bclusir[- ](" + "|".join(COMMANDS) + r")\b([^\n`|]*)", joined)
    return [(name, rest.split("#")[0].split()) for name, rest in calls]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_of_advised_commands_exist(page: Path) -> None:
    wrong = []
    for name, words in commands(page.read_text("utf-8")):
        command = importlib.import_module(f"clusir.cli.{name}").main
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {re.split(r"[=.,;:)]", word)[0] for word in words if re.match(r"--?[a-z]", word)}
        wrong += [f"clusir-{name} {option}" for option in used - known - {"--help", "-h"}]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    links = re.findall(r"\]\(([^)#:\s]+\.(?:md|svg|jpg|cff|json))(?:#[^)]*)?\)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    modules = re.findall(r"python -m (tests\.[\w.]+)", text)
    places = {name: ROOT / name.replace(".", "/") for name in modules if name.islower()}
    run = {name: [place.with_suffix(".py"), place / "__main__.py"] for name, place in places.items()}
    missing += [name for name, files in run.items() if not any(file.is_file() for file in files)]
    paths = re.findall(r"`((?:export|runtimes|calibration|clusir|tests)/[\w./-]+\.\w+)`", text)
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_the_check_of_options_can_fail() -> None:
    assert commands("clusir-run a.png \\\n   --explian  # --comment\n") == [("run", ["a.png", "--explian"])]


def test_the_python_of_the_readme_runs_and_keeps_the_orientation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: to be turned by a quarter
    Image.fromarray(np.full((40, 64, 3), 90, np.uint8)).save("photo.jpg", exif=exif)
    exec(compile(code, "README.md", "exec"), {})
    with Image.open("better.jpg") as better:
        assert better.size == (40, 64)
        assert better.getexif().get(0x0112, 1) == 1


def test_ten_questions_are_answered_by_files_that_exist() -> None:
    rows = re.findall(r"^\| .+\? \| (.+) \|$", (ROOT / "docs" / "architecture.md").read_text("utf-8"), re.M)
    assert len(rows) == 10
    for row in rows:
        parts = [part for part in row.split(";") if "`ls " in part]
        assert 1 <= len(parts) <= 2
        for part in parts:
            (folder,), file = re.findall(r"`ls ([\w/]+)`", part), re.findall(r"`([\w]+\.\w+)`", part)[0]
            assert (ROOT / folder / file).is_file(), part


def test_nothing_stray_lies_at_the_top() -> None:
    import subprocess

    if not (ROOT / ".git").exists():
        return  # a source distribution has a list of its own
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {name.split("/")[0] for name in listed} == TOP
