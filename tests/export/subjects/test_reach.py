"""How far a pixel of a graph looks: found with as few answers as show it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from clusir.export import tiled
from clusir.export.passes.simplify import AttachMetadata
from clusir.export.pooling.find import Blocked
from clusir.export.subjects.onnx_probe import Reach, measure_reach
from clusir.export.subjects.tiles import Tiles, measured
from clusir.export.validate.memory import Memory, Watched
from clusir.spec import ModelSpec, SizeRequirements

Picture = NDArray[np.float32]


class Asked:
    """A picture to itself and a part of one that lies ``far`` px to the left (None: of how far its mean is below a
    limit); counts its calls."""

    def __init__(self, far: int | None, part: float = 0.2, below: float = 1.0) -> None:
        self.far, self.part, self.below, self.calls = far, part, below, 0

    def __call__(self, image: Picture) -> Picture:
        self.calls += 1
        mean = max(0.0, self.below - float(image.mean()))
        rest = np.full_like(image, mean) if self.far is None else np.roll(image, self.far, axis=3)
        return np.asarray(image + np.float32(self.part) * rest, np.float32)


def test_one_picture_that_shows_the_whole_is_enough() -> None:
    run = Asked(None)
    found = measure_reach(run, 160, 3)
    assert found.whole
    assert found.pixels == 64
    assert run.calls == 2


def test_a_picture_that_does_not_show_it_leaves_it_to_the_next() -> None:
    run = Asked(None, below=0.2)  # the mean of dark pictures alone
    found = measure_reach(run, 160, 3)
    assert found.whole
    assert run.calls == 6
    assert measure_reach(run, 160, 3, found.shown).whole
    assert run.calls == 8, "the picture that showed it was not the first that was asked"


@pytest.mark.parametrize(("far", "pixels"), [(3, 4), (11, 12), (40, 48)])
def test_a_distance_is_the_least_step_that_is_enough(far: int, pixels: int) -> None:
    run = Asked(far)
    found = measure_reach(run, 160, 3)
    assert not found.whole
    assert found.pixels == pixels
    assert run.calls <= 12
    assert found == measure_reach(Asked(far), 160, 3, 2)


def test_the_picture_that_looks_farthest_decides() -> None:
    """Each of the others is satisfied with less."""

    def run(image: Picture) -> Picture:
        dark = 0.0 if float(image[..., 78:82, 78:82].mean()) > 0.15 else 1.0
        return np.asarray(image + 0.2 * np.roll(image, 3, 3) + np.float32(0.2 * dark) * np.roll(image, 40, 3))

    for first in range(3):
        assert measure_reach(run, 160, 3, first).pixels == 48


def test_pictures_that_do_not_fit_into_memory_are_not_asked_for(tmp_path: Path) -> None:
    spec = ModelSpec(size=SizeRequirements(1, 1), channels=3)
    for free, asked in ((10**12, {160, 320}), (1, {160})):
        memory = Memory(free=lambda free=free: free)  # type: ignore[misc]
        sides, looks = set[int](), Asked(None)

        def run(image: Picture, sides: set[int] = sides, looks: Asked = looks) -> Picture:
            sides.add(image.shape[2])
            held = np.ones(8 << 20, np.float32)  # of which the growth is seen
            time.sleep(0.02)
            return looks(image) + 0 * held[0]

        watched = Watched(memory, "ort", run)
        assert tiled._reach(watched, spec).whole
        assert sides == asked
        # What a seam costs is measured on a strip, and is not, where the strip is too large.
        tiles = Tiles(64, 16)
        if free == 1:
            assert measured(tmp_path / "none.onnx", watched, spec.size, tiles, 3, watched.fits) == tiles


def test_a_strip_that_seems_too_large_is_reached_in_steps(tmp_path: Path) -> None:
    spec, widths, path = ModelSpec(size=SizeRequirements(1, 1), channels=3), list[int](), tmp_path / "model.onnx"
    onnx.save(AttachMetadata(spec).apply(edged(1)).model, path)

    def run(image: Picture) -> Picture:
        widths.append(image.shape[3])
        return image

    reached = measured(path, run, spec.size, Tiles(64, 16), 3, lambda _, width: width <= 2 * max([*widths, 12]))
    assert (widths, reached.error is not None) == ([24, 48, 96], True)
    widths.clear()
    left = measured(path, run, spec.size, Tiles(64, 16), 3, lambda _, width: width <= 24)
    assert (widths, left.error) == ([24], None)
    assert "two of them do not fit into memory" in tiled.told_of(Reach(16, 0.0, False), left, spec.size)[0]


@pytest.mark.parametrize(("power", "tile"), [(2, 1536), (4, 512)], ids=["as pixels", "as their square"])
def test_where_the_whole_matters_a_tile_is_as_large_as_a_gigabyte_allows(power: int, tile: int) -> None:
    """400 bytes a pixel at 320 px, and as much at larger ones, or as much more as they have pixels."""
    held = [0]

    def run(image: Picture) -> Picture:
        held[0] = int(400 * 320**2 * (image.shape[2] / 320) ** power)
        return image

    for free, want in ((10**12, tile), (10**8, 512)):
        watched = Watched(Memory(free=lambda free=free: free, held=lambda: held[0]), "ort", run)  # type: ignore[misc]
        spec = ModelSpec(size=SizeRequirements(8, 8), channels=3)
        for side in (160, 320):
            held[0] = 0
            watched(np.zeros((1, 3, side, side), np.float32))
        held[0] = 0
        assert tiled._whole_px(watched, spec) == want


def edged(columns: int) -> onnx.ModelProto:
    """A picture whose first columns are black: as what a transform of the whole leaves at its edge."""
    value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    numbers = {"from": [columns], "to": [2**31], "axis": [3], "pads": [0, 0, 0, columns, 0, 0, 0, 0]}
    constants = [onnx.helper.make_tensor(n, onnx.TensorProto.INT64, [len(v)], v) for n, v in numbers.items()]
    nodes = [node("Slice", ["image", "from", "to", "axis"], ["rest"]), node("Pad", ["rest", "pads"], ["restored"])]
    values = [value(name, onnx.TensorProto.FLOAT, ["b", 3, "h", "w"]) for name in ("image", "restored")]
    graph = onnx.helper.make_graph(nodes, "edged", values[:1], values[1:], constants)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


def test_seams_of_what_follows_the_edges_of_a_picture_make_tiles_larger() -> None:
    spec = ModelSpec(size=SizeRequirements(8, 8), channels=3)
    made = tiled.tiled(edged(12), spec, (None, None))
    assert not made.reach.whole
    assert (made.spec.tile_px >= 512, made.spec.halo_px) == (True, 32)
    assert made.notes[-1].startswith("its answer follows the size of a picture or what lies at its edges")
    small = tiled.tiled(edged(6), spec, (256, 8))
    assert small.spec.tolerances["tiling"] > 1 / 255
    assert (small.spec.tile_px, small.spec.halo_px) == (256, 8)


def test_a_halo_is_doubled_where_a_seam_is_seen() -> None:
    """A quarter of a halo has no say: six columns of a tile are seen with a halo of 8 or 16 px, not with 32."""
    made = tiled.tiled(edged(6), ModelSpec(size=SizeRequirements(8, 8), channels=3), (None, None))
    assert made.reach.pixels == 4
    assert (made.spec.tile_px, made.spec.halo_px) == (256, 32)
    assert made.spec.tolerances["tiling"] < 1e-6
    assert not any("gigabyte" in note for note in made.notes)


def test_of_many_reasons_the_first_are_told() -> None:
    assert tiled._some([Blocked(f"MatMul {n} compares") for n in range(9)]) == (
        "MatMul 0 compares; MatMul 1 compares; and 7 more"
    )
    assert tiled._some([Blocked("one")]) == "one"
