"""The tables of docs/hosts.md and of docs/measurements/*-phones.md for the shipped network, made again.

``python -m tests.bench.hosts [--write] [--only PART] [--open FOLDER]``: prints every table, and with ``--write`` puts
it in its place on its page. What is not installed is left as it stands, and that is said. FOLDER: a bundle of the
shipped network for pictures of any size (``clusir-export --onnx FOLDER --dynamic``), made where none is given.
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
from clusir.export.formats.hosts.base import Host
from clusir.export.formats.hosts.folders import Written, export_targets, hosts_of, open_source
from clusir.export.formats.hosts.integers import Int8Config
from clusir.export.formats.hosts.registry import TARGETS
from clusir.runtimes.runners.files import find_model
from tests.bench.hosts import darktable_tiles, flicker
from tests.bench.phones.__main__ import main as phones

DOCS = Path(__file__).parents[3] / "docs"
PAGES = {"targets": DOCS / "hosts.md", "darktable": DOCS / "hosts.md", "flicker": DOCS / "hosts.md"}
PHONES = ("litert", "mnn", "ncnn", "coreml")
PAGES |= {name: next((DOCS / "measurements").glob("*-phones.md")) for name in PHONES}
ANY_SIZE = ("ffmpeg", "transformers.js")
_LOSS = re.compile(r"loses (\S+) dB in the mean, (\S+) at most \((.+?)\)")


def targets(whole: Callable[[], Path]) -> None:
    """A row for each target: INT8 too where there is one. ``whole``: the graph for pictures of any size."""
    print("| target | bytes | ONNX Runtime | its own code | float16 | INT8, mean | INT8, worst |")
    print("|---|---:|---:|---:|---:|---:|---|", flush=True)
    with TemporaryDirectory() as scratch:
        for name in TARGETS:
            try:
                (host,) = hosts_of([name])
            except BackendError as error:
                print(f"| `{name}` | not installed: {str(error).split(';')[0]} | | | | | |", flush=True)
                continue
            path = whole() if name in ANY_SIZE else find_model(None).whole
            print(row(host, path, Path(scratch)), flush=True)


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


def row(host: Host, path: Path, scratch: Path) -> str:
    int8 = None if host.no_int8 else Int8Config()
    (made,) = export_targets(open_source(path), scratch / "out", [host], int8=int8)
    size = sum((made.folder / file).stat().st_size for file in made.files if not file.startswith("golden/"))
    loss = next((_LOSS.search(found.note) for found in made.findings if found.case == "int8"), None)
    eighth = f"{loss[1]} | {loss[2]}, {loss[3].replace('_', ' ')}" if loss else "| "
    cells = [differs(made, "onnxruntime"), differs(made, host.name), halved(made)]
    return f"| `{host.name}` | {size} | {' | '.join(cells)} | {eighth} |"


def differs(made: Written, via: str) -> str:
    found = [f.agreement.max_abs for f in made.findings if f.via == via and f.agreement and "," not in f.case]
    return f"{max(found):.1e}" if found else "not run here" if via != "onnxruntime" else ""


def halved(made: Written) -> str:
    """dB of the float16 file, in the host's own code where that ran."""
    found = [f.agreement.psnr_db for f in made.findings if f.agreement and f.case.endswith("float16")]
    return f"{min(found):.1f} dB" if found else ""


def placed(text: str, name: str, content: str) -> str:
    """A page with the part ``name`` replaced. Raises ValueError where it has none."""
    pattern = re.compile(rf"(<!-- {re.escape(name)}: .*?-->\n).*?(<!-- end of {re.escape(name)} -->)", re.S)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"the page has not one part {name}")
    return pattern.sub(lambda found: f"{found[1]}\n{content.strip()}\n\n{found[2]}", text)


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
    options = parser.parse_args()
    whole = AnySize(options.open)
    parts: dict[str, Callable[[], None]] = {
        "targets": partial(targets, whole),
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
