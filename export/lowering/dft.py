"""Matrices of the discrete Fourier transform for real arithmetic, exact to the last bit of float32.

A complex value is a pair of reals. "Interleaved" means re0 im0 re1 im1 ..., the layout of ``torch.view_as_real``, so
that ``[..., K, 2]`` and ``[..., 2K]`` are the same memory and a transform along the last axis is one MatMul between two
free reshapes. All matrices act from the right: ``row @ matrix``. Angles are reduced in integers (k*n modulo N) before
cos and sin: a float32 product k*n loses the digits that the result needs. numpy only.

Formulas: X[k] = scale * sum_n x[n] exp(-2 pi i k n / N); inverse with +i. scale is 1, 1/sqrt(N) or 1/N
(:func:`norm_scale`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Matrix",
    "complex_matrix",
    "cos_sin",
    "half_bins",
    "norm_scale",
    "plane_forward",
    "plane_inverse",
    "real_forward",
    "real_inverse",
    "times_minus_i",
]

Matrix = NDArray[np.float64]


def half_bins(n: int) -> int:
    """Number of bins of a one-sided spectrum of ``n`` real samples."""
    return n // 2 + 1


def norm_scale(mode: int, n: int) -> float:
    """The factor of ATen's normalisation mode: 0 none, 1 by 1/sqrt(n), 2 by 1/n, whatever the direction."""
    if mode == 0:
        return 1.0
    return float(n) ** (-0.5 if mode == 1 else -1.0)


def cos_sin(rows: int, columns: int, n: int) -> tuple[Matrix, Matrix]:
    """cos and sin of 2 pi r c / n for r < rows, c < columns, both float64 [rows, columns]."""
    turn = np.outer(np.arange(rows), np.arange(columns)) % n
    angle = turn * (2.0 * np.pi / n)
    table_cos, table_sin = np.cos(angle), np.sin(angle)
    # The exact zeros of the circle, so that an impulse gives exact zeros and not 1e-17.
    table_cos[(4 * turn == n) | (4 * turn == 3 * n)] = 0.0
    table_sin[2 * turn == n] = 0.0
    return table_cos, table_sin


def real_forward(n: int, bins: int, scale: float = 1.0) -> Matrix:
    """[n, 2*bins]: n real samples -> the first ``bins`` bins, interleaved."""
    table_cos, table_sin = cos_sin(n, bins, n)
    return np.stack([table_cos, -table_sin], axis=-1).reshape(n, 2 * bins) * scale


def real_inverse(n: int, scale: float = 1.0) -> Matrix:
    """[2*half_bins(n), n]: one-sided interleaved spectrum -> n real samples.

    Like torch's c2r, the imaginary parts of bin 0 and, for even n, of bin n/2 have no effect.
    """
    bins = half_bins(n)
    table_cos, table_sin = cos_sin(bins, n, n)
    weight = np.full((bins, 1), 2.0)
    weight[0] = 1.0
    if n % 2 == 0:
        weight[-1] = 1.0
    return np.stack([table_cos * weight, -table_sin * weight], axis=1).reshape(2 * bins, n) * scale


def complex_matrix(n: int, inverse: bool, scale: float = 1.0) -> Matrix:
    """[2n, 2n]: interleaved complex -> interleaved complex transform of the same length."""
    table_cos, table_sin = cos_sin(n, n, n)
    if not inverse:
        table_sin = -table_sin
    matrix = np.empty((n, 2, n, 2))
    matrix[:, 0, :, 0] = matrix[:, 1, :, 1] = table_cos
    matrix[:, 0, :, 1] = table_sin
    matrix[:, 1, :, 0] = -table_sin
    return matrix.reshape(2 * n, 2 * n) * scale


def plane_forward(height: int, width: int, scale: float = 1.0) -> Matrix:
    """[height*width, 2*height*half_bins(width)]: a whole small plane, flattened, to its rfft2, interleaved."""
    planes = np.eye(height * width).reshape(-1, height, width)
    bins = np.fft.rfft2(planes).reshape(height * width, -1) * scale
    return np.stack([bins.real, bins.imag], axis=-1).reshape(height * width, -1)


def plane_inverse(height: int, width: int, scale: float = 1.0) -> Matrix:
    """[2*height*half_bins(width), height*width]: the way back, for any spectrum, as torch's irfft2 (unscaled)."""
    bins = height * half_bins(width)
    units = np.stack([np.eye(bins), 1j * np.eye(bins)], axis=1).reshape(2 * bins, height, -1)
    planes = np.fft.irfft2(units, s=(height, width), norm="forward")
    return np.asarray(planes.reshape(2 * bins, height * width) * scale)


def times_minus_i(matrix: Matrix) -> Matrix:
    """The matrix whose interleaved output is -i times that of ``matrix``: (re, im) -> (im, -re)."""
    pairs = matrix.reshape(len(matrix), -1, 2)
    return np.stack([pairs[..., 1], -pairs[..., 0]], axis=-1).reshape(matrix.shape)
