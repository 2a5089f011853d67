"""Runs of clusir-run as processes, and pictures for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hostile_files
from PIL import Image

COMMAND = [sys.executable, "-c", "from clusir.cli.run import main; main()"]


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[Any]:
    options = {"capture_output": True, "text": True, "timeout": 120, "stdin": subprocess.DEVNULL} | options
    if "stdout" in options or "input" in options:
        options.pop("capture_output" if "stdout" in options else "stdin")
    return subprocess.run([*COMMAND, *(str(a) for a in arguments)], **options)


def photo(path: Path, seed: int = 0, size: tuple[int, int] = (24, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    hostile_files.photo(seed, size).save(path)
    return path


def flat(path: Path, value: int, size: tuple[int, int] = (64, 48)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path)
    return path


def hold_while_writing(folder: Path, process: subprocess.Popen[Any]) -> None:
    """Halt a run when a half-written picture is there; ``SIGCONT`` lets it go on."""
    while process.poll() is None:
        if folder.is_dir() and any("partial" in name for name in os.listdir(folder)):
            process.send_signal(signal.SIGSTOP)
            return
        time.sleep(0.002)
    raise AssertionError("the run was over before a half-written picture was seen")


def tree(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name[0] != ".")
