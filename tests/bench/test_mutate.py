"""The lists of breaks fit the tree, and the runner tells a break that is seen from one that is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.bench.mutate import LISTS, Break, copy_tree, killed, main, problem, read_list, run_check

PATHS = sorted(LISTS.glob("*.toml"))


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_every_break_can_be_made(path: Path) -> None:
    assert [why for change in read_list(path) if (why := problem(change))] == []


def entry(**more: str) -> str:
    fields = {"id": "one", "file": "clusir/errors.py", "old": "exit_code: int = 1", "new": "exit_code: int = 7"} | more
    return "[[break]]\n" + "\n".join(f"{name} = '{value}'" for name, value in fields.items())


def test_a_malformed_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    for text, why in (
        (entry(), "neither tests nor a command"),
        (entry(command="true", colour="red"), "unknown field colour"),
        (entry(command="true") + "\n" + entry(command="true"), "bad:one is there twice"),
        ("[[break]]\nid = 'one'", "file is missing"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=why):
            read_list(path)


def test_breaks_that_do_not_fit_are_named() -> None:
    fits = Break("x", "clusir/errors.py", "exit_code: int = 1", "exit_code: int = 7", ("tests/test_house.py",))
    assert problem(fits) == ""
    assert "no clusir/nothing.py" in problem(Break("x", "clusir/nothing.py", "a", "b"))
    assert "times in clusir/errors.py, not once" in problem(Break("x", "clusir/errors.py", "exit_code", "b"))
    assert "changes nothing" in problem(Break("x", "clusir/errors.py", "exit_code: int = 1", "exit_code: int = 1"))
    assert "no Python" in problem(Break("x", "clusir/errors.py", "exit_code: int = 1", "exit_code: = 1"))
    assert "no tests/none.py" in problem(
        Break("x", "clusir/errors.py", "exit_code: int = 1", "exit_code: int = 7", ("tests/none.py -k a",))
    )


def test_seen_and_unseen_breaks_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A command stands for the tests: it looks for the text that one of the breaks takes away."""
    look = 'grep -q "exit_code: int = 1" clusir/errors.py'
    path = tmp_path / "small.toml"
    other = {"id": "two", "old": "class ImageError(ClusirError)", "new": "class ImageError(UsageError)"}
    path.write_text(
        entry(command=look) + "\n" + entry(command=look, **other) + "\n" + entry(command="false", id="three")
    )
    assert main([str(path)]) == 1
    said = capsys.readouterr().out
    assert "SURVIVED small:two" in said
    assert "SURVIVED small:one" not in said
    assert "fails without any break: false" in said
    assert "1 of 3 breaks seen, 1 survived, 0 not seen as said, 1 not tried" in said


def test_python_tests_run_on_the_copy(tmp_path: Path) -> None:
    copy_tree(tmp_path)
    (tmp_path / "tests" / "test_where.py").write_text(
        "import clusir, clusir.export, clusir.errors\nfrom pathlib import Path\n"
        "def test_where():\n    here = str(Path(__file__).parents[1])\n"
        "    assert clusir.__file__.startswith(here) and clusir.export.__file__.startswith(here)\n"
        "def test_code():\n    assert clusir.errors.ClusirError.exit_code == 1\n"
    )
    check = f"{sys.executable} -m pytest -q -x -p no:cacheprovider tests/test_where.py"
    change = Break("x", "clusir/errors.py", "exit_code: int = 1", "exit_code: int = 7", command=check)
    log = tmp_path / "log"
    assert run_check(change, tmp_path, log) == 0, log.read_text()
    path = tmp_path / "clusir" / "errors.py"
    path.write_text(path.read_text().replace(change.old, change.new))
    assert killed(change, run_check(change, tmp_path, log), log)
