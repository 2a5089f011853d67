"""ExecuTorch programs (``.pte``) of a network, for tiles of one size: ``python -m clusir.export.formats.executorch``.

An optional extra with an environment of its own (``pip install "clusir[executorch]"``: each ExecuTorch release wants
one release of torch). The network is the one that is exported to ONNX, experts dense, with its Fourier transforms as
products with constant matrices (``clusir.export.formats.static_fft``). A program carries its ModelSpec as the method
``clusir_spec``, which returns the JSON text. Every program is run through ExecuTorch's own runtime and compared with
PyTorch before it gets its name.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.errors import BackendError, ClusirError, ExportError, UsageError, ValidationError
from clusir.export.base import Pipeline
from clusir.export.experts.dense import DensifyExperts
from clusir.export.formats.static_fft import SplitByMatrices
from clusir.export.staging import staged
from clusir.export.trace.forms import GRAPHS, GraphForm, RouterGraph
from clusir.export.validate.compare import check, compare
from clusir.export.validate.tolerances import tolerance
from clusir.names import install_line
from clusir.network import checkpoint
from clusir.network.evidence import FAMILY_COUNT
from clusir.network.model import ClusIR
from clusir.network.router import top_k_gate
from clusir.spec import ModelSpec, SizeRequirements

__all__ = ["DELEGATES", "ProgramOptions", "ProgramRecord", "write_executorch"]

DELEGATES = ("xnnpack", "portable")
_SAMPLES = 9  # of a picture with three tiles or more each way, for its router: clusir.runtimes.restore.tiling


@dataclass(frozen=True)
class ProgramRecord:
    """One program: its graph and file, its size in bytes, how many parts of it the delegate runs (0: portable), and the
    largest difference of any output from PyTorch on a picture."""

    graph: str
    path: Path
    bytes: int
    delegated: int
    max_abs: float


@dataclass(frozen=True)
class ProgramOptions:
    """What to write: tiles of ``tile_px`` that overlap by ``halo_px``, for ``delegate``; ``samples`` tiles of a picture
    for the router. The rest names the network in the programs' metadata."""

    tile_px: int = 256
    halo_px: int = 16
    delegate: str = "xnnpack"
    graphs: Sequence[str] = ("whole", "tile", "router")
    samples: int = _SAMPLES
    checkpoint_sha256: str = ""
    cluster_labels: tuple[tuple[str, ...], ...] = ()


def write_executorch(
    model: ClusIR, folder: Path, stem: str = "clusir", options: ProgramOptions | None = None
) -> list[ProgramRecord]:
    """Writes ``<stem>.pte``, ``<stem>.tile.pte`` and ``<stem>.router.pte`` into ``folder``, float32, batch 1; the
    router takes exactly ``samples`` tiles of a picture. (With an open batch, 1 to 9, ExecuTorch 1.4.1 wrote a router
    that ran at the traced number only: "Attempted to resize a static tensor".)

    Raises UsageError for an unknown delegate or graph and for a tile that the network does not take, BackendError where
    ExecuTorch is not installed, ExportError where it refuses, ValidationError where a program disagrees with PyTorch.
    """
    options = options or ProgramOptions()
    tile_px, halo_px, samples = options.tile_px, options.halo_px, options.samples
    if options.delegate not in DELEGATES:
        raise UsageError(f"delegate {options.delegate!r} is not one of {', '.join(DELEGATES)}")
    if unknown := set(options.graphs) - set(GRAPHS):
        raise UsageError(f"graph {sorted(unknown)[0]!r} is not one of {', '.join(GRAPHS)}")
    multiple = model.config.size_multiple
    if not 1 <= samples <= _SAMPLES:
        raise UsageError(f"{samples} samples for the router: clusir takes 1 to {_SAMPLES} of a picture")
    if tile_px < multiple or tile_px % multiple or not 0 <= 2 * halo_px < tile_px:
        raise UsageError(
            f"tile {tile_px} px with halo {halo_px} px: the tile must be a multiple of {multiple} px (this network's "
            "rule) and wider than two halos"
        )
    _need_executorch()
    passes: Pipeline[nn.Module] = Pipeline([DensifyExperts(), SplitByMatrices(tile_px)])
    fixed = passes.run(model)
    assert isinstance(fixed, ClusIR)
    records = []
    with staged(folder) as stage:
        for form in (GRAPHS[name] for name in options.graphs):
            spec = ModelSpec(
                name=stem,
                graph=form.name,
                checkpoint_sha256=options.checkpoint_sha256,
                size=SizeRequirements(multiple, multiple, tile_px),
                tile_px=tile_px,
                halo_px=halo_px,
                clusters=model.config.clusters,
                experts=(model.config.experts,) * model.config.levels,
                top_k=model.config.top_k,
                cluster_labels=options.cluster_labels,
                statistics=0 if form.name == "whole" else model.statistics_size(),
            )
            path = stage / f"{stem}{form.suffix.removesuffix('.onnx')}.pte"
            feeds = example(model, form, tile_px, samples)
            delegated = _write(form.build(fixed), feeds, path, spec, options.delegate)
            worst = _compare(path, form.build(model), example(model, form, tile_px, samples, seed=1), form, path.name)
            records.append(ProgramRecord(form.name, folder / path.name, path.stat().st_size, delegated, worst))
    return records


