"""Other denoisers on the same pixels: BM3D, OpenCV's non-local means, Intel Open Image Denoise; none is a dependency.

BM3D and non-local means are told the noise's standard deviation, which no blind model is. On pairs of real noise, whose
deviation nobody knows, they are told the pair's own, measured against its clean side: more than they could know.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clusir.degrade.recipe import CAMERA_PRESETS, PRESETS, Recipe
from clusir.errors import UsageError
from clusir.markdown import table
from clusir.names import install_line
from clusir.quality.evaluate import list_pictures, read_picture
from clusir.quality.metrics import psnr

__all__ = ["NOISES", "PEERS", "PeerRow", "PeerTable", "peer_table"]

Bytes = NDArray[np.uint8]
Denoiser = Callable[[Bytes, float], Bytes]

NOISES: tuple[str, ...] = ("noise 15", "noise 25", "noise 50", *CAMERA_PRESETS)
"""The rows that are made from clean photos."""

PAIRS = "real pairs"


def _bm3d(noisy: Bytes, sigma: float) -> Bytes:
    """Dabov et al., "Image denoising by sparse 3-D transform-domain collaborative filtering" (IEEE TIP 2007)."""
    from bm3d import bm3d_rgb

    return _bytes(bm3d_rgb(noisy.astype(np.float64) / 255.0, sigma_psd=max(sigma, 0.1) / 255.0))


def _non_local_means(noisy: Bytes, sigma: float) -> Bytes:
    """OpenCV's fastNlMeansDenoisingColored: 7x7 patches, 21x21 windows, h = 0.9 sigma for brightness and colour."""
    import cv2

    strength = 0.9 * max(sigma, 0.1)
    return np.asarray(cv2.fastNlMeansDenoisingColored(noisy, None, strength, strength, 7, 21), np.uint8)


def _open_image_denoise(noisy: Bytes, sigma: float, quality: str = "high") -> Bytes:
    """Made for renderings; blind. ``quality``: of its three networks the "fast" one is smallest."""
    import pyoidn

    return _bytes(pyoidn.denoise(noisy.astype(np.float32) / np.float32(255.0), quality=quality))


PEERS: dict[str, tuple[str, Denoiser]] = {
    "BM3D": ("bm3d", _bm3d),
    "non-local means": ("cv2", _non_local_means),
    "Open Image Denoise": ("pyoidn", _open_image_denoise),
    "Open Image Denoise, fast": ("pyoidn", partial(_open_image_denoise, quality="fast")),
}
"""Name -> the module it needs, and the denoiser: HxWx3 uint8 and sigma of 255 to the same."""


@dataclass(frozen=True)
class PeerRow:
    """One kind of noise: pictures, PSNR of the input, and by name of what denoised: mean PSNR, the worst gain on any
    picture, and CPU seconds a megapixel."""

    name: str
    pictures: int
    input_db: float
    psnr_db: dict[str, float]
    worst_gain_db: dict[str, float]
    cpu_s_per_megapixel: dict[str, float]


@dataclass(frozen=True)
class PeerTable:
    """The rows, what they were measured on, and which peers were not installed."""

    folder: str
    rows: tuple[PeerRow, ...]
    missing: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_markdown(self) -> str:
        """PSNR in dB (the worst gain in brackets), then CPU seconds a megapixel over all rows."""
        names = list(self.rows[0].psnr_db) if self.rows else []
        cells = [
            [row.name, f"{row.input_db:.2f}"]
            + [f"{row.psnr_db[name]:.2f} ({row.worst_gain_db[name]:+.2f})" for name in names]
            for row in self.rows
        ]
        times = [np.mean([row.cpu_s_per_megapixel[name] for row in self.rows]) for name in names]
        cells.append(["CPU s a megapixel", "", *(f"{value:.2f}" for value in times)])
        return table(["noise", "input dB", *names], cells)


