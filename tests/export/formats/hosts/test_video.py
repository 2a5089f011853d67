"""A clip through the files of the video tools: it flickers no more than it did."""

from __future__ import annotations

import numpy as np
import pytest

from clusir.export.formats.hosts.folders import open_source
from clusir.export.formats.hosts.form import host_form
from clusir.export.formats.hosts.video import VsMlrt
from clusir.export.graph.session import Probe
from clusir.runtimes.runners.files import find_model
from tests import needs
from tests.export.formats.hosts.flicker import BLOCKS_PX, FRAMES, Array, clip, flicker

# A twentieth of a level: means of 32 x 32 pixels that differ by less look alike in 8 bits.
ADDED = 0.05


def shown(frame: Array) -> Array:
    return (np.rint(frame.clip(0, 1) * 255) / 255).astype(np.float32)


def test_the_measure_sees_light_that_breathes_and_not_the_camera() -> None:
    frames = clip(96, grain=0)
    assert len(frames) == FRAMES
    assert np.abs(frames[1] - frames[0]).max() > 0.1  # the camera moves
    assert [flicker(frames, px) for px in (1, 8, 32)] == [0, 0, 0]
    breathing = [frame + np.float32((index % 2) / 255) for index, frame in enumerate(frames)]
    assert [flicker(breathing, px) for px in (1, 8, 32)] == pytest.approx([1, 1, 1], abs=1e-4)
    patch = [frame.copy() for frame in frames]
    patch[7][:, :, 40:56, 40:56] += np.float32(10 / 255)  # in one frame, one place
    assert flicker(patch, 32) > 0.1


def test_grain_is_seen_less_in_larger_blocks() -> None:
    grain, patches, breath = (flicker(clip(128), px) for px in BLOCKS_PX)
    assert grain > 5 * patches > 10 * breath > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=needs.FULL)])
def test_a_restored_clip_flickers_no_more_than_its_source(seed: int) -> None:
    """The shipped network, told to mend noise as in the files of both tools."""
    host = VsMlrt()
    source = host.prepare(open_source(find_model(None).whole))
    probe = Probe(host_form(source, host.form(source)), threads=1)
    frames = clip(source.spec.size.static_px, seed, count=16)
    restored = [shown(probe.run({"input": frame})["output"]) for frame in frames]
    before, after = ([flicker(seen, px) for px in BLOCKS_PX] for seen in (frames, restored))
    assert all(new <= old for new, old in zip(after[:2], before[:2], strict=True)), (before, after)
    assert after[0] < 0.6 * before[0]  # the grain is mended, so that a network that does nothing does not pass
    assert after[2] <= before[2] + ADDED, (before, after)
