"""Matrices and plans of the DFT, against numpy.fft in float64."""

from __future__ import annotations

import numpy as np
import pytest

from clusir.export.lowering import dft
from clusir.export.lowering.plan import choose_factor, half_plan, plan, real_basis

LENGTHS = (1, 2, 3, 4, 7, 12, 15, 16, 31, 64)


def interleaved(x: np.ndarray) -> np.ndarray:
    return np.stack([x.real, x.imag], axis=-1).reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize(("mode", "norm"), [(0, "backward"), (1, "ortho"), (2, "forward")])
def test_forward_matrices_are_the_dft(n: int, mode: int, norm: str) -> None:
    rng = np.random.default_rng(n)
    scale = dft.norm_scale(mode, n)
    x, z = rng.standard_normal(n), rng.standard_normal(n) + 1j * rng.standard_normal(n)
    np.testing.assert_allclose(
        x @ dft.real_forward(n, dft.half_bins(n), scale), interleaved(np.fft.rfft(x, norm=norm)), atol=1e-12
    )
    np.testing.assert_allclose(
        interleaved(z) @ dft.complex_matrix(n, False, scale), interleaved(np.fft.fft(z, norm=norm)), atol=1e-12
    )


@pytest.mark.parametrize("n", LENGTHS)
def test_inverse_matrices_are_the_inverse_dft(n: int) -> None:
    rng = np.random.default_rng(n)
    z = rng.standard_normal(n) + 1j * rng.standard_normal(n)
    half = z[: dft.half_bins(n)]
    np.testing.assert_allclose(interleaved(half) @ dft.real_inverse(n, 1 / n), np.fft.irfft(half, n=n), atol=1e-12)
    np.testing.assert_allclose(
        interleaved(z) @ dft.complex_matrix(n, True, 1 / n), interleaved(np.fft.ifft(z)), atol=1e-12
    )


def test_angles_keep_their_digits_at_large_lengths() -> None:
    # float32 angles of k*n, or an unreduced float64 product, are wrong here by more than 1e-11.
    cosines, sines = dft.cos_sin(4096, 4096, 4096)
    assert cosines[4095, 4095] == pytest.approx(np.cos(2 * np.pi / 4096), abs=1e-15)
    assert sines[4095, 4095] == pytest.approx(np.sin(2 * np.pi / 4096), abs=1e-15)


@pytest.mark.parametrize(("h", "w"), [(4, 6), (3, 5), (1, 8), (8, 1)])
def test_plane_matrices_are_rfft2_and_irfft2(h: int, w: int) -> None:
    rng = np.random.default_rng(h)
    x = rng.standard_normal((h, w))
    spectrum = rng.standard_normal((h, w // 2 + 1)) + 1j * rng.standard_normal((h, w // 2 + 1))
    np.testing.assert_allclose(
        x.ravel() @ dft.plane_forward(h, w, 0.5), interleaved(np.fft.rfft2(x).ravel()) * 0.5, atol=1e-12
    )
    np.testing.assert_allclose(
        interleaved(spectrum.ravel()) @ dft.plane_inverse(h, w, 1 / (h * w)),
        np.fft.irfft2(spectrum, s=(h, w)).ravel(),
        atol=1e-12,
    )


def test_times_minus_i_turns_a_spectrum() -> None:
    x = np.random.default_rng(0).standard_normal(12)
    turned = x @ dft.times_minus_i(dft.real_forward(12, 7))
    np.testing.assert_allclose(turned, interleaved(-1j * np.fft.rfft(x)), atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 127])
def test_real_basis_is_orthonormal_and_holds_each_frequency_once(n: int) -> None:
    basis, frequency, is_sine = real_basis(n)
    np.testing.assert_allclose(basis @ basis.T, np.eye(n), atol=1e-12)
    assert len({(int(f), bool(s)) for f, s in zip(frequency, is_sine, strict=True)}) == n


@pytest.mark.parametrize(("n", "factor"), [(16, 4), (64, 8), (96, 12), (250, 10), (256, 16), (90, 6)])
def test_factorised_plan_measures_the_same_energy_at_each_frequency(n: int, factor: int) -> None:
    chosen = plan(n, factor)
    matrix = chosen.matrix()
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(n), atol=1e-12)
    x = np.random.default_rng(n).standard_normal(n)
    energy = np.bincount(chosen.frequency, weights=(matrix @ x) ** 2)
    weight = np.full(n // 2 + 1, 2.0)
    weight[[0, -1] if n % 2 == 0 else [0]] = 1.0
    np.testing.assert_allclose(energy, weight * np.abs(np.fft.rfft(x, norm="ortho")) ** 2, atol=1e-10)


def test_factorised_plan_refuses_factors_that_do_not_divide() -> None:
    for n, factor in ((127, 4), (96, 5), (16, 16)):
        with pytest.raises(ValueError, match="not an even divisor"):
            plan(n, factor)


def test_cost_model_factorises_long_even_lengths_only() -> None:
    assert {n: choose_factor(n) for n in (32, 64, 96, 127, 128, 250, 256, 512)} == {
        32: 1, 64: 1, 96: 12, 127: 1, 128: 16, 250: 10, 256: 16, 512: 32,
    }  # fmt: skip


@pytest.mark.parametrize(("n", "factor"), [(96, 12), (110, 10), (121, 11), (105, 15), (106, 53), (99, 11)])
def test_half_plan_holds_the_cosines_and_sines_of_each_frequency(n: int, factor: int) -> None:
    chosen = half_plan(n)
    assert chosen is not None
    assert (chosen.factor, chosen.factor * chosen.rest) == (factor, n)
    np.testing.assert_allclose(chosen.stage1.T @ chosen.stage1, np.eye(factor), atol=1e-12)
    assert (~chosen.again).sum() == n // 2 + 1
    x = np.random.default_rng(n).standard_normal(n)
    pairs = (chosen.stage1 @ x.reshape(factor, -1)).reshape(chosen.blocks, -1)
    cosines, sines = (np.einsum("pkj,pj->pk", t, pairs)[~chosen.again] for t in (chosen.cosines, chosen.sines))
    found, expected = cosines - 1j * sines, np.fft.rfft(x)
    np.testing.assert_allclose(np.sort_complex(found), np.sort_complex(expected), atol=1e-12)
    np.testing.assert_allclose(found[chosen.alone[~chosen.again]].imag, 0, atol=1e-12)


def test_half_plans_are_for_lengths_that_pay_for_two_stages() -> None:
    assert {n: (p := half_plan(n)) and p.factor for n in (12, 64, 97, 98, 127, 225, 256)} == {
        12: None, 64: None, 97: None, 98: 14, 127: None, 225: 25, 256: 16,
    }  # fmt: skip
