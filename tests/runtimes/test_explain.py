"""--explain and --compare: levels, labels, bars; two pictures in one file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.text import Text

from clusir.errors import ImageError, ModelFormatError, UsageError
from clusir.runtimes.images.thumbnails import data_uri, eight_bit, most_changed, shrunk
from clusir.runtimes.report.compare import write_comparison
from clusir.runtimes.restore.explain import account, explain_lines, routing_levels, summary
from clusir.spec import ModelSpec

LABELS = (("noise", "jpeg", "noise"), ("noise", "[b]"))
SPEC = ModelSpec(clusters=(3, 2), experts=(2, 2), cluster_labels=LABELS)
POSTERIOR = np.array([0.5, 0.2, 0.3, 0.9, 0.1])
GATE = np.array([0.0, 0.7, 0.4, 0.0])


def test_levels_are_cut_where_the_spec_says() -> None:
    first, second = routing_levels(POSTERIOR[None], GATE, SPEC)
    assert first.labels == ("noise", "jpeg", "noise")
    assert first.posterior == (0.5, 0.2, 0.3)
    assert second.posterior == (0.9, 0.1)
    assert (first.gate, second.gate) == ((0.0, 0.7), (0.4, 0.0))
    assert (first.number, second.number) == (1, 2)


def test_clusters_of_one_label_count_together_and_levels_equally() -> None:
    told = account(POSTERIOR, GATE, SPEC)
    shares = dict(told.recognised)
    assert shares == pytest.approx({"noise": (0.8 + 0.9) / 2, "jpeg": 0.1, "[b]": 0.05})
    assert summary(told, least=0.08) == "noise 0.85, jpeg 0.10"


def test_unnamed_clusters_speak_for_the_deepest_level_alone() -> None:
    spec = ModelSpec(clusters=(3, 2), experts=(2, 2))
    assert account(POSTERIOR, GATE, spec).recognised == (("cluster 0", 0.9), ("cluster 1", 0.1))


def test_lines_name_damage_experts_and_show_bars() -> None:
    lines = [Text.from_markup(line).plain for line in explain_lines(POSTERIOR, GATE, SPEC, width=8)]
    assert lines[0] == "recognised: noise 0.85, jpeg 0.10, [b] 0.05"
    assert any(line.startswith("level 1") and "████" in line and line.endswith("0.50") for line in lines)
    assert any("expert 1" in line and line.endswith("0.70") for line in lines)
    assert not any("expert 0" in line and "0.70" in line for line in lines)
    assert sum("expert" in line for line in lines) == 2  # one ran at each level
    assert any("[b]" in line for line in lines[1:])  # labels come from a file: they are text, not markup


def test_a_model_without_routing_says_so() -> None:
    assert "no routing" in explain_lines([], [], ModelSpec())[0]


def test_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelFormatError, match="names 5 values"):
        routing_levels(POSTERIOR[:4], GATE, SPEC)
    with pytest.raises(ModelFormatError, match="gate"):
        routing_levels(POSTERIOR, np.zeros((2, 4)), SPEC)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (np.full((2, 3), 65535, np.uint16), 255),
        (np.full((2, 3, 1), 0.5, np.float32), 128),
        (np.full((2, 3, 3), np.nan, np.float32), 0),
        (np.full((2, 3, 4), 200, np.uint8) * np.array([1, 1, 1, 0], np.uint8), 128),  # transparent: mid-grey
        (np.dstack([np.full((2, 3), 90), np.full((2, 3), 255)]).astype(np.uint8), 90),
    ],
)
def test_any_picture_becomes_eight_bit_rgb(picture: np.ndarray, expected: int) -> None:
    shown = eight_bit(picture)
    assert shown.shape == (2, 3, 3)
    assert shown.dtype == np.uint8
    assert set(shown.reshape(-1)) == {expected}


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(ImageError, match="shape"):
        eight_bit(np.zeros((2, 3, 5), np.uint8))
    with pytest.raises(ImageError, match="dtype int64"):
        eight_bit(np.zeros((2, 3), np.int64))


def test_pictures_shrink_but_never_grow() -> None:
    assert shrunk(np.zeros((10, 2000, 3), np.uint8), 500).shape == (2, 500, 3)
    assert shrunk(np.zeros((1, 5000, 3), np.uint8), 500).shape == (1, 500, 3)
    assert shrunk(np.zeros((10, 20, 3), np.uint8), 500).shape == (10, 20, 3)


def test_the_part_that_changed_most_is_found() -> None:
    before = np.zeros((400, 700, 3), np.uint8)
    after = before.copy()
    after[300:340, 600:640] = 255
    rows, cols = most_changed(before, after, 100)
    assert rows.start <= 300
    assert rows.stop >= 340
    assert cols.start <= 600
    assert cols.stop >= 640
    assert (rows.stop - rows.start, cols.stop - cols.start) == (100, 100)


def test_data_address_holds_the_picture() -> None:
    import base64
    import io

    text = data_uri(np.full((5, 7, 3), 99, np.uint8))
    with Image.open(io.BytesIO(base64.b64decode(text.removeprefix("data:image/webp;base64,")))) as image:
        assert image.size == (7, 5)


@pytest.mark.parametrize(("size", "expected"), [((20, 30), (68, 20)), ((10, 50), (50, 28))])
def test_comparison_stands_side_by_side_or_stacked(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    before, after = np.zeros((*size, 3), np.uint8), np.full((*size,), 65535, np.uint16)
    path = write_comparison(before, after, tmp_path / "new" / "c.png")
    with Image.open(path) as image:
        assert image.size == expected
        assert image.getpixel((0, 0)) == (0, 0, 0)
        assert image.getpixel((expected[0] - 1, expected[1] - 1)) == (255, 255, 255)
    assert [p.name for p in path.parent.iterdir()] == ["c.png"]


def test_comparison_refuses_what_does_not_fit(tmp_path: Path) -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(UsageError, match=r"\.txt"):
        write_comparison(picture, picture, tmp_path / "c.txt")
    with pytest.raises(ImageError, match="one size"):
        write_comparison(picture, picture[:2], tmp_path / "c.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match="cannot be written"):
        write_comparison(picture, picture, tmp_path / "file" / "c.png")


def test_families_are_named_where_there_is_evidence_of_them() -> None:
    spec = replace(SPEC, families=("noise", "haze", "low_light"), evidence_thresholds=(0.1, 0.9, 0.9))
    for evidence, says in (
        ((0.2, 0.01, 0.97), "low light 0.97, noise 0.20"),
        ((0.04, 0.01, 0.0), "nothing"),
        ((0.5, 0.5, 0.05), "noise 0.50, haze 0.50, low light 0.05"),
    ):
        lines = explain_lines(POSTERIOR, GATE, spec, evidence=np.array(evidence, np.float32))
        assert lines[0] == f"recognised: [bold]{says}[/bold]"
