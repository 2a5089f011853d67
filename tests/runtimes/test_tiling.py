"""Tiles cover, weights sum to exactly one, padding reflects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusir.errors import ClusirError
from clusir.runtimes.restore.routing import combine, split_levels, top_k_gate
from clusir.runtimes.restore.tiling import pad_tile, plan_axis, plan_picture
from clusir.spec import ModelSpec, SizeRequirements


def spec(tile: int = 64, halo: int = 8, static: bool = True) -> ModelSpec:
    return ModelSpec(tile_px=tile, halo_px=halo, size=SizeRequirements(static_px=tile if static else 0))


@given(
    length=st.integers(1, 2000),
    tile=st.sampled_from([16, 48, 64, 256]),
    halo_16=st.integers(0, 7),
    static=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_weights_sum_to_exactly_one(length: int, tile: int, halo_16: int, static: bool) -> None:
    axis = plan_axis(length, spec(tile, halo_16 * tile // 16, static))
    total = np.zeros(max(length, axis.tile), np.float32)
    for start, weight in zip(axis.starts, axis.weights, strict=True):
        assert weight.dtype == np.float32
        assert weight.shape == (axis.tile,)
        assert weight.min() >= 0
        total[start : start + axis.tile] += weight
    assert (total == 1).all()
    assert axis.starts[0] == 0
    assert axis.starts[-1] + axis.tile >= length
    assert all(a < b for a, b in zip(axis.starts, axis.starts[1:], strict=False))
    fixed = plan_axis(length, spec(tile, halo_16 * tile // 16, static=True))
    assert len(axis.starts) == len(fixed.starts)
    assert axis.tile <= fixed.tile
    assert axis.tile % 16 == 0


def test_weights_sum_to_exactly_one_in_the_plane() -> None:
    plan = plan_picture(150, 333, spec(64, 12))
    total = np.zeros((150, 333), np.float32)
    for y, wy in zip(plan.y.starts, plan.y.weights, strict=True):
        for x, wx in zip(plan.x.starts, plan.x.weights, strict=True):
            total[y : y + 64, x : x + 64] += wy[:, None] * wx[None, :]
    assert (total == 1).all()


def test_a_tiles_border_has_no_say() -> None:
    axis = plan_axis(200, spec(64, 8))
    assert axis.starts == (0, 48, 96, 136)
    assert max(axis.weights[1][:2].max(), axis.weights[1][-2:].max()) == 0
    assert 0 < axis.weights[1][2] < 0.01  # the ramp begins right behind them
    assert axis.weights[1][7] < 0.5 < axis.weights[1][8]
    assert axis.weights[1][32] == 1
    assert axis.weights[0][0] == 1  # the picture's own border


@pytest.mark.parametrize(
    ("static", "length", "tile"), [(True, 5, 64), (False, 5, 16), (False, 17, 32), (False, 64, 64)]
)
def test_small_pictures_are_padded_to_the_size_rule(static: bool, length: int, tile: int) -> None:
    axis = plan_axis(length, spec(64, 8, static))
    assert (axis.tile, axis.starts) == (tile, (0,))


@pytest.mark.parametrize(
    ("length", "starts"),
    [(5, (0,)), (64, (0,)), (71, (0,)), (72, (0, 8)), (135, (0, 64)), (136, (0, 32, 72)), (1000, (0, 464, 936))],
)
def test_the_sample_covers_an_axis_evenly_with_at_most_three(length: int, starts: tuple[int, ...]) -> None:
    assert plan_axis(length, spec()).sample() == starts


def test_padding_reflects_like_numpy() -> None:
    rng = np.random.default_rng(0)
    for height, width in [(1, 1), (1, 5), (7, 2), (16, 16), (3, 16)]:
        image = rng.random((height, width, 3), dtype=np.float32)
        expected = np.pad(image, ((0, 16 - height), (0, 16 - width), (0, 0)), mode="reflect")
        np.testing.assert_array_equal(pad_tile(image, 16, 16), expected)


def test_top_k_breaks_ties_by_the_lowest_index() -> None:
    p = np.array([0.2, 0.4, 0.4, 0.0], np.float32)
    np.testing.assert_array_equal(top_k_gate(p, 1), np.array([0, 0.4, 0, 0], np.float32))
    np.testing.assert_allclose(top_k_gate(p, 2), [0, 0.5, 0.5, 0])
    np.testing.assert_allclose(top_k_gate(np.full(4, 0.25, np.float32), 3), [1 / 3, 1 / 3, 1 / 3, 0])


def test_shared_routing_averages_before_top_k() -> None:
    s = ModelSpec(clusters=(2,), experts=(2,), top_k=1, statistics=2)
    posterior = np.array([[1, 0], [0.5, 0.5]], np.float32)
    # Tile by tile expert 0 wins twice of three; on average expert 1 does.
    probability = np.array([[0.55, 0.45], [0.55, 0.45], [0.1, 0.9]], np.float32)
    statistics = np.array([[1, 2], [3, 2]], np.float32)
    sampled = {"posterior": posterior, "expert_probability": probability, "statistics": statistics}
    routing = combine(sampled, s)
    np.testing.assert_allclose(routing.posterior, [0.75, 0.25])
    np.testing.assert_allclose(routing.gate, [0, 0.6], rtol=1e-6)
    np.testing.assert_allclose(routing.feeds(2)["statistics"], [[2, 2], [2, 2]])
    assert "statistics" not in combine(sampled, replace(s, statistics=0)).feeds(1)  # a file without them
    for name, values in sampled.items():
        spoilt = {**sampled, name: np.where(np.arange(values.size).reshape(values.shape) == 1, np.nan, values)}
        with pytest.raises(ClusirError, match=f"the router's {name}"):
            combine(spoilt, s)
    assert [p.tolist() for p in split_levels(np.arange(5, dtype=np.float32), (3, 2))] == [[0, 1, 2], [3, 4]]
