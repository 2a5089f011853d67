"""A short clip made of a photo, and how much of a clip flickers: what changes from frame to frame where nothing in the
scene does."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from clusir.export.subjects.onnx_probe import natural_picture

__all__ = ["BLOCKS_PX", "FRAMES", "Array", "clip", "flicker"]

Array = NDArray[np.float32]

FRAMES = 30
STEP_PX = (1, 2)  # down and to the right, from one frame to the next
BLOCKS_PX = (1, 8, 32)  # grain, patches, and what is seen as breathing


def clip(side_px: int, seed: int = 0, grain: float = 1, count: int = FRAMES) -> list[Array]:
    """``count`` frames 1x3xHxW in 8 bits of a camera that moves over a photo. The noise is drawn anew for each, and its
    sigma (of 255, times ``grain``) goes from 8 to 30 and back: what a network decides anew for each frame changes on
    the way."""
    rng = np.random.default_rng(seed)
    room = [side_px + count * step for step in STEP_PX]
    photo = natural_picture(room[0], room[1], 3, 20 + seed)
    frames = []
    for index in range(count):
        y, x = (index * step for step in STEP_PX)
        sigma = grain * (8 + 22 * np.sin(np.pi * index / (count - 1)) ** 2)
        frame = photo[:, :, y : y + side_px, x : x + side_px]
        noisy = (frame + rng.normal(0, sigma / 255, frame.shape)).clip(0, 1)
        frames.append((np.rint(noisy * 255) / 255).astype(np.float32))
    return frames


def flicker(frames: list[Array], block_px: int, margin_px: int = 16) -> float:
    """The mean change, in levels of 8 bits, of the brightness of blocks from one frame to the next (root mean square),
    the camera's movement taken out. ``margin_px``: of each frame, which is not looked at: borders stay with the camera
    and not with the scene."""
    changes = []
    for before, after in pairwise(frames):
        dy, dx = STEP_PX
        height, width = before.shape[2] - 2 * margin_px - dy, before.shape[3] - 2 * margin_px - dx
        old = before[:, :, margin_px + dy : margin_px + dy + height, margin_px + dx : margin_px + dx + width]
        new = after[:, :, margin_px : margin_px + height, margin_px : margin_px + width]
        change = (new.astype(np.float64) - old).mean(axis=1)[0]
        rows, columns = height // block_px, width // block_px
        blocks = change[: rows * block_px, : columns * block_px].reshape(rows, block_px, columns, block_px)
        changes.append(blocks.mean(axis=(1, 3)).ravel())
    return float(np.sqrt(np.mean(np.concatenate(changes) ** 2)) * 255)
