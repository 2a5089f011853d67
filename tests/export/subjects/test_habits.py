"""Habits of research code: exported right at sizes that the export did not see, or refused with what to do."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import habits
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clusir.errors import UnsupportedModelError, UsageError
from clusir.export.module import ModuleExport, export_module
from clusir.export.subjects.checks import reference
from clusir.export.subjects.fresh import Fresh
from clusir.export.subjects.outputs import choose_output
from clusir.export.subjects.portable import portable
from clusir.export.subjects.restorer import Unsullied
from clusir.export.subjects.scripted import unscripted
from clusir.export.validate.cases import plain_pictures
from clusir.export.validate.conditioning import well_conditioned
from clusir.runtimes import open_runner

pytestmark = pytest.mark.usefixtures("small_measures")
BACKENDS = ("ort", "openvino")
TOLERANCE = 1e-5


def pictures(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height))


def export(model: nn.Module, folder: Path, **options: object) -> ModuleExport:
    # Compared on ONNX Runtime alone: assert_right compares on both.
    return export_module(model.eval(), "1x3x64x64", folder / "model.onnx", **{"backends": ("ort",), **options})  # type: ignore[arg-type]


def assert_right(made: ModuleExport, factory: Callable[[], nn.Module], *shapes: tuple[int, int, int]) -> None:
    """The file agrees with a fresh module on both runtimes at shapes (batch, height, width)."""
    images = [image for shape in shapes for image in (pictures(*shape), torch.zeros(shape[0], 3, *shape[1:]))]
    with torch.no_grad(), portable():
        wanted = [torch.cat([factory().eval()(one[None]) for one in image]).numpy() for image in images]
    for backend in BACKENDS:
        with open_runner(made.path, backend, "cpu", 1) as runner:
            for image, want in zip(images, wanted, strict=True):
                got = runner.run({"image": image.numpy()})["restored"]
                np.testing.assert_allclose(got, want, atol=TOLERANCE * max(1.0, np.abs(want).max()), rtol=0)


SHAPES = ((2, 64, 64), (1, 50, 83), (1, 96, 40))

KINDS: dict[str, tuple[habits.Habit, ...]] = {
    "sizes": (
        habits.rounded,
        habits.by_numpy,
        habits.by_math,
        habits.longest,
        habits.root,
        habits.windowed,
        habits.vignette,
    ),
    "writes": (
        habits.quarters,
        habits.border_written,
        habits.interleaved,
        habits.through_a_mask,
        habits.by_pixel_mask,
        habits.through_one_mask_told_twice,
    ),
    "pools": (
        habits.adaptive,
        habits.areas,
        habits.antialiased,
        habits.pooled_by_size,
        habits.wrapped,
        habits.grown_back,
    ),
    "pads": (habits.pads_if_needed,),
    "nearest": (habits.nearest_to_a_size, habits.nearest_by_a_factor, habits.nearest_twice),
    "order": (
        habits.median,
        habits.sorted_tokens,
        habits.attention_of_three_axes,
        habits.attention_of_five_axes,
    ),
    "numbers": (
        habits.mixed_scalars,
        habits.in_half,
        habits.on_the_card,
        habits.tiny_epsilon,
        habits.inverse_error,
        habits.noise_level,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_habits_export_for_any_size(kind: str, tmp_path: Path) -> None:
    made = export(habits.Together(*KINDS[kind]), tmp_path)
    assert (made.spec.size.multiple_of, made.spec.size.static_px) == (1, 0)
    assert_right(made, lambda: habits.Together(*KINDS[kind]), *SHAPES)
    if kind == "numbers":
        assert any("half precision" in note for note in made.notes)


class Scans(nn.Module):
    """A recurrence as a Python loop over the tokens, not linear in what it keeps."""

    def __init__(self, by_parts: bool = False) -> None:
        super().__init__()
        self.by_parts = by_parts

    def forward(self, x: Tensor) -> Tensor:
        tokens = nn.functional.avg_pool2d(x, 4).flatten(2)
        state, found = torch.zeros_like(tokens[..., 0]), []
        if self.by_parts:
            for token in tokens.unbind(-1):
                state = torch.tanh(state) + token
                found.append(state)
        else:
            for i in range(tokens.shape[-1]):
                state = torch.tanh(state) + tokens[..., i]
                found.append(state)
        return x + torch.stack(found, -1).mean(-1)[..., None, None]


class AllTokens(nn.Module):
    """One transform over all tokens, as long convolutions have it."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        spectrum = torch.fft.rfft(tokens)  # over height times width
        return torch.fft.irfft(spectrum * 0.5, n=tokens.shape[-1]).view(x.shape)