def example(model: ClusIR, form: GraphForm, tile_px: int, samples: int = _SAMPLES, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs of a graph: a smooth noisy picture 1x3xTxT, of which a tile is given the picture's own routing and
    statistics; ``samples`` of them for the router."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(samples, 3, 9, 9, generator=generator)
    image = F.interpolate(coarse, size=(tile_px, tile_px), mode="bicubic", align_corners=False)
    image = (image + 0.05 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
    if form.name == "router":
        return (image, -torch.ones(1, FAMILY_COUNT)) if model.config.permissions else (image,)
    image = image[:1].clone()
    if form.name == "whole":
        return (image,)
    with torch.no_grad():
        posterior, probability, statistics = RouterGraph(model).eval()(image)[:3]  # of this very tile
    levels = probability.split([model.config.experts] * model.config.levels, dim=1)
    gate = torch.cat([top_k_gate(level, model.config.top_k) for level in levels], dim=1)
    return image, posterior, gate, statistics


def _need_executorch() -> None:
    try:
        import executorch.exir  # noqa: F401
    except ImportError as error:
        raise BackendError(
            f"ExecuTorch is not installed ({error}); in an environment of its own: {install_line('executorch')}"
        ) from error


def _write(module: nn.Module, feeds: tuple[Tensor, ...], path: Path, spec: ModelSpec, delegate: str) -> int:
    """Writes the program; returns how many parts of it went to the delegate."""
    from executorch.exir import to_edge_transform_and_lower

    partitioners: list[Any] = []
    if delegate == "xnnpack":
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        partitioners = [XnnpackPartitioner()]
    try:
        program = torch.export.export(module, feeds)
        methods = {"clusir_spec": json.dumps(spec.to_metadata())}
        edge = to_edge_transform_and_lower(program, partitioner=partitioners, constant_methods=methods)
        nodes = edge.exported_program().graph.nodes
        delegated = sum("executorch_call_delegate" in str(node.target) for node in nodes)
        path.write_bytes(edge.to_executorch().buffer)
    except (RuntimeError, ValueError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"ExecuTorch refused the {spec.graph} graph: {type(error).__name__}: {reason}") from error
    return delegated


def _compare(path: Path, reference: nn.Module, feeds: tuple[Tensor, ...], form: GraphForm, name: str) -> float:
    """Largest absolute difference of any output from PyTorch's; refuses more than float32's tolerance."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    found = list(method.execute(feeds))
    with torch.no_grad():
        expected = reference(*feeds)
    wanted = [expected] if isinstance(expected, Tensor) else list(expected)
    if len(found) != len(wanted):
        raise ValidationError(f"{name}: it has {len(found)} outputs, {len(wanted)} are expected; it was not written")
    outputs = (*form.plain_outputs, "evidence")[: len(wanted)]
    ours, theirs = (
        {output: tensor.numpy() for output, tensor in zip(outputs, tensors, strict=True)} for tensors in (wanted, found)
    )
    return check(compare(ours, theirs, tolerance("fp32")), f"{name} against PyTorch").max_abs


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m clusir.export.formats.executorch", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="where the programs go")
    parser.add_argument("--checkpoint", type=Path, default=checkpoint.shipped(), help="default: the shipped one")
    parser.add_argument("--tile", type=int, default=256, metavar="PX", help="side of a tile (default 256)")
    parser.add_argument("--halo", type=int, default=16, metavar="PX", help="how far tiles overlap (default 16)")
    parser.add_argument("--samples", type=int, default=_SAMPLES, metavar="N", help="tiles for the router (default 9)")
    parser.add_argument("--delegate", choices=DELEGATES, default="xnnpack")
    parser.add_argument("--graph", action="append", choices=tuple(GRAPHS), help="may be repeated; default: all three")
    given = parser.parse_args(arguments)
    try:
        records = write_executorch(
            checkpoint.load(given.checkpoint),
            given.folder,
            given.checkpoint.stem,
            ProgramOptions(
                tile_px=given.tile,
                halo_px=given.halo,
                delegate=given.delegate,
                graphs=given.graph or tuple(GRAPHS),
                samples=given.samples,
                checkpoint_sha256=checkpoint.sha256(given.checkpoint),
                cluster_labels=checkpoint.cluster_labels(str(given.checkpoint)),
            ),
        )
    except ClusirError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for record in records:
        parts = f"{record.delegated} parts on {given.delegate}" if record.delegated else "portable kernels"
        print(f"{record.path}: {record.bytes / 1e6:.2f} MB, {parts}, differs from PyTorch by {record.max_abs:.2g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
