"""What PyTorch answered is remembered for the files that are compared with it next, and for nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clusir.export.validate import parity
from clusir.export.validate.parity import reference_outputs, remembered_answers

PICTURE = np.full((1, 3, 16, 16), 0.5, np.float32)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Every question that PyTorch is asked: the graph, and the mean of the picture, which is the answer as well."""
    found: list[tuple[str, float]] = []

    def answer(_: Any, feeds: Any, graph: str) -> dict[str, np.ndarray]:
        found.append((graph, float(feeds["image"].mean())))
        return {"restored": np.array([feeds["image"].mean(), *(v.sum() for v in feeds.values())])}

    monkeypatch.setattr(parity, "_answers", answer)
    return found


def test_the_same_numbers_are_asked_for_once(asked: list[tuple[str, float]]) -> None:
    one: Any = torch.nn.Identity()
    with remembered_answers():
        first = reference_outputs(one, {"image": PICTURE})
        first["more"] = PICTURE  # what a caller adds is its own
        again = reference_outputs(one, {"image": PICTURE.copy()})
    assert len(asked) == 1
    assert list(again) == ["restored"]
    assert again["restored"] is first["restored"]


def test_what_is_not_the_same_is_asked_for(asked: list[tuple[str, float]]) -> None:
    one: Any = torch.nn.Identity()
    other: Any = torch.nn.Identity()
    gate = np.ones((1, 2), np.float32)
    questions: list[tuple[Any, dict[str, np.ndarray], str]] = [
        (one, {"image": PICTURE}, "whole"),
        (one, {"image": PICTURE + 2.0**-20}, "whole"),
        (one, {"image": PICTURE.reshape(1, 3, 8, 32)}, "whole"),
        (one, {"image": PICTURE}, "router"),
        (one, {"image": PICTURE, "gate": gate}, "whole"),
        (one, {"image": PICTURE, "posterior": gate}, "whole"),
        (other, {"image": PICTURE}, "whole"),
    ]
    with remembered_answers():
        for question in questions:
            reference_outputs(*question)
    assert len(asked) == len(questions)


def test_nothing_is_remembered_outside_or_afterwards(asked: list[tuple[str, float]]) -> None:
    one: Any = torch.nn.Identity()
    for _ in range(2):
        reference_outputs(one, {"image": PICTURE})
    for _ in range(2):
        with remembered_answers():
            reference_outputs(one, {"image": PICTURE})
    assert len(asked) == 4
