"""A picture of which rounding decides the model's own answer is left out, and said; a wrong file is not excused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from clusir.errors import ValidationError
from clusir.export.validate.cases import ModuleCheck, probes
from clusir.export.validate.conditioning import jumps, undecided_pixels
from clusir.export.validate.foreign import validate, warnings_of
from clusir.spec import ModelSpec, SizeRequirements


class Chooses(nn.Module):
    """Brightens a picture, unless it is of one colour, where its sum is over a limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = torch.tensor(limit)

    def chosen(self, x: Tensor) -> Tensor:
        return torch.sum(x, dim=(1, 2, 3), keepdim=True) > self.limit

    def forward(self, x: Tensor) -> Tensor:
        spread = x.amax((2, 3), keepdim=True) - x.amin((2, 3), keepdim=True)
        return 0.5 * x + 0.25 * spread * self.chosen(x).to(x)


class Quotient(Chooses):
    """Decides nothing: what it compares is one number but for rounding, whatever the picture."""

    def chosen(self, x: Tensor) -> Tensor:
        sums = [torch.sum(y, dim=(1, 2, 3), keepdim=True) + 1 for y in (x, x.flip(3))]
        return sums[0] / sums[1] > 1


def saved(path: Path, nodes: list[NodeProto], constants: list[TensorProto]) -> Path:
    """A graph from ``image`` to ``restored``, of any size and number of pictures."""
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 3, "h", "w"]) for n in ("image", "restored")]
    model = helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:], constants),
                              opset_imports=[helper.make_opsetid("", 18)], ir_version=9)  # fmt: skip
    helper.set_model_props(model, ModelSpec(size=SizeRequirements(1, 1)).to_metadata())
    onnx.save(model, str(path))
    return path


