"""What is exported: where a network comes from and what is asked of it before anything is traced.

Belongs here: loading and checking a network. Not here: tracing it (``export.trace``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.export.subjects.factory import declare_unused, load_factory, parse_input

__all__ = ["declare_unused", "load_factory", "parse_input"]

__getattr__, __dir__ = lazy(__name__, {"factory": "declare_unused load_factory parse_input"})
