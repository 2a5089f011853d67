"""FFTs and complex numbers become real matrix products, before a graph is written.

Belongs here: operators that have no form, or no fast form, in ONNX. Not here: passes over a written graph
(``export.passes``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.export.lowering.complex import lower_complex
    from clusir.export.lowering.fft import FORMS, translation_table

__all__ = ["FORMS", "lower_complex", "translation_table"]

__getattr__, __dir__ = lazy(__name__, {"complex": "lower_complex", "fft": "FORMS translation_table"})
