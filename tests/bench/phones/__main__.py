"""Runtimes of phones beside ONNX Runtime: the graph in the host form on every degradation, and every expert forced.

``python -m tests.bench.phones NAME [MODEL]`` (NAME: mnn, ...; default: the shipped model): the table of
docs/measurements. The runtime is found as clusir-export --target finds it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from clusir.degrade import KINDS, degrade
from clusir.export.formats.hosts.base import Array, Source
from clusir.export.formats.hosts.converted import Converted
from clusir.export.formats.hosts.folders import hosts_of, open_source
from clusir.export.formats.hosts.form import host_form, reference
from clusir.export.formats.hosts.routing.frozen import with_constants
from clusir.export.graph.session import Probe
from clusir.export.subjects.onnx_probe import natural_picture
from clusir.export.validate.compare import compare
from clusir.runtimes.restore.routing import combine, router_outputs
from clusir.runtimes.runners.files import find_model
from clusir.spec import ModelSpec

SEVERITY = 0.5
FORCED_ON = "haze"


def main(name: str, model: str | None = None) -> None:
    (host,) = hosts_of([name])
    assert isinstance(host, Converted), f"{name} has no converter of its own"
    source = open_source(find_model(model).whole)
    side = host.form(source).side_px
    rng = np.random.default_rng(7)
    clean = natural_picture(side, side, 3, 20)
    photo = np.ascontiguousarray(clean[0].transpose(1, 2, 0))
    pictures = {"none": clean}
    for kind in KINDS:
        pictures[kind] = np.ascontiguousarray(degrade(photo, kind, SEVERITY, rng).transpose(2, 0, 1)[None], np.float32)
    half = (" dB, float16 file |", "---:|") if host.half else ("", "")
    print(f"| picture | largest difference | dB |{half[0]}\n|---|---:|---:|{half[1]}")
    rows(host, source, pictures)
    if source.tile is not None and source.router is not None:
        for expert in range(max(ModelSpec.from_metadata(_metadata(source.tile)).experts)):
            given = forced(source, expert, pictures[FORCED_ON])
            rows(host, given, {f"expert {expert + 1} of every level": pictures[FORCED_ON]})


def _metadata(model: object) -> dict[str, str]:
    return {p.key: p.value for p in model.metadata_props}  # type: ignore[attr-defined]


def rows(host: Converted, source: Source, pictures: dict[str, Array]) -> None:
    form = host.form(source)
    right = reference(source, form)
    with TemporaryDirectory() as name:
        host.convert(host_form(source, form), Path(name))
        found = host.answers(Path(name), list(pictures.values()))
        halves = host.answers(Path(name), list(pictures.values()), half=True) if host.half else found
        size = sum((Path(name) / file).stat().st_size for file in host.present(Path(name)))
    for (what, picture), answer, half in zip(pictures.items(), found, halves, strict=True):
        agreement = compare({"restored": right(picture)}, {"restored": answer}, host.bound)
        told = f"{agreement.max_abs:.1e} | {min(agreement.psnr_db, 999):.1f}"
        if host.half:
            told += f" | {compare({'restored': right(picture)}, {'restored': half}, host.bound).psnr_db:.1f}"
        print(f"| {what} | {told} |" + ("" if agreement.ok else f" FAULT: {agreement.fault}"), flush=True)
    if len(pictures) > 1:
        print(f"| bytes | {size} | |" + (" |" if host.half else ""))


def forced(source: Source, expert: int, picture: Array) -> Source:
    """The tile graph with that expert chosen at every level (of fewer experts: the last), and the router's other
    answers for ``picture``."""
    assert source.tile is not None
    assert source.router is not None
    spec, router_spec = (ModelSpec.from_metadata(_metadata(graph)) for graph in (source.tile, source.router))
    feeds = {"image": picture}
    if router_spec.families:
        feeds["permissions"] = np.ones((1, len(router_spec.families)), np.float32)
    answers = Probe(source.router, threads=1).run(feeds)
    routing = combine({name: answers[name] for name in router_outputs(router_spec)}, router_spec)
    gate = np.concatenate([np.eye(count, dtype=np.float32)[min(expert, count - 1)] for count in spec.experts])
    model = with_constants(source.tile, replace(routing, gate=gate).feeds(1))
    plain = replace(spec, graph="whole", clusters=(), experts=(), cluster_labels=(), top_k=1, statistics=0,
                    families=(), evidence_thresholds=(), evidence_floors=())  # fmt: skip
    return Source(model, plain, source.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
