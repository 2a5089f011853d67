"""Networks that pool over the whole picture, in C++ and JavaScript: tiles share what Python's tiles share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toolchain import BACKENDS, REPOSITORY, WEB, ort_library, run

from clusir.export.module import export_module
from clusir.runtimes.restore.restorer import Restorer
from tests import needs
from tests.golden.make.cases import FORMAT, TOLERANCE, colours, golden_picture, to_unit

# name of the case: (network, statistics, width, height, channels, kind)
CASES = {
    "sampled_u8": ("Squeeze", "sampled", 231, 150, 3, "u8"),
    "exact_u8": ("Squeeze", "exact", 231, 150, 3, "u8"),
    "one_tile_u16": ("Squeeze", "sampled", 50, 41, 3, "u16"),
    "largest_alpha_u16": ("Largest", "exact", 150, 97, 4, "u16"),
    "halves_grey_u8": ("InstanceNorms", "sampled", 203, 77, 1, "u8"),
    "one_by_one_f32": ("One", "sampled", 140, 120, 3, "f32"),
}
KINDS: dict[str, Any] = {"u8": np.uint8, "u16": np.uint16, "f32": np.float32}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of golden cases: models of 64 px tiles, and what Python makes of pictures with them."""
    sys.path.insert(0, str(REPOSITORY / "tests" / "export"))
    import pooled_networks as networks

    folder = tmp_path_factory.mktemp("pooled")
    for name in ("in", "out"):
        (folder / name).mkdir()
    torch.manual_seed(0)
    for name in {network for network, *_ in CASES.values()}:
        network = networks.seeded(getattr(networks, {"One": "Squeeze"}.get(name, name))())
        path = folder / f"{name}.onnx"
        made = export_module(network, "1x3x64x64", path, tile=64, backends=("ort",), batch=int(name == "One"))
        assert made.spec.statistics
        assert (folder / f"{name}.statistics.onnx").is_file()
    manifest: dict[str, Any] = {"format": FORMAT, "cases": [], "enlarged": [], "refused": []}
    for number, (case, (name, statistics, width, height, channels, kind)) in enumerate(CASES.items()):
        pixels = golden_picture(width, height, channels, kind=kind, seed=30 + number)
        model = folder / f"{name}.onnx"
        with Restorer(model, backend="ort", device="cpu", threads=1, statistics=statistics) as restorer:
            restored = restorer.restore(to_unit(colours(pixels)))
        (folder / "in" / f"{case}.bin").write_bytes(np.ascontiguousarray(pixels).tobytes())
        (folder / "out" / f"{case}.bin").write_bytes(np.ascontiguousarray(restored, "<f4").tobytes())
        manifest["cases"].append({"name": case, "model": model.name, "width": width, "height": height,
                                  "channels": channels, "type": kind, "input": f"in/{case}.bin",
                                  "restored": f"out/{case}.bin", "posterior": [], "gate": [],
                                  "tolerance": TOLERANCE, "statistics": statistics})  # fmt: skip
    # Without the other two it restores pictures of one tile.
    (folder / "Alone.onnx").write_bytes((folder / "Squeeze.onnx").read_bytes())
    manifest["refused"].append({"name": "alone", "model": "Alone.onnx", "width": 90, "height": 20, "strength": "1",
                                "says": "NAME.statistics.onnx"})  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_the_cases_tell_the_ways_apart(cases: Path) -> None:
    """A tile by itself, sampled and exact statistics differ by more than what is allowed."""
    sampled, exact = (np.fromfile(cases / "out" / f"{name}_u8.bin", "<f4") for name in ("sampled", "exact"))
    pixels = np.fromfile(cases / "in" / "exact_u8.bin", np.uint8).reshape(150, 231, 3)
    with Restorer(cases / "Squeeze.onnx", backend="ort", threads=1, statistics="exact") as restorer:
        assert np.abs(restorer.restore(to_unit(pixels)).ravel() - exact).max() < TOLERANCE
    other = np.fromfile(cases / "in" / "sampled_u8.bin", np.uint8).reshape(150, 231, 3)
    with Restorer(cases / "Squeeze.onnx", backend="ort", threads=1, statistics="exact") as restorer:
        assert np.abs(restorer.restore(to_unit(other)).ravel() - sampled).max() > 5 * TOLERANCE
    corner = np.ascontiguousarray(pixels[:64, :64])
    with Restorer(cases / "Squeeze.onnx", backend="ort", threads=1) as restorer:
        alone = restorer.restore(to_unit(corner))
    assert np.abs(alone[:40, :40] - exact.reshape(150, 231, 3)[:40, :40]).max() > 5 * TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_cpp_agrees(cpp: Path, cases: Path, backend: str) -> None:
    out = run(cpp / "clusir-golden", cases, backend, ort_library())
    assert out.count("max abs difference") == len(CASES)
    assert out.splitlines()[-1].endswith(" passed, 0 failed")


def test_javascript_agrees(cases: Path) -> None:
    if not (WEB / "node_modules" / "onnxruntime-web").is_dir():
        needs.skip("browser", "the npm packages are not installed")
    out = run(needs.program("node", "browser"), WEB / "test" / "cases.mjs", cases)
    assert out.count("max abs difference") == len(CASES) + 1
    assert out.splitlines()[-1].endswith(" passed, 0 failed")
