"""Every architecture that spandrel knows, exported with random weights: a table.

``python -m tests.bench.zoo OUT [--only NAME ...] [--columns fp32,fp16,int8,cpp] [--limit SECONDS] [--size PX]``: rows
go into ``OUT/NAME.json`` when they are done and are not done again (``--again``: they are); ``OUT/table.md`` is
written after each. ``--cpp BUILD``: where the C++ library was built with its tests, for column ``cpp``. A column that
takes more than SECONDS of processor time (600) is stopped, and the row says in which step. ``--size``: files for that
one size, which are traced in a fraction of the time. Needs spandrel, spandrel_extra_arches and torchvision
(docs/checkpoints.md).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from pathlib import Path

from tests.bench.zoo.networks import NAMES
from tests.bench.zoo.row import BACKENDS, warm_up
from tests.bench.zoo.row import column as make
from tests.bench.zoo.table import markdown


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.zoo")
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME")
    parser.add_argument("--columns", default="fp32,fp16,int8")
    parser.add_argument("--limit", type=int, default=600)
    parser.add_argument("--cpp", type=Path)
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    warm_up()
    for name in options.only:
        for column in options.columns.split(","):
            run(name, column, options)
            (options.out / "table.md").write_text(markdown(options.out, NAMES))
    print((options.out / "table.md").read_text())


def run(name: str, column: str, options: argparse.Namespace) -> None:
    """One column of one row, in a process of its own, which is stopped after ``limit`` seconds of processor time."""
    out, limit = options.out, options.limit
    at = out / f"{name}.json"
    row = json.loads(at.read_text()) if at.is_file() else {"name": name}
    if options.again:
        row = {"name": name} if column == "fp32" else row | {"done": [c for c in row["done"] if c != column]}
        at.write_text(json.dumps(row))
    if column in row.get("done", []) or (column != "fp32" and "ort" not in row):
        return
    log = out / f"{name}.{column}.log"
    sys.stdout.flush()
    child = os.fork()
    if not child:
        _in_child(name, column, options, log)
    os.waitpid(child, 0)
    row = json.loads(at.read_text()) if at.is_file() else {"name": name}
    if column not in row.get("done", []):
        last = [line for line in log.read_text().splitlines() if " s  " in line]
        step = last[-1].split(" s  ", 1)[1] if last else "reading"
        row |= {f"{column}_failed": f"not done after {limit} s: {step}", "done": [*row.get("done", []), column]}
        at.write_text(json.dumps(row, indent=1) + "\n")
    print(name, column, row.get(f"{column}_refused") or row.get(f"{column}_failed") or
          {key: row[key] for key in ("seconds", *BACKENDS, f"{column}_db", "cpp") if key in row},
          flush=True)  # fmt: skip


def _in_child(name: str, column: str, options: argparse.Namespace, log: Path) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (options.limit, options.limit))
    with log.open("w") as written:
        os.dup2(written.fileno(), 1)
        os.dup2(written.fileno(), 2)
        try:
            make(name, options.out, column, options.cpp, options.size)
        finally:
            sys.stdout.flush()
            os._exit(0)


if __name__ == "__main__":
    main()
