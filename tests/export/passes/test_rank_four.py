"""RankFour: the same numbers with four axes at most, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from small_graphs import Net

from clusir.export.formats.hosts.base import HostForm
from clusir.export.formats.hosts.folders import open_source
from clusir.export.formats.hosts.form import host_form
from clusir.export.graph.session import Probe
from clusir.export.passes.rank_four import RankFour, rank_faults
from clusir.export.passes.simplify import SimplifyGraph
from clusir.runtimes.runners.files import find_model

rng = np.random.default_rng(3)


def shape(net: Net, *sizes: int) -> str:
    return net.const(sizes, dtype=np.int64)


def masked_groups(net: Net, image: str) -> str:
    """A product by groups of channels with a mask of each group: what a spectral filter with two experts is."""
    groups = net.op("Reshape", image, shape(net, 1, 2, 3, 8, 8))
    wide = net.op("MatMul", groups, net.random(8, 8))
    rows = net.op("MatMul", net.random(8, 8), wide)
    level = net.op("ReduceMean", image, shape(net, 2, 3), keepdims=0)
    two = net.op("MatMul", level, net.random(6, 2))
    mask = net.op("Sigmoid", net.op("Sub", net.op("Reshape", two, shape(net, 1, 2, 1, 1, 1)), net.random(8, 8)))
    return net.op("Reshape", net.op("Mul", rows, mask), shape(net, 1, 6, 8, 8))


def mask_of_every_group(net: Net, image: str) -> str:
    groups = net.op("Reshape", image, shape(net, 1, 2, 3, 8, 8))
    out = net.op("Mul", net.op("Add", groups, net.random(3, 1, 1)), net.random(1, 1, 3, 8, 8))
    return net.op("Reshape", net.op("MatMul", out, net.random(3, 8, 8)), shape(net, 1, 6, 8, 8))


def shuffled_channels(net: Net, image: str) -> str:
    groups = net.op("Reshape", image, shape(net, 1, 2, 3, 8, 8))
    return net.op("Reshape", net.op("Transpose", groups, perm=[0, 2, 1, 3, 4]), shape(net, 1, 6, 8, 8))


def real_and_imaginary(net: Net, image: str) -> str:
    """Pairs in the last axis, times a mask of each pair; the mask is made by Unsqueeze."""
    pairs = net.op("Reshape", image, shape(net, 1, 6, 8, 4, 2))
    mask = net.op("Unsqueeze", net.random(1, 6, 8, 4), net.const([4], dtype=np.int64))
    return net.op("Reshape", net.op("Mul", pairs, mask), shape(net, 1, 6, 8, 8))


def turned_blocks(net: Net, image: str) -> str:
    """The pixels of blocks side by side: the two axes that become one stay where they are."""
    blocks = net.op("Reshape", image, shape(net, 1, 2, 3, 8, 8))
    turned = net.op("Relu", net.op("Transpose", blocks, perm=[0, 1, 2, 4, 3]))
    return net.op("Reshape", turned, shape(net, 1, 6, 8, 8))


Write = Callable[[Net, str], str]
FORMS: list[Write] = [masked_groups, mask_of_every_group, shuffled_channels, real_and_imaginary, turned_blocks]


def graph(write: Write) -> onnx.ModelProto:
    net = Net()
    net.input("image", 1, 6, 8, 8)
    net.output(net.op("Identity", write(net, "image"), name="restored"))
    return net.model()


@pytest.mark.parametrize("write", FORMS)
def test_the_numbers_stay(write: Write) -> None:
    model = graph(write)
    assert rank_faults(model)
    made = RankFour().apply(model)
    assert made.modified
    assert rank_faults(made.model) == []
    image = rng.normal(size=(1, 6, 8, 8)).astype(np.float32)
    before, after = (Probe(m, optimise=False).run({"image": image})["restored"] for m in (model, made.model))
    assert np.array_equal(before, after)
    assert (before != 0).mean() > 0.3


def softmax_of_groups(net: Net, image: str) -> str:
    groups = net.op("Reshape", image, shape(net, 1, 2, 3, 8, 8))
    return net.op("Reshape", net.op("Softmax", groups, axis=1), shape(net, 1, 6, 8, 8))


def windows(net: Net, image: str) -> str:
    """Windows of attention have six axes."""
    six = net.op("Reshape", image, shape(net, 1, 6, 2, 4, 2, 4))
    return net.op("Reshape", net.op("Transpose", six, perm=[0, 2, 4, 1, 3, 5]), shape(net, 4, 6, 4, 4))


@pytest.mark.parametrize("write", [softmax_of_groups, windows])
def test_what_it_does_not_understand_stays_and_is_named(write: Write) -> None:
    model = graph(write)
    made = RankFour().apply(model)
    assert (made.modified, made.model) == (False, model)
    assert made.notes
    assert any("axes" in fault for fault in rank_faults(model))


def test_the_profile_names_branches_einsum_and_computed_sizes() -> None:
    net = Net()
    net.input("image", 1, 6, 8, 8)
    mixed = net.op("Einsum", "image", net.random(6, 6), equation="nchw,cd->ndhw")
    sizes = net.op("Cast", net.op("Add", net.op("Shape", mixed), shape(net, 0, 0, 0, 0)), to=onnx.TensorProto.INT64)
    net.output(net.op("Resize", mixed, "", "", sizes, name="restored"))
    faults = " ".join(rank_faults(net.model()))
    assert "Einsum" in faults
    assert "Resize" in faults


def test_the_shipped_network_has_the_profile() -> None:
    source = open_source(find_model(None).whole)
    form = HostForm("input", "output", side_px=source.spec.size.static_px or source.spec.tile_px)
    model = SimplifyGraph().apply(host_form(source, form)).model
    made = RankFour().apply(model).model
    assert rank_faults(made) == []
    image = rng.random((1, 3, form.side_px, form.side_px), dtype=np.float32)
    before, after = (Probe(m, threads=1, optimise=False).run({"input": image})["output"] for m in (model, made))
    assert np.abs(before - after).max() <= 2e-6  # products of other groups may sum in another order
