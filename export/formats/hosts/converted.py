"""Hosts with a file format of their own: a converter of theirs makes it from ONNX, and a runtime of theirs runs it.

What a converter says of itself is not believed, neither its exit code nor its "success": what it made is run on six
pictures and held against ONNX Runtime before anything is written, and again on the golden cases once it is.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import onnx
from onnx import ModelProto, NodeProto

from clusir.errors import BackendError, ExportError, ValidationError
from clusir.export.formats.hosts.base import Array, HostForm, OnnxHost, Source
from clusir.export.formats.hosts.child import Refused, answers, call, first_fault, trial_pictures
from clusir.export.formats.hosts.form import host_form
from clusir.export.formats.hosts.integers import IntegerGraph, Integers, read_integers
from clusir.export.passes.coalesce import Coalesce
from clusir.export.passes.plain.operators import PlainOperators
from clusir.export.passes.rank_four import RankFour
from clusir.export.passes.simplify import SimplifyGraph
from clusir.export.validate.compare import Agreement, check, compare
from clusir.export.validate.tolerances import TOLERANCES

__all__ = ["Converted"]

_HALF = replace(TOLERANCES["fp16"], relative=True)  # float16 beside float32; answers may be of any magnitude
_EIGHT = replace(TOLERANCES["int8"], relative=True)


class Converted(OnnxHost):
    """Base of such hosts. Input ``input``, output ``output``, 1xCxTxT float32; the routing is inside.

    ``module``: what has to be installed, here or in the environment whose Python ``variable`` names. ``install``: what
    pip installs into such an environment. ``files``: what ``converter``, a script, makes of ``model.onnx`` in the
    folder that is its argument; ``optional``: what it makes of some graphs only; ``half``: files with
    weights in float16, each with the one that it stands for; ``integers``: the same in INT8.
    ``runner``: the script that runs them, as :func:`clusir.export.formats.hosts.child.
    answers` calls it.
    """

    module: ClassVar[str]
    variable: ClassVar[str]
    install: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    half: ClassVar[tuple[tuple[str, str], ...]] = ()
    integers: ClassVar[tuple[tuple[str, str], ...]] = ()
    no_int8: ClassVar[str] = "clusir writes none of its format"
    converter: ClassVar[str]
    runner: ClassVar[str]

    def requires(self) -> None:
        super().requires()
        python = os.environ.get(self.variable)
        if python and shutil.which(python) is None:
            raise BackendError(f"--target {self.name}: {self.variable} is {python!r}, which is no program")
        if not python and find_spec(self.module) is None:
            raise BackendError(
                f"--target {self.name}: {self.module} is not installed; python -m venv {self.name}-env && "
                f"{self.name}-env/bin/pip install {self.install}, and {self.variable}={self.name}-env/bin/python"
            )

    def form(self, source: Source) -> HostForm:
        return HostForm("input", "output", side_px=source.spec.size.static_px or source.spec.tile_px)

    def lint(self, source: Source) -> list[str]:
        form = self.form(source)
        images = trial_pictures(form.side_px, source.spec.channels)
        with TemporaryDirectory() as scratch:
            try:
                self.convert(host_form(source, form), Path(scratch))
                found = self.answers(Path(scratch), images)
            except Refused as reason:
                return [f"{self.name} refuses the graph: {reason}"]
        fault = first_fault(source, form, images, found, self.bound)
        return [f"{self.name} takes the graph and answers wrong: {fault}"] if fault else []

    def write(self, source: Source, model: ModelProto, folder: Path) -> None:
        with TemporaryDirectory() as scratch:
            try:
                self.convert(model, Path(scratch))
            except Refused as reason:
                raise ExportError(f"{self.name} refuses the graph: {reason}") from reason
            self._leave_out(Path(scratch), trial_pictures(self.form(source).side_px, source.spec.channels)[:2])
            for file in self.present(Path(scratch)):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(scratch) / file, folder / file)
        (folder / "model.json").write_text(json.dumps(self._described(source), indent=1) + "\n", encoding="utf-8")

    def _described(self, source: Source) -> dict[str, str]:
        """What a model file says of itself, for clusir's C++ library: these files cannot hold it."""
        form = self.form(source)
        told = replace(
            source.spec, graph="whole", input_name=form.input_name, output_name=form.output_name,
            value_range=(0.0, 1.0), size=replace(source.spec.size, static_px=form.side_px), tile_px=form.side_px,
            clusters=(), experts=(), cluster_labels=(), top_k=1, statistics=0, families=(), evidence_thresholds=(),
            evidence_floors=(),
        )  # fmt: skip
        return told.to_metadata()

    def model(self, folder: Path) -> None:
        """None: there is no ONNX file in the folder."""

    def run(self, folder: Path, image: Array) -> Array:
        return self.runs(folder, [image])[0]

    def runs(self, folder: Path, images: list[Array]) -> list[Array]:
        try:
            return self.answers(folder, images)
        except Refused as reason:
            raise ExportError(f"{self.name} refuses {folder / self.files[0]}: {reason}") from reason

    def rewrite(self, model: ModelProto) -> ModelProto:
        """The graph as the converter is given it: constants folded, operators that the runtime has not written with
        others, four axes at most where that can be."""
        plain = PlainOperators(self.keeps).apply(SimplifyGraph().apply(model).model).model
        return RankFour().apply(Coalesce().apply(plain).model).model

    def keeps(self, node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether the runtime has this operator, of those that PlainOperators writes with others, in this form."""
        return False

    def hand_over(self, model: ModelProto, folder: Path) -> None:
        """Write what the converter reads: ``model.onnx``."""
        onnx.save(model, str(folder / "model.onnx"))

    @property
    def python(self) -> str:
        return os.environ.get(self.variable) or sys.executable

    def convert(self, model: ModelProto, folder: Path) -> None:
        """Write the host's files to ``folder``, which is absolute. Raises Refused, also where the converter calls it a
        success and left no file."""
        self.hand_over(self.rewrite(model), folder)
        call(self.python, self.converter, folder)
        for file in self.files:
            if not (folder / file).is_file() or not (folder / file).stat().st_size:
                raise Refused(f"its converter wrote no {file}")

    def present(self, folder: Path) -> list[str]:
        """The host's files that are in a folder: all of ``files``, and what only some graphs have."""
        sometimes = (*self.optional, *(file for file, _ in (*self.half, *self.integers)))
        return [*self.files, *(file for file in sometimes if (folder / file).is_file())]

    def answers(self, folder: Path, images: list[Array], half: bool = False, integers: bool = False) -> list[Array]:
        """What the host's own runtime makes of each picture, with the files of ``folder``; ``half``: with those of
        float16 in their places; ``integers``: with those of INT8. Raises Refused."""
        files = {file: (folder / file).read_bytes() for file in self.present(folder)}
        for file, place in (*(self.half if half else ()), *(self.integers if integers else ())):
            files[place] = files[file]
        return answers(self.python, self.runner, files, images)

    def convert_int8(self, graph: IntegerGraph, folder: Path) -> None:
        """Write the files of ``integers`` from a graph that :meth:`rewrite` made and the quantiser rounded. Raises
        Refused."""
        raise Refused(self.no_int8)

    def add_int8(self, model: ModelProto, folder: Path, drawn: Integers, bars: tuple[float, float]) -> str:
        """Write the files of ``integers`` beside the others in ``folder``; what they lose, in a sentence. ``model``: in
        the host form; ``bars``: how much that may be in the mean and for any degradation, in dB. Raises BudgetError
        where every variant loses more, ExportError where the runtime refuses them."""
        images = [sample.image for sample in drawn.samples]

        def answers(rounded: ModelProto | None) -> list[Array]:
            if rounded is None:
                return self.answers(folder, images)
            with TemporaryDirectory() as scratch:
                self.convert_int8(read_integers(rounded), Path(scratch))
                for file, _ in self.integers:
                    shutil.copyfile(Path(scratch) / file, folder / file)
            return self.answers(folder, images, integers=True)

        try:
            return drawn.first_within(self.name, drawn.quantizer(self.rewrite(model)), answers, bars)
        except (Refused, OSError) as reason:
            raise ExportError(f"{self.name} refuses the INT8 graph: {reason}") from reason

    def more(self, folder: Path, image: Array, expected: Array) -> list[tuple[str, Agreement | None, str]]:
        return [*self._halves(folder, image, expected), *self._integers(folder, image, expected)]

    def _integers(self, folder: Path, image: Array, expected: Array) -> list[tuple[str, Agreement | None, str]]:
        """A file that is broken is seen here; what INT8 costs was measured on photos when it was written."""
        if not self.integers or not all((folder / file).is_file() for file, _ in self.integers):
            return []
        found = self._again(folder / self.integers[0][0], image, integers=True)
        agreement = compare({"restored": expected}, {"restored": found}, _EIGHT)
        return [("int8", check(agreement, f"{self.name}, int8"), "")]

    def _halves(self, folder: Path, image: Array, expected: Array) -> list[tuple[str, Agreement | None, str]]:
        if not self.half:
            return []
        if not all((folder / file).is_file() for file, _ in self.half):
            return [
                ("float16", None, f"{self.half[0][0]} is left out: it is less than {_HALF.psnr_db:g} dB from float32")
            ]
        found = self._again(folder / self.half[0][0], image, half=True)
        agreement = compare({"restored": expected}, {"restored": found}, _HALF)
        return [("float16", check(agreement, f"{self.name}, float16"), "")]

    def _again(self, file: Path, image: Array, **precision: bool) -> Array:
        """What the files of another precision answer; ``file``: the one to name where the runtime refuses them."""
        try:
            (found,) = self.answers(file.parent, [image], **precision)
        except Refused as reason:
            raise ValidationError(f"{self.name} refuses {file}: {reason}") from reason
        return found

    def _leave_out(self, folder: Path, images: list[Array]) -> None:
        """Remove the files of float16 where they lose too much."""
        if not self.half:
            return
        try:
            pairs = zip(self.answers(folder, images), self.answers(folder, images, half=True), strict=True)
            right = all(compare({"restored": whole}, {"restored": half}, _HALF).ok for whole, half in pairs)
        except (Refused, KeyError):
            right = False
        if not right:
            for file, _ in self.half:
                (folder / file).unlink(missing_ok=True)
