import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clusir.calibration.base import CalibrationSource
from clusir.calibration.manifest import Manifest, replay, write_manifest
from clusir.calibration.photos import built_in_photos
from clusir.calibration.sources import (
    CLEAN,
    MIXTURE,
    FolderSource,
    PairSource,
    SyntheticSource,
    hold_out,
    open_source,
)
from clusir.degrade.recipe import KINDS
from clusir.errors import CalibrationError


def write_photo(path: Path, size: tuple[int, int] = (80, 96), seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(3):
        write_photo(tmp_path / "photos" / f"{index}.png", seed=index)
    return tmp_path / "photos"


def test_built_in_photos_are_there_without_a_folder() -> None:
    source = open_source(None, 64)
    assert isinstance(source, SyntheticSource)
    assert isinstance(source, CalibrationSource)
    names = {photo.name for photo in built_in_photos(256).photos}
    assert {"astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"} <= names


def test_synthetic_samples_cycle_through_every_degradation(folder: Path) -> None:
    source = open_source(folder, 48)
    kinds = [source.sample(index).degradation for index in range(len(source.degradations))]
    assert tuple(kinds) == source.degradations == (*KINDS, MIXTURE, CLEAN)
    for index, kind in enumerate(kinds):
        sample = source.sample(index)
        assert sample.image.shape == (1, 3, 48, 48)
        assert sample.image.dtype == np.float32
        assert sample.clean is not None
        assert 0.0 <= sample.image.min() <= sample.image.max() <= 1.0
        assert np.array_equal(sample.image, sample.clean) == (kind == CLEAN)


def test_a_few_crops_of_a_kind_hold_its_severest_and_a_mild_one(folder: Path) -> None:
    """A quantiser clips what is more severe than all it has seen."""
    source = open_source(folder, 48)
    turn = len(source.degradations)
    found = [float(source.sample(index).key.rsplit(":", 1)[1]) for index in range(0, 8 * turn, turn)]
    assert (found[0], min(found[:2]) < 0.5) == (1.0, True)
    assert min(found) >= 0.1
    assert np.diff(np.sort(found)).max() < 0.2


def test_a_sample_depends_on_seed_and_index_alone(folder: Path) -> None:
    first, second = open_source(folder, 48, seed=5), open_source(folder, 48, seed=5)
    second.sample(3)
    assert first.sample(7).sha256 == second.sample(7).sha256
    assert first.sample(7).sha256 != first.sample(18).sha256
    assert first.sample(7).sha256 != open_source(folder, 48, seed=6).sample(7).sha256


def test_pairs_crop_both_pictures_at_the_same_place(tmp_path: Path) -> None:
    write_photo(tmp_path / "clean" / "haze" / "a.png")
    truth = np.asarray(Image.open(tmp_path / "clean" / "haze" / "a.png"))
    (tmp_path / "degraded" / "haze").mkdir(parents=True)
    Image.fromarray(truth // 2).save(tmp_path / "degraded" / "haze" / "a.png")
    source = open_source(tmp_path, 32)
    assert isinstance(source, PairSource)
    sample = source.sample(4)
    assert sample.degradation == "haze"
    assert sample.clean is not None
    assert np.array_equal(np.round(sample.image * 255), np.round(sample.clean * 255) // 2)


def test_pairs_refuse_a_missing_partner_and_another_size(tmp_path: Path) -> None:
    write_photo(tmp_path / "degraded" / "a.png")
    write_photo(tmp_path / "clean" / "b.png")
    with pytest.raises(CalibrationError, match=r"a\.png has no partner a\.\*"):
        open_source(tmp_path, 32)
    write_photo(tmp_path / "clean" / "a.png", size=(64, 64))
    with pytest.raises(CalibrationError, match=r"96x80 px and its partner .* 64x64"):
        open_source(tmp_path, 32)


def test_pictures_as_they_are_are_labelled_by_their_folder(tmp_path: Path) -> None:
    write_photo(tmp_path / "rain" / "a.png")
    write_photo(tmp_path / "b.png", seed=1)
    source = open_source(tmp_path, 32, mode="as-is")
    assert isinstance(source, FolderSource)
    assert source.degradations == ("folder", "rain")
    assert source.sample(0).clean is None


def test_folder_errors_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="does not exist"):
        open_source(tmp_path / "nowhere", 32)
    with pytest.raises(CalibrationError, match="holds no pictures"):
        open_source(tmp_path, 32)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    with pytest.raises(CalibrationError, match=r"broken\.png: unreadable"):
        open_source(tmp_path, 32)
    write_photo(tmp_path / "small.png", size=(20, 200))
    with pytest.raises(CalibrationError, match=r"1 more.*at least 32x32 px"):
        open_source(tmp_path, 32)
    write_photo(tmp_path / "good.png")
    source = open_source(tmp_path, 32)
    assert isinstance(source, SyntheticSource)
    assert [photo.name for photo in source.photos.photos] == ["good.png"]
    assert source.photos.skipped == (
        "broken.png: unreadable (UnidentifiedImageError)",
        "small.png: 200x20 px is smaller than the 32 px crop",
    )


def test_modes_that_cannot_be_are_refused(folder: Path) -> None:
    with pytest.raises(CalibrationError, match="needs a folder"):
        open_source(None, 32, mode="pairs")
    with pytest.raises(CalibrationError, match="not one of auto, synthetic"):
        open_source(folder, 32, mode="magic")
    with pytest.raises(CalibrationError, match="does not hold the folders of a set of pairs"):
        open_source(folder, 32, mode="pairs")


def test_manifest_replays_the_same_pixels_and_refuses_others(folder: Path, tmp_path: Path) -> None:
    source = open_source(folder, 48, seed=2)
    samples = [source.sample(index) for index in (1, 4, 9)]
    path = tmp_path / "calibration.json"
    write_manifest(Manifest.of(source, samples), path)
    manifest = Manifest.read(path)
    assert manifest.sha256 == json.loads(path.read_text())["sha256"] == Manifest.of(source, samples).sha256
    again = replay(manifest, open_source(folder, 48, seed=2))
    assert [s.sha256 for s in again] == [s.sha256 for s in samples]
    with pytest.raises(CalibrationError, match="differs from the manifest's in 'seed'"):
        replay(manifest, open_source(folder, 48, seed=3))
    altered = Manifest(manifest.source, ((1, "k", "0" * 64), *manifest.samples[1:]))
    with pytest.raises(CalibrationError, match="crop k has other pixels"):
        replay(altered, source)
    write_photo(folder / "0.png", seed=99)
    with pytest.raises(CalibrationError, match="differs from the manifest's in 'photos'"):
        replay(manifest, open_source(folder, 48, seed=2))


def test_a_broken_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    for text in (
        "",
        "[]",
        '{"format": 2, "samples": [], "source": {}}',
        '{"format": 1, "samples": [[1]], "source": {}}',
    ):
        path.write_text(text)
        with pytest.raises(CalibrationError, match="is not a calibration manifest"):
            Manifest.read(path)


def photos_of(source: CalibrationSource | None) -> set[str]:
    assert isinstance(source, (SyntheticSource, PairSource))
    truths = source.clean if isinstance(source, PairSource) else source.photos
    return {photo.sha256 for photo in truths.photos}


@pytest.mark.parametrize("count", [2, 3, 9])
def test_photos_that_are_held_out_give_no_calibration_crop(tmp_path: Path, count: int) -> None:
    for index in range(count):
        write_photo(tmp_path / f"{index}.png", seed=index)
    (tmp_path / "again.png").write_bytes((tmp_path / "1.png").read_bytes())
    source = open_source(tmp_path, 48)
    kept, held = hold_out(source)
    assert not photos_of(kept) & photos_of(held)
    assert photos_of(kept) | photos_of(held) == photos_of(source)
    assert len(photos_of(held)) == 1 + (count - 1) // 5
    assert held is not None
    assert kept.sample(0).clean is not None


def test_pairs_are_held_out_by_their_clean_picture(tmp_path: Path) -> None:
    for index, name in enumerate(("a", "b", "c")):
        for kind in ("rain", "haze"):
            write_photo(tmp_path / "clean" / kind / f"{name}.png", seed=index)
            write_photo(tmp_path / "degraded" / kind / f"{name}.png", seed=10 + index)
    kept, held = hold_out(open_source(tmp_path, 48))
    assert not photos_of(kept) & photos_of(held)
    assert isinstance(held, PairSource)
    assert [p.name for p in held.degraded.photos] == [p.name for p in held.clean.photos]
    assert held.degradations == kept.degradations == ("haze", "rain")


def test_a_source_of_one_photo_or_without_truth_has_none_to_hold_out(folder: Path, tmp_path: Path) -> None:
    write_photo(tmp_path / "one" / "a.png")
    for source in (open_source(tmp_path / "one", 48), open_source(folder, 48, mode="as-is")):
        assert hold_out(source) == (source, None)


def test_degraded_pictures_without_their_partners_are_not_taken_for_clean_ones(tmp_path: Path) -> None:
    for name in ("degraded", "claen"):
        write_photo(tmp_path / name / "a.png")
    with pytest.raises(CalibrationError, match=r"degraded is there, but not its partner .*clean"):
        open_source(tmp_path, 32)
    assert isinstance(open_source(tmp_path, 32, mode="synthetic"), SyntheticSource)
