"""An exported file against the user's module: several sizes, pictures that route differently, every expert forced."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from clusir.errors import ValidationError
from clusir.export.experts.registry import dense_blocks
from clusir.export.subjects.checks import first_tensor, reference
from clusir.export.validate.tolerances import tolerance
from clusir.runtimes import open_runner

__all__ = ["Agreement", "compare_answers", "forced_copy", "plain_pictures", "probes", "validate"]


# Two roundings of an ill-conditioned model may fall on either side of its exact answer, and not equally far.
_ROUNDING_FACTOR = 4.0


@dataclass(frozen=True)
class Agreement:
    """One comparison. ``error``: largest absolute difference, relative to the larger of 1 and the largest magnitude."""

    backend: str
    what: str
    error: float

    def __str__(self) -> str:
        return f"{self.backend}: {self.what}: {self.error:.1e}"


def probes(count: int, channels: int, height: int, width: int) -> Tensor:
    """``count`` different pictures (float32, BxCxHxW in 0..1): noise, ramps, dark, bright, blobs, edges, flat colours.

    They differ in brightness, contrast, colour and frequency, which is what routers look at. Always the same ones.
    """
    generator = torch.Generator().manual_seed(11)
    y = torch.linspace(0, 1, height).view(1, height, 1)
    x = torch.linspace(0, 1, width).view(1, 1, width)
    pictures = []
    for index in range(count):
        noise = torch.rand(channels, height, width, generator=generator)
        tint = torch.rand(channels, 1, 1, generator=generator)
        forms = (
            noise,
            0.08 * noise,
            1 - 0.08 * noise,
            (x * tint + y * (1 - tint)).expand(channels, height, width),
            tint.expand(channels, height, width) + 0.02 * noise,
            ((torch.floor(x * 9) + torch.floor(y * 7)) % 2) * tint + 0.1 * noise,
            0.5 + 0.5 * torch.sin(20 * x * tint + 14 * y) * tint,
            (tint * torch.exp(-((x - 0.5) ** 2 + (y - tint) ** 2) * 12)).expand(channels, height, width),
        )
        pictures.append(forms[index % len(forms)].clamp(0, 1).float())
    return torch.stack(pictures)


def plain_pictures(channels: int, height: int, width: int) -> Tensor:
    """A black, a white and a one-coloured picture (3xCxHxW): where a network divides by a maximum or a variance."""
    colour = torch.linspace(0.2, 0.6, channels).view(1, channels, 1, 1).expand(1, channels, height, width)
    return torch.cat([torch.zeros_like(colour), torch.ones_like(colour), colour])


def forced_copy(model: onnx.ModelProto, gates: Sequence[str]) -> onnx.ModelProto:
    """The graph with every gate tensor replaced, wherever it is used, by a graph input ``forced_<its name>``."""
    forced = onnx.ModelProto()
    forced.CopyFrom(model)
    known = {v.name: v for v in [*forced.graph.output, *forced.graph.value_info]}
    for gate in gates:
        entry = forced.graph.input.add()
        entry.CopyFrom(known[gate])
        entry.name = f"forced_{gate}"
    names = {gate: f"forced_{gate}" for gate in gates}

    def rename(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for position, name in enumerate(node.input):
                if name in names:
                    node.input[position] = names[name]
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    rename(attribute.g)

    rename(forced.graph)
    kept = [o for o in forced.graph.output if o.name not in names]
    del forced.graph.output[:]
    forced.graph.output.extend(kept)
    return forced


def compare_answers(
    backend: str, what: str, want: Tensor, got: np.ndarray, doubt: Callable[[], float] = lambda: 0.0
) -> Agreement:
    """Raise ValidationError where ``got`` is not ``want`` within the bound.

    ``doubt`` is asked only where the bound is missed: by how much rounding alone moves the model's own answer."""
    expected = want.numpy()
    if got.shape != expected.shape:
        raise ValidationError(f"{backend}, {what}: the output has shape {got.shape}, the model's has {expected.shape}")
    error = float(np.abs(got - expected).max()) / max(1.0, float(np.abs(expected).max()))
    limit = tolerance("fp32").max_abs or 0.0
    if error <= limit:
        return Agreement(backend, what, error)
    own = doubt()
    if error <= _ROUNDING_FACTOR * own:
        return Agreement(backend, f"{what} (ill-conditioned: rounding moves PyTorch's own answer by {own:.2g})", error)
    raise ValidationError(f"{backend}, {what}: differs from PyTorch by {error:.2g}, allowed is {limit:g}")


