"""The transcripts of docs/your-network.md: every command is run, and answers with the lines that the page shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from clusir.cli.export import main as export
from clusir.cli.run import main as run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "your-network.md"
COMMANDS: dict[str, click.Command] = {"clusir-export": export, "clusir-run": run}
SECTIONS = ("module", "ONNX file", "super-resolution", "noise level", "mask", "RGBA", "experts", "whole picture")

NETWORKS = """
import torch
from torch import nn


class Enlarge(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x):
        return nn.functional.interpolate(x, scale_factor=2, mode="nearest") + 0.1 * self.body(x)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1), nn.Sigmoid())

    def forward(self, x):
        y = self.head(x)
        return x + self.tail(3 * y * self.gate(20 * y))


class Paint(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(4, 3, 5, padding=2)

    def forward(self, image, mask):
        return image + mask * (self.body(torch.cat([image * (1 - mask), mask], 1)) - image)


class RGBA(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, picture):
        return self.network(picture)


def _seeded(make):
    torch.manual_seed(0)
    return make()


def build():
    return _seeded(lambda: nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1),
                                         nn.ReLU(), nn.Conv2d(32, 3, 3, padding=1)))


def paint():
    return _seeded(Paint)


def enlarge():
    return _seeded(Enlarge)


def attention():
    return _seeded(Attention)
"""

ROUTED = '''
import torch
from torch import nn

from clusir.export.experts.registry import register_moe, top_k_gate


class Experts(nn.Module):
    """Runs the one expert that its router chose for the picture."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.router = nn.Linear(3, 3)

    def forward(self, x):
        gate = top_k_gate(self.router(8 * x.mean((2, 3))).softmax(1), 1)
        made = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = torch.nonzero(gate[:, index]).flatten()
            if rows.numel():
                made[rows] = gate[rows, index, None, None, None] * expert(x[rows])
        return x + made


register_moe(
    Experts,
    experts="experts",
    gate=lambda block, x: top_k_gate(block.router(8 * x.mean((2, 3))).softmax(1), 1),
    combine=lambda block, mixed, gate, x: x + mixed,
)


def build():
    torch.manual_seed(0)
    return Experts()
'''


def transcripts(section: str) -> list[tuple[str, list[str]]]:
    """(command, lines that are shown below it) of one section of the page."""
    text = next(part for part in PAGE.read_text(encoding="utf-8").split("\n## ") if section in part.splitlines()[0])
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def shown(line: str, output: str) -> bool:
    """Whether a line of the page, in which ``...`` stands for anything, is a line of the output."""
    pattern = ".*".join(re.escape(part) for part in line.split("..."))
    return re.search(f"^(.*/)?{pattern}", output, re.MULTILINE) is not None


def onnx_files(folder: Path) -> None:
    kernel = np.zeros((3, 3, 3, 3), np.float32)
    kernel[range(3), range(3)] = 1 / 9
    shape = [None, 3, None, None]
    picture, answer = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    level = helper.make_tensor_value_info("sigma", TensorProto.FLOAT, [1])
    smooth = helper.make_node("Conv", ["x", "k"], ["smooth"], pads=[1, 1, 1, 1])
    limits = [numpy_helper.from_array(np.float32(n), name) for name, n in (("black", 0), ("white", 255))]
    nodes = {
        "theirs": ([smooth, helper.make_node("Clip", ["smooth", "black", "white"], ["y"])], [picture], limits),
        "noisy": ([smooth, helper.make_node("Sub", ["smooth", "x"], ["d"]), helper.make_node("Mul", ["d", "sigma"],
                  ["part"]), helper.make_node("Add", ["x", "part"], ["y"])], [picture, level], []),
    }  # fmt: skip
    for name, (made, inputs, constants) in nodes.items():
        graph = helper.make_graph(made, name, inputs, [answer], [numpy_helper.from_array(kernel, "k"), *constants])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, str(folder / f"{name}.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_transcripts(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mynet.py").write_text(NETWORKS)
    Path("mymoe.py").write_text(ROUTED)
    onnx_files(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 280, 3), np.uint8)).save("photo.png")
    Image.fromarray(np.eye(300, 280, dtype=np.uint8) * 255).save("mask.png")
    steps = transcripts(section)
    assert steps
    for command, lines in steps:
        program, *arguments = shlex.split(command)
        done = CliRunner().invoke(COMMANDS[program], arguments)
        codes = (2, 4) if lines[0].startswith("error: ") else (0,)
        assert done.exit_code in codes, f"{command}\n{done.output}"
        for line in lines:
            assert shown(line, done.output), f"{command}\n{line}\n---\n{done.output}"


def test_the_check_can_fail() -> None:
    assert shown("ours.onnx  ... MB", "a\n/tmp/x/ours.onnx  0.00 MB\n")
    assert not shown("ours.onnx  ... MB", "mine.onnx  0.00 MB")
    assert not shown("- takes sigma=0.1", "- takes sigma=0.2")


def test_every_section_is_run() -> None:
    titles = [part.splitlines()[0] for part in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]]
    assert [next((s for s in SECTIONS if s in title), title) for title in titles] == list(SECTIONS)
