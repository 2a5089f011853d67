"""The ONNX files of the CUDA matrix, made once and kept: a network in one form and precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clusir.calibration.balance import BalanceConfig
from clusir.calibration.sources import open_source
from clusir.export.pipeline import ExportConfig, write_graphs
from clusir.export.quantize.data import Reference, calibrate, crop_px_of, draw_calibration
from clusir.export.quantize.float16 import Fp16Config, convert_fp16
from clusir.export.quantize.steps import quantize_int8
from clusir.export.staging import staged
from clusir.network.model import ClusIR

__all__ = ["make_file"]

# Enough crops for sane ranges; what INT8 costs in quality is clusir-export's business, with its budget.
_CROPS, _POOL, _FP16_CROPS = 16, 32, 2


def make_file(model: ClusIR, config: ExportConfig, precision: str, folder: Path) -> Path:
    """The whole graph of ``model`` in ``precision`` (``fp32``, ``fp16``, ``int8``), exported unless it is there.

    Raises ExportError where a pass or a converter refuses.
    """
    size = "dynamic" if config.dynamic else str(config.tile_px)
    form = f"{config.name}-{config.router}-{config.dft}-{size}-{config.checkpoint_sha256[:8] or 'random'}"
    base = folder / f"{form}.onnx"
    if not base.exists():
        with staged(folder) as stage:
            write_graphs(model, stage, form, config)
    if precision == "fp32":
        return base
    path = folder / f"{form}.{precision}.onnx"
    if path.exists():
        return path
    reference = Reference(base)
    source = open_source(None, crop_px_of(reference.spec), 0)
    draw, _ = draw_calibration(source, reference, BalanceConfig(size=_CROPS, pool=_POOL, minimum=1))
    calibration = calibrate(base, draw, reference)
    with staged(folder) as stage:
        target = stage / path.name
        if precision == "fp16":
            # The bar on the card is 55 dB, on other kernels than the ones that are asked here.
            convert_fp16(base, target, calibration.feeds[:_FP16_CROPS], replace(Fp16Config(), agreement_db=60.0))
        else:
            quantize_int8(base, target, calibration, under_served=draw.coverage.under_served)
    return path
