"""Networks that take a mask, another map, or RGBA: exported, and tiled with what is beside the colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

from clusir.cli.export import main as export
from clusir.cli.run import main as run
from clusir.errors import ImageError, UsageError
from clusir.export.module import export_module, verify_module
from clusir.export.subjects.known import Painter, _described
from clusir.export.validate.feeds import bisection_feeds
from clusir.runtimes.restore.restorer import Restorer

Picture = NDArray[np.float32]
HEIGHT, WIDTH = 90, 130


class Fill(nn.Module):
    """Paints what ``holes`` marks, from what surrounds it and a mean of all that is not marked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.tail = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())

    def forward(self, image: Tensor, holes: Tensor) -> Tensor:
        seen = self.head(torch.cat([image * (1 - holes), holes], 1))
        painted = torch.sigmoid(self.tail(4 * seen * self.gate(20 * seen)))
        return image + holes * (painted - image)


class Soften(nn.Module):
    """A grey denoiser that is told how noisy each pixel is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Conv2d(2, 1, 5, padding=2)

    def forward(self, grey: Tensor, sigma: Tensor) -> Tensor:
        return grey + sigma * (self.body(torch.cat([grey, sigma], 1)) - grey)


def pictures(channels: int = 3) -> tuple[Picture, Picture]:
    rng = np.random.default_rng(0)
    mask = np.zeros((HEIGHT, WIDTH), np.float32)
    mask[10:50, 40:120] = 1
    return rng.random((HEIGHT, WIDTH, channels), dtype=np.float32), mask


@torch.no_grad()
def answer(network: nn.Module, picture: Picture, mask: Picture) -> Picture:
    image, given = torch.from_numpy(picture.transpose(2, 0, 1)[None]), torch.from_numpy(mask[None, None])
    made: Picture = network.eval()(image, given)[0].numpy().transpose(1, 2, 0)
    return made.clip(0, 1)


@pytest.fixture(scope="module")
def fill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fill") / "fill.onnx"
    made = export_module(Fill(), "1x3x48x48", path, maps={"holes": 0.0}, tile=64, halo=8)
    assert (made.spec.maps, made.spec.map_defaults, made.spec.channels) == (("holes",), (0.0,), 3)
    assert made.spec.spec_version == 3
    assert made.spec.statistics > 0
    return path


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_tiles_cut_the_map_with_the_picture(fill: Path, backend: str) -> None:
    picture, mask = pictures()
    options = {"statistics": "exact", "device": "cpu", "threads": 1}
    with Restorer(fill, backend, settings={"holes": mask}, **options) as restorer:  # type: ignore[arg-type]
        restorer.warm_up()
        made = restorer.restore(picture)
        again = restorer.restore(np.dstack([picture, mask]))  # alpha is kept, whatever the map
    np.testing.assert_allclose(made, answer(Fill(), picture, mask), atol=1e-5)
    np.testing.assert_array_equal(again, np.dstack([made, mask]))
    with Restorer(fill, backend, device="cpu") as restorer:  # nothing is to be painted
        np.testing.assert_allclose(restorer.restore(picture), picture, atol=1e-6)


def test_a_bisection_feeds_the_map(fill: Path) -> None:
    feeds = bisection_feeds(fill)
    assert feeds["image"].shape == (1, 4, 64, 64)
    assert set(np.unique(feeds["image"][:, 3])) == {0.0, 1.0}


def test_the_command_takes_a_picture_of_the_map(fill: Path, tmp_path: Path) -> None:
    picture, mask = pictures()
    levels = np.rint(picture * 255).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "photo.png")
    Image.fromarray(np.uint8(255 * mask)).convert("RGB").save(tmp_path / "mask.png")
    command = [tmp_path / "photo.png", "-o", tmp_path / "made.png", "--model", fill, "--exact-statistics"]
    done = CliRunner().invoke(run, [str(a) for a in (*command, "--set", f"holes={tmp_path / 'mask.png'}")])
    assert done.exit_code == 0, done.output
    wanted = answer(Fill(), levels / np.float32(255), mask) * 255
    assert np.abs(np.asarray(Image.open(tmp_path / "made.png")) - wanted).max() <= 0.51
    Image.fromarray(levels[:40]).save(tmp_path / "small.png")
    for holes, says, code in (
        (tmp_path / "small.png", f"is {WIDTH}x40 px, the picture {WIDTH}x{HEIGHT}", 1),
        (tmp_path / "none.png", "there is no file", 2),
        (1.5, "a map is 0..1", 2),
    ):
        refused = CliRunner().invoke(run, [str(a) for a in (*command, "--set", f"holes={holes}")])
        assert refused.exit_code == code, refused.output
        assert says in " ".join(refused.output.split())


def test_a_grey_network_with_a_number_for_each_pixel(tmp_path: Path) -> None:
    path = tmp_path / "soften.onnx"
    export_module(Soften(), "1x1x48x48", path, maps={"sigma": 0.25}, backends=("ort",), tile=64, halo=8)
    picture, mask = pictures(1)
    for settings, sigma in (({}, 0.25), ({"sigma": 0.5}, 0.5), ({"sigma": mask / 2}, mask / 2)):
        with Restorer(path, "ort", settings=settings) as restorer:  # type: ignore[arg-type]
            wanted = answer(Soften(), picture, np.broadcast_to(np.float32(sigma), mask.shape).copy())
            np.testing.assert_allclose(restorer.restore(picture), wanted, atol=1e-5)
    for settings in ({"sigma": mask[:9]}, {"sigma": "none.png"}):
        with Restorer(path, "ort", settings=settings) as restorer, pytest.raises(ImageError):  # type: ignore[arg-type]
            restorer.restore(picture)
    with pytest.raises(UsageError, match="no map of that name; it has sigma"):
        Restorer(path, "ort", settings={"mask": mask})


def test_options_of_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fillers.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def forward(self, image, mask):\n"
        "        return image + mask * (image.flip(1) - image)\n"
    )
    monkeypatch.chdir(tmp_path)
    command = ["--onnx", "out.onnx", "--module", "fillers:Net", "--input", "1x3x32x32", "--backends", "ort"]
    for more, says in (
        ([], "name what is a picture of the same size, such as a mask, with --map; for a number"),
        (["--map", "holes"], "--map holes: the model's forward takes image, mask"),
        (["--map", "mask=2"], "a map is filled with 0..1"),
        (["--map", "mask", "--input", "1x1x32x32", "--map", "more"], "1 at most"),
    ):
        refused = CliRunner().invoke(export, [*command, *more])
        assert says in " ".join(refused.output.split()), refused.output
        assert refused.exit_code in (2, 4)
    done = CliRunner().invoke(export, [*command, "--map", "mask"])
    assert done.exit_code == 0, done.output
    rows, _ = verify_module(tmp_path / "out.onnx", "fillers:Net", [(40, 56)], ["ort"])
    assert rows
    refused = CliRunner().invoke(run, ["fillers.py", "-o", "x.png", "--set", "mask"])
    assert "it is no setting" in refused.output


def theirs(folder: Path, nhwc: bool) -> Path:
    """Somebody else's graph, 0..255: a blur where the mask is 1; with a strength, a number."""
    kernel = np.full((3, 3, 3, 3), 1 / 27, np.float32)
    turn, back = {"perm": [0, 3, 1, 2]}, {"perm": [0, 2, 3, 1]}
    nodes = [
        helper.make_node("Transpose" if nhwc else "Identity", ["x"], ["image"], **(turn if nhwc else {})),
        helper.make_node("Transpose" if nhwc else "Identity", ["m"], ["mask"], **(turn if nhwc else {})),
        helper.make_node("Conv", ["image", "kernel"], ["blur"], pads=[1, 1, 1, 1]),
        helper.make_node("Sub", ["blur", "image"], ["change"]),
        helper.make_node("Mul", ["mask", "strength"], ["share"]),
        helper.make_node("Mul", ["change", "share"], ["part"]),
        helper.make_node("Add", ["image", "part"], ["made"]),
        helper.make_node("Transpose" if nhwc else "Identity", ["made"], ["y"], **(back if nhwc else {})),
    ]
    shapes = {"x": 3, "m": 1, "y": 3}
    ports = {
        name: helper.make_tensor_value_info(
            name, TensorProto.FLOAT, [1, None, None, channels] if nhwc else [1, channels, None, None]
        )
        for name, channels in shapes.items()
    }
    strength = helper.make_tensor_value_info("strength", TensorProto.FLOAT, [1])
    constants = [numpy_helper.from_array(kernel, "kernel")]
    graph = helper.make_graph(nodes, "theirs", [ports["x"], ports["m"], strength], [ports["y"]], constants)
    path = folder / "theirs.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.mark.parametrize("nhwc", [False, True])
