"""A host of the tests' own: its format is ONNX under another name, its runtime ONNX Runtime in a child process."""

from __future__ import annotations

from typing import ClassVar

from clusir.export.formats.hosts.converted import Converted

RUNNER = """
import sys, numpy, onnxruntime
folder, count = sys.argv[1], int(sys.argv[2])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(folder + "/model.own", options, providers=["CPUExecutionProvider"])
for index in range(count):
    numpy.save(f"{folder}/{index}.out.npy", session.run(None, {"input": numpy.load(f"{folder}/{index}.npy")})[0])
"""


class Own(Converted):
    name: ClassVar[str] = "own"
    module: ClassVar[str] = "onnxruntime"
    variable: ClassVar[str] = "CLUSIR_TEST_OWN"
    install: ClassVar[str] = "own numpy"
    files: ClassVar[tuple[str, ...]] = ("model.own",)
    converter: ClassVar[str] = (
        "import shutil, sys; shutil.copy(sys.argv[1] + '/model.onnx', sys.argv[1] + '/model.own')"
    )
    runner: ClassVar[str] = RUNNER
