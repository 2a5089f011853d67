"""What a network pools over the picture, cut out of its graph: found in every form, counted right, shared by tiles."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pooled_networks as networks
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from clusir.calibration.balance import BalanceConfig
from clusir.cli.run import main as run
from clusir.errors import ModelFormatError, UsageError, ValidationError
from clusir.export import tiled
from clusir.export.adopt import Adoption, AdoptionConfig, adopt
from clusir.export.graph.session import Probe
from clusir.export.module import ModuleExport, export_module
from clusir.export.passes.simplify import SimplifyGraph
from clusir.export.pooling import Found, find_statistics, split_statistics
from clusir.export.pooling.axes import read_axes
from clusir.export.pooling.check import SplitRun, whole_window
from clusir.export.precision.run import PrecisionConfig
from clusir.export.subjects.tiles import TILING
from clusir.runtimes import Restorer, open_runner
from clusir.runtimes.restore.statistics import windows_along
from clusir.runtimes.runners.quiet import import_openvino
from clusir.spec import ModelSpec, SizeRequirements

Picture = NDArray[np.float32]
EXACT = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
MULTIPLES = {"InstanceNorms": 2, "Everywhere": 8}
POOLING = {
    "Squeeze": ["mean", "mean"],
    "Transposed": ["norm", "norm", "product"],
    "InstanceNorms": ["mean"] * 4,
    "GroupNorms": ["mean"] * 2,
    "SoftmaxPool": ["max", "sum", "product"],
    "Largest": ["mean", "max"],
}


def written(network: nn.Module, path: Path, shape: tuple[int, int, int, int] = (2, 3, 64, 64)) -> Path:
    """A network as torch's own exporter writes it, of any size and (for a batch of 2) any batch."""
    axes = {2: "height", 3: "width"} | ({0: "batch"} if shape[0] > 1 else {})
    torch.onnx.export(network, (torch.rand(shape),), str(path), input_names=["image"], output_names=["restored"],
                      dynamic_axes={"image": axes}, opset_version=18, dynamo=False)  # fmt: skip
    return path


@functools.cache
def graph_of(name: str) -> onnx.ModelProto:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = written(networks.seeded(getattr(networks, name)()), Path(folder) / "theirs.onnx")
        return SimplifyGraph().apply(onnx.load(path)).model


def found_in(name: str) -> Found:
    spec = ModelSpec(size=SizeRequirements(MULTIPLES.get(name, 1), 8))
    return find_statistics(graph_of(name), spec, batches=True)


@functools.cache
def natural(height: int, width: int, seed: int = 0) -> Picture:
    """A picture like a photo, HxWx3: a spectrum that falls as 1/f, a bright sky, objects of many sizes."""
    rng = np.random.default_rng(seed)
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    fall = 1 / np.maximum(np.hypot(y, x), 1.5 / max(height, width))

    def layer() -> NDArray[Any]:
        noise = rng.normal(size=fall.shape) + 1j * rng.normal(size=fall.shape)
        return np.fft.irfft2(noise * fall, s=(height, width))

    light = layer()
    picture = np.stack([2 * light + 0.5 * layer() for _ in range(3)], axis=-1)
    picture = 0.42 + 0.18 * (picture - picture.mean()) / picture.std()
    rows, columns = np.mgrid[:height, :width]
    picture[rows < 0.3 * height + 40 * np.sin(columns / 90)] += 0.25
    for _ in range(25):
        cy, cx, radius = rng.integers(height), rng.integers(width), rng.integers(20, 160)
        picture[(rows - cy) ** 2 + (columns - cx) ** 2 < radius**2] += rng.normal(0, 0.15, 3)
    return picture.clip(0, 1).astype(np.float32)


def psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(-10 * np.log10(max(float(np.mean((a.astype(np.float64) - b) ** 2)), 1e-20)))


