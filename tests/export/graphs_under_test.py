"""Verbs that the tests of lowering and graph passes share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxsim import simplify
from torch import nn

from clusir.export.base import Pass
from clusir.export.lowering.fft import Form, translation_table
from clusir.export.lowering.registry import taught_registry
from clusir.export.passes.simplify import operators
from clusir.export.trace.decompose import quick_decompositions
from clusir.export.trace.quick import quick_tracing
from clusir.export.trace.writer import quiet_exporter
from clusir.network.model import ModelConfig
from clusir.runtimes.runners.quiet import import_openvino

openvino = import_openvino()  # imported plainly, it would report that

__all__ = ["accept", "agree", "check_plain", "exported", "kinds", "refuse", "run_openvino", "run_ort", "shallow"]


class Wrapped(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def exported(
    module: Any, shape: tuple[int, ...], dynamic: tuple[int, ...] = (), form: Form = "auto", simple: bool = False
) -> onnx.ModelProto:
    """A module or function of one tensor as ONNX; ``dynamic`` axes keep their size open."""
    if not isinstance(module, nn.Module):
        module = Wrapped(module)
    spec = (dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC),) if dynamic else None
    with quiet_exporter(), taught_registry(), quick_tracing(), quick_decompositions():
        program = torch.onnx.export(
            module.eval(), (torch.randn(shape),), dynamo=True, opset_version=18, input_names=["x"], verbose=False,
            output_names=["y"], dynamic_shapes=spec, custom_translation_table=translation_table(form),
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    return simplify(model)[0] if simple else model


def check_plain(path: Path) -> None:
    """A file of standard operators alone, none of them random or a Fourier transform, at the opset that is promised."""
    model = onnx.load(path)
    counts = operators(model.graph)
    assert not {name for name in counts if "::" in name or name.startswith("Random") or name == "DFT"}
    assert model.opset_import[0].version == 18
    onnx.checker.check_model(model, full_check=True)


def run_ort(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def run_openvino(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    core = openvino.Core()
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return core.compile_model(core.read_model(model.SerializeToString(), b""), "CPU", config)(x)[0]


def agree(found: np.ndarray, expected: np.ndarray, relative: float = 2e-6) -> None:
    """Largest difference within ``relative`` of the largest value."""
    assert found.shape == expected.shape
    worst = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    assert worst <= relative, f"relative difference {worst:.1e}, allowed {relative:.0e}"


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    return dict(operators(model.graph))


def accept(
    step: Pass[onnx.ModelProto], module: Any, shape: tuple[int, ...], batch: bool = False, sizes: bool = False
) -> onnx.ModelProto:
    """The pass changes the graph and keeps its numbers on both runtimes; ``batch`` and ``sizes`` leave axes open."""
    torch.manual_seed(0)
    before = exported(module, shape, dynamic=(*((0,) if batch else ()), *((2, 3) if sizes else ())), simple=True)
    result = step.apply(before)
    assert result.modified, result.notes
    step.ensures(result.model)
    x = np.random.default_rng(0).standard_normal((3 if batch else shape[0], *shape[1:]), dtype=np.float32)
    expected = run_ort(before, x)
    agree(run_ort(result.model, x), expected, 5e-6)
    agree(run_openvino(result.model, x), expected, 5e-6)
    return result.model


def refuse(step: Pass[onnx.ModelProto], module: Any, shape: tuple[int, ...], reason: str) -> None:
    before = exported(module, shape, simple=True)
    result = step.apply(before)
    assert not result.modified
    assert result.model.SerializeToString() == before.SerializeToString()
    assert any(reason in note for note in result.notes), result.notes


def shallow(whole: ModelConfig) -> ModelConfig:
    """The two finest levels of a configuration with one block each: every option of it, half the time to export."""
    return replace(
        whole,
        widths=whole.widths[:2],
        heads=whole.heads[:2],
        clusters=whole.clusters[:2],
        frequency_levels=tuple(level for level in whole.frequency_levels if level <= 2),
        blocks=(1, 1),
        decoder_blocks=(1,),
        refine_blocks=1,
    )
