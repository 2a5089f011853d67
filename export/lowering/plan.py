"""The real Fourier basis, factorised, and the cost model that chooses the form of a transform.

The rows of the basis are the orthonormal cosines and sines of length N, so a real signal of N samples has N real
coefficients and the inverse is the transpose. A filter with a real mask that does not tell +f from -f scales
coefficient by coefficient here: no complex value and no half spectrum are needed, and the order of the coefficients is
free, because the mask can be permuted once, at export.

Factorised (N = N1*N2, N1 even, decimation in frequency, n = N2*a + b): stage 1 is the real basis of length N1 over a,
its rows paired (cos j, sin j), the first pair being (j = 0, j = N1/2). Stage 2 is one constant matrix of 2*N2 x 2*N2
for each pair, with the twiddles inside, so that there is no twiddle pass. Both stages are products with orthogonal
matrices; the inverse runs the transposes in reverse. :class:`HalfPlan`, of cosines and sines apart, also takes odd N1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from clusir.export.lowering.dft import Matrix, cos_sin

__all__ = ["HalfPlan", "RealPlan", "choose_factor", "choose_half_factor", "half_plan", "plan", "real_basis"]

# What the second stage of a factorised transform costs beside its arithmetic, in multiply-adds per sample: one more
# pass over the data and the smaller matrices' overhead. Fitted on ONNX Runtime: N = 64 breaks even.
_STAGE_OVERHEAD = 40


@dataclass(frozen=True)
class RealPlan:
    """How a real signal of ``n`` samples is transformed, all matrices acting from the left on a column.

    ``factor`` N1 (1 = direct). Direct: ``stage1`` [n, n] is the basis and ``stage2`` is empty. Factorised: ``stage1``
    [N1, N1], ``stage2`` [N1/2, 2*N2, 2*N2]. ``frequency`` [n] int: which |f| (0..n//2) each coefficient belongs to;
    ``is_sine`` [n] bool: whether it is that of the sine.
    """

    n: int
    factor: int
    stage1: Matrix
    stage2: Matrix
    frequency: NDArray[np.int64]
    is_sine: NDArray[np.bool_]

    def partner(self) -> NDArray[np.int64]:
        """For each coefficient the place of the other one (sine, cosine) of its frequency, or its own: [n] int."""
        place = {(int(f), bool(s)): k for k, (f, s) in enumerate(zip(self.frequency, self.is_sine, strict=True))}
        return np.array([place.get((f, not s), k) for (f, s), k in place.items()])

    def matrix(self) -> Matrix:
        """The whole transform [n, n]."""
        if self.factor == 1:
            return self.stage1
        rest = self.n // self.factor
        wide = np.einsum("ja,bc->jbac", self.stage1, np.eye(rest)).reshape(-1, 2 * rest, self.n)
        return np.einsum("pij,pjn->pin", self.stage2, wide).reshape(self.n, self.n)


def real_basis(n: int) -> tuple[Matrix, NDArray[np.int64], NDArray[np.bool_]]:
    """(basis [n, n], frequency [n], is_sine [n]): cosines of 0..n//2, then the sines that are not zero."""
    table_cos, table_sin = cos_sin(n // 2 + 1, n, n)
    frequency = np.arange(n // 2 + 1)
    alone = (2 * frequency) % n == 0
    table_cos *= np.where(alone, 1.0, np.sqrt(2.0))[:, None] / np.sqrt(n)
    table_sin *= np.sqrt(2.0 / n)
    basis = np.concatenate([table_cos, table_sin[~alone]])
    return (
        basis,
        np.concatenate([frequency, frequency[~alone]]),
        np.concatenate([np.zeros(len(frequency), bool), np.ones(int((~alone).sum()), bool)]),
    )


def choose_factor(n: int) -> int:
    """N1 of the cheapest form: 1 (direct) or an even divisor of n that pays for the second stage."""
    best, cost = 1, float(n)
    for factor in range(4, n // 2 + 1, 2):
        if n % factor == 0 and factor + 2 * (n // factor) + _STAGE_OVERHEAD < cost:
            best, cost = factor, factor + 2 * (n // factor) + _STAGE_OVERHEAD
    return best


@lru_cache(maxsize=32)
def plan(n: int, factor: int | None = None) -> RealPlan:
    """The plan for length ``n``; ``factor`` overrides the cost model (1, or an even divisor from 4 to n/2)."""
    factor = choose_factor(n) if factor is None else factor
    basis, frequency, is_sine = real_basis(n)
    if factor == 1:
        return RealPlan(n, 1, basis, np.zeros((0, 0, 0)), frequency, is_sine)
    if factor % 2 or n % factor or not 4 <= factor <= n // 2:
        raise ValueError(f"factor {factor} of length {n} is not an even divisor between 4 and {n // 2}")
    rest, half = n // factor, factor // 2
    stage1, order = _paired_basis(factor)
    blocks, order_of_rows = [], []
    for pair in range(half):
        residues = (0, half) if pair == 0 else (pair,)
        folded = np.minimum(frequency % factor, -frequency % factor)
        # A cosine in the first half, its sine at the same place of the second; frequencies 0 and n/2, which have no
        # sine, face each other.
        rows = [r for j in residues for r in np.flatnonzero(folded == j)]
        rows.sort(key=lambda r: (is_sine[r], frequency[r]))
        mine = basis[rows].reshape(len(rows), factor, rest)
        blocks.append(np.einsum("kab,ja->kjb", mine, stage1[order[2 * pair : 2 * pair + 2]]).reshape(len(rows), -1))
        order_of_rows += rows
    return RealPlan(n, factor, stage1[order], np.stack(blocks), frequency[order_of_rows], is_sine[order_of_rows])


@dataclass(frozen=True)
class HalfPlan:
    """Cosines and sines of the frequencies 0..n//2 of a real signal of ``n`` samples, in two stages, B pairs of rows in
    the first and P frequencies for each pair.

    ``stage1`` [2*B, N1], of orthonormal columns: B is N1/2; or (N1+1)/2 where N1 is odd, the first pair being (j = 0,
    zeros). ``cosines`` and ``sines`` [B, P, 2*N2] act on what it leaves for each pair of its rows, and give the sums
    over x cos and x sin, without a factor. ``alone`` [B, P] bool: whether a frequency is 0 or n/2, whose sine is zero.
    ``again``, of the same shape: one that fills a block up and is there already.
    """

    n: int
    factor: int
    stage1: Matrix
    cosines: Matrix
    sines: Matrix
    alone: NDArray[np.bool_]
    again: NDArray[np.bool_]

    @property
    def rest(self) -> int:
        """N2."""
        return self.n // self.factor

    @property
    def blocks(self) -> int:
        """B."""
        return len(self.stage1) // 2


def choose_half_factor(n: int) -> int:
    """N1 of the cheapest :class:`HalfPlan`, odd ones too; 1 where none pays for the second stage."""
    best, cost = 1, float(n)
    for factor in range(3, n // 2 + 1):
        rows = factor + factor % 2
        spent = rows + 2 * (n // factor) * rows / factor + _STAGE_OVERHEAD
        if n % factor == 0 and spent < cost:
            best, cost = factor, spent
    return best


@lru_cache(maxsize=32)
def half_plan(n: int) -> HalfPlan | None:
    """The plan for length ``n``; None where that does not factorise."""
    factor = choose_half_factor(n)
    if factor == 1:
        return None
    rest, half = n // factor, (factor + 1) // 2
    stage1 = _paired_rows(factor)
    every = np.arange(n // 2 + 1)
    tables = cos_sin(len(every), n, n)
    residue = np.minimum(every % factor, -every % factor)
    residues = [(0, half) if pair == 0 and factor % 2 == 0 else (pair,) for pair in range(half)]
    found = [every[np.isin(residue, pair)] for pair in residues]
    places = max(len(mine) for mine in found)
    frequency = np.stack([np.resize(mine, places) for mine in found])
    again = np.arange(places) >= np.array([[len(mine)] for mine in found])
    split = [table[frequency].reshape(half, places, factor, rest) for table in tables]
    pairs = stage1.reshape(half, 2, factor)
    cosines, sines = (np.einsum("pkab,pja->pkjb", table, pairs).reshape(half, places, -1) for table in split)
    return HalfPlan(n, factor, stage1, cosines, sines, (2 * frequency) % n == 0, again)


def _paired_rows(n: int) -> Matrix:
    """The basis of length n in pairs of rows: (0, n/2) or, of odd n, (0, zeros); (cos 1, sin 1), (cos 2, sin 2), ..."""
    if n % 2 == 0:
        basis, order = _paired_basis(n)
        return basis[order]
    basis, frequency, is_sine = real_basis(n)
    rows = basis[np.lexsort((is_sine, frequency))]
    return np.concatenate([rows[:1], np.zeros((1, n)), rows[1:]])


def _paired_basis(n: int) -> tuple[Matrix, list[int]]:
    """The basis of even length n and the order of its rows: (0, n/2), (cos 1, sin 1), (cos 2, sin 2), ..."""
    basis, frequency, is_sine = real_basis(n)
    cosines = {int(f): r for r, (f, s) in enumerate(zip(frequency, is_sine, strict=True)) if not s}
    sines = {int(f): r for r, (f, s) in enumerate(zip(frequency, is_sine, strict=True)) if s}
    order = [cosines[0], cosines[n // 2]]
    for j in range(1, n // 2):
        order += [cosines[j], sines[j]]
    return basis, order
