"""Somebody else's model, exported: every published pattern at dynamic sizes, routes and batches, on both runtimes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import patterns
import pytest
import torch
from torch import Tensor, nn

from clusir.errors import UnsupportedModelError, UsageError
from clusir.export.module import ModuleExport, export_module, load_factory, parse_input
from clusir.export.subjects.checks import reference
from clusir.export.subjects.unused import watch
from clusir.network.layers import ChannelLayerNorm
from clusir.runtimes import open_runner

pytestmark = pytest.mark.usefixtures("small_measures")
BACKENDS = ("ort", "openvino")
# Expected of every file; the patterns' outputs are of the order of 1.
TOLERANCE = 1e-4


def pictures(count: int, height: int, width: int, level: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width, generator=generator) * level


def export(model: nn.Module, folder: Path, **options: object) -> ModuleExport:
    torch.manual_seed(3)
    # Compared on ONNX Runtime alone: assert_right compares on both.
    return export_module(model.eval(), "1x3x32x32", folder / "model.onnx", **{"backends": ("ort",), **options})  # type: ignore[arg-type]


def assert_right(result: ModuleExport, model: nn.Module, *shapes: tuple[int, int, int]) -> None:
    """The file agrees with the user's own module on both runtimes, at shapes (batch, height, width) and levels that the
    export did not see."""
    # One dark, one bright: routers of the patterns follow brightness.
    cases = [(shape, level) for shape in shapes for level in (0.15, 1.9)]
    images = [pictures(*shape, level, seed=shape[1] + shape[0]) for shape, level in cases]
    wanted = [reference(model, image).numpy() for image in images]
    for backend in BACKENDS:
        with open_runner(result.path, backend, "cpu", 1) as runner:
            for image, want in zip(images, wanted, strict=True):
                got = runner.run({"image": image.numpy()})["restored"]
                assert got.shape == want.shape
                np.testing.assert_allclose(got, want, atol=TOLERANCE * max(1.0, np.abs(want).max()), rtol=0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(5)


@pytest.mark.parametrize(
    "pattern",
    [
        patterns.SpectralConvolution,
        patterns.CroppedSpectrum,
        patterns.AmplitudePhase,
        patterns.ComplexFilter,
        patterns.ShiftedMask,
        patterns.IntegerHalves,
        patterns.ImaginaryUnit,
        patterns.PhaseOnly,
        patterns.FrequencyMask,
        patterns.TopKGather,
    ],
    ids=lambda p: p.__name__,
)
def test_pattern_exports_for_any_size_and_batch(pattern: Callable[[], nn.Module], tmp_path: Path) -> None:
    names, model = set(vars(patterns)), pattern().eval()
    result = export(model, tmp_path)
    assert (result.spec.size.multiple_of, result.spec.size.static_px) == (1, 0)
    # Where the first trace's file is wrong at a size, the next is compared at all of the first one's and at its own.
    assert len(result.sizes) == (5 if pattern is patterns.ShiftedMask else 4)
    assert set(vars(patterns)) == names, "the names int and float are Python's own again"
    assert_right(result, model, (3, 37, 52), (1, 50, 41))
    operators = {n.op_type for n in onnx.load(result.path).graph.node}
    assert not operators & {"DFT", "If", "Loop"}


def test_patch_attention_exports_for_whole_patches(tmp_path: Path) -> None:
    model = patterns.PatchAttention().eval()
    result = export(model, tmp_path)
    assert result.spec.size.multiple_of in (1, 8)
    assert_right(result, model, (2, 40, 56), (1, 24, 32))


def test_patches_of_a_halved_picture_export_for_whole_patches(tmp_path: Path) -> None:
    model = patterns.HalvedPatches().eval()
    result = export(model, tmp_path)
    assert result.spec.size.multiple_of == 8
    assert_right(result, model, (2, 40, 56), (1, 24, 32))


class SeveralSizes(nn.Module):
    """A smaller picture first, from a convolution of its own, a number, and the restored picture last."""

    def __init__(self, reads: bool = False) -> None:
        super().__init__()
        self.stem, self.tail, self.small = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.judge, self.reads = nn.Linear(3, 1), reads

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.stem(x)
        if self.reads:
            features.mean().item()
        return [
            self.small(nn.functional.avg_pool2d(features, 2)),
            self.judge(features.mean((2, 3))),
            x + self.tail(features),
        ]


def test_weights_that_the_picture_does_not_depend_on_are_left_out(tmp_path: Path) -> None:
    model = SeveralSizes().requires_grad_(False)
    result = export(model, tmp_path)
    assert any(n.startswith("WARNING: 4 parameters") and n.endswith("of judge, small") for n in result.notes)
    assert any("the restored picture is [2]" in note for note in result.notes)
    assert not any(p.requires_grad for p in model.parameters())
    assert not any("small" in t.name for t in onnx.load(result.path).graph.initializer)
    with open_runner(result.path, "ort", "cpu", 1) as runner:
        image = pictures(2, 38, 52)
        got = runner.run({"image": image.numpy()})["restored"]
        np.testing.assert_allclose(got, model(image)[2].numpy(), atol=1e-5)


def test_where_values_are_read_such_weights_may_be_experts(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"^4 parameters are missing .*, of judge, small:") as caught:
        export(SeveralSizes(reads=True), tmp_path)
    assert r'declare_unused(r"(small\.weight|small\.bias|judge\.weight|judge\.bias)$")' in str(caught.value)


def test_what_a_picture_depends_on_is_found_in_one_run() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.left = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x + 0 * torch.rand(1))

    seen = watch(Two(), pictures(1, 8, 8))
    assert seen.unreached == {"left.weight", "left.bias"}
    assert "test_module.py" in seen.drew
    assert not seen.read
    assert not seen.outside


def test_window_with_computed_bounds_keeps_the_batch_it_loops_over(tmp_path: Path) -> None:
    model = patterns.LearnedWindow().eval()
    result = export(model, tmp_path)
    assert any("fixes the batch" in note for note in result.notes)
    assert_right(result, model, (1, 37, 52), (1, 50, 41))


class Normed(nn.Module):
    """A channel LayerNorm and an upsampling tail, as most restorers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 2, stride=2), ChannelLayerNorm(8)
        self.tail = nn.Conv2d(8, 12, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.pixel_shuffle(self.tail(self.norm(self.stem(x))), 2)


def test_graph_passes_serve_a_brought_model_too(tmp_path: Path) -> None:
    result = export(Normed(), tmp_path)
    assert result.spec.size.static_px == 0
    found = {n.op_type for n in onnx.load(result.path).graph.node}
    assert "ConvTranspose" in found
    assert not found & {"ReduceMean", "DepthToSpace"}
    plain = export_module(Normed().eval(), "1x3x32x32", tmp_path / "plain.onnx", dft="matmul")
    assert "DepthToSpace" in {n.op_type for n in onnx.load(plain.path).graph.node}


def test_dft_operator_form_stays_selectable(tmp_path: Path) -> None:
    model = patterns.SpectralConvolution().eval()
    result = export(model, tmp_path, dft="op")
    assert result.spec.dft_form == "op"
    assert "DFT" in {n.op_type for n in onnx.load(result.path).graph.node}


def test_factory_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_net.py").write_text("import torch\n\ndef make():\n    return torch.nn.Conv2d(3, 3, 1)\n")
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_factory("their_net:make"), nn.Conv2d)
    with pytest.raises(UsageError, match="no attribute 'made'"):
        load_factory("their_net:made")
    with pytest.raises(UsageError, match=r"not package\.module:factory"):
        load_factory("their_net")
    (tmp_path / "their_script.py").write_text(
        "import torch\n\ndef make():\n    return torch.jit.trace(torch.nn.Conv2d(3, 3, 1), torch.rand(1, 3, 8, 8))\n"
    )
    with pytest.raises(UnsupportedModelError, match="TorchScript"):
        load_factory("their_script:make")


