"""Runs mypy over the packages as they are installed: the folders of the checkout linked into one tree."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("export", "runtimes", "calibration")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "clusir"
        package.mkdir()
        for entry in (ROOT / "clusir").iterdir():
            (package / entry.name).symlink_to(entry)
        for part in PARTS:
            (package / part).symlink_to(ROOT / part)
        command = [
            sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"),
            "--cache-dir", str(ROOT / ".mypy_cache"), "clusir",
        ]  # fmt: skip
        return subprocess.run(command, cwd=folder, env={**os.environ, "MYPYPATH": folder}).returncode


if __name__ == "__main__":
    sys.exit(main())
