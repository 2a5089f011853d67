"""The shipped ``tiny`` beside every way PyTorch runs it: ``python tests/bench/beside_torch.py [THREADS]``.

256x256, one process, 25 turns after a warm-up, time on the wall; prints the fastest and the middle turn, and the share
of this machine's convolution peak. The plain exporter's graph is on the page of ``tests.bench.graphs``.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from importlib.resources import files

import numpy as np
import onnx
import torch
from torch import nn

from clusir.network import checkpoint
from tests.bench.timing import RUNTIMES, alternate, convolution_peak

MACS_PER_PIXEL = 47.8e3  # `clusir-export` counts them on the file


def call(network: nn.Module, image: torch.Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return network(image)

    return run


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    torch.set_num_threads(threads)
    weights = files("clusir.weights")
    network = checkpoint.load(weights / "tiny.safetensors").eval()
    image = np.random.default_rng(0).random((1, 3, 256, 256), dtype=np.float32)
    graph = onnx.load(str(weights / "tiny.onnx")).SerializeToString()
    contenders = {name: opener(graph, {"image": image}, threads) for name, opener in RUNTIMES.items()}
    tensor = torch.from_numpy(image)
    for layout in (torch.contiguous_format, torch.channels_last):
        placed, given = copy.deepcopy(network).to(memory_format=layout), tensor.contiguous(memory_format=layout)
        contenders[f"eager, {layout}"] = call(placed, given)
        contenders[f"torch.compile, {layout}"] = call(torch.compile(copy.deepcopy(placed)), given)
    for name, spent in alternate(contenders, 25).items():
        print(f"{name:45} {spent.minimum_ms:7.1f} {spent.median_ms:7.1f} ms")
        if name in RUNTIMES:
            share = 2e-6 * MACS_PER_PIXEL * 256**2 / spent.minimum_ms / convolution_peak(threads)
            print(f"{'  share of the convolution peak':45} {share:7.0%}")


if __name__ == "__main__":
    main()
