"""Restorer: identity stays bit-exact, tiles agree with the whole, routing is shared, memory is bounded."""

from __future__ import annotations

import itertools
from pathlib import Path

import models
import numpy as np
import pytest
import skimage.data
from PIL import Image

from clusir.errors import ClusirError, ImageError, ModelFormatError, UsageError
from clusir.runtimes.restore.restorer import ArraySource, Restorer, Work
from clusir.runtimes.restore.tiling import plan_picture
from tests.golden.make.standin import write_standin


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_identity(tmp_path_factory.mktemp("identity") / "model.onnx")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (17, 23), (64, 64), (65, 64), (130, 217)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_identity_model_returns_the_picture(identity: Path, size: tuple[int, int], channels: int, dtype: type) -> None:
    top = np.iinfo(dtype).max
    pixels = np.random.default_rng(1).integers(0, top, (*size, channels), dtype, endpoint=True)
    for alpha in ("keep", "process"):
        with Restorer(identity, backend="ort", device="cpu", threads=1, alpha=alpha, batch=3) as restorer:
            np.testing.assert_array_equal(restorer.restore(pixels), pixels)
    with Restorer(identity, alpha="drop") as restorer:
        expected = pixels[:, :, : channels - 1] if channels in (2, 4) else pixels
        np.testing.assert_array_equal(restorer.restore(pixels), expected)


def test_floats_and_flat_grey(identity: Path) -> None:
    with Restorer(identity) as restorer:
        flat = np.random.default_rng(0).random((70, 80), dtype=np.float32)
        restored = restorer.restore(flat)
        assert restored.shape == flat.shape
        assert restored.dtype == np.float32
        np.testing.assert_allclose(restored, flat, atol=1e-6)
        for bad in (np.full((4, 4, 3), np.nan), np.full((4, 4, 3), 1.5), np.zeros((4, 4, 3), np.int32)):
            with pytest.raises(ImageError):
                restorer.restore(bad)
        for shape in ((0, 4, 3), (4, 4, 5), (4,)):
            with pytest.raises(ImageError):
                restorer.restore(np.zeros(shape, np.uint8))


def test_rounding_happens_once_at_the_end(tmp_path: Path) -> None:
    with Restorer(models.save_identity(tmp_path / "m.onnx", scale=0.5)) as restorer:
        pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
        expected = np.rint(pixels.astype(np.float32) / np.float32(255) * np.float32(0.5) * np.float32(255))
        np.testing.assert_array_equal(restorer.restore(pixels), expected.astype(np.uint8))
    with Restorer(models.save_identity(tmp_path / "m2.onnx", scale=2.0)) as restorer:
        assert restorer.restore(np.full((8, 8, 3), 200, np.uint8)).max() == 255  # clipped, not wrapped


