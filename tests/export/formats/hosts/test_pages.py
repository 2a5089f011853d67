"""The lines of docs/hosts.md that open a folder in JavaScript and in Python, run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clusir.export.formats.hosts.converted import Converted
from clusir.export.formats.hosts.folders import export_targets, hosts_of, open_source
from clusir.export.formats.hosts.form import reference
from clusir.export.formats.hosts.registry import TARGETS
from tests import needs
from tests.test_house import ROOT

JS = "transformers.js"
SHOWN = "\nconsole.log(JSON.stringify([better.height, better.width, better.channels, ...better.data]));"
AROUND = """
import cv2, numpy
case = numpy.load("out/opencv/golden/noise.npz")
image = case["image"]
{code}
print(float(numpy.abs(better - case["expected"]).max()))
"""

# What the lines of a page assume, the environment that they run in, and the order of axes there.
PHONES = {
    "litert": ("LiteRT", "from ai_edge_litert.interpreter import Interpreter", (0, 2, 3, 1)),
    "mnn": ("MNN", "from MNN import expr, nn", (0, 1, 2, 3)),
    "ncnn": ("ncnn", "import ncnn", (0, 1, 2, 3)),
    "executorch": ("ExecuTorch", "import torch; from executorch.runtime import Runtime", (0, 1, 2, 3)),
}
IN_ITS_ENVIRONMENT = """
import numpy
{imports}
case = numpy.load("out/{name}/golden/noise.npz")
image, expected = (numpy.ascontiguousarray(case[key].transpose({axes})) for key in ("image", "expected"))
{code}
better = numpy.asarray(better if isinstance(better, numpy.ndarray) else better.read())
print(float(numpy.abs(better.reshape(expected.shape) - expected).max()))
"""


def lines(title: str, language: str) -> str:
    """The first code of that language below a title."""
    page = (ROOT / "docs" / "hosts.md").read_text("utf-8")
    text = re.split(r"^## ", page.split(f"\n## {title}\n")[1], flags=re.M)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)[0]


def test_the_pipeline_of_the_page(network: Callable[..., Path], tmp_path: Path) -> None:
    home = os.environ.get("CLUSIR_TRANSFORMERS_JS")
    if not home:
        needs.skip(JS)
    node = needs.program("node", "transformers.js")
    source = open_source(network())
    export_targets(source, tmp_path / "out", hosts_of([JS]))
    (tmp_path / "node_modules").symlink_to(Path(home).resolve() / "node_modules")
    pixels = np.random.default_rng(5).integers(0, 256, (21, 34, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=100, subsampling=0)
    command = [node, "--input-type=module", "-e", lines(JS, "js") + SHOWN]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    height, width, channels, *values = np.fromstring(done.stdout.strip().strip("[]"), np.int64, sep=",")
    answer = np.asarray(values).reshape(height, width, channels)
    read = np.asarray(Image.open(tmp_path / "photo.jpg"), np.float32) / np.float32(255)
    wanted = reference(source, TARGETS[JS]().form(source))(read.transpose(2, 0, 1)[None].copy())[0].transpose(1, 2, 0)
    # Readers of JPEG differ by a few levels, which the blur makes less of.
    assert np.abs(answer - 255 * wanted).max() <= 3
    assert np.abs(answer - 255 * read).max() > 30


def test_opencv_of_the_page(network: Callable[..., Path], tmp_path: Path) -> None:
    export_targets(open_source(network(64)), tmp_path / "out", hosts_of(["opencv"]))
    text = AROUND.format(code=lines("OpenCV", "python"))
    told = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(told.stdout) <= 1e-4


@pytest.mark.parametrize("name", PHONES)
def test_phones_of_the_page(network: Callable[..., Path], tmp_path: Path, name: str) -> None:
    host = TARGETS[name]
    assert issubclass(host, Converted)
    python = os.environ.get(host.variable)
    if not python:
        needs.skip(name)
    title, imports, axes = PHONES[name]
    export_targets(open_source(network(256)), tmp_path / "out", hosts_of([name]))  # the page's picture is 256 px
    text = IN_ITS_ENVIRONMENT.format(name=name, imports=imports, axes=axes, code=lines(title, "python"))
    told = subprocess.run([python, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert float(told.stdout.split()[-1]) <= 1e-4
