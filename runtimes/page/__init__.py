"""The browser page, served to this machine alone or written as a folder for a server of one's own.

Belongs here: the server, what makes a model small enough to be downloaded (``packing``), and in ``built`` what
``runtimes/web/build.mjs --page`` made. Not here: the page's own code (``runtimes/web``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusir.lazy import lazy

if TYPE_CHECKING:
    from clusir.runtimes.page.folder import write_page
    from clusir.runtimes.page.packing import packed
    from clusir.runtimes.page.server import PageServer, page_files

__all__ = ["PageServer", "packed", "page_files", "write_page"]

__getattr__, __dir__ = lazy(__name__, {"server": "PageServer page_files", "packing": "packed", "folder": "write_page"})
