"""What the command line names: the factory of somebody else's model, and the shape to trace it at."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from clusir.calibration.planes import channels_fault
from clusir.errors import ClusirError, UnsupportedModelError, UsageError
from clusir.export.quiet import printing_to
from clusir.export.subjects.portable import portable
from clusir.export.subjects.user_code import innermost_user_line

__all__ = ["declare_unused", "load_factory", "parse_input", "unused_of", "working_folder_first"]

# Regular expressions of parameters that the user says never take part: by whose they are (a factory's name, or a
# class), and those that the next export takes for its own.
_UNUSED: dict[str, tuple[str, ...]] = {}
_PENDING: list[str] = []
# The command line is the process's: of two factories at once, the later would find, and leave, the other's.
_ONE_AT_A_TIME = threading.RLock()
_PATH_LOCK = threading.Lock()
_SEARCHED: dict[str, int] = {}  # folders put on the search path, and how many exports want them


def declare_unused(*patterns: str) -> None:
    """Say that parameters whose names match one of the regular expressions (from the start) never take part.

    Such weights (a head of the training, a leftover block) are otherwise taken for experts that the trace has lost.
    Said while a factory is imported or called, it holds for what that factory makes; said elsewhere, for the class of
    the model that is exported next.
    """
    _PENDING.extend(patterns)


def unused_of(factory: str | nn.Module) -> tuple[str, ...]:
    """The patterns that hold for one export; what was said since the last one now belongs to it."""
    owner = factory if isinstance(factory, str) else f"{type(factory).__module__}.{type(factory).__qualname__}"
    _UNUSED[owner] = tuple(dict.fromkeys((*_UNUSED.get(owner, ()), *_PENDING)))
    _PENDING.clear()
    return _UNUSED[owner]


@contextlib.contextmanager
def working_folder_first() -> Iterator[None]:
    """Inside, modules are looked for in the current folder first; afterwards the search path is what it was."""
    here = os.getcwd()
    with _PATH_LOCK:
        ours = here in _SEARCHED or here not in sys.path
        if ours and here not in _SEARCHED:
            sys.path.insert(0, here)
        if ours:
            _SEARCHED[here] = _SEARCHED.get(here, 0) + 1
    try:
        yield
    finally:
        with _PATH_LOCK:
            if ours:
                _SEARCHED[here] -= 1
            if ours and not _SEARCHED[here]:  # no export of another thread wants it
                del _SEARCHED[here]
                if here in sys.path:
                    sys.path.remove(here)


def parse_input(text: str) -> tuple[int, int, int, int]:
    """``"1x3x128x128"`` -> (1, 3, 128, 128). Raises UsageError for anything that is not BxCxHxW with C of
    1, 3 or 4."""
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)x(\d+)", text.strip())
    if not match:
        raise UsageError(f"--input {text!r} is not BxCxHxW, for example 1x3x128x128")
    batch, channels, height, width = (int(g) for g in match.groups())
    if channels != 4 and (fault := channels_fault(channels, channels)):
        raise UsageError(f"--input {text!r}: {channels} channels; {fault}")
    if batch < 1 or not (8 <= height <= 4096 and 8 <= width <= 4096):
        raise UsageError(f"--input {text!r}: batch at least 1, height and width within 8..4096")
    return batch, channels, height, width


def load_factory(spec: str) -> nn.Module:
    """``"package.module:factory"`` -> the module that the factory returns, in eval mode on the CPU, float32.

    The current folder is searched first. Raises UsageError where the name is malformed or leads nowhere, and
    UnsupportedModelError where the factory fails or returns something else.
    """
    name, _, attribute = spec.partition(":")
    if not name or not attribute:
        raise UsageError(f"--module {spec!r} is not package.module:factory")
    with _ONE_AT_A_TIME, working_folder_first(), _alone(spec), portable():
        try:
            found: Any = importlib.import_module(name)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise UsageError(
                f"--module {spec!r}: {error}; it is looked up from {os.getcwd()} and the Python path"
            ) from error
        except Exception as error:
            raise UnsupportedModelError(f"--module {spec!r}: {_own(error)}") from error
        if isinstance(found, nn.Module):
            model: Any = found
        else:
            try:
                model = found()
            except Exception as error:
                raise UnsupportedModelError(f"--module {spec!r}: the factory: {_own(error)}") from error
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            f"--module {spec!r} returns TorchScript, which holds only the route of its trace; return the nn.Module"
        )
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"--module {spec!r} returns {type(model).__name__}, not a torch.nn.Module")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    ready: nn.Module = model.cpu().float().eval().requires_grad_(False)
    return ready


def _own(error: Exception) -> str:
    reason = (str(error).strip().splitlines() or ["no message"])[0][:300]
    return f"{innermost_user_line(error.__traceback__)} raised {type(error).__name__}: {reason}"


@contextlib.contextmanager
def _alone(spec: str) -> Iterator[None]:
    """The user's code sees a command line without options: those of clusir-export are not for its own parser."""
    given, said = sys.argv, io.StringIO()
    sys.argv = given[:1]
    try:
        with printing_to(said, ("stderr",)):
            yield
    except ClusirError:
        raise
    except SystemExit as error:
        lines = [line.strip() for line in said.getvalue().splitlines() if line.strip()]
        said_last = f" ({lines[-1]})" if lines else ""
        raise UnsupportedModelError(
            f"--module {spec!r}: {innermost_user_line(error.__traceback__)} ended the program{said_last}: it reads the "
            "command line where it is imported or built; give its options defaults, or parse them under "
            "if __name__ == '__main__'"
        ) from error
    finally:
        sys.argv = given
