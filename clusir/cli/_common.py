"""What every command shares: one-line errors, exit codes, ``--debug``."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import click

from clusir.errors import BackendError, ClusirError
from clusir.names import install_line

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["SETTINGS", "Group", "command", "console", "echo_error", "fail"]

SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def console() -> Console:
    """Standard output as a rich console; in a pipe or a log, wide enough for the tables."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 118)


def echo_error(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    Printer(err=True).line(f"error: {' '.join(str(message).split())}")


def show_everything() -> None:
    """Let both output streams escape what their encoding cannot say, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Printer:
    """Writes lines to standard output or error, and never raises: nobody may read any more, the disk behind it may be
    full, its encoding may be narrow. ``problem`` is what went wrong, other than that the reader has left."""

    def __init__(self, err: bool = False) -> None:
        self._err = err
        self.problem: str | None = None
        self._silent = False

    def stream(self) -> Any:
        return sys.stderr if self._err else sys.stdout

    def is_narrow(self) -> bool:
        """Whether block characters cannot be written."""
        try:
            "\u2588\u258f".encode(getattr(self.stream(), "encoding", None) or "ascii")
        except (UnicodeError, LookupError):
            return True
        return False

    def line(self, text: str) -> None:
        self.guarded(lambda: click.echo(text, err=self._err))

    def guarded(self, write: Callable[[], Any]) -> None:
        if self._silent:
            return
        try:
            write()
        except BrokenPipeError:
            self._silence()
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self.problem = getattr(error, "strerror", None) or str(error)
            self._silence()

    def _silence(self) -> None:
        self._silent = True
        drop_output(self.stream())


def drop_output(stream: Any) -> None:
    """Send what is still to come, and what waits in the buffer, nowhere: Python would complain about it at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def echo_warning(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    click.echo(f"warning: {' '.join(str(message).split())}", err=True)


def given_options() -> frozenset[str]:
    """The parameters of the running command that the user wrote out, by their names in Python."""
    context = click.get_current_context()
    default = (click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP)
    return frozenset(name for name in context.params if context.get_parameter_source(name) not in default)


def fail(error: BaseException, debug: bool) -> NoReturn:
    """Report ``error`` in one line and exit with its code; with ``debug`` let the traceback through."""
    if debug and not isinstance(error, KeyboardInterrupt):
        raise error
    if isinstance(error, ClusirError):
        echo_error(str(error))
        sys.exit(error.exit_code)
    if isinstance(error, BrokenPipeError):  # whoever read has seen enough
        drop_output(sys.stdout)
        sys.exit(141)  # as a shell names SIGPIPE
    if isinstance(error, KeyboardInterrupt):
        echo_error("interrupted; what was finished is kept")
        sys.exit(130)
    if isinstance(error, ModuleNotFoundError) and (line := install_line(error.name or "")):
        echo_error(f"{error.name} is not installed; install it with: {line}")
        sys.exit(BackendError.exit_code)
    if isinstance(error, MemoryError):
        echo_error("out of memory; use smaller tiles, or clusir-run --max-memory")
        sys.exit(1)
    reason = str(error).splitlines()[0] if str(error) else "no message"
    echo_error(f"{type(error).__name__}: {reason} (run again with --debug for the traceback, and please report it)")
    sys.exit(1)


class _OneStyle:
    """A mistyped command line ends like every other error: one line that starts with ``error:``, and exit code 2."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        run = super().main  # type: ignore[misc]  # a click.Command comes behind this in both classes below
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        try:
            code = run(*args, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            sys.exit(error.exit_code)
        except click.UsageError as error:
            advice = f"; {error.ctx.command_path} --help lists the options" if error.ctx is not None else ""
            echo_error(error.format_message().rstrip(".") + advice)
            sys.exit(error.exit_code)
        except click.ClickException as error:
            echo_error(error.format_message())
            sys.exit(error.exit_code)
        except (click.Abort, EOFError):
            fail(KeyboardInterrupt(), debug=False)
        sys.exit(code if isinstance(code, int) else 0)


class _Command(_OneStyle, click.Command):
    pass


class Group(_OneStyle, click.Group):
    """A click group whose usage errors are one line."""


def command(**attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command that ends in the documented exit codes and never in a traceback, except with ``--debug``."""

    def wrap(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def run(*args: Any, debug: bool, **kwargs: Any) -> Any:
            show_everything()
            try:
                return function(*args, **kwargs)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except (Exception, KeyboardInterrupt) as error:
                fail(error, debug)

        debug = click.option("--debug", is_flag=True, help="Show the traceback of an error.")
        made = click.command(cls=_Command, context_settings=SETTINGS, **attributes)(
            click.version_option(package_name="clusir")(debug(run))
        )
        made.params.sort(key=lambda option: option.name in ("debug", "version"))  # last in --help
        return made

    return wrap
