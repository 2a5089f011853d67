"""Bring your own model: somebody else's PyTorch restorer as a validated ONNX file.

``clusir-export --onnx --module package.module:factory --input 1x3x128x128``: the factory returns an ``nn.Module`` that
maps a picture (BxCxHxW, 0..1) to the restored picture, 1 to 8 times as large. Routed blocks are described beside the
factory with ``clusir.export.experts.registry.register_moe``; nothing of the user's code is edited.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from clusir.calibration.planes import colours_of
from clusir.errors import UnsupportedModelError, UsageError, ValidationError
from clusir.export.base import Pipeline
from clusir.export.compared import asked, compared
from clusir.export.experts.conditional import BranchExperts
from clusir.export.experts.join import JoinGates, joined_gates
from clusir.export.experts.registry import as_form, dense_blocks
from clusir.export.fastest import Forms, rank_forms, routers_for
from clusir.export.kept import kept_memory
from clusir.export.lowering.complex_fft import aten_transforms
from clusir.export.options import ModuleOptions, backends_of, check_options, notes_on_maps, with_planes
from clusir.export.ownership import refuse_foreign
from clusir.export.passes.order import fusing_passes
from clusir.export.passes.simplify import AttachMetadata, CheckStandard, SimplifyGraph
from clusir.export.precision.place import Placed, check_fit, known_files, lower_of, place
from clusir.export.scans.mamba import NOTE as MAMBA
from clusir.export.scans.mamba import mamba_importable
from clusir.export.subject import Subject, read_subject
from clusir.export.subjects.checks import check_batch
from clusir.export.subjects.factory import declare_unused, load_factory, parse_input, unused_of, working_folder_first
from clusir.export.subjects.fresh import Fresh
from clusir.export.subjects.restorer import Mapped
from clusir.export.subjects.scripted import unscripted
from clusir.export.subjects.sizes import Accepted, accepted_multiple, small_size, trace_sizes, why_no_other
from clusir.export.subjects.user_code import count_in
from clusir.export.tiled import Tiled, tiled
from clusir.export.trace.deformable import NOTE as MMCV
from clusir.export.trace.deformable import mmcv_importable
from clusir.export.trace.program import TracedModel, UntraceableError, random_draw, trace_module
from clusir.export.trace.sizes import Guards, narrow, size_rule, validation_sizes
from clusir.export.trace.writer import write_program
from clusir.export.validate.cases import ModuleCheck, probes
from clusir.export.validate.each_pass import ParityAfterEach, parity_at
from clusir.export.validate.foreign import ModuleRow, on_photos, validate, warnings_of
from clusir.export.validate.memory import steps_to
from clusir.export.validate.pictures import compare_pictures
from clusir.export.validate.sizes import agreement_by_size
from clusir.names import ONNX_BACKENDS
from clusir.spec import ModelSpec, SizeRequirements

__all__ = [
    "ModuleExport",
    "ModuleOptions",
    "declare_unused",
    "export_module",
    "load_factory",
    "parse_input",
    "verify_module",
]

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ModuleExport:
    """What was written and what was verified: every one of ``sizes``, by the comparisons in ``agreements``. ``notes``
    are sentences for the report, ``warnings`` those that a script should see; ``placed``: all files, and what lower
    precisions cost."""

    path: Path
    spec: ModelSpec
    sizes: tuple[tuple[int, int], ...]
    agreements: tuple[ModuleRow, ...]
    routes: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    placed: Placed = field(default_factory=Placed)


@dataclass(frozen=True)
class _Written:
    """Files that agree with the model, byte by byte what is put in place: ``data`` the graph, ``made`` what goes with
    it."""

    data: bytes
    made: Tiled
    spec: ModelSpec
    sizes: tuple[tuple[int, int], ...]
    agreements: tuple[ModuleRow, ...]
    notes: tuple[str, ...]
    check: ModuleCheck


@kept_memory()
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
    step. The graph is compared after each pass, and the file that is put in place with the module. Raises UsageError
    for bad arguments and where ``out`` is there and no export has written it, UnsupportedModelError (with the line) for
    code that cannot be exported, ValidationError where the file disagrees with PyTorch.
    """
    chosen = ModuleOptions(**more) if options is None else options
    shape = parse_input(input_shape if isinstance(input_shape, str) else "x".join(map(str, input_shape)))
    check_options(chosen)
    shape, chosen = with_planes(shape, chosen)
    out = Path(out)
    refuse_foreign(out.parent, known_files(out, chosen.precision), out.stem)
    with _subject(factory, shape, chosen, progress) as (subject, unused):
        written = _best(subject, chosen, unused, progress)
        check_fit(chosen.precision, written.check.batch or 1)

        def judge(path: Path, precision: str) -> Any:
            photos = replace(on_photos(path, written.check, precision), pool=written.made.pool())
            return compare_pictures(path, photos, precision)

        files = {out.name: written.data, **written.made.sidecars(out.stem)}
        placed = place(out, files, chosen.precision, judge, progress)
    notes = (*notes_on_maps(chosen.maps), *subject.notes, *written.notes, *sorted(subject.user.notes), *placed.notes)
    warnings = warnings_of(written.agreements)
    return ModuleExport(out, written.spec, written.sizes, written.agreements, subject.routes, notes, warnings, placed)