def test_a_map_of_an_adopted_graph(tmp_path: Path, nhwc: bool) -> None:
    source, out = theirs(tmp_path, nhwc), tmp_path / "ours.onnx"
    command = ["--onnx", out, "--from", source, "--range", "0..255", "--set", "strength=0.5"]
    refused = CliRunner().invoke(export, [str(a) for a in command])
    assert "of a map a picture may be given: --map m" in " ".join(refused.output.split())
    wrong = CliRunner().invoke(export, [str(a) for a in (*command[:-2], "--set", "m=0", "--map", "strength")])
    assert "--map strength: strength float32 1 is no map (four axes, one channel, the picture's size)" in wrong.output
    done = CliRunner().invoke(export, [str(a) for a in (*command, "--map", "m=1", "--tile", "64", "--halo", "8")])
    assert done.exit_code == 0, done.output
    assert "takes m=1 where nobody gives a picture of it" in done.output
    picture, mask = pictures()
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)))
    blur = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1)).mean(axis=(2, 3, 4))[:, :, None]
    inside = (slice(9, -9), slice(9, -9))
    for settings, share in (({"m": mask, "strength": 0.75}, 0.75 * mask), ({}, np.full_like(mask, 0.5))):
        with Restorer(out, "ort", settings=settings) as restorer:  # type: ignore[arg-type]
            wanted = picture + share[:, :, None] * (blur - picture)
            np.testing.assert_allclose(restorer.restore(picture)[inside], wanted[inside], atol=1e-5)