def gradients_at_seams(picture: np.ndarray, starts: tuple[int, ...]) -> float:
    """Mean absolute gradient along x across the ramps' middles, over that elsewhere."""
    gradient = np.abs(np.diff(picture.astype(np.float64), axis=1)).mean(axis=(0, 2))
    seams = [(a + b + 64) // 2 + d for a, b in itertools.pairwise(starts) for d in range(-4, 4)]
    mask = np.zeros(len(gradient), bool)
    mask[seams] = True
    return float(gradient[mask].mean() / gradient[~mask].mean())


@pytest.mark.parametrize("routing", ["shared", "tile"])
def test_tiles_equal_the_whole_where_the_model_is_local(tmp_path: Path, routing: str) -> None:
    """The 5x5 blur sees 2 pixels, the halo is 8: with one routing, tiles and one piece agree but for rounding."""
    path = models.save_bundle(tmp_path)
    whole = models.save_bundle(tmp_path / "one", tile=512, halo=8)
    photo = skimage.data.astronaut()[:300, :410]
    with Restorer(path, routing=routing) as restorer, Restorer(whole, routing=routing) as one_piece:
        tiled = restorer.restore(photo.astype(np.float32) / 510)
        piece = one_piece.restore(photo.astype(np.float32) / 510)
        starts = plan_picture(300, 410, restorer.spec).x.starts
    difference = np.abs(tiled - piece)[8:-8, 8:-8]
    difference = difference - np.median(difference)  # another sample of tiles is another constant shift
    if routing == "shared":
        assert np.abs(difference).max() < 1e-5
        assert abs(gradients_at_seams(tiled[:, :400], starts) / gradients_at_seams(piece[:, :400], starts) - 1) < 0.001
    else:
        assert np.abs(difference).max() > 0.01  # the model's level follows each tile: the fixture can tell them apart


def test_shared_routing_feeds_every_tile_the_same(bundle: Path) -> None:
    pixels = np.zeros((200, 200, 3), np.float32)
    pixels[:, 100:] = 0.5
    with Restorer(bundle) as restorer:
        assert restorer.routing == "shared"
        restored, work = restorer.restore_and_tell(pixels)
        assert work.routing is not None
        assert work.routing.shared
        assert work.tiles == 16
        level = np.concatenate([work.routing.posterior, work.routing.gate]).mean()
    # Far from the step the blur changes nothing, so what was added is the routing's level, left and right alike.
    np.testing.assert_allclose(restored[50, 20], level, atol=1e-6)
    np.testing.assert_allclose(restored[50, 180], 0.5 + level, atol=1e-6)
    with Restorer(bundle, routing="tile") as restorer:
        restored, work = restorer.restore_and_tell(pixels)
        assert work.routing is not None
        assert not work.routing.shared
    assert abs((restored[50, 180] - restored[50, 20]).mean() - 0.5) > 0.05


def test_one_tile_opens_no_sidecar(bundle: Path) -> None:
    with Restorer(bundle) as restorer:
        _, work = restorer.restore_and_tell(np.zeros((40, 64, 3), np.uint8))
        assert restorer._sidecars is None
        assert work.routing is not None
        assert work.routing.shared


def test_openvino_and_ort_restore_alike(bundle: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 128, (100, 150, 3), np.uint8)
    with Restorer(bundle, backend="ort") as a, Restorer(bundle, backend="openvino") as b:
        assert np.abs(a.restore(pixels).astype(int) - b.restore(pixels)).max() <= 1


def test_a_model_that_returns_nan_or_another_size_is_an_error(tmp_path: Path) -> None:
    with (
        Restorer(models.save_identity(tmp_path / "m.onnx", scale=float("nan"))) as restorer,
        pytest.raises(ClusirError, match="NaN"),
    ):
        restorer.restore(np.zeros((8, 8, 3), np.uint8))


def test_model_files(tmp_path: Path, bundle: Path) -> None:
    import shutil
    import zipfile

    with pytest.raises(UsageError, match="no such file"):
        Restorer(tmp_path / "missing.onnx")
    with pytest.raises(UsageError, match=r"no model\.onnx"):
        Restorer(tmp_path)
    with pytest.raises(UsageError, match=r"model\.int8\.onnx"):
        Restorer(bundle, precision="int8")
    alone = Path(shutil.copy(bundle, tmp_path / "alone.onnx"))
    with Restorer(alone) as restorer:
        assert restorer.routing == "tile"
    with pytest.raises(UsageError, match="routing shared"):
        Restorer(alone, routing="shared")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for name in ("model.onnx", "model.tile.onnx", "model.router.onnx"):
            archive.write(bundle.parent / name, f"inner/{name}")
    with Restorer(tmp_path / "b.zip") as a, Restorer(bundle.parent) as b:
        assert a.files.sha256() == b.files.sha256()
        assert a.routing == "shared"
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../escape.onnx", b"x")
    with pytest.raises(ModelFormatError, match="leaves the bundle"):
        Restorer(tmp_path / "evil.zip")
    shutil.copy(bundle, tmp_path / "x.int8.onnx")
    shutil.copy(bundle, tmp_path / "x.onnx")
    with Restorer(tmp_path / "x.onnx", precision="int8") as restorer:
        assert restorer.files.whole.name == "x.int8.onnx"


def test_sidecars_of_another_checkpoint_are_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    path = models.save_bundle(tmp_path)
    models.save_tile(tmp_path / "model.tile.onnx", replace(models.spec("tile"), checkpoint_sha256="other"))
    with Restorer(path) as restorer, pytest.raises(ModelFormatError, match="another checkpoint"):
        restorer.restore(np.zeros((100, 100, 3), np.uint8))


def test_streaming_reads_forward_and_holds_one_band(identity: Path) -> None:
    class Endless(ArraySource):
        """3000 rows that exist only while they are asked for."""

        def __init__(self) -> None:
            self.height, self.width, self.channels, self.asked = 3000, 40, 3, []

        def rows(self, start: int, stop: int) -> np.ndarray:
            self.asked.append((start, stop))
            return np.broadcast_to(
                (np.arange(start, stop) % 256).astype(np.uint8)[:, None, None], (stop - start, 40, 3)
            )

    source, work = Endless(), Work()
    with Restorer(identity) as restorer:
        bands = list(restorer.stream(source, work))
    assert max(b.shape[0] for b in bands) <= 64
    np.testing.assert_array_equal(np.concatenate(bands)[:, 0, 0], (np.arange(3000) % 256).astype(np.uint8))
    assert [a for a, _ in source.asked] == [0, *[b for _, b in source.asked][:-1]]
    assert work.tiles == len(plan_picture(3000, 40, models.spec()).y.starts)


class Recorded(Restorer):
    """Notes what each graph is given."""

    def _timed(self, runner, feeds, work):  # type: ignore[no-untyped-def]
        self.fed = [*getattr(self, "fed", []), (runner.spec.graph, feeds)]
        return super()._timed(runner, feeds, work)


def test_every_graph_sees_the_models_value_range_under_the_models_name(tmp_path: Path) -> None:
    path = write_standin(tmp_path, value_range=(-1.0, 3.0), names=("pixels", "better"))
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[:, 50:] = 255
    with Recorded(path, backend="ort", device="cpu") as restorer:
        restored = restorer.restore(pixels)
        restorer.restore(pixels[:40, 30:70])
        fed = restorer.fed
    assert {graph for graph, _ in fed} == {"router", "tile", "whole"}
    for graph in ("router", "tile", "whole"):
        given = [feeds["pixels"] for name, feeds in fed if name == graph]
        assert min(array.min() for array in given) == -1
        assert max(array.max() for array in given) == 3
    assert np.abs(restored.astype(int) - pixels).max() < 60  # and back: a residual around the picture itself


def test_an_identity_in_another_value_range_returns_the_picture(tmp_path: Path) -> None:
    from dataclasses import replace

    path = models.save_identity(tmp_path / "m.onnx", model_spec=replace(models.spec(), value_range=(-2.0, 2.0)))
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    with Restorer(path) as restorer:
        np.testing.assert_array_equal(restorer.restore(pixels), pixels)


def test_alpha_is_routed_by_itself_however_many_tiles(tmp_path: Path) -> None:
    path = write_standin(tmp_path)
    rng = np.random.default_rng(3)
    for side in (40, 130):
        pixels = rng.integers(0, 256, (side, side, 4), np.uint8)
        pixels[..., 3] = np.linspace(0, 255, side)[None]
        with Restorer(path, alpha="process") as restorer:
            restored, work = restorer.restore_and_tell(pixels)
            alone, told = restorer.restore_and_tell(pixels[..., 3])
            colours, seen = restorer.restore_and_tell(pixels[..., :3])
        np.testing.assert_array_equal(restored[..., 3], alone)
        np.testing.assert_array_equal(restored[..., :3], colours)
        assert work.routing is not None
        assert seen.routing is not None
        assert told.routing is not None
        np.testing.assert_array_equal(work.routing.posterior, seen.routing.posterior)
        assert np.abs(told.routing.posterior - seen.routing.posterior).max() > 1e-3


def test_alpha_of_floats_is_held_to_its_range(identity: Path) -> None:
    for wrong in (np.nan, 2.0, -1.0):
        pixels = np.full((10, 10, 4), 0.5, np.float32)
        pixels[5, 5, 3] = wrong
        for mode in ("keep", "process"):
            with Restorer(identity, alpha=mode) as restorer, pytest.raises(ImageError):
                restorer.restore(pixels)


def test_alpha_is_scaled_with_the_type(identity: Path) -> None:
    pixels = np.arange(4 * 4 * 2, dtype=np.uint16).reshape(4, 4, 2) * 2111
    with Restorer(identity) as restorer:
        made = np.concatenate(list(restorer.stream(ArraySource(pixels), dtype=np.dtype(np.uint8))))
    np.testing.assert_array_equal(made, np.rint(pixels / 257).astype(np.uint8))
    assert not np.array_equal(made, pixels >> 8)


@pytest.mark.parametrize("output", ["restored", "posterior", "gate", "expert_probability", "statistics"])
@pytest.mark.parametrize("size", [40, 130])
def test_nan_of_any_output_is_an_error(tmp_path: Path, output: str, size: int) -> None:
    path = write_standin(tmp_path, spoilt=output)
    pixels = np.zeros((size, size, 3), np.uint8)
    one_graph = size == 40 and output in ("expert_probability", "statistics")
    with Restorer(path, backend="ort", device="cpu") as restorer:
        if one_graph or (size == 130 and output == "gate"):  # not an output of what runs
            restorer.restore(pixels)
            return
        with pytest.raises(ClusirError, match="NaN"):
            restorer.restore(pixels)


def test_a_model_of_one_channel_takes_grey_pictures_only(tmp_path: Path) -> None:
    from dataclasses import replace

    path = models.save_identity(tmp_path / "m.onnx", model_spec=replace(models.spec(), channels=1))
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 2), np.uint8)
    with Restorer(path) as restorer:
        np.testing.assert_array_equal(restorer.restore(pixels), pixels)
        np.testing.assert_array_equal(restorer.restore(pixels[..., 0]), pixels[..., 0])
        with pytest.raises(ImageError, match="grey"):
            restorer.restore(np.zeros((8, 8, 3), np.uint8))


