"""Core ML as a host: the package, and a reader of it that computes in numpy, as Core ML itself runs on Apple's systems
only."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from onnx import ModelProto

from clusir.errors import ValidationError
from clusir.export.formats.hosts.base import Array, HostForm, NotRunHere, Source
from clusir.export.formats.hosts.child import Refused
from clusir.export.formats.hosts.converted import Converted
from clusir.export.formats.hosts.golden import read_golden
from clusir.export.formats.hosts.plan import write_plan
from clusir.export.validate.compare import check, compare

__all__ = ["CoreMl"]

_HERE = Path(__file__).parent
_PACKAGE = "model.mlpackage"
_INSIDE = f"{_PACKAGE}/Data/com.apple.CoreML"


class CoreMl(Converted):
    """``model.mlpackage``: input ``image``, output ``restored``, 1x3xTxT float32, iOS 16 and macOS 13 on."""

    name: ClassVar[str] = "coreml"
    module: ClassVar[str] = "coremltools"
    variable: ClassVar[str] = "CLUSIR_COREML"
    install: ClassVar[str] = "coremltools 'numpy<2.4'"
    files: ClassVar[tuple[str, ...]] = (f"{_PACKAGE}/Manifest.json", f"{_INSIDE}/model.mlmodel")
    optional: ClassVar[tuple[str, ...]] = (f"{_INSIDE}/weights/weight.bin",)
    no_int8: ClassVar[str] = "what is in its package is checked in numpy, in float32 only"
    converter: ClassVar[str] = (_HERE / "writer_child.py").read_text(encoding="utf-8")
    runner: ClassVar[str] = (_HERE / "reader_child.py").read_text(encoding="utf-8")

    def form(self, source: Source) -> HostForm:
        return HostForm("image", "restored", side_px=source.spec.size.static_px or source.spec.tile_px)

    def hand_over(self, model: ModelProto, folder: Path) -> None:
        """The graph as its writer reads it. Raises Refused."""
        write_plan(model, folder)

    def check(self, folder: Path) -> None:
        """The program in the package, computed in numpy, on both golden cases."""
        cases = read_golden(folder)
        try:
            found = self.answers(folder, [case.image for case in cases])
        except Refused as reason:
            raise ValidationError(f"coreml, the package: {reason}") from reason
        for case, answer in zip(cases, found, strict=True):
            agreement = compare({"restored": case.expected}, {"restored": answer}, self.bound)
            check(agreement, f"the program of the package, {case.name}")

    def runs(self, folder: Path, images: list[Array]) -> list[Array]:
        raise NotRunHere("Core ML runs on Apple's systems only; the program in the package was computed in numpy")
