"""Every error that clusir raises on purpose, with the exit code a command ends with.

::

    ClusirError                  1  something that was asked for could not be done
    ├── UsageError               2  the request itself is wrong: options, paths, an unknown model
    │   ├── ModelFormatError     2  a file is not a model that clusir can read
    │   └── CalibrationError     2  calibration data is missing, unreadable or too small
    ├── BackendError             3  the backend or device asked for is not available here
    ├── ImageError               1  a picture could not be read or written
    ├── ExportError              4  a pass refused or failed; nothing was promoted
    │   ├── UnsupportedModelError 4  the model holds something that no pass can lower
    │   └── ValidationError      4  an artefact disagrees with the reference
    │       └── BudgetError      4  a quality budget could not be met
    └── InterruptedRun         130  stopped by the user; the work can be resumed

A command that did what was asked and has to warn of something that a script should see ends with 5.

Messages are one line and say what was given, what is allowed, and what to do.
"""

from __future__ import annotations

__all__ = [
    "WARNING_EXIT_CODE",
    "BackendError",
    "BudgetError",
    "CalibrationError",
    "ClusirError",
    "ExportError",
    "ImageError",
    "InterruptedRun",
    "ModelFormatError",
    "UnsupportedModelError",
    "UsageError",
    "ValidationError",
    "first_line",
]


WARNING_EXIT_CODE = 5


class ClusirError(Exception):
    """Base of all deliberate errors; ``exit_code`` is what a command returns."""

    exit_code: int = 1


class UsageError(ClusirError):
    """The request is wrong: an option, a path, a name."""

    exit_code = 2


class ModelFormatError(UsageError):
    """A file is not a model that clusir can read, or its metadata lies."""


class CalibrationError(UsageError):
    """Calibration data is missing, unreadable, too small or not finite."""


class BackendError(ClusirError):
    """The backend or the device that was asked for is not available here."""

    exit_code = 3


class ImageError(ClusirError):
    """A picture could not be read or written."""


class ExportError(ClusirError):
    """A pass refused or failed; nothing was promoted to its final name."""

    exit_code = 4


class UnsupportedModelError(ExportError):
    """The model holds something that no pass can lower; the message names the line."""


class ValidationError(ExportError):
    """An artefact disagrees with the reference by more than its tolerance."""


class BudgetError(ValidationError):
    """A quality budget could not be met; of INT8 the best that was reached is written, once it has been compared."""


class InterruptedRun(ClusirError):
    """Stopped by the user; the work done so far is kept and can be resumed."""

    exit_code = 130


def first_line(error: BaseException, most: int = 300) -> str:
    """The first line of what an error says, at most ``most`` characters of it; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]