@contextlib.contextmanager
def _subject(
    factory: str | nn.Module, shape: tuple[int, int, int, int], options: ModuleOptions, progress: Progress
) -> Iterator[tuple[Subject, tuple[str, ...]]]:
    """The module, read, and what is declared unused of it. What it caches outside itself is forgotten at the end."""
    progress("reading the model")
    with working_folder_first(), mamba_importable() as mamba, mmcv_importable() as mmcv:
        pristine = unscripted(load_factory(factory) if isinstance(factory, str) else factory.eval())
        unused = unused_of(factory)
        if options.maps:
            pristine, unused = Mapped(pristine, tuple(options.maps)).eval(), tuple(rf"model\.{name}" for name in unused)
        count_in(pristine)
        fresh = Fresh(pristine)
        try:
            name = factory.replace(":", ".") if isinstance(factory, str) else type(factory).__name__
            subject = read_subject(name, fresh, shape, options.output, progress)
            stood = [note for note, stand_in in ((MAMBA, mamba), (MMCV, mmcv)) if stand_in.used]
            yield replace(subject, notes=(*subject.notes, *stood)), unused
        finally:
            fresh.restore()


def verify_module(
    path: Path, factory: str, sizes: Sequence[tuple[int, int]] | None = None, backends: Sequence[str] | None = None
) -> tuple[list[ModuleRow], tuple[str, ...]]:
    """Compare a file that :func:`export_module` wrote with the module: the comparisons, and warnings.

    In front of a large size its half and quarter are compared, which tell whether it fits into memory; a warning says
    so where it does not. Raises UsageError where the file does not take one of ``sizes``, ValidationError where it
    disagrees.
    """
    model = onnx.load(path)
    spec = ModelSpec.from_metadata({entry.key: entry.value for entry in model.metadata_props})
    rule = spec.size
    if sizes is None:
        side = rule.static_px or rule.padded(min(spec.tile_px, 96))
        sizes = validation_sizes(rule, side, side)
    for height, width in sizes:
        if (rule.padded(height), rule.padded(width)) != (height, width):
            raise UsageError(f"size {height}x{width}: {path.name} takes {rule}")
    sizes = steps_to(sizes, rule.padded)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None
    given = ModuleOptions(dft=spec.dft_form, backends=tuple(backends or ONNX_BACKENDS))  # type: ignore[arg-type]
    runtimes, _ = backends_of(given)
    maps = ModuleOptions(maps=dict(zip(spec.maps, spec.map_defaults, strict=True)))
    with _subject(factory, (batch or 1, spec.planes, *sizes[0]), maps, lambda _: None) as (subject, _):
        gates = joined_gates(model)
        check = ModuleCheck(subject.user, subject.fresh_dense(), sizes, gates, spec.planes, batch, tuple(runtimes))
        rows = validate(path, check)
    return rows, (*warnings_of(rows), *check.memory.sentences())


def _best(subject: Subject, options: ModuleOptions, unused: Sequence[str], progress: Progress) -> _Written:
    """With ``--router auto`` the form of the experts that is the fastest here and agrees with the model."""
    if options.router != "auto":
        return _attempt(subject, options, unused, progress)
    forms = _forms(subject, options, progress)
    said, spare = forms.said, None
    for router in forms.order:
        try:
            written = _attempt(subject, replace(options, router=router), unused, progress)
        except (UntraceableError, ValidationError) as error:
            if router == "dense":
                raise
            said = f"{said}; {router} was given up ({error})"
            continue
        fixed = bool(written.spec.size.static_px) and not options.size
        if not fixed or router == "dense":
            written = spare if fixed and spare is not None else written
            return replace(written, notes=(said, *written.notes))
        said, spare = f"{said}; {router} was given up (it fixes the size, which dense need not)", spare or written
    raise AssertionError("the dense form is always among them")