@pytest.mark.parametrize("text", ["3x64x64", "1x3x64", "1x2x64x64", "1x3x4x64", "axbxcxd", "1x3x64x99999"])
def test_input_that_is_no_picture_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--input"):
        parse_input(text)


def test_random_numbers_in_eval_are_refused_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"patterns\.py:\d+ `.*randn_like.*drawn in eval") as caught:
        export(patterns.NoisyRouter(), tmp_path)
    assert "not deterministic" in str(caught.value)
    assert not (tmp_path / "model.onnx").exists()


def test_a_model_of_batch_statistics_takes_one_picture_at_a_time(tmp_path: Path) -> None:
    made = export(patterns.BatchStatistics(), tmp_path)
    assert any(note.startswith("WARNING: ") and "other pictures of its batch" in note for note in made.notes)
    assert onnx.load(made.path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert_right(made, patterns.BatchStatistics(), (1, 40, 56), (1, 33, 72))
    with pytest.raises(UnsupportedModelError, match="give --input a batch of 1"):
        export_module(patterns.BatchStatistics(), "2x3x32x32", tmp_path / "two.onnx")


def test_model_that_changes_the_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="1x3x32x32 into 1x3x16x16"):
        export(nn.AvgPool2d(2), tmp_path)


def test_branch_on_the_size_narrows_the_size_rule(tmp_path: Path) -> None:
    class OnlyWhole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[2] % 4 or x.shape[3] % 4:
                raise ValueError("not a multiple of 4")
            return nn.functional.pixel_shuffle(nn.functional.pixel_unshuffle(x, 4) * 0.5, 4)

    result = export(OnlyWhole(), tmp_path)
    assert result.spec.size.multiple_of == 4
