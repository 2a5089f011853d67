"""How much a clip of thirty frames flickers: its source, the network with its routing as constants, told to mend noise
and deciding how in each frame, and deciding what to mend in each frame.

``python -m tests.bench.hosts.flicker [MODEL]`` (default: the shipped model): the table of docs/hosts.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from clusir.export.formats.hosts.base import Source
from clusir.export.formats.hosts.folders import open_source
from clusir.export.formats.hosts.form import host_form
from clusir.export.formats.hosts.routing.frozen import frozen_for_noise
from clusir.export.formats.hosts.routing.told import told
from clusir.export.formats.hosts.video import VsMlrt
from clusir.export.graph.session import Probe
from clusir.runtimes.runners.files import find_model
from tests.export.formats.hosts.flicker import BLOCKS_PX, clip, flicker

SIDE_PX = 256


def main(model: str | None = None) -> None:
    print(
        "| photo, clip | "
        + " | ".join(f"blocks of {px} px" for px in BLOCKS_PX)
        + " |\n|---|"
        + "---:|" * len(BLOCKS_PX)
    )
    for seed in range(2):
        rows(model, seed)


def rows(model: str | None, seed: int) -> None:
    host = VsMlrt()
    makes: dict[str, Callable[[Source], Source]] = {
        "routing as constants": frozen_for_noise,
        "told to mend noise": told,
        "each frame decides what to mend": lambda source: source,
    }
    given = open_source(find_model(model).whole)
    frames = clip(given.spec.size.static_px or SIDE_PX, seed)
    shown = {"source": frames}
    for name, make in makes.items():
        source = make(given)
        probe = Probe(host_form(source, host.form(source)), threads=1)
        answers = [probe.run({"input": frame})["output"].clip(0, 1) for frame in frames]
        shown[name] = [(np.rint(answer * 255) / 255).astype(np.float32) for answer in answers]
    for name, seen in shown.items():
        print(
            f"| {seed + 1}, {name} | " + " | ".join(f"{flicker(seen, px):.3f}" for px in BLOCKS_PX) + " |", flush=True
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
