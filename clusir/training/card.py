"""What a finished run says of its weights: ``MODEL_CARD.md`` and ``ATTRIBUTION.tsv`` beside them.

Where the folder of photos holds a ``MANIFEST.tsv`` (columns ``path``, ``source``, ``author_credit``, ``licence``), the
card counts its licences and names its hash, and every photo whose licence asks for its author's name is listed.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from clusir.markdown import table
from clusir.network.checkpoint import read_metadata, sha256
from clusir.training.config import TrainConfig
from clusir.training.curve import read_curve

__all__ = ["RunFacts", "manifest_rows", "needs_credit", "write_card"]

MANIFEST = "MANIFEST.tsv"


@dataclass(frozen=True)
class RunFacts:
    """What the loop knows at its end: steps, seconds of training, how it computed, photos of both splits, and the
    checkpoint that it started from (empty: random weights)."""

    steps: int
    seconds: float
    arithmetic: str
    device: str
    training_photos: int
    validation_photos: int
    start: str = ""


def manifest_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of the folder's manifest; none where it has none."""
    path = folder / MANIFEST
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: v or "" for k, v in row.items() if k} for row in csv.DictReader(file, delimiter="\t")]


def needs_credit(licence: str) -> bool:
    """Whether a licence asks for the author's name: everything but CC0 and the public domain."""
    plain = licence.lower()
    return not ("cc0" in plain or "public domain" in plain)


def write_card(out: Path, data: Path, weights: Path, config: TrainConfig, facts: RunFacts) -> Path:
    """Write the card and the attributions of the run in ``out``; returns the card's path."""
    rows = manifest_rows(data)
    credited = [row for row in rows if needs_credit(row.get("licence", ""))]
    if credited:
        lines = ["\t".join(("path", "author_credit", "licence", "source"))]
        lines += ["\t".join(row.get(k, "") for k in ("path", "author_credit", "licence", "source")) for row in credited]
        (out / "ATTRIBUTION.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    parts = [
        f"# {config.model}: weights of this run",
        f"ClusIR `{config.model}`, an independent implementation of the published description of ClusIR "
        f"(arXiv 2512.10948). File `{weights.name}`, sha256 `{sha256(weights)}`.",
        "## For catalogues",
        table(["", ""], _catalogue(rows, credited, facts)),
        "## Data",
        _data(data, rows, facts),
        "## Training",
        _training(config, facts),
        "## Quality on held-out photos",
        _quality(out),
        "## Evidence for haze and darkness",
        _evidence(out),
        "## What the clusters mean",
        _clusters(weights),
    ]
    card = out / "MODEL_CARD.md"
    card.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return card


def _catalogue(rows: list[dict[str, str]], credited: list[dict[str, str]], facts: RunFacts) -> list[list[str]]:
    data = f"free photos, {len(rows)} in the manifest; authors in ATTRIBUTION.tsv" if credited else "see Data"
    return [
        ["licence of the weights", "Apache-2.0, where the photos allow it"],
        ["training data", data],
        ["started from", facts.start or "random weights; no other model as start, teacher or target"],
        ["training code", "clusir-train (this project)"],
        ["paper", "arXiv 2512.10948 (the description that it follows; not the authors' code or weights)"],
        ["known limits", "synthetic degradations alone; strong blur is mended in part; see the tables"],
        ["conversion", "clusir-export --onnx OUT --checkpoint " + "ema.safetensors"],
    ]


def _data(data: Path, rows: list[dict[str, str]], facts: RunFacts) -> str:
    said = f"{facts.training_photos} pictures to train on, {facts.validation_photos} held out by their content's hash."
    if not rows:
        return f"{said} The folder holds no {MANIFEST}: sources and licences are not known here."
    # What stands in brackets behind a licence says where it is stated, of each photo.
    counts = Counter(re.split(r" [(<]", row.get("licence", ""))[0] for row in rows).most_common()
    return f"{said} Manifest: sha256 `{sha256(data / MANIFEST)}`, {len(rows)} photos.\n\n" + table(
        ["licence", "photos"], [[licence, str(count)] for licence, count in counts]
    )


def _training(config: TrainConfig, facts: RunFacts) -> str:
    hours = f"{facts.seconds / 3600:.2f} h"
    settings = json.dumps(asdict(config), sort_keys=True)
    return (
        f"{facts.steps} steps in {hours} on {facts.device} ({facts.arithmetic}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}), seed {config.seed}. Curve: `curve.svg`, log: `log.csv`.\n\n"
        f"```json\n{settings}\n```"
    )


def _quality(out: Path) -> str:
    log = out / "log.csv"
    if not log.is_file():
        return "Not measured."
    levels, gains = read_curve(log, "psnr/"), read_curve(log, "gain/")
    cells = [
        [name, f"{points[-1][1]:.2f}", f"{gains[name][-1][1]:+.2f}" if name in gains else ""]
        for name, points in levels.items()
    ]
    return table(["row", "dB", "gain dB"], cells) if cells else "Not measured."


def _evidence(out: Path) -> str:
    path = out / "evidence.json"
    if not path.is_file():
        return "This configuration gives none."
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    names = ("thresholds", "floors", "false_alarms", "found", "calibration_error")
    cells = [[family, *(f"{found[name][k]:.3f}" for name in names)] for k, family in enumerate(found["families"])]
    head = [
        "family",
        "threshold",
        "floor",
        "undamaged crops sure",
        "degraded ones",
        "calibration error",
    ]
    curves = [
        [family, *(f"{said:.2f}: {was:.2f} ({count})" for said, was, count in found["curves"][k])]
        for k, family in enumerate(found["families"])
    ]
    lines = "\n".join("* " + curve[0] + ": " + ", ".join(curve[1:]) for curve in curves)
    return (
        table(head, cells)
        + "\n\nReliability, said: was (crops):\n\n"
        + lines
        + _exposure(found.get("exposure"))
        + _trust(found.get("trust"))
        + _pilot(found.get("pilot"))
    )


def _exposure(found: dict[str, float] | None) -> str:
    if not found or not found["pictures"]:
        return ""
    return (
        f"\n\nOf {found['pictures']} held-out pictures in which haze or darkness is mended, one gain and shift of each "
        f"colour brings {found['plain']:.2f} dB to {found['corrected']:.2f} (the best for each: {found['best']:.2f})."
    )


def _trust(found: dict[str, float] | None) -> str:
    if not found or not found["pictures"]:
        return ""
    return (
        f"\n\nOf {found['pictures']} held-out pictures in which something is mended unasked, the share that is kept "
        f"brings {found['gain_kept']:+.2f} dB in the mean (all of it {found['gain_all']:+.2f}), and leaves "
        f"{found['worse_kept']:.1%} worse by over 0.1 dB (all of it {found['worse_all']:.1%})."
    )


def _pilot(found: dict[str, float] | None) -> str:
    if not found or not found["pictures"]:
        return ""
    return (
        f"\n\nOf {found['pictures']} held-out pictures on which the filter behind the network acts, the gain is "
        f"{found['gain_before']:+.2f} dB in the mean without it and {found['gain_after']:+.2f} with it; it makes "
        f"{found['worse']:.1%} worse by over 0.1 dB."
    )


def _clusters(weights: Path) -> str:
    levels = json.loads(read_metadata(weights).get("cluster_labels", "[]"))
    lines = [f"* level {number}: {', '.join(labels)}" for number, labels in enumerate(levels, 1)]
    return "\n".join(lines) or "They were not named."
