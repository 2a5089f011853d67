"""The PyTorch side of a bisection: outputs of convolutions and linear layers under the names of an ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from clusir.errors import UsageError
from clusir.export.graph.session import Feeds
from clusir.export.quantize.layers import Graph, load_graph
from clusir.export.validate.bisect import Divergence, bisect_values

__all__ = ["bisect_module", "record_module"]

_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def _tensor_names(graph: Graph) -> dict[str, str]:
    """Weight name (as in the module's state) to the name of the tensor that its convolution or product writes."""
    found: dict[str, str] = {}
    for node in graph.model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or len(node.input) < 2:
            continue
        weight = node.input[1].removesuffix("_DequantizeLinear_Output").removesuffix("_cast_to_fp32")
        found[weight] = node.output[0]
    return found


def _matched(module: nn.Module, names: dict[str, str]) -> dict[str, str]:
    """Weight name in ``module`` to tensor name in the file: under the prefix by which most weights find their own."""
    own = [f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, _LAYERS)]
    prefixes = {weight[: -len(mine)] for weight in names for mine in own if weight.endswith(f".{mine}")} | {""}
    best = max(sorted(prefixes, key=len), key=lambda prefix: sum(prefix + mine in names for mine in own))
    return {mine: names[best + mine] for mine in own if best + mine in names}


def record_module(module: nn.Module, run: Callable[[], object], graph: Graph) -> dict[str, np.ndarray]:
    """Run the network through ``run`` and return {tensor name in ``graph``: value} for every layer both have.

    A layer is matched by its weight's name; one prefix that the exporter's wrapper added to all of them is allowed for.
    """
    names = _matched(module, _tensor_names(graph))
    values: dict[str, np.ndarray] = {}
    handles = []
    for name, layer in module.named_modules():
        if not isinstance(layer, _LAYERS):
            continue
        tensor = names.get(f"{name}.weight")
        if tensor is None:
            continue

        def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor, tensor: str = tensor) -> None:
            values[tensor] = output.detach().float().cpu().numpy()

        handles.append(layer.register_forward_hook(keep))
    try:
        with torch.inference_mode():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return values


def bisect_module(
    module: nn.Module, b: Path | ModelProto, feeds: Feeds, tolerance: float, out_dir: Path | None = None
) -> Divergence:
    """Compare a network in eval mode with the whole graph ``b`` exported from it: the first layer that differs.

    Raises UsageError where the network and the file share no layer.
    """
    graph = load_graph(b)
    image = torch.from_numpy(np.asarray(feeds[graph.inputs[0]]))
    values = record_module(module, lambda: module(image), graph)
    if not values:
        raise UsageError("the network and the file share no layer by name; export the file from this very network")
    return bisect_values(values, b, feeds, tolerance, out_dir)
