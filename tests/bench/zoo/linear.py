"""What INT8 of a network's linear layers costs and gains, by kind, beside that of its convolutions.

``python -m tests.bench.zoo.linear FILE.onnx PHOTOS [--count 5] [--crops 8] [--runs 9]``: FILE is a float32 export for
one size, of a network that enlarges. Layers are rounded by onnxruntime.quantization as it comes: maps in 8 bits,
weights in 7 with a scale per channel, ranges from the built-in photos. Of each photo the middle is shrunk (Pillow,
bicubic) to the file's size. Prints a row for each kind of linear layer, for all of them, and for the convolutions of
more than one pixel; then the processor time of all linear layers in INT8 and in float32, alternating, on one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from clusir.calibration.model_source import for_model
from clusir.calibration.sources import open_source
from clusir.export.graph.session import Probe
from clusir.export.quantize.layers import load_graph
from clusir.quality.metrics import psnr
from tests.bench.zoo.enlarger import chosen, pair

_LINEAR = ("Gemm", "MatMul")


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.zoo.linear")
    parser.add_argument("file", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--crops", type=int, default=8)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    graph = load_graph(options.file)
    assert graph.spec is not None, "the file is no export of clusir"
    side, scale = graph.spec.size.static_px, graph.spec.scale
    source = for_model(open_source(None, scale * side, 0), scale, graph.spec.channels)
    crops = [source.sample(n).image for n in range(options.crops)]
    pairs = [pair(path, scale, side) for path in chosen(options.photos, options.count)]
    plain = Probe(graph.model, threads=1)
    base = answers(plain, pairs)
    print("| in INT8 | layers | agreement with float32, worst | loses, mean | loses, worst |")
    print("|---|---:|---:|---:|---:|")
    for kind, names in kinds(graph.model).items():
        rounded = quantised(graph.model, names, crops)
        found = answers(Probe(rounded, threads=1), pairs)
        agree = min(psnr(a, b) for a, b in zip(found, base, strict=True))
        lost = [psnr(b, t) - psnr(a, t) for a, b, (_, t) in zip(found, base, pairs, strict=True)]
        print(f"| {kind} | {len(names)} | {agree:.1f} dB | {np.mean(lost):.4f} dB | {max(lost):.3f} dB |", flush=True)
        if kind == "all linear":
            told = timed({"float32": plain, "INT8": Probe(rounded, threads=1)}, crops[0], options.runs)
    print(told)


def kinds(model: ModelProto) -> dict[str, list[str]]:
    """Names of nodes: linear layers by the shape of their weights, all of them, convolutions over more than a pixel."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        shape = shapes.get(node.input[1], ()) if len(node.input) > 1 else ()
        if node.op_type in _LINEAR and len(shape) == 2:
            found.setdefault("x".join(map(str, shape)), []).append(node.name)
    found["all linear"] = [name for names in found.values() for name in names]
    dense = [n for n in model.graph.node if n.op_type == "Conv" and min(shapes[n.input[1]][1:]) > 1]
    found["convolutions"] = [node.name for node in dense[1:-1]]  # the first and the last stay in float everywhere
    return {kind: names for kind, names in found.items() if names}


def quantised(model: ModelProto, names: list[str], crops: list[Any]) -> ModelProto:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[Any] = iter(crops)

        def get_next(self) -> Any:
            image = next(self.left, None)
            return None if image is None else {"image": image}

    with tempfile.TemporaryDirectory(prefix="clusir-") as folder:
        given, made = Path(folder) / "given.onnx", Path(folder) / "made.onnx"
        onnx.save(model, given)
        quantize_static(
            given, made, Reader(), op_types_to_quantize=[*_LINEAR, "Conv"], nodes_to_quantize=names, per_channel=True,
            reduce_range=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
        )  # fmt: skip
        return onnx.load(made)


def answers(probe: Probe, pairs: list[tuple[Any, Any]]) -> list[Any]:
    """HxWx3 in 0..1 of every shrunk picture."""
    images = [np.ascontiguousarray(small.transpose(2, 0, 1)[None]) for small, _ in pairs]
    return [probe.run({"image": i})["restored"][0].transpose(1, 2, 0).clip(0, 1) for i in images]


def timed(probes: dict[str, Probe], image: Any, runs: int) -> str:
    taken: dict[str, list[float]] = {name: [] for name in probes}
    for _ in range(runs):
        for name, probe in probes.items():
            began = time.process_time()
            probe.run({"image": image})
            taken[name].append(time.process_time() - began)
    return ", ".join(f"{name}: {min(t):.3f} s fastest, {np.median(t):.3f} s median" for name, t in taken.items())


if __name__ == "__main__":
    main()
