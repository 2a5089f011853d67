"""Running a graph in memory while looking at tensors inside it, for calibration, sensitivity and bisection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from clusir.errors import ExportError, first_line
from clusir.runtimes.machine.threads import set_threads
from clusir.runtimes.runners.numbers import number_feeds
from clusir.spec import ModelSpec

__all__ = ["Array", "Feeds", "Probe"]

Array = NDArray[np.float32]
Feeds = Mapping[str, Array]


class Probe:
    """An ONNX Runtime session on the CPU that also returns the tensors named ``watch``.

    ``optimise`` off keeps every node as it stands in the file. ``threads`` 0 is one per core. Raises
    ExportError where ONNX Runtime does not accept the model.
    """

    def __init__(
        self, model: ModelProto, watch: Sequence[str] = (), *, optimise: bool = True, threads: int = 0
    ) -> None:
        import onnxruntime as ort

        if watch:
            watched = ModelProto()
            watched.CopyFrom(model)
            known = {value.name: value for value in (*model.graph.value_info, *model.graph.input)}
            have = {value.name for value in model.graph.output}
            watched.graph.output.extend(
                known[name] if name in known else onnx.ValueInfoProto(name=name) for name in watch if name not in have
            )
            model = watched
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what fails is raised, and told in one line
        set_threads(options, threads)
        if not optimise:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ORT raises its own types, which are not public
            raise ExportError(f"ONNX Runtime refuses the graph: {first_line(error)}") from error
        self.outputs: list[str] = [value.name for value in self._session.get_outputs()]
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        spec = ModelSpec.from_metadata(metadata) if "clusir.numbers" in metadata else ModelSpec()
        self._numbers = number_feeds(spec)
        inputs = [value.name for value in self._session.get_inputs()]
        self.inputs: list[str] = [name for name in inputs if name not in self._numbers]

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """All outputs and watched tensors for one set of inputs (extra entries of ``feeds`` are left out). Numbers
        that the model's metadata names have their defaults where they are not given."""
        given = {name: feeds.get(name, number) for name, number in self._numbers.items()}
        values = self._session.run(None, {name: feeds[name] for name in self.inputs} | given)
        return dict(zip(self.outputs, cast("list[Array]", values), strict=True))