@pytest.mark.parametrize("name", POOLING)
def test_reductions_are_found_and_cut(name: str) -> None:
    found = found_in(name)
    assert [statistic.kind for statistic in found.statistics] == POOLING[name]
    split = split_statistics(found)
    shared = SplitRun(split)
    whole = Probe(graph_of(name), threads=1)
    image = natural(96, 80).transpose(2, 0, 1)[None]
    expected = whole.run({"image": image})["restored"]
    statistics = shared.pool(image)
    np.testing.assert_allclose(shared.given(statistics)(image), expected, atol=1e-5)
    # Pooled in two windows at once it is what it was in one piece: each pixel counts once, in every step.
    feeds = whole_window(np.concatenate([image, image]), split.count)
    feeds["given"][0, 0] = 96 * 80
    feeds["weight"][0, :, :, 40:] = feeds["weight"][1, :, :, :40] = 0
    halves = Probe(split.statistics, threads=1).run(feeds)
    np.testing.assert_allclose(halves["statistics"], statistics, atol=2e-5 * np.abs(statistics[:, 1:]).max())
    assert halves["level"].max() == split.levels
    # Without the statistics of the whole, a part of the picture is answered as something else.
    part = np.ascontiguousarray(image[..., :40])
    alone = whole.run({"image": part})["restored"][..., :32]
    given = shared.given(statistics)(part)[..., :32]
    assert np.abs(given - expected[..., :32]).max() < 1e-5
    assert np.abs(alone - expected[..., :32]).max() > 1e-3


def test_what_lies_outside_the_mask_does_not_count() -> None:
    for name in POOLING:
        fault = SplitRun(split_statistics(found_in(name))).fault(
            lambda image, name=name: Probe(graph_of(name), threads=1).run({"image": image})["restored"],  # type: ignore[misc]
            12,
            ModelSpec(size=SizeRequirements(MULTIPLES.get(name, 1), 8)),
        )
        assert fault == "", name


def test_attention_between_pixels_is_no_statistic() -> None:
    found = found_in("Everywhere")
    assert found.statistics == ()
    assert any("compares every pixel with every other" in reason.why for reason in found.blocked)


def test_sizes_are_as_coarse_as_what_is_pooled_needs() -> None:
    padded = found_in("Padded")
    assert ([statistic.kind for statistic in padded.statistics], padded.blocked, padded.multiple) == (
        ["mean"] * 2,
        (),
        16,
    )
    image = natural(96, 80).transpose(2, 0, 1)[None]
    shared = SplitRun(split_statistics(padded))
    expected = Probe(graph_of("Padded"), threads=1).run({"image": image})["restored"]
    part = shared.given(shared.pool(image))(np.ascontiguousarray(image[..., :48]))[..., :32]
    np.testing.assert_allclose(part, expected[..., :32], atol=1e-5)


def test_a_map_with_a_border_is_a_part_of_no_picture() -> None:
    found = found_in("Bordered")
    assert (found.statistics, found.multiple, [reason.multiple for reason in found.blocked]) == ((), 1, [0])


class Counted(nn.Module):
    """A mean as a sum that is divided by a count, which the graph reads off the picture that it is given."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - 1)
        return x * (0.5 + total)


class Summed(nn.Module):
    """A sum that nothing divides."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-5 * x.sum((2, 3), keepdim=True)


@pytest.mark.parametrize("network", [Counted(), Summed()], ids=["divided by a count", "not divided"])
def test_sums_are_those_of_the_whole_picture(network: nn.Module, tmp_path: Path) -> None:
    written(network, tmp_path / "theirs.onnx")
    model = SimplifyGraph().apply(onnx.load(tmp_path / "theirs.onnx")).model
    shared = SplitRun(split_statistics(find_statistics(model, ModelSpec(size=SizeRequirements(1, 8)), batches=True)))
    image = natural(96, 80).transpose(2, 0, 1)[None]
    expected = network(torch.from_numpy(image)).numpy()
    part = np.ascontiguousarray(image[..., 16:56])
    np.testing.assert_allclose(shared.given(shared.pool(image))(part), expected[..., 16:56], atol=1e-5)


