"""OpenVINO and NNCF without their usage statistics."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["import_openvino", "unreported"]

_STATISTICS = "openvino_telemetry"
_LOCK = threading.Lock()
_plain: list[tuple[Any, str, Any]] = []  # what was replaced: owner, name, value
_inside = [0]  # callers of unreported


def import_openvino() -> Any:
    """The ``openvino`` module. Raises ImportError.

    Importing it makes an identifier of the user in the home folder, for events that its conversion tools send, unless
    the package of the statistics is not there: so it is not there for the time of this import.
    """
    if "openvino" not in sys.modules:
        before = sys.modules.get(_STATISTICS)
        sys.modules[_STATISTICS] = None  # type: ignore[assignment]
        try:
            import openvino
        finally:
            sys.modules.pop(_STATISTICS, None)
            if before is not None:
                sys.modules[_STATISTICS] = before
        return openvino
    import openvino

    return openvino


@contextmanager
def unreported() -> Iterator[None]:
    """What OpenVINO's conversion tools and NNCF do meanwhile is reported to nobody, also where the program has imported
    them before: each event would fork the process, and be sent. Afterwards they are as they were."""
    with _LOCK:
        _inside[0] += 1
        if _inside[0] == 1:
            _mute()
    try:
        yield
    finally:
        with _LOCK:
            _inside[0] -= 1
            while _plain and not _inside[0]:  # of two exports at a time the last ends it
                setattr(*_plain.pop())


def _mute() -> None:
    """Whoever asks hears that the user has declined; who was told otherwise before sends nothing."""
    try:
        from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker
        from openvino_telemetry.utils.sender import TelemetrySender
    except ImportError:
        return
    for owner, name, silent in (
        (OptInChecker, "check", lambda *_: ConsentCheckResult.DECLINED),
        (TelemetrySender, "send", lambda *_: None),
    ):
        _plain.append((owner, name, getattr(owner, name)))
        setattr(owner, name, silent)
