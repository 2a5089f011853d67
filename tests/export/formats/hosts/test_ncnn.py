"""ncnn's files in ncnn itself, operator by operator, and their text."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from operator_graphs import GRAPHS, difference, six_axes
from small_graphs import Net

from clusir.export.formats.hosts.child import Refused
from clusir.export.formats.hosts.ncnn.host import Ncnn, written
from clusir.export.formats.hosts.ncnn.layers import Blob
from clusir.export.formats.hosts.ncnn.maps import permuted
from tests.needs import skip


@pytest.fixture
def ncnn() -> Ncnn:
    if not os.environ.get(Ncnn.variable):
        skip("ncnn")
    return Ncnn()


@pytest.mark.parametrize("write", [*GRAPHS, six_axes])
def test_operators_are_right(ncnn: Ncnn, tmp_path: Path, write: Callable[[Net, str], list[str]]) -> None:
    assert difference(ncnn, write, tmp_path) <= 1e-5


def test_the_text_counts_layers_and_blobs_and_a_blob_has_one_reader() -> None:
    net = Net()
    x = net.input("input", 1, 3, 16, 16)
    made = net.op("Conv", x, net.random(3, 3, 3, 3), pads=[1, 1, 1, 1])
    net.output(net.op("Add", net.op("Mul", made, made), x, name="output"))
    text, content = written(net.model())
    magic, counts, *lines = text.splitlines()
    assert magic == "7767517"
    readers: list[str] = []
    makers: list[str] = []
    for line in lines:
        _, _, inputs, outputs, *rest = line.split()
        readers += rest[: int(inputs)]
        makers += rest[int(inputs) : int(inputs) + int(outputs)]
    assert counts == f"{len(lines)} {len(makers)}"
    assert len(set(readers)) == len(readers)
    assert set(makers) - set(readers) == {"output"}
    assert set(readers) <= set(makers)
    assert "input" in makers
    assert len(content) == 4 + 81 * 4  # the mark of float32, and the weights


def test_half_is_half_the_weights() -> None:
    net = Net()
    net.output(net.op("Conv", net.input("input", 1, 3, 16, 16), net.random(4, 3, 3, 3), net.random(4)))
    _, whole = written(net.model())
    _, half = written(net.model(), half=True)
    assert len(whole) == 4 + 108 * 4 + 4 * 4
    assert len(half) == 4 + 108 * 2 + 4 * 4
    assert half[:4] == bytes.fromhex("476b3001")
    weights = np.frombuffer(half[4 : 4 + 216], "<f2").astype(np.float32)
    assert np.abs(weights - np.frombuffer(whole[4 : 4 + 432], "<f4")).max() < 2e-3


class Arrays:
    """Stands for Layers: what each blob would hold."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[Blob, np.ndarray]] = {}

    def new(self, array: np.ndarray) -> Blob:
        blob = Blob("", array.shape)
        self.held[id(blob)] = blob, array
        return blob

    def reshape(self, blob: Blob, dims: Sequence[int]) -> Blob:
        return self.new(self.held[id(blob)][1].reshape(dims))

    def one(self, kind: str, blob: Blob, parameters: Mapping[int, int], out: Sequence[int]) -> Blob:
        assert kind == "Permute"
        letters = {2: "hw", 3: "chw", 4: "cdhw"}[len(blob.dims)]
        names = {2: ORDERS[:2], 3: ORDERS[2:8], 4: ORDERS[8:]}[len(blob.dims)][parameters[0]]
        made = self.held[id(blob)][1].transpose([letters.index(letter) for letter in names[::-1]])
        assert made.shape == tuple(out)
        return self.new(made)


# ncnn's src/layer/permute.cpp, the comments at order_type: two, six and twenty-four of them.
ORDERS = [
    *["wh", "hw"],
    *["whc", "hwc", "wch", "cwh", "hcw", "chw"],
    *["whdc", "hwdc", "wdhc", "dwhc", "hdwc", "dhwc", "whcd", "hwcd", "wchd", "cwhd", "hcwd", "chwd"],
    *["wdch", "dwch", "wcdh", "cwdh", "dcwh", "cdwh", "hdcw", "dhcw", "hcdw", "chdw", "dchw", "cdhw"],
]


def test_any_order_of_axes_is_reached_with_four() -> None:
    rng = np.random.default_rng(2)
    for _ in range(500):
        shape = rng.integers(1, 4, rng.integers(1, 7)).tolist()
        order = rng.permutation(len(shape)).tolist()
        array = np.arange(np.prod(shape)).reshape(shape)
        arrays = Arrays()
        made = permuted(arrays, arrays.new(array.reshape(-1)), shape, order)  # type: ignore[arg-type]
        assert (arrays.held[id(made)][1].reshape(-1) == array.transpose(order).reshape(-1)).all()


def test_operators_without_layers_are_named() -> None:
    net = Net()
    value = net.op("Atan", net.op("Asin", net.input("input", 1, 3, 16, 16)))
    net.output(net.op("Relu", net.op("Atan", value)))
    with pytest.raises(Refused, match=r"^no layers for Asin, Atan$"):
        written(net.model())
