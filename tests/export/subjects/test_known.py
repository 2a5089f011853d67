"""Weights of published architectures: read without running code, recognised, exported; what nobody knows is refused."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from clusir.cli.export import main
from clusir.errors import BackendError, ModelFormatError, UnsupportedModelError, UsageError
from clusir.export.module import export_module
from clusir.export.subjects.known import _described, called, for_any_number, load_known
from clusir.runtimes import open_runner
from tests import needs


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def zoo() -> Any:
    """spandrel; the test is skipped where it is not installed."""
    if importlib.util.find_spec("spandrel") is None:
        needs.skip("zoo")
    import spandrel

    return spandrel


class Harmful:
    """Unpickled, it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin"])
def test_nothing_in_a_file_is_run(tmp_path: Path, suffix: str) -> None:
    path, made = tmp_path / f"theirs{suffix}", tmp_path / "made"
    torch.save({"weight": torch.zeros(3), "more": Harmful(made)}, path)
    with pytest.raises(ModelFormatError, match=r"more than weights.*nothing in it was run"):
        load_known(path)
    assert not made.exists()


def test_torchscript_and_rubbish_are_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "script.pt"))  # type: ignore[no-untyped-call]
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, said in (("script.pt", "more than weights"), ("text.pth", "more than weights|no file of weights"),
                       ("text.safetensors", "no file of weights"), ("list.pth", "holds list")):  # fmt: skip
        with pytest.raises(ModelFormatError, match=said) as refused:
            load_known(tmp_path / name)
        assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match="no such file"):
        load_known(tmp_path / "absent.pth")
    (tmp_path / "theirs.zip").write_text("")
    with pytest.raises(UsageError, match="suffix is not one of"):
        load_known(tmp_path / "theirs.zip")


def test_without_spandrel_the_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "theirs.pth")
    with pytest.raises(BackendError, match="pip install"):
        load_known(tmp_path / "theirs.pth")
    done = run("--onnx", tmp_path / "out.onnx", "--checkpoint", tmp_path / "theirs.pth")
    assert done.exit_code == 3
    assert done.output.startswith("error: ")
    assert not (tmp_path / "out.onnx").exists()


def test_options_that_would_do_nothing_are_refused(tmp_path: Path) -> None:
    done = run("--onnx", tmp_path / "out.onnx", "--checkpoint", "theirs.pth", "--openvino")
    assert (done.exit_code, "--openvino would have no effect" in done.output) == (2, True)


def test_what_nobody_knows_is_refused_by_name(tmp_path: Path) -> None:
    zoo()
    torch.save({"params": {"some.weight": torch.zeros(3), "some.bias": torch.zeros(3)}}, tmp_path / "theirs.pth")
    with pytest.raises(UnsupportedModelError, match=r"2 weights \(some.weight.*ESRGAN.*SwinIR.*--module"):
        load_known(tmp_path / "theirs.pth")


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_an_enlarger_from_weights_to_file(tmp_path: Path, form: str) -> None:
    spandrel = zoo()
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(0)
    network = Compact(num_in_ch=3, num_out_ch=3, num_feat=12, num_conv=2, upscale=2).eval()
    path = tmp_path / f"theirs.{form}"
    if form == "pth":
        torch.save({"params_ema": network.state_dict()}, path)
    else:
        save_file(network.state_dict(), path)
    known = load_known(path)
    assert (known.architecture, known.shape[1]) == ("RealESRGAN Compact", 3)
    done = run("--onnx", tmp_path / "ours.onnx", "--checkpoint", path, "--backends", "ort")
    assert done.exit_code == 0, done.output
    assert "weights of RealESRGAN Compact" in done.output
    picture = torch.rand(1, 3, 40, 56)
    with torch.no_grad():
        want = spandrel.ModelLoader(device="cpu").load_from_state_dict(network.state_dict()).model(picture).numpy()
    with open_runner(tmp_path / "ours.onnx", "ort", "cpu", 1) as runner:
        assert runner.spec.scale == 2
        np.testing.assert_allclose(runner.run({"image": picture.numpy()})["restored"], want, atol=1e-4)


