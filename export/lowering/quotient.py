"""The quotient of two lengths, rounded as a float32 division rounds it, on every runtime.

OpenVINO takes the reciprocal of the divisor and multiplies. That may be the last bit off, and where an index is the
floor of a multiple of the quotient, a row of pixels is then another one: at 29 of 394 heights that are tripled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18 as op
from torch import Tensor

from clusir.export.lowering.matrices import Value, constant, integers

__all__ = ["quotient", "quotient_translation"]

_FLOAT = ir.DataType.FLOAT


@torch.library.custom_op("clusir::quotient", mutates_args=())
def quotient(like: Tensor, size: int, out: int) -> Tensor:
    """``size / out`` as a float32 scalar on the device of ``like``. Both are positive."""
    ones = torch.ones((), dtype=torch.float32, device=like.device)
    return (ones * size) / (ones * out)


@quotient.register_fake
def _(like: Tensor, size: int, out: int) -> Tensor:
    return like.new_empty((), dtype=torch.float32)


def _quotient(like: Value, size: Value, out: Value) -> Value:
    """clusir::quotient(Tensor like, SymInt size, SymInt out) -> Tensor

    Byte by byte, by integer divisions that are exact on both runtimes up to 65,536; right from 1/256 to 256.
    """
    if isinstance(size, int) and isinstance(out, int):
        return constant(np.float32(size) / np.float32(out), _FLOAT)
    rest, divisor = (integers(n) if isinstance(n, int) else n for n in (size, out))
    digits = []
    for _ in range(5):
        digit = op.Div(rest, divisor)
        rest = op.Mul(op.Sub(rest, op.Mul(digit, divisor)), integers(256))
        digits.append(digit)
    beyond = op.Cast(rest, to=ir.DataType.BOOL)  # what is left decides which way the last bit rounds
    parts = [
        op.Mul(op.Cast(part, to=_FLOAT), constant(2.0**power, _FLOAT))
        for part, power in zip((*digits, beyond), (0, -8, -16, -24, -32, -33), strict=True)
    ]
    high = op.Add(op.Add(parts[0], parts[1]), parts[2])
    return op.Add(high, op.Add(op.Add(parts[3], parts[4]), parts[5]))  # both are exact; their sum is rounded once


def quotient_translation() -> dict[Any, Callable[..., Any]]:
    """The operator's ONNX form, for ``custom_translation_table``."""
    return {torch.ops.clusir.quotient.default: _quotient}
