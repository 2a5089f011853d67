"""The losses of an export beside its files, as ``--precision auto`` reads them; on undamaged photos too.

Decibels of a photo that needs nothing say little: a picture 70 dB from the truth is no better than one of 60. So they
count up to 48 dB, where the error is one level of eight bits; a precision that leaves undamaged photos above that loses
nothing there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clusir.calibration.base import Sample
from clusir.calibration.sources import CLEAN
from clusir.export.precision.evaluate import Evaluator
from clusir.export.precision.loss import Quality, QualityLoss, compare_quality
from clusir.names import BFLOAT16
from clusir.runtimes.runners.files import ModelFiles, find_model, variants
from clusir.runtimes.runners.losses import Loss, losses_path, losses_text

__all__ = ["CEILING_DB", "undamaged", "undamaged_loss", "write_losses"]

CEILING_DB = 48.0
_PHOTOS = 8


def undamaged(samples: Sequence[Sample]) -> list[Sample]:
    """Some of the truths of ``samples``, as pictures that need nothing; none where the answer has another size."""
    fitting = [s for s in samples if s.clean is not None and s.clean.shape == s.image.shape]
    step = max(1, len(fitting) // _PHOTOS)
    chosen = fitting[::step][:_PHOTOS]
    return [
        replace(s, key=f"{s.key} undamaged", degradation=CLEAN, image=s.clean) for s in chosen if s.clean is not None
    ]


def undamaged_loss(evaluator: Evaluator, quality: Quality) -> QualityLoss:
    """The loss of ``quality`` on undamaged photos, those of ``evaluator``, held to :data:`CEILING_DB` on both sides."""
    return compare_quality(_held(evaluator.base), _held(quality))


def _held(quality: Quality) -> Quality:
    return replace(quality, psnr_db=tuple(min(value, CEILING_DB) for value in quality.psnr_db))


def write_losses(
    whole: Path,
    made: Mapping[tuple[str, str], QualityLoss],
    undamaged_too: Mapping[tuple[str, str], QualityLoss],
) -> Path:
    """``NAME.losses.json`` beside the float32 graph ``NAME.onnx``, by backend and precision; of bfloat16 the files are
    the float32 ones. Call it when all files have their last bytes."""
    losses = {}
    for key, loss in made.items():
        more = undamaged_too[key].drop_db if key in undamaged_too else {}
        full = QualityLoss({**loss.drop_db, **more}, loss.agreement_db)
        losses[key] = Loss(full.mean_db, full.worst_db, full.worst)
    found: dict[str, ModelFiles] = variants(find_model(whole))
    wanted = {"fp32", *(precision for _, precision in losses if precision != BFLOAT16)}
    digests = {precision: found[precision].sha256() for precision in found if precision in wanted}
    path = losses_path(whole)
    path.write_text(losses_text(losses, digests), encoding="utf-8")
    return path
