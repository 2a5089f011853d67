"""A hand on the wheel: what is asked for, what the router is told, and how far the result is blended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clusir.errors import UsageError
from clusir.runtimes.restore.permissions import asked_strength, hints, mended, steer
from clusir.runtimes.restore.restorer import Restorer
from clusir.spec import ModelSpec
from tests.golden.make.standin import write_standin

FAMILIES = {"noise": 0.0, "haze": 0.99, "low_light": 0.01}
SPEC = ModelSpec(families=tuple(FAMILIES), evidence_thresholds=tuple(FAMILIES.values()))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_standin(tmp_path_factory.mktemp("told"), families=FAMILIES)


@pytest.fixture(scope="module")
def untold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_standin(tmp_path_factory.mktemp("untold"))


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)


def restored(path: Path, picture: np.ndarray, **options: object) -> np.ndarray:
    with Restorer(path, **options) as restorer:  # type: ignore[arg-type]
        return restorer.restore(picture)


@pytest.mark.parametrize(
    ("fix", "strength", "permissions", "blend"),
    [
        (None, 1.0, [-1, -1, -1], 1.0),
        ("auto", 1.0, [-1, -1, -1], 1.0),
        ("all", 1.0, [1, 1, 1], 1.0),
        ("noise", 1.0, [1, 0, 0], 1.0),
        ("low-light, NOISE", 1.0, [1, 0, 1], 1.0),
        (["haze"], "0.5", [0, 1, 0], 0.5),
        (None, "noise=0.6", [-0.6, -1, -1], 1.0),
        ("all", "0.25,low-light=0", [1, 1, 0], 0.25),
        ("noise,haze", {"haze": 0.5, "": 0.75}, [1, 0.5, 0], 0.75),
    ],
)
def test_what_is_asked_for_becomes_permissions_and_a_blend(
    fix: object, strength: object, permissions: list[float], blend: float
) -> None:
    steering = steer(SPEC, fix, strength)  # type: ignore[arg-type]
    np.testing.assert_allclose(steering.permissions, permissions, atol=1e-7)
    assert steering.blend == blend
    assert steering.plain == (permissions == [-1, -1, -1])


@pytest.mark.parametrize(
    ("fix", "strength", "says"),
    [
        ("snow", 1.0, "no family 'snow'; clusir knows noise, haze, low-light"),
        ("noise,all", 1.0, "stand alone"),
        ("noise,,haze", 1.0, "name families"),
        ("", 1.0, "name families"),
        ([], 1.0, "name families"),
        (None, 1.5, "0 to 1"),
        (None, -0.1, "0 to 1"),
        (None, float("nan"), "0 to 1"),
        (None, "much", "0 to 1"),
        (None, "noise=2", "0 to 1"),
        (None, "=0.5", "names no family"),
        (None, "0.5,0.7", "twice"),
        (None, "noise=0.5,noise=0.7", "twice"),
        (None, "blur=0.5", "no family 'blur'"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(fix: object, strength: object, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        steer(SPEC, fix, strength)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_a_model_without_families_has_strength_alone(untold: Path, picture: np.ndarray) -> None:
    for fix in ("auto", "all", "noise"):
        with pytest.raises(UsageError, match="take no"):
            Restorer(untold, fix=fix)
    with pytest.raises(UsageError, match="noise="):
        Restorer(untold, strength="noise=0.5")
    assert (restored(untold, picture, strength=0) == picture).all()
    assert (restored(untold, picture, strength=0.3) != picture).any()


def test_a_model_that_enlarges_has_no_strength() -> None:
    large = ModelSpec(spec_version=2, scale=2)
    assert steer(large, None, 1.0).blend == 1.0
    with pytest.raises(UsageError, match="enlarges"):
        steer(large, None, 0.5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_strength_0_gives_back_what_went_in_and_half_the_mean(model: Path, channels: int, dtype: type) -> None:
    rng = np.random.default_rng(channels)
    picture = rng.random((70, 90, channels)).astype(np.float32)
    if dtype is not np.float32:
        picture = np.rint(picture * np.iinfo(dtype).max).astype(dtype)
    for alpha in ("keep", "process"):
        assert (restored(model, picture, strength=0.0, alpha=alpha) == picture).all()
        full, half = (restored(model, picture, strength=s, alpha=alpha) for s in (1, 0.5))
        level = 1.0 if dtype is not np.float32 else 1e-6
        assert np.abs(half.astype(np.float64) - (full.astype(np.float64) + picture) / 2).max() <= level
        assert (full != picture).any()
    if channels in (2, 4):
        assert (restored(model, picture, strength=0.0, alpha="drop") == picture[:, :, :-1]).all()


def test_the_router_does_what_it_is_told(model: Path, picture: np.ndarray) -> None:
    default, auto = restored(model, picture), restored(model, picture, fix="auto")
    assert (default == auto).all()
    both, alone = restored(model, picture, fix="noise,low-light"), restored(model, picture, fix="noise")
    assert (default == both).all()  # haze asks for 0.99 of evidence, low light for 0.01
    with Restorer(model) as restorer:
        _, work = restorer.restore_and_tell(picture)
    assert work.routing is not None
    assert 0.01 < work.routing.evidence[1:].min() <= work.routing.evidence[1:].max() < 0.99
    assert (alone != both).any()
    assert (restored(model, picture, fix="all") != both).any()
    assert (restored(model, picture, fix="all", strength="haze=0") == both).all()
    assert (restored(model, picture, strength="low-light=0") == alone).all()


def test_a_single_tile_is_told_too(model: Path, picture: np.ndarray) -> None:
    small = picture[:40, :40]
    assert (restored(model, small, fix="noise") != restored(model, small, fix="all")).any()
    with Restorer(model) as restorer:
        restorer.restore(small)
        assert restorer._sidecars is None  # the whole graph answers alone where nothing was asked for


def test_steering_needs_the_router(model: Path, tmp_path: Path, picture: np.ndarray) -> None:
    with pytest.raises(UsageError, match="routing shared"):
        Restorer(model, fix="noise", routing="tile")
    lonely = tmp_path / "lonely.onnx"
    lonely.write_bytes(model.read_bytes())
    with pytest.raises(UsageError, match=r"needs its .tile.onnx and .router.onnx"):
        Restorer(lonely, strength="noise=0.5")
    assert (restored(lonely, picture, strength=0) == picture).all()


def test_what_was_left_alone_is_mentioned(model: Path, picture: np.ndarray) -> None:
    evidence = np.array([0.9, 0.8, 0.2], np.float32)
    assert hints(evidence, steer(SPEC, None, 1).permissions, SPEC) == ["perhaps hazy: --fix haze"]
    assert hints(evidence, steer(SPEC, "haze", 1).permissions, SPEC) == ["perhaps noisy: --fix noise"]
    assert hints(evidence, steer(SPEC, "all", 1).permissions, SPEC) == []
    assert hints(None, steer(SPEC, None, 1).permissions, SPEC) == []
    np.testing.assert_allclose(mended(evidence, steer(SPEC, None, "low-light=0.5").permissions, SPEC), [1, 0, 0.5])
    for size in ((70, 90), (40, 40)):
        with Restorer(model) as restorer:
            _, work = restorer.restore_and_tell(picture[: size[0], : size[1]])
        assert work.routing is not None
        assert work.routing.evidence.shape == (3,)
        expected = hints(work.routing.evidence, restorer.steering.permissions, restorer.spec)
        assert work.hints == expected


def test_strengths_are_read() -> None:
    assert asked_strength("0.8, noise=0.6") == (0.8, {"noise": 0.6})
    assert asked_strength({"low-light": 1}) == (1.0, {"low_light": 1.0})


@pytest.fixture(scope="module")
def choosy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is never sure of anything."""
    return write_standin(tmp_path_factory.mktemp("choosy"), families=dict.fromkeys(FAMILIES, 1.0))


