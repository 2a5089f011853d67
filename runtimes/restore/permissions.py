"""A hand on the wheel: which degradations may be mended, and how far. C++ and JavaScript do the same.

What is asked for (``fix``) and how far (``strength``) become two things: the numbers that a router graph takes as
``permissions``, one for each of the model's families, and one number with which the result is blended with the picture
that went in. ``docs/permissions.md`` is the contract.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from clusir.errors import UsageError
from clusir.runtimes.runners.base import Array
from clusir.spec import BLUR_BESIDE_FAULTS, ModelSpec

__all__ = ["PERHAPS", "Steering", "asked_families", "asked_strength", "hints", "mended", "nothing_to_mend", "steer"]

PERHAPS = 0.5
"""The evidence from which on a family that was left alone is mentioned."""

_LOOKS = {"noise": "noisy", "jpeg": "compressed", "blur": "blurred", "rain": "rainy", "haze": "hazy",
          "low_light": "too dark"}  # fmt: skip


@dataclass(frozen=True)
class Steering:
    """``permissions`` [F] float32, as the router takes them (empty: the model takes none), and the ``blend`` 0..1 of
    the result. ``plain``: the router would do the same untold, so a whole graph may answer alone."""

    permissions: Array
    blend: float = 1.0

    @property
    def plain(self) -> bool:
        return bool((self.permissions == -1).all())

    def feeds(self) -> dict[str, Array]:
        """What the router takes beside the picture."""
        return {"permissions": self.permissions[None]} if len(self.permissions) else {}

    @property
    def text(self) -> str:
        """The whole of it, the same for the same steering: for journals."""
        return ",".join(f"{p:g}" for p in self.permissions) + f"*{self.blend:g}"


def steer(spec: ModelSpec, fix: str | Iterable[str] | None, strength: float | str | Mapping[str, float]) -> Steering:
    """The steering for a model. ``fix``: None or ``auto``, ``all``, or families, as a list or with commas between;
    ``strength``: 0..1, and (or) families with a strength of their own: ``0.8,noise=0.6`` or a mapping, in which ``""``
    is the overall one.

    ``auto`` is for each family -w, as far as its strength w where the evidence is strong; ``all`` is -1 - w, as far as
    w where the evidence reaches the family's floor (w of a model without ``evidence_floors``); a list is w for its
    families and 0 for the others, and one of all families is ``all``. Raises UsageError for unknown words, numbers
    outside 0..1, and where the model has no families to tell apart, or enlarges pictures and strength is not 1.
    """
    asked = asked_families(fix)
    overall, own = asked_strength(strength)
    if not spec.families and (asked is not None or own):
        what = "--fix" if asked is not None else f"--strength {next(iter(own))}=..."
        raise UsageError(
            f"{what}: {spec.name} mends everything it knows at once, it was exported from weights that take no "
            "permissions; --strength 0..1 works with any model"
        )
    if spec.scale != 1 and overall != 1:
        raise UsageError(f"--strength: {spec.name} enlarges pictures, which cannot be blended with what went in")
    for family, words in (*((word, ("auto", "all")) for word in asked or ()), *((name, ()) for name in own)):
        if family not in (*spec.families, *words):
            known = ", ".join(name.replace("_", "-") for name in spec.families)
            raise UsageError(f"no family {family.replace('_', '-')!r}; {spec.name} knows {known}, and auto and all")
    words = ("auto",) if asked is None else asked
    if len(words) > 1 and {"auto", "all"} & set(words):
        raise UsageError(f"--fix {','.join(words)}: auto and all stand alone")
    share = np.array([own.get(family, 1.0) for family in spec.families], np.float32)
    if words == ("auto",):
        permissions = -share
    elif words == ("all",) or (len(words) > 1 and set(words) == set(spec.families)):
        permissions = np.where(share > 0, -1 - share, share) if spec.evidence_floors else share
    else:
        permissions = share * np.array([family in words for family in spec.families], np.float32)
    return Steering(permissions, overall)


def asked_families(fix: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """The words of ``fix``, dashes as in families' names; None where nothing was said. Raises UsageError."""
    if fix is None:
        return None
    parts = fix.split(",") if isinstance(fix, str) else list(fix)
    words = tuple(dict.fromkeys(str(part).strip().lower().replace("-", "_") for part in parts))
    if not words or "" in words:
        raise UsageError(f"--fix {fix!r}: name families, for example noise,jpeg, or auto or all")
    return words


