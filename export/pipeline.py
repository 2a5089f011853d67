"""Export: the visible, ordered list of passes from a checkpoint to validated files.

Everything is written into a folder beside the destination and moved to its final name only when validation has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from torch import nn

from clusir.degrade.kinds import FAMILY_NAMES
from clusir.errors import UsageError
from clusir.export.base import Pass, PassRecord, Pipeline
from clusir.export.experts.dense import DensifyExperts
from clusir.export.fastest import Forms, rank_forms
from clusir.export.lowering.fft import FORMS, Form
from clusir.export.passes.order import fusing_passes
from clusir.export.passes.simplify import AttachMetadata, CheckStandard, SimplifyGraph
from clusir.export.trace.forms import GRAPHS, GraphForm
from clusir.export.trace.writer import write_onnx
from clusir.export.validate.cases import probes
from clusir.export.validate.each_pass import ParityAfterEach
from clusir.export.validate.feeds import random_feeds
from clusir.network.model import ClusIR
from clusir.spec import ModelSpec, SizeRequirements

__all__ = [
    "ExportConfig",
    "GraphRecord",
    "build_graph",
    "describe",
    "fastest_router",
    "graph_passes",
    "module_passes",
    "write_graphs",
]

ROUTERS = ("dense", "conditional")
_DYNAMIC_TRACE_PX = 64

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ExportConfig:
    """What to write. ``tile_px`` and ``halo_px`` in pixels; ``cluster_labels`` names the clusters of each level;
    ``check_passes`` compares the graph after each pass, which names the pass that changes an answer."""

    router: str = "dense"
    dft: Form = "auto"
    dynamic: bool = False
    tile_px: int = 256
    halo_px: int = 16
    graphs: tuple[str, ...] = ("whole", "tile", "router")
    name: str = "clusir"
    checkpoint_sha256: str = ""
    cluster_labels: tuple[tuple[str, ...], ...] = ()
    check_passes: bool = False

    def __post_init__(self) -> None:
        if self.router not in ROUTERS:
            raise UsageError(f"router form {self.router!r} is not one of {', '.join(ROUTERS)}")
        if self.dft not in FORMS:
            raise UsageError(f"DFT form {self.dft!r} is not one of {', '.join(FORMS)}")
        wrong = [graph for graph in self.graphs if graph not in GRAPHS]
        if wrong or not self.graphs:
            raise UsageError(f"graph {wrong[0] if wrong else ''!r} is not one of {', '.join(GRAPHS)}")
        if self.tile_px < 32 or self.halo_px < 0 or 2 * self.halo_px >= self.tile_px:
            raise UsageError(
                f"tile {self.tile_px} px with halo {self.halo_px} px: the tile must be at least 32 px and wider than "
                "two halos"
            )


@dataclass(frozen=True)
class GraphRecord:
    """What became of one graph: its file, its passes and its size in bytes."""

    graph: str
    path: Path
    passes: tuple[PassRecord, ...]
    bytes: int


def module_passes(config: ExportConfig) -> list[Pass[nn.Module]]:
    """Passes on the PyTorch network, in order."""
    return [DensifyExperts(merged=config.router == "dense")]


def graph_passes(config: ExportConfig, spec: ModelSpec) -> list[Pass[onnx.ModelProto]]:
    """Passes on the written ONNX graph, in order."""
    passes: list[Pass[onnx.ModelProto]] = [SimplifyGraph()]
    if config.dft == "auto":
        passes += fusing_passes()
    if config.router == "conditional" and spec.graph != "router":
        from clusir.export.experts.conditional import BranchExperts

        passes.append(BranchExperts())
    passes += [CheckStandard(allow_dft=config.dft == "op"), AttachMetadata(spec)]
    return passes


def describe(model: ClusIR, config: ExportConfig, graph: str = "whole") -> ModelSpec:
    """The ModelSpec of one graph of an export. Raises UsageError where the tile does not fit the network."""
    multiple = model.config.size_multiple
    if config.tile_px % multiple:
        raise UsageError(f"tile {config.tile_px} px is not a multiple of {multiple} px, which this network needs")
    return ModelSpec(
        name=config.name,
        graph=graph,
        checkpoint_sha256=config.checkpoint_sha256,
        size=SizeRequirements(multiple, multiple, 0 if config.dynamic else config.tile_px),
        tile_px=config.tile_px,
        halo_px=config.halo_px,
        router_form=config.router,
        dft_form=config.dft,
        clusters=model.config.clusters,
        experts=(model.config.experts,) * model.config.levels,
        top_k=model.config.top_k,
        cluster_labels=config.cluster_labels,
        statistics=0 if graph == "whole" else model.statistics_size(),
        families=FAMILY_NAMES if model.evidence is not None else (),
        evidence_thresholds=() if model.evidence is None else tuple(model.evidence.thresholds.tolist()),
        evidence_floors=() if model.evidence is None else tuple(model.evidence.floors.tolist()),
    )


def build_graph(dense: ClusIR, form: GraphForm, config: ExportConfig) -> tuple[onnx.ModelProto, list[PassRecord]]:
    """One graph of a network whose module passes have run, as ONNX with its metadata."""
    spec = describe(dense, config, form.name)
    size = _DYNAMIC_TRACE_PX if config.dynamic else config.tile_px
    written = write_onnx(
        form.build(dense),
        form.example(dense, size),
        form.inputs(dense),
        form.outputs(dense),
        dynamic_size=config.dynamic,
        dft=config.dft,
    )
    pipeline = Pipeline(graph_passes(config, spec))
    if config.check_passes:
        pipeline.after_each = ParityAfterEach(written, random_feeds(written, (size, size)))
    return pipeline.run(written), pipeline.records


def fastest_router(
    model: ClusIR,
    config: ExportConfig,
    backends: Sequence[str],
    lower: Sequence[str] = (),
    progress: Progress = lambda _: None,
) -> Forms:
    """The router forms of ``config``'s graph that answers alone, the fastest on this machine first: eight pictures of
    the size of a tile, one at a time. Beside ``lower`` precisions there is the dense form alone."""
    if lower:
        return Forms(("dense",), f"--router auto took dense: {' and '.join(lower)} have no other form")

    def build(router: str) -> onnx.ModelProto:
        progress(f"measuring {router} experts")
        form = replace(config, router=router, check_passes=False)
        dense = Pipeline(module_passes(form)).run(model)
        assert isinstance(dense, ClusIR)
        return build_graph(dense, GRAPHS["whole"], form)[0]

    pictures = probes(8, 3, config.tile_px, config.tile_px).split(1)
    return rank_forms(build, ROUTERS, [{"image": picture.numpy()} for picture in pictures], backends)


def write_graphs(
    model: ClusIR, folder: Path, stem: str, config: ExportConfig, progress: Progress = lambda _: None
) -> list[GraphRecord]:
    """Run all passes and write ``<stem>.onnx``, ``<stem>.tile.onnx``, ``<stem>.router.onnx`` into ``folder``.

    Raises ExportError naming the pass that failed; the files are not validated yet.
    """
    modules = Pipeline(module_passes(config))
    dense = modules.run(model)
    assert isinstance(dense, ClusIR)
    written = []
    for name in config.graphs:
        form = GRAPHS[name]
        progress(f"{name} graph")
        # What the network does, and does not, with a static router graph is the same in either router form.
        proto, records = build_graph(dense, form, config)
        path = folder / f"{stem}{form.suffix}"
        onnx.save(proto, str(path))
        written.append(GraphRecord(name, path, (*modules.records, *records), path.stat().st_size))
    return written
