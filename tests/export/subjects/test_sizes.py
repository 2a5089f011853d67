"""Values are compared at small sizes: a trace's own may be large, so that no side is a length that the model has."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from clusir.errors import UsageError, ValidationError
from clusir.export.module import export_module
from clusir.export.passes.simplify import AttachMetadata
from clusir.export.subjects.sizes import (
    Accepted,
    accepted_multiple,
    largest_length,
    small_size,
    trace_sizes,
    why_no_other,
)
from clusir.export.validate.cases import ModuleCheck
from clusir.export.validate.each_pass import parity_at
from clusir.export.validate.foreign import validate
from clusir.runtimes import Restorer, open_runner
from clusir.spec import ModelSpec, SizeRequirements


class Lengths(nn.Module):
    """Takes multiples of 8, and has buffers as long as every small picture is high or wide."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 3, padding=1)
        for length in range(72, 264, 8):
            self.register_buffer(f"of_{length}", torch.ones(length))

    def forward(self, image: Tensor) -> Tensor:
        down = nn.functional.pixel_unshuffle(image, 8)
        return nn.functional.pixel_shuffle(down, 8) + self.mix(image)


def test_most_is_compared_at_a_fraction_of_the_traces_pixels(tmp_path: Path) -> None:
    (far, *_) = trace_sizes(Lengths(), Accepted(8))
    assert min(far) > 256
    made = export_module(Lengths().eval(), "1x3x64x64", tmp_path / "net.onnx", backends=("ort",))
    assert made.sizes[0] == small_size(Accepted(8))
    assert made.sizes[-1] == far, "sums over many pixels are compared too"
    assert 8 * np.prod(made.sizes[0]) < np.prod(far)
    assert len({*made.sizes}) == len(made.sizes) >= 5


def only(side: int) -> onnx.ModelProto:
    """A graph that runs on pictures of one side."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Reshape", ["image", "shape"], ["restored"])]
    graph = helper.make_graph(
        nodes,
        "only",
        [value("image", TensorProto.FLOAT, ["b", 3, "h", "w"])],
        [value("restored", TensorProto.FLOAT, [2, 3, side, side])],
        [helper.make_tensor("shape", TensorProto.INT64, [4], [2, 3, side, side])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_a_pass_is_compared_at_the_first_size_that_the_graph_takes() -> None:
    graph = only(16)
    parity_at(graph, ((8, 8), (16, 16)), 3)("pass", graph)
    with pytest.raises(Exception, match="Reshape"):
        parity_at(graph, ((8, 8), (16, 16)), 3)("pass", only(8))
    with pytest.raises(Exception, match="Reshape"):
        parity_at(graph, ((8, 8), (24, 24)), 3)


class Squares(nn.Module):
    """Reads height and width back as the square root of the number of tokens."""

    def forward(self, image: Tensor) -> Tensor:
        side = int(image[0, 0].numel() ** 0.5)
        return 0.9 * image.flatten(2).view(1, 3, side, side)  # takes squares


def test_a_file_for_one_size_says_what_else_the_model_takes(tmp_path: Path) -> None:
    made = export_module(Squares(), "1x3x32x32", tmp_path / "net.onnx", backends=("ort",))
    assert made.spec.size.static_px == 32
    (note,) = (n for n in made.notes if "exported for 32x32 only" in n)
    assert "the model takes other squares, 64x64 for one, and --size 64 exports for it, but not 96x224: " in note
    assert re.search(r"test_sizes\.py:\d+ `.*takes squares`: .*raised RuntimeError: shape '\[1, 3, 146, 146\]'", note)
    other = export_module(Squares(), "1x3x32x32", tmp_path / "other.onnx", backends=("ort",), size=64)
    assert other.spec.size.static_px == 64


def test_a_model_of_one_size_says_what_it_was_asked() -> None:
    told = why_no_other(lambda h, w: "" if (h, w) == (32, 32) else f"no {h}x{w}", 32, 32)
    assert told == "the model takes neither 96x224 nor a square of 64 or 96 or 224: no 96x224"


def test_a_model_of_one_large_size_is_asked_in_a_few_seconds() -> None:
    """Most of a size is paid before a network says that it is not the one its weights fix."""
    asked: list[tuple[int, int]] = []

    def refusal(h: int, w: int) -> str:
        asked.append((h, w))
        return "" if (h, w) == (512, 512) else f"no {h}x{w}"

    assert accepted_multiple(lambda h, w: not refusal(h, w), 512, 512) is None
    told = why_no_other(refusal, 512, 512)
    assert told == "the model takes neither 512x1536 nor a square of 256: no 512x1536"
    assert sum(h * w for h, w in asked) < 9 * 512**2
    taken = why_no_other(lambda h, w: "" if h == w else f"no {h}x{w}", 512, 512)
    assert taken.startswith("the model takes other squares, 256x256 for one, and --size 256 exports for it")


def test_what_takes_large_pictures_alone_is_asked_for_large_ones() -> None:
    """Multiples of 32 from 256 px on: among sizes below that it takes no multiple but 256 itself."""
    asked: list[tuple[int, int]] = []

    def takes(h: int, w: int) -> bool:
        asked.append((h, w))
        return h % 32 == 0 and w % 32 == 0 and min(h, w) >= 256

    found = accepted_multiple(takes, 256, 256)
    assert found == Accepted(32, 256)
    assert takes(*small_size(found))
    assert all(takes(*size) for size in trace_sizes(Lengths(), found))
    assert len(asked) < 24


def test_a_model_that_takes_small_pictures_is_not_asked_for_large_ones() -> None:
    largest = 0

    def takes(h: int, w: int) -> bool:
        nonlocal largest
        largest = max(largest, h, w)
        return h % 8 == 0 and w % 8 == 0

    assert accepted_multiple(takes, 256, 256) == Accepted(8)
    assert largest < 256


def test_a_size_at_which_the_file_fails_is_a_disagreement(tmp_path: Path) -> None:
    """An expert that no picture chose when sizes were looked for may have another rule."""
    rule = ModelSpec(size=SizeRequirements(1, 1))
    onnx.save_model(AttachMetadata(rule).apply(only(16)).model, str(tmp_path / "net.onnx"))
    same = nn.Identity().eval()
    assert validate(tmp_path / "net.onnx", ModuleCheck(same, same, [(16, 16)], batch=2))
    with pytest.raises(ValidationError, match=r"^ort, 24x24 pictures 1\.\.2: .*Reshape"):
        validate(tmp_path / "net.onnx", ModuleCheck(same, same, [(24, 24)], batch=2))


class Turns(nn.Module):
    """A loop with a turn more for each four times the longer side, two at least."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        turns = max(int(math.log(x.shape[2] // 4, 4)), int(math.log(x.shape[3] // 4, 4)))
        for _ in range(max(turns, 2) if isinstance(turns, int) else turns):
            x = x + 0.1 * self.mix(torch.relu(x))
        return x


