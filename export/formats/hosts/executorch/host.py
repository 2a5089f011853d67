"""ExecuTorch (PyPI ``executorch``): ``model.pte`` for phones, run by XNNPACK.

It has no way from ONNX. The graph is written operator by operator with PyTorch (``child.py``, in the environment that
has ExecuTorch: each release wants one release of PyTorch), whose own exporter makes the file. What XNNPACK does not
take is computed by ExecuTorch's portable kernels.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from onnx import ModelProto

from clusir.export.formats.hosts.converted import Converted
from clusir.export.formats.hosts.plan import write_plan

__all__ = ["ExecuTorch"]

_CONVERTER = (Path(__file__).parent / "child.py").read_text(encoding="utf-8")

_RUNNER = """
import sys
import numpy, torch
from executorch.runtime import Runtime
torch.set_num_threads(1)
folder, count = sys.argv[1], int(sys.argv[2])
method = Runtime.get().load_program(folder + "/model.pte").load_method("forward")
for index in range(count):
    image = torch.from_numpy(numpy.load(f"{folder}/{index}.npy"))
    numpy.save(f"{folder}/{index}.out.npy", method.execute([image])[0].numpy())
"""


class ExecuTorch(Converted):
    """``model.pte``, float32, with all that XNNPACK takes given to it."""

    name: ClassVar[str] = "executorch"
    module: ClassVar[str] = "executorch"
    variable: ClassVar[str] = "CLUSIR_EXECUTORCH"
    install: ClassVar[str] = "'clusir[executorch]'"  # its pins: each release wants one of PyTorch
    files: ClassVar[tuple[str, ...]] = ("model.pte",)
    converter: ClassVar[str] = _CONVERTER
    runner: ClassVar[str] = _RUNNER

    def hand_over(self, model: ModelProto, folder: Path) -> None:
        """The graph as its writer reads it. Raises Refused."""
        write_plan(model, folder)
