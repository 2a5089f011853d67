"""ONNX files in forms that other tools write: open axes, bytes, inner graphs, integers, old versions, spare outputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from theirs import KERNEL, PICTURE, adopted, answer, constant, conv, expected, plain, write

from clusir.errors import UnsupportedModelError, UsageError
from clusir.export.adopt import Adoption, AdoptionConfig, adopt
from clusir.export.precision.run import PrecisionConfig
from clusir.export.subjects.onnx_file import Description
from clusir.runtimes import Restorer

FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
OPEN = (None, 3, None, None)
K = constant("k", KERNEL)
rng = np.random.default_rng(3)


def on_one(source: Path, **told: object) -> Adoption:
    """Adopted, compared on ONNX Runtime alone."""
    description = Description(**told)  # type: ignore[arg-type]
    return adopt(source, source.with_name("ours.onnx"), AdoptionConfig(description, backends=("ort",)))


def right(made: Adoption, within: float = 1e-5) -> None:
    np.testing.assert_allclose(answer(made, PICTURE), expected(PICTURE), atol=within)


def changed(path: Path, change: Callable[[ModelProto], object], **options: object) -> Path:
    model = onnx.load(plain(path, **options))
    change(model)
    onnx.save(model, str(path))
    return path


def no_shape(model: ModelProto) -> None:
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.ClearField("shape")


def below_zero(model: ModelProto) -> None:
    for value in (model.graph.input[0], model.graph.output[0]):
        for axis in (0, 2, 3):
            value.type.tensor_type.shape.dim[axis].dim_value = -1


def written_domain(model: ModelProto) -> None:
    model.opset_import[0].domain = model.graph.node[0].domain = "ai.onnx"


def sparse(model: ModelProto) -> None:
    places = np.flatnonzero(KERNEL)
    del model.graph.initializer[:]
    values = numpy_helper.from_array(KERNEL.ravel()[places], "k")
    tensor = helper.make_sparse_tensor(values, numpy_helper.from_array(places, "places"), KERNEL.shape)
    model.graph.sparse_initializer.append(tensor)


def old(model: ModelProto) -> None:
    """Before IR version 4 every constant is an input as well."""
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("k", FLOAT, KERNEL.shape))


def one_name(model: ModelProto) -> None:
    model.graph.node[0].output[0] = "a"
    model.graph.node.append(helper.make_node("Identity", ["a"], ["y"]))
    for node in model.graph.node:
        node.name = "Conv"


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (no_shape, {}),
        (below_zero, {}),
        (written_domain, {}),
        (sparse, {}),
        (old, {"opset": 8}),
        (one_name, {}),
        (lambda _: None, {"shape": (None, None, None, None)}),
        (lambda _: None, {"shape": ("restored", 3, "image", "image")}),
    ],
    ids=["no shape", "below zero", "ai.onnx", "sparse", "IR 3", "one name", "open channels", "odd names"],
)
def test_what_few_readers_expect(tmp_path: Path, change: Callable[[ModelProto], object], options: dict) -> None:
    made = on_one(changed(tmp_path / "theirs.onnx", change, **options))
    assert (made.spec.channels, made.spec.size.static_px) == (3, 0)
    right(made)


def in_bytes(path: Path, last: bool, came: int, made: int) -> Path:
    """A network of pictures in 0..255, in bytes where ``came`` and ``made`` say so; ``last``: channels last."""
    nodes = [helper.make_node("Cast", ["x"], ["a"], to=FLOAT),
             helper.make_node("Transpose", ["a"], ["b"], perm=[0, 3, 1, 2] if last else [0, 1, 2, 3]), conv("b", "c"),
             helper.make_node("Transpose", ["c"], ["d"], perm=[0, 2, 3, 1] if last else [0, 1, 2, 3]),
             helper.make_node("Clip", ["d", "zero", "most"], ["e"]), helper.make_node("Round", ["e"], ["f"]),
             helper.make_node("Cast", ["f" if made == UINT8 else "e"], ["y"], to=made)]  # fmt: skip
    shape = (1, None, None, 3) if last else OPEN
    y = helper.make_tensor_value_info("y", made, list(shape))
    return write(path, nodes, [K, constant("zero", 0.0), constant("most", 255.0)], shape=shape, kind=came, outputs=[y])


@pytest.mark.parametrize(("last", "came", "made"), [(True, UINT8, UINT8), (False, UINT8, FLOAT), (False, FLOAT, UINT8)])
def test_pictures_in_bytes(tmp_path: Path, last: bool, came: int, made: int) -> None:
    source, told = in_bytes(tmp_path / "theirs.onnx", last, came, made), (0.0, 255.0)
    if came != made:
        with pytest.raises(UsageError, match="--range"):
            on_one(source)
    else:
        told = (0.0, 1.0)
    ours = on_one(source, value_range=told)
    picture = np.round(PICTURE * 255) / 255
    got = answer(ours, picture.astype(np.float32))
    np.testing.assert_allclose(got, expected(picture.astype(np.float32)), atol=0.5001 / 255 if made == UINT8 else 1e-5)
    if made == UINT8:
        np.testing.assert_allclose(got * 255, np.round(got * 255), atol=1e-3)
    with pytest.raises(UsageError, match="uint8, which has neither --mean"):
        on_one(source, mean=(0.5,))


def test_pictures_of_float64(tmp_path: Path) -> None:
    path = tmp_path / "theirs.onnx"
    right(adopted(write(path, [conv()], [constant("k", KERNEL, np.float64)], kind=TensorProto.DOUBLE)))


def test_an_answer_whose_channels_are_last(tmp_path: Path) -> None:
    nodes = [conv("x", "a"), helper.make_node("Transpose", ["a"], ["y"], perm=[0, 2, 3, 1])]
    right(on_one(write(tmp_path / "theirs.onnx", nodes, [K], answer=(None, None, None, 3))))


def value(name: str, kind: int, shape: Sequence[object] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def branching(path: Path) -> Path:
    """An If whose branches read constants of the graph around them."""
    then = helper.make_graph([conv("x", "t")], "then", [], [value("t", FLOAT, None)])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["o"])], "else", [], [value("o", FLOAT, None)])
    nodes = [helper.make_node("Shape", ["x"], ["s"], start=2, end=3), helper.make_node("Squeeze", ["s"], ["h"]),
             helper.make_node("Greater", ["h", "four"], ["c"]),
             helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)]  # fmt: skip
    return write(path, nodes, [K, constant("four", 4, np.int64)])


def looping(path: Path) -> Path:
    """A Loop of one turn; its operators are of an opset that is brought to another."""
    body = [conv("v", "a"), helper.make_node("ReduceMean", ["v"], ["m"], axes=[1], keepdims=0),
            helper.make_node("Unsqueeze", ["m"], ["u"], axes=[1]), helper.make_node("Mul", ["u", "none"], ["n"]),
            helper.make_node("Add", ["a", "n"], ["next"]), helper.make_node("Identity", ["go"], ["on"])]  # fmt: skip
    inner = helper.make_graph(body, "body", [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []),
                                             value("v", FLOAT, OPEN)],
                              [value("on", TensorProto.BOOL, []), value("next", FLOAT, OPEN)])  # fmt: skip
    constants = [K, constant("turns", 1, np.int64), constant("go on", True, bool), constant("none", 0.0)]
    return write(path, [helper.make_node("Loop", ["turns", "go on", "x"], ["y"], body=inner)], constants, opset=11)


def scanning(path: Path) -> Path:
    """A Scan over the rows of what the convolution gives; nothing is carried on."""
    inner = helper.make_graph([helper.make_node("Mul", ["row", "one"], ["new"]),
                               helper.make_node("Mul", ["state", "one"], ["kept"])], "body",
                              [value("state", FLOAT, None), value("row", FLOAT, None)],
                              [value("kept", FLOAT, None), value("new", FLOAT, None)])  # fmt: skip
    scan = helper.make_node("Scan", ["one", "a"], ["end", "y"], body=inner, num_scan_inputs=1, scan_input_axes=[2],
                            scan_output_axes=[2])  # fmt: skip
    return write(path, [conv("x", "a"), scan], [K, constant("one", 1.0)])


def for_one(path: Path) -> Path:
    """Its shapes say any number of pictures, its last Reshape one."""
    nodes = [
        conv("x", "a"),
        helper.make_node("Shape", ["x"], ["s"], start=1),
        helper.make_node("Concat", ["one", "s"], ["t"], axis=0),
        helper.make_node("Reshape", ["a", "t"], ["y"]),
    ]
    return write(path, nodes, [K, constant("one", [1], np.int64)])


def beside(path: Path) -> Path:
    """What a picture differs by from the mean of its batch counts twice."""
    nodes = [conv("x", "a"), helper.make_node("ReduceMean", ["a"], ["m"], axes=[0]),
             helper.make_node("Sub", ["a", "m"], ["d"]), helper.make_node("Add", ["a", "d"], ["y"])]  # fmt: skip
    return write(path, nodes, [K], opset=15)


@pytest.mark.parametrize(("make", "why"), [(for_one, "two raised"), (beside, "depends on the others of a batch")])
def test_a_file_that_takes_one_picture_whatever_its_shapes_say(
    tmp_path: Path, make: Callable[[Path], Path], why: str
) -> None:
    made = on_one(make(tmp_path / "theirs.onnx"))
    right(made)
    assert any(note.startswith("takes one picture at a time") and why in note for note in made.notes)
    assert onnx.load(made.path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


@pytest.mark.parametrize("make", [branching, looping, scanning])
def test_graphs_inside_nodes(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    right(adopted(make(tmp_path / "theirs.onnx")))


def test_of_several_outputs_the_one_of_the_pictures_size(tmp_path: Path) -> None:
    half = helper.make_node("AveragePool", ["y"], ["half"], kernel_shape=[2, 2], strides=[2, 2])
    both = [value(name, FLOAT, [None] * 4) for name in ("half", "y")]
    right(on_one(write(tmp_path / "theirs.onnx", [conv(), half], [K], outputs=both)))


@pytest.mark.parametrize("kind", [TensorProto.BOOL, UINT8])
def test_masks_of_whole_numbers(tmp_path: Path, kind: int) -> None:
    nodes = [helper.make_node("Cast", ["mask"], ["m"], to=FLOAT), conv("x", "a"),
             helper.make_node("Mul", ["a", "m"], ["y"])]  # fmt: skip
    source = write(tmp_path / "theirs.onnx", nodes, [K], more=[value("mask", kind, [None, 1, None, None])])
    made = on_one(source, maps={"mask": 1.0})
    picture = np.concatenate([PICTURE, np.full((1, 1, 64, 80), 0.7, np.float32)], axis=1)
    np.testing.assert_allclose(answer(made, picture), expected(PICTURE), atol=1e-5)
    made = on_one(source, values={"mask": 1.0})
    with Restorer(made.path, backend="ort", threads=1, settings={"mask": 0}) as restorer:
        assert not restorer.restore(rng.random((64, 80, 3), dtype=np.float32)).any()


def test_a_file_in_integers(tmp_path: Path) -> None:
    """As quantised by others: compared on photos, and made no smaller."""
    from onnxruntime import quantization

    class Crops(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = 2

        def get_next(self) -> dict[str, np.ndarray] | None:
            self.left -= 1
            crops = (np.ones((1, 3, 32, 32), np.float32), rng.random((1, 3, 32, 32), dtype=np.float32))
            return {"x": crops[self.left]} if self.left >= 0 else None

    source, logger = plain(tmp_path / "float.onnx"), logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # onnxruntime.quantization speaks through the root logger
    quantization.quantize_static(str(source), str(tmp_path / "theirs.onnx"), Crops(), per_channel=True)
    logger.setLevel(level)
    made = adopted(tmp_path / "theirs.onnx")
    assert "computes in integers, as it came: compared on photos, to 30 dB" in made.notes
    right(made, within=0.02)
    config = AdoptionConfig(backends=("ort",), precision=PrecisionConfig(("fp32", "int8")))
    with pytest.raises(UsageError, match=r"--precision int8: the file computes in integers already \(Quantize"):
        adopt(tmp_path / "theirs.onnx", tmp_path / "small.onnx", config)


def training(path: Path) -> Path:
    nodes = [conv("x", "a"), helper.make_node("Dropout", ["a", "share", "on"], ["y"])]
    return write(path, nodes, [K, constant("share", 0.3), constant("on", True, bool)])


def colouring(path: Path) -> Path:
    return write(path, [helper.make_node("Concat", ["x", "x", "x"], ["y"], axis=1)], [], shape=(None, 1, None, None),
                 answer=OPEN)  # fmt: skip


def sequence(path: Path) -> Path:
    made = helper.make_tensor_sequence_value_info("y", FLOAT, OPEN)
    return write(path, [helper.make_node("SequenceConstruct", ["x"], ["y"])], [], outputs=[made])


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (training, "Dropout computes as in training; export it again in eval mode"),
        (colouring, "goes from 1 to 3 channels; a restored picture has as many channels as came: wrap the network"),
        (sequence, r"returns no picture .*y \(no tensor\); export it again"),
    ],
)
def test_refused_by_the_reason(tmp_path: Path, make: Callable[[Path], Path], why: str) -> None:
    with pytest.raises(UnsupportedModelError, match=why):
        on_one(make(tmp_path / "theirs.onnx"))
