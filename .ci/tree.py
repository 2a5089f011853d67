"""The packages as they are installed: the folders of the checkout, linked into one tree."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("export", "runtimes", "calibration")


def link_packages(folder: Path) -> Path:
    """``folder/clusir`` with every part in its place."""
    package = folder / "clusir"
    package.mkdir()
    for entry in (ROOT / "clusir").iterdir():
        (package / entry.name).symlink_to(entry)
    for part in PARTS:
        (package / part).symlink_to(ROOT / part)
    return package
