"""Bring your own model: somebody else's PyTorch restorer as a validated ONNX file.

``clusir-export --onnx --module package.module:factory --input 1x3x128x128``: the factory returns an ``nn.Module`` that
maps a picture (BxCxHxW, 0..1) to the restored picture. Routed blocks are described beside the factory with
``clusir.export.experts.registry.register_moe``; nothing of the user's code is edited.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from clusir.errors import ExportError, UnsupportedModelError, UsageError, ValidationError
from clusir.export.base import PassRecord, Pipeline
from clusir.export.experts.coverage import check_program
from clusir.export.experts.registry import dense_blocks
from clusir.export.lowering.complex_fft import aten_transforms, pair_translations
from clusir.export.lowering.fft import FORMS, Form, translation_table
from clusir.export.lowering.operators import operator_translations, plain_scalars
from clusir.export.passes.order import fusing_passes
from clusir.export.passes.simplify import AttachMetadata, CheckStandard, SimplifyGraph
from clusir.export.subject import Subject, read_subject
from clusir.export.subjects.checks import check_batch, takes_batches
from clusir.export.subjects.factory import UNUSED, declare_unused, load_factory, parse_input
from clusir.export.subjects.fresh import Fresh
from clusir.export.subjects.scripted import unscripted
from clusir.export.subjects.sizes import accepted_multiple, trace_sizes
from clusir.export.trace.program import TracedModel, UntraceableError, random_draw, trace_module
from clusir.export.trace.sizes import Guards, size_rule, validation_sizes
from clusir.export.trace.writer import OPSET, optimised, quiet_exporter
from clusir.export.validate.foreign import Agreement, probes, validate
from clusir.export.validate.sizes import agreement_by_size
from clusir.names import ONNX_BACKENDS, install_line, installed_backends
from clusir.spec import ModelSpec, SizeRequirements

__all__ = ["ModuleExport", "ModuleOptions", "declare_unused", "export_module", "load_factory", "parse_input"]

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ModuleExport:
    """What was written and what was verified. ``notes`` are sentences for the report."""

    path: Path
    spec: ModelSpec
    sizes: tuple[tuple[int, int], ...]
    agreements: tuple[Agreement, ...]
    routes: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ModuleOptions:
    """How a model is exported.

    ``dft``: the form of transforms. ``router``: ``conditional`` puts experts into branches. ``output``: which of the
    tensors that the model returns is the restored picture (a position or a key; None: found). ``batch``: 0 for any,
    else the one batch of the file. ``size``: 0 for any height and width, else the one side in pixels. ``tile`` and
    ``halo`` in pixels for those who cut pictures (None: chosen). ``backends``: the runtimes to validate on.
    """

    dft: Form = "auto"
    router: str = "dense"
    output: str | None = None
    batch: int = 0
    size: int = 0
    tile: int | None = None
    halo: int | None = None
    backends: tuple[str, ...] = ("ort", "openvino")


@dataclass(frozen=True)
class _Written:
    """A file that agrees with the model."""

    model: onnx.ModelProto
    spec: ModelSpec
    sizes: tuple[tuple[int, int], ...]
    agreements: tuple[Agreement, ...]
    notes: tuple[str, ...]


def export_module(
    factory: str | nn.Module,
    input_shape: str | Sequence[int],
    out: str | Path,
    *,
    options: ModuleOptions | None = None,
    progress: Progress = lambda _: None,
    **more: Any,
) -> ModuleExport:
    """Export, validate and only then write ``out`` (one ONNX file, opset 18, input ``image``, output ``restored``).

    ``factory`` is ``"package.module:factory"`` or a module that has not run; ``input_shape`` BxCxHxW is a size that the
    model takes; height, width and batch stay dynamic where the code allows. With described routed blocks the file has a
    second output ``gate`` (Bx the sum of experts). ``more``: fields of ModuleOptions by name. ``progress`` is told each
    step. Raises UsageError for bad arguments, UnsupportedModelError (with the line) for code that cannot be exported,
    ValidationError where the file disagrees with PyTorch.
    """
    chosen = ModuleOptions(**more) if options is None else options
    shape = parse_input(input_shape if isinstance(input_shape, str) else "x".join(map(str, input_shape)))
    _check_options(chosen)
    out = Path(out)
    progress("reading the model")
    pristine = unscripted(load_factory(factory) if isinstance(factory, str) else factory.eval())
    fresh = Fresh(pristine)
    try:
        name = factory.replace(":", ".") if isinstance(factory, str) else type(factory).__name__
        subject = read_subject(name, fresh, shape, chosen.output, progress)
        written = _attempt(subject, chosen, progress)
    finally:
        fresh.restore()
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    onnx.save_model(written.model, str(part))
    os.replace(part, out)
    notes = (*subject.notes, *written.notes, *sorted(subject.user.notes))
    return ModuleExport(out, written.spec, written.sizes, written.agreements, subject.routes, notes)


def _check_options(options: ModuleOptions) -> None:
    if options.dft not in FORMS:
        raise UsageError(f"--dft {options.dft!r} is not one of {', '.join(FORMS)}")
    if options.router not in ("dense", "conditional"):
        raise UsageError(f"--router {options.router!r} is not dense or conditional")
    if options.batch < 0 or (options.size and not 8 <= options.size <= 4096):
        raise UsageError(
            f"--batch {options.batch}, --size {options.size}: a batch of at least 1, a size within 8..4096"
        )


def _attempt(subject: Subject, options: ModuleOptions, progress: Progress) -> _Written:
    """Trace, write and validate, for any size where the code allows it, else for the one size that it was given."""
    height, width = subject.shape[2:]
    if options.size:
        return _export(subject, options, (options.size, options.size), None, progress)
    progress("asking the model which sizes it takes")
    multiple = accepted_multiple(subject.takes, height, width)
    why = "the model's code takes no other"
    for size in trace_sizes(subject.dense, multiple) if multiple else ():
        try:
            return _export(subject, options, size, multiple, progress)
        except (UntraceableError, ValidationError) as error:
            why = str(error)
    try:
        written = _export(subject, options, (height, width), None, progress)
    except UntraceableError as error:
        raise UnsupportedModelError(why if multiple else str(error)) from error
    note = f"the model's code fixes the size: exported for {height}x{width} only ({why})"
    return _Written(written.model, written.spec, written.sizes, written.agreements, (note, *written.notes))


def _export(
    subject: Subject, options: ModuleOptions, size: tuple[int, int], multiple: int | None, progress: Progress
) -> _Written:
    """One file: traced at ``size``, dynamic where ``multiple`` says which sizes the model itself takes."""
    batch, channels = options.batch or subject.shape[0], subject.shape[1]
    few = probes(max(2, batch), channels, *size)
    with aten_transforms() if options.dft == "op" else contextlib.nullcontext():
        free = not options.batch and takes_batches(subject.fresh_dense(), few)
        progress(f"tracing at {size[0]}x{size[1]}")
        traced = trace_module(
            subject.unrun(), few[:batch], batches=free, sizes=multiple is not None, before=subject.user.fresh.restore
        )
    notes = [*traced.notes]
    if not options.batch:
        notes = [*check_batch(subject.user, subject.fresh_dense(), few), *notes]
    drew = random_draw(traced.program)
    if drew:
        raise UnsupportedModelError(
            f"the restored picture depends on random numbers drawn at {drew}; make that conditional on self.training"
        )
    notes += _check_weights(subject, traced)
    progress("writing the graph")
    model, gates = _write(traced, options.dft)
    fusing = fusing_passes() if options.dft == "auto" else []
    steps = Pipeline(
        [SimplifyGraph(), *fusing, CheckStandard(allow_dft=options.dft == "op"), *_router_passes(options.router)],
        before_each=lambda name: progress(f"pass {name}"),
    )
    model = steps.run(model)
    notes += [_as_note(record) for record in steps.records]
    backends, left = _backends(options)
    if left:
        notes.append(left)
    rule = _rule(model, traced, subject, multiple, backends[0], progress)
    spec = _spec(subject, rule, traced, options)
    sizes = validation_sizes(spec.size, *size) if multiple is not None else [size]
    model = AttachMetadata(spec).apply(model).model
    agreements = validate(
        model,
        subject.user,
        subject.fresh_dense(),
        sizes,
        gates,
        channels=channels,
        batch=None if traced.dynamic_batch else batch,
        backends=backends,
        progress=progress,
    )
    return _Written(_join_gates(model, gates), spec, tuple(sizes), tuple(agreements), tuple(notes))


def _as_note(record: PassRecord) -> str:
    return f"{record.name}: {'; '.join(record.notes)}"


def _check_weights(subject: Subject, traced: TracedModel) -> list[str]:
    """Refuse a trace that lost weights; those that the model itself never reads are left out, with a note."""
    idle = {n.removeprefix("model.") for n in subject.watched.unreached}
    routed = bool(subject.watched.read) or bool(dense_blocks(subject.dense))
    left = check_program(
        traced.original, UNUSED, prefix="model.model.", excuse=lambda names: () if routed else idle & set(names)
    )
    if not left:
        return []
    owners = sorted({n.rpartition(".")[0] or n for n in left})
    shown = ", ".join(owners[:4]) + (f" and {len(owners) - 4} more" if len(owners) > 4 else "")
    return [f"WARNING: {len(left)} parameters that the restored picture does not depend on are left out, of {shown}"]


def _backends(options: ModuleOptions) -> tuple[list[str], str]:
    """The runtimes to validate on, and a note on those that were asked for and are not."""
    installed = installed_backends(ONNX_BACKENDS)
    backends = [b for b in installed if b in options.backends and (b == "ort" or options.dft != "op")]
    if not backends:
        raise ExportError(f"no runtime is installed to compare with; install one with: {install_line('onnxruntime')}")
    left = {"ort", "openvino"} - set(backends)
    if not left:
        return backends, ""
    asked = left & set(options.backends)
    why = "OpenVINO misreads DFT" if options.dft == "op" else "not installed" if asked else "not asked for"
    return backends, f"not validated on {', '.join(sorted(left))} ({why})"


def _rule(
    model: onnx.ModelProto,
    traced: TracedModel,
    subject: Subject,
    multiple: int | None,
    backend: str,
    progress: Progress,
) -> SizeRequirements:
    batch, channels, _, _ = subject.shape
    height, width = traced.traced_size
    if multiple is None:
        if height != width:
            raise UnsupportedModelError(
                f"the model's code fixes the size, and {height}x{width} is no square tile; give --input a square size"
            )
        return SizeRequirements(multiple_of=1, minimum=1, static_px=height)
    progress("finding the sizes that the file serves")
    probe = ModelSpec(size=SizeRequirements(1, 1), channels=channels)
    model = AttachMetadata(probe).apply(model).model
    with agreement_by_size(model, subject.user, channels, 1 if traced.dynamic_batch else batch, backend) as agrees:
        rule = size_rule(Guards(traced.original, channels), agrees, multiple, traced.traced_size)
    if rule is None:
        raise ValidationError(
            f"the model's code takes another path for other sizes than {height}x{width}, and no rule 'multiple of m' "
            "describes for which; pad inside the model instead of branching on the size"
        )
    return rule


def _router_passes(router: str) -> list[Any]:
    if router == "dense":
        return []
    from clusir.export.experts.conditional import BranchExperts

    return [BranchExperts()]


def _write(traced: TracedModel, dft: Form) -> tuple[onnx.ModelProto, list[str]]:
    count = len(traced.program.graph_signature.user_outputs)
    gates = [f"gate_{i}" for i in range(count - 1)]
    plain_scalars(traced.program)
    with quiet_exporter():
        try:
            program = torch.onnx.export(
                traced.program,
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["restored", *gates],
                custom_translation_table={**operator_translations(), **pair_translations(translation_table(dft))},
                optimize=False,
                verbose=False,
            )
        except Exception as error:
            while error.__cause__ is not None and isinstance(error.__cause__, Exception):
                error = error.__cause__
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UntraceableError(f"torch.onnx.export refused the traced model: {reason}") from error
    return optimised(program), gates


def _spec(subject: Subject, rule: SizeRequirements, traced: TracedModel, options: ModuleOptions) -> ModelSpec:
    tile = options.tile or min(256, max(subject.shape[2:]))
    tile = rule.padded(tile)
    halo = min(16, (tile - 1) // 4) if options.halo is None else options.halo
    if 2 * halo >= tile:
        raise UsageError(f"--halo {halo} leaves nothing of a tile of {tile} pixels; make --tile larger")
    return ModelSpec(
        name=subject.name,
        size=rule,
        tile_px=tile,
        halo_px=halo,
        channels=subject.shape[1],
        router_form=options.router,
        dft_form=options.dft,
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
