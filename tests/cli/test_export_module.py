"""Options of clusir-export beside --module: each acts, or is refused before anything is loaded."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from clusir.cli.export import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--module", "a:b", "--device", "cuda", "--openvino"], "--openvino, --device would have no effect"),
        (["--module", "a:b", "--max-drop", "0.1dB"], "--max-drop does nothing without --precision int8"),
        (["--module", "a:b", "--seed", "1"], "--seed does nothing"),
        (["--output", "1"], "--output: only with --module"),
        (["--size", "64", "--batch", "1"], "--batch, --size: only with --module"),
        (["--module", "a:b", "--dynamic", "--size", "64"], "--dynamic and --size contradict each other"),
    ],
)
def test_options_without_effect_are_refused(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["--onnx", "out.onnx", *arguments])
    assert done.exit_code == 2
    assert message in done.output
    assert done.output.count("\n") == 1
