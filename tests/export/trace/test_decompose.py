"""Operators without an ONNX form are decomposed one by one: the program as a whole is not run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusir.export.experts.coverage import missing_from_program
from clusir.export.lowering import splice
from clusir.export.trace import decompose
from clusir.export.trace.program import trace_module
from clusir.export.trace.sizes import Guards
from clusir.export.trace.tables import decomposed_by, tables
from clusir.export.trace.writer import write_onnx, write_program


class Mixed(nn.Module):
    """Composite operators, several results, types that are promoted, sizes read inside what stands for an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1)
        self.batch, self.group, self.layer = nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.LayerNorm(8)
        self.drop, self.line = nn.Dropout(0.1), nn.Linear(8, 8)

    def forward(self, image: Tensor) -> Tensor:
        b, _, h, w = image.shape
        x = self.drop(self.batch(self.enter(image)))
        tokens = self.line(self.layer(x.flatten(2).transpose(1, 2)))
        left, right = tokens.chunk(2, dim=-1)
        x = torch.cat([F.gelu(left) * right, F.silu(right)], -1).transpose(1, 2).reshape(b, 8, h, w)
        x = self.group(x) + torch.arange(w) * 0.01 + (x > 0) * 2 + F.adaptive_avg_pool2d(x, 1).repeat(1, 1, h, w)
        keys = F.normalize(x.flatten(2), dim=-1)
        shares = (keys @ keys.transpose(-1, -2)).softmax(-1)
        spectrum = torch.fft.rfft2(x) * 1.5
        return self.leave((shares @ keys).view(b, 8, h, w) + torch.fft.irfft2(spectrum, s=(h, w))) + image


class Written(nn.Module):
    """Writes into a part of a tensor, which only a run of the whole turns into values."""

    def forward(self, image: Tensor) -> Tensor:
        x = F.silu(image).clone()
        x[:, :, 1:] += 1
        return F.hardsigmoid(x)


class WrittenSpectrum(nn.Module):
    """The same of a spectrum, by a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.5))

    def forward(self, image: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(image, norm="ortho")
        spectrum[:, :, 0] *= self.gain
        return torch.fft.irfft2(spectrum, s=image.shape[-2:], norm="ortho")


class Stacked(nn.Module):
    """Tensors joined by the names that look at how many axes they have."""

    def forward(self, image: Tensor) -> Tensor:
        x = torch.hstack([image] * 3)[:, 2:5] + torch.column_stack([image, image])[:, 1:4]
        x = x + torch.vstack([image, image])[: image.shape[0]] + torch.dstack([x, x])[:, :, : image.shape[2]]
        return x + torch.atleast_3d(image.mean(0), image[:, 0])[0]


def written(network: nn.Module) -> tuple[onnx.ModelProto, float]:
    """The graph, and the largest difference of its answer at a size that was not traced."""
    torch.manual_seed(0)
    network.eval()
    traced = trace_module(network, torch.rand(2, 3, 74, 138))
    assert missing_from_program(traced.original) == ()
    model, _ = write_program(traced)
    image = torch.rand(2, 3, 50, 67)
    (got,) = ort.InferenceSession(model.SerializeToString()).run(None, {"image": image.numpy()})
    with torch.no_grad():
        return model, float(np.abs(got - network(image).numpy()).max())


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is run as a whole while a graph is written."""
    found: list[str] = []

    def noted(owner: Any, name: str) -> None:
        kept: Callable[..., Any] = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **more: (found.append(name), kept(*args, **more))[1])

    noted(torch.export.ExportedProgram, "run_decompositions")
    noted(torch.fx.Interpreter, "run")
    return found


def test_a_graph_is_written_without_running_the_program_again(runs: list[str]) -> None:
    _, error = written(Mixed())
    assert error <= 5e-5
    assert not runs


def test_tensors_are_joined_without_sequences(runs: list[str]) -> None:
    model, error = written(Stacked())
    assert error <= 1e-6
    assert not [node.op_type for node in model.graph.node if "Sequence" in node.op_type]
    assert not runs


class Alike(nn.Module):
    """One operator four times, of which two are the same: another number, and a map of another size."""

    def forward(self, image: Tensor) -> Tensor:
        narrow = F.softshrink(image[..., 1:], 0.25)
        return F.softshrink(image, 0.5) + F.softshrink(image, 0.25) + F.softshrink(narrow[..., :1] + image, 0.25)


def test_what_stands_for_an_operator_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[object] = []
    kept = splice.make_fx
    monkeypatch.setattr(splice, "make_fx", lambda *args, **more: (traced.append(args), kept(*args, **more))[1])
    _, error = written(Alike())
    assert error <= 1e-6
    assert len(traced) == 3


class Counts(nn.Module):
    """Meshgrid reads the number of elements of each axis."""

    def forward(self, image: Tensor) -> Tensor:
        h, w = image.shape[-2:]
        y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.arange(float(w)) / w, indexing="ij")
        return image * torch.exp(-(y**2) - x)


def test_numbers_of_elements_are_written_by_sizes(runs: list[str]) -> None:
    _, error = written(Counts())
    assert error <= 1e-6
    assert not runs
    assert decompose._count(torch.zeros(2, 3, 4)) == 24


