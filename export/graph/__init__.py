"""What every pass needs of an ONNX graph: index, editing, probing with impulses, sessions, operation counts.

Belongs here: questions to a graph and edits that hold for any graph. Not here: a pass (``export.passes``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.export.graph.complexity import count_macs
    from clusir.export.graph.edit import GraphEdit
    from clusir.export.graph.index import GraphIndex
    from clusir.export.graph.probe import LinearGraph
    from clusir.export.graph.session import Probe

__all__ = ["GraphEdit", "GraphIndex", "LinearGraph", "Probe", "count_macs"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "complexity": "count_macs",
        "edit": "GraphEdit",
        "index": "GraphIndex",
        "probe": "LinearGraph",
        "session": "Probe",
    },
)
