"""Files as other tools write them, adopted: ``python -m tests.bench.adopted OUT [NAME ...]`` prints a table."""

from __future__ import annotations

import argparse
import contextlib
import io
import time
import warnings
from pathlib import Path

import torch

from clusir.errors import ClusirError
from clusir.export.adopt import AdoptionConfig, adopt
from tests.bench.adopted.files import FILES


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.adopted")
    parser.add_argument("out", type=Path)
    parser.add_argument("only", nargs="*", metavar="NAME", help="part of a name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| file | seconds | what comes of it |\n|---|---:|---|")
    for number, (name, make) in enumerate(FILES.items()):
        if options.only and not any(part in name for part in options.only):
            continue
        folder = options.out / f"{number:02}"
        folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            make(folder / "theirs.onnx")
        began = time.process_time()
        told = made_of(folder)
        print(f"| {name} | {time.process_time() - began:.1f} | {told} |", flush=True)


def made_of(folder: Path) -> str:
    """What becomes of ``theirs.onnx``, in a few words."""
    try:
        made = adopt(folder / "theirs.onnx", folder / "ours.onnx", AdoptionConfig())
    except ClusirError as error:
        return f"refused: {error}".replace(f"{folder}/", "").replace(str(folder), "FOLDER")
    worst = max(agreement.max_abs for _, _, agreement in made.agreements)
    return f"right to {worst:.0e}, {made.spec.size}, tiles of {made.spec.tile_px} px"


if __name__ == "__main__":
    main()
