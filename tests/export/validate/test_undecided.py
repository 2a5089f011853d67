"""A picture of which rounding decides the model's own answer is left out, and said; a wrong file is not excused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from clusir.errors import ValidationError
from clusir.export.validate.cases import ModuleCheck, probes
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


def file(path: Path, limit: float) -> Path:
    """``Chooses`` as a graph."""
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 3, "h", "w"]) for n in ("image", "restored")]
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
    model = helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:], constants),
                              opset_imports=[helper.make_opsetid("", 18)], ir_version=9)  # fmt: skip
    helper.set_model_props(model, ModelSpec(size=SizeRequirements(1, 1)).to_metadata())
    onnx.save(model, str(path))
    return path


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
