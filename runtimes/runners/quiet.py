"""OpenVINO without its usage statistics."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["import_openvino"]

_STATISTICS = "openvino_telemetry"


def import_openvino() -> Any:
    """The ``openvino`` module. Raises ImportError.

    Importing it makes an identifier of the user in the home folder, for events that its conversion tools send, unless
    the package of the statistics is not there: so it is not there for the time of this import.
    """
    if "openvino" not in sys.modules and _STATISTICS not in sys.modules:
        sys.modules[_STATISTICS] = None  # type: ignore[assignment]
        try:
            import openvino
        finally:
            sys.modules.pop(_STATISTICS, None)
        return openvino
    import openvino

    return openvino
