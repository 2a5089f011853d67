"""What ``clusir-bench`` says about pictures rather than time: ``--quality`` and ``--clusters``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clusir.quality.clusters import ClusterReport
    from clusir.quality.evaluate import QualityTable
    from clusir.runtimes.machine.measure import Measurement

__all__ = ["measure_clusters", "measure_quality"]

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
