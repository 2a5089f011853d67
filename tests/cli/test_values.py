"""Times, decibels and lists on the command line."""

from __future__ import annotations

from typing import Any

import click
import pytest

from clusir.cli._values import Decibels, Integers, Seconds, Sizes, Words

GOOD = [
    (Seconds(), "90", 90), (Seconds(), "90s", 90), (Seconds(), "45m", 2700), (Seconds(), "1.5h", 5400),
    (Seconds(), "1h30m", 5400), (Decibels(), "0.1dB", 0.1), (Decibels(), " 2 db ", 2),
    (Words(("a", "b")), "b, a,b", ("b", "a")),
    (Integers(1, 64), "1,3,1", (1, 3)), (Sizes(), "96x160, 64x64", ((96, 160), (64, 64))),
]  # fmt: skip
BAD = [
    (Seconds(), "m"), (Seconds(), "1h30"), (Seconds(), "-5m"), (Seconds(), "1 h"), (Seconds(), ""),
    (Decibels(), "-1dB"),
    (Decibels(), "nan"), (Words(("a", "b")), "a,c"), (Words(("a", "b")), " , "),
    (Integers(1, 64), "0"), (Integers(1, 64), "65"),
    (Integers(1, 64), "1.5"), (Sizes(), "96"), (Sizes(), "96x"), (Sizes(), "-1x5"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "value"), GOOD)
def test_values_are_read(kind: Any, text: str, value: object) -> None:
    assert kind.convert(text, None, None) == value


@pytest.mark.parametrize(("kind", "text"), BAD)
def test_odd_values_are_refused_with_what_is_allowed(kind: Any, text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"for example|give one or more of|give integers from|give sizes as"):
        kind.convert(text, None, None)
