"""Missing experts are noticed in a traced program and in a file of any exporter."""

from __future__ import annotations

import io
import warnings

import onnx
import patterns
import pytest
import torch
from torch import Tensor, nn

from clusir.errors import UnsupportedModelError
from clusir.export.experts.coverage import check_onnx, check_program, missing_from_onnx, missing_from_program
from clusir.export.trace.writer import write_onnx


class Leftover(nn.Module):
    """A head of the training that inference does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        self.head(torch.zeros(1, 4))  # computed, and thrown away
        return self.body(x) * self.scale


def traced(module: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(module.eval(), (torch.rand(1, 3, 16, 16),), strict=False)


def test_unused_parameters_of_a_program_are_found() -> None:
    program = traced(Leftover())
    assert missing_from_program(program) == ("head.weight", "head.bias")
    with pytest.raises(
        UnsupportedModelError, match=r"2 parameters are missing from the traced graph, of head:"
    ) as said:
        check_program(program)
    pasted = str(said.value).split('declare_unused(r"')[1].removesuffix('")')
    check_program(program, unused=(pasted,))
    check_program(program, unused=(r"head\.",))
    with pytest.raises(UnsupportedModelError, match="head"):
        check_program(program, unused=(r"ead\.",))  # patterns match from the start


def test_complete_program_passes() -> None:
    assert missing_from_program(traced(patterns.TopKGather())) == ()


class OneActivation(nn.Module):
    """Two blocks that hold the same activation, so that its weight has two names, and a spare one of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        activation = nn.PReLU()
        self.one = nn.Sequential(nn.Conv2d(3, 3, 1), activation)
        self.two = nn.Sequential(nn.Conv2d(3, 3, 1), activation)
        self.spare = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        self.spare(x)
        return self.two(self.one(x))


def test_a_weight_with_two_names_is_one_weight() -> None:
    assert missing_from_program(traced(OneActivation())) == ("spare.weight",)


class LowModes(nn.Module):
    """A complex parameter whose product is written into a part of zeros, as Fourier neural operators do it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 4, 4, dtype=torch.complex64))
        self.lost = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x)
        out = torch.zeros_like(spectrum)
        out[:, :, :4, :4] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :4, :4], self.weight)
        torch.zeros(2)[:] = self.lost
        return torch.fft.irfft2(out, s=x.shape[-2:])


def test_parameters_that_reach_the_output_by_a_write_are_there() -> None:
    assert missing_from_program(traced(LowModes())) == ("lost",)


def tracer_export(module: nn.Module) -> onnx.ModelProto:
    """The tracing exporter, which accepts data-dependent Python and keeps one route."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (torch.rand(1, 3, 16, 16),), file, dynamo=False, opset_version=17)
    return onnx.load_from_string(file.getvalue())


def test_a_tracers_file_without_its_other_experts_is_refused() -> None:
    module = patterns.IndexedExperts()
    model = tracer_export(module)
    onnx.checker.check_model(model, full_check=True)  # nothing is wrong with the file itself
    missing = missing_from_onnx(model, dict(module.named_parameters()))
    assert len({name.split(".")[1] for name in missing}) == 2, "of three experts the tracer keeps one"
    with pytest.raises(UnsupportedModelError, match=r"of experts\.\d, experts\.\d:.*register_moe"):
        check_onnx(model, module)


def test_renamed_and_transposed_weights_are_recognised() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).eval()
    model = write_onnx(module, (torch.rand(2, 3, 8, 8),), ("x",), ("y",), dynamic_size=True)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        moved = values.transpose() if values.ndim > 1 else values
        tensor.CopyFrom(onnx.numpy_helper.from_array(moved.copy(), f"onnx::{tensor.name}_renamed"))
    check_onnx(model, module)
    changed = model.graph.initializer[0]
    values = onnx.numpy_helper.to_array(changed).copy()
    values.reshape(-1)[0] += 1
    changed.CopyFrom(onnx.numpy_helper.from_array(values, changed.name))
    with pytest.raises(UnsupportedModelError, match="1 parameters are missing"):
        check_onnx(model, module)


def test_weights_inside_branches_count() -> None:
    module = nn.Conv2d(3, 3, 1, bias=False)
    weight = onnx.numpy_helper.from_array(module.weight.detach().numpy(), "inside")
    out = onnx.helper.make_tensor_value_info("o", 1, None)
    inner = onnx.helper.make_graph([onnx.helper.make_node("Conv", ["x", "inside"], ["o"])], "t", [], [out], [weight])
    other = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["o"])], "e", [], [out])
    choice = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=other)
    x, c, y = (onnx.helper.make_tensor_value_info(n, t, None) for n, t in (("x", 1), ("c", 9), ("y", 1)))
    check_onnx(onnx.helper.make_model(onnx.helper.make_graph([choice], "g", [x, c], [y])), module)
