"""OpenCV's DNN module (5.0, ``cv2.dnn``): one ONNX file of one size, for ``readNetFromONNX`` with ENGINE_NEW.

OpenCV answers with wrong numbers, and without an error, where it misreads a graph: that it opens a file says nothing.
The lint therefore runs the graph in OpenCV and holds the answer against ONNX Runtime's.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
from onnx import ModelProto

from clusir.errors import BackendError, ExportError
from clusir.export.formats.hosts.base import Array, HostForm, Source, need
from clusir.export.formats.hosts.form import host_form, reference
from clusir.export.passes.simplify import SimplifyGraph
from clusir.export.subjects.onnx_probe import natural_picture
from clusir.export.validate.compare import compare
from clusir.export.validate.tolerances import TOLERANCES, Tolerance

__all__ = ["OpenCV"]

_CHILD = """
import sys, cv2, numpy
folder, count = sys.argv[1], int(sys.argv[2])
net = cv2.dnn.readNetFromONNX(folder + "/model.onnx", cv2.dnn.ENGINE_NEW)
for index in range(count):
    net.setInput(numpy.load(f"{folder}/{index}.npy"), "input")
    numpy.save(f"{folder}/{index}.out.npy", net.forward())
"""


class OpenCV:
    """``model.onnx``: input ``input``, output ``output``, 1x3xTxT, constants folded."""

    name: ClassVar[str] = "opencv"
    bound: ClassVar[Tolerance] = TOLERANCES["brought"]
    beyond: ClassVar[bool] = True
    levels: ClassVar[bool] = False

    def requires(self) -> None:
        for module in ("onnx", "onnxruntime", "cv2"):
            need(module, self.name)
        import cv2

        if int(cv2.__version__.split(".")[0]) < 5:
            raise BackendError(
                f'--target opencv: OpenCV {cv2.__version__} is here, 5 is needed; pip install "clusir[hosts]"'
            )

    def prepare(self, source: Source) -> Source:
        return source

    def form(self, source: Source) -> HostForm:
        # One size: of graphs whose size is open, OpenCV does not follow what is computed from shapes.
        return HostForm("input", "output", side_px=source.spec.size.static_px or source.spec.tile_px)

    def lint(self, source: Source) -> list[str]:
        form = self.form(source)
        side = form.side_px
        content = self._simple(host_form(source, form)).SerializeToString()
        natural = natural_picture(side, side, 3)
        noise = np.random.default_rng(1).random(natural.shape, dtype=np.float32)
        # What OpenCV misreads may come out right on one picture and not on the next.
        images = [natural, noise, np.zeros_like(natural), np.ones_like(natural), natural * 1.8 - 0.1, noise]
        try:
            answers = _run(content, images)
        except RuntimeError as error:
            return [f"OpenCV refuses the graph: {error}"]
        right = reference(source, form)
        for image, answer in zip(images, answers, strict=True):
            found = compare({"restored": right(image)}, {"restored": answer}, self.bound)
            if not found.ok:
                return [f"OpenCV opens the graph and answers wrong: {found.fault}"]
        return []

    def write(self, source: Source, model: ModelProto, folder: Path) -> None:
        onnx.save(self._simple(model), str(self.model(folder)))

    def model(self, folder: Path) -> Path:
        return folder / "model.onnx"

    def check(self, folder: Path) -> None:
        """Running it is the check."""

    def run(self, folder: Path, image: Array) -> Array:
        try:
            return _run(self.model(folder).read_bytes(), [image])[0]
        except RuntimeError as error:
            raise ExportError(f"OpenCV refuses {self.model(folder)}: {error}") from error

    @staticmethod
    def _simple(model: ModelProto) -> ModelProto:
        return SimplifyGraph().apply(model).model


def _run(content: bytes, images: Sequence[Array]) -> list[Array]:
    """What OpenCV makes of each picture, in a process of its own: a graph that it misreads may end it, and what it
    could not read it says on standard error only. Raises RuntimeError, in one line, where OpenCV refuses."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "model.onnx").write_bytes(content)
        for index, image in enumerate(images):
            np.save(work / f"{index}.npy", np.ascontiguousarray(image))
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(work), str(len(images))],
            capture_output=True, text=True, errors="replace", timeout=600, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(_reason(done.stderr, done.returncode))
        return [np.asarray(np.load(work / f"{index}.out.npy"), np.float32) for index in range(len(images))]


def _reason(said: str, code: int) -> str:
    """The operators that OpenCV does not have, else its error, else how it ended."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    for index, line in enumerate(lines):
        if "Unsupported operations:" in line:
            named = line.split("Unsupported operations:")[1].split() or lines[index + 1 : index + 2]
            return f"it has no {', '.join(named)}"
    errors = [line for line in lines if "error" in line.lower()]
    return (errors[-1] if errors else f"its process ended with code {code}")[:300]