@pytest.mark.parametrize("routing", ["shared", "tile"])
@pytest.mark.parametrize(("height", "width"), [(70, 90), (30, 40)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_picture_without_evidence_comes_back_bit_for_bit(
    choosy: Path, routing: str, height: int, width: int, kind: type
) -> None:
    rng = np.random.default_rng(1)
    picture = rng.integers(0, np.iinfo(kind).max, (height, width, 4), kind, endpoint=True)
    with Restorer(choosy, routing=routing) as restorer:
        for pixels in (picture[..., :3], picture):
            found, work = restorer.restore_and_tell(pixels)
            np.testing.assert_array_equal(found, pixels)
            assert work.unchanged
    if routing == "shared":
        with Restorer(choosy, fix="noise") as restorer:
            found, work = restorer.restore_and_tell(picture[..., :3])
        assert not work.unchanged
        assert (found != picture[..., :3]).any()


def test_no_tile_is_run_where_nothing_is_to_be_mended(choosy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.random.default_rng(2).integers(0, 256, (100, 120, 3), np.uint8)
    with Restorer(choosy) as restorer:
        monkeypatch.setattr(restorer, "infer", None)
        _, work = restorer.restore_and_tell(picture)
    assert work.tiles == 0


def test_a_restored_alpha_channel_rests_by_its_own_evidence(model: Path, choosy: Path) -> None:
    picture = np.random.default_rng(3).integers(0, 256, (70, 90, 4), np.uint8)
    np.testing.assert_array_equal(restored(choosy, picture, alpha="process"), picture)
    assert (restored(model, picture, alpha="process") != picture).any(axis=(0, 1)).all()