class NeedsSigma(nn.Module):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x * sigma


class Breaks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(5, 5)  # the line that breaks


class TwoHeads(nn.Module):
    """Two pictures of one size, neither made from the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> dict[str, object]:
        return {"clean": self.a(x), "others": [self.b(x), x.mean()]}


class PythonNoise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 0 * np.random.rand())  # noqa: NPY002 - as research code draws


class QuietNoise(nn.Module):
    """Noise too small to change an answer here, and yet drawn."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-12 * torch.randn_like(x)  # drawn all the same


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Scans(), r"test_habits\.py:\d+ `for i in range.*: a loop of \d+ turns, whose number follows the size"),
        (
            Scans(by_parts=True),
            r"test_habits\.py:\d+ `for token in .*: a loop of \d+ turns.*state is not its last value",
        ),
        (AllTokens(), r"test_habits\.py:\d+ `spectrum = .*over height times width`: a transform over all tokens"),
        (NeedsSigma(), "missing 1 required positional argument: 'sigma': a restorer takes one picture; name what is"),
        (
            Breaks(),
            r"test_habits\.py:\d+ `return x @ .*the line that breaks`: the model's own code raised Runtime",
        ),
        (TwoHeads(), r"several pictures of the input's shape \(\['clean'\], \['others'\]\[0\]\).*--output"),
        (nn.Upsample(scale_factor=12), "12 times the size"),
        (PythonNoise(), "random numbers of Python or NumPy"),
        (QuietNoise(), r"random numbers drawn at .*test_habits\.py:\d+ `return x \+ 1e-12.*drawn all the same"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_no_file_can_say_is_refused_with_what_to_do(network: nn.Module, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        export(network, tmp_path)
    assert "register_moe" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_picture_is_the_one_that_is_asked_for() -> None:
    image = pictures(1, 8, 8)
    assert choose_output(TwoHeads(), image, "clean") == ("['clean']", ())
    assert choose_output(TwoHeads(), image, "1") == ("['others'][0]", ())
    with pytest.raises(UsageError, match=r"--output 'none': the model returns \['clean'\] 1x3x8x8"):
        choose_output(TwoHeads(), image, "none")


@dataclasses.dataclass
class Record:
    """What a network returns by name."""

    loss: float
    parts: list[Tensor]
    image: Tensor | None = None


def test_the_picture_is_found_in_a_record() -> None:
    class Records(nn.Module):
        def forward(self, x: Tensor) -> Record:
            return Record(0.0, [x.mean()], 2 * x)

    class Named(nn.Module):
        def forward(self, x: Tensor) -> list[SimpleNamespace]:
            return [SimpleNamespace(restored=2 * x, name="a")]

    class Entries(OrderedDict[str, object]):
        """A dictionary whose entries are attributes, too."""

    class Mapped(nn.Module):
        def forward(self, x: Tensor) -> Entries:
            return Entries(hidden=(x.mean(),), picture=2 * x)

    assert choose_output(Mapped(), pictures(1, 8, 8))[0] == "['picture']"
    assert choose_output(Records(), pictures(1, 8, 8))[0] == "['image']"
    assert choose_output(Named(), pictures(1, 8, 8))[0] == "[0]['restored']"


class Stages(nn.Module):
    """Pictures that are made from one another, in any order."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.order = order
        self.steps = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        made = []
        for step in self.steps:
            x = x + step(x)
            made.append(x)
        return [made[i] for i in self.order]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_picture_is_the_one_that_the_others_lead_to(order: tuple[int, ...]) -> None:
    assert choose_output(Stages(order), pictures(1, 8, 8))[0] == f"[{order.index(2)}]"


class Keeps(nn.Module):
    """What the first picture decides is kept: in the module, its class, a global and a cached function."""

    kept: object = None

    def __init__(self) -> None:
        super().__init__()
        self.window: object = None

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[-2:])
        self.window = self.window or size
        Keeps.kept = Keeps.kept or size
        _KEPT.setdefault("size", size)
        first = (self.window, Keeps.kept, _KEPT["size"])
        return x * sum(int(kept[0]) for kept in first) + _cached(len(_KEPT))  # type: ignore[index]


_KEPT: dict[str, object] = {}


@functools.lru_cache
def _cached(count: int) -> int:
    return count


def test_every_size_is_answered_by_a_model_that_has_seen_no_other() -> None:
    model = Unsullied(Fresh(Keeps()), "")
    for side in (8, 16, 8):
        assert float(model(torch.ones(1, 3, side, side)).mean()) == 3 * side + 1
    model.fresh.restore()
    assert (Keeps.kept, _KEPT) == (None, {})


def test_scripted_submodules_are_read_from_their_graphs() -> None:
    block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.LeakyReLU(0.1)).eval()
    image = pictures(2, 9, 12)
    want = block(image)
    whole = unscripted(nn.Sequential(torch.jit.script(block)))
    assert not any(isinstance(m, torch.jit.ScriptModule) for m in whole.modules())
    assert {tuple(p.shape) for p in whole.parameters()} == {tuple(p.shape) for p in block.parameters()}
    torch.testing.assert_close(copy.deepcopy(whole)(image), want)


def test_types_of_tensors_on_a_gpu_are_those_on_the_cpu() -> None:
    before = torch.cuda.FloatTensor
    with portable():
        made = torch.cuda.FloatTensor(2, 3).fill_(0.5)
        assert made.shape == (2, 3)
        assert isinstance(made.type(torch.cuda.LongTensor), torch.LongTensor)
        assert made.to(torch.float64).type(torch.cuda.FloatTensor).dtype == torch.float32
    assert torch.cuda.FloatTensor is before


def test_plain_pictures_are_compared_where_the_model_itself_is_sure_of_them() -> None:
    class Divides(nn.Module):
        def __init__(self, epsilon: float) -> None:
            super().__init__()
            self.epsilon = epsilon

        def forward(self, x: Tensor) -> Tensor:
            return x / (x.amax((1, 2, 3), keepdim=True) + self.epsilon)

    class Phase(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.irfft2(torch.exp(1j * torch.fft.rfft2(x).angle()), s=x.shape[-2:])

    plain = plain_pictures(3, 12, 16)
    for network, sure in ((Divides(1e-8), [True] * 3), (Divides(0.0), [False, True, True])):
        assert well_conditioned(network, plain, reference(network, plain)).tolist() == sure
    assert not well_conditioned(Phase(), plain, reference(Phase(), plain))[1:].any()

    class PhaseOfFeatures(Phase):
        """Black gives features of one value: torch's spectrum of them is 0 but for one bin, another's is rounding."""

        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.enter(x))

    class Normed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            features = x + 0.3
            return (features - features.mean((2, 3), keepdim=True)) / (features.std((2, 3), keepdim=True) + 1e-6)

    class Half(nn.Module):
        """Keeps the larger half of the products of its channels, of which two are nearer than a sum is known."""

        def __init__(self, apart: float) -> None:
            super().__init__()
            self.weights = torch.tensor([0.5, 0.5 + apart, 1.0, 0.25]).view(1, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            rows = (x.flatten(2)[:, :1].round() + 1) * self.weights
            gram = rows @ rows.transpose(1, 2)
            kept = torch.zeros_like(gram).scatter(-1, gram.topk(2)[1], 1.0)
            return x + 0.1 * kept[:, :3, 1, None, None]

    for apart, sure in ((2e-7, False), (1e-3, True)):
        network = Half(apart)
        assert well_conditioned(network, plain[:2], reference(network, plain[:2])).tolist() == [sure] * 2

    for network in (PhaseOfFeatures(), Normed()):
        assert not well_conditioned(network, plain, reference(network, plain))[0]
