"""PlainOperators: the same numbers without the operators that few runtimes have."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from small_graphs import Net

from clusir.export.graph.session import Probe
from clusir.export.passes.plain.operators import PlainOperators
from clusir.export.passes.plain.resize import resize_kind

Write = Callable[[Net, str], str]
rng = np.random.default_rng(4)
SHAPE = (1, 6, 8, 12)


def numbers(net: Net, *values: int) -> str:
    return net.const(values, dtype=np.int64)


def einsum(equation: str, *shapes: tuple[int, ...]) -> Write:
    def write(net: Net, image: str) -> str:
        return net.op("Einsum", image, *(net.random(*shape) for shape in shapes), equation=equation)

    return write


def resize(mode: str, how: str, *, sizes: Sequence[int] = (), scales: Sequence[float] = (), **more: object) -> Write:
    def write(net: Net, image: str) -> str:
        asked = [net.const(scales)] if scales else ["", numbers(net, *sizes)]
        return net.op("Resize", image, "", *asked, mode=mode, coordinate_transformation_mode=how, **more)

    return write


def one(kind: str, **attributes: object) -> Write:
    return lambda net, image: net.op(kind, image, **attributes)


def over(kind: str, keep: int) -> Write:
    return lambda net, image: net.op(kind, image, numbers(net, 1, -1), keepdims=keep)


def several(kind: str) -> Write:
    return lambda net, image: net.op(kind, image, net.random(1, 6, 1, 12), net.random(8, 1))


def written(indices: list[list[int]], *update: int) -> Write:
    def write(net: Net, image: str) -> str:
        turned = net.op("Reshape", image, numbers(net, 6, 8, 12))
        return net.op("ScatterND", turned, net.const(indices, dtype=np.int64), net.random(*update))

    return write


def read(net: Net, image: str) -> str:
    return net.op("GatherND", image, net.const([[0, 5, 2], [0, -1, -8]], dtype=np.int64))


def table(net: Net, image: str) -> str:
    return net.op("Gather", image, net.const([[0, 5, 2], [7, -1, -8]], dtype=np.int64), axis=2)


FORMS = {
    "scores": einsum("b h i d, b h j d -> b h i j", (1, 6, 5, 12)),
    "values": einsum("bhij,bhjd->bhid", (1, 6, 12, 7)),
    "no arrow": einsum("bchw,wk", (12, 3)),
    "ellipsis": einsum("...w,wk->...k", (12, 3)),
    "ellipses": einsum("...hw,...wk->...hk", (1, 6, 12, 4)),
    "outer": einsum("bchw,k->bckhw", (4,)),
    "each": einsum("bchw,ch->bwch", (6, 8)),
    "summed": einsum("bchw,kx->bck", (3, 5)),
    "turned": einsum("bchw->bwhc"),
    "three": einsum("bchw,cd,hw->bdw", (6, 5), (8, 12)),
    "linear": resize("linear", "half_pixel", sizes=(1, 6, 24, 36)),
    "smaller": resize("linear", "pytorch_half_pixel", sizes=(1, 6, 5, 7)),
    "corners": resize("linear", "align_corners", sizes=(1, 6, 20, 12)),
    "cubic": resize("cubic", "half_pixel", sizes=(1, 6, 16, 24), cubic_coeff_a=-0.5),
    "cubic inside": resize("cubic", "half_pixel", sizes=(1, 6, 13, 24), exclude_outside=1),
    "antialias": resize("linear", "half_pixel", sizes=(1, 6, 4, 5), antialias=1),
    "nearest": resize("nearest", "asymmetric", sizes=(1, 6, 16, 36), nearest_mode="floor"),
    "nearest, uneven": resize("nearest", "half_pixel", sizes=(1, 6, 11, 29), nearest_mode="ceil"),
    "scale": resize("linear", "half_pixel", scales=(1.0, 1.0, 2.3, 0.4)),
    "scale of axes": resize("cubic", "asymmetric", scales=(1.7, 3.0), axes=[2, 3]),
    "mish": one("Mish"), "softplus": one("Softplus"),
    "hard sigmoid": one("HardSigmoid", alpha=0.3, beta=0.4), "hard swish": one("HardSwish"),
    "elu": one("Elu", alpha=0.7), "selu": one("Selu"), "celu": one("Celu", alpha=1.5), "sign": one("Sign"),
    "sums of squares": over("ReduceSumSquare", 1), "magnitudes": over("ReduceL1", 0),
    "lengths": over("ReduceL2", 1),
    "exponents": over("ReduceLogSumExp", 0), "most": several("Max"), "least": several("Min"), "sum": several("Sum"),
    "mean": several("Mean"), "rows": written([[4], [0]], 2, 8, 12), "places": written([[1, 2], [5, -1]], 2, 12),
    "read": read, "table": table,
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_the_numbers_stay(name: str) -> None:
    check(FORMS[name], 18)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_its_formula(approximate: str) -> None:
    check(one("Gelu", approximate=approximate), 20)


def check(write: Write, opset: int) -> None:
    net = Net(opset)
    image = net.input("image", *SHAPE)
    net.output(write(net, image))
    model = onnx.shape_inference.infer_shapes(net.model())
    kind = net.nodes[-1].op_type
    made = PlainOperators().apply(model)
    assert made.modified, made.notes
    assert kind not in {node.op_type for node in made.model.graph.node} - {"Max", "Min", "Gather"}
    picture = rng.normal(0, 3, SHAPE).astype(np.float32)
    wanted, got = (next(iter(Probe(m, optimise=False).run({"image": picture}).values())) for m in (model, made.model))
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= 2e-6 * max(1, np.abs(wanted).max())


@pytest.mark.parametrize(
    "write",
    [
        einsum("bchw,ww->bch", (12, 12)),
        lambda net, x: net.op("Resize", x, "", "", numbers(net, 1, 12, 8, 12), mode="linear"),
        lambda net, x: net.op("ScatterND", x, net.const([[0]], dtype=np.int64), x, reduction="add"),
        lambda net, x: net.op("GatherND", x, net.op("Cast", net.op("Relu", net.random(1, 2)), to=7)),
    ],
)  # fmt: skip
def test_what_has_no_plain_form_stays(write: Write) -> None:
    net = Net()
    net.output(write(net, net.input("image", *SHAPE)))
    model = onnx.shape_inference.infer_shapes(net.model())
    made = PlainOperators().apply(model)
    assert not made.modified
    assert "has no plain form here" in made.notes[0]


def test_what_the_runtime_has_is_kept_unless_its_scale_is_no_ratio_of_lengths() -> None:
    for scales, kept in (((1.0, 1.0, 2.0, 1.5), True), ((1.0, 1.0, 2.3, 0.4), False)):
        net = Net()
        net.output(resize("linear", "half_pixel", scales=scales)(net, net.input("image", *SHAPE)))
        model = onnx.shape_inference.infer_shapes(net.model())
        assert PlainOperators(lambda *_: True).apply(model).modified != kept


@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("places", ["half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners"])
def test_repeated_pixels_are_known(places: str, rounding: str) -> None:
    """The kind is ``repeats`` where ONNX Runtime repeats each pixel for 2, 3, 4 and 5 times the size."""
    repeats = []
    for times in (2, 3, 4, 5):
        net = Net()
        node_ = resize("nearest", places, sizes=(1, 1, 4 * times, 4), nearest_mode=rounding)
        net.output(node_(net, net.input("image", 1, 1, 4, 4)))
        picture = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
        (got,) = Probe(net.model(), optimise=False).run({"image": picture}).values()
        repeats.append(np.array_equal(got, picture.repeat(times, 2)))
        kind = resize_kind(net.nodes[-1], (1, 1, 4, 4), (1, 1, 4 * times, 4))
    assert (kind == "repeats") == all(repeats), (places, rounding, repeats)