def test_a_published_routed_network_needs_no_description(tmp_path: Path) -> None:
    """SeemoRe picks experts by the picture and takes one picture at a time; its file runs all, for a batch too."""
    zoo()
    from spandrel.architectures.SeemoRe import SeemoRe

    torch.manual_seed(0)
    network = SeemoRe(scale=2, num_experts=3, num_layers=1, embedding_dim=8).eval()
    (router,) = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
    seen: list[torch.Tensor] = []
    hook = router.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach().mean(0)))
    for picture in torch.rand(8, 1, 3, 32, 32):
        network(picture)
    hook.remove()
    # A router that tells pictures apart: what they have in common weighs nothing.
    common = torch.nn.functional.normalize(torch.stack(seen).mean(0), dim=0)
    router.weight.data -= torch.outer(router.weight.data @ common, common)
    router.weight.data *= 400
    torch.save(network.state_dict(), tmp_path / "theirs.pth")
    known = load_known(tmp_path / "theirs.pth")
    made = export_module(known.network, known.shape, tmp_path / "ours.onnx", backends=("ort",))
    assert len({route[0] for route in made.routes}) > 1, "all pictures take one route"
    pictures = torch.rand(2, 3, 40, 56) * torch.tensor([0.2, 1.0]).reshape(2, 1, 1, 1)
    with torch.no_grad():
        want = torch.cat([network(picture[None]) for picture in pictures]).numpy()
    with open_runner(tmp_path / "ours.onnx", "ort", "cpu", 1) as runner:
        np.testing.assert_allclose(runner.run({"image": pictures.numpy()})["restored"], want, atol=1e-4)


class Noisy(torch.nn.Module):
    """As StyleGAN2: noise is drawn for each answer, or the one in the weights is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", torch.linspace(0, 1, 16).reshape(1, 1, 4, 4))

    def forward(self, image: torch.Tensor, randomize_noise: bool = True) -> tuple[torch.Tensor, None]:
        noise = torch.rand(1, 1, 4, 4) if randomize_noise else self.noise
        return image + noise, None


def test_noise_that_the_weights_hold_is_not_drawn() -> None:
    image = torch.rand(1, 3, 4, 4)
    network, notes = called(Noisy(), lambda model, picture: model(picture)[0])
    torch.testing.assert_close(network(image), image + torch.linspace(0, 1, 16).reshape(1, 1, 4, 4))
    assert "randomize_noise=False" in notes[0]
    plain, notes = called(torch.nn.Identity(), lambda model, picture: 2 * model(picture))
    torch.testing.assert_close(plain(image), 2 * image)
    assert notes == ()


def test_a_network_that_colours_grey_pictures_takes_colour(tmp_path: Path) -> None:
    def found(channels: tuple[int, int]) -> Any:
        return SimpleNamespace(
            architecture=SimpleNamespace(name="Colours"), purpose="Restoration", input_channels=channels[0],
            output_channels=channels[1], size_requirements=SimpleNamespace(multiple_of=1, minimum=0),
            model=torch.nn.Conv2d(*channels, 1), _call_fn=lambda model, image: model(image),
        )  # fmt: skip

    given = found((1, 3))
    known = _described(tmp_path / "theirs.pth", given)
    assert known.shape == (1, 3, 64, 64)
    assert "makes it grey" in known.notes[0]
    grey = torch.rand(1, 1, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(known.network(grey.expand(1, 3, 6, 6)), given.model(grey))
    with pytest.raises(UnsupportedModelError, match="takes 2 channels, returns 3; pictures are given as grey"):
        _described(tmp_path / "theirs.pth", found((2, 3)))


def test_spandrels_call_of_ddcolor_takes_any_number_of_pictures() -> None:
    def one(model: Any, grey: torch.Tensor) -> torch.Tensor:
        raise ValueError("expected one picture")

    class Small(torch.nn.Module):
        input_size = (8, 8)

        def forward(self, rgb: torch.Tensor) -> torch.Tensor:
            assert rgb.shape[1:] == (3, 8, 8)
            return torch.cat([rgb.mean((2, 3), keepdim=True).sum(1, keepdim=True) - rgb[:, :1], rgb[:, 1:2]], 1)

    colours = {"rgb_to_linear_rgb": lambda x: x**2, "linear_rgb_to_lab": lambda x: 10 * x - 1,
               "lab_to_rgb": lambda x: (x + 1) / 10}  # fmt: skip
    call = for_any_number("DDColor", FunctionType(one.__code__, colours))
    pictures = torch.rand(3, 1, 12, 20)
    made = call(Small(), pictures)
    torch.testing.assert_close(made, torch.cat([call(Small(), picture[None]) for picture in pictures]))
    torch.testing.assert_close(made[:, :1], pictures**2)
    assert made.shape == (3, 3, 12, 20)
    assert for_any_number("DDColor", one) is one, "a call without these helpers is left as it is"
    assert for_any_number("Compact", call) is call
