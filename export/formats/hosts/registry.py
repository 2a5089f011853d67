"""The one list of hosts."""

from __future__ import annotations

from clusir.errors import UsageError
from clusir.export.formats.hosts.base import Host
from clusir.export.formats.hosts.coreml.host import CoreMl
from clusir.export.formats.hosts.darktable import Darktable
from clusir.export.formats.hosts.executorch.host import ExecuTorch
from clusir.export.formats.hosts.litert import Litert
from clusir.export.formats.hosts.mnn import Mnn
from clusir.export.formats.hosts.ncnn.host import Ncnn
from clusir.export.formats.hosts.opencv import OpenCV
from clusir.export.formats.hosts.transformers_js import TransformersJs
from clusir.export.formats.hosts.triton import Triton
from clusir.export.formats.hosts.video import Ffmpeg, VsMlrt

__all__ = ["TARGETS", "target"]

TARGETS: dict[str, type[Host]] = {
    host.name: host
    for host in (
        CoreMl,
        Darktable,
        ExecuTorch,
        Ffmpeg,
        Litert,
        Mnn,
        Ncnn,
        OpenCV,
        TransformersJs,
        Triton,
        VsMlrt,
    )
}


def target(name: str) -> Host:
    """The host of that name. Raises UsageError where there is none."""
    if name not in TARGETS:
        raise UsageError(f"target {name!r} is not one of {', '.join(TARGETS)}")
    return TARGETS[name]()
