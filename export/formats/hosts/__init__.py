"""Programs that open other people's models: one file for each says what it asks for, writes it, and runs it in the
program's own code where that installs.

Belongs here: a folder's files and their self-test. Not here: changes of what a network computes (``export.passes``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.export.formats.hosts.base import Host, HostForm, NotRunHere, Source
    from clusir.export.formats.hosts.folders import export_targets, open_source
    from clusir.export.formats.hosts.registry import TARGETS, target
    from clusir.export.formats.hosts.selftest import Finding, verify_target

__all__ = [
    "TARGETS", "Finding", "Host", "HostForm", "NotRunHere", "Source", "export_targets", "open_source", "target",
    "verify_target",
]  # fmt: skip

__getattr__, __dir__ = lazy(
    __name__,
    {
        "base": "Host HostForm NotRunHere Source",
        "registry": "TARGETS target",
        "selftest": "Finding verify_target",
        "folders": "export_targets open_source",
    },
)
