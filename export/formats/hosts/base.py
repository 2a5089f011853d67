"""What a host is asked, and what it is given."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from clusir.errors import BackendError, ClusirError, ExportError
from clusir.export.validate.compare import Agreement
from clusir.export.validate.tolerances import TOLERANCES, Tolerance
from clusir.spec import ModelSpec

if TYPE_CHECKING:
    from clusir.export.formats.hosts.integers import Integers

__all__ = ["Array", "Further", "Host", "HostForm", "NotRunHere", "OnnxHost", "Source", "need"]

Array = NDArray[np.float32]


class NotRunHere(ClusirError):
    """The host's own code is not on this machine; the message says what is missing."""

    exit_code = 3


@dataclass(frozen=True)
class Source:
    """A whole graph, picture to picture, and its description. ``name``: what it is called in the host; ``tile`` and
    ``router``: the graphs beside it, of a routed network."""

    model: ModelProto
    spec: ModelSpec
    name: str
    tile: ModelProto | None = None
    router: ModelProto | None = None

    @property
    def fixed_batch(self) -> int:
        """The one number of pictures that the graph takes; 0 where any."""
        shape = next(v for v in self.model.graph.input if v.name == self.spec.input_name).type.tensor_type.shape
        return int(shape.dim[0].dim_value)


@dataclass(frozen=True)
class HostForm:
    """The graph that a host opens: one picture 1xCxHxW in, one out, as many channels as the source has, values in 0..1.

    ``batch``: the name of an open first axis, empty where it is 1. ``height``, ``width``: names of open axes.
    ``side_px``: the one size, 0 where open. ``any_size``: pads to the network's size rule and crops, inside the
    graph. ``highlights``: what leaves 0..1 is added back to the answer, not cut off.
    """

    input_name: str
    output_name: str
    batch: str = ""
    height: str = "height"
    width: str = "width"
    side_px: int = 0
    any_size: bool = False
    highlights: bool = False


@dataclass(frozen=True)
class Further:
    """An ONNX file of another ``precision`` than float32. ``bound``: how near it must come to the reference;
    ``absent``: why it is not there, where ``path`` is None."""

    precision: str
    path: Path | None
    bound: Tolerance
    absent: str = ""


class Host(Protocol):
    """One program. ``bound``: how near its own code must come to the reference. ``beyond``: whether it gives the graph
    values outside 0..1; ``levels``: whether pictures go in and come out in 8 bits; ``channels``: how many its pictures
    may have. ``no_int8``: why there is no INT8 for it; empty where there is."""

    name: ClassVar[str]
    bound: ClassVar[Tolerance]
    beyond: ClassVar[bool]
    levels: ClassVar[bool]
    channels: ClassVar[tuple[int, ...]]
    no_int8: ClassVar[str]

    def requires(self) -> None:
        """Raises BackendError, with the line that installs it, where a package is missing that writing needs."""

    def prepare(self, source: Source) -> Source:
        """The source with its routing as the host needs it: what is linted, written and compared."""

    def form(self, source: Source) -> HostForm:
        """The host form of this model."""

    def lint(self, source: Source) -> list[str]:
        """What the host could not run, one sentence each, found before anything is written."""

    def write(self, source: Source, model: ModelProto, folder: Path) -> None:
        """Write the host's files; ``model`` is the source in the host form."""

    def model(self, folder: Path) -> Path | None:
        """The ONNX file in a folder that was written; None where it holds none."""

    def further(self, folder: Path) -> list[Further]:
        """Other precisions of :meth:`model`, in the same folder."""

    def add_int8(self, model: ModelProto, folder: Path, drawn: Integers, bars: tuple[float, float]) -> str:
        """Write the INT8 files beside the others in ``folder``; what they lose, in a sentence. ``model``: in the host
        form; ``bars``: how much that may be in the mean and for any degradation, in dB. Raises BudgetError where every
        variant loses more, ExportError where the host's own code refuses them."""

    def check(self, folder: Path) -> None:
        """Ask the host's own tools about the files. Raises ExportError for what they refuse."""

    def run(self, folder: Path, image: Array) -> Array:
        """What the host's own code makes of a picture 1xCxHxW. Raises NotRunHere."""

    def runs(self, folder: Path, images: list[Array]) -> list[Array]:
        """:meth:`run` of several pictures, in one process where it takes a process. Raises NotRunHere."""

    def more(self, folder: Path, image: Array, expected: Array) -> list[tuple[str, Agreement | None, str]]:
        """What else the folder holds, on one golden case: (what, how it agrees, why it is not there where it is not).
        Raises ValidationError for a wrong answer."""


class OnnxHost:
    """What most hosts answer to :class:`Host`: float32 in the bound of brought networks, the routing as it is, nothing
    to lint, ``model.onnx``, and no tool of their own that looks at it."""

    name: ClassVar[str]
    bound: ClassVar[Tolerance] = TOLERANCES["brought"]
    beyond: ClassVar[bool] = True
    levels: ClassVar[bool] = False
    channels: ClassVar[tuple[int, ...]] = (1, 3)
    no_int8: ClassVar[str] = "it reads ONNX, and INT8 in ONNX was not tried in it"

    def requires(self) -> None:
        for module in ("onnx", "onnxruntime"):
            need(module, self.name)

    def prepare(self, source: Source) -> Source:
        return source

    def lint(self, source: Source) -> list[str]:
        return []

    def model(self, folder: Path) -> Path | None:
        return folder / "model.onnx"

    def further(self, folder: Path) -> list[Further]:
        return []

    def add_int8(self, model: ModelProto, folder: Path, drawn: Integers, bars: tuple[float, float]) -> str:
        raise ExportError(f"--target {self.name}: there is no INT8 for it: {self.no_int8}")

    def check(self, folder: Path) -> None:
        """Running it is the check."""

    def run(self, folder: Path, image: Array) -> Array:
        raise NotImplementedError

    def runs(self, folder: Path, images: list[Array]) -> list[Array]:
        return [self.run(folder, image) for image in images]

    def more(self, folder: Path, image: Array, expected: Array) -> list[tuple[str, Agreement | None, str]]:
        return []


def need(module: str, target: str) -> None:
    """Raises BackendError where ``module`` is not installed. Nothing is imported."""
    if find_spec(module) is None:
        raise BackendError(f'--target {target}: {module} is not installed; pip install "clusir[hosts]"')