def _forms(subject: Subject, options: ModuleOptions, progress: Progress) -> Forms:
    """The forms of the experts in the order in which they are to be tried, measured at the size of ``--input``."""
    if not dense_blocks(subject.dense):
        return Forms(("dense",), "--router auto took dense: no block is described as routed")
    size = (options.size,) * 2 if options.size else subject.shape[2:]
    batch, channels = options.batch or 1, subject.shape[1]
    pictures = probes(max(4, batch), channels, *size)

    def build(router: str) -> onnx.ModelProto:
        progress(f"measuring {router} experts")
        with as_form(subject.dense, router):
            traced = trace_module(
                subject.unrun(), pictures[:batch], batches=False, sizes=False, before=subject.user.fresh.restore
            )
        model, _ = _graph(traced, replace(options, router=router), progress)
        probe = ModelSpec(size=SizeRequirements(1, 1), channels=colours_of(channels))
        return AttachMetadata(probe).apply(model).model

    feeds = [{"image": pictures[n : n + batch].numpy()} for n in range(0, len(pictures) - batch + 1, batch)]
    routers = routers_for(options.batch, options.size, lower_of(options.precision))
    return rank_forms(build, routers, feeds, backends_of(options)[0])


def _graph(
    traced: TracedModel,
    options: ModuleOptions,
    progress: Progress,
    compared: Callable[[onnx.ModelProto], ParityAfterEach] | None = None,
) -> tuple[onnx.ModelProto, tuple[Sequence[str], list[str]]]:
    """The graph of a trace after all passes, each ``compared``; its gates, and what the passes say."""
    model, gates = write_program(traced, options.dft)
    fusing = fusing_passes() if options.dft == "auto" else []
    branching = [BranchExperts()] if options.router == "conditional" else []
    steps = Pipeline(
        [SimplifyGraph(), *fusing, CheckStandard(allow_dft=options.dft == "op"), *branching],
        None if compared is None else compared(model),
        before_each=lambda name: progress(f"pass {name}"),
    )
    model = steps.run(model)
    return model, (gates, [f"{record.name}: {'; '.join(record.notes)}" for record in steps.records])


def _attempt(subject: Subject, options: ModuleOptions, unused: Sequence[str], progress: Progress) -> _Written:
    """Trace, write and validate, for any size where the code allows it, else for the one size that it was given."""
    height, width = subject.shape[2:]
    if options.size:
        return _export(subject, options, (options.size, options.size), None, unused, progress=progress)
    progress("asking the model which sizes it takes")
    taken = accepted_multiple(subject.takes, height, width)
    why = "" if taken else why_no_other(subject.refusal, height, width)
    tried: list[tuple[int, int]] = []
    left = [(size, taken) for size in trace_sizes(subject.dense, taken)] if taken else []
    while left:
        size, sizes = left.pop(0)
        if not subject.takes(*size):
            continue  # it takes smaller ones
        try:
            return _export(subject, options, size, sizes, unused, tried, progress)
        except NarrowError as error:
            progress(f"put off at {size[0]}x{size[1]}: {error}")
            left.append((size, replace(sizes, narrow=True)))
        except (UntraceableError, ValidationError) as error:
            why = str(error)
            progress(f"given up at {size[0]}x{size[1]}: {why}")
    try:
        written = _export(subject, options, (height, width), None, unused, progress=progress)
    except UntraceableError as error:
        raise UnsupportedModelError(why if taken else str(error)) from error
    note = f"the model's code fixes the size: exported for {height}x{width} only ({why})"
    return replace(written, notes=(note, *written.notes))


