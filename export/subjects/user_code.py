"""Where in the user's own code something happened: file and line, never a line of a library."""

from __future__ import annotations

import functools
import importlib.util
import linecache
import os
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from types import FunctionType, ModuleType, TracebackType
from typing import Any

from torch import fx, nn

__all__ = ["calling_user_line", "code_of", "count_in", "innermost_user_line", "is_users", "line_of_node"]

_LIBRARIES = tuple(Path(sysconfig.get_path(p)).resolve() for p in ("stdlib", "purelib", "platlib"))
# An environment may see libraries of another one (--system-site-packages, a .pth file). Taken for the user's, torch
# would be put back to what it was before each run of the model: its traces then take minutes.
_FOLDERS = {"site-packages", "dist-packages"}
# The rooms of this package lie beside each other in a checkout, and in one folder where it is installed.
_OWN = tuple(
    Path(place).resolve()
    for room in ("clusir", "clusir.calibration", "clusir.export", "clusir.runtimes")
    for place in getattr(importlib.util.find_spec(room), "submodule_search_locations", None) or ()
)
# Files of installed packages that a network which is exported is made of.
_NETWORKS: set[str] = set()
_NEVER = {"clusir", "numpy", "torch", "torchvision", *sys.stdlib_module_names}
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def is_users(filename: str) -> bool:
    """Whether a file is neither Python's, a library's nor this package's."""
    if filename.startswith("<"):
        return False
    absolute = os.path.abspath(filename)
    return absolute in _NETWORKS or _is_elsewhere(absolute)


@functools.lru_cache(maxsize=1 << 15)  # asked for each loaded module and each frame of a trace, thousands of times
def _is_elsewhere(absolute: str) -> bool:
    path = Path(absolute).resolve()
    return _FOLDERS.isdisjoint(path.parts) and not any(path.is_relative_to(folder) for folder in (*_LIBRARIES, *_OWN))


def code_of(space: dict[str, Any]) -> str | None:
    """The source of a module, given by its names; None where it was not loaded from a file that can be read."""
    try:
        file = str(space["__file__"])
        status = os.stat(file)
        return _read(file, status.st_mtime_ns, status.st_size)
    except (KeyError, OSError, ValueError):
        return None


@functools.lru_cache(
    maxsize=1024
)  # a network is traced several times, and each time all that is loaded is looked through
def _read(file: str, changed_ns: int, size: int) -> str:
    return Path(file).read_text(encoding="utf-8")


def count_in(model: nn.Module) -> None:
    """From now on the code of ``model`` is the user's, also where it was installed as a package: the modules of its
    classes, and what these take from modules of the same packages."""
    queue = [cls.__module__ for part in model.modules() for cls in type(part).__mro__]
    seen: set[str] = set()
    while queue:
        name = queue.pop()
        module = sys.modules.get(name)
        if name in seen or module is None or name.partition(".")[0] in _NEVER:
            continue
        seen.add(name)
        if isinstance(file := getattr(module, "__file__", None), str):
            _NETWORKS.add(os.path.abspath(file))
        held = [v.__name__ if isinstance(v, ModuleType) else v.__module__ for v in list(vars(module).values())
                if isinstance(v, (ModuleType, FunctionType, type))]  # fmt: skip
        queue += [other for other in held if other and other.partition(".")[0] == name.partition(".")[0]]


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
