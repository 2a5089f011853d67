"""The card of a run: licences are counted, authors are named where their licence asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from clusir.network import checkpoint
from clusir.network.model import CONFIGS, ClusIR
from clusir.training.card import RunFacts, manifest_rows, needs_credit, write_card
from clusir.training.config import TrainConfig


@pytest.mark.parametrize(
    ("licence", "asks"),
    [
        ("CC-BY (figure caption)", True),
        ("CC BY-SA 4.0", True),
        ("CC0-1.0", False),
        ("public domain", False),
        ("", True),
    ],
)
def test_which_licences_ask_for_the_author(licence: str, asks: bool) -> None:
    assert needs_credit(licence) == asks


def test_the_card_counts_licences_and_names_authors(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    out.mkdir()
    (data / "MANIFEST.tsv").write_text(
        "path\tsource\tauthor_credit\tlicence\n"
        "a.jpg\tbook\tA. Uthor\tCC-BY\nb.jpg\tweb\tB\tCC0\nc.jpg\tbook\tC\tCC-BY\n",
        encoding="utf-8",
    )
    assert [row["path"] for row in manifest_rows(data)] == ["a.jpg", "b.jpg", "c.jpg"]
    checkpoint.save(ClusIR(CONFIGS["tiny"]), out / "ema.safetensors", {"cluster_labels": '[["noise", "haze"]]'})
    facts = RunFacts(12, 34.0, "float32", "cpu", 2, 1)
    card = write_card(out, data, out / "ema.safetensors", TrainConfig(steps=12), facts).read_text(encoding="utf-8")
    assert checkpoint.sha256(data / "MANIFEST.tsv") in card
    assert "| CC-BY | 2 |" in card
    assert "level 1: noise, haze" in card
    credit = (out / "ATTRIBUTION.tsv").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[:2] for line in credit[1:]] == [["a.jpg", "A. Uthor"], ["c.jpg", "C"]]