def peer_table(
    folder: str | Path,
    ours: Mapping[str, Callable[[Bytes], Bytes]],
    *,
    rows: Sequence[str] = NOISES,
    limit: int | None = None,
    seed: int = 0,
    observe: Callable[[str], None] = lambda text: None,
) -> PeerTable:
    """``ours`` (by name; HxWx3 uint8 to the same) and every peer that is installed, on the same pixels.

    A ``folder`` with sub-folders ``noisy`` and ``clean`` holds pairs of equal names; any other holds clean photos, and
    each of ``rows`` adds its noise. Raises UsageError for unknown rows, empty folders and pairs that do not match.
    """
    folder = Path(folder)
    peers: dict[str, Denoiser] = {name: _blind(run) for name, run in ours.items()}
    missing = []
    for name, (module, run) in PEERS.items():
        if find_spec(module) is None:
            missing.append(name)
            observe(f"{name} is left out, {module} is not installed: {install_line(module)}")
        else:
            peers[name] = run
    if (folder / "noisy").is_dir() and (folder / "clean").is_dir():
        return PeerTable(str(folder), (_measure(PAIRS, _pairs(folder, limit), peers, observe),), tuple(missing))
    presets = PRESETS | CAMERA_PRESETS
    if unknown := [row for row in rows if row not in presets]:
        raise UsageError(f"unknown noise {unknown[0]!r}; there are {', '.join(NOISES)}")
    paths = list_pictures(folder, limit)
    found = [_measure(row, _noisy(paths, presets[row], seed), peers, observe) for row in rows]
    return PeerTable(str(folder), tuple(found), tuple(missing))


def _blind(run: Callable[[Bytes], Bytes]) -> Denoiser:
    return lambda noisy, sigma: run(noisy)


def _noisy(
    paths: Sequence[Path], make: Callable[[np.random.Generator], Recipe], seed: int
) -> Iterator[tuple[Bytes, Bytes]]:
    """(noisy, clean) of each picture; a camera's clean picture is what it would give without noise."""
    for index, path in enumerate(paths):
        recipe = make(np.random.default_rng([seed, index]))
        photo = read_picture(path).astype(np.float32) / np.float32(255.0)
        yield _bytes(recipe.apply(photo)), _bytes(recipe.apply(photo, []))


def _pairs(folder: Path, limit: int | None) -> Iterator[tuple[Bytes, Bytes]]:
    for path in list_pictures(folder / "noisy", limit):
        other = folder / "clean" / path.name
        if not other.is_file():
            raise UsageError(f"{folder / 'clean'} holds no {path.name}; pairs have equal names")
        noisy, clean = read_picture(path), read_picture(other)
        if noisy.shape != clean.shape:
            raise UsageError(f"{path.name} is {noisy.shape[:2]} noisy and {clean.shape[:2]} clean; pairs have one size")
        yield noisy, clean


def _measure(
    name: str, pairs: Iterator[tuple[Bytes, Bytes]], peers: Mapping[str, Denoiser], observe: Callable[[str], None]
) -> PeerRow:
    before: list[float] = []
    after: dict[str, list[float]] = {peer: [] for peer in peers}
    seconds = dict.fromkeys(peers, 0.0)
    pixels = 0
    for noisy, clean in pairs:
        sigma = float((noisy.astype(np.float64) - clean).std())
        before.append(_psnr(noisy, clean))
        pixels += noisy.shape[0] * noisy.shape[1]
        for peer, run in peers.items():
            begin = time.process_time()
            out = run(noisy, sigma)
            seconds[peer] += time.process_time() - begin
            after[peer].append(_psnr(out, clean))
    observe(f"{name}: {len(before)} pictures")
    worst = {peer: float(np.min(np.subtract(values, before))) for peer, values in after.items()}
    means = {peer: float(np.mean(values)) for peer, values in after.items()}
    times = {peer: value / (pixels / 1e6) for peer, value in seconds.items()}
    return PeerRow(name, len(before), float(np.mean(before)), means, worst, times)


def _psnr(a: Bytes, b: Bytes) -> float:
    return min(psnr(a.astype(np.float64) / 255.0, b.astype(np.float64) / 255.0), 60.0)


def _bytes(image: NDArray[np.floating[Any]]) -> Bytes:
    levels: Bytes = np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
    return levels
