"""``clusir``, ``python -m clusir`` and the one style of errors on the command line."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from clusir.cli.main import COMMANDS, main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_commands_are_listed(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0
    listed = [line.split()[0] for line in done.stdout.split("Commands:")[1].splitlines() if line.strip()]
    assert tuple(listed) == COMMANDS
    assert "..." not in done.stdout.split("Commands:")[1]  # every line is a whole sentence


def test_python_m_clusir_is_the_same() -> None:
    done = subprocess.run([sys.executable, "-m", "clusir"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == CliRunner().invoke(main, []).stdout.splitlines()[1:]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistyped_option_is_one_line_and_exit_code_2(command: str) -> None:
    done = CliRunner().invoke(main, [command, "--nonsense"])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: No such option '--nonsense'")
    assert f"clusir {command} --help" in line
    assert done.stdout == ""


def test_a_mistyped_command_is_one_line() -> None:
    done = CliRunner().invoke(main, ["rnu"])
    assert (done.exit_code, done.stderr) == (2, "error: No such command 'rnu'; clusir --help lists the options\n")
