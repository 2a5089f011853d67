"""ONNX files of other tools, adopted: right in every layout, range, type and opset that is taken; refused by name
else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from theirs import KERNEL, PICTURE, adopted, answer, constant, conv, expected, plain, rng, write
from torch import nn

from clusir.errors import ClusirError, ModelFormatError, UnsupportedModelError, UsageError, ValidationError
from clusir.export import adopt as module
from clusir.runtimes import Restorer


def test_a_plain_file(tmp_path: Path) -> None:
    made = adopted(plain(tmp_path / "theirs.onnx"))
    np.testing.assert_allclose(answer(made, PICTURE), expected(PICTURE), atol=1e-6)
    assert (made.spec.scale, made.spec.channels, made.spec.size.static_px) == (1, 3, 0)
    assert (made.spec.size.multiple_of, made.spec.size.minimum) == (1, 8)
    assert made.reach.pixels == 4  # the least that is told apart; a 3x3 kernel looks one pixel far
    assert not made.reach.whole
    assert {backend for backend, _, _ in made.agreements} == {"ort", "openvino"}
    assert all(agreement.count > 0 for _, _, agreement in made.agreements)


@pytest.mark.parametrize("opset", [11, 13, 16, 18, 21, 23])
def test_opsets(tmp_path: Path, opset: int) -> None:
    made = adopted(plain(tmp_path / "theirs.onnx", opset=opset))
    np.testing.assert_allclose(answer(made, PICTURE), expected(PICTURE), atol=1e-6)


def test_range_mean_deviation_and_bgr(tmp_path: Path) -> None:
    """A network of BGR pictures in 0..255, less a mean: what the wrapped graph answers is what the network would."""
    mean, deviation = np.array([100.0, 110, 120], np.float32), np.array([50.0, 55, 60], np.float32)
    made = adopted(plain(tmp_path / "theirs.onnx"), value_range=(0.0, 255.0), mean=tuple(mean),
                   deviation=tuple(deviation), bgr=True)  # fmt: skip
    m, d = mean[None, :, None, None], deviation[None, :, None, None]
    theirs = expected(((PICTURE[:, ::-1] * 255 - m) / d).astype(np.float32)) * d + m
    np.testing.assert_allclose(answer(made, PICTURE), theirs[:, ::-1] / 255, atol=1e-5)


def test_channels_last(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 3, 1, 2]),
        conv("a", "b"),
        helper.make_node("Transpose", ["b"], ["y"], perm=[0, 2, 3, 1]),
    ]
    source = write(tmp_path / "theirs.onnx", nodes, [constant("k", KERNEL)], shape=(1, None, None, 3))
    made = adopted(source)
    np.testing.assert_allclose(answer(made, PICTURE), expected(PICTURE), atol=1e-6)


def test_half_precision(tmp_path: Path) -> None:
    source = plain(tmp_path / "theirs.onnx", kind=TensorProto.FLOAT16)
    model = onnx.load(source)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(KERNEL.astype(np.float16), "k"))
    onnx.save(model, str(source))
    made = adopted(source)
    got = answer(made, PICTURE)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected(PICTURE), atol=3e-3)


def test_external_data_is_taken_along_and_missed_by_name(tmp_path: Path) -> None:
    source = plain(tmp_path / "theirs.onnx")
    model = onnx.load(source)
    onnx.save(model, str(source), save_as_external_data=True, location="weights.bin", size_threshold=0)
    made = adopted(source)
    (tmp_path / "weights.bin").rename(tmp_path / "elsewhere.bin")
    np.testing.assert_allclose(answer(made, PICTURE), expected(PICTURE), atol=1e-6)
    with pytest.raises(ModelFormatError, match=r"weights\.bin"):
        adopted(source)
    (tmp_path / "weights.bin").write_bytes(b"part of it")
    with pytest.raises(ModelFormatError, match=r"weights cannot be read .*keep the files of weights, whole"):
        adopted(source)


def test_what_is_no_picture_or_too_new_is_refused_with_what_to_do(tmp_path: Path) -> None:
    of_int64 = write(tmp_path / "int64.onnx", [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)], [],
                     kind=TensorProto.INT64)  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=r"x int64 .*export it again with one picture"):
        adopted(of_int64)
    with pytest.raises(UnsupportedModelError, match=r"opset 24 .*export it again with opset 18 to 23"):
        adopted(plain(tmp_path / "late.onnx", opset=24))


@pytest.mark.parametrize("scale", [2, 4])
def test_a_network_that_enlarges(tmp_path: Path, scale: int) -> None:
    spread = np.zeros((3 * scale**2, 3, 3, 3), np.float32)
    for index in range(3 * scale**2):
        spread[index, index // scale**2, 1, 1] = 1 - 0.01 * (index % scale**2)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("DepthToSpace", ["a"], ["y"], blocksize=scale, mode="CRD"),
    ]
    made = adopted(write(tmp_path / "theirs.onnx", nodes, [constant("k", spread)]))
    assert made.spec.scale == scale
    with Restorer(made.path, threads=1) as restorer:
        large = restorer.restore(rng.integers(0, 255, (300, 270, 3), np.uint8))
    assert large.shape == (300 * scale, 270 * scale, 3)


def test_sizes_that_only_multiples_fit(tmp_path: Path) -> None:
    """Space to depth by 8 runs at multiples of 8 alone."""
    nodes = [
        helper.make_node("SpaceToDepth", ["x"], ["a"], blocksize=8),
        helper.make_node("DepthToSpace", ["a"], ["b"], blocksize=8),
        conv("b"),
    ]
    made = adopted(write(tmp_path / "theirs.onnx", nodes, [constant("k", KERNEL)]))
    assert (made.spec.size.multiple_of, made.spec.size.minimum) == (8, 8)


def test_a_table_that_ends_is_a_maximum(tmp_path: Path) -> None:
    """A position for each of 300 rows, looked up."""
    nodes = [
        helper.make_node("Shape", ["x"], ["h"], start=2, end=3),
        helper.make_node("Squeeze", ["h"], ["rows"]),
        helper.make_node("Range", ["zero", "rows", "one"], ["at"]),
        helper.make_node("Gather", ["table", "at"], ["found"], axis=2),
        helper.make_node("Add", ["x", "found"], ["b"]),
        conv("b"),
    ]
    table = np.linspace(0, 0.1, 300, dtype=np.float32).reshape(1, 1, 300, 1)
    numbers = [numpy_helper.from_array(np.int64(value), name) for name, value in (("zero", 0), ("one", 1))]
    made = adopted(write(tmp_path / "theirs.onnx", nodes, [constant("k", KERNEL), constant("table", table), *numbers]))
    assert (made.spec.size.minimum, made.spec.size.maximum) == (8, 300)
    assert any("takes multiples of 1 px from 8 to 300 px" in note for note in made.notes)
    with Restorer(made.path, threads=1) as restorer:
        assert restorer.restore(np.zeros((700, 40, 3), np.uint8)).shape == (700, 40, 3)


def test_one_size(tmp_path: Path) -> None:
    made = adopted(plain(tmp_path / "theirs.onnx", shape=(1, 3, 96, 96)))
    assert (made.spec.size.static_px, made.spec.tile_px) == (96, 96)
    with Restorer(made.path, threads=1) as restorer:
        assert restorer.restore(np.zeros((130, 40, 3), np.uint8)).shape == (130, 40, 3)


def test_an_answer_that_depends_on_the_whole_picture_is_told(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[2, 3], keepdims=1),
        helper.make_node("Mul", ["mean", "half"], ["shift"]),
        helper.make_node("Mul", ["x", "half"], ["dim"]),
        helper.make_node("Add", ["dim", "shift"], ["y"]),
    ]
    made = adopted(write(tmp_path / "theirs.onnx", nodes, [constant("half", 0.5)]))
    assert made.reach.whole
    assert "pools 4 numbers over the whole picture; its tiles share them" in made.notes


@pytest.mark.parametrize("form", ["number", "map"])
def test_a_further_input_gets_a_number(tmp_path: Path, form: str) -> None:
    shape = [1] if form == "number" else [None, 1, None, None]
    nodes = [conv("x", "a"), helper.make_node("Add", ["a", "sigma"], ["y"])]
    more = [helper.make_tensor_value_info("sigma", TensorProto.FLOAT, shape)]
    source = write(tmp_path / "theirs.onnx", nodes, [constant("k", KERNEL)], more=more)
    with pytest.raises(UsageError, match=r"sigma float32.*--set sigma=15"):
        adopted(source)
    made = adopted(source, values={"sigma": 0.125})
    np.testing.assert_allclose(answer(made, PICTURE), expected(PICTURE) + 0.125, atol=1e-6)
    with pytest.raises(UsageError, match="no such input"):
        adopted(source, values={"sigma": 0.125, "quality": 3})


def test_of_several_pictures_one_is_named(tmp_path: Path) -> None:
    nodes = [conv(), helper.make_node("Neg", ["y"], ["z"])]
    both = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 3, None, None]) for n in "zy"]
    source = write(tmp_path / "theirs.onnx", nodes, [constant("k", KERNEL)], outputs=both)
    with pytest.raises(UsageError, match="say which is the picture, for example --output y"):
        adopted(source)
    made = adopted(source, answer="y")
    np.testing.assert_allclose(answer(made, PICTURE), expected(PICTURE), atol=1e-6)


def refused_batch(path: Path) -> Path:
    return plain(path, shape=(4, 3, 64, 64))


def refused_random(path: Path) -> Path:
    nodes = [helper.make_node("RandomUniformLike", ["x"], ["n"]), helper.make_node("Add", ["x", "n"], ["y"])]
    return write(path, nodes, [])


def refused_constant(path: Path) -> Path:
    return write(path, [helper.make_node("Mul", ["x", "zero"], ["y"])], [constant("zero", 0.0)])


def refused_range(path: Path) -> Path:
    return write(path, [helper.make_node("Mul", ["x", "much"], ["y"])], [constant("much", 255.0)])


def refused_nan(path: Path) -> Path:
    return write(path, [helper.make_node("Add", ["x", "nan"], ["y"])], [constant("nan", np.nan)])


def refused_channels(path: Path) -> Path:
    return write(path, [helper.make_node("Neg", ["x"], ["y"])], [], shape=(None, 5, None, None))


def refused_oblong(path: Path) -> Path:
    return plain(path, shape=(1, 3, 64, 96))


def refused_shrinking(path: Path) -> Path:
    return write(path, [helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2])], [])


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (refused_batch, "batch of 4"),
        (refused_random, "differently each time"),
        (refused_constant, "constant picture"),
        (refused_range, "--range"),
        (refused_nan, "NaN"),
        (refused_channels, "5 channels"),
        (refused_oblong, "64x96"),
        (refused_shrinking, "192x192 px become 96x96"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(tmp_path: Path, make: Callable[[Path], Path], why: str) -> None:
    with pytest.raises(ClusirError, match=why) as refused:
        adopted(make(tmp_path / "theirs.onnx"))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ours.onnx").exists()


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x07", bytes(range(256))])
def test_files_that_are_no_models(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "theirs.onnx").write_bytes(content)
    with pytest.raises(ModelFormatError):
        adopted(tmp_path / "theirs.onnx")
    with pytest.raises(UsageError, match="no such file"):
        adopted(tmp_path / "absent.onnx")


def test_operators_of_one_runtime_are_refused_by_name(tmp_path: Path) -> None:
    source = plain(tmp_path / "theirs.onnx")
    model = onnx.load(source)
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, str(source))
    with pytest.raises(UnsupportedModelError, match=r"com\.microsoft::Conv"):
        adopted(source)


def test_nothing_is_written_that_disagrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that changes a number in the adopted graph is caught by the comparison."""

    def spoil(model: onnx.ModelProto, passes: bool) -> list[object]:
        for tensor in model.graph.initializer:
            if tensor.name.endswith("k"):
                tensor.CopyFrom(numpy_helper.from_array(KERNEL * 1.001, tensor.name))
        return []

    monkeypatch.setattr(module, "_steps", spoil)
    with pytest.raises(ValidationError, match="ort, 256x256, photo: output restored"):
        adopted(plain(tmp_path / "theirs.onnx"))
    assert not (tmp_path / "ours.onnx").exists()


