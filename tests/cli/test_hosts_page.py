"""The commands and the Python of docs/hosts.md, one section for each runtime of phones: the shipped network is exported
as the page says, and opened as the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clusir.export.formats.hosts.converted import Converted
from clusir.export.formats.hosts.registry import TARGETS
from tests.bench.hosts.__main__ import PAGES, placed
from tests.needs import skip
from tests.test_house import ROOT

TITLES = {"coreml": "Core ML", "executorch": "ExecuTorch", "litert": "LiteRT", "mnn": "MNN", "ncnn": "ncnn"}
IMPORTS = {
    "executorch": "import torch; from executorch.runtime import Runtime",
    "litert": "from ai_edge_litert.interpreter import Interpreter",
    "mnn": "from MNN import expr, nn",
    "ncnn": "import ncnn",
}
AROUND = """
import numpy
{imports}
case = numpy.load("out/{name}/golden/noise.npz")
image, expected = case["image"], case["expected"]
if "{name}" == "litert":  # its channels come last
    image, expected = (numpy.ascontiguousarray(numpy.moveaxis(array, 1, 3)) for array in (image, expected))
{code}
better = better.read() if hasattr(better, "read") else better
print(float(numpy.abs(better - expected).max()))
"""


def section(title: str) -> tuple[str, str]:
    """The commands and the Python of a section."""
    page = (ROOT / "docs" / "hosts.md").read_text("utf-8")
    text = re.split(r"^## ", page.split(f"\n## {title}\n")[1], flags=re.M)[0]
    (commands,) = re.findall(r"^```\n(.*?)^```", text, re.M | re.S)
    (code,) = re.findall(r"^```(?:python|swift)\n(.*?)^```", text, re.M | re.S)
    return commands, code


@pytest.mark.parametrize("name", PAGES)
def test_every_table_that_is_made_has_its_place(name: str) -> None:
    """What ``python -m tests.bench.hosts --write`` replaces, and nothing around it."""
    before = PAGES[name].read_text("utf-8")
    after = placed(before, name, "| another |\n")
    assert placed(after, name, "| a third |").replace("| a third |", "| another |") == after
    start = before.index(f"<!-- {name}: python -m tests.bench.hosts --write -->")
    end = before.index(f"<!-- end of {name} -->")
    assert (after[:start], after.partition(f"<!-- end of {name} -->")[2]) == (
        before[:start], before[end:].partition(" -->")[2]
    )  # fmt: skip
    assert after.count("| another |") == 1
    with pytest.raises(ValueError, match="has not one part nothing"):
        placed(before, "nothing", "")


def test_every_runtime_of_phones_has_a_section() -> None:
    assert set(TITLES) == {name for name, host in TARGETS.items() if issubclass(host, Converted)}


@pytest.mark.slow
@pytest.mark.parametrize("name", TITLES)
def test_the_page_is_followed(name: str, tmp_path: Path) -> None:
    host = TARGETS[name]
    assert issubclass(host, Converted)
    commands, code = section(TITLES[name])
    make, export = commands.splitlines()
    assert make.split("#")[0].strip() == f"python -m venv {name}-env && {name}-env/bin/pip install {host.install}"
    setting, words = export.split("#")[0].strip().split(" ", 1)
    assert setting == f"{host.variable}={name}-env/bin/python"
    python = os.environ.get(host.variable)
    if not python:
        skip(name)
    program, *rest = words.split()
    assert program == "clusir-export"
    call = [sys.executable, "-m", "clusir", "export", *rest]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if name == "coreml":  # its lines are Swift's, not run here; the names in them are those of the package
        assert "not run here" in done.stdout + done.stderr
        assert {"image", "restored"} <= set(re.findall(r'"(\w+)"', code))
        return
    text = AROUND.format(imports=IMPORTS[name], name=name, code=code)
    told = subprocess.run([python, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(told.stdout.splitlines()[-1]) <= 1e-4
