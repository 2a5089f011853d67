"""Values on the command line: times, decibels, lists of words, numbers and sizes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

__all__ = ["Decibels", "Integers", "Seconds", "Setting", "Sizes", "Words", "parse_seconds"]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_seconds(text: str) -> float | None:
    """``90``, ``90s``, ``45m``, ``1.5h`` or ``1h30m`` in seconds; None where the text is none of these."""
    text = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


class Seconds(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """A length of time, in seconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(value) if isinstance(value, int | float) else parse_seconds(value)
        if seconds is None:
            self.fail(f"{value!r} is not a time; write for example 90s, 45m or 1h30m", param, ctx)
        return seconds


class Decibels(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """A number of decibels, at least 0, with or without the unit."""

    name = "dB"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:dB)?\s*", str(value), re.IGNORECASE)
        if not found:
            self.fail(f"{value!r} is not a number of decibels, for example 0.1dB", param, ctx)
        return float(found[1])


class Setting(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """``NAME=NUMBER``; with ``files`` also ``NAME=FILE``, a picture; with a ``default`` also ``NAME`` alone."""

    def __init__(self, files: bool = False, default: float | None = None) -> None:
        self._files, self._default = files, default
        self.name = "NAME=NUMBER|FILE" if files else "NAME=NUMBER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float | str]:
        if isinstance(value, str) and value.strip() and "=" not in value and self._default is not None:
            return value, self._default
        name, equals, text = str(value).partition("=") if self._files else str(value).rpartition("=")
        if equals and name.strip() and text.strip():
            try:
                return name.strip(), float(text)
            except ValueError:
                if self._files and Path(text).is_file():
                    return name.strip(), text
        if self._files:
            said = f"there is no file {text}" if text.strip() else "it is no setting"
            self.fail(f"{value!r}: {said}; write for example sigma=15, or mask=mask.png", param, ctx)
        return self.fail(f"{value!r} is no setting; write for example sigma=15", param, ctx)


class _List(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """Values with commas between; each counts once."""

    def one(self, word: str) -> Any:
        """The value of a word; raises ValueError."""
        raise NotImplementedError

    wanted = ""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in value.split(",") if word.strip()]
        if not words:
            self.fail(f"nothing is given; {self.wanted}", param, ctx)
        values = []
        for word in words:
            try:
                values.append(self.one(word))
            except ValueError:
                self.fail(f"{word!r} is not allowed; {self.wanted}", param, ctx)
        return tuple(dict.fromkeys(values))


class Words(_List):
    """Words out of ``allowed``."""

    name = "LIST"

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._allowed = allowed
        self.wanted = f"give one or more of {', '.join(allowed)}, with commas between"

    def one(self, word: str) -> str:
        if word not in self._allowed:
            raise ValueError
        return word


class Integers(_List):
    """Integers from ``least`` to ``most``."""

    name = "LIST"

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most
        self.wanted = f"give integers from {least} to {most}, with commas between"

    def one(self, word: str) -> int:
        if not self._least <= int(word) <= self._most:
            raise ValueError
        return int(word)


class Sizes(_List):
    """(height, width) in pixels."""

    name = "HxW,..."
    wanted = "give sizes as HxW, for example 96x160,272x336"

    def one(self, word: str) -> tuple[int, int]:
        found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", word)
        if not found:
            raise ValueError
        return int(found[1]), int(found[2])
