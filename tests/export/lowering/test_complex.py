"""The traced program without complex tensors gives what the model gives: operator by operator, at sizes not traced."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from clusir.errors import UnsupportedModelError
from clusir.export.lowering.complex import lower_complex
from clusir.export.lowering.complex_pair import (
    Pair,
    complex_abs,
    complex_div,
    complex_log,
    complex_sqrt,
    roll,
    safe_atan2,
)
from clusir.export.trace.quick import quick_tracing, quick_views

fft = torch.fft


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, image: Tensor) -> object:
        return self.function(image)


def lowered(function: Callable[[Tensor], object]) -> torch.export.ExportedProgram:
    auto = torch.export.Dim.AUTO
    sample, dynamic = torch.rand(2, 3, 12, 20), {0: auto, 2: auto, 3: auto}
    with quick_tracing():
        program = torch.export.export(Function(function), (sample,), dynamic_shapes=(dynamic,), strict=False)
        with quick_views():
            return lower_complex(program)


def assert_same(function: Callable[[Tensor], object], tolerance: float = 2e-5) -> None:
    program = lowered(function)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        assert not (isinstance(value, Tensor) and value.is_complex()), f"{node} is still complex"
    module = program.module(check_guards=False)
    for height, width in ((12, 20), (9, 15), (16, 11)):
        image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height)) - 0.3
        want, got = function(image), module(image)
        for w, g in zip(want, got, strict=True) if isinstance(want, (tuple, list)) else ((want, got),):
            assert w.shape == g.shape
            assert w.dtype == g.dtype
            torch.testing.assert_close(g, w, atol=tolerance, rtol=tolerance)


def parts(*values: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.view_as_real(v.resolve_conj()) if v.is_complex() else v for v in values)


def transforms(x: Tensor) -> tuple[Tensor, ...]:
    h, w = x.shape[-2:]
    out = [fft.rfft2(x, norm=n) for n in ("backward", "ortho", "forward")]
    out += [fft.irfft2(fft.rfft2(x), s=(h, w), norm=n) for n in ("backward", "ortho", "forward")]
    out += [fft.fft2(x, norm="ortho"), fft.ifft2(x, norm="forward"), fft.ifft2(fft.fft2(x) * 1j)]
    out += [fft.fft(x, dim=1), fft.ifft(x, dim=2), fft.rfft(x, dim=2, norm="forward"), fft.irfft(fft.rfft(x), n=w)]
    out += [
        fft.fftn(x, dim=(1, 3)),
        fft.ifftn(x),
        fft.rfftn(x, dim=(2, 1)),
        fft.irfftn(fft.rfftn(x, dim=(1, 2)), dim=(1, 2)),
    ]
    return parts(*out)


def hermitian(x: Tensor) -> tuple[Tensor, ...]:
    """A half spectrum of a real spectrum, and back, in all norms; sizes that cut and pad."""
    h, w = x.shape[-2:]
    spectrum = torch.complex(x, x.flip(1))
    out = [
        fft.hfft(spectrum, n=w, norm="ortho"),
        fft.hfft2(spectrum, s=(8, 10)),
        fft.hfft(spectrum, n=60),
        fft.hfftn(spectrum, dim=(1, 3)),
    ]
    out += [fft.hfft2(spectrum, s=(h, w), norm=n) for n in ("backward", "ortho", "forward")]
    out += [fft.ihfft2(x, norm=n) for n in ("backward", "ortho", "forward")]
    out += [fft.ihfft(x, n=9, dim=1), fft.ihfftn(x, dim=(3, 1)), fft.ihfft2(x, s=(30, 7))]
    return parts(*out)


def lengths(x: Tensor) -> tuple[Tensor, ...]:
    """s and n that cut and that pad, with and without axes."""
    spectrum = fft.rfft2(x)
    return parts(
        fft.fft2(x, s=(8, 24)),
        fft.rfft2(x, s=(30, 7), norm="ortho"),
        fft.irfft2(spectrum, s=(6, 9)),
        fft.irfft2(spectrum, s=(20, 40)),
        fft.fft(x, n=5, dim=2),
        fft.ifft(spectrum, n=33, dim=3),
        fft.irfft(spectrum),
        fft.fftn(x, s=(4, 6)),
    )


def shifts(x: Tensor) -> tuple[Tensor, ...]:
    h, w = x.shape[-2:]
    spectrum = fft.fft2(x)
    return parts(
        fft.fftshift(spectrum),
        fft.ifftshift(spectrum, dim=(-2, -1)),
        fft.fftshift(x, dim=2),
        torch.roll(spectrum, shifts=(h // 2, -(w // 3)), dims=(2, 3)),
        torch.roll(x, 5),
        torch.roll(x, shifts=(-1,), dims=(1,)),
    )


def arithmetic(x: Tensor) -> tuple[Tensor, ...]:
    z, y = fft.rfft2(x), fft.rfft2(x * x + 0.1)
    return parts(
        z + y, z - 2 * y, 1 - z, z + 3, z * y, z * 0.5, z * 2j, x[..., :1] * 1j + 4, z / (y + 9), z / 3, 1 / (y + 9), -z
    )


def functions(x: Tensor) -> tuple[Tensor, ...]:
    z = fft.rfft2(x, norm="ortho")
    return parts(
        z.abs(),
        z.conj(),
        z.real,
        z.imag,
        torch.exp(0.3 * z),
        torch.log(z + 5),
        torch.sqrt(z + 5),
        z.square(),
        z**3,
        z**-1,
        (z + 5) ** 0.5,
        (z + 5) ** 1.7,
        torch.sgn(z + 3),
        torch.sin(0.1 * z),
        torch.cos(0.1 * z),
        torch.reciprocal(z + 3),
        torch.polar(z.abs(), z.angle()),
        torch.angle(z + 3),
        torch.complex(z.imag, z.real),
        torch.where(z.real > 0, z, 0 * z),
        z.masked_fill(z.abs() > 0.5, 0.0),
        torch.linalg.vector_norm(z, dim=1),
        z == z.clone(),
        torch.full_like(z, 1 + 2j),
    )


def shapes(x: Tensor) -> tuple[Tensor, ...]:
    z = fft.fft2(x, norm="ortho")
    b, c, h, w = x.shape
    first, second, third = z.unbind(1)
    return parts(
        z.permute(0, 2, 3, 1),
        z.reshape(b, c, h * w),
        z.flatten(1),
        torch.cat([z, x], 1),
        torch.stack([first, third], 1),
        z[:, 1:, ::2, -3:],
        z.sum((2, 3)),
        z.mean(1),
        z.unsqueeze(1).expand(-1, 2, -1, -1, -1),
        z.flip(2),
        z.chunk(3, 1)[1],
        nn.functional.pad(z, (1, 2, 0, 1)),
        z.transpose(2, 3) @ z,
        torch.einsum("bchw,bcvw->bhv", z, z.conj()),
        torch.view_as_complex(torch.stack([x, -x], -1).contiguous()) * second.unsqueeze(1),
        z.to(torch.complex64) + x.to(torch.complex64),
    )


def writes(x: Tensor) -> tuple[Tensor, ...]:
    """Writes into a complex tensor become functions before anything else."""
    z = fft.fft2(x, norm="ortho")
    z[:, :, 2:5] = 0
    z[:, 0] *= 2
    z += 1j
    return parts(z)


GROUPS = [transforms, lengths, hermitian, shifts, arithmetic, functions, shapes, writes]


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g.__name__)
def test_lowered_program_equals_the_model(group: Callable[[Tensor], object]) -> None:
    assert_same(group, 1e-4 if group is functions else 2e-5)


def test_program_without_complex_tensors_is_left_alone() -> None:
    sample = torch.rand(2, 3, 8, 8)
    program = torch.export.export(nn.Conv2d(3, 3, 1), (sample,), strict=False)
    assert lower_complex(program) is program


def test_operator_without_a_real_form_is_refused_with_its_line() -> None:
    class Inverse(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.linalg.inv(fft.fft2(image[..., :4, :4])).real  # complex inverse

    sample = torch.rand(2, 3, 8, 8)
    program = torch.export.export(Inverse(), (sample,), strict=False)
    with pytest.raises(
        UnsupportedModelError, match=r"test_complex\.py:\d+ `.*complex inverse`: linalg_inv has"
    ) as caught:
        lower_complex(program)
    assert "\n" not in str(caught.value)


def test_complex_output_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="returns a complex tensor"):
        lowered(lambda x: fft.fft2(x))


def test_angle_is_defined_everywhere() -> None:
    axis = torch.tensor([-2.0, -1e-30, 0.0, 1e-30, 3.0])
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    got = safe_atan2(y, x)
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, torch.atan2(y, x), atol=1e-6, rtol=0)
    angles = torch.linspace(-math.pi + 1e-3, math.pi - 1e-3, 1001, dtype=torch.float64)
    torch.testing.assert_close(safe_atan2(5 * angles.sin(), 5 * angles.cos()), angles, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shift", [-7, -1, 0, 1, 4, 9])
def test_roll_takes_any_shift(shift: int) -> None:
    x = torch.arange(30.0).view(5, 6)
    assert torch.equal(roll(x, (shift, 1), (0, 1)), torch.roll(x, (shift, 1), (0, 1)))


def padded(x: Tensor) -> tuple[Tensor, ...]:
    spectrum = fft.rfft2(x)
    out = [nn.functional.pad(spectrum, (1, 2), value=v) for v in (0.0, 1.0, -2.5)]
    out += [nn.functional.pad(spectrum, (0, 1, 2, 0)), nn.functional.pad(spectrum, (1, 1, 1, 1), mode="reflect")]
    return parts(*out)


def chosen(x: Tensor) -> tuple[Tensor, ...]:
    spectrum = fft.rfft2(x)
    mask = spectrum.real > 0.2
    return parts(
        torch.where(mask, spectrum, 0.0),
        torch.where(mask, 1.5, spectrum),
        torch.where(mask, spectrum, 1 + 2j),
        torch.where(mask, spectrum, x.mean() * torch.ones((), dtype=x.dtype)),
    )


@pytest.mark.parametrize("function", [padded, chosen], ids=["pad", "where"])
def test_constants_beside_complex_tensors_have_the_right_imaginary_part(
    function: Callable[[Tensor], tuple[Tensor, ...]],
) -> None:
    assert_same(function)


def test_sizes_do_not_leave_the_range_of_float32() -> None:
    """|z|^2 of 1e-23 is zero and of 1e20 infinite; |z| is neither. Infinities and zeros stay what they are."""
    values = torch.tensor([1e-23 + 1e-23j, 3e20 + 4e20j, 0j, 1e-30 - 2e-31j, 2 - 1e-12j, 1e38j])
    pair = Pair(values.real, values.imag)
    torch.testing.assert_close(complex_abs(pair), values.abs(), rtol=1e-6, atol=0.0)
    nonzero = Pair(values.real[[0, 1, 3, 4]], values.imag[[0, 1, 3, 4]])
    ratio = complex_div(nonzero, nonzero)
    torch.testing.assert_close(ratio.re, torch.ones(4), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(ratio.im, torch.zeros(4), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(complex_log(nonzero).re, values[[0, 1, 3, 4]].log().real, rtol=1e-6, atol=1e-6)
    root = complex_sqrt(pair)
    torch.testing.assert_close(torch.complex(root.re, root.im), values.sqrt(), rtol=1e-6, atol=0.0)
    endless = torch.tensor([math.inf, -math.inf, 1.0])
    assert torch.equal(complex_abs(Pair(endless, torch.tensor([1.0, math.inf, -math.inf]))), torch.full((3,), math.inf))


def test_only_complex_operators_are_traced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(x: Tensor) -> Tensor:
        return torch.relu(fft.irfft2(fft.rfft2(torch.sigmoid(x)), s=x.shape[-2:]))

    auto = torch.export.Dim.AUTO
    sample, dynamic = torch.rand(2, 3, 12, 20), {0: auto, 2: auto, 3: auto}
    program = torch.export.export(Function(function), (sample,), dynamic_shapes=(dynamic,), strict=False)
    names = [spec.arg.name for spec in program.graph_signature.output_specs]
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: pytest.fail("the whole program was traced again"))
    lowered = lower_complex(program)
    assert [spec.arg.name for spec in program.graph_signature.output_specs] == names, "the trace itself has changed"
    kept = [node.name for node in lowered.graph.nodes if node.name in ("sigmoid", "relu")]
    assert kept == ["sigmoid", "relu"]
    spectrum = next(node for node in lowered.graph.nodes if "fft_r2c" in str(node.target))
    assert "test_complex.py" in str(spectrum.meta.get("stack_trace")), "refusals name the line of the user's code"


def test_complex_weights_become_pairs() -> None:
    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 1, 1, dtype=torch.complex64))
            self.register_buffer("shift", torch.randn(3, 1, 1, dtype=torch.complex64))

        def forward(self, image: Tensor) -> Tensor:
            return fft.ifft2(fft.fft2(image) * self.weight + self.shift).real

    torch.manual_seed(0)
    model, sample = Filter(), torch.rand(2, 3, 12, 20)
    program = lower_complex(torch.export.export(model, (sample,), strict=False))
    assert {value.dtype for value in program.state_dict.values()} == {torch.float32}
    torch.testing.assert_close(program.module(check_guards=False)(sample), model(sample), atol=1e-5, rtol=0)