def test_in_fewer_bits_one_tile_takes_the_graphs_of_many(bundle: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    for graph, save in (("whole", models.save_whole), ("tile", models.save_tile)):
        part = "" if graph == "whole" else f".{graph}"
        save(tmp_path / f"model.int8{part}.onnx", replace(models.spec(graph), precision="int8"))
    models.save_router(tmp_path / "model.router.onnx")
    with Recorded(tmp_path / "model.int8.onnx") as restorer:
        restorer.restore(np.zeros((40, 64, 3), np.uint8))
        assert [graph for graph, _ in restorer.fed] == ["router", "tile"]


def test_sidecars_run_where_the_whole_graph_runs(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clusir.runtimes.restore import restorer as module

    asked: list[str] = []
    original = module.open_runner

    def noted(path: Path, **options):  # type: ignore[no-untyped-def]
        asked.append(options["device"])
        return original(path, **options)

    monkeypatch.setattr(module, "open_runner", noted)
    with Restorer(bundle, backend="ort", device="auto") as restorer:
        assert restorer.name == "ort:cpu"
        restorer.restore(np.zeros((100, 100, 3), np.uint8))
    assert asked == ["cpu", "cpu"]


@pytest.mark.parametrize(
    "change", [{"value_range": (-1.0, 1.0)}, {"input_name": "x"}, {"top_k": 2}, {"experts": (4, 3)}, {"tile_px": 48}]
)
def test_sidecars_of_another_form_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    from dataclasses import replace

    path = models.save_bundle(tmp_path, static=False)
    other = replace(models.spec("router", static=False), **change)  # type: ignore[arg-type]
    models.save_router(tmp_path / "model.router.onnx", other)
    with Restorer(path) as restorer, pytest.raises(ModelFormatError, match=r"router\.onnx"):
        restorer.restore(np.zeros((100, 100, 3), np.uint8))


def photo_file(path: Path) -> np.ndarray:
    """A photo on its side with a profile and EXIF, and its upright pixels."""
    from PIL import ImageCms

    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3)).astype(np.uint8)
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(path, exif=exif, icc_profile=icc, dpi=(300, 200))
    return pixels.transpose(1, 0, 2)[:, ::-1]


