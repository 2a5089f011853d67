"""The tables of docs/hosts.md and of docs/measurements/*-phones.md for the shipped network, made again.

``python -m tests.bench.hosts [--write] [--only PART] [--target NAME] [--open FOLDER]``: prints every table, and with
``--write`` puts it in its place on its page. What is not installed is left as it stands, and that is said. NAME: make
this row of the part ``targets`` alone, and leave its others as they stand. FOLDER: a bundle of the shipped network for
pictures of any size (``clusir-export --onnx FOLDER --dynamic``), made where none is given.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from clusir.errors import BackendError
from clusir.export.formats.hosts.folders import hosts_of, open_source
from clusir.export.formats.hosts.registry import TARGETS
from clusir.runtimes.runners.files import find_model
from tests.bench.hosts import darktable_tiles, flicker, targets
from tests.bench.phones.__main__ import main as phones

DOCS = Path(__file__).parents[3] / "docs"
PAGES = {"targets": DOCS / "hosts.md", "darktable": DOCS / "hosts.md", "flicker": DOCS / "hosts.md"}
PHONES = ("litert", "mnn", "ncnn", "coreml", "executorch")
PAGES |= {name: next((DOCS / "measurements").glob("*-phones.md")) for name in PHONES}


class AnySize:
    """The shipped network exported for any size, when it is first asked for; ``folder``: where it is already."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._scratch = TemporaryDirectory()

    def __call__(self) -> Path:
        """The file of its whole graph."""
        if self.folder is None:
            self.folder = Path(self._scratch.name) / "bundle"
            command = [sys.executable, "-m", "clusir", "export", "--onnx", f"{self.folder}/", "--dynamic"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return self.folder / "model.onnx"


def placed(text: str, name: str, content: str) -> str:
    """A page with the part ``name`` replaced. Raises ValueError where it has none."""
    pattern = _marks(name)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"the page has not one part {name}")
    return pattern.sub(lambda found: f"{found[1]}\n{content.strip()}\n\n{found[3]}", text)


def part(text: str, name: str) -> str:
    """What stands in the part ``name`` of a page."""
    found = _marks(name).search(text)
    return found[2] if found else ""


def _marks(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {re.escape(name)}: .*?-->\n)(.*?)(<!-- end of {re.escape(name)} -->)", re.S)


class Shown(io.StringIO):
    """What is printed, kept and printed."""

    def write(self, text: str) -> int:
        print(text, end="", file=sys.__stdout__, flush=True)
        return super().write(text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.hosts")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", action="append", metavar="PART")
    parser.add_argument("--open", type=Path, metavar="FOLDER")
    parser.add_argument("--target", action="append", choices=tuple(TARGETS), default=[])
    options = parser.parse_args()
    if options.target:
        options.only = ["targets"]
    whole = AnySize(options.open)
    parts: dict[str, Callable[[], None]] = {
        "targets": lambda: targets.main(whole, options.target, part(PAGES["targets"].read_text("utf-8"), "targets")),
        "darktable": lambda: darktable_tiles.main(whole()),
        "flicker": flicker.main,
        **{name: partial(phones, name) for name in PHONES},
    }
    if unknown := set(options.only or ()) - set(parts):
        parser.error(f"{min(unknown)} is no part; there are {', '.join(parts)}")
    weights = open_source(find_model(None).whole).spec.checkpoint_sha256[:12]
    failed = []
    for name, make in parts.items():
        if options.only and name not in options.only:
            continue
        start, out = time.monotonic(), Shown()
        try:
            if name in PHONES:
                hosts_of([name])
            with redirect_stdout(out):
                make()
        except BackendError as error:
            print(f"{name}: left as it stands: {error}", file=sys.stderr, flush=True)
            continue
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        told = f"{out.getvalue().strip()}\n\nOf the weights whose SHA-256 begins with {weights}, {date.today()}."
        if options.write:
            PAGES[name].write_text(placed(PAGES[name].read_text("utf-8"), name, told), "utf-8")
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    if failed:
        sys.exit(f"failed, and left as they stand: {', '.join(failed)}")


if __name__ == "__main__":
    main()
