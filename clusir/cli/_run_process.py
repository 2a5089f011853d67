"""What ties ``clusir-run`` to its process: signals that end it (Ctrl-C, SIGTERM, a closed terminal: the first one
cleanly, within seconds), and ``clusir-run - -o -``: one picture from standard input, to standard output, through files
of a private folder."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clusir.runtimes.batch.pipeline import Pipeline

__all__ = ["Request", "Signals", "piped"]

_STDIN, _STDOUT = "standard input", "standard output"


@dataclass(frozen=True)
class Request:
    """What is to be done. ``names`` are paths to be shown as something else; ``to_stdout``: standard output takes the
    picture, so that everything else is said on standard error."""

    inputs: tuple[str, ...]
    output: str
    names: Mapping[str, str] = field(default_factory=dict)
    to_stdout: bool = False


@contextmanager
def piped(inputs: tuple[str, ...], output: str, suffix: str | None, options: Mapping[str, Any]) -> Iterator[Request]:
    """The request with files in the place of ``-``; the picture goes to standard output where the block ends well.

    Raises UsageError where ``-`` does not go together with the rest, ImageError where standard input is no picture.
    """
    if "-" not in inputs and output != "-":
        yield Request(inputs, output)
        return
    _check(inputs, output, options)
    import tempfile

    with tempfile.TemporaryDirectory(prefix="clusir-pipe-") as folder:
        source, target, names = inputs[0], output, {}
        if source == "-":
            source = str(Path(folder, "input"))
            names[source] = _STDIN
            with open(source, "wb") as stream:
                shutil.copyfileobj(sys.stdin.buffer, stream)
        if output == "-":
            target = str(Path(folder, f"output{suffix or _suffix(Path(source), names)}"))
            names[target] = _STDOUT
        yield Request((source,), target, names, output == "-")
        if output == "-" and Path(target).is_file():
            with open(target, "rb") as stream:
                shutil.copyfileobj(stream, sys.stdout.buffer)
            sys.stdout.buffer.flush()


def _check(inputs: tuple[str, ...], output: str, options: Mapping[str, Any]) -> None:
    from clusir.errors import UsageError
    from clusir.runtimes.batch.jobs import is_glob
    from clusir.runtimes.images.formats import WRITE_SUFFIXES

    which = "input -" if "-" in inputs else "output -"
    if len(inputs) != 1 or Path(inputs[0]).is_dir() or (is_glob(inputs[0]) and not Path(inputs[0]).exists()):
        raise UsageError(f"{which}: standard input and output hold one picture; name one, or a folder for -o")
    if "-" in inputs and output != "-" and (Path(output).is_dir() or Path(output).suffix.lower() not in WRITE_SUFFIXES):
        raise UsageError(f"output {output}: {_STDIN} has no name; name a file that ends in {', '.join(WRITE_SUFFIXES)}")
    for option in ("watch", "ray"):
        if options[option]:
            raise UsageError(f"{which}: --{option} needs files; {_STDIN} and output hold one picture")
    if output == "-" and options["compare"]:
        raise UsageError(f"output -: --compare needs a file beside which it can write; {_STDOUT} is none")
    if output == "-" and options["as_json"]:
        raise UsageError(f"output -: {_STDOUT} takes the picture, and --json wants it as well; name a file with -o")
    for stream, name, used in ((sys.stdin, _STDIN, "-" in inputs), (sys.stdout, _STDOUT, output == "-")):
        if used and stream is None:
            raise UsageError(f"{which}: {name} is closed")
    if "-" in inputs and sys.stdin.isatty():
        raise UsageError(f"input -: {_STDIN} is a terminal; send a picture into it")
    if output == "-" and sys.stdout.isatty():
        raise UsageError(f"output -: {_STDOUT} is a terminal; send it to a file or a program")


def _suffix(source: Path, names: Mapping[str, str]) -> str:
    """That of the format of the bytes, where it can be written."""
    from clusir.errors import ImageError
    from clusir.runtimes.images.files import probe_picture
    from clusir.runtimes.images.formats import SUFFIX_FORMATS, WRITE_SUFFIXES

    try:
        kind = probe_picture(source).info.format
    except ImageError as error:
        raise ImageError(str(error).replace(str(source), names.get(str(source), str(source)))) from error
    return next((suffix for suffix in WRITE_SUFFIXES if SUFFIX_FORMATS[suffix] == kind), ".png")


class Signals:
    """Set :attr:`pipeline` while one may be running: the first signal then stops it, instead of raising somewhere."""

    def __init__(self) -> None:
        self.pipeline: Pipeline | None = None
        self._seen = 0

    @contextmanager
    def heard(self) -> Iterator[Signals]:
        """Within the block, the signals are this object's. One that is ignored (nohup) stays so."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before: dict[int, Any] = {}
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, self._hear)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, *_: Any) -> None:
        self._seen += 1
        if self._seen == 1 and self.pipeline is not None and self.pipeline.running and not self.pipeline.stop():
            return
        raise KeyboardInterrupt