class Averaged(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (0.5 + x.mean((2, 3), keepdim=True))


def test_a_mean_of_many_equal_numbers_is_that_number(tmp_path: Path) -> None:
    """A picture of one colour: added one after the other, each of its numbers is rounded by as much."""
    written(Averaged(), tmp_path / "theirs.onnx")
    model = SimplifyGraph().apply(onnx.load(tmp_path / "theirs.onnx")).model
    split = split_statistics(find_statistics(model, ModelSpec(size=SizeRequirements(1, 8)), batches=True))
    image = np.full((1, 3, 512, 512), 0.37, np.float32)
    core = import_openvino().Core()
    compiled = core.compile_model(core.read_model(split.statistics.SerializeToString(), b""), "CPU", EXACT)
    for statistics in (SplitRun(split).pool(image), compiled(whole_window(image, split.count))["statistics"]):
        np.testing.assert_allclose(statistics[:, 1:], image[:, :, 0, 0], rtol=1e-5)


@pytest.mark.parametrize("length", [40, 256, 300, 700, 1100, 1501, 5000])
@pytest.mark.parametrize(("multiple", "halo"), [(1, 8), (8, 32), (16, 0)])
def test_windows(length: int, multiple: int, halo: int) -> None:
    """Exact windows cover every pixel once, at least a halo (less what they are aligned by) from their borders."""
    spec = ModelSpec(size=SizeRequirements(multiple, multiple), tile_px=256, halo_px=halo)
    padded = spec.size.padded(length)
    times = np.zeros(padded, int)
    for window in windows_along(length, spec, "exact"):
        times[window.start + window.first : window.start + window.last] += 1
        assert window.start % multiple == 0
        assert window.start + window.side <= padded
        assert window.first >= halo - max(8, multiple) or window.start == 0
        assert window.side - window.last >= halo - max(8, multiple) or window.start + window.side == padded
    assert (times == 1).all()
    sampled = windows_along(length, spec, "sampled")
    assert len(sampled) <= 5
    assert sampled[0].start == 0
    assert sampled[-1].start + sampled[-1].side == padded
    assert len({window.side for window in sampled}) == 1


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModuleExport | Adoption]:
    """Three networks with global statistics, and one of them by way of an ONNX file, compared on both runtimes."""
    folder = tmp_path_factory.mktemp("exported")
    made: dict[str, ModuleExport | Adoption] = {}
    source = written(networks.seeded(networks.Transposed()), folder / "theirs.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled, "_REACH_PX", 96)  # what the whole picture decides is seen in a small one
        for name in ("Squeeze", "Transposed", "InstanceNorms"):
            network = networks.seeded(getattr(networks, name)())
            made[name] = export_module(network, "1x3x64x64", folder / f"{name}.onnx", backends=("ort",))
        made["adopted"] = adopt(source, folder / "ours.onnx", AdoptionConfig())
    return made


@pytest.mark.parametrize("name", ["Squeeze", "Transposed", "InstanceNorms", "adopted"])
def test_a_photo_in_tiles_is_the_photo_at_once(name: str, exported: dict[str, ModuleExport | Adoption]) -> None:
    made = exported[name]
    picture = natural(600, 1500)  # more windows in a row than are sampled
    network = networks.seeded(getattr(networks, name if name != "adopted" else "Transposed")())
    with torch.no_grad():
        at_once = network(torch.from_numpy(picture.transpose(2, 0, 1)[None])).numpy()[0].transpose(1, 2, 0).clip(0, 1)
    assert made.spec.shares_statistics
    assert (made.spec.tile_px, made.spec.halo_px) == (256, 8)
    for statistics, bar in (("sampled", 55), ("exact", 80)):
        with Restorer(made.path, backend="ort", threads=1, statistics=statistics) as restorer:
            assert psnr(restorer.restore(picture), at_once) >= bar, statistics
    with Restorer(made.path, backend="ort", threads=1) as restorer:  # each tile with its own is what this replaces
        restorer.spec = ModelSpec(size=made.spec.size, tile_px=256, halo_px=8)
        assert psnr(restorer.restore(picture), at_once) < 55


def test_it_says_what_it_found(exported: dict[str, ModuleExport | Adoption]) -> None:
    made = exported["adopted"]
    assert isinstance(made, Adoption)
    assert made.reach.whole
    assert any(note.startswith("pools 97 numbers over the whole picture, in 2 steps") for note in made.notes)
    assert 0 < made.spec.tolerances[TILING] < 1e-3
    assert any(what.startswith("tile graph") for _, what, _ in made.agreements)
    assert {backend for backend, what, _ in made.agreements if "statistics" in what} == {"ort", "openvino"}


def test_the_command_restores_with_them(exported: dict[str, ModuleExport | Adoption], tmp_path: Path) -> None:
    picture = (natural(300, 420) * 255).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "in.png")
    path = exported["Squeeze"].path
    answers = {}
    for option in ([], ["--exact-statistics"]):
        out = tmp_path / f"out{len(option)}.png"
        done = CliRunner().invoke(run, [str(tmp_path / "in.png"), "-o", str(out), "--model", str(path), *option])
        assert done.exit_code == 0, done.output
        answers[len(option)] = np.asarray(Image.open(out))
    with Restorer(path, statistics="exact") as restorer:
        np.testing.assert_array_equal(restorer.restore(picture), answers[1])