def asked_strength(strength: float | str | Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """The overall strength, and those of single families. Raises UsageError outside 0..1 and for what is no number."""
    pairs: list[tuple[str, float | str]] = [("", strength)] if isinstance(strength, (int, float)) else []
    if isinstance(strength, Mapping):
        pairs = [(str(name), value) for name, value in strength.items()]
    elif isinstance(strength, str):
        for part in strength.split(","):
            name, said, value = part.rpartition("=")
            if said and not name.strip():
                raise UsageError(f"--strength {part!r} names no family before the '='")
            pairs.append((name, value))
    found: dict[str, float] = {}
    for name, text in pairs:
        try:
            share = float(text)
        except (TypeError, ValueError):
            share = float("nan")
        if isinstance(text, bool) or not 0.0 <= share <= 1.0:
            raise UsageError(f"--strength {text!r} is not a number from 0 to 1, for example 0.5 or noise=0.6")
        key = name.strip().lower().replace("-", "_")
        if key in found:
            raise UsageError(f"--strength says {name or 'the overall strength'} twice")
        found[key] = share
    return found.pop("", 1.0), found


def mended(evidence: Array, permissions: Array, spec: ModelSpec) -> Array:
    """How far each family was allowed to be mended, [F] in 0..1. Beside noise or JPEG blur is left, where its evidence
    is not strong and nobody asked for it by name."""
    share = _by_own_evidence(evidence, permissions, spec)
    names = np.array(spec.families)
    calibrated = np.asarray(spec.evidence_thresholds, np.float32) > 0
    doubted = (names == "blur") & calibrated & (permissions < 0) & (evidence < np.float32(BLUR_BESIDE_FAULTS))
    faults = (share[..., np.isin(names, ("noise", "jpeg"))] > 0).any(-1, keepdims=True)
    return np.where(doubted & faults, np.float32(0), share)


def _by_own_evidence(evidence: Array, permissions: Array, spec: ModelSpec) -> Array:
    anything = permissions < -1
    least = np.asarray(spec.evidence_thresholds, np.float32)
    if spec.evidence_floors:
        least = np.where(anything, np.asarray(spec.evidence_floors, np.float32), least)
    share = np.where(anything, -permissions - 1, -permissions) * (evidence >= least)
    return np.where(permissions < 0, share, permissions).astype(np.float32)


def nothing_to_mend(evidence: Array, permissions: Array, spec: ModelSpec) -> bool:
    """Whether no family may be mended, so that the picture comes back as it went in. ``evidence`` and ``permissions``
    [F]; False for a model without families, and for one that enlarges."""
    return bool(spec.families) and spec.scale == 1 and not mended(evidence, permissions, spec).any()


def hints(evidence: Array | None, permissions: Array, spec: ModelSpec) -> list[str]:
    """What the picture may suffer from and was left alone, for example ``perhaps hazy: --fix haze``: with evidence of
    :data:`PERHAPS`, or with enough of its own and left for the sake of another."""
    if evidence is None or not spec.families:
        return []
    left = mended(evidence, permissions, spec) == 0
    told = (evidence >= PERHAPS) | (_by_own_evidence(evidence, permissions, spec) > 0)
    return [
        f"perhaps {_LOOKS.get(family, family)}: --fix {family.replace('_', '-')}"
        for family, alone in zip(spec.families, left & told, strict=True)
        if alone
    ]
