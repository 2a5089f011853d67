"""Mutation run: break one place at a time, run the tests that belong to it, print the breaks that none of them saw.

``python -m tests.bench.mutate [LIST ...]`` reads ``tests/bench/mutations/*.toml`` (or the lists named), for example::

    tests = ["tests/export/validate/test_compare.py"]     # of every break below that names none of its own

    [[break]]
    id = "flips"                                           # unique in the file
    file = "export/validate/compare.py"                    # from the root of the repository
    old = "if flips:"                                      # exactly once in the file
    new = "if False:"
    tests = ["tests/export/validate/test_compare.py -k flips"]   # pytest arguments, one run for all of them
    command = "node --test tests/embed/web"                # a shell command instead of pytest
    unseen = "why this break changes nothing that can be seen"   # it is expected to survive, and reported as such

The breaks are made in a copy of the tree (tracked and new files; ``.venv`` and ``node_modules`` are linked), so the
tree itself is never touched. Every set of tests has to pass before anything is broken (those of one file in one run).
Python tests run in forks of a process that has torch and onnx loaded: a break then takes a second or two. ``--jobs``
runs that many copies at a time.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

__all__ = ["Break", "main", "read_list"]

ROOT = Path(__file__).resolve().parents[2]
LISTS = Path(__file__).with_name("mutations")
_LINKED = (".venv", "runtimes/web/node_modules")
_PACKAGES = ("export", "runtimes", "calibration")
_PRELOADED = (
    *("numpy", "onnx", "onnxruntime", "torch", "pytest", "hypothesis"),
    *("torch._dynamo", "onnxscript", "onnxruntime.quantization", "PIL.Image", "click", "scipy.ndimage"),
)
_FIELDS = {"id", "file", "old", "new", "tests", "command", "unseen", "limit_s"}
_LIMIT_S = 300.0
_NO_TESTS = 5  # pytest's exit status


@dataclass(frozen=True)
class Break:
    """One change to one file, and what has to notice it."""

    id: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()
    command: str = ""
    unseen: str = ""
    limit_s: float = _LIMIT_S

    @property
    def check(self) -> str:
        """What is run: a shell command, or pytest's arguments."""
        return self.command or "pytest " + " ".join(self.tests)


def read_list(path: Path) -> list[Break]:
    """The breaks of one list. Raises ValueError where an entry is malformed, or names twice the same thing."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    found = []
    for entry in data.get("break", []):
        name = f"{path.stem}:{entry.get('id', '?')}"
        if unknown := set(entry) - _FIELDS:
            raise ValueError(f"{name}: unknown field {sorted(unknown)[0]}; there are {', '.join(sorted(_FIELDS))}")
        if missing := {"id", "file", "old", "new"} - set(entry):
            raise ValueError(f"{name}: {sorted(missing)[0]} is missing")
        tests = tuple(entry.get("tests", () if "command" in entry else data.get("tests", ())))
        if not tests and "command" not in entry:
            raise ValueError(f"{name}: neither tests nor a command")
        found.append(Break(**{**entry, "id": name, "tests": tests}))
    if doubles := {b.id for b in found if sum(other.id == b.id for other in found) > 1}:
        raise ValueError(f"{sorted(doubles)[0]} is there twice")
    return found


def problem(change: Break, root: Path = ROOT) -> str:
    """Why a break cannot be made in this tree; empty where it can."""
    path = root / change.file
    if not path.is_file():
        return f"{change.id}: there is no {change.file}"
    text = path.read_text(encoding="utf-8")
    if text.count(change.old) != 1:
        return f"{change.id}: its old text is {text.count(change.old)} times in {change.file}, not once"
    if change.old == change.new:
        return f"{change.id}: it changes nothing"
    if path.suffix == ".py":
        try:
            compile(text.replace(change.old, change.new), change.file, "exec")
        except SyntaxError as error:
            return f"{change.id}: what it makes is no Python ({error})"
    gone = [t for test in change.tests if not (root / (t := shlex.split(test)[0].split("::")[0])).exists()]
    return f"{change.id}: there is no {gone[0]}" if gone else ""


def together(changes: Sequence[Break]) -> list[tuple[Break, set[str]]]:
    """The checks of ``changes`` in as few runs as can be, selections of one file in one: (what to run, its checks)."""
    runs: dict[str, tuple[Break, set[str]]] = {}
    words: dict[str, list[str]] = {}  # of a file whose tests are only selected: what is selected
    for change in changes:
        file, *option = shlex.split(change.tests[0]) if len(change.tests) == 1 else [""]
        alone = bool(change.command or not file or (option and option[0] != "-k"))
        key = change.check if alone else file
        merged, checks = runs.get(key, (change, set()))
        checks.add(change.check)
        merged = replace(merged, limit_s=change.limit_s * len(checks))
        if not alone:
            words.setdefault(file, []).append(f"({option[1]})" if option else "")
            whole = "" in words[file]
            selected = f" -k {shlex.quote(' or '.join(dict.fromkeys(words[file])))}"
            merged = replace(merged, id=file, tests=(file if whole else file + selected,))
        runs[key] = merged, checks
    return list(runs.values())


def copy_tree(target: Path, root: Path = ROOT) -> None:
    """Tracked and new files, the packages under the one name they are imported by, and links to what is installed."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=root, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name, follow_symlinks=False)
    for name in _LINKED:
        if (root / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).symlink_to(root / name)
    for name in _PACKAGES:  # clusir.export is the folder export: an installed finder would lead to the real tree
        (target / "clusir" / name).symlink_to(Path("..") / name)