def test_a_graph_that_takes_one_picture_at_a_time(tmp_path: Path) -> None:
    """Its windows are pooled one by one, level by level."""
    network = networks.seeded(networks.Squeeze())
    source = written(network, tmp_path / "theirs.onnx", (1, 3, 64, 64))
    made = adopt(source, tmp_path / "ours.onnx", AdoptionConfig(backends=("ort",)))
    assert made.spec.shares_statistics
    picture = natural(400, 560)
    with torch.no_grad():
        at_once = network(torch.from_numpy(picture.transpose(2, 0, 1)[None])).numpy()[0].transpose(1, 2, 0).clip(0, 1)
    for statistics, bar in (("sampled", 55), ("exact", 80)):
        with Restorer(made.path, backend="ort", threads=1, statistics=statistics) as restorer:
            assert psnr(restorer.restore(picture), at_once) >= bar


@pytest.mark.usefixtures("small_measures")
def test_fewer_bits_share_them_too(tmp_path: Path) -> None:
    """FP16 and INT8 of the tile graph, under the float32 statistics."""
    config = PrecisionConfig(
        precisions=("fp32", "fp16", "int8"), backends=("ort",), balance=BalanceConfig(size=8, pool=8),
        evaluation_crops=1, timing_runs=1,
    )  # fmt: skip
    network = networks.seeded(networks.Squeeze(24))
    made = export_module(network, "1x3x64x64", tmp_path / "m.onnx", backends=("ort",), precision=config)
    assert {"m.fp16.tile.onnx", "m.int8.tile.onnx", "m.statistics.onnx"} <= set(made.placed.files)
    picture = natural(300, 600)
    answers = {}
    for precision in ("fp32", "fp16", "int8"):
        with Restorer(made.path, precision=precision, backend="ort", threads=1) as restorer:
            answers[precision] = restorer.restore(picture)
    assert psnr(answers["fp16"], answers["fp32"]) >= 60
    assert 30 <= psnr(answers["int8"], answers["fp32"]) < 100