class Positions(nn.Module):
    """A table of positions for each side, or of all tokens of 8 px; sliced, or looked up."""

    def __init__(self, kind: str, count: int) -> None:
        super().__init__()
        self.kind, self.mix = kind, nn.Conv2d(3, 3, 3, padding=1)
        self.down, self.up = nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 192, 1)
        self.table = nn.Embedding(count, 3 if kind != "tokens" else 4)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if self.kind == "sliced":
            rows = self.table.weight.t()[None]
            return self.mix(x) + 0.1 * rows[:, :, :height, None] + 0.1 * rows[:, :, None, :width]
        if self.kind == "looked up":
            rows = self.table(torch.arange(height)).t()[None]
            columns = self.table(torch.arange(width)).t()[None]
            return self.mix(x) + 0.1 * rows[..., None] + 0.1 * columns[:, :, None]
        small = self.down(x)
        tokens = small.flatten(2) + 0.1 * self.table(torch.arange(height * width // 64)).t()[None]
        return x + 0.1 * nn.functional.pixel_shuffle(self.up(tokens.view_as(small)), 8)


class Branches(nn.Module):
    """Another function of pictures over a size."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5 if max(x.shape[2:]) > 300 else x * 0.7


@pytest.mark.parametrize(
    ("network", "multiple", "maximum"),
    [
        (Turns(), 1, 255),
        (Positions("sliced", 128), 1, 128),
        (Positions("looked up", 400), 1, 400),
        (Positions("tokens", 900), 8, 240),
    ],
    ids=["turns", "sliced", "looked up", "tokens"],
)
def test_a_network_that_ends_at_a_size_is_exported_up_to_it(
    network: nn.Module, multiple: int, maximum: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    made = export_module(network.eval(), "1x3x64x64", tmp_path / "net.onnx", backends=("ort",))
    size = made.spec.size
    assert (size.multiple_of, size.maximum, made.spec.spec_version) == (multiple, maximum, 5)
    assert size.minimum <= 16
    assert made.spec.tile_px <= maximum
    assert any(str(size) in note for note in made.notes)
    assert {(size.minimum, size.padded(maximum)), (size.padded(maximum), size.minimum)} <= set(made.sizes)
    with open_runner(made.path, "ort", "cpu") as runner:
        most = size.padded(maximum)
        picture = np.random.default_rng(0).random((1, 3, most, size.minimum), np.float32)
        with torch.no_grad():
            want = network(torch.from_numpy(picture)).numpy()
        np.testing.assert_allclose(runner.run({"image": picture})["restored"], want, atol=1e-5)
        with pytest.raises(UsageError, match=rf"the model takes multiples of {multiple} px from \d+ to {maximum} px"):
            runner.run({"image": np.zeros((1, 3, most + multiple, size.minimum), np.float32)})
    with Restorer(made.path, threads=1) as restorer:
        assert restorer.restore(np.zeros((maximum + 9, 40, 3), np.uint8)).shape == (maximum + 9, 40, 3)


def test_a_table_that_ends_beyond_the_sizes_asked_about_fixes_the_size(tmp_path: Path) -> None:
    made = export_module(Positions("tokens", 1300).eval(), "1x3x64x64", tmp_path / "net.onnx", backends=("ort",))
    assert made.spec.size.static_px == 64
    assert any("the file does not run at 512x512" in note for note in made.notes)


def test_a_tile_over_the_maximum_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--tile 512: the model takes multiples of 1 px from 1 to 300 px"):
        export_module(Branches().eval(), "1x3x64x64", tmp_path / "net.onnx", backends=("ort",), tile=512)
    assert not (tmp_path / "net.onnx").exists()


def test_a_maximum_is_found_on_either_axis_by_halving() -> None:
    asked: list[tuple[int, int]] = []

    def takes(height: int, width: int) -> bool:
        asked.append((height, width))
        return height <= 2000 and width <= 1000

    assert largest_length(takes, 8, 16, 4096, 256) == 1000
    assert len(asked) < 24
    assert largest_length(lambda h, w: True, 8, 16, 4096, 256) is None
    assert largest_length(takes, 8, 16, 16, 16) is None
    assert largest_length(lambda h, w: h * w <= 40_000, 8, 8, 4096, 256) == 200  # a strip is within it
    assert largest_length(lambda h, w: h * w <= 16_000, 8, 8, 4096, 256) == 120
