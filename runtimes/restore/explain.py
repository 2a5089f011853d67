"""The model's own account of a picture: which degradations it recognised, and which experts it sent the picture to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from rich.markup import escape

from clusir.errors import ModelFormatError
from clusir.spec import ModelSpec

__all__ = ["Account", "Level", "account", "explain_lines", "routing_levels", "summary"]

_TRACE = 0.05  # the evidence, or the share, from which on something is named
_BLOCKS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Level:
    """Routing of encoder level ``number`` (from 1). ``posterior`` sums to 1; ``gate`` is 0 where no expert ran."""

    number: int
    labels: tuple[str, ...]
    posterior: tuple[float, ...]
    gate: tuple[float, ...]


@dataclass(frozen=True)
class Account:
    """What was recognised in one picture, (label, 0..1) with the largest first, and the levels of its routing. Both are
    empty for a model without routing."""

    recognised: tuple[tuple[str, float], ...] = ()
    levels: tuple[Level, ...] = ()


def _parts(values: ArrayLike, lengths: Sequence[int], what: str) -> list[tuple[float, ...]]:
    flat = np.asarray(values, dtype=np.float64)
    if flat.ndim == 2 and flat.shape[0] == 1:
        flat = flat[0]
    if flat.shape != (sum(lengths),):
        raise ModelFormatError(
            f"{what} of shape {flat.shape} does not fit the model's metadata, which names {sum(lengths)} values "
            f"({' + '.join(map(str, lengths)) or 'no routed level'}); export the model again with clusir-export"
        )
    return [tuple(map(float, part)) for part in np.split(flat, np.cumsum(lengths)[:-1])]


def routing_levels(posterior: ArrayLike, gate: ArrayLike, spec: ModelSpec) -> list[Level]:
    """Split one picture's routing into levels.

    ``posterior`` is [sum(spec.clusters)] and ``gate`` [sum(spec.experts)], with or without a leading batch of 1. A
    cluster without a label in the metadata is called ``cluster N``. Empty for a model without routing. Raises
    ModelFormatError where the lengths are not those of ``spec``.
    """
    if not spec.routed:
        return []
    posteriors = _parts(posterior, spec.clusters, "posterior")
    gates = _parts(gate, spec.experts, "gate")
    names = spec.cluster_labels or tuple(("",) * n for n in spec.clusters)
    return [
        Level(i + 1, tuple(label or f"cluster {c}" for c, label in enumerate(names[i])), posteriors[i], gates[i])
        for i in range(len(spec.clusters))
    ]


def account(posterior: ArrayLike, gate: ArrayLike, spec: ModelSpec, evidence: ArrayLike = ()) -> Account:
    """The account of one picture; arguments as in :func:`routing_levels`, and the ``evidence`` [F] in 0..1 where the
    model gives it.

    What was recognised are then the families of which there is a trace, else the degradations that clusters stand for,
    as shares that sum to 1: what a picture suffers from is asked of evidence, of which the router takes only what may
    be mended.
    """
    levels = tuple(routing_levels(posterior, gate, spec))
    found = np.asarray(evidence, np.float64)
    if levels and found.size:
        named = zip(spec.families, found.tolist(), strict=True)
        shares = [(family.replace("_", " "), share) for family, share in named if share >= _TRACE]
    else:
        shares = _of_clusters(levels)
    return Account(tuple(sorted(shares, key=lambda item: -item[1])), levels)


def _of_clusters(levels: Sequence[Level]) -> list[tuple[str, float]]:
    """Clusters of the same label count together; the levels count equally. Where the metadata names no cluster the
    shares of different levels have nothing in common, so the deepest level alone speaks."""
    unnamed = all(label == f"cluster {c}" for level in levels for c, label in enumerate(level.labels))
    chosen = levels[-1:] if unnamed else levels
    shares: dict[str, float] = {}
    for level in chosen:
        for label, value in zip(level.labels, level.posterior, strict=True):
            shares[label] = shares.get(label, 0.0) + value / len(chosen)
    return list(shares.items())


def summary(found: Account, least: float = _TRACE) -> str:
    """What was recognised as words: ``noise 0.80, jpeg 0.20``; less than ``least`` is left out, the first never.
    ``nothing`` where there was nothing."""
    shares = enumerate(found.recognised)
    return ", ".join(f"{label} {share:.2f}" for i, (label, share) in shares if i == 0 or share >= least) or "nothing"


def _bar(share: float, width: int, plain: bool) -> str:
    """A bar of ``width`` characters, filled to ``share`` in eighths of one; ``plain``: whole and in ASCII."""
    if plain:
        return ("#" * round(min(max(share, 0.0), 1.0) * width)).ljust(width, ".")
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_BLOCKS[rest] if rest else "")).ljust(width)


def explain_lines(
    posterior: ArrayLike,
    gate: ArrayLike,
    spec: ModelSpec,
    width: int = 24,
    top: int = 4,
    plain: bool = False,
    evidence: ArrayLike = (),
) -> list[str]:
    """The routing of one picture as lines of rich markup, for ``console.print``.

    First what was recognised; then per level the ``top`` clusters and every expert that ran, each with a bar of
    ``width`` characters (``plain``: ASCII). Other arguments as in :func:`account`. A model without routing gives one
    line that says so.
    """
    told = account(posterior, gate, spec, evidence)
    levels = told.levels
    if not levels:
        return ["[dim]this model has no routing to explain[/dim]"]
    lines = [f"recognised: [bold]{escape(summary(told))}[/bold]"]
    column = max(len(label) for level in levels for label in level.labels)
    for level in levels:
        ranked = sorted(range(len(level.posterior)), key=lambda c: -level.posterior[c])[:top]
        for place, c in enumerate(ranked):
            head = f"level {level.number}" if place == 0 else ""
            share = level.posterior[c]
            label = escape(level.labels[c].ljust(column))
            lines.append(f"[dim]{head:<8}[/dim] {label} [cyan]{_bar(share, width, plain)}[/cyan] {share:.2f}")
        for e, weight in enumerate(level.gate):
            if weight > 0:
                name = f"expert {e}".ljust(column)
                lines.append(f"{'':<8} {name} [green]{_bar(weight, width, plain)}[/green] {weight:.2f}")
    return lines
