"""Short-time Fourier transforms, as windows that are cut out, transformed and added up again.

The operator STFT of ONNX is read by few runtimes, and its inverse has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SHORT_TIME"]


def _window(window: Tensor | None, length: int, count: int, like: Tensor) -> Tensor:
    """The window of ``count`` numbers with zeros around it, ``length`` in all."""
    kind = like.real.dtype if like.is_complex() else like.dtype
    made = torch.ones(count, dtype=kind, device=like.device) if window is None else window
    before = (length - count) // 2
    return F.pad(made, (before, length - count - before))


def _stft(input: Tensor, n_fft: int, hop_length: int | None = None, win_length: int | None = None,
          window: Tensor | None = None, center: bool = True, pad_mode: str = "reflect", normalized: bool = False,
          onesided: bool | None = None, return_complex: bool | None = None,
          align_to_window: bool | None = None) -> Any:  # fmt: skip
    """[B, L] or [L] to [B, bins, frames], complex."""
    if not return_complex or input.is_complex() or input.dim() > 2 or align_to_window is not None:
        return NotImplemented
    rows = input if input.dim() == 2 else input[None]
    if center:
        rows = F.pad(rows[:, None], (n_fft // 2, n_fft // 2), mode=pad_mode)[:, 0]
    frames = rows.unfold(-1, n_fft, hop_length or n_fft // 4) * _window(window, n_fft, win_length or n_fft, input)
    transform = torch.fft.fft if onesided is False else torch.fft.rfft
    made = transform(frames, dim=-1, norm="ortho" if normalized else "backward").transpose(1, 2)
    return made if input.dim() == 2 else made[0]


def _istft(input: Tensor, n_fft: int, hop_length: int | None = None, win_length: int | None = None,
           window: Tensor | None = None, center: bool = True, normalized: bool = False, onesided: bool | None = None,
           length: Any = None, return_complex: bool = False) -> Any:  # fmt: skip
    """[B, bins, frames] or [bins, frames], complex, to [B, L] or [L]: what the windows add up to, divided by the sum of
    their squares."""
    if return_complex or not input.is_complex():
        return NotImplemented
    step, shape = hop_length or n_fft // 4, _window(window, n_fft, win_length or n_fft, input)
    spectra = (input if input.dim() == 3 else input[None]).transpose(1, 2)
    norm = "ortho" if normalized else "backward"
    if onesided is False:
        frames = torch.fft.ifft(spectra, dim=-1, norm=norm).real
    else:
        frames = torch.fft.irfft(spectra, n=n_fft, dim=-1, norm=norm)
    total = n_fft + step * (frames.shape[1] - 1)

    def added(parts: Tensor) -> Tensor:
        return F.fold(parts.transpose(1, 2), (1, total), (1, n_fft), stride=(1, step))[:, 0, 0]

    begin = n_fft // 2 if center else 0
    end = total - begin if length is None else begin + length
    weight = added((shape * shape).expand(1, frames.shape[1], n_fft))[:, begin:end]
    made = added(frames * shape)[:, begin:end] / weight
    if length is not None:
        made = F.pad(made, (0, length - made.shape[1]))
    return made if input.dim() == 3 else made[0]


SHORT_TIME: dict[Any, Callable[..., Any]] = {
    torch.stft: _stft,
    Tensor.stft: _stft,
    torch.istft: _istft,
    Tensor.istft: _istft,
}