def environment(tree: Path) -> dict[str, str]:
    """So that every process below imports this tree, with one thread, and leaves no compiled files behind."""
    mine = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "MUTATION_RUN": "1"}
    return {**os.environ, **mine}


def run_check(change: Break, tree: Path, log: Path) -> int:
    """The exit status of a break's tests in ``tree``; 124 where they took longer than its limit."""
    if change.command:
        with log.open("wb") as out:
            command = subprocess.Popen(
                change.command, shell=True, cwd=tree, env=environment(tree), stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
            try:
                return command.wait(change.limit_s)
            except subprocess.TimeoutExpired:
                os.killpg(command.pid, signal.SIGKILL)
                command.wait()
                return 124
    child = os.fork()
    if child == 0:
        _pytest(change, tree, log)
    started = time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() - started > change.limit_s:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 124
        time.sleep(0.02)


def _pytest(change: Break, tree: Path, log: Path) -> None:
    """Run the tests in this (forked) process and end it."""
    code = 70
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(environment(tree))
        os.chdir(tree)
        sys.dont_write_bytecode = True
        sys.path[:] = [str(tree), *(p for p in sys.path if Path(p or ".").resolve() not in (ROOT, tree))]
        import pytest

        arguments = [word for test in change.tests for word in shlex.split(test)]
        code = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", *arguments]))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def killed(change: Break, code: int, log: Path) -> bool:
    """Whether the tests failed, as opposed to not having run."""
    if change.command or code in (1, 124) or code < 0:
        return code != 0
    text = log.read_text(errors="replace")
    # 2 and 4: a break that lets nothing be imported any more ends the collection.
    return code in (2, 4) and ("Error" in text or "error" in text)


def try_break(change: Break, tree: Path, log: Path) -> tuple[bool | None, float]:
    """Whether the tests notice (None where the selection holds no test), and the seconds they took."""
    path = tree / change.file
    whole = path.read_text(encoding="utf-8")
    started = time.monotonic()
    path.write_text(whole.replace(change.old, change.new), encoding="utf-8")
    try:
        code = run_check(change, tree, log)
        none = code == _NO_TESTS and not change.command
        return None if none else killed(change, code, log), time.monotonic() - started
    finally:
        path.write_text(whole, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 1 where a break survives that is not said to, or a list does not fit the tree."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.mutate", description=__doc__.split("\n")[0])
    parser.add_argument("lists", nargs="*", metavar="LIST", help="names in tests/bench/mutations, or files [all]")
    parser.add_argument("--only", default="", metavar="TEXT", help="breaks whose list:id holds this text")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="copies of the tree at a time [1]")
    given = parser.parse_args(arguments)
    paths = [p if (p := Path(name)).is_file() else LISTS / f"{name}.toml" for name in given.lists]
    changes = [b for path in paths or sorted(LISTS.glob("*.toml")) for b in read_list(path) if given.only in b.id]
    wrong = [why for change in changes if (why := problem(change))]
    print(*wrong, sep="\n", end="\n" if wrong else "")
    changes = [change for change in changes if not problem(change)]
    for name in _PRELOADED:
        __import__(name)
    with tempfile.TemporaryDirectory(prefix="clusir-mutate-") as scratch:
        unfit, survived = _run_all(changes, Path(scratch), max(1, given.jobs))
    expected = [c for c in survived if c.unseen]
    missed = [c for c in survived if not c.unseen]
    for change in expected:
        print(f"not seen, as said: {change.id}: {change.unseen}")
    for change in missed:
        print(f"SURVIVED {change.id}: {change.file}: {' '.join(change.old.split())[:70]}")
    print(f"{len(changes) - len(survived) - len(unfit)} of {len(changes)} breaks seen, {len(missed)} survived, "
          f"{len(expected)} not seen as said, {len(unfit)} not tried, {len(wrong)} do not fit the tree")  # fmt: skip
    return 1 if missed or wrong or unfit else 0


def _run_all(changes: Sequence[Break], scratch: Path, jobs: int) -> tuple[list[Break], list[Break]]:
    """The breaks whose tests fail without them, and those that survive."""
    trees: SimpleQueue[Path] = SimpleQueue()
    for number in range(jobs):
        copy_tree(scratch / f"tree{number}")
        trees.put(scratch / f"tree{number}")

    def baseline(run: tuple[Break, set[str]]) -> set[str]:
        change, checks = run
        tree, log = trees.get(), scratch / f"base-{abs(hash(change.check))}.log"
        code = run_check(change, tree, log)
        trees.put(tree)
        if code:
            print(f"fails without any break: {change.check}\n{log.read_text(errors='replace')[-2000:]}", flush=True)
        return set() if code else checks

    def attempt(change: Break) -> bool | None:
        tree = trees.get()
        seen, seconds = try_break(change, tree, scratch / f"{tree.name}.log")
        trees.put(tree)
        word = {True: "seen", False: "NOT SEEN", None: "no tests"}[seen]
        late = " (too long)" if seconds >= change.limit_s else ""
        print(f"{word:8} {seconds:6.1f} s  {change.id}{late}", flush=True)
        return seen

    with ThreadPoolExecutor(jobs) as pool:
        sound = set[str]().union(*pool.map(baseline, together(changes)))
        tried = [change for change in changes if change.check in sound]
        seen = list(pool.map(attempt, tried))
    found = list(zip(tried, seen, strict=True))
    return (
        [change for change in changes if change.check not in sound] + [c for c, saw in found if saw is None],
        [change for change, saw in found if saw is False],
    )


if __name__ == "__main__":
    sys.exit(main())