def test_an_inpainting_network_of_spandrel_takes_a_mask() -> None:
    class Found:
        purpose, input_channels, output_channels = "Inpainting", 3, 3

        class architecture:
            name = "Fill"

        class size_requirements:
            minimum, multiple_of = 16, 8

        model = Fill()

    known = _described(Path("fill.pth"), Found())
    assert isinstance(known.network, Painter)
    assert dict(known.maps) == {"mask": 0.0}
    picture, mask = pictures()
    np.testing.assert_array_equal(answer(known.network, picture, mask), answer(Fill(), picture, mask))


class Opaque(nn.Module):
    """Restores RGBA: colours that follow alpha, and alpha itself where ``out`` is 4."""

    def __init__(self, out: int = 4) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Conv2d(4, out, 5, padding=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x[:, : self.body.out_channels] + 0.2 * self.body(x)]


def rgba_answer(picture: Picture, alpha: Picture) -> Picture:
    with torch.no_grad():
        made = Opaque().eval()(torch.from_numpy(np.dstack([picture, alpha]).transpose(2, 0, 1)[None]))[0]
    return made[0, :3].numpy().transpose(1, 2, 0).clip(0, 1)  # type: ignore[no-any-return]


def own_alpha(model: Path) -> None:
    """Alpha is the picture's own, 1 where it has none, or what is set; and it is kept."""
    picture = np.float32(0.25) + pictures()[0] / 2  # nothing is cut off, so that grey is the mean of the colours
    alpha = np.random.default_rng(5).random((HEIGHT, WIDTH), dtype=np.float32)
    one = np.ones_like(alpha)
    for backend in ("ort", "openvino"):
        with Restorer(model, backend, device="cpu", threads=1) as restorer:
            assert (restorer.spec.channels, restorer.spec.maps, restorer.spec.map_defaults) == (3, ("alpha",), (1.0,))
            made = restorer.restore(np.dstack([picture, alpha]))
            np.testing.assert_allclose(made[:, :, :3], rgba_answer(picture, alpha), atol=1e-5)
            np.testing.assert_array_equal(made[:, :, 3], alpha)
            np.testing.assert_allclose(restorer.restore(picture), rgba_answer(picture, one), atol=1e-5)
            grey = restorer.restore(np.dstack([picture[:, :, 0], alpha]))
            wanted = rgba_answer(np.repeat(picture[:, :, :1], 3, axis=2), alpha)
            np.testing.assert_allclose(grey[:, :, 0], wanted.mean(axis=2), atol=1e-5)
    with Restorer(model, "ort", settings={"alpha": 0.25}) as restorer:
        made = restorer.restore(np.dstack([picture, alpha]))
        np.testing.assert_allclose(made[:, :, :3], rgba_answer(picture, one / 4), atol=1e-5)
        np.testing.assert_array_equal(made[:, :, 3], alpha)


