"""What every command shares: one-line errors, exit codes, ``--debug``."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from clusir.errors import ClusirError

__all__ = ["command", "echo_error", "fail"]


def echo_error(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    click.echo(f"error: {' '.join(str(message).split())}", err=True)


def fail(error: BaseException, debug: bool) -> NoReturn:
    """Report ``error`` in one line and exit with its code; with ``debug`` let the traceback through."""
    if debug and not isinstance(error, KeyboardInterrupt):
        raise error
    if isinstance(error, ClusirError):
        echo_error(str(error))
        sys.exit(error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        echo_error("interrupted; what was finished is kept")
        sys.exit(130)
    if isinstance(error, MemoryError):
        echo_error("out of memory; use smaller tiles, or clusir-run --max-memory")
        sys.exit(1)
    reason = str(error).splitlines()[0] if str(error) else "no message"
    echo_error(f"{type(error).__name__}: {reason} (run again with --debug for the traceback, and please report it)")
    sys.exit(1)


def command(**attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command that ends in the documented exit codes and never in a traceback, except with ``--debug``."""

    def wrap(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def run(*args: Any, debug: bool, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except (Exception, KeyboardInterrupt) as error:
                fail(error, debug)

        debug = click.option("--debug", is_flag=True, help="Show the traceback of an error.")
        settings = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
        return click.command(context_settings=settings, **attributes)(
            click.version_option(package_name="clusir")(debug(run))
        )

    return wrap