def _export(
    subject: Subject,
    options: ModuleOptions,
    size: tuple[int, int],
    taken: Accepted | None,
    unused: Sequence[str],
    tried: list[tuple[int, int]] | None = None,
    progress: Progress = lambda _: None,
) -> _Written:
    """One file: traced at ``size``, dynamic where ``taken`` says which sizes the model itself takes.

    ``tried``: where files of other traces were compared, and this one is too: what was wrong there may still be.
    """
    batch, channels = options.batch or subject.shape[0], subject.shape[1]
    small = size if taken is None else small_size(taken)
    multiple = None if taken is None else taken.multiple
    few = probes(max(2, batch), channels, *small)
    with aten_transforms() if options.dft == "op" else contextlib.nullcontext():
        free, told = False, tuple[str, ...]()
        if not options.batch:
            free, told = check_batch(subject.user, subject.fresh_dense(), few, batch)
        progress(f"tracing at {size[0]}x{size[1]}")
        with as_form(subject.dense, options.router):
            traced = trace_module(
                subject.unrun(),
                probes(max(2, batch), channels, *size)[:batch],
                batches=free,
                sizes=multiple is not None,
                multiple=multiple or 1,
                before=subject.user.fresh.restore,
            )
    notes = [*told, *traced.notes]
    drew = random_draw(traced.program)
    if drew:
        raise UnsupportedModelError(
            f"the restored picture depends on random numbers drawn at {drew}; make that conditional on self.training"
        )
    notes += subject.check_weights(traced.original, unused)
    progress("writing the graph")
    model, (gates, said) = _graph(traced, options, progress, lambda m: parity_at(m, (small, size), channels))
    notes += said
    backends, left = backends_of(options)
    if left:
        notes.append(left)
    rule = _rule(model, traced, subject, taken, backends[0], progress)
    model = Pipeline([JoinGates(gates)]).run(model)
    if options.tile is not None and rule.maximum and options.tile > rule.maximum:
        raise UsageError(f"--tile {options.tile}: the model takes {rule}; leave --tile out, or give a smaller one")
    tile = None if options.tile is None else rule.padded(options.tile)
    made = tiled(model, subject.spec(rule, options.maps, options.router, options.dft), (tile, options.halo), progress)
    spec = made.spec
    near, far = ((spec.size.padded(h), spec.size.padded(w)) for h, w in (small, size))
    sizes = [size] if multiple is None else list(dict.fromkeys([*validation_sizes(spec.size, *near), far]))
    again = [s for s in dict.fromkeys(tried or ()) if tuple(map(spec.size.padded, s)) == s]
    given = ModuleCheck(
        subject.user,
        subject.fresh_dense(),
        list(dict.fromkeys([*sizes, *again])),
        gates,
        channels,
        None if traced.dynamic_batch else batch,
        tuple(backends),
        least=again,
    )
    given, cases = asked(made, given, progress)
    if tried is not None:
        tried += given.sizes
    done = compared(made, given, cases, (tile, options.halo), progress)
    notes += [*done.made.notes, *done.notes]
    data = done.made.graphs[""].SerializeToString()
    return _Written(data, done.made, done.made.spec, tuple(done.given.sizes), done.rows, tuple(notes), done.given)


def _rule(
    model: onnx.ModelProto,
    traced: TracedModel,
    subject: Subject,
    taken: Accepted | None,
    backend: str,
    progress: Progress,
) -> SizeRequirements:
    batch, channels, _, _ = subject.shape
    height, width = traced.traced_size
    if taken is None:
        if height != width:
            raise UnsupportedModelError(
                f"the model's code fixes the size, and {height}x{width} is no square tile; give --input a square size"
            )
        return SizeRequirements(multiple_of=1, minimum=1, static_px=height)
    progress("finding the sizes that the file serves")
    probe = ModelSpec(size=SizeRequirements(1, 1), channels=colours_of(channels))
    model = AttachMetadata(probe).apply(model).model
    with agreement_by_size(model, subject.user, channels, 1 if traced.dynamic_batch else batch, backend) as agrees:
        guards = Guards(traced.original, channels)
        rule = size_rule(guards, agrees, taken.multiple, traced.traced_size, subject.takes)
    if rule is None:
        raise ValidationError(
            f"the model's code takes another path for other sizes than {height}x{width}, and no rule 'multiple of m' "
            "describes for which; pad inside the model instead of branching on the size"
        )
    if narrow(rule) and not taken.narrow:
        raise NarrowError(f"the file agrees with the model at {rule}")
    return rule


class NarrowError(ValidationError):
    """A file is right up to a small size: that of another trace may be right at more."""
