"""From a module to a torch program and an ONNX file: symbolic sizes, the whole, tile and router graph, the writer.

Belongs here: everything between ``nn.Module`` and the first ONNX graph. Not here: what changes that graph
(``export.passes``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.export.trace.forms import GRAPHS, GraphForm
    from clusir.export.trace.program import TracedModel, trace_module
    from clusir.export.trace.sizes import size_rule
    from clusir.export.trace.writer import OPSET, write_onnx

__all__ = ["GRAPHS", "OPSET", "GraphForm", "TracedModel", "size_rule", "trace_module", "write_onnx"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "forms": "GRAPHS GraphForm",
        "program": "TracedModel trace_module",
        "sizes": "size_rule",
        "writer": "OPSET write_onnx",
    },
)
