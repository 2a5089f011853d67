"""What a training run must remember to go on as if it had never stopped: weights, averages, optimizer, random state.

One safetensors file: tensors by prefix (``model.``, ``ema.``, ``first.``, ``second.``, ``running.``), the rest as
JSON in its header. No pickle, so a state file from someone else is data, not a program. Written beside its place and
renamed: a run that is killed while writing leaves the file of before.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes
from torch import Tensor, nn

from clusir.atomic import whole_file
from clusir.errors import ModelFormatError, UsageError
from clusir.network.model import ClusIR

__all__ = ["Average", "read_header", "read_state", "restore_optimizer", "write_state"]


class Average:
    """Exponential moving average of a model's weights: the weights that are validated and shipped.

    The decay warms up as (1 + n) / (10 + n), so that the random start is forgotten within a few steps.
    """

    def __init__(self, model: ClusIR, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        keep = min(self.decay, (1 + step) / (10 + step))
        mine: list[Tensor] = list(self.model.parameters())
        theirs = [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(mine, theirs, 1 - keep)
        for mine_buffer, their_buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            mine_buffer.copy_(their_buffer)


def write_state(
    path: Path,
    model: nn.Module,
    average: Average,
    optimizer: torch.optim.Optimizer,
    running: list[Tensor],
    header: dict[str, Any],
) -> None:
    """Write everything to ``path``, atomically. ``running``: the running mean posterior of each level."""
    tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in average.model.state_dict().items()}
    for name, parameter in model.named_parameters():
        moments = optimizer.state.get(parameter)
        if moments:
            tensors[f"first.{name}"], tensors[f"second.{name}"] = moments["exp_avg"], moments["exp_avg_sq"]
            tensors[f"count.{name}"] = moments["step"].reshape(1)
    tensors |= {f"running.{i}": r for i, r in enumerate(running)}
    tensors["random.torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    held = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    content = as_bytes(held, {"clusir.train": json.dumps(header)})
    with whole_file(path) as stream:
        stream.write(content)


def read_header(path: Path) -> dict[str, Any]:
    """The JSON part of a state file. Raises UsageError where there is none, ModelFormatError where it is damaged."""
    if not path.is_file():
        raise UsageError(f"no training state at {path}; name the run's folder, or start without --resume")
    try:
        with safe_open(str(path), framework="pt") as file:
            header: dict[str, Any] = json.loads((file.metadata() or {})["clusir.train"])
            return header
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ModelFormatError(f"{path} is not a training state of clusir-train ({error}); start a new run") from error


def read_state(path: Path, model: nn.Module, average: Average) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Load weights, average and random state; returns the optimizer's tensors and the running posteriors."""
    with safe_open(str(path), framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    try:
        model.load_state_dict(_below("model.", tensors))
        average.model.load_state_dict(_below("ema.", tensors))
        torch.set_rng_state(tensors["random.torch"])
    except (RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise ModelFormatError(f"{path} does not fit the model's configuration: {reason}") from error
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    running = _below("running.", tensors)
    return tensors, [running[str(i)] for i in range(len(running))]


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put AdamW's moments back, parameter by parameter."""
    for name, parameter in model.named_parameters():
        if f"first.{name}" in tensors:
            optimizer.state[parameter] = {
                "step": tensors[f"count.{name}"].reshape(()).clone(),
                "exp_avg": tensors[f"first.{name}"].to(parameter.device).clone(memory_format=torch.preserve_format),
                "exp_avg_sq": tensors[f"second.{name}"].to(parameter.device).clone(),
            }


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
