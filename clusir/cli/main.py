"""``clusir``: one command that lists the others and runs them; ``clusir run`` is ``clusir-run``."""

from __future__ import annotations

from importlib import import_module
from typing import cast

import click

from clusir.cli._common import SETTINGS, Group

__all__ = ["COMMANDS", "main"]

# In the order in which somebody meets them. Each is a file of this folder.
COMMANDS = ("run", "page", "export", "verify", "bench", "train", "doctor")


class _Commands(Group):
    """Imports a command when it is asked for."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return cast(click.Command, import_module(f"clusir.cli.{name}").main)


@click.command(name="clusir", cls=_Commands, context_settings=SETTINGS, invoke_without_command=True)
@click.version_option(package_name="clusir")
@click.pass_context
def main(context: click.Context) -> None:
    """Restore degraded photos, and export restoration networks to verified ONNX.

    Each command is also a program of its own: clusir run is clusir-run. COMMAND --help explains it.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
