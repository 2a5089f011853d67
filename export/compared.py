"""A brought network's files held against its module: the graph that answers alone, then what tiles share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from clusir.errors import ValidationError
from clusir.export.tiled import Tiled, agreeing, steadied
from clusir.export.validate.cases import Case, ModuleCheck, cases_of
from clusir.export.validate.conditioning import ROUNDING_FACTOR
from clusir.export.validate.effort import SECONDS, SIDE_SECONDS, Effort
from clusir.export.validate.foreign import ModuleRow, as_sure_as, on_photos, validate
from clusir.export.validate.tolerances import tolerance

__all__ = ["Compared", "asked", "compared"]

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Compared:
    """Files that agree with the module: ``made``; ``given``: with the sizes at which they were compared; ``rows``: the
    comparisons; ``notes``: what there was no time or memory for."""

    made: Tiled
    given: ModuleCheck
    rows: tuple[ModuleRow, ...]
    notes: tuple[str, ...]


def asked(made: Tiled, given: ModuleCheck, progress: Progress = lambda _: None) -> tuple[ModuleCheck, list[Case]]:
    """What the module answers, as far as there is time, and ``given`` with the sizes of that."""
    given = replace(given, photo_px=made.compared_px(), effort=Effort(SECONDS))
    cases = cases_of(given, [output.name for output in made.graphs[""].graph.output], progress)
    sizes = {case.size for case in cases}
    return replace(given, sizes=[size for size in given.sizes if tuple(size) in sizes]), cases


def compared(
    made: Tiled,
    given: ModuleCheck,
    cases: Sequence[Case],
    wanted: tuple[int | None, int | None],
    progress: Progress = lambda _: None,
) -> Compared:
    """Compare every graph with the module, of which ``cases`` are known (:func:`asked`); ``wanted``: tile and halo in
    pixels, None where they are to be chosen.

    Where the graph misses its bound with norms as it came, it is compared with steadier ones; where what tiles share is
    off, they share nothing. Raises ValidationError where the graph disagrees all the same.
    """
    with tempfile.TemporaryDirectory(prefix="clusir-") as folder:
        path = Path(folder) / "model.onnx"
        onnx.save_model(made.graphs[""], str(path))
        try:
            rows = validate(path, given, progress, cases)
        except ValidationError:
            steady = steadied(made)
            if steady is None:
                raise
            progress("validating again, with norms that add up in blocks")
            made = steady
            made.save(path.parent, path.stem)
            rows = validate(path, given, progress, cases)
        photos = replace(
            on_photos(path, given, "fp32"),
            bound=tolerance("brought"),
            allowance=as_sure_as(given.user),
            effort=given.effort.another(SIDE_SECONDS),
        )
    made, beside = agreeing(made, photos, wanted, progress)
    for backend, what, found in beside:
        rows.append(ModuleRow(backend, what, found.max_abs, found.count, found.allowed / ROUNDING_FACTOR))
    return Compared(made, given, tuple(rows), (*given.effort.told(), *photos.effort.told(), *given.memory.sentences()))
