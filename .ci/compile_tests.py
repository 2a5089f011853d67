"""Compiles the tests as pytest does, their assertions rewritten: once, on all cores.

Each process of the tests would do it for itself, since none finds what another has yet to write.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from _pytest.assertion.rewrite import PYC_TAIL, _rewrite_test, _write_pyc_fp, get_cache_dir
from tree import ROOT


def compile_test(path: Path) -> None:
    folder = get_cache_dir(path)
    folder.mkdir(exist_ok=True)
    stat, code = _rewrite_test(path, None)  # type: ignore[arg-type]
    with (folder / f"{path.stem}{PYC_TAIL}").open("wb") as file:
        _write_pyc_fp(file, stat, code)


if __name__ == "__main__":
    tests = [path for pattern in ("test_*.py", "conftest.py") for path in sorted((ROOT / "tests").rglob(pattern))]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as processes:
        list(processes.map(compile_test, tests, chunksize=16))
