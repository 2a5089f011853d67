"""Ten networks of other people's kinds on runtimes of phones: which run right, and what is said of the others.

``python -m tests.bench.phones.brought [--files FOLDER] NAME ...`` (NAME: litert, mnn, ncnn, coreml): the table of
docs/measurements. FOLDER keeps the exported graphs, which are made once.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from clusir.errors import ClusirError
from clusir.export.formats.hosts.base import Host
from clusir.export.formats.hosts.folders import Written, export_targets, hosts_of, open_source
from clusir.export.module import export_module
from tests.bench.phones.networks import NETWORKS, network

SIDE = 64


def graph(name: str, folder: Path) -> Path:
    """The network as a model file of clusir's in ``folder``; made where it is not there."""
    path = folder / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.onnx"
    if not path.is_file():
        made, channels = network(name)
        export_module(made, f"1x{channels}x{SIDE}x{SIDE}", path, size=SIDE, backends=("ort",))
    return path


def run(path: Path, host: Host) -> Written:
    with TemporaryDirectory() as scratch:
        (made,) = export_targets(open_source(path), Path(scratch) / "out", [host])
        return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.phones.brought")
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--files", type=Path)
    options = parser.parse_args()
    hosts = hosts_of(options.names)
    print("| network | " + " | ".join(host.name for host in hosts) + " |\n|---|" + "---|" * len(hosts), flush=True)
    right = dict.fromkeys(options.names, 0)
    with TemporaryDirectory() as scratch:
        folder = options.files or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in NETWORKS:
            told = []
            try:
                path = graph(name, folder)
            except ClusirError as error:
                print(f"| {name} | not exported: {error} |", flush=True)
                continue
            for host in hosts:
                try:
                    found = run(path, host).findings
                except ClusirError as error:
                    told.append(f"refused: {str(error).removeprefix(f'--target {host.name}: ')}")
                    continue
                right[host.name] += 1
                whole = [f.agreement.max_abs for f in found if f.agreement is not None and "float16" not in f.case]
                told.append(f"{max(whole):.1e}" if whole else "right, not run here")
            print(f"| {name} | {' | '.join(told)} |", flush=True)
    print(f"\nOf {len(NETWORKS)} run right: {', '.join(f'{name} {count}' for name, count in right.items())}.")


if __name__ == "__main__":
    main()
