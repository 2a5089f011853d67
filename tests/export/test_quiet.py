"""What belongs to the process stays as it is for other threads, and is as it was once every export has ended."""

from __future__ import annotations

import ctypes
import io
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from clusir.export.quiet import hushed, printing_to, replaced, root_hushed
from clusir.export.subjects.factory import load_factory, working_folder_first

LIBRARY = "library.of.this.test"


def elsewhere(call: Callable[[], object]) -> None:
    """Run ``call`` in another thread."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def bare_root() -> Iterator[logging.Logger]:
    """The root logger without handlers (pytest puts its own there), as in a program that does not log."""
    found = logging.getLogger()
    before = found.handlers[:]
    found.handlers[:] = []
    try:
        yield found
    finally:
        found.handlers[:] = before


def test_one_stream_alone_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with printing_to(io.StringIO(), ("stderr",)) as kept:
        print("to stdout")
        print("to stderr", file=sys.stderr)
        elsewhere(lambda: print("of another thread", file=sys.stderr))
    print("afterwards", file=sys.stderr)
    assert kept.getvalue() == "to stderr\n"
    assert capsys.readouterr() == ("to stdout\n", "of another thread\nafterwards\n")


def test_levels_are_as_they_were_in_whatever_order_exports_end() -> None:
    logger = logging.getLogger(LIBRARY)
    logger.setLevel(logging.INFO)
    one, other = hushed((LIBRARY,), logging.ERROR), hushed((LIBRARY,), logging.CRITICAL)
    one.__enter__()
    assert logger.level == logging.ERROR
    other.__enter__()
    assert logger.level == logging.CRITICAL
    one.__exit__(None, None, None)
    assert logger.level == logging.CRITICAL
    other.__exit__(None, None, None)
    assert logger.level == logging.INFO


def test_the_root_logger_is_hushed_for_one_thread() -> None:
    kept = Kept()
    with bare_root() as root:
        root.addHandler(kept)
        level = root.level
        with root_hushed():
            assert root.level == level
            logging.warning("a remark of the library")
            logging.error("an error of the library")
            logging.getLogger(LIBRARY).warning("of the program")
            elsewhere(lambda: logging.warning("of another thread"))
        logging.warning("afterwards")
        assert root.handlers == [kept]
    assert kept.said == ["an error of the library", "of the program", "of another thread", "afterwards"]


def test_a_root_without_handlers_stays_so(capsys: pytest.CaptureFixture[str]) -> None:
    kept, own = Kept(), logging.getLogger(LIBRARY)
    with bare_root() as root:
        one, other = root_hushed(), root_hushed()
        one.__enter__()
        other.__enter__()
        one.__exit__(None, None, None)
        logging.warning("a remark of the library")
        elsewhere(lambda: logging.warning("printed"))
        elsewhere(lambda: logging.info("not printed"))
        own.addHandler(kept)
        own.warning("handled by the program")
        own.removeHandler(kept)
        other.__exit__(None, None, None)
        assert root.handlers == []
    assert kept.said == ["handled by the program"]
    assert capsys.readouterr().err == "printed\n"


def test_the_search_path_is_kept_until_the_last_export_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    here, before = os.getcwd(), list(sys.path)
    one, other = working_folder_first(), working_folder_first()
    one.__enter__()
    other.__enter__()
    assert sys.path == [here, *before]
    one.__exit__(None, None, None)
    assert sys.path == [here, *before]
    other.__exit__(None, None, None)
    assert sys.path == before


def test_what_several_exports_replaced_is_put_back_by_the_last() -> None:
    owner = SimpleNamespace(part="the library's")
    first, second = replaced(owner, "part", "ours"), replaced(owner, "part", "ours too")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # in the order in which threads happen to end
    assert owner.part == "ours too"
    second.__exit__(None, None, None)
    assert owner.part == "the library's"
    with pytest.raises(ValueError, match="stop"), replaced(owner, "part", "ours"):
        raise ValueError("stop")
    assert owner.part == "the library's"


FACTORIES = """
import sys
import torch
from events_of_this_test import entered, left

def first():
    print("first", sys.argv[1:], file=sys.stderr)
    entered.wait(0.5)
    return torch.nn.Identity()

def second():
    entered.set()
    left.wait(10)
    return torch.nn.Identity()
"""


def test_two_factories_at_once_leave_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second begins while the first has the command line, and ends after it, if it is let."""
    events = SimpleNamespace(entered=threading.Event(), left=threading.Event())
    monkeypatch.setitem(sys.modules, "events_of_this_test", events)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "argv", ["clusir-export", "--an-option"])
    (tmp_path / "factories_of_this_test.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    given = sys.argv

    def first() -> None:
        load_factory("factories_of_this_test:first")
        events.left.set()

    threads = [threading.Thread(target=first),
               threading.Thread(target=lambda: load_factory("factories_of_this_test:second"))]  # fmt: skip
    for thread in threads:
        thread.start()
    elsewhere(lambda: print("of another thread", file=sys.stderr))
    for thread in threads:
        thread.join(20)
    assert sys.argv is given
    assert capsys.readouterr().err == "of another thread\n"


# In a process of its own: in one that has run other tests a free part of the heap may be large enough for the array.
KEPT = """
import numpy as np
from clusir.export.kept import kept_memory, usual_memory
from clusir.runtimes.machine.allowed import resident_bytes

PIXELS = 2**24  # of an array of 64 MiB, more than glibc keeps by itself

def left():
    "How much of an array stays once it is freed: 1 all of it, 0 nothing, or what was there already."
    before = resident_bytes()
    np.ones(PIXELS, np.float32)
    return (resident_bytes() - before) / (4 * PIXELS)

with kept_memory():
    assert left() > 0.9
    assert abs(left()) < 0.1, "the next array took other pages"
    with kept_memory():
        pass
    with usual_memory():
        assert abs(left()) < 0.1, "what a picture takes is measured where memory is kept"
    assert left() > 0.9
assert abs(left()) < 0.1, "memory is kept beyond the export"
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc keeps it alone")
def test_an_array_that_is_made_again_takes_the_pages_of_the_one_before() -> None:
    ran = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
