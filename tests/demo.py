"""``make demo``: the whole path on this machine, from the shipped checkpoint to a restored photo and a page to look at.

Exits 4 where an artefact disagrees with PyTorch, or where a restored photo is less than 3 dB better than before.
"""

from __future__ import annotations

from pathlib import Path

import click

from clusir.cli._common import command
from clusir.cli._common import console as stdout

__all__ = ["main"]

_GAIN_DB = 3.0


@command(name="python -m tests.demo")
@click.argument("out", type=click.Path(path_type=Path), default=Path("demo-out"))
# Without int8: drawing its calibration crops, evaluating and timing it would more than double the demo's time.
@click.option("--precision", default="fp32,fp16", show_default=True, help="Precisions to export.")
def main(out: Path, precision: str) -> None:
    """Export the shipped model into OUT/bundle, validate it, restore a degraded photo, write OUT/report.html."""
    import numpy as np
    from PIL import Image
    from rich.table import Table

    from clusir.calibration.photos import built_in_photos
    from clusir.cli.export import main as export
    from clusir.degrade.recipe import PRESETS
    from clusir.errors import ValidationError
    from clusir.quality.metrics import psnr
    from clusir.runtimes.report.collect import ReportWriter
    from clusir.runtimes.report.compare import write_comparison
    from clusir.runtimes.restore.explain import account
    from clusir.runtimes.restore.restorer import Restorer

    console = stdout()
    console.rule("1. export, quantise and validate the shipped model")
    bundle = out / "bundle"
    export.main(["--onnx", str(bundle), "--precision", precision], standalone_mode=False)

    console.rule("2. restore a degraded photo")
    photo = next(p for p in built_in_photos(256).photos if p.name == "chelsea.png")
    clean = photo.crop(0, 0, max(photo.height, photo.width))
    degraded = PRESETS["noise 25"](np.random.default_rng(0)).apply(clean)
    table = Table(title="PSNR of a photo with noise of sigma 25", title_justify="left")
    for heading in ("model", "backend", "before dB", "after dB", "gain dB"):
        table.add_column(heading, no_wrap=True)
    page = ReportWriter("ClusIR demo", {"model": "tiny, exported a moment ago", "photo": "Chelsea, scikit-image (CC0)"})
    gains = []
    before = psnr(degraded, clean)
    for wanted in (word.strip() for word in precision.split(",")):
        for backend in ("ort", "openvino"):
            with Restorer(bundle, backend=backend, precision=wanted) as restorer:
                restored, work = restorer.restore_and_tell(np.rint(degraded * 255).astype(np.uint8))
                after = psnr(restored.astype(np.float32) / np.float32(255), clean)
                told = work.routing
                page.add(
                    f"chelsea, {wanted} on {backend}",
                    degraded,
                    restored,
                    account=account(told.posterior, told.gate, restorer.spec, told.evidence) if told else None,
                    timings_ms={"infer": work.infer_s * 1000},
                    note=f"PSNR {before:.2f} dB before, {after:.2f} dB after",
                )
            gains.append(after - before)
            table.add_row(wanted, backend, f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}")
            if len(gains) == 1:
                Image.fromarray(np.rint(degraded * 255).astype(np.uint8)).save(out / "degraded.png")
                Image.fromarray(restored).save(out / "restored.png")
                write_comparison(degraded, restored, out / "before-after.png")
    console.print(table)
    page.write(out / "report.html")
    for name in ("before-after.png", "report.html", "bundle"):
        console.print(f"{out / name}", highlight=False)
    if min(gains) < _GAIN_DB:
        raise ValidationError(f"the smallest gain is {min(gains):.2f} dB; at least {_GAIN_DB} dB were promised")


if __name__ == "__main__":
    main()
