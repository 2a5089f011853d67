"""The browser page, served to this machine alone.

Belongs here: the server, and in ``built`` what ``runtimes/web/build.mjs --page`` made. Not here: the page's own code
(``runtimes/web``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.runtimes.page.server import PageServer, page_files

__all__ = ["PageServer", "page_files"]

__getattr__, __dir__ = lazy(__name__, {"server": "PageServer page_files"})