def test_files_and_pillow_images_are_restored_upright(tmp_path: Path) -> None:
    upright = photo_file(tmp_path / "a.png")
    with Restorer(models.save_identity(tmp_path / "m.onnx")) as restorer:
        for given in (tmp_path / "a.png", str(tmp_path / "a.png")):
            np.testing.assert_array_equal(restorer.restore(given), upright)
        with Image.open(tmp_path / "a.png") as image:
            made = restorer.restore(image)
        np.testing.assert_array_equal(np.asarray(made), upright)
        assert made.info["icc_profile"]
        found = Image.Exif()
        found.load(made.info["exif"])
        assert (found.get(0x010F), found.get(0x0112, 1)) == ("maker", 1)
        info = restorer.restore_file(tmp_path / "a.png", tmp_path / "b.tif")
        assert info.icc
        with Image.open(tmp_path / "b.tif") as image:
            np.testing.assert_array_equal(np.asarray(image), upright)
            assert [round(float(d)) for d in image.info["dpi"]] == [200, 300]
            assert image.getexif()[0x010F] == "maker"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "F"])
def test_pillow_modes(tmp_path: Path, mode: str) -> None:
    grey = np.linspace(0, 1, 600).reshape(20, 30)
    image = Image.fromarray((grey * 65535).astype(np.uint16)) if mode == "I;16" else Image.fromarray(np.float32(grey))
    if mode not in ("I;16", "F"):
        image = Image.fromarray((grey * 255).astype(np.uint8)).convert(mode)
    with Restorer(models.save_identity(tmp_path / "m.onnx")) as restorer:
        made = restorer.restore(image)
    assert made.mode == {"1": "L", "P": "RGB"}.get(mode, mode)
    want = image.convert(made.mode) if made.mode != mode else image
    assert np.abs(np.asarray(made).astype(float) - np.asarray(want)).max() <= 1e-6


@pytest.mark.parametrize("given", [None, 3, b"bytes", [[1, 2]], Image.new("CMYK", (4, 4)), Image.new("HSV", (4, 4))])
def test_what_is_no_picture_is_said(tmp_path: Path, given: object) -> None:
    with Restorer(models.save_identity(tmp_path / "m.onnx")) as restorer, pytest.raises(ImageError):
        restorer.restore(given)