class WrittenThroughViews(nn.Module):
    """A write through a view that is no part of the map as it lies."""

    def forward(self, image: Tensor) -> Tensor:
        x = image * 2
        x.permute(0, 2, 3, 1)[:, 1:] += 1
        return x


@pytest.mark.parametrize(
    ("network", "bound", "times"),
    [(Written(), 1e-6, 0), (WrittenThroughViews(), 1e-6, 1), (WrittenSpectrum(), 1e-5, 1)],
    ids=["parts", "views", "complex"],
)
def test_a_program_that_writes_into_tensors_is_run_as_a_whole_once_at_most(
    network: nn.Module, bound: float, times: int, runs: list[str]
) -> None:
    """For all that need values: whether weights are missing, complex numbers as pairs, the graph."""
    _, error = written(network)
    assert error <= bound
    assert runs.count("run_decompositions") == times


@pytest.mark.parametrize("through", [False, True], ids=["into a part", "through a view"])
def test_the_guards_of_a_trace_that_writes_are_kept(through: bool) -> None:
    """Where what is written is put in its place, and where the program is run once more."""

    class Branches(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            x = image.clone()
            (x.permute(0, 2, 3, 1)[:, 1:] if through else x[:, :, 1:]).add_(1)
            return x * 2 if image.shape[2] > 100 else x

    traced = trace_module(Branches().eval(), torch.rand(2, 3, 74, 138))
    guards = Guards(traced.original, 3)
    assert guards.texts
    assert not guards.broken(74, 138)
    assert guards.broken(128, 138)


@pytest.mark.parametrize("open_sizes", [False, True], ids=["one size", "any size"])
def test_a_network_of_ours_is_written_without_running_it_again(open_sizes: bool, runs: list[str]) -> None:
    torch.manual_seed(0)
    network = Mixed().eval()
    model = write_onnx(network, (torch.rand(2, 3, 32, 48),), ["image"], ["restored"], dynamic_size=open_sizes)
    image = torch.rand(3, 3, *((50, 67) if open_sizes else (32, 48)))
    (got,) = ort.InferenceSession(model.SerializeToString()).run(None, {"image": image.numpy()})
    with torch.no_grad():
        assert float(np.abs(got - network(image).numpy()).max()) <= 5e-5
    assert not runs


def test_an_input_may_have_a_name_of_pythons_own(runs: list[str]) -> None:
    class Named(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            return F.hardsigmoid(input)

    model = write_onnx(Named().eval(), (torch.rand(2, 3, 8, 8),), ["x"], ["y"], dynamic_size=True)
    image = torch.rand(1, 3, 5, 7)
    (got,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": image.numpy()})
    np.testing.assert_allclose(got, F.hardsigmoid(image).numpy(), atol=1e-6)
    assert not runs


def test_a_size_is_read_once(runs: list[str]) -> None:
    """What stands for an operator asks for sizes that the graph has: another reading is another chain of nodes."""

    class Normed(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            for _ in range(6):
                image = F.normalize(image, dim=1) + F.normalize(image.flatten(2), dim=2).view(image.shape)
            return image

    model, error = written(Normed())
    assert error <= 1e-6
    assert not runs
    assert sum(node.op_type == "Shape" for node in model.graph.node) <= 9  # three sides, and the shape for each view


class OtherNames(nn.Module):
    """Operators by their second names, of whole and broken numbers, which only the first names' rule would cast."""

    def forward(self, image: Tensor) -> Tensor:
        place = torch.arange(image.shape[-1])
        near = torch.less(torch.multiply(place, 0.5), torch.subtract(place, torch.tensor(9.25)))
        image = image * image.prod(1, keepdim=True) + torch.prod(image, dim=-2)[:, :, None]
        return torch.where(near, image, torch.divide(image, place + 1))


def test_second_names_of_operators_are_cast_as_the_first_ones() -> None:
    assert written(OtherNames())[1] <= 1e-6


class RoundsUp(nn.Module):
    """Padded to whole patches, counted as Python's floor of a negative number, and cut into two nearly equal parts."""

    def forward(self, image: Tensor) -> Tensor:
        h, w = image.shape[-2:]
        padded = F.pad(image, (0, -(-w // 8) * 8 - w, 0, -h % 8))
        half = -(-h // 2)
        return F.avg_pool2d(padded, 8).mean((2, 3), keepdim=True) + torch.cat(
            [image[:, :, half:], image[:, :, :half]], 2
        )


def test_quotients_of_negative_numbers_round_down() -> None:
    assert written(RoundsUp())[1] <= 1e-6


def test_what_composite_operators_run_is_kept_and_put_back() -> None:
    kept = torch.ops.aten.linear.default
    own = dict(kept.py_kernels)

    def kernels(table: Any) -> dict[Any, Any]:
        with decomposed_by(table):
            return {op: dict(op.py_kernels) for op in table}

    found = tables(frozenset({kept}))
    assert tables(frozenset({kept})) is found
    assert kept in found.composite
    assert kept not in found.whole
    first, again = kernels(found.composite), kernels(found.composite)
    assert first == again
    assert first[kept] != own
    assert kept.py_kernels == own
    other = tables(frozenset({kept, torch.ops.aten.matmul.default}))
    assert kernels(other.composite)[torch.ops.aten.matmul.default] != first[torch.ops.aten.matmul.default]
    assert kept.py_kernels == own
