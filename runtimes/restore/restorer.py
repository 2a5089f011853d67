"""``Restorer``: a model, opened, as a function from picture to picture; any size, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from clusir.errors import ClusirError, ImageError, UsageError
from clusir.names import AUTO, BFLOAT16
from clusir.runtimes.images.picture import PictureInfo
from clusir.runtimes.restore.canvas import Canvas, Pixels, RowSource, crop_tile
from clusir.runtimes.restore.maps import Setting, mapped, split_settings
from clusir.runtimes.restore.permissions import hints, nothing_to_mend, steer
from clusir.runtimes.restore.pixels import check_finite, from_unit, scaled, to_unit
from clusir.runtimes.restore.routing import Routing, combine
from clusir.runtimes.restore.sidecars import check_together
from clusir.runtimes.restore.sources import ArraySource, Restorable, opened_source
from clusir.runtimes.restore.statistics import MODES as STATISTICS
from clusir.runtimes.restore.statistics import Shared, gather
from clusir.runtimes.restore.tiling import Plan, plan_picture
from clusir.runtimes.runners.base import Array, Runner
from clusir.runtimes.runners.files import ModelFiles, find_model
from clusir.runtimes.runners.late import LateRunner
from clusir.runtimes.runners.numbers import number_feeds
from clusir.runtimes.runners.opening import open_late, open_runner

__all__ = ["ALPHA_MODES", "ROUTINGS", "ArraySource", "Restorer", "RowSource", "Work"]

ROUTINGS = ("shared", "tile")
ALPHA_MODES = ("keep", "process", "drop")
# From about so many tiles of one picture on, a graph of open size, opened once more for their size, gives back the time
# that this takes.
_MANY_TILES = 32


@dataclass
class Work:
    """What one restoration did: filled in while its rows are produced. ``unchanged``: nothing was to be mended, so the
    picture is as it was."""

    tiles: int = 0
    unchanged: bool = False
    infer_s: float = 0.0
    routing: Routing | None = None
    # What the picture may suffer from and was left alone, for example "perhaps hazy: --fix haze".
    hints: list[str] = field(default_factory=list)
    _posteriors: list[Array] = field(default_factory=list, repr=False)
    _gates: list[Array] = field(default_factory=list, repr=False)
    _evidence: list[Array] = field(default_factory=list, repr=False)


class Restorer:
    """Opens a model once and restores any number of pictures, one at a time.

    ``model`` is a file, a bundle folder or zip, or None for the shipped one; ``backend``, ``device``, ``threads`` and
    ``fallback`` are those of :func:`clusir.runtimes.open_runner`. ``routing``: ``shared`` computes the routing once per
    picture for all its tiles, ``tile`` lets each tile route itself; None takes ``shared`` where the model has the two
    graphs that it needs. ``alpha``: ``keep`` (bit-exact), ``process`` (restored like a grey picture) or ``drop``.
    ``precision`` is ``fp32``, ``fp16``, ``int8``, ``bf16``, None (the file that was named) or ``auto``: the fastest
    here that loses little, float32 where nothing says what others lose (:mod:`clusir.runtimes.machine.choice`);
    ``chosen`` then says in one line what that is. ``batch`` tiles are run at a time (None: 1 on the CPU, 8 on CUDA).
    ``fix`` says which degradations may be mended, ``strength`` how far
    (:func:`clusir.runtimes.restore.permissions.steer`): by default technical ones, and haze and darkness only on strong
    evidence. Strength 0 gives back what went in. ``statistics``: of a network that pools over the whole picture,
    ``sampled`` pools windows of it, ``exact`` all of it, level by level. ``settings``: by name, for inputs that a
    network takes beside the picture, a number, or of a map (a mask) a picture of the same size. ``pixels``: how many
    are to be restored, where that is known; ``auto`` then counts what opening takes.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        backend: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        fallback: bool = False,
        routing: str | None = None,
        precision: str | None = None,
        alpha: str = "keep",
        batch: int | None = None,
        fix: str | Iterable[str] | None = None,
        strength: float | str | Mapping[str, float] = 1.0,
        statistics: str = "sampled",
        settings: Mapping[str, Setting] | None = None,
        pixels: int | None = None,
    ) -> None:
        if routing is not None and routing not in ROUTINGS:
            raise UsageError(f"routing {routing!r} is not one of {', '.join(ROUTINGS)}")
        if alpha not in ALPHA_MODES:
            raise UsageError(f"alpha {alpha!r} is not one of {', '.join(ALPHA_MODES)}")
        if statistics not in STATISTICS:
            raise UsageError(f"statistics {statistics!r} is not one of {', '.join(STATISTICS)}")
        self.alpha, self.statistics = alpha, statistics
        self._closed = False
        self.chosen = ""
        self.files: ModelFiles
        named = backend != "auto"
        if precision == AUTO:
            from clusir.runtimes.machine.choice import choose

            choice = choose(model, backend, device, threads, pixels=pixels)
            backend, precision, self.files, self.chosen = choice.backend, choice.precision, choice.files, choice.why
        else:
            self.files = find_model(model, precision, backend)
        self._open_options: dict[str, Any] = {"backend": backend, "threads": threads}
        self._backend_is_named = named
        self._sidecars: tuple[Runner, Runner] | None = None
        self._bf16 = precision == BFLOAT16
        tiles = self.files.tile is not None and self.files.router is not None
        # With a tile graph and a router, a picture of several tiles never runs the whole graph.
        opened = open_late if tiles else partial(open_runner, graph="whole")
        self._runner = opened(self.files.whole, device=device, fallback=fallback, bf16=self._bf16, **self._open_options)
        self.spec = self._runner.spec
        self.name = self._runner.name
        self._open_options["device"] = self.name.partition(":")[2]  # the sidecars run where the whole graph runs
        can_share = tiles and self.spec.routed
        if routing == "shared" and not can_share:
            self.close()
            raise UsageError(
                f"routing shared: {self.files.whole} has no .tile.onnx and .router.onnx beside it; "
                "export it again with clusir-export, or use --routing tile"
            )
        self.routing = "shared" if can_share and routing != "tile" else "tile"
        self.settings = dict(settings or {})
        try:
            self._maps, numbers = split_settings(self.settings, self.spec)
            self._numbers = number_feeds(self.spec, numbers, self.files.whole.name)
            self.steering = steer(self.spec, fix, strength)
            if statistics == "exact" and not self.spec.shares_statistics:
                raise UsageError(f"exact statistics: {self.files.whole} pools nothing over the picture; leave it out")
            if not self.steering.plain and self.routing != "shared":
                raise UsageError(
                    f"--fix and strengths of families: {self.files.whole} needs its .tile.onnx and .router.onnx beside "
                    "it, and --routing shared; --strength 0..1 works without"
                )
        except UsageError:
            self.close()
            raise
        self.batch = batch or (8 if self.name.endswith("cuda") else 1)

    @property
    def precision(self) -> str:
        """What is computed with: the precision of the file, or ``bf16``."""
        return BFLOAT16 if self._bf16 else self.spec.precision

    def restore(self, picture: Restorable) -> Any:
        """The restored picture, of the kind that was given; of a model that enlarges, ``spec.scale`` times as high and
        wide.

        An array, HxW or HxWxC (1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha), uint8, uint16, or floating in 0..1: an
        array of the same shape and dtype (alpha ``drop`` removes the last channel of 2 or 4). A Pillow image: one that
        is upright, with its profile, EXIF and resolution in ``info``. The path of a picture file: an upright array,
        HxWxC. Raises ImageError for another shape, dtype or range, for NaN, and for files that cannot be read.
        """
        restored, _ = self.restore_and_tell(picture)
        return restored

    def restore_and_tell(self, picture: Restorable) -> tuple[Any, Work]:
        """:meth:`restore`, and what it did: tiles, seconds of inference, routing."""
        work = Work()
        source, dressed = opened_source(picture)
        return dressed(np.concatenate(list(self.stream(source, work)))), work

    def restore_file(self, source: str | Path, target: str | Path) -> PictureInfo:
        """Restore one picture file into another, upright, with profile, EXIF and all else that ``target``'s format can
        hold; what it cannot is in the ``notes`` of what is returned. Raises ImageError; nothing is written then."""
        from clusir.runtimes.images.files import open_picture, output_info, save_picture

        picture = open_picture(source)
        info = output_info(picture.info, target, self.alpha, self.spec.scale)
        save_picture(target, self.stream(picture, dtype=info.dtype), info, like=Path(source))
        return info

    def stream(
        self, source: RowSource, work: Work | None = None, dtype: np.dtype[Any] | None = None
    ) -> Iterator[Pixels]:
        """Bands of restored rows, top to bottom, each final. Memory is bounded by the width, not by the height.

        Reads ``source`` once in order, and before that at up to three heights where routing is shared. ``work`` is
        filled in on the way. ``dtype``: what the rows are rounded to, once (None: what the source has).
        """
        if self._closed:
            raise UsageError(f"model {self.files.whole}: this restorer was closed; open it again")
        work = Work() if work is None else work
        source = mapped(source, self.spec, self._maps)
        if self.steering.blend == 0:
            yield from self._untouched(source, dtype)
            return
        if self.spec.channels == 1 and source.channels > 2:
            raise ImageError("the picture has colours, the model takes grey pictures only; convert it")
        plan = plan_picture(source.height, source.width, self.spec)
        work.tiles = plan.count
        routings: list[Routing | Shared | None] = [None, None]
        if self.spec.shares_statistics and plan.count > 1:
            routings[0] = self.pool(source, work)
            if self.alpha == "process" and source.channels in (2, 4):
                routings[1] = self.pool(source, work, alpha=True)
        elif self._shares(plan):
            work.routing = routings[0] = self.route(source, plan, work)
            if self.alpha == "process" and source.channels in (2, 4):
                routings[1] = self.route(source, plan, work, alpha=True)
            if all(routing.at_rest for routing in routings if routing is not None):
                work.tiles, work.unchanged = 0, True
                work.hints = hints(work.routing.evidence, self.steering.permissions, self.spec)
                yield from self._untouched(source, dtype)
                return
        self._expect(plan, routings[0] is not None)
        canvas = Canvas(
            source,
            plan,
            lambda tiles, layer: self.infer(tiles, work, routings[layer], told=layer == 0),
            self.spec,
            alpha=self.alpha,
            batch=self.batch,
            dtype=dtype,
        )
        yield from canvas.bands(self.steering.blend)
        if work.routing is None and work._posteriors:
            work.routing = Routing(_mean(work._posteriors), _mean(work._gates), shared=plan.count == 1)
            if work._evidence:
                work.routing = replace(work.routing, evidence=_mean(work._evidence))
        if work.routing is not None and len(work.routing.evidence):
            work.hints = hints(work.routing.evidence, self.steering.permissions, self.spec)
            rest = [nothing_to_mend(found, self.steering.permissions, self.spec) for found in work._evidence]
            work.unchanged = bool(rest) and all(rest)

    def _expect(self, plan: Plan, shared: bool) -> None:
        """Tell the runner which size all tiles of a picture have, where it is open and the tiles are many."""
        if self.spec.size.static_px == 0:
            runner = self._open_sidecars()[0] if shared else self._runner
            many = plan.count >= _MANY_TILES and self.batch == 1
            runner.expect((plan.y.tile, plan.x.tile) if many else None)

    def _untouched(self, source: RowSource, dtype: np.dtype[Any] | None) -> Iterator[Pixels]:
        """The rows as they are, in bands as high as a tile; less an alpha channel that is to be dropped."""
        for start in range(0, source.height, self.spec.tile_px):
            rows = source.rows(start, min(start + self.spec.tile_px, source.height))
            if self.alpha == "drop" and source.channels in (2, 4):
                rows = rows[:, :, :-1]
            yield rows.copy() if dtype is None or dtype == rows.dtype else from_unit(to_unit(rows), dtype)

    def _shares(self, plan: Plan) -> bool:
        """Whether a picture is restored by the router and the tile graph. A single tile in fp32 takes the whole graph:
        the same numbers to 1e-6 in two thirds of the time; in fewer bits the two ways would differ visibly."""
        alone = plan.count == 1 and self.precision == "fp32" and self.steering.plain
        return self.routing == "shared" and not alone

    def route(
        self, source: RowSource, plan: Plan | None = None, work: Work | None = None, *, alpha: bool = False
    ) -> Routing:
        """The routing that all tiles of a picture, or of its ``alpha`` channel, share (see
        :mod:`clusir.runtimes.restore.routing`). Raises ClusirError where the router returns NaN or infinity."""
        plan = plan or plan_picture(source.height, source.width, self.spec)
        _, router = self._open_sidecars()
        samples: list[Array] = []
        for start in plan.y.sample():
            band = source.rows(start, min(start + plan.y.tile, source.height))
            samples += [crop_tile(band, plan.x, left, plan.y.tile, self.spec, alpha=alpha) for left in plan.x.sample()]
        # A router without statistics looks at each sample alone; its file may fix the batch to 1.
        batches = [samples] if router.spec.statistics else [[sample] for sample in samples]
        told = self.steering.feeds()
        outs = [
            self._timed(router, {self.spec.input_name: self._image(batch)} | told, work or Work()) for batch in batches
        ]
        found = combine({name: np.concatenate([out[name] for out in outs]) for name in outs[0]}, router.spec)
        return replace(found, at_rest=nothing_to_mend(found.evidence, self.steering.permissions, self.spec))

    def pool(self, source: RowSource, work: Work | None = None, *, alpha: bool = False) -> Shared:
        """The statistics that all tiles of a picture, or of its ``alpha`` channel, share (see
        :mod:`clusir.runtimes.restore.statistics`). Raises ClusirError where they are NaN or infinite."""
        _, graph = self._open_sidecars()
        source = mapped(source, self.spec, self._maps)

        def run(feeds: dict[str, Array]) -> dict[str, Array]:
            return self._timed(graph, feeds | {"image": self._image(list(feeds["image"]))}, work or Work())

        batch = None if self.statistics == "sampled" else self.batch
        if not graph.takes_batches():
            batch = 1
        return gather(source, graph.spec, run, mode=self.statistics, batch=batch, alpha=alpha)

    def warm_up(self) -> None:
        """Run every graph once on a grey tile, so that what follows takes no more memory or time than usual."""
        given, self._maps = self._maps, {}  # they are as large as the pictures that follow
        side, channels = self.spec.tile_px, self.spec.channels
        self.restore(np.full((side, side, channels), 128, np.uint8))
        several = ArraySource(np.full((2 * side, 2 * side, channels), 128, np.uint8))  # as many looks as there may be
        shared: Routing | Shared | None = None
        if self.spec.shares_statistics:
            self.restore(np.full((2 * side, 2 * side, channels), 128, np.uint8))
            shared = self.pool(several)
        if self.routing == "shared":
            self.restore(np.full((side, side + 1, channels), 128, np.uint8))
            shared = self.route(several)
        if self.spec.size.static_px == 0 and self.batch == 1:
            (self._runner if shared is None else self._open_sidecars()[0]).expect((side, side))
            self.infer([np.full((side, side, self.spec.planes), 0.5, np.float32)], Work(), shared)
        self._maps = given

    def placement(self) -> dict[str, int]:
        """Nodes per execution provider: of the whole graph, or of the tile graph while nothing needed the former."""
        if self._sidecars is not None and isinstance(self._runner, LateRunner) and not self._runner.opened:
            return self._sidecars[0].placement()
        return self._runner.placement()

    def infer(
        self, tiles: list[Array], work: Work, routing: Routing | Shared | None = None, *, told: bool = True
    ) -> Array:
        """Restore a batch of HxWxC tiles (float32, 0..1): BxHxWxC in the model's value range, unclipped.

        With a ``routing`` by the tile graph, else by the whole graph, whose routing is kept in ``work`` where it is to
        be ``told``; tiles in which nothing may be mended come back as they are. Raises ClusirError on NaN or infinity.
        """
        image = self._image(tiles)
        if routing is not None and routing.at_rest:
            return image.transpose(0, 2, 3, 1)
        if routing is not None:
            runner, _ = self._open_sidecars()
            out = self._timed(runner, {self.spec.input_name: image} | routing.feeds(len(tiles)), work)
        else:
            out = self._timed(self._runner, {self.spec.input_name: image}, work)
            if self.spec.routed and told:
                found = [("posterior", work._posteriors), ("gate", work._gates)]
                for name, kept in found + [("evidence", work._evidence)] * bool(self.spec.families):
                    check_finite(out[name], f"{self.files.whole.name}: {name}")
                    kept.append(out[name])
        restored = out[self.spec.output_name]
        wanted = (len(tiles), self.spec.channels, *(self.spec.scale * n for n in image.shape[2:]))
        if restored.shape != wanted:
            raise ClusirError(f"{self.files.whole.name} returned {restored.shape} for {image.shape}, not {wanted}")
        check_finite(restored, self.files.whole.name)
        if routing is None and self.spec.families:
            for tile, found in enumerate(out["evidence"]):
                if nothing_to_mend(found, self.steering.permissions, self.spec):
                    restored[tile] = image[tile]
        return restored.transpose(0, 2, 3, 1)

    def _image(self, tiles: list[Array]) -> Array:
        """HxWxC tiles in 0..1 as the batch that the graphs take."""
        return scaled(np.ascontiguousarray(np.stack(tiles).transpose(0, 3, 1, 2)), self.spec.value_range)

    def _timed(self, runner: Runner, feeds: dict[str, Array], work: Work) -> dict[str, Array]:
        begin = time.perf_counter()
        out = runner.run(feeds | self._numbers)
        work.infer_s += time.perf_counter() - begin
        return out

    def _open_sidecars(self) -> tuple[Runner, Runner]:
        """The tile graph, and the router or statistics graph, opened when the first picture of more than one tile needs
        them."""
        if self._sidecars is None:
            kind = "statistics" if self.spec.shares_statistics else "router"
            second = self.files.statistics if self.spec.shares_statistics else self.files.router
            if self.files.tile is None or second is None:
                raise UsageError(
                    f"model {self.files.whole}: its tiles need {self.files.whole.stem}.tile.onnx and its {kind} graph "
                    "beside it; export it again with clusir-export"
                )
            # The router stays in float32 in every precision, as it chooses the experts; so does what is pooled.
            tile = open_runner(self.files.tile, graph="tile", bf16=self._bf16, **self._open_options)
            options = self._open_options
            if self._bf16 and not self._backend_is_named:  # ONNX Runtime opens it in a quarter of OpenVINO's time
                options = options | {"backend": "auto"}
            router = open_runner(second, graph=kind, **options)
            check_together(self.spec, self.files.whole, [(self.files.tile, tile.spec), (second, router.spec)])
            self._sidecars = (tile, router)
        return self._sidecars

    def close(self) -> None:
        """Give back the model, and the folder that a bundle was unpacked into. What follows raises UsageError."""
        self._closed = True
        self._runner.close()
        for runner in self._sidecars or ():
            runner.close()
        self._sidecars = None
        self.files.close()

    def __enter__(self) -> Restorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _mean(parts: list[Array]) -> Array:
    return np.asarray(np.concatenate(parts).mean(axis=0, dtype=np.float64), dtype=np.float32)
