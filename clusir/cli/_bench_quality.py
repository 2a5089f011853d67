"""What ``clusir-bench`` says of pictures rather than time: ``--quality``, ``--clusters``, ``--harm``, ``--peers``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clusir.quality.clusters import ClusterReport
    from clusir.quality.evaluate import QualityTable
    from clusir.quality.harm import HarmTable
    from clusir.quality.peers import PeerTable
    from clusir.runtimes.machine.measure import Measurement
    from clusir.runtimes.restore.restorer import Restorer

__all__ = ["measure_clusters", "measure_harm", "measure_peers", "measure_quality"]

_CLUSTER_PHOTOS = 16


def measure_quality(
    options: dict[str, Any], measured: Sequence[Measurement], say: Callable[[str], None]
) -> list[QualityTable]:
    """One quality table per model, backend and precision (the size of the pictures is the photos' own)."""
    from clusir.quality.evaluate import QualityPlan, quality_table
    from clusir.runtimes.restore.restorer import Restorer

    tables: list[QualityTable] = []
    seen = set()
    for m in measured:
        case = m.case
        key = (case.model, case.backend, case.precision)
        if m.error or key in seen:
            continue
        seen.add(key)
        label = f"{case.model or 'shipped'}, {case.precision}, {m.name}"
        say(f"quality of {label}")
        with Restorer(case.model, case.backend, case.device, case.threads, precision=case.precision) as restorer:
            table = quality_table(
                options["quality"],
                restorer.restore,
                # Baselines are the same for every model.
                QualityPlan(limit=options["limit"], baselines=options["baselines"] and not tables),
                model=label,
            )
            tables.append(table)
    return tables


def measure_clusters(options: dict[str, Any], say: Callable[[str], None]) -> tuple[ClusterReport, str]:
    """The cluster report of the first model named (or the shipped one), and what it was measured on.

    Centre crops of the size that the model takes (its tile's, where it takes any) of ``--limit`` photos, each with
    every kind of degradation at two random severities, through the model's own routing. Raises UsageError where the
    model has no routers, or where the folder holds no photo of that size.
    """
    from clusir.errors import UsageError
    from clusir.quality.clusters import centre_crops, cluster_report
    from clusir.quality.evaluate import list_pictures, read_picture
    from clusir.runtimes import open_runner
    from clusir.runtimes.restore.routing import split_levels
    from clusir.runtimes.runners.files import find_model

    backend = (options["backend"] or ("auto",))[0]
    precision = (options["precision"] or ("fp32",))[0]
    model = (options["models"] or (None,))[0]
    file = find_model(model, precision, backend).whole
    with open_runner(file, backend=backend, device=options["device"], threads=options["threads"]) as runner:
        spec = runner.spec
        if not spec.routed:
            raise UsageError(f"{file} has no routers; --clusters is for ClusIR models")
        px = spec.size.static_px or spec.tile_px
        limit = _CLUSTER_PHOTOS if options["limit"] is None else options["limit"]
        paths = list_pictures(options["clusters"], limit)
        photos = centre_crops((read_picture(path) for path in paths), px, limit)
        if not photos:
            raise UsageError(f"{options['clusters']} holds no photo of at least {px} px; name a folder that does")
        say(f"clusters of {file.name} on {len(photos)} photos")

        def route(image: Any) -> tuple[list[Any], list[Any]]:
            out = runner.run({"image": image})
            return (
                [p[None] for p in split_levels(out["posterior"][0], spec.clusters)],
                [g[None] for g in split_levels(out["gate"][0], spec.experts)],
            )

        report = cluster_report(route, photos, draws=2)
    return report, f"{file.name}: {len(photos)} photos, {px} px, {len(report.kinds)} kinds, two severities each"


def measure_harm(options: dict[str, Any], say: Callable[[str], None]) -> HarmTable:
    """How far the first model named (or the shipped one) moves the undamaged photos of ``--harm``; with ``--output``
    the worst of them as ``harm.jpg``."""
    from pathlib import Path

    from clusir.quality.harm import contact_sheet, harm_table

    with _first_restorer(options) as restorer:
        label = (
            f"{options['models'][0] if options['models'] else 'shipped'}, {restorer.spec.precision}, {restorer.name}"
        )
        say(f"harm of {label}")
        found = harm_table(options["harm"], restorer.restore, model=label, limit=options["limit"])
        if options["output"]:
            folder = Path(options["output"])
            folder.mkdir(parents=True, exist_ok=True)
            contact_sheet(found, restorer.restore).save(folder / "harm.jpg", quality=90)
    return found


def measure_peers(options: dict[str, Any], say: Callable[[str], None]) -> PeerTable:
    """The first model named (or the shipped one) in every precision that it has beside other denoisers."""
    from contextlib import ExitStack

    from clusir.errors import UsageError
    from clusir.names import PRECISIONS
    from clusir.quality.peers import peer_table

    with ExitStack() as stack:
        ours = {}
        for precision in options["precision"] or PRECISIONS:
            try:
                restorer = stack.enter_context(_first_restorer(options, precision))
            except UsageError:
                if options["precision"]:
                    raise
                continue
            ours[f"clusir {precision}"] = restorer.restore
        return peer_table(options["peers"], ours, limit=options["limit"], observe=say)


def _first_restorer(options: dict[str, Any], precision: str | None = None) -> Restorer:
    from clusir.runtimes.restore.restorer import Restorer

    return Restorer(
        options["models"][0] if options["models"] else None,
        (options["backend"] or ("auto",))[0],
        options["device"],
        options["threads"],
        precision=precision or (options["precision"] or (None,))[0],
    )
