"""Runs mypy over the packages as they are installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tree import ROOT, link_packages


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        link_packages(Path(folder))
        command = [
            sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"),
            "--cache-dir", str(ROOT / ".mypy_cache"), "clusir",
        ]  # fmt: skip
        return subprocess.run(command, cwd=folder, env={**os.environ, "MYPYPATH": folder}).returncode


if __name__ == "__main__":
    sys.exit(main())
