"""The steps in the middle: clipped ranges for the maps, and a QDQ graph with integers by onnxruntime.quantization."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto

from clusir.errors import ExportError
from clusir.export.quantize.choice import sums_behind
from clusir.export.quantize.prepared import Described, Prepared
from clusir.export.quiet import root_hushed
from clusir.rounding import CLIPPING

__all__ = ["ClipRanges", "ToIntegers"]

WEIGHT_BITS = (7, 8)
WEIGHT_SCALES = ("channel", "tensor")


@dataclass(frozen=True)
class ClipRanges(Described):
    """The range of each map that becomes integers: ``minmax``, ``percentile`` (99.99 %) or ``mse`` (least error)."""

    clipping: str = "mse"

    def __post_init__(self) -> None:
        if self.clipping not in CLIPPING:
            raise ExportError(f"clipping {self.clipping!r} is not one of {', '.join(CLIPPING)}")

    def apply(self, prepared: Prepared) -> Prepared:
        maps = prepared.statistics.maps
        wanted = sorted(prepared.tensors(prepared.chosen))
        return replace(prepared, ranges={name: maps[name].range(self.clipping) for name in wanted if name in maps})


@dataclass(frozen=True)
class ToIntegers(Described):
    """Unsigned 8-bit maps and signed weights of ``weight_bits`` bits, with a scale per output ``channel`` (or one per
    ``tensor``), between QuantizeLinear and DequantizeLinear.

    Seven bits are right on every CPU: on x86 without VNNI the 16-bit intermediate sums of u8 x s8 kernels saturate
    otherwise (255 * 127 * 2 > 32767, while 255 * 64 * 2 fits).
    """

    weight_bits: int = 7
    weight_scale: str = "channel"

    def __post_init__(self) -> None:
        if self.weight_bits not in WEIGHT_BITS:
            raise ExportError(f"weights of {self.weight_bits} bits are not one of {', '.join(map(str, WEIGHT_BITS))}")
        if self.weight_scale not in WEIGHT_SCALES:
            raise ExportError(f"a weight scale per {self.weight_scale!r} is not one of {', '.join(WEIGHT_SCALES)}")

    def apply(self, prepared: Prepared) -> Prepared:
        from onnxruntime.quantization import CalibrationMethod, QuantType
        from onnxruntime.quantization.calibrate import TensorData, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        if prepared.sums:  # of layers that are left in float this time the sums stay in float too
            prepared = replace(prepared, sums=tuple(sums_behind(prepared)))
        chosen, model = prepared.chosen, ModelProto()
        model.CopyFrom(prepared.graph.model)
        if not chosen:
            return replace(prepared, model=model)
        wanted = prepared.tensors(chosen)
        data = {
            name: TensorData(lowest=np.float32(found.low), highest=np.float32(found.high))
            for name, found in prepared.ranges.items()
            if name in wanted
        }
        nodes = {layer.node for layer in chosen} | set(prepared.sums)
        nodes |= {relu.name for layer in chosen if (relu := prepared.relu_behind(layer)) is not None}
        quantizer = QDQQuantizer(
            model,
            self.weight_scale == "channel",
            self.weight_bits == 7,
            QuantType.QInt8,
            QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, data),
            sorted(nodes),
            [],
            ["Conv", "ConvTranspose", "Relu", "Add"],
            {"ActivationSymmetric": False, "WeightSymmetric": True},
        )
        with root_hushed():  # onnxruntime.quantization speaks through the root logger
            quantizer.quantize_model()
        quantizer.model.topological_sort()
        return replace(prepared, model=quantizer.model.model).noted(f"{len(chosen)} layers are in integers")