class Mild(nn.Module):
    """Changes a picture a little, as a restorer does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.2 * self.body(x)


@pytest.mark.parametrize("dynamo", [True, False])
def test_what_torch_writes(tmp_path: Path, dynamo: bool) -> None:
    network = Mild().eval()
    source = tmp_path / "theirs.onnx"
    options = (
        {"dynamo": True, "dynamic_shapes": ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)}
        if dynamo
        else {"dynamo": False, "dynamic_axes": {"x": {0: "n", 2: "h", 3: "w"}}, "input_names": ["x"]}
    )
    torch.onnx.export(network, (torch.rand(1, 3, 32, 48),), str(source), **options)  # type: ignore[arg-type]
    made = adopted(source)
    with torch.no_grad():
        wanted = network(torch.from_numpy(PICTURE)).numpy()
    np.testing.assert_allclose(answer(made, PICTURE), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "came", "went", "says"),
    [
        ("NCHW", 4, 1, "from 3 to 1 channels; a restored picture has as many channels as came"),
        ("NCHW", 3, 4, "from 3 to 4 channels; a restored picture has as many channels as came: .* it returns 3"),
        ("NHWC", 3, 4, "from 3 to 4 channels; .* it returns 3"),
        ("NCHW", 1, 3, "from 1 to 3 channels; .* takes RGB and makes it grey"),
        ("NCHW", 2, 2, "x has 2 channels .* takes 1 channel or 3"),
    ],
)
def test_other_channels_are_refused_with_what_to_do(
    tmp_path: Path, came: int, went: int, says: str, layout: str
) -> None:
    weight = constant("k", np.full((went, came, 3, 3), 0.1, np.float32))
    shape, nodes = (None, came, None, None), [conv()]
    if layout == "NHWC":
        shape = (None, None, None, came)
        nodes = [
            helper.make_node("Transpose", ["x"], ["a"], perm=[0, 3, 1, 2]),
            conv("a", "b"),
            helper.make_node("Transpose", ["b"], ["y"], perm=[0, 2, 3, 1]),
        ]
    source = write(tmp_path / "theirs.onnx", nodes, [weight], shape=shape, answer=(None,) * 4)
    with pytest.raises(UnsupportedModelError, match=says):
        adopted(source)