def file(path: Path, limit: float) -> Path:
    """``Chooses`` as a graph."""
    numbers = {"half": 0.5, "quarter": 0.25, "limit": limit}
    constants = [numpy_helper.from_array(np.float32(value), name) for name, value in numbers.items()]
    constants += [numpy_helper.from_array(np.array(n), name) for n, name in (([1, 2, 3], "axes"), ([2, 3], "sides"))]
    nodes = [
        helper.make_node("ReduceSum", ["image", "axes"], ["sum"], keepdims=1),
        helper.make_node("Greater", ["sum", "limit"], ["more"]),
        helper.make_node("Cast", ["more"], ["one"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["image", "sides"], ["most"], keepdims=1),
        helper.make_node("ReduceMin", ["image", "sides"], ["least"], keepdims=1),
        helper.make_node("Sub", ["most", "least"], ["spread"]),
        helper.make_node("Mul", ["one", "spread"], ["whole"]),
        helper.make_node("Mul", ["whole", "quarter"], ["added"]),
        helper.make_node("Mul", ["image", "half"], ["dark"]),
        helper.make_node("Add", ["dark", "added"], ["restored"]),
    ]
    return saved(path, nodes, constants)


def test_the_picture_that_rounding_decides_is_left_out(tmp_path: Path) -> None:
    sums = probes(8, 3, 16, 16).double().sum((1, 2, 3))
    limit = float(sums[3])
    model = Chooses(limit).eval()
    above = bool(model(probes(8, 3, 16, 16))[3].mean() > 0.5 * probes(8, 3, 16, 16)[3].mean() + 0.01)
    other = limit * (1 + (2.0**-21 if above else -(2.0**-21)))  # the file decides it the other way
    check = ModuleCheck(model, model, [(16, 16)])
    rows = validate(file(tmp_path / "near.onnx", other), check)
    left = [row for row in rows if row.undecided]
    assert len(left) == 2  # alone, and among others
    assert all(0.01 < row.undecided < 0.26 for row in left), left
    assert sum(not row.undecided for row in rows) >= 8
    assert "left out (rounding decides PyTorch's own answer, which jumps by" in str(left[0])
    assert all("16x16" in told and "left out" in told for told in warnings_of(rows))
    assert 1 <= len(warnings_of(rows)) <= 2


def test_a_wrong_file_is_not_excused(tmp_path: Path) -> None:
    limit = float(probes(8, 3, 16, 16).double().sum((1, 2, 3)).median()) + 1.0
    model = Chooses(limit).eval()
    with pytest.raises(ValidationError, match=r"pictures .*differs by 0\."):
        validate(file(tmp_path / "wrong.onnx", 1.5 * limit), ModuleCheck(model, model, [(16, 16)]))
    nothing = Quotient(1.0).eval()
    with pytest.raises(ValidationError, match=r"rounding decides the model's own answer to \d of 8 pictures"):
        validate(file(tmp_path / "always.onnx", 0.0), ModuleCheck(nothing, nothing, [(16, 16)]))


class Painted(nn.Module):
    """Paints by a hue, 0..1, that it takes modulo 1: of one a hair below 0 float32 makes 1, which stays black."""

    def __init__(self, zero: float) -> None:
        super().__init__()
        self.zero = nn.Buffer(torch.tensor(zero))

    def forward(self, x: Tensor) -> Tensor:
        hue = (x - self.zero) % 1
        return torch.where(hue < 1, 0.5 + 0.25 * torch.cos(math.tau * hue), 0.0)


def painted(path: Path, zero: float, wrong: tuple[float, float] = (2.0, 0.0)) -> Path:
    """``Painted`` as a graph; ``wrong``: a pixel's value, and what is added to what it becomes."""
    numbers = {"zero": zero, "one": 1.0, "round": math.tau, "quarter": 0.25, "half": 0.5, "none": 0.0,
               "value": wrong[0], "more": wrong[1]}  # fmt: skip
    steps = [("Sub", "image zero", "turn"), ("Floor", "turn", "whole"),
             ("Sub", "turn whole", "hue"), ("Less", "hue one", "seen"), ("Mul", "hue round", "angle"),
             ("Cos", "angle", "wave"), ("Mul", "wave quarter", "low"), ("Add", "low half", "colour"),
             ("Where", "seen colour none", "plain"), ("Equal", "image value", "is"), ("Add", "plain more", "moved"),
             ("Where", "is moved plain", "restored")]  # fmt: skip
    nodes = [helper.make_node(kind, given.split(), [made]) for kind, given, made in steps]
    constants = [numpy_helper.from_array(np.float32(value), name) for name, value in numbers.items()]
    return saved(path, nodes, constants)


def hair(value: float) -> float:
    return float(np.nextafter(np.float32(value), np.float32(1)))


def test_single_pixels_that_rounding_decides_are_left_out(tmp_path: Path) -> None:
    side = 200
    picture = probes(1, 3, side, side)
    pixel, other = (float(value) for value in picture[(picture > 0.13) & (picture < 0.14)][:2])
    near = float(np.float32(pixel - 1e-6))  # farther than the last bit moves it
    files = {zero: painted(tmp_path / f"{zero}.onnx", zero) for zero in (pixel, hair(pixel), near)}
    # Black in the model's float32; in the file; in the file, of other sums.
    for zero, file_zero in ((hair(pixel), pixel), (pixel, hair(pixel)), (near, hair(pixel))):
        model = Painted(zero).eval()
        assert float(model(torch.tensor([[[[pixel]]]]))) == pytest.approx(0.75 * (zero != hair(pixel)))
        check = ModuleCheck(model, model, [(side, side)])
        rows = validate(files[file_zero], check)
        assert [row.pixels for row in rows if row.pixels] == [1, 1]  # alone, and among others
        assert all(0 <= row.error < 1e-4 for row in rows)
        assert "1 pixels left out (rounding decides them: PyTorch itself answers otherwise" in warnings_of(rows)[0]
        assert not any(row.pixels for row in validate(files[zero], check))

        for at in ((pixel, -0.3), (other, 0.3), (other, 2e-4)):  # no answer; pixels of which the model is sure
            with pytest.raises(ValidationError, match=r"200x200 pictures 1\.\.1.*differs by"):
                validate(painted(tmp_path / "wrong.onnx", file_zero, at), check)
        with pytest.raises(ValidationError, match=r"differs by 0\.75"):  # black where the model has no doubt
            validate(painted(tmp_path / "black.onnx", hair(other)), check)


def test_more_than_one_pixel_in_ten_thousand_is_a_fault() -> None:
    picture = torch.full((1, 3, 104, 104), 0.25)
    picture[:, :, 0, 0] = 0.13
    model = Painted(hair(0.13)).eval()
    want = model(picture)
    got = torch.where(want == 0, 0.75, want)
    left, wrong = undecided_pixels(model, picture, want, got) or pytest.fail("it is one pixel")
    assert int(left.sum()) == 1
    assert bool(left[0, 0, 0])
    assert not wrong.any()
    for other, count in ((want, 0), (want + 0.1, 104 * 104), (torch.full_like(want, math.nan), 104 * 104)):
        left, wrong = undecided_pixels(model, picture, want, other) or pytest.fail("it is one pixel")
        assert (int(left.sum()), int(wrong.sum())) == (0, count)
    picture[:, :, 0, 1] = 0.13
    assert undecided_pixels(model, picture, model(picture), got) is None


def test_a_jump_elsewhere_excuses_nothing() -> None:
    model = Painted(hair(0.13)).eval()
    picture = torch.full((1, 1, 4, 4), 0.25)
    picture[..., 0, 0] = 0.13
    want = model(picture)
    there, elsewhere = want.clone(), want.clone()
    there[..., 0, 0] += 0.5
    elsewhere[..., 2, 2] += 0.5
    assert jumps(model, picture, want, there, 0.2) > 0.7
    assert jumps(model, picture, want, elsewhere, 0.2) < 1e-4
