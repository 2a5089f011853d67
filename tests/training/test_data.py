"""Training data: the split, the crops, and batches as a pure function of their seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clusir.degrade.recipe import FAMILIES, FAMILY_NAMES, Recipe, Step, draw_step
from clusir.errors import ImageError, UsageError
from clusir.quality.metrics import psnr
from clusir.training.data import BatchPlan, PhotoSet, Prefetcher, draw_batch, draw_training_recipe, permitted
from clusir.training.drawn import draw_pictures


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, write_photos) -> PhotoSet:
    return PhotoSet(write_photos(tmp_path_factory.mktemp("photos"), 6))


def test_the_split_is_disjoint_complete_and_follows_content_not_names(tmp_path: Path, write_photos) -> None:
    folder = write_photos(tmp_path / "a", 40, size=70)
    train, validation = (PhotoSet(folder, split, validation_share=0.3) for split in ("train", "validation"))
    assert len(train) + len(validation) == 40
    assert not set(train.paths) & set(validation.paths)
    assert 4 <= len(validation) <= 22
    chosen = {path.name for path in validation.paths}
    renamed = tmp_path / "b"
    renamed.mkdir()
    for path in sorted(folder.iterdir()):
        (renamed / f"x_{path.name}").write_bytes(path.read_bytes())
    again = PhotoSet(renamed, "validation", validation_share=0.3)
    assert {path.name for path in again.paths} == {f"x_{name}" for name in chosen}


def test_the_same_seed_gives_the_same_bits_and_another_step_another_batch(photos: PhotoSet) -> None:
    plan = BatchPlan(8, 64, 1)
    first, again, other = (draw_batch(photos, plan, (0, step, 0)) for step in (5, 5, 6))
    assert torch.equal(first.degraded, again.degraded)
    assert torch.equal(first.clean, again.clean)
    assert first.names == again.names
    assert not torch.equal(first.clean, other.clean)


def test_quads_are_two_photos_times_two_recipes_of_different_families(photos: PhotoSet) -> None:
    for step in range(20):
        batch = draw_batch(photos, BatchPlan(10, 64, 2), (1, step))
        for start in (0, 4):
            recipe, photo = batch.recipe[start : start + 4], batch.photo[start : start + 4]
            assert recipe[0] == recipe[1] != recipe[2] == recipe[3]
            assert photo[0] == photo[2] != photo[1] == photo[3]
            assert batch.names[start] == batch.names[start + 1]
            families = [
                {FAMILIES[k] for k in name.split("+") if k in FAMILIES} for name in batch.names[start : start + 4]
            ]
            assert not families[0] & families[2]
        singles = batch.recipe[8:].tolist() + batch.photo[8:].tolist()
        assert len(set(batch.recipe.tolist())) == 6
        assert singles[0] != singles[1]


def test_degraded_and_clean_belong_together(photos: PhotoSet) -> None:
    batch = draw_batch(photos, BatchPlan(16, 64, 0), (2, 0))
    assert batch.degraded.shape == batch.clean.shape == (16, 3, 64, 64)
    assert batch.degraded.dtype == torch.float32
    assert float(batch.degraded.min()) >= 0
    assert float(batch.degraded.max()) <= 1
    for degraded, clean, name in zip(batch.degraded.numpy(), batch.clean.numpy(), batch.names, strict=True):
        if name in ("noise", "jpeg", "gaussian_blur", "poisson_gaussian"):
            assert psnr(degraded, clean) > 12


def test_every_family_and_the_undamaged_photo_get_a_fair_share() -> None:
    rng = np.random.default_rng(0)
    names = [draw_training_recipe(rng).name for _ in range(3000)]
    assert 0.02 < names.count("clean") / 3000 < 0.08
    for family in set(FAMILIES.values()):
        share = sum(any(FAMILIES.get(kind) == family for kind in name.split("+")) for name in names) / 3000
        assert share > 0.1, family


def test_recipes_have_as_many_kinds_as_the_plan_says(photos: PhotoSet) -> None:
    for counts, kinds in (((1.0,), {0}), ((0.0, 0.0, 1.0), {2}), ((0.0, 0.5, 0.0, 0.5), {1, 3})):
        batch = draw_batch(photos, BatchPlan(24, 64, 0, counts), (0, 0, 0))
        assert {0 if name == "clean" else name.count("+") + 1 for name in batch.names} == kinds


def test_the_aim_of_deblurring_keeps_all_degradation_but_blur(photos: PhotoSet) -> None:
    plan = BatchPlan(12, 64, 0, (0.0, 0.5, 0.5))
    weights = {"noise": 1.0, "motion_blur": 1.0}
    batch, whole = (draw_batch(photos, plan, (0, 0, 0), weights, undone) for undone in ("blur", None))
    assert torch.equal(batch.degraded, whole.degraded)
    for name, degraded, aim, clean in zip(batch.names, batch.degraded, batch.clean, whole.clean, strict=True):
        assert torch.equal(aim, degraded) == ("blur" not in name)
        assert torch.equal(aim, clean) == ("noise" not in name)
        if name == "motion_blur+noise":  # the very same noise
            spread = (aim - clean).flatten() - (aim - clean).mean()
            other = (degraded - clean).flatten() - (degraded - clean).mean()
            assert float((spread * other).sum() / spread.norm() / other.norm()) > 0.3


def test_severities_stay_within_the_range_of_their_kind() -> None:
    rng = np.random.default_rng(0)
    drawn = {"noise": [], "motion_blur": []}
    for _ in range(300):
        recipe = draw_training_recipe(rng, dict.fromkeys(drawn, 1.0), severities={"motion_blur": (0.2, 0.3)})
        for step in recipe.steps:
            drawn[step.kind].append(step.severity)
    assert 0.2 <= min(drawn["motion_blur"]) < 0.22
    assert 0.28 < max(drawn["motion_blur"]) <= 0.3
    assert min(drawn["noise"]) < 0.1
    assert max(drawn["noise"]) > 0.9


def test_a_photo_smaller_than_the_crop_is_mirrored(tmp_path: Path, write_photos) -> None:
    photos = PhotoSet(write_photos(tmp_path, 2, size=66))
    assert draw_batch(photos, BatchPlan(2, 96, 0), (0,)).clean.shape == (2, 3, 96, 96)


def test_the_prefetcher_hands_out_the_batch_of_the_step_that_was_asked_for(photos: PhotoSet) -> None:
    plan = BatchPlan(2, 64, 0)
    with Prefetcher(photos, seed=3) as prefetcher:
        for step in (4, 5, 6):
            prefetcher.ask(step, plan)
        late, early = prefetcher.get(6), prefetcher.get(4)
    assert torch.equal(early.clean, draw_batch(photos, plan, (3, 4, 0)).clean)
    assert torch.equal(late.clean, draw_batch(photos, plan, (3, 6, 0)).clean)


def test_worker_processes_draw_the_same_batches_and_report_errors(photos: PhotoSet) -> None:
    plan = BatchPlan(4, 64, 1)
    with Prefetcher(photos, seed=3, workers=2) as prefetcher:
        for step in (4, 5):
            prefetcher.ask(step, plan)
        prefetcher.ask(6, BatchPlan(1, -64, 0))
        for step in (5, 4):
            drawn, expected = prefetcher.get(step), draw_batch(photos, plan, (3, step, 0))
            for name in ("degraded", "clean", "recipe", "photo"):
                assert torch.equal(getattr(drawn, name), getattr(expected, name)), name
            assert drawn.names == expected.names
        with pytest.raises(Exception, match=r"."):
            prefetcher.get(6)


def test_an_error_in_the_loader_thread_reaches_the_training(photos: PhotoSet) -> None:
    with Prefetcher(photos, seed=0, weights={"noise": 1.0, "snow": 1.0}) as good:
        good.ask(0, BatchPlan(1, 64, 0))
        good.get(0)  # unknown kinds are not drawn
    with Prefetcher(photos, seed=0) as prefetcher:
        prefetcher.ask(0, BatchPlan(1, -64, 0))
        with pytest.raises(Exception, match=r"."):
            prefetcher.get(0)


def test_bad_folders_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        PhotoSet(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no photo"):
        PhotoSet(tmp_path / "empty")
    (tmp_path / "empty" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match=r"broken\.png"):
        PhotoSet(tmp_path / "empty")


def test_what_may_not_be_mended_stays_in_the_target(photos: PhotoSet) -> None:
    crop = photos.draw_crop(0, 64, np.random.default_rng(0))
    recipe = Recipe((draw_step("haze", 0.5, np.random.default_rng(0)), Step("noise", {"sigma": 20.0})), 3)
    degraded = recipe.apply(crop)

    def may(**families: float) -> np.ndarray:
        return np.array([families.get(family, 0.0) for family in FAMILY_NAMES], np.float32)

    assert np.array_equal(permitted(recipe, crop, may()), degraded)
    assert np.array_equal(permitted(recipe, crop, may(noise=1.0, haze=1.0)), crop)
    assert np.array_equal(permitted(recipe, crop, may(noise=1.0)), recipe.apply(crop, ["haze"]))
    half = permitted(recipe, crop, may(noise=0.5))
    assert np.allclose(half, (degraded + recipe.apply(crop, ["haze"])) / 2, atol=1e-6)


def test_permissions_are_drawn_outside_quads_alone(photos: PhotoSet) -> None:
    batch = draw_batch(photos, BatchPlan(12, 32, 1, restricted=1.0), (0, 0, 0))
    assert batch.permissions.shape == (12, len(FAMILY_NAMES))
    for name, may in zip(batch.names[:4], batch.permissions[:4], strict=True):  # what is there may be mended
        present = {FAMILIES[kind] for kind in name.split("+") if kind in FAMILIES}
        assert all(p == 1 for family, p in zip(FAMILY_NAMES, may, strict=True) if family in present)
    assert torch.equal(batch.permissions[0], batch.permissions[1])  # one recipe, one permission
    seen = [draw_batch(photos, BatchPlan(4, 32, 1, restricted=1.0), (1, step)).permissions for step in range(12)]
    assert any((p == 0).any() for p in seen)  # as it is unasked: hardly anything that is not there
    assert any((p == 1).all() for p in seen)
    assert (batch.permissions[4:] != 1).any(dim=1).float().mean() > 0.7
    assert ((batch.permissions >= 0) & (batch.permissions <= 1)).all()
    free = draw_batch(photos, BatchPlan(12, 32, 1), (0, 0, 0))
    assert (free.permissions == 1).all()


def test_soft_and_slightly_noisy_pictures_are_their_own_target(photos: PhotoSet) -> None:
    batch = draw_batch(photos, BatchPlan(8, 48, 0, (1.0,), as_taken=1.0), (0, 0, 0))
    assert set(batch.names) == {"clean"}
    assert torch.equal(batch.degraded, batch.clean)


def test_a_camera_sees_softer_pictures_than_shrunk_photos_are(photos: PhotoSet) -> None:
    def fine(share: float) -> float:
        plan = BatchPlan(8, 48, 0, (0.0, 1.0), {"camera_noise": (0.0, 0.1)}, as_taken=share)
        batches = [draw_batch(photos, plan, (0, step, 0), {"camera_noise": 1.0}) for step in range(3)]
        assert all("camera_noise" in name for batch in batches for name in batch.names)
        return float(torch.stack([batch.clean.diff(dim=3).square().mean() for batch in batches]).mean())

    assert fine(1.0) < 0.8 * fine(0.0)


def test_drawn_pictures_are_the_same_each_time_and_join_the_photos(tmp_path: Path, write_photos) -> None:
    first, again = draw_pictures(4), draw_pictures(4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    page, wall = (picture.std(axis=(0, 1)).max() for picture in first[:2])
    assert page > 25 > wall
    folder = write_photos(tmp_path, 3, size=64)
    assert len(PhotoSet(folder, drawn=2)) == len(PhotoSet(folder)) + 2


def test_photos_are_read_as_every_command_reads_them(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 96, dtype=np.uint16).reshape(64, 96)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    turned = Image.fromarray(np.zeros((64, 96, 3), np.uint8))
    exif = turned.getexif()
    exif[274] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    read = PhotoSet(tmp_path)
    photos = {path.stem: photo for path, photo in zip(read.paths, read.photos, strict=True)}
    assert 100 < photos["deep"].mean() < 155  # not white
    assert photos["turned"].shape == (96, 64, 3)
