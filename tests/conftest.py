"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import needs

# Several runtimes live in one test process; worker threads that spin while they wait slow each other down many times
# over.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["CLUSIR_CACHE"] = "off"  # compiled graphs that no other run asks for would fill the user's own cache

# What takes longest comes first: a file belongs to one process, and a long one at the end leaves the others idle. What
# mostly waits (for a build that more tests need, packages, half a core, a cluster, commands that end) stands between
# what computes: two of them at a time leave a core idle.
LONGEST_FIRST = (
    "tests/embed/test_cpp.py",
    "tests/test_wheel.py",
    "tests/export/subjects/test_habits.py",
    "tests/export/subjects/test_module.py",
    "tests/cli/test_run_container.py",
    "tests/export/subjects",
    "tests/runtimes/batch/test_ray.py",
    "tests/export/validate",
    "tests/cli/test_run_situations.py",
    "tests/export/passes",
    "tests/cli/test_run.py",
    "tests/export/pooling",
    "tests/export/precision",
    "tests/cli/test_page_folder.py",
    "tests/export/quantize",
    "tests/runtimes/test_scale.py",
    "tests/export",
    "tests/embed",
    "tests/runtimes/test_seams.py",
    "tests/training",
    "tests/cli",
    "tests/runtimes/batch",
)


def pytest_configure(config: pytest.Config) -> None:
    """Where several processes share the tests, each has one thread for matrix products and loops. This is said before
    they start: numpy reads it when it is imported, and OpenBLAS's threads spin while they wait for each other."""
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """``-n auto``: a process more than there are cores, for the time that tests wait for another program."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        file = f"{item.nodeid.partition('::')[0]}/"
        return next((i for i, start in enumerate(LONGEST_FIRST) if file.startswith(f"{start}/")), len(LONGEST_FIRST))

    items.sort(key=rank)  # stable: within a folder as collected


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported while tests are collected stays: looking through it for what could go is a fifth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """What is loaded by now stays: half a million objects that each full collection would look through again. Traces
    make millions that live long; collections in thirty times as large steps find the same."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def _refuse_other_reasons(report: pytest.TestReport | pytest.CollectReport) -> None:
    """A skip whose reason is not in needs.py fails: what could run must not be skipped."""
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not needs.is_named(reason):
            report.outcome = "failed"
            report.longrepr = f"{reason}: a skip must give a reason of tests/needs.py"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_other_reasons(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_other_reasons(report)
    return report


@pytest.fixture(scope="session")
def write_photos() -> Callable[..., Path]:
    """A function that writes ``count`` smooth random pictures as PNG files to a folder, and returns the folder."""

    def write(folder: Path, count: int, size: int = 88, seed: int = 0) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        for index in range(count):
            coarse = (rng.random((6, 6, 3)) * 255).astype(np.uint8)
            picture = Image.fromarray(coarse).resize((size, size + 8), Image.Resampling.BICUBIC)
            picture.save(folder / f"photo_{index:03d}.png")
        return folder

    return write
