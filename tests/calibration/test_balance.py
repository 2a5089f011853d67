from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from clusir.calibration.balance import BalanceConfig, draw_balanced, draw_blind
from clusir.calibration.base import Sample
from clusir.calibration.coverage import active_experts, measure_coverage
from clusir.errors import CalibrationError

EXPERTS = (3, 2)


@dataclass(frozen=True)
class Source:
    """Crops whose only pixel value is their index; ``routing`` says which expert of level 0 each one needs."""

    length: int = 200
    name: str = "made"
    crop_px: int = 1
    degradations: tuple[str, ...] = ("noise", "haze")

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int) -> Sample:
        image = np.full((1, 3, 1, 1), index, np.float32)
        return Sample(index, f"crop{index}", self.degradations[index % 2], image)

    def describe(self) -> dict[str, Any]:
        return {"source": self.name}


def route(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Level 0: expert 2 for every 20th picture, 1 for other multiples of 4, else 0. Level 1: by hundreds."""
    gate = np.zeros((len(images), 5), np.float32)
    for row, image in enumerate(images):
        index = int(image[0, 0, 0])
        gate[row, 2 if index % 20 == 0 else 1 if index % 4 == 0 else 0] = 0.7
        gate[row, 3 + (index // 100) % 2] = 0.9
    return np.ones((len(images), 4), np.float32) / 4, gate


def test_blind_drawing_misses_what_balanced_drawing_finds() -> None:
    config = BalanceConfig(size=18, pool=200, share=0.6, minimum=3)
    blind = draw_blind(Source(), route, EXPERTS, config)
    balanced = draw_balanced(Source(), route, EXPERTS, config)
    assert blind.indices == tuple(range(18))
    assert blind.coverage.under_served == ((0, 2), (1, 1))
    assert blind.coverage.experts[1] == (18, 0)
    assert balanced.coverage.under_served == ()
    # An equal split is 6 and 9; the share asked for is 0.6 of that.
    assert min(balanced.coverage.experts[0]) >= 4
    assert min(balanced.coverage.experts[1]) >= 5
    assert min(balanced.coverage.degradations.values()) >= 5
    assert balanced.coverage.total == len(balanced.samples) == 18
    assert balanced.gates.shape == (18, 5)


def test_drawing_is_deterministic_and_independent_of_the_batch() -> None:
    first = draw_balanced(Source(), route, EXPERTS, BalanceConfig(size=18, batch=8))
    again = draw_balanced(Source(), route, EXPERTS, BalanceConfig(size=18, batch=5))
    assert first.indices == again.indices
    assert np.array_equal(first.gates, again.gates)


def test_the_pool_grows_only_as_long_as_an_expert_lacks_crops() -> None:
    def fair(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gate = np.zeros((len(images), 5), np.float32)
        for row, image in enumerate(images):
            gate[row, int(image[0, 0, 0]) % 3] = gate[row, 3 + int(image[0, 0, 0]) % 2] = 1.0
        return gate[:, :4], gate

    assert draw_balanced(Source(), fair, EXPERTS, BalanceConfig(size=24)).routed == 48
    assert draw_balanced(Source(), route, EXPERTS, BalanceConfig(size=12, minimum=3)).routed > 48


def test_an_expert_that_nothing_reaches_is_under_served() -> None:
    def collapsed(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        posterior, gate = route(images)
        gate[:, 0] += gate[:, 1]
        gate[:, 1] = 0
        return posterior, gate

    drawn = draw_balanced(Source(), collapsed, EXPERTS, BalanceConfig(size=24))
    assert drawn.coverage.under_served == ((0, 1),)
    assert drawn.routed == len(Source())
    assert "**0**" in drawn.coverage.to_markdown()


def test_a_model_without_routing_is_balanced_over_degradations() -> None:
    drawn = draw_balanced(Source(), None, (), BalanceConfig(size=10))
    assert drawn.coverage.degradations == {"noise": 5, "haze": 5}
    assert drawn.gates.shape == (10, 0)
    assert drawn.coverage.under_served == ()


def test_a_small_source_is_taken_whole() -> None:
    assert draw_balanced(Source(length=6), route, EXPERTS, BalanceConfig(size=64)).indices == tuple(range(6))


def test_a_router_that_gives_nan_is_refused() -> None:
    def broken(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        posterior, gate = route(images)
        return posterior, gate * np.nan

    with pytest.raises(CalibrationError, match="not finite for calibration crop crop0"):
        draw_balanced(Source(), broken, EXPERTS)


def test_empty_requests_are_refused() -> None:
    with pytest.raises(CalibrationError, match="cannot be drawn"):
        draw_balanced(Source(length=0), None, ())
    with pytest.raises(CalibrationError, match="cannot be drawn"):
        draw_blind(Source(length=0), None, ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "size 0 of a calibration set is not at least 1"),
        ({"minimum": 0}, "minimum 0"),
        ({"size": 64, "pool": 10}, "a pool of 10 candidates cannot give a set of 64 crops"),
        ({"share": float("nan")}, "share nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        BalanceConfig(**changes)


def test_active_experts_and_coverage_table() -> None:
    gate = np.array([[0.5, 0, 0, 1, 0], [0, 0.2, 0.8, 0, 1]], np.float32)
    active = active_experts(gate, EXPERTS)
    assert active == [((0, 0), (1, 0)), ((0, 1), (0, 2), (1, 1))]
    with pytest.raises(ValueError, match=r"does not hold the 4 experts"):
        active_experts(gate, (2, 2))
    coverage = measure_coverage(["noise", "haze"], active, ("noise", "haze", "rain"), EXPERTS, 1)
    assert coverage.to_markdown().splitlines() == [
        "| degradation | crops | 1.0 | 1.1 | 1.2 | 2.0 | 2.1 |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| noise | 1 | 1 | 0 | 0 | 1 | 0 |",
        "| haze | 1 | 0 | 1 | 1 | 0 | 1 |",
        "| rain | 0 | 0 | 0 | 0 | 0 | 0 |",
        "| all | 2 | 1 | 1 | 1 | 1 | 1 |",
    ]
    assert coverage.to_json()["under_served"] == []
