"""The quality table and the cluster report: protocol, figures, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from clusir.degrade.recipe import PRESETS, degrade
from clusir.errors import ImageError, UsageError
from clusir.quality.baselines import BASELINES, dehaze_dark_channel
from clusir.quality.clusters import cluster_report, label_clusters
from clusir.quality.evaluate import ROWS, QualityPlan, failures, list_pictures, make_recipe, quality_table
from clusir.quality.metrics import psnr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_photos) -> Path:
    return write_photos(tmp_path_factory.mktemp("eval"), 3, size=64)


def test_leaving_the_input_as_it_is_gains_nothing(folder: Path) -> None:
    table = quality_table(folder, lambda pixels: pixels)
    assert [row.name for row in table.rows] == list(ROWS)
    for row in table.rows:
        assert row.gain_db == 0
        assert row.ssim == row.input_ssim
        assert row.pictures == 3
    clean = next(row for row in table.rows if row.name == "clean")
    assert clean.psnr_db == 60
    assert clean.ssim == pytest.approx(1)


def test_the_degradation_is_clipped_eight_bit_noise_of_the_named_sigma(folder: Path) -> None:
    row = quality_table(folder, lambda pixels: pixels, QualityPlan(rows=("noise 25",))).rows[0]
    # 20 log10(255 / 25) = 20.17; clipping takes some of the noise away.
    assert 20.1 < row.input_psnr_db < 21.5


def test_a_restorer_that_knows_the_truth_is_seen_as_perfect_and_a_worse_one_fails(folder: Path) -> None:
    from clusir.quality.evaluate import read_picture

    truth = {read_picture(p).tobytes(): read_picture(p) for p in list_pictures(folder)}
    originals = list(truth.values())

    def oracle(pixels: np.ndarray) -> np.ndarray:
        return min(originals, key=lambda o: float(np.abs(o.astype(float) - pixels).mean()))

    best = quality_table(folder, oracle, QualityPlan(rows=("noise 15", "clean"), with_ssim=False))
    assert [row.psnr_db for row in best.rows] == [60, 60]
    assert list(failures(best)) == []
    worst = quality_table(folder, lambda pixels: 255 - pixels, QualityPlan(rows=("noise 15", "clean"), with_ssim=False))
    assert len(list(failures(worst))) == 2


def test_a_subset_is_degraded_as_in_the_whole_and_another_seed_is_not(folder: Path) -> None:
    seen: dict[int, list[bytes]] = {}
    for limit, seed in ((3, 0), (1, 0), (1, 1)):
        quality_table(
            folder, lambda pixels, key=limit * 10 + seed: seen.setdefault(key, []).append(pixels.tobytes()) or pixels,
            QualityPlan(rows=("rain heavy",), limit=limit, seed=seed, with_ssim=False),
        )  # fmt: skip
    assert seen[10][0] in seen[30]
    assert seen[11][0] not in seen[30]
    assert make_recipe("haze", 0, "a.png").steps != make_recipe("haze", 0, "b.png").steps


def test_the_table_reads_as_markdown_and_json(folder: Path) -> None:
    table = quality_table(folder, lambda p: p, QualityPlan(("noise 25", "jpeg 10"), 1, baselines=True), model="tiny")
    lines = table.to_markdown().splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert "(NLM)" in lines[2] or "(TV)" in lines[2]
    data = json.loads(json.dumps(table.to_dict()))
    assert data["model"] == "tiny"
    assert data["rows"][1]["gain_db"] == 0
    assert set(data["rows"][0]["baselines"]) == {"NLM", "TV"}


def test_progress_is_told_once_per_picture_and_row(folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    quality_table(
        folder,
        lambda p: p,
        QualityPlan(rows=("clean", "jpeg 40"), with_ssim=False),
        observe=lambda *step: told.append(step),
    )
    assert [done for _, done, _ in told] == [1, 2, 3, 4, 5, 6]
    assert {total for _, _, total in told} == {6}


def test_denoising_baselines_denoise_and_every_preset_but_clean_has_one() -> None:
    from skimage.data import astronaut

    image = astronaut()[60:188, 160:288].astype(np.float32) / 255
    assert set(BASELINES) == set(PRESETS) - {"clean"}
    for row in ("noise 25", "noise 15 + jpeg 30"):
        degraded = make_recipe(row, 0, "astronaut").apply(image)
        for name, run in BASELINES[row].items():
            assert psnr(np.clip(run(degraded), 0, 1), image) > psnr(degraded, image) + 0.5, (row, name)


def test_the_dark_channel_dehazer_takes_haze_away() -> None:
    from skimage.data import coffee

    image = coffee()[:256, 100:356].astype(np.float32) / 255
    hazy = degrade(image, "haze", 0.5, np.random.default_rng(0))
    assert psnr(np.clip(dehaze_dark_channel(hazy), 0, 1), image) > psnr(hazy, image) + 2


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda f: quality_table(f / "none", lambda p: p), UsageError, "is not a folder"),
        (
            lambda f: quality_table(f, lambda p: p, QualityPlan(rows=("fog",))),
            UsageError,
            "unknown degradation row 'fog'",
        ),
        (lambda f: quality_table(f, lambda p: p, QualityPlan(limit=0)), UsageError, "limit 0"),
        (lambda f: make_recipe("fog", 0, ""), UsageError, "fog"),
        (lambda f: cluster_report(lambda x: ([], []), []), UsageError, "no picture"),
    ],
)
def test_wrong_requests_are_refused(folder: Path, call, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call(folder)


def test_empty_folders_and_broken_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no picture"):
        quality_table(tmp_path, lambda p: p)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG not really")
    with pytest.raises(ImageError, match=r"broken\.png"):
        quality_table(tmp_path, lambda p: p)


def _pictures(count: int = 6) -> list[np.ndarray]:
    y, x = np.mgrid[:32, :32]
    return [
        (0.5 + 0.25 * np.sin(x / (3 + i)) * np.cos(y / (4 + i)))[..., None].repeat(3, 2).astype(np.float32)
        for i in range(count)
    ]


def _by_eye(image: np.ndarray):
    """A router for these pictures: brightness tells low light (0) and haze (1), fine structure tells noise (2)."""
    mean, rough = image.mean(), np.abs(np.diff(image, axis=3)).mean()
    cluster = 0 if mean < 0.4 else 1 if mean > 0.55 else 2 if rough > 0.07 else 3
    posterior = np.full((1, 5), 0.02, np.float32)
    posterior[0, cluster] = 0.92
    return [posterior], [np.eye(4, dtype=np.float32)[[cluster]]]


def test_a_router_that_separates_gets_purity_and_names() -> None:
    report = cluster_report(_by_eye, _pictures(), kinds=("low_light", "haze", "noise", "gaussian_blur"), draws=4)
    assert report.purity(0) > 0.75
    assert report.nmi(0) > 0.5
    names = report.labels()[0]
    assert names[0].endswith("low_light")
    assert names[1].endswith("haze")
    assert names[2].endswith("noise")
    assert names[4] == "unused"
    assert report.least_expert() > 0.03


def test_a_router_that_cannot_tell_gets_chance_and_no_name() -> None:
    blind = lambda image: ([np.full((1, 3), 1 / 3, np.float32)], [np.eye(4, dtype=np.float32)[[0]]])  # noqa: E731
    report = cluster_report(blind, _pictures(2), kinds=("noise", "jpeg", "rain", "haze"))
    assert report.purity(0) == pytest.approx(0.25)
    assert report.nmi(0) == pytest.approx(0, abs=1e-9)
    assert report.labels()[0] == ("mixed", "unused", "unused")
    assert report.least_expert() == 0


def test_families_weigh_alike_whatever_their_number_of_kinds() -> None:
    def noise_or_not(image: np.ndarray):
        rough = np.abs(np.diff(image, axis=3)).mean() > 0.06
        return [np.eye(2, dtype=np.float32)[[int(rough)]]], [np.eye(2, dtype=np.float32)[[0]]]

    kinds = ("gaussian_blur", "defocus_blur", "motion_blur", "noise")
    report = cluster_report(noise_or_not, _pictures(), kinds=kinds, draws=3)
    assert report.purity(0) > 0.8
    assert report.purity(0, by_family=False) < 0.6


def test_the_report_reads_as_json_markdown_and_svg() -> None:
    report = cluster_report(_by_eye, _pictures(2), kinds=("low_light", "haze", "noise"))
    data = json.loads(json.dumps(report.to_dict()))
    assert len(data["levels"][0]["labels"]) == 5
    assert report.to_markdown().count("\n") == 3
    root = ElementTree.fromstring(report.to_svg())
    assert sum(1 for _ in root.iter("{http://www.w3.org/2000/svg}rect")) == 3 * (5 + 4)


@pytest.mark.slow
def test_clusters_of_a_network_get_one_name_each() -> None:
    from clusir.network import checkpoint
    from clusir.network.model import CONFIGS

    model = checkpoint.random_model(CONFIGS["tiny"])
    labels = label_clusters(model, _pictures(1))
    assert tuple(map(len, labels)) == model.config.clusters
    assert all(label for level in labels for label in level)


def test_photos_are_read_as_clusir_run_reads_them(tmp_path: Path) -> None:
    from PIL import Image

    from clusir.quality.evaluate import read_picture

    Image.fromarray(np.linspace(0, 65535, 64 * 96, dtype=np.uint16).reshape(64, 96)).save(tmp_path / "deep.png")
    turned = Image.fromarray(np.zeros((64, 96, 3), np.uint8))
    exif = turned.getexif()
    exif[274] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert 100 < read_picture(tmp_path / "deep.png").mean() < 155  # not white
    assert read_picture(tmp_path / "turned.jpg").shape == (96, 64, 3)
