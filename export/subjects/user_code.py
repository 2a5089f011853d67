"""Where in the user's own code something happened: file and line, never a line of a library."""

from __future__ import annotations

import functools
import linecache
import os
import re
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

from torch import fx

__all__ = ["calling_user_line", "innermost_user_line", "is_users", "line_of_node"]

_LIBRARIES = tuple(Path(sysconfig.get_path(p)).resolve() for p in ("stdlib", "purelib", "platlib"))
_OWN = Path(__file__).resolve().parents[1]
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def is_users(filename: str) -> bool:
    """Whether a file is neither Python's, a library's nor this package's."""
    return not filename.startswith("<") and _is_elsewhere(os.path.abspath(filename))


@functools.lru_cache(maxsize=1 << 15)  # asked for each loaded module and each frame of a trace, thousands of times
def _is_elsewhere(absolute: str) -> bool:
    path = Path(absolute).resolve()
    return not any(path.is_relative_to(folder) for folder in (*_LIBRARIES, _OWN))


def _show(filename: str, line: int) -> str:
    source = linecache.getline(filename, line).strip()
    return f"{filename}:{line}" + (f" `{source}`" if source else "")


def innermost_user_line(trace: TracebackType | None) -> str:
    """``file:line `source` `` of the deepest frame that belongs to neither Python, a library nor this package."""
    return _innermost(traceback.extract_tb(trace))


def calling_user_line() -> str:
    """The same for the code that is running now."""
    return _innermost(traceback.extract_stack())


def _innermost(frames: traceback.StackSummary) -> str:
    for frame in reversed(frames):
        if frame.lineno is not None and is_users(frame.filename):
            return _show(frame.filename, frame.lineno)
    return "the model's code"


def line_of_node(node: fx.Node) -> str:
    """The same for a node of a traced graph, from the stack that the tracer recorded."""
    for filename, line in reversed(_FRAME.findall(node.meta.get("stack_trace") or "")):
        if is_users(filename):
            return _show(filename, int(line))
    return f"node {node.name} of the traced model"
