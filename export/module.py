"""Bring your own model: somebody else's PyTorch restorer as a validated ONNX file.

``clusir-export --onnx --module package.module:factory --input 1x3x128x128``: the factory returns an ``nn.Module`` that
maps a picture (BxCxHxW, 0..1) to the restored picture. Routed blocks are described beside the factory with
``clusir.export.experts.registry.register_moe``; nothing of the user's code is edited.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from clusir.errors import ExportError, UnsupportedModelError, UsageError
from clusir.export.base import Pipeline
from clusir.export.experts.coverage import check_program
from clusir.export.experts.registry import DensifyRegistered, dense_blocks
from clusir.export.lowering.complex_fft import aten_transforms, pair_translations
from clusir.export.lowering.fft import FORMS, Form, translation_table
from clusir.export.passes.order import fusing_passes
from clusir.export.passes.simplify import AttachMetadata, CheckStandard, SimplifyGraph
from clusir.export.subjects.checks import check_batch, check_function, serve_other_pictures, takes_batches
from clusir.export.subjects.factory import UNUSED, declare_unused, load_factory, parse_input
from clusir.export.trace.program import TracedModel, trace_module
from clusir.export.trace.sizes import size_rule, validation_sizes
from clusir.export.trace.writer import OPSET, optimised, quiet_exporter
from clusir.export.validate.foreign import Agreement, probes, validate
from clusir.names import ONNX_BACKENDS, install_line, installed_backends
from clusir.spec import ModelSpec, SizeRequirements

__all__ = ["ModuleExport", "declare_unused", "export_module", "load_factory", "parse_input"]


@dataclass(frozen=True)
class ModuleExport:
    """What was written and what was verified. ``notes`` are sentences for the report."""

    path: Path
    spec: ModelSpec
    sizes: tuple[tuple[int, int], ...]
    agreements: tuple[Agreement, ...]
    routes: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...]


def export_module(
    factory: str | nn.Module,
    input_shape: str | Sequence[int],
    out: str | Path,
    *,
    dft: Form = "auto",
    router: str = "dense",
) -> ModuleExport:
    """Export, validate and only then write ``out`` (one ONNX file, opset 18, input ``image``, output ``restored``).

    ``factory`` is ``"package.module:factory"`` or a module; ``input_shape`` BxCxHxW is the size to trace at; height,
    width and batch stay dynamic where the code allows. With described routed blocks the file has a second output
    ``gate`` (Bx the sum of experts). ``router="conditional"`` puts experts into branches. Raises UsageError for bad
    arguments, UnsupportedModelError (with the line) for code that cannot be exported, ValidationError where the file
    disagrees with PyTorch.
    """
    shape = parse_input(input_shape if isinstance(input_shape, str) else "x".join(map(str, input_shape)))
    if dft not in FORMS:
        raise UsageError(f"--dft {dft!r} is not one of {', '.join(FORMS)}")
    if router not in ("dense", "conditional"):
        raise UsageError(f"--router {router!r} is not dense or conditional")
    out = Path(out)
    user = load_factory(factory) if isinstance(factory, str) else factory.eval()
    _, channels, height, width = shape
    pipeline: Pipeline[Any] = Pipeline([DensifyRegistered()])
    dense = pipeline.run(user)
    few = probes(max(2, shape[0]), channels, height, width)
    check_function(user, dense, few)
    notes: list[str] = []
    routes = _routes(dense, probes(24, channels, height, width))
    if routes and len(set(routes)) == 1:
        notes.append("all probe pictures took one route; the other experts were verified by forcing them")
    with aten_transforms() if dft == "op" else contextlib.nullcontext():
        free = takes_batches(dense, few)
        traced = trace_module(dense, _sample(shape, squareless=True), batches=free)
        if not traced.dynamic_size:
            traced = trace_module(dense, _sample(shape, squareless=False), batches=free)
    notes += [*check_batch(user, dense, few), *traced.notes]
    beside = check_program(
        traced.original, UNUSED, prefix="model.", excuse=lambda names: serve_other_pictures(dense, few[:1], names)
    )
    if beside:
        notes.append(
            f"the model returns other pictures beside the first: {len(beside)} parameters that serve only them are "
            "left out"
        )
    model, gates = _write(traced, dft)
    spec = _spec(factory, traced, shape, dft, router)
    fusing = fusing_passes() if dft == "auto" else []
    steps = Pipeline([SimplifyGraph(), *fusing, CheckStandard(allow_dft=dft == "op"), *_router_passes(router)])
    model = steps.run(model)
    notes += [f"{r.name}: {'; '.join(r.notes)}" for r in steps.records]
    sizes = validation_sizes(spec.size, height, width) if traced.dynamic_size else [(height, width)]
    model = AttachMetadata(spec).apply(model).model
    backends = [b for b in installed_backends(ONNX_BACKENDS) if b == "ort" or dft != "op"]
    if not backends:
        raise ExportError(f"no runtime is installed to compare with; install one with: {install_line('onnxruntime')}")
    left = {"ort", "openvino"} - set(backends)
    if left:
        why = "OpenVINO misreads DFT" if dft == "op" else "not installed"
        notes.append(f"not validated on {', '.join(sorted(left))} ({why})")
    agreements = validate(
        model,
        user,
        dense,
        sizes,
        gates,
        channels=channels,
        batch=None if traced.dynamic_batch else shape[0],
        backends=backends,
    )
    model = _join_gates(model, gates)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    onnx.save_model(model, str(part))
    os.replace(part, out)
    return ModuleExport(out, spec, tuple(sizes), tuple(agreements), tuple(sorted(set(routes))), tuple(notes))


def _router_passes(router: str) -> list[Any]:
    if router == "dense":
        return []
    from clusir.export.experts.conditional import BranchExperts

    return [BranchExperts()]


def _sample(shape: tuple[int, int, int, int], *, squareless: bool) -> Tensor:
    """A picture to trace with. A square one would let the tracer believe that height and width are the same thing."""
    batch, channels, height, width = shape
    if squareless and height == width:
        width += 64 if width % 64 == 0 else width
    pictures: Tensor = probes(batch, channels, height, width)
    return pictures


@torch.no_grad()
def _routes(dense: nn.Module, pictures: Tensor) -> list[tuple[int, ...]]:
    """For each picture, the expert with the largest gate in every described block."""
    blocks = dense_blocks(dense)
    if not blocks:
        return []
    routes = []
    for picture in pictures:
        for block in blocks:
            block.gates.clear()
        dense(picture[None])
        routes.append(tuple(int(g.reshape(1, g.shape[1], -1).mean(2).argmax()) for b in blocks for g in b.gates))
    return routes


def _write(traced: TracedModel, dft: Form) -> tuple[onnx.ModelProto, list[str]]:
    count = len(traced.program.graph_signature.user_outputs)
    gates = [f"gate_{i}" for i in range(count - 1)]
    with quiet_exporter():
        try:
            program = torch.onnx.export(
                traced.program,
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["restored", *gates],
                custom_translation_table=pair_translations(translation_table(dft)),
                optimize=False,
                verbose=False,
            )
        except Exception as error:
            while error.__cause__ is not None and isinstance(error.__cause__, Exception):
                error = error.__cause__
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnsupportedModelError(f"torch.onnx.export refused the traced model: {reason}") from error
    return optimised(program), gates


def _spec(
    factory: str | nn.Module, traced: TracedModel, shape: tuple[int, int, int, int], dft: Form, router: str
) -> ModelSpec:
    _, channels, height, width = shape
    if not traced.dynamic_size:
        if height != width:
            raise UnsupportedModelError(
                f"the model's code fixes the size, and {height}x{width} is no square tile; give --input a square size"
            )
        size = SizeRequirements(multiple_of=1, minimum=1, static_px=height)
        tile = height
    else:
        size = size_rule(traced.original, channels, *traced.traced_size)
        tile = size.padded(min(256, max(height, width)))
    name = factory.replace(":", ".") if isinstance(factory, str) else type(factory).__name__
    return ModelSpec(
        name=name,
        size=size,
        tile_px=tile,
        halo_px=min(16, (tile - 1) // 4),
        channels=channels,
        router_form=router,
        dft_form=dft,
    )


def _join_gates(model: onnx.ModelProto, gates: Sequence[str]) -> onnx.ModelProto:
    """Replace the outputs ``gate_0``, ``gate_1``, ... by one output ``gate``, BxsumE; gates per pixel are dropped."""
    if not gates:
        return model
    outputs = {o.name: o for o in model.graph.output}
    flat = [g for g in gates if len(outputs[g].type.tensor_type.shape.dim) == 2]
    kept = [o for o in model.graph.output if o.name not in gates]
    if flat:
        model.graph.node.append(onnx.helper.make_node("Concat", flat, ["gate"], name="join_gates", axis=1))
        total = sum(outputs[g].type.tensor_type.shape.dim[1].dim_value for g in flat)
        batch = outputs[flat[0]].type.tensor_type.shape.dim[0]
        size: int | str = batch.dim_param if batch.HasField("dim_param") else batch.dim_value
        kept.append(onnx.helper.make_tensor_value_info("gate", onnx.TensorProto.FLOAT, [size, total]))
    del model.graph.output[:]
    model.graph.output.extend(kept)
    return model
