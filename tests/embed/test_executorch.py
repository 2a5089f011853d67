"""ExecuTorch programs: the network for one tile size without transforms, and, where an environment has ExecuTorch, the
program itself."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from toolchain import run

from clusir.errors import BackendError, ExportError, UsageError
from clusir.export.formats.executorch import ProgramOptions, example, main, write_executorch
from clusir.export.formats.static_fft import MatrixSplit, SplitByMatrices
from clusir.export.trace.forms import GRAPHS
from clusir.network import checkpoint
from clusir.network.frequency import FourierSplit
from clusir.network.model import ClusIR
from tests import needs

INSTALLED = importlib.util.find_spec("executorch") is not None


@pytest.fixture(scope="module")
def network() -> ClusIR:
    return checkpoint.load(checkpoint.shipped())


@pytest.mark.parametrize(("height", "width"), [(12, 20), (16, 16), (5, 9)])
def test_matrices_split_as_the_transform_does(height: int, width: int) -> None:
    torch.manual_seed(0)
    split = FourierSplit(16, 8, 4).eval()
    x, cue = torch.randn(2, 16, height, width), torch.randn(2, 8)
    with torch.no_grad():
        expected, found = split(x, cue), MatrixSplit(split, height, width)(x, cue)
    for a, b in zip(expected, found, strict=True):
        assert (a - b).abs().max() < 2e-6
    assert expected[0].abs().max() > 0.1


def test_every_graph_of_the_shipped_network_stays_the_same(network: ClusIR) -> None:
    done = SplitByMatrices(64).apply(network)
    SplitByMatrices(64).ensures(done.model)
    assert any(isinstance(module, MatrixSplit) for module in done.model.modules())
    assert not any(isinstance(module, MatrixSplit) for module in network.modules())
    with pytest.raises(ExportError, match="never reached"):
        SplitByMatrices(64).ensures(network)
    assert isinstance(done.model, ClusIR)
    for form in GRAPHS.values():
        feeds = example(network, form, 64)
        with torch.no_grad():
            expected, found = form.build(network)(*feeds), form.build(done.model)(*feeds)
        pairs = [(expected, found)] if form.name == "tile" else zip(expected, found, strict=True)
        assert all((a - b).abs().max() < 1e-5 for a, b in pairs)


def test_wrong_requests_are_one_line(network: ClusIR, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="must be a multiple of"):
        write_executorch(network, tmp_path / "out", options=ProgramOptions(tile_px=100))
    with pytest.raises(UsageError, match="wider than two halos"):
        write_executorch(network, tmp_path / "out", options=ProgramOptions(tile_px=64, halo_px=32))
    with pytest.raises(UsageError, match="1 to 9 of a picture"):
        write_executorch(network, tmp_path / "out", options=ProgramOptions(tile_px=64, samples=10))
    with pytest.raises(UsageError, match="is not one of xnnpack, portable"):
        write_executorch(network, tmp_path / "out", options=ProgramOptions(delegate="npu"))
    with pytest.raises(UsageError, match="is not one of whole, tile, router"):
        write_executorch(network, tmp_path / "out", options=ProgramOptions(graphs=("all",)))
    assert main([str(tmp_path / "out"), "--checkpoint", str(tmp_path / "none.safetensors")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(INSTALLED, reason=needs.NEEDS["no executorch"])
def test_without_executorch_it_says_how_to_get_it(network: ClusIR, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r'pip install "clusir\[executorch\]"'):
        write_executorch(network, tmp_path / "out", options=ProgramOptions(tile_px=64))


@pytest.mark.slow
def test_programs_agree_with_pytorch(tmp_path: Path) -> None:
    """The command itself runs each program and compares it with PyTorch."""
    python = os.environ.get("CLUSIR_EXECUTORCH") or (sys.executable if INSTALLED else None)
    if python is None:
        needs.skip("executorch")
    told = run(
        python, "-W", "ignore", "-m", "clusir.export.formats.executorch", tmp_path, "--tile", "64", "--graph", "tile"
    )
    line = re.search(r"tiny\.tile\.pte: ([\d.]+) MB, (\d+) parts on xnnpack, differs from PyTorch by (\S+)", told)
    assert line is not None, told[-2000:]
    assert int(line[2]) > 0
    assert float(line[3]) <= 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.tile.pte"]
