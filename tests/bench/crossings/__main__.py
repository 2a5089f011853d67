"""How many modules of this package a photo passes through, and a calibration crop.

    PYTHONPATH=tests/export python -m tests.bench.crossings [WAY ...] [-v]

A module counts where one of its functions is called, on any thread. ``command``: all of ``clusir-run photo.png -o
out.png``, opening the model included. ``photo``: the second of two photos, when all is open. ``crop``: twelve crops,
from draw to statistics; a single one does not enter the degradations that it was not given. An edge is a call
from one module into another.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("clusir", "export", "runtimes", "calibration")


@dataclass
class Crossed:
    """Modules entered, and calls between two of them."""

    modules: set[str] = field(default_factory=set)
    edges: set[tuple[str, str]] = field(default_factory=set)
    names: dict[CodeType, str] = field(default_factory=dict)

    def module(self, code: CodeType) -> str:
        """The file of a function of the package; empty for other code, and for the bodies of modules and classes."""
        if code not in self.names:
            path = Path(code.co_filename).resolve()
            inside = path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES
            runs = code.co_flags & 2  # CO_NEWLOCALS: a function, not the body of a module or a class
            self.names[code] = str(path.relative_to(ROOT)) if inside and runs else ""
        return self.names[code]

    def called(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not (entered := self.module(frame.f_code)):
            return
        self.modules.add(entered)
        caller = frame.f_back
        while caller is not None and not (before := self.module(caller.f_code)):
            caller = caller.f_back
        if caller is not None and before != entered:
            self.edges.add((before, entered))


@contextmanager
def traced() -> Iterator[Crossed]:
    found = Crossed()
    threading.setprofile(found.called)
    sys.setprofile(found.called)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def write_photo(path: Path) -> Path:
    """A noisy ramp of 300 x 300 px."""
    noise = np.random.default_rng(0).normal(0, 25, (300, 300, 3))
    ramp = np.linspace(40, 200, 300)[None, :, None] + noise
    Image.fromarray(np.clip(np.rint(ramp), 0, 255).astype(np.uint8)).save(path)
    return path


def command(folder: Path) -> Crossed:
    from clusir.cli.run import main

    photo = write_photo(folder / "photo.png")
    with traced() as found:
        main([str(photo), "-o", str(folder / "out.png"), "--quiet"], standalone_mode=False)
    return found


def photo(folder: Path) -> Crossed:
    from clusir.runtimes.batch.jobs import Job
    from clusir.runtimes.batch.pipeline import Pipeline
    from clusir.runtimes.restore.restorer import Restorer

    source = write_photo(folder / "photo.png")
    with Restorer(threads=1) as restorer:
        pipeline = Pipeline(restorer)
        pipeline.run([Job(source, folder / "first.png", "photo.png")], lambda _: None)
        with traced() as found:
            pipeline.run([Job(source, folder / "second.png", "photo.png")], lambda _: None)
    return found


def crop(folder: Path) -> Crossed:
    import routed_model

    from clusir.calibration.balance import BalanceConfig, draw_balanced
    from clusir.calibration.sources import open_source
    from clusir.export.quantize.data import Reference, calibrate
    from clusir.export.quantize.layers import load_graph
    from clusir.export.quantize.statistics import record

    routed_model.write_routed(folder)
    for index in range(4):
        write_photo(folder / f"photo_{index}.png")
    source = open_source(folder, routed_model.SIZE)
    reference = Reference(folder / "model.onnx")
    graph = load_graph(reference.model)
    layers = {"stem.weight": next(n for n in graph.model.graph.node if "stem.weight" in n.input)}
    with traced() as found:
        draw = draw_balanced(source, reference.route(), reference.experts, BalanceConfig(size=12, pool=24))
        record(graph, [], layers, calibrate(reference.model, draw, reference), {})
    return found


WAYS: dict[str, Callable[[Path], Crossed]] = {"command": command, "photo": photo, "crop": crop}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", nargs="*", help=f"of {', '.join(WAYS)}: those alone")
    parser.add_argument("-v", action="store_true", help="name the modules")
    options = parser.parse_args()
    for name in options.way or WAYS:
        with tempfile.TemporaryDirectory() as folder:
            found = WAYS[name](Path(folder))
        print(f"{name}: {len(found.modules)} modules, {len(found.edges)} edges")
        if options.v:
            print("".join(f"  {module}\n" for module in sorted(found.modules)), end="")


if __name__ == "__main__":
    main()
