"""Half precision: float16 weights and most arithmetic, float32 where digits or range would be lost, float32 in and out.

The converter is ``onnxruntime.transformers.float16``: of the maintained ones it is the continuation of
onnxconverter-common's (whose package pins an old protobuf) and comes with the onnxruntime that the export needs anyway.
It writes a float16 cast between two float32 neighbours, which rounds all that passes; those pairs are removed here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from clusir.errors import BudgetError, CalibrationError
from clusir.export.graph.magnitudes import Magnitude, Magnitudes, mask_reaches
from clusir.export.graph.session import Feeds, Probe
from clusir.export.quantize.fit import Fitted, fit_float16
from clusir.export.quantize.layers import FIRST, Graph, load_graph
from clusir.export.quantize.steps import stamp, write_atomically
from clusir.export.validate.compare import measure
from clusir.markdown import table

__all__ = ["Fp16Config", "Fp16Report", "convert_fp16", "peaks_of", "structural_float32"]

# Sums, squares, roots, exponentials: where a float16 accumulator loses digits or range (65504) first.
_DELICATE = frozenset((
    "Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "ReduceL1",
    "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "GlobalAveragePool", "Pow", "Sqrt", "Reciprocal",
    "Exp", "Log", "DFT", "Range", "CumSum", "Resize", "Greater", "Less", "Equal",
))  # fmt: skip
_ROUNDS = frozenset(("Floor", "Ceil", "Round", "Mod"))
_LIMIT = 65504.0


@dataclass(frozen=True)
class Fp16Config:
    """``headroom``: a tensor that comes within this factor of float16's largest value stays in float32, with its
    neighbours. ``floor``: so does one whose mean magnitude is below this (float16 has no digits left below 6e-8).
    ``agreement_db``: what the result must reach against float32 on the worst calibration crop, in dB of PSNR.
    ``rescale``: what comes near the largest value is kept smaller by powers of two (``fit.py``), and stays in float32
    only where that has no form. ``islands`` off: nothing stays in float32 but the ports, for runtimes with strong
    types; what that loses is measured, not mended.
    """

    headroom: float = 8.0
    floor: float = 1e-5
    agreement_db: float = 60.0
    rescale: bool = True
    islands: bool = True


@dataclass(frozen=True)
class Fp16Report:
    """``kept``: operator type to the number of nodes in float32; ``reasons``: reason to number of nodes; ``rescaled``:
    tensors that are kept smaller by a power of two. Bytes; dB."""

    kept: dict[str, int]
    reasons: dict[str, int]
    nodes: int
    bytes_fp32: int
    bytes_fp16: int
    agreement_db: float | None
    added_blocks: tuple[str, ...] = ()
    rescaled: int = 0

    @property
    def size_ratio(self) -> float:
        return self.bytes_fp16 / self.bytes_fp32

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "added_blocks": list(self.added_blocks), "size_ratio": self.size_ratio}

    def to_markdown(self) -> str:
        agreement = "" if self.agreement_db is None else f", {self.agreement_db:.1f} dB from float32 on the worst crop"
        smaller = f"; {self.rescaled} tensors are kept smaller by powers of two" if self.rescaled else ""
        return (
            f"FP16: {self.nodes - sum(self.kept.values())} of {self.nodes} nodes in float16, "
            f"{self.bytes_fp16 / 1e6:.2f} of {self.bytes_fp32 / 1e6:.2f} MB ({self.size_ratio:.2f}x)"
            f"{agreement}{smaller}.\n\n"
            + table(("why kept in float32", "nodes"), [(why, str(n)) for why, n in sorted(self.reasons.items())])
        )


def convert_fp16(
    model_path: Path, out_path: Path, feeds: Sequence[Feeds] = (), config: Fp16Config | None = None
) -> Fp16Report:
    """Convert a float32 graph (whole or tile); ``feeds`` are inputs that show its tensors' ranges and check the result.

    If the result disagrees, blocks are put back to float32, the one that hurts most first. Raises CalibrationError
    where the float32 model itself is not finite, BudgetError where even then the agreement is not reached: nothing is
    written then.
    """
    config = config or Fp16Config()
    original = graph = load_graph(model_path)
    expected = _run(graph.model, feeds, graph)
    shown = [*feeds, *_extremes(graph, feeds)]
    fitted = _fit(graph, shown, config)
    if fitted is not None:
        graph = load_graph(fitted.model)
    reasons = structural_float32(graph) | _by_range(graph, shown, config) if config.islands else {}
    model = _convert(graph, set(reasons))
    reached = _agreement(model, feeds, graph, expected)
    added: list[str] = []
    while config.islands and reached is not None and not (reached >= config.agreement_db):
        block, better = _worst_block(graph, set(reasons), feeds, expected)
        if not block:
            break
        added.append(block)
        reasons |= dict.fromkeys(_block_nodes(graph)[block] - reasons.keys(), "its block hurts most in float16")
        model, reached = _convert(graph, set(reasons)), better
    if reached is not None and not (reached >= config.agreement_db):
        raise BudgetError(
            f"float16 agrees with float32 to {reached:.1f} dB only, {config.agreement_db:.1f} dB are asked for; "
            "nothing is written: use fp32 or int8"
        )
    _finish(model, graph, config, len(reasons))
    write_atomically(model, out_path)
    kept: dict[str, int] = {}
    counts: dict[str, int] = {}
    for node in graph.model.graph.node:
        if node.name in reasons:
            kept[node.op_type] = kept.get(node.op_type, 0) + 1
            counts[reasons[node.name]] = counts.get(reasons[node.name], 0) + 1
    return Fp16Report(
        kept,
        counts,
        len(graph.model.graph.node),
        original.model.ByteSize(),
        model.ByteSize(),
        reached,
        tuple(added),
        0 if fitted is None else fitted.rescaled,
    )


def _extremes(graph: Graph, feeds: Sequence[Feeds]) -> list[Feeds]:
    """Pictures of a kind that no photo is: black, white, and either by chance, with the other inputs of the first
    crop. A sum or a norm is largest, or nothing, on these."""
    if not feeds:
        return []
    name = graph.inputs[0]
    low, high = graph.spec.value_range if graph.spec is not None else (0.0, 1.0)
    coin = np.random.default_rng(0).integers(0, 2, feeds[0][name].shape)
    pictures = (np.zeros_like(coin), np.ones_like(coin), coin)
    return [{**feeds[0], name: (low + (high - low) * picture).astype(np.float32)} for picture in pictures]


def _fit(graph: Graph, feeds: Sequence[Feeds], config: Fp16Config) -> Fitted | None:
    """The graph with its numbers in float16's range; None where they are. Raises BudgetError where all is to be
    float16 and cannot be."""
    if not feeds or not config.rescale:
        return None
    fitted = fit_float16(graph.model, *peaks_of(graph.model, feeds), config.headroom)
    if fitted.left and not config.islands:
        name, why = next(iter(fitted.left.items()))
        raise BudgetError(f"float16 without islands: {name}: {why}; nothing is written: leave it in float32 (islands)")
    return fitted if fitted.rescaled else None


def peaks_of(model: ModelProto, feeds: Sequence[Feeds]) -> tuple[dict[str, float], dict[str, int]]:
    """The largest magnitude of every float tensor that a graph reads or computes, and how many elements it has."""
    graph = load_graph(model)
    sizing = Magnitudes(graph.model, _float_tensors(graph))
    peaks: dict[str, float] = {}
    sizes: dict[str, int] = {}
    masked = mask_reaches(graph.model)
    for crop in feeds:
        for name, found in (*sizing.run(crop).items(), *_given(crop)):
            if _infinite(name, found, masked):
                continue
            sizes[name] = found.size
            peaks[name] = max(peaks.get(name, 0.0), found.largest)
    return peaks, sizes


def _infinite(name: str, found: Magnitude, masked: frozenset[str]) -> bool:
    """Whether a value is infinite by design. Raises CalibrationError where it is not finite for another reason."""
    if np.isfinite(found.largest) and np.isfinite(found.mean):
        return False
    if name in masked and np.isinf(found.largest):
        return True
    raise CalibrationError(f"tensor {name} is not finite in the float32 model; check it with clusir-verify")


def _given(feeds: Feeds) -> list[tuple[str, Magnitude]]:
    sizes = {name: np.abs(np.asarray(value)) for name, value in feeds.items()}
    return [(name, Magnitude(float(v.max(initial=0)), float(v.mean()), v.size)) for name, v in sizes.items()]


def structural_float32(graph: Graph) -> dict[str, str]:
    """Node name to reason for what stays in float32 whatever the data: router, sums, DFT, global residual, the first
    convolution, whose rounded weights move the brightness of dark pictures by 0.001, and what changes the picture
    before it (deblurring: a rounded filter that sharpens tenfold was 0.008 off)."""
    reasons: dict[str, str] = {}
    router = graph.router_nodes()
    layers = graph.layers()
    first = {layer.node for layer in layers if layer.keep == FIRST}
    # What filters the answer against the picture reads the picture, too, behind all of the network.
    deep = {layer.node for layer in layers if not layer.keep}
    before = graph.before({name for name in graph.shown(first) if not graph.before({name}) & deep})
    decided = _decided(graph, {layer.node for layer in layers})
    edge = {*graph.inputs, *graph.outputs}
    for node in graph.model.graph.node:
        if node.name in router:
            reasons[node.name] = "router"
        elif node.name in first:
            reasons[node.name] = FIRST
        elif node.name in before:
            reasons[node.name] = "what the picture passes before the first convolution"
        elif node.op_type in _DELICATE:
            reasons[node.name] = "sum, norm, softmax or comparison"
        elif node.name in decided:
            reasons[node.name] = "what is rounded to whole numbers"
        elif node.op_type in ("MatMul", "Gemm") and any(name in graph.initialisers for name in node.input):
            reasons[node.name] = "product with a constant matrix (DFT, or one vector per picture)"
        elif node.op_type == "Add" and edge & set(node.output) and edge & set(node.input):
            reasons[node.name] = "global residual"
    return reasons


def _decided(graph: Graph, layers: set[str]) -> set[str]:
    """What is rounded to whole numbers, with all that makes it up to the layer before: a hue that float16 rounds to 1
    is in none of its six sixths."""
    found = {node.name for node in graph.model.graph.node if node.op_type in _ROUNDS}
    queue = [node for node in graph.model.graph.node if node.name in found]
    while queue:
        for name in queue.pop().input:
            before = graph.producer.get(name)
            if before is not None and before.name not in found and before.name not in layers:
                found.add(before.name)
                queue.append(before)
    return found


def _float_tensors(graph: Graph) -> list[str]:
    known = {v.name for v in graph.model.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return [name for node in graph.model.graph.node for name in node.output if name in known]


def _by_range(graph: Graph, feeds: Sequence[Feeds], config: Fp16Config) -> dict[str, str]:
    """Nodes that write or read a tensor whose values float16 cannot hold."""
    tensors = _float_tensors(graph)
    if not feeds or not tensors:
        return {}
    largest, magnitude = dict.fromkeys(tensors, 0.0), dict.fromkeys(tensors, 0.0)
    sizing, masked = Magnitudes(graph.model, tensors), mask_reaches(graph.model)
    infinite: set[str] = set()
    for crop in feeds:
        for name, found in sizing.run(crop).items():
            if _infinite(name, found, masked):
                infinite.add(name)
                continue
            largest[name] = max(largest[name], found.largest)
            magnitude[name] = max(magnitude[name], found.mean)
    reasons: dict[str, str] = {}
    for name in tensors:
        too_large = largest[name] * config.headroom > _LIMIT
        too_small = 0.0 < magnitude[name] < config.floor
        if too_large or too_small or name in infinite:
            why = "comes near float16's largest value" if too_large else "lies below float16's digits"
            why = "is infinite where a mask says so" if name in infinite else why
            for node in (graph.producer[name], *graph.consumers.get(name, ())):
                reasons[node.name] = why
    return reasons


def _convert(graph: Graph, keep: set[str]) -> ModelProto:
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = ModelProto()
    model.CopyFrom(graph.model)
    model = convert_float_to_float16(
        model, keep_io_types=True, disable_shape_infer=True, op_block_list=[], node_block_list=sorted(keep)
    )
    _bypass_cast_pairs(model)
    wrapper = ONNXModel(model)
    wrapper.topological_sort()
    result: ModelProto = wrapper.model
    del result.graph.value_info[:]
    return result


def _bypass_cast_pairs(model: ModelProto) -> None:
    """float32 -> float16 -> float32 becomes nothing; casts that nobody reads any more are removed."""
    casts: dict[str, NodeProto] = {n.output[0]: n for n in model.graph.node if n.op_type == "Cast"}

    def target(node: NodeProto) -> int:
        return next(int(a.i) for a in node.attribute if a.name == "to")

    # A float32 reader of a graph input must see the input itself: the router would otherwise route a rounded picture.
    input_casts = tuple(f"graph_input_cast{index}" for index in range(len(model.graph.input)))
    replaced = {
        name: casts[node.input[0]].input[0]
        for name, node in casts.items()
        if target(node) == TensorProto.FLOAT
        and node.input[0] in casts
        and target(casts[node.input[0]]) == TensorProto.FLOAT16
        and casts[node.input[0]].name.endswith(("_cast_to_fp16_node", *input_casts))
    }
    outputs = {value.name for value in model.graph.output}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in replaced:
                node.input[index] = replaced[name]
    for name in outputs & replaced.keys():
        # The cast that writes a graph output stays, and reads the float32 tensor: a copy.
        casts[name].input[0] = replaced[name]
    read = {name for node in model.graph.node for name in node.input} | outputs
    dead = [node for node in casts.values() if node.output[0] not in read]
    while dead:
        for node in dead:
            model.graph.node.remove(node)
            del casts[node.output[0]]
        read = {name for node in model.graph.node for name in node.input} | outputs
        dead = [node for node in casts.values() if node.output[0] not in read]


def _block_nodes(graph: Graph) -> dict[str, set[str]]:
    """What is put back to float32 together: a block's convolutions, and what follows each up to the next one."""
    owner = {layer.node: layer.block for layer in graph.layers()}
    for node in graph.model.graph.node:
        before = (graph.producer[name].name for name in node.input if name in graph.producer)
        found = next((owner[name] for name in before if name in owner), None)
        if found is not None:
            owner.setdefault(node.name, found)
    blocks: dict[str, set[str]] = {}
    for name, block in owner.items():
        blocks.setdefault(block, set()).add(name)
    return blocks