@torch.no_grad()
def _rounding(model: nn.Module, pictures: Tensor) -> float:
    """How far the model's float32 answer is from its float64 answer, relative as in Agreement; 0 without float64.

    The phase of a spectrum that is nearly zero is noise: a network that uses it amplifies the last bit, in PyTorch too.
    """
    single = reference(model, pictures)
    try:
        double = reference(copy.deepcopy(model).double(), pictures.double())
    except Exception:  # a model that pins float32 somewhere has no float64 form, hence no allowance
        return 0.0
    return float((single - double).abs().max()) / max(1.0, float(single.abs().max()))


def validate(
    model: onnx.ModelProto,
    user: nn.Module,
    dense: nn.Module,
    sizes: Sequence[tuple[int, int]],
    gates: Sequence[str],
    *,
    channels: int,
    batch: int | None,
    backends: Sequence[str],
    progress: Callable[[str], None] = lambda _: None,
) -> list[Agreement]:
    """Compare an ONNX model with the user's module; raises ValidationError on the first miss.

    ``sizes``: heights and widths in pixels, the first of them also with eight different pictures and as a batch.
    ``gates``: the tensors of the graph that hold the gates of ``dense``'s blocks; each expert is forced through them.
    At every size also black, white and one-coloured pictures, unless the model's own answer to one is not finite.
    ``batch``: the batch that the graph is fixed to, None where it is free. ``backends``: the runtimes to ask.
    """
    cases = []
    for number, (height, width) in enumerate(sizes):
        pictures = probes(8 if number == 0 else 2, channels, height, width)
        cases.append((f"{height}x{width} pictures", pictures, reference(user, pictures)))
        plain = plain_pictures(channels, height, width)
        wanted = reference(user, plain)
        finite = torch.isfinite(wanted).flatten(1).all(1)  # a model may answer black with 0 / 0 itself
        if bool(finite.any()):
            cases.append((f"{height}x{width} black, white and one-coloured", plain[finite], wanted[finite]))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path, forced = Path(folder) / "model.onnx", Path(folder) / "forced.onnx"
        onnx.save_model(model, str(path))
        if gates:
            onnx.save_model(forced_copy(model, gates), str(forced))
        for backend in backends:
            with open_runner(path, backend, "cpu") as runner:
                for what, pictures, want in cases:
                    progress(f"validating on {backend}: {what}")
                    for start, stop in _groups(len(pictures), batch):
                        got = runner.run({"image": pictures[start:stop].numpy()})["restored"]
                        label = f"{what} {start + 1}..{stop}"
                        doubt = functools.partial(_rounding, user, pictures[start:stop])
                        found.append(compare_answers(backend, label, want[start:stop], got, doubt))
            if gates:
                found += _forced(backend, forced, dense, sizes[0], gates, channels, batch or 1)
    return found


def _groups(count: int, batch: int | None) -> list[tuple[int, int]]:
    """Each picture alone, then all together; in groups of the fixed batch where there is one."""
    if batch is not None:
        return [(i, i + batch) for i in range(0, count - batch + 1, batch)]
    return [*((i, i + 1) for i in range(count)), (0, min(count, 4))]


@torch.no_grad()
def _forced(
    backend: str, path: Path, dense: nn.Module, size: tuple[int, int], gates: Sequence[str], channels: int, batch: int
) -> list[Agreement]:
    """Each expert of each block alone in charge, the same in PyTorch and in the graph."""
    dense = copy.deepcopy(dense)
    blocks = dense_blocks(dense)
    image = probes(batch, channels, *size)
    found = []
    experts = [len(b.experts) for b in blocks]
    with open_runner(path, backend, "cpu") as runner:
        for turn in range(max(experts)):
            choice = [turn % n for n in experts]
            for block, expert, n in zip(blocks, choice, experts, strict=True):
                block.forced = torch.eye(n)[expert].expand(batch, n)
            want = first_tensor(dense(image))
            feeds = {
                f"forced_{g}": np.ascontiguousarray(b.forced, np.float32) for g, b in zip(gates, blocks, strict=True)
            }
            got = runner.run({"image": image.numpy(), **feeds})["restored"]
            found.append(compare_answers(backend, f"experts forced to {choice}", want, got))
    return found
