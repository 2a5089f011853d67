"""Operators, and chains of them, that not all runtimes take, as those that all of them take.

Belongs here: the pass, and one file for each kind of operator. Not here: forms that are faster (``export.passes``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.export.passes.plain.operators import PlainOperators

__all__ = ["PlainOperators"]

__getattr__, __dir__ = lazy(__name__, {"operators": "PlainOperators"})
