"""Runtimes of phones beside ONNX Runtime: the graph in the host form on every degradation, and every expert forced.

``python -m tests.bench.phones NAME [MODEL]`` (NAME: mnn, ...; default: the shipped model): the tables of
docs/measurements. The runtime is found as clusir-export --target finds it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from clusir.degrade import KINDS, degrade
from clusir.export.formats.hosts.base import Array, Source
from clusir.export.formats.hosts.converted import Converted
from clusir.export.formats.hosts.folders import hosts_of, open_source
from clusir.export.formats.hosts.form import host_form, reference
from clusir.export.formats.hosts.litert import Litert
from clusir.export.graph.session import Probe
from clusir.export.subjects.onnx_probe import natural_picture
from clusir.export.validate.compare import compare
from clusir.export.validate.conditioning import ROUNDING_FACTOR
from clusir.runtimes.runners.files import find_model
from tests.bench.phones.forcing import alone, everywhere, forced, marked, routed
from tests.bench.phones.rounding import in_float64

SEVERITY = 0.5
ALONE_ON, EVERYWHERE_ON = "noise", "haze"


def main(name: str, model: str | None = None) -> None:
    (host,) = hosts_of([name])
    assert isinstance(host, Converted), f"{name} has no converter of its own"
    source = open_source(find_model(model).whole)
    pictures = degraded(host.form(source).side_px)
    half = (" dB, float16 file |", "---:|") if host.half else ("", "")
    print(f"| picture | largest difference | dB |{half[0]}\n|---|---:|---:|{half[1]}")
    rows(host, source, pictures)
    if source.tile is None or source.router is None:
        return
    routing, spec = routed(source, pictures[ALONE_ON])
    gates = alone(routing, spec)
    given = forced(source, routing, list(gates.values()), spec)
    rows(host, given, {name: marked(pictures[ALONE_ON], index) for index, name in enumerate(gates)})
    routing, spec = routed(source, pictures[EVERYWHERE_ON])
    gates = everywhere(spec)
    given = forced(source, routing, list(gates.values()), spec)
    beside_float64(host, given, {name: marked(pictures[EVERYWHERE_ON], index) for index, name in enumerate(gates)})


def degraded(side: int) -> dict[str, Array]:
    """One photo, and what every kind of degradation makes of it."""
    rng = np.random.default_rng(7)
    clean = natural_picture(side, side, 3, 20)
    photo = np.ascontiguousarray(clean[0].transpose(1, 2, 0))
    pictures = {"none": clean}
    for kind in KINDS:
        pictures[kind] = np.ascontiguousarray(degrade(photo, kind, SEVERITY, rng).transpose(2, 0, 1)[None], np.float32)
    return pictures


def answered(host: Converted, source: Source, pictures: dict[str, Array]) -> tuple[list[Array], list[Array], int]:
    """What the host makes of them, what its file of float16 makes of them (the same where it has none), and the bytes
    of its files."""
    with TemporaryDirectory() as name:
        host.convert(host_form(source, host.form(source)), Path(name))
        found = host.answers(Path(name), list(pictures.values()))
        halves = host.answers(Path(name), list(pictures.values()), half=True) if host.half else found
        return found, halves, sum((Path(name) / file).stat().st_size for file in host.present(Path(name)))


def rows(host: Converted, source: Source, pictures: dict[str, Array]) -> None:
    right = reference(source, host.form(source))
    found, halves, size = answered(host, source, pictures)
    for (what, picture), answer, half in zip(pictures.items(), found, halves, strict=True):
        agreement = compare({"restored": right(picture)}, {"restored": answer}, host.bound)
        told = f"{agreement.max_abs:.1e} | {min(agreement.psnr_db, 999):.1f}"
        if host.half:
            told += f" | {compare({'restored': right(picture)}, {'restored': half}, host.bound).psnr_db:.1f}"
        print(f"| {what} | {told} |" + ("" if agreement.ok else f" FAULT: {agreement.fault}"), flush=True)
    if "none" in pictures:
        print(f"| bytes | {size} | |" + (" |" if host.half else ""))


def beside_float64(host: Converted, source: Source, pictures: dict[str, Array]) -> None:
    """How far the host and ONNX Runtime are from the same graph in float64, of its largest value: where float32 itself
    has no digits left, an answer can be as near as another of float32, and no nearer."""
    form = host.form(source)
    right, exact = reference(source, form), Litert().rewrite(host_form(source, form))
    few = Probe(exact, optimise=False, threads=1)
    found, _, _ = answered(host, source, pictures)
    print(f"\n| on {EVERYWHERE_ON} | largest value | ONNX Runtime | with few operators | {host.name} | as near |")
    print("|---|---:|---:|---:|---:|---|")
    for (what, picture), answer in zip(pictures.items(), found, strict=True):
        truth = in_float64(exact, picture)[exact.graph.output[0].name].numpy()
        largest = max(1.0, float(np.abs(truth).max()))
        seen = (right(picture), few.run({form.input_name: picture})[form.output_name], answer)
        *theirs, its = (float(np.abs(one - truth).max()) / largest for one in seen)
        near = its <= ROUNDING_FACTOR * max(theirs) + (host.bound.max_abs or 0.0)
        far = " | ".join(f"{value:.1e}" for value in (largest, *theirs, its))
        print(f"| {what} | {far} | {'yes' if near else 'FAULT'} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