@pytest.mark.usefixtures("small_measures")
def test_where_they_cannot_be_shared_it_says_so(tmp_path: Path) -> None:
    made = export_module(networks.seeded(networks.Everywhere()), "1x3x64x64", tmp_path / "m.onnx", backends=("ort",))
    assert not made.spec.shares_statistics
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]
    assert any("tiles share no statistics: Softmax" in note for note in made.notes)
    assert any("the whole picture decides" in note for note in made.notes)
    assert made.spec.tolerances[TILING] > 1e-3


@pytest.mark.usefixtures("small_measures")
def test_a_tile_graph_that_is_off_leaves_the_whole_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole graph is right for any size: it is not given up for another size, or for one size only."""

    def off(*_: Any) -> Any:
        raise ValidationError("tile graph, 72x152, noise: differs by 0.00011")

    monkeypatch.setattr(tiled, "compare_sidecars", off)
    network = networks.seeded(networks.Squeeze())
    made = export_module(network, "1x3x64x64", tmp_path / "m.onnx", backends=("ort",))
    again = adopt(written(network, tmp_path / "theirs.onnx"), tmp_path / "a.onnx", AdoptionConfig(backends=("ort",)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "m.onnx", "theirs.onnx"]
    for each in (made, again):
        spec = open_runner(each.path, "ort", "cpu").spec
        assert (spec.graph, spec.shares_statistics, spec.size.static_px) == ("whole", False, 0)
        assert spec == each.spec
        assert spec.tolerances[TILING] > 1e-4, "what tiles cost that share nothing"
        assert any("differs by 0.00011" in note for note in each.notes)
        assert not any("its tiles share them" in note for note in each.notes)


def test_what_is_missing_or_does_nothing_is_named(exported: dict[str, ModuleExport | Adoption], tmp_path: Path) -> None:
    source = exported["Squeeze"].path
    (tmp_path / "alone.onnx").write_bytes(source.read_bytes())
    picture = np.zeros((64, 600, 3), np.uint8)
    with (
        Restorer(tmp_path / "alone.onnx") as restorer,
        pytest.raises(UsageError, match=r"alone\.tile\.onnx and its statistics graph"),
    ):
        restorer.restore(picture)
    for end in (".tile", ".statistics"):
        other = exported["Transposed"].path.with_name(f"Transposed{end}.onnx")
        (tmp_path / f"alone{end}.onnx").write_bytes(other.read_bytes())
    with Restorer(tmp_path / "alone.onnx") as restorer, pytest.raises(ModelFormatError, match="another checkpoint"):
        restorer.restore(picture)
    with pytest.raises(UsageError, match="exact statistics"):
        Restorer(statistics="exact")
    with pytest.raises(UsageError, match="statistics 'most' is not one of sampled, exact"):
        Restorer(statistics="most")


def test_what_is_pooled_is_found_without_computing_a_picture() -> None:
    """Large maps cost nothing: of a graph that opens and cannot compute, the shapes are known all the same."""
    half = onnx.numpy_helper.from_array(np.array([0.5], np.float32), "half")
    one = onnx.numpy_helper.from_array(np.array([1], np.int64), "one")
    nodes = [
        onnx.helper.make_node("ReduceSum", ["image"], ["sum"], keepdims=0),
        onnx.helper.make_node("Cast", ["sum"], ["index"], to=onnx.TensorProto.INT64),
        onnx.helper.make_node("Reshape", ["index", "one"], ["which"]),
        onnx.helper.make_node("Gather", ["half", "which"], ["chosen"]),  # of one number
        onnx.helper.make_node("Mul", ["image", "chosen"], ["restored"]),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["b", 3, "h", "w"])
        for name in ("image", "restored")
    ]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], [half, one])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    found = read_axes(model, ModelSpec(size=SizeRequirements(8, 8), channels=3), batches=True, multiple=8)
    assert found.varying("restored") == (2, 3)
    with pytest.raises(Exception, match="out of data bounds"):
        Probe(model).run({"image": np.ones((1, 3, 64, 64), np.float32)})
