"""Somebody else's graph, made ready for pictures of any size: how far its pixels look, tiles, and what tiles share.

Where an answer depends on the whole picture, what is pooled over it is cut out of the graph (``pooling``), and the
model becomes three: NAME.onnx, which answers alone, NAME.tile.onnx, which is given the statistics, and
NAME.statistics.onnx, which computes them.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from clusir.errors import ExportError, ValidationError
from clusir.export.graph.index import drop_unused
from clusir.export.graph.numbers import numbers_as_inputs
from clusir.export.graph.session import Probe
from clusir.export.kept import usual_memory
from clusir.export.passes.simplify import AttachMetadata
from clusir.export.passes.steady_norm import SteadyNorm
from clusir.export.pooling.check import SplitRun, whole_window
from clusir.export.pooling.find import Blocked, find_statistics
from clusir.export.pooling.split import Split, split_statistics
from clusir.export.subjects.onnx_probe import Array, Reach, measure_reach, natural_picture, runner
from clusir.export.subjects.tiles import WHOLE_TILES_PX, Tiles, choose_tiles, measured, told_of, tolerances_of
from clusir.export.validate.compare import check as checked
from clusir.export.validate.compare import compare
from clusir.export.validate.memory import Memory, Watched
from clusir.export.validate.pictures import PictureCheck, Row, compare_pictures
from clusir.export.validate.tolerances import tolerance
from clusir.runtimes import open_runner
from clusir.spec import MAX_STATISTICS, ModelSpec, SizeRequirements

__all__ = ["Tiled", "agreeing", "compare_sidecars", "steadied", "tiled"]

_REACH_PX = 320
_NEAR_PX = 160  # tried first: a quarter of the pixels, and enough for most networks
_LARGEST_TILE_BYTES = 1 << 30  # a tile of a network to which the whole picture matters
_LEVEL = 1 / 255  # of a seam that is seen
_MOST_HALOS = 4  # of a reach: a halo where seams are seen with less
_EDGES = (
    "its answer follows the size of a picture or what lies at its edges, although no pixel looks far: tiles are as"
    " large as a gigabyte allows"
)
_MOST_REASONS = 2  # of a note
_LEAST_PX = 18  # of a fixed size
_SEAM_PX, _SEAM_HALOS = 128, 4  # the side of a tile whose seam is measured: at least so many pixels, and halos
_MOST_COMPARED_PX = 512  # the side of a photo that is compared, where no pixel looks that far
_LEAST_COMPARED_PX = 192  # below it a photo is no larger than the other pictures

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Tiled:
    """``graphs``: with their metadata, by what their names end in (``""``, ``.tile``, ``.statistics``); ``reach``: of
    the graph as it came."""

    spec: ModelSpec
    graphs: Mapping[str, ModelProto]
    reach: Reach
    notes: tuple[str, ...]

    def save(self, folder: Path, stem: str) -> None:
        """Write every graph into a folder."""
        for end, made in self.graphs.items():
            onnx.save_model(made, str(folder / f"{stem}{end}.onnx"))

    def compared_px(self) -> tuple[int, ...]:
        """Sides of the photo that is compared: a tile's, where sums over it may lose digits, up to 1024 px; no pixel
        sums over more than it looks at. Then smaller ones, for a model that takes too long for it."""
        size = self.spec.size
        most = size.padded(_MOST_COMPARED_PX * (2 if self.reach.whole else 1))
        side = min(self.spec.tile_px, most)
        smaller = () if size.static_px else (size.padded(side * eighths // 8) for eighths in (6, 4, 3))
        return tuple(dict.fromkeys((side, *(px for px in smaller if _LEAST_COMPARED_PX <= px < side))))

    def pool(self) -> Callable[[Array], Array] | None:
        """BxCxHxW to the statistics [B, S] of each picture alone; None where tiles share none."""
        if ".statistics" not in self.graphs:
            return None
        probe = Probe(self.graphs[".statistics"], threads=1)

        def one(image: Array) -> Array:
            return probe.run(whole_window(image, self.spec.statistics))["statistics"]

        return lambda images: np.concatenate([one(image[None]) for image in images])

    def sidecars(self, stem: str) -> dict[str, bytes]:
        """The files beside ``stem.onnx``, by name."""
        return {f"{stem}{end}.onnx": made.SerializeToString() for end, made in self.graphs.items() if end}


def tiled(
    model: ModelProto, spec: ModelSpec, wanted: tuple[int | None, int | None], progress: Progress = lambda _: None
) -> Tiled:
    """Measure the graph (``image`` -> ``restored``), split it where it pools over the picture, choose tiles.

    ``spec`` says name, channels, scale and size; ``wanted``: tile and halo in pixels, None where they are to be chosen.
    Raises UsageError where they do not fit.
    """
    run = _single(model)
    progress("measuring how far a pixel looks")
    side = spec.size.static_px or spec.size.padded(_REACH_PX)
    if side < _LEAST_PX:
        note = f"takes {side} px only, which is too small to measure how far a pixel looks"
        spec = replace(spec, tile_px=side, halo_px=min(16, (side - 1) // 4) if wanted[1] is None else wanted[1])
        return Tiled(spec, _graphs(model, None, spec), Reach(side, 0.0, True), (note,))
    reach = _reach(run, spec)
    found = _Found(None, reach, spec.size, "")
    if reach.whole:
        progress("looking for what is pooled over the picture")
        found = replace(_split(model, run, spec, reach), whole=reach)
    return _made(model, run, spec, found, wanted, progress)


def _made(
    model: ModelProto,
    run: Watched,
    spec: ModelSpec,
    found: _Found,
    wanted: tuple[int | None, int | None],
    progress: Progress,
) -> Tiled:
    """The graphs of what was found, with tiles and what they cost."""
    progress("measuring what tiles cost")
    tiles, spec = _priced(model, run, spec, found, wanted)
    most = _MOST_HALOS * tiles.halo
    while _seen(tiles) and not found.reach.whole and wanted[1] is None and 2 * tiles.halo <= most:
        # borders' padding, and windows cut elsewhere, show farther than a pixel looks
        farther = replace(found, reach=replace(found.reach, pixels=2 * tiles.halo))
        wider, made = _priced(model, run, spec, farther, wanted)
        if wider.halo <= tiles.halo:
            break
        tiles, spec = wider, made
    told = [*told_of(found.reach, tiles, found.size), *([found.told] if found.told else [])]
    if _seen(tiles) and not found.reach.whole and found.split is None and wanted == (None, None):
        tiles, spec = _priced(model, run, spec, replace(found, reach=replace(found.reach, whole=True)), wanted)
        told = [*told_of(found.reach, tiles, found.size), *told[1:], _EDGES]
    reach = found.whole or found.reach
    return Tiled(spec, _graphs(model, found.split, spec), reach, tuple(told))


def _seen(tiles: Tiles) -> bool:
    """Whether a seam between tiles is a level of eight bits or more."""
    return (tiles.error or 0.0) > _LEVEL


def _priced(
    model: ModelProto, run: Watched, spec: ModelSpec, found: _Found, wanted: tuple[int | None, int | None]
) -> tuple[Tiles, ModelSpec]:
    """Tiles for what was found, what they cost, and the spec that says so."""
    tiles = choose_tiles(found.reach, found.size, *wanted, whole_px=partial(_whole_px, run, spec))
    spec = replace(spec, size=found.size, tile_px=tiles.tile, halo_px=tiles.halo)
    if found.split is not None:  # the graphs of one model know each other by it
        digest = hashlib.sha256(model.SerializeToString()).hexdigest()
        spec = replace(spec, graph="pooled", statistics=found.split.count, checkpoint_sha256=digest)
    reach = found.whole or found.reach
    tiles = _cost(Tiled(spec, _graphs(model, found.split, spec), reach, ()), run, tiles)
    return tiles, replace(spec, tolerances=tolerances_of(tiles))


def steadied(made: Tiled) -> Tiled | None:
    """The same with a whole graph whose instance norms are exact for maps of nearly one colour, too; None where it has
    none. A tile graph is given its means and has no norms."""
    found = SteadyNorm().apply(made.graphs[""])
    if not found.modified:
        return None
    note = f"SteadyNorm: {found.notes[0]}: the runtimes' own are off for maps of nearly one colour"
    return replace(made, graphs={**made.graphs, "": found.model}, notes=(*made.notes, note))


def agreeing(
    made: Tiled, check: PictureCheck, wanted: tuple[int | None, int | None], progress: Progress = lambda _: None
) -> tuple[Tiled, list[Row]]:
    """What tiles share, compared (:func:`compare_sidecars`); where that is further off than it may be, the whole graph
    alone, whose tiles share nothing: it is right, and a file for any size. ``wanted``: as in :func:`tiled`."""
    try:
        return made, compare_sidecars(made, check, progress)
    except ValidationError as error:
        model = made.graphs[""]
        spec = replace(made.spec, graph="whole", statistics=0, checkpoint_sha256="")
        found = _Found(None, made.reach, spec.size, f"tiles share no statistics: {error}")
        kept = [note for note in made.notes if note.startswith("SteadyNorm")]
        apart = _made(model, _single(model), spec, found, wanted, progress)
        return replace(apart, notes=(*apart.notes, *kept)), []


def _whole_px(run: Watched, spec: ModelSpec) -> int:
    """The largest tile of :data:`WHOLE_TILES_PX` that takes no more than a gigabyte, so that most pictures are one: by
    what two pictures took, and how memory grew from the smaller to the larger."""
    near, far = (spec.size.padded(px) for px in (_REACH_PX, WHOLE_TILES_PX[-1]))
    if not run.fits(far, far) or near >= far:
        return WHOLE_TILES_PX[-1]
    with usual_memory():
        run(natural_picture(far, far, spec.planes))
    less, took = (run.memory.need(run.runtime, (side, side)) for side in (near, far))
    if not 0 < less <= took:
        return WHOLE_TILES_PX[-1]
    growth = min(
        max(math.log(took / less) / math.log(far / near), 2.0), 4.0
    )  # with the side: as pixels, or their square
    most = min(_LARGEST_TILE_BYTES, run.memory.spare())
    fitting = (side for side in WHOLE_TILES_PX if took * (spec.size.padded(side) / far) ** growth <= most)
    return next(fitting, WHOLE_TILES_PX[-1])


def _reach(run: Watched, spec: ModelSpec) -> Reach:
    """How far a pixel looks, on a small picture where that is enough to see it."""
    side, near = (spec.size.static_px or spec.size.padded(px) for px in (_REACH_PX, _NEAR_PX))
    shown = 0
    if near < side:
        found = measure_reach(run, near, spec.planes)
        if not found.whole or not run.fits(side, side):
            return found
        shown = found.shown
    return measure_reach(run, side, spec.planes, shown)


def _single(model: ModelProto) -> Watched:
    """One picture to its answer, whatever batch the graph is fixed to."""
    run, batch = runner(model), model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    return Watched(Memory(), "ort", run if batch <= 1 else lambda image: run(np.repeat(image, batch, axis=0))[:1])


@dataclass(frozen=True)
class _Found:
    """The two graphs (None: none), how far a pixel of a tile looks, the sizes at which that holds, a sentence;
    ``whole``: how far a pixel of the picture looks, where that is farther."""

    split: Split | None
    reach: Reach
    size: SizeRequirements
    told: str
    whole: Reach | None = None


def _split(model: ModelProto, run: Watched, spec: ModelSpec, reach: Reach) -> _Found:
    """Cut out what is pooled over the picture, where that is all that makes a pixel depend on the whole of it."""

    def none(why: str) -> _Found:
        return _Found(None, reach, spec.size, f"tiles share no statistics: {why}")

    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    if spec.size.static_px:
        return none("the graph takes one size, so that what follows the picture's size cannot be told")
    if spec.size.maximum:
        return none(f"the network takes {spec.size.maximum} px at most, so that nothing can be told of larger pictures")
    if batch > 1:
        return none(f"the graph takes {batch} pictures at a time")
    if len(model.graph.output) > 1:
        return none("it has routed experts, which tiles would choose each for itself")
    try:
        found = find_statistics(_plain(model), spec, batches=batch == 0)
    except ExportError as error:
        return none(str(error))
    if not found.statistics:
        return none(_some(found.blocked) or "no reduction over the picture was found")
    split = split_statistics(found)
    if split.count > MAX_STATISTICS:
        return none(f"they are {split.count} numbers, of at most {MAX_STATISTICS}")
    size = replace(spec.size, multiple_of=found.multiple, minimum=_up(spec.size.minimum, found.multiple))
    shared = SplitRun(split)
    side = size.padded(_NEAR_PX)
    if not run.fits(side, side):
        return none(f"a picture of {side} px, by which that is tried, does not fit into memory")
    statistics = shared.pool(natural_picture(side, side, spec.planes))
    near = _reach(replace(run, run=shared.given(statistics)), replace(spec, size=size))
    if near.whole:
        return none(_some(found.blocked) or "under given statistics, too, an answer depends on the whole picture")
    fault = shared.fault(run, near.pixels, replace(spec, size=size))
    if fault:
        return none(fault)
    steps = "" if split.levels == 1 else f", in {split.levels} steps that follow from each other"
    told = f"pools {split.count} numbers over the whole picture{steps}; its tiles share them"
    return _Found(split, near, size, told)


def _some(reasons: Sequence[Blocked]) -> str:
    """The first of some reasons, and how many more there are: a network of transforms has a hundred."""
    more = f"; and {len(reasons) - _MOST_REASONS} more" if len(reasons) > _MOST_REASONS else ""
    return "; ".join(map(str, reasons[:_MOST_REASONS])) + more


def _plain(model: ModelProto) -> ModelProto:
    """The graph with its picture as the only output."""
    made = ModelProto()
    made.CopyFrom(model)
    kept = [output for output in model.graph.output if output.name == "restored"]
    del made.graph.output[:]
    made.graph.output.extend(kept)
    drop_unused(made.graph)
    return made


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _graphs(model: ModelProto, split: Split | None, spec: ModelSpec) -> dict[str, ModelProto]:
    parts = {"pooled" if split is not None else "whole": ("", model)}
    if split is not None:
        parts |= {"tile": (".tile", split.tile), "statistics": (".statistics", split.statistics)}
    described = {
        end: AttachMetadata(replace(spec, graph=kind)).apply(made).model for kind, (end, made) in parts.items()
    }
    return {end: numbers_as_inputs(made, spec.numbers) if spec.numbers else made for end, made in described.items()}


def _cost(made: Tiled, run: Watched, tiles: Tiles) -> Tiles:
    """The tiles with the error that they cost, measured as ``clusir-run`` cuts pictures. Where no pixel looks beyond a
    distance a seam costs the same between smaller tiles of the same halo, which take a fraction of the time."""
    spec = made.spec
    if not made.reach.whole:
        spec = replace(spec, tile_px=min(spec.tile_px, spec.size.padded(max(_SEAM_PX, _SEAM_HALOS * tiles.halo))))
        made = replace(made, graphs=_graphs(made.graphs[""], None, spec))
    with tempfile.TemporaryDirectory(prefix="clusir-") as folder:
        made.save(Path(folder), "model")
        cut = replace(tiles, tile=spec.tile_px)
        path = Path(folder) / "model.onnx"
        return replace(tiles, error=measured(path, run, spec.size, cut, spec.planes, run.fits).error)


def compare_sidecars(made: Tiled, check: PictureCheck, progress: Progress = lambda _: None) -> list[Row]:
    """The tile graph, given each picture's own statistics, against the reference of the whole; and on each backend the
    statistics graph against what ONNX Runtime makes of it. Empty where there are none. Raises ValidationError."""
    pool = made.pool()
    if pool is None:
        return []
    with tempfile.TemporaryDirectory(prefix="clusir-") as name:
        folder = Path(name)
        made.save(folder, "model")
        rows = compare_pictures(folder / "model.tile.onnx", replace(check, pool=pool), progress=progress)
        height, width = check.sizes[-1]
        image = natural_picture(height, width, check.channels)
        for backend in check.backends:
            with open_runner(folder / "model.statistics.onnx", backend, "cpu") as run:
                got = run.run(whole_window(image, made.spec.statistics))["statistics"]
            want = pool(image)
            scale = max(1.0, float(np.abs(want).max()))
            found = compare({"statistics": want / scale}, {"statistics": got / scale}, tolerance("brought"))
            what = f"{height}x{width}, statistics"
            rows.append((backend, what, checked(found, f"{backend}, {what}")))
    return [(backend, f"tile graph, {what}", found) for backend, what, found in rows]