def test_a_module_of_rgba(tmp_path: Path) -> None:
    made = export_module(Opaque(), "1x4x48x48", tmp_path / "rgba.onnx", tile=64, halo=8)
    assert made.notes[0] == "takes a picture's own alpha, 1 where it has none: clusir-run --set alpha=FILE"
    own_alpha(tmp_path / "rgba.onnx")
    with pytest.raises(
        UsageError, match="--map mask: RGBA is taken as RGB with its alpha as a map, beside which there"
    ):
        export_module(Opaque(), "1x4x48x48", tmp_path / "more.onnx", maps={"mask": 0.0})


@pytest.mark.parametrize(("nhwc", "kind", "out"), [(False, "float32", 4), (True, "uint8", 4), (False, "float32", 3)])
def test_an_adopted_graph_of_rgba(tmp_path: Path, nhwc: bool, kind: str, out: int) -> None:
    """In 0..255; of bytes what both sides round."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [
        helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["image"], perm=[0, 3, 1, 2] if nhwc else [0, 1, 2, 3]),
        helper.make_node("Conv", ["image", "kernel", "bias"], ["change"], pads=[2, 2, 2, 2]),
        helper.make_node("Slice", ["image", "from", "to", "axis"], ["alpha"]),  # a name of their own
        helper.make_node("Add", ["alpha", "change"], ["made"]),
        helper.make_node("Clip", ["made", "low", "high"], ["within"]),
        helper.make_node("Round", ["within"], ["whole"]),
        helper.make_node("Cast", ["whole" if kind == "uint8" else "made"], ["turned"], to=element),
        helper.make_node("Transpose", ["turned"], ["y"], perm=[0, 2, 3, 1] if nhwc else [0, 1, 2, 3]),
    ]
    body = Opaque().body
    numbers = {"kernel": 0.2 * body.weight[:out], "bias": 51 * body.bias[:out], "low": torch.tensor(0.0),
               "high": torch.tensor(255.0), "from": torch.tensor([0]), "to": torch.tensor([out]),
               "axis": torch.tensor([1])}  # fmt: skip
    constants = [numpy_helper.from_array(value.detach().numpy(), name) for name, value in numbers.items()]
    ports = [
        helper.make_tensor_value_info(name, element, [1, None, None, n] if nhwc else [1, n, None, None])
        for name, n in (("x", 4), ("y", out))
    ]
    graph = helper.make_graph(nodes, "theirs", ports[:1], ports[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(tmp_path / "theirs.onnx"))
    command = ["--onnx", "ours.onnx", "--from", "theirs.onnx", "--range", "0..255", "--tile", "64", "--halo", "8"]
    done = CliRunner().invoke(export, [str(tmp_path / a) if a.endswith(".onnx") else a for a in command])
    assert done.exit_code == 0, done.output
    assert "takes a picture's own alpha" in done.output
    if kind == "float32":
        own_alpha(tmp_path / "ours.onnx")
        return
    picture, _ = pictures()
    levels = np.rint(255 * np.dstack([picture, picture[:, :, 0]])).astype(np.uint8)
    with Restorer(tmp_path / "ours.onnx", "ort") as restorer:
        made = restorer.restore(levels)
    wanted = 255 * rgba_answer(*np.split(levels / np.float32(255), [3], axis=2))
    assert np.abs(made[:, :, :3] - wanted).max() <= 0.51


@pytest.mark.parametrize("out", [3, 4])
def test_an_rgba_network_of_spandrel(out: int) -> None:
    class Found:
        purpose, input_channels, output_channels = "Restoration", 4, out

        class architecture:
            name = "Opaque"

        class size_requirements:
            minimum, multiple_of = 0, 1

        model = Opaque(out)

    known = _described(Path("opaque.pth"), Found())
    assert (known.shape[1], dict(known.maps)) == (3, {"alpha": 1.0})
