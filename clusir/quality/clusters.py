"""What the clusters learned: purity, normalised mutual information, expert usage per degradation, and names.

Labels appear here and nowhere in training: pictures get one known kind of degradation, the routers say which cluster
they see, and the two are compared.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusir.degrade.recipe import FAMILIES, KINDS, draw_recipe
from clusir.errors import UsageError
from clusir.markdown import table

__all__ = ["ClusterReport", "centre_crops", "cluster_report", "label_clusters", "model_router"]

Array = NDArray[np.float32]
Table = NDArray[np.float64]
Router = Callable[[Array], tuple[Sequence[Array], Sequence[Array]]]
"""NCHW float32 in 0..1 to (posteriors, gates): one BxL and one BxE array per level, finest first."""

_UNUSED_SHARE = 0.01
_MIXED_SHARE = 0.4  # below it the most frequent family of a cluster does not name it
_CALM, _HARSH = 0.35, 0.65


@dataclass(frozen=True)
class ClusterReport:
    """Counts per level, rows weighted so that every kind counts alike.

    ``clusters[l]``: KxL, the share of pictures of each kind whose largest posterior is that cluster (rows sum to 1);
    ``experts[l]``: KxE, the same for experts that ran; ``severity[l]``: KxL, the mean severity of those pictures.
    """

    kinds: tuple[str, ...]
    clusters: tuple[Table, ...]
    experts: tuple[Table, ...]
    severity: tuple[Table, ...]

    def purity(self, level: int, *, by_family: bool = True) -> float:
        """The share of pictures that a cluster's most frequent class would name right, in 0..1.

        Classes are families (noise, jpeg, blur, rain, haze, low_light, weighted alike) or, with ``by_family=False``,
        the kinds themselves.
        """
        joint = self._joint(level, by_family)
        return float(joint.max(0).sum())

    def nmi(self, level: int, *, by_family: bool = True) -> float:
        """Normalised mutual information of class and cluster, 2 I / (H + H), in 0..1."""
        joint = self._joint(level, by_family)
        rows, columns = joint.sum(1), joint.sum(0)
        information = _entropy(rows) + _entropy(columns) - _entropy(joint.ravel())
        total = _entropy(rows) + _entropy(columns)
        return float(2 * information / total) if total > 0 else 0.0

    def least_expert(self) -> float:
        """The smallest share of a balanced set that any expert of any level gets."""
        return float(min((usage.mean(0) / usage.mean(0).sum()).min() for usage in self.experts))

    def labels(self) -> tuple[tuple[str, ...], ...]:
        """A name for each cluster of each level: the family it mostly means, ``a/b`` for two, ``mixed`` or ``unused``.

        Clusters of one level that mean the same family are told apart by severity: ``mild noise``, ``strong noise``.
        """
        return tuple(self._level_labels(level) for level in range(len(self.clusters)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        levels = [
            {
                "purity": self.purity(level),
                "nmi": self.nmi(level),
                "purity_kinds": self.purity(level, by_family=False),
                "nmi_kinds": self.nmi(level, by_family=False),
                "labels": list(names),
                "clusters": dict(zip(self.kinds, np.round(self.clusters[level], 4).tolist(), strict=True)),
                "experts": dict(zip(self.kinds, np.round(self.experts[level], 4).tolist(), strict=True)),
            }
            for level, names in enumerate(self.labels())
        ]
        return {"kinds": list(self.kinds), "least_expert": self.least_expert(), "levels": levels}

    def to_markdown(self) -> str:
        """One table of figures per level and one of names."""
        rows = []
        for level, names in enumerate(self.labels()):
            usage = self.experts[level].mean(0)
            figures = [self.purity(level), self.nmi(level), usage.min() / usage.sum()]
            rows.append([str(level + 1), ", ".join(names), *(f"{figure:.2f}" for figure in figures)])
        return table(("level", "clusters", "purity", "NMI", "least used expert"), rows, left=2)

    def to_svg(self) -> str:
        """A self-contained picture: per level a heat map of clusters and one of experts, kinds down, shares as ink."""
        cell, label, gap, top = 26, 130, 40, 46
        parts: list[str] = []
        x = label
        for level, (clusters, experts) in enumerate(zip(self.clusters, self.experts, strict=True)):
            for title, shares, hue in ((f"level {level + 1}: clusters", clusters, 215), ("experts", experts, 20)):
                parts.append(f'<text x="{x}" y="18" font-weight="bold">{escape(title)}</text>')
                for column in range(shares.shape[1]):
                    parts.append(f'<text x="{x + cell * (column + 0.5)}" y="38" text-anchor="middle">{column}</text>')
                    for row in range(shares.shape[0]):
                        share = float(shares[row, column])
                        parts.append(
                            f'<rect x="{x + cell * column}" y="{top + cell * row}" width="{cell - 1}" '
                            f'height="{cell - 1}" fill="hsl({hue},70%,{100 - 62 * share:.0f}%)">'
                            f"<title>{escape(self.kinds[row])}: {share:.2f}</title></rect>"
                        )
                x += cell * shares.shape[1] + gap
        for row, kind in enumerate(self.kinds):
            parts.append(
                f'<text x="{label - 8}" y="{top + cell * (row + 0.65)}" text-anchor="end">{escape(kind)}</text>'
            )
        height = top + cell * len(self.kinds) + 10
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {x} {height}" width="{x}" height="{height}" '
            f'font-family="sans-serif" font-size="12">{"".join(parts)}</svg>\n'
        )

    def write(self, folder: Path, about: str = "") -> None:
        """``clusters.md``, ``clusters.json`` and ``clusters.svg`` in ``folder``, which is made; ``about``: what was
        measured, in words."""
        folder.mkdir(parents=True, exist_ok=True)
        said = {"about": about} if about else {}
        (folder / "clusters.md").write_text(f"{about}\n\n{self.to_markdown()}".lstrip(), "utf-8")
        (folder / "clusters.json").write_text(json.dumps({**said, **self.to_dict()}, indent=2) + "\n", "utf-8")
        (folder / "clusters.svg").write_text(self.to_svg(), "utf-8")

    def _joint(self, level: int, by_family: bool) -> Table:
        table = self.clusters[level]
        if by_family:
            table = np.stack([table[rows].mean(0) for rows in self._families().values()])
        joint: Table = table / table.sum()
        return joint

    def _families(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for index, kind in enumerate(self.kinds):
            rows.setdefault(FAMILIES[kind], []).append(index)
        return rows

    def _level_labels(self, level: int) -> tuple[str, ...]:
        families = list(self._families())
        joint = self._joint(level, by_family=True)
        names = []
        for column in joint.T:
            if column.sum() < _UNUSED_SHARE:
                names.append("unused")
                continue
            order = np.argsort(-column, kind="stable")
            share = column[order] / column.sum()
            if share[0] < _MIXED_SHARE:
                names.append("mixed")
            elif share[0] < 0.6 and share[1] > 0.6 * share[0]:
                names.append(f"{families[order[0]]}/{families[order[1]]}")
            else:
                names.append(families[order[0]])
        return tuple(
            self._with_severity(level, cluster, name) if names.count(name) > 1 and name in families else name
            for cluster, name in enumerate(names)
        )

    def _with_severity(self, level: int, cluster: int, family: str) -> str:
        rows = self._families()[family]
        weight = self.clusters[level][rows, cluster]
        mean = float((weight * self.severity[level][rows, cluster]).sum() / max(weight.sum(), 1e-9))
        return f"mild {family}" if mean < _CALM else f"strong {family}" if mean > _HARSH else family


def centre_crops(photos: Iterable[NDArray[np.uint8]], px: int, limit: int) -> list[Array]:
    """The middle ``px`` x ``px`` of the first ``limit`` photos of that size or more; HxWx3 uint8 to float32 in 0..1."""
    crops: list[Array] = []
    for photo in photos:
        y, x = ((side - px) // 2 for side in photo.shape[:2])
        if min(y, x) >= 0:
            crops.append(photo[y : y + px, x : x + px].astype(np.float32) / np.float32(255))
        if len(crops) >= limit:
            break
    return crops


def cluster_report(
    router: Router,
    pictures: Iterable[Array],
    *,
    kinds: Sequence[str] = KINDS,
    draws: int = 1,
    seed: int = 0,
    batch: int = 1,
) -> ClusterReport:
    """Degrade every picture with each of ``kinds`` at ``draws`` random severities, one kind at a time, and route it.

    ``pictures``: HxWx3 float32 in 0..1, of a size the router takes; ``batch``: how many degraded ones of each it takes
    at a time. Raises UsageError where there is no picture.
    """
    kinds = tuple(kinds)
    clusters: list[Table] = []
    experts: list[Table] = []
    severities: list[Table] = []
    for index, picture in enumerate(pictures):
        recipes = [
            (row, draw_recipe(np.random.default_rng([seed, index, zlib.crc32(kind.encode()), draw]), (kind,), 1))
            for row, kind in enumerate(kinds)
            for draw in range(draws)
        ]
        for some in (recipes[at : at + batch] for at in range(0, len(recipes), batch)):
            degraded = np.stack([recipe.apply(picture).transpose(2, 0, 1) for _, recipe in some])
            posteriors, gates = router(degraded)
            if not clusters:
                clusters = [np.zeros((len(kinds), p.shape[1])) for p in posteriors]
                severities = [np.zeros((len(kinds), p.shape[1])) for p in posteriors]
                experts = [np.zeros((len(kinds), g.shape[1])) for g in gates]
            for level, (posterior, gate) in enumerate(zip(posteriors, gates, strict=True)):
                for (row, recipe), best, used in zip(some, posterior.argmax(1), gate > 0, strict=True):
                    clusters[level][row, best] += 1
                    severities[level][row, best] += recipe.steps[0].severity
                    experts[level][row] += used
    if not clusters:
        raise UsageError("cluster report: there is no picture to route; name a folder of clean photos")
    return ClusterReport(
        kinds,
        tuple(c / c.sum(1, keepdims=True) for c in clusters),
        tuple(e / e.sum(1, keepdims=True) for e in experts),
        tuple(s / np.maximum(c, 1) for s, c in zip(severities, clusters, strict=True)),
    )


def model_router(model: Any) -> Router:
    """The routers of a :class:`clusir.network.model.ClusIR` in eval mode, as a :data:`Router`."""
    import torch

    @torch.no_grad()
    def route(image: Array) -> tuple[Sequence[Array], Sequence[Array]]:
        device = next(model.parameters()).device
        output = model(torch.from_numpy(image).to(device))
        return [p.cpu().numpy() for p in output.posteriors], [g.cpu().numpy() for g in output.gates]

    return route


def label_clusters(
    model: Any, pictures: Iterable[Array], *, draws: int = 1, seed: int = 0
) -> tuple[tuple[str, ...], ...]:
    """Names for the clusters of each level of a :class:`clusir.network.model.ClusIR`: what ``ModelSpec.cluster_labels``
    holds."""
    return cluster_report(model_router(model), pictures, draws=draws, seed=seed).labels()


def _entropy(probability: Table) -> float:
    p = probability[probability > 0]
    return float(-(p * np.log(p)).sum())
