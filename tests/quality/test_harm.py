"""Do no harm, and peers on the same pixels: the tables count what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clusir.errors import UsageError
from clusir.quality import peers
from clusir.quality.harm import HarmTable, contact_sheet, failures, harm_table
from clusir.quality.peers import peer_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for index in range(4):
        picture = rng.integers(40, 200, (40 + 8 * index, 64, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / f"photo{index}.png")
    return tmp_path


def test_a_restorer_that_does_nothing_does_no_harm(folder: Path) -> None:
    found = harm_table(folder, lambda picture: picture)
    assert (found.harmless, found.moved, found.quantile(0)) == (4, 0, 60.0)
    assert not list(failures(found))


def test_one_picture_that_is_spoilt_is_found_at_the_top(folder: Path) -> None:
    def restore(picture: np.ndarray) -> np.ndarray:
        return picture if picture.shape[0] != 48 else (picture + np.uint8([0, 20, 0])).astype(np.uint8)

    found = harm_table(folder, restore, model="test")
    assert found.rows[0].name == "photo1.png"
    assert found.rows[0].shift == pytest.approx(20.0, abs=1e-6)
    assert found.rows[0].psnr_db == pytest.approx(20 * np.log10(255 / (20 / 3**0.5)), abs=0.01)
    assert (found.harmless, found.moved) == (3, 1)
    assert len(list(failures(found))) == 3
    text = found.to_markdown()
    assert "3 of 4 at 38 dB" in text
    assert "photo1.png" in text
    assert found.to_dict()["moved"] == 1
    sheet = contact_sheet(found, restore, rows=2)
    assert sheet.size == (640, 48 + 40) or sheet.size[0] == 640


def test_nan_counts_as_harm() -> None:
    from clusir.quality.harm import HarmRow

    found = HarmTable("", "", (HarmRow("a", float("nan"), float("nan")),))
    assert (found.harmless, found.moved) == (0, 1)
    assert len(list(failures(found))) == 3


def test_peers_see_the_same_pixels_and_missing_ones_are_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    told: list[float] = []

    def told_sigma(noisy: np.ndarray, sigma: float) -> np.ndarray:
        seen.append(noisy)
        told.append(sigma)
        return noisy

    monkeypatch.setattr(peers, "PEERS", {"there": ("json", told_sigma), "gone": ("no_such_module", told_sigma)})
    ours: list[np.ndarray] = []
    lines: list[str] = []
    found = peer_table(
        folder,
        {"ours": lambda picture: (ours.append(picture), picture)[1]},
        rows=["noise 25", "camera sigma 5"],
        limit=2,
        observe=lines.append,
    )
    assert found.missing == ("gone",)
    assert any("gone is left out" in line for line in lines)
    assert all(np.array_equal(a, b) for a, b in zip(seen, ours, strict=True))
    assert told[0] == pytest.approx(25, rel=0.1)
    assert found.rows[0].psnr_db["ours"] == pytest.approx(found.rows[0].input_db)
    assert found.rows[0].worst_gain_db["there"] == pytest.approx(0.0)
    assert "CPU s a megapixel" in found.to_markdown()


def test_real_pairs_and_their_mistakes(folder: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs"
    for side, shift in (("noisy", 3), ("clean", 0)):
        (pairs / side).mkdir(parents=True)
        for path in folder.glob("*.png"):
            picture = np.asarray(Image.open(path))
            Image.fromarray((picture + np.uint8(shift)).astype(np.uint8)).save(pairs / side / path.name)
    found = peer_table(pairs, {"ours": lambda picture: picture - np.uint8(3)}, limit=3)
    assert [row.name for row in found.rows] == [peers.PAIRS]
    assert found.rows[0].psnr_db["ours"] == 60.0
    (pairs / "clean" / "photo0.png").unlink()
    with pytest.raises(UsageError, match=r"holds no photo0.png"):
        peer_table(pairs, {})
    with pytest.raises(UsageError, match="unknown noise 'snow'"):
        peer_table(folder, {}, rows=["snow"])
