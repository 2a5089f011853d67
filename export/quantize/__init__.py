"""The arithmetic of fewer bits: ranges, rounding, compensation, float16.

Belongs here: what turns a float graph into an INT8 or FP16 one. Not here: which layers, and whether it is worth it
(``export.precision``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.export.quantize.float16 import Fp16Config, Fp16Report, convert_fp16
    from clusir.export.quantize.ranges import Calibration
    from clusir.export.quantize.steps import QuantizeConfig, Quantizer, QuantizeReport, quantize_int8

__all__ = [
    "Calibration",
    "Fp16Config",
    "Fp16Report",
    "QuantizeConfig",
    "QuantizeReport",
    "Quantizer",
    "convert_fp16",
    "quantize_int8",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "float16": "Fp16Config Fp16Report convert_fp16",
        "ranges": "Calibration",
        "steps": "QuantizeConfig QuantizeReport Quantizer quantize_int8",
    },
)
