"""Video tools: FFmpeg's ``dnn_processing`` filter and VapourSynth's vs-mlrt. One ONNX file of any size, and a page of
text with the line that runs it.

Frame after frame is shown to the network alone, so the routing is decided once for all of them: a network that chose
anew for each frame could flicker. FFmpeg's ONNX back end (dnn_backend_onnx.c) names input and output, divides by 255,
takes one NCHW float32 picture and gives the planes in the order of the frame's format; vs-mlrt's ort takes float32
planes R, G, B. Neither is on this machine: what is compared is the file, in ONNX Runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import onnx
from onnx import ModelProto

from clusir.export.formats.hosts.base import Array, HostForm, NotRunHere, OnnxHost, Source
from clusir.export.formats.hosts.routing.frozen import for_noise

__all__ = ["Ffmpeg", "VsMlrt"]


class _Video(OnnxHost):
    """``model.onnx``, ``input`` to ``output``, and ``RUN.txt``. ``line``: how it is run; ``missing``: what is not
    here."""

    line: ClassVar[str]
    missing: ClassVar[str]

    def prepare(self, source: Source) -> Source:
        return for_noise(source)

    def form(self, source: Source) -> HostForm:
        side = source.spec.size.static_px
        return HostForm("input", "output", side_px=side, any_size=not side)

    def write(self, source: Source, model: ModelProto, folder: Path) -> None:
        onnx.save(model, str(folder / "model.onnx"))
        side, halo = source.spec.size.static_px, source.spec.halo_px
        size = f"Frames of {side} px; larger ones in tiles." if side else "Frames of any size."
        text = self.line.format(side=side or 512, halo=halo, format="RGBS" if source.spec.channels == 3 else "GRAYS")
        (folder / "RUN.txt").write_text(f"{size} Run in the folder of model.onnx:\n\n{text}\n", encoding="utf-8")

    def run(self, folder: Path, image: Array) -> Array:
        raise NotRunHere(self.missing)


class Ffmpeg(_Video):
    """A file for ``dnn_processing``; it does not tile, so a graph of one size takes frames of that size only."""

    name: ClassVar[str] = "ffmpeg"
    channels: ClassVar[tuple[int, ...]] = (3,)
    line: ClassVar[str] = (
        "ffmpeg -i in.mkv -vf format=rgb24,dnn_processing=dnn_backend=onnx:model=model.onnx:input=input:output=output "
        "-c:a copy out.mkv"
    )
    missing: ClassVar[str] = "no FFmpeg with an ONNX back end; Debian's has none"

    def lint(self, source: Source) -> list[str]:
        if side := source.spec.size.static_px:
            return [
                f"the filter gives whole frames and the graph takes {side} px only; export it with --dynamic first, "
                "and give that file with --from"
            ]
        return []


class VsMlrt(_Video):
    """A file for ``core.ort.Model``."""

    name: ClassVar[str] = "vs-mlrt"
    line: ClassVar[str] = (
        "clip = core.resize.Bicubic(clip, format=vs.{format})\n"
        'clip = core.ort.Model(clip, network_path="model.onnx", tilesize=[{side}, {side}], overlap=[{halo}, {halo}])'
    )
    missing: ClassVar[str] = "no VapourSynth with vs-mlrt"