def _worst_block(graph: Graph, keep: set[str], feeds: Sequence[Feeds], expected: list[np.ndarray]) -> tuple[str, float]:
    """The block whose return to float32 helps most, and the agreement then; an empty name where none is left."""
    tried: dict[str, float] = {}
    for block, nodes in _block_nodes(graph).items():
        if nodes - keep:
            reached = _agreement(_convert(graph, keep | nodes), feeds, graph, expected)
            tried[block] = -np.inf if reached is None else reached
    if not tried:
        return "", 0.0
    best = max(tried, key=lambda block: tried[block])
    return best, tried[best]


def _run(model: ModelProto, feeds: Sequence[Feeds], graph: Graph) -> list[np.ndarray]:
    probe = Probe(model)
    return [probe.run(crop)[graph.main_output] for crop in feeds]


def _agreement(model: ModelProto, feeds: Sequence[Feeds], graph: Graph, expected: list[np.ndarray]) -> float | None:
    """PSNR in dB between the model's output and the expected one on the worst crop; None without crops."""
    values = [measure(want, got).psnr_db for got, want in zip(_run(model, feeds, graph), expected, strict=True)]
    return min(values) if values else None


def _finish(model: ModelProto, graph: Graph, config: Fp16Config, kept: int) -> None:
    if graph.spec is not None:
        notes = json.dumps(
            {"engine": "onnxruntime.transformers.float16", "kept": kept, **asdict(config)}, sort_keys=True
        )
        stamp(model, replace(graph.spec, precision="fp16"), {"clusir.quantisation": notes})
    onnx.checker.check_model(model)
