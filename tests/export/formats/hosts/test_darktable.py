"""darktable: the package by its own validator, and pictures through a copy of its tiler."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from darktable_tiler import tiled

from clusir.errors import ExportError, UnsupportedModelError
from clusir.export.formats.hosts.darktable import OVERLAP_PX, Darktable, model_id
from clusir.export.formats.hosts.folders import export_targets, hosts_of, open_source
from clusir.export.formats.hosts.routing.frozen import frozen_for_noise
from clusir.export.formats.hosts.selftest import verify_target, write_record
from clusir.export.graph.session import Probe
from clusir.export.subjects.onnx_probe import natural_picture
from clusir.quality.metrics import psnr
from clusir.runtimes.runners.files import find_model
from tests.needs import skip

Make = Callable[..., Path]
Array = np.ndarray
NAME = "darktable"


def opened(folder: Path) -> Callable[[Array], Array]:
    probe = Probe(onnx.load(str(Darktable().model(folder))), threads=1)
    return lambda image: probe.run({"input": image})["output"]


@pytest.mark.parametrize("tile", [256, 512, 768])
def test_tiles_leave_no_seam_and_keep_what_is_above_white(network: Make, tmp_path: Path, tile: int) -> None:
    export_targets(open_source(network()), tmp_path, hosts_of([NAME]))
    run = opened(tmp_path / NAME)
    picture = natural_picture(700, 530, 3) * 2.5 - 0.2
    whole, parts = run(np.maximum(picture, 0)), tiled(run, picture, tile)
    inner = np.s_[:, :, 1:-1, 1:-1]  # the border is mirrored in the one, zeros in the other
    assert np.abs(whole - parts)[inner].max() <= 1e-5
    assert np.isfinite(parts).all()
    assert parts.max() > 2
    assert np.abs(run(np.full((1, 3, 256, 256), 3.0, np.float32))[:, :, 8:-8, 8:-8] - 3).max() <= 1e-5


def test_the_copy_of_the_tiler_shows_a_network_that_looks_too_far() -> None:
    def far(image: Array) -> Array:
        return np.roll(image, OVERLAP_PX + 1, axis=3)  # one pixel more than the overlap

    picture = natural_picture(64, 700, 3)
    wrong = np.abs(far(picture) - tiled(far, picture, 256))[..., OVERLAP_PX + 1 :].max(axis=(0, 1, 2))
    assert set(np.flatnonzero(wrong > 0) + OVERLAP_PX + 1) <= {*range(128, 700, 128)}  # the seams, and nothing else
    assert (wrong > 0).any()


@pytest.mark.parametrize("side", [0, 256])
def test_the_package_is_one_folder_with_a_config_and_one_model(network: Make, tmp_path: Path, side: int) -> None:
    (made,) = export_targets(open_source(network(side, name="My Net.2")), tmp_path, hosts_of([NAME]))
    assert {"my-net-2.dtmodel", "my-net-2/config.json", "my-net-2/model.onnx"} <= set(made.files)
    with zipfile.ZipFile(tmp_path / NAME / "my-net-2.dtmodel") as archive:
        assert sorted(archive.namelist()) == ["my-net-2/config.json", "my-net-2/model.onnx"]
        assert all(info.compress_type == zipfile.ZIP_DEFLATED for info in archive.infolist())
        config = json.loads(archive.read("my-net-2/config.json"))
        graph = onnx.load_from_string(archive.read("my-net-2/model.onnx")).graph
    assert (config["id"], config["task"], config["backend"], config["num_inputs"]) == ("my-net-2", "denoise", "onnx", 1)
    assert config["attributes"]["input_sizes"] == ([side] if side else [2048, 1024, 768, 512])
    dims = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert dims == ([1, 3, side, side] if side else [1, 3, *config["spatial_dims"]])
    assert len(graph.output) == 1
    card = config["model_card"]
    assert {"long_description", "scope", "author", "source", "paper", "license", "training_data",
            "training_data_license", "notes"} == set(card)  # fmt: skip
    assert all(card.values())
    assert {found.via for found in verify_target(NAME, tmp_path)} == {"onnxruntime", NAME}


def test_the_sdk_refuses_what_is_not_complete(network: Make, tmp_path: Path) -> None:
    export_targets(open_source(network()), tmp_path, hosts_of([NAME]))
    folder, package = tmp_path / NAME, tmp_path / NAME / "blur.dtmodel"
    with zipfile.ZipFile(package) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}

    def pack(changed: dict[str, bytes]) -> None:
        with zipfile.ZipFile(package, "w") as archive:
            for name, content in changed.items():
                archive.writestr(name, content)
        (folder / "target.json").unlink()
        write_record(folder, NAME, ("input", "output"))

    for changed, why in (
        ({**files, "blur/config.json": b"{}"}, "missing fields"),
        ({**files, "blur/model.onnx": b"no"}, "cannot load"),
        ({**files, "other/LICENSE": b"x"}, "top folders"),
        ({}, "top folders"),
        ({k: v for k, v in files.items() if "model" not in k.split("/")[1]}, "not found"),
    ):
        pack(changed)
        with pytest.raises(ExportError, match=why):
            verify_target(NAME, tmp_path)
    package.write_bytes(b"no zip")
    with pytest.raises(ExportError, match="cannot be read"):
        Darktable().check(folder)


OLDER = """
import sys, numpy, onnxruntime
assert onnxruntime.__version__.startswith("1.23."), onnxruntime.__version__
for name in ("noise", "light"):
    case = numpy.load(f"golden/{name}.npz")
    options = onnxruntime.SessionOptions()
    options.add_free_dimension_override_by_name("height", case["image"].shape[2])
    options.add_free_dimension_override_by_name("width", case["image"].shape[3])
    session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", options, providers=["CPUExecutionProvider"])
    answer = session.run(None, {session.get_inputs()[0].name: case["image"]})[0]
    print(float(numpy.abs(answer - case["expected"]).max()))
"""


@pytest.mark.parametrize("which", ["small", "shipped"])
def test_the_runtime_that_darktable_brings_opens_it(network: Make, tmp_path: Path, which: str) -> None:
    python = os.environ.get("CLUSIR_ORT_1_23")
    if not python:
        skip("darktable's runtime")
    source = open_source(network() if which == "small" else find_model(None).whole)
    export_targets(source, tmp_path, hosts_of([NAME]))
    command = [python, "-c", OLDER, model_id(source.name)]
    told = subprocess.run(command, cwd=tmp_path / NAME, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    found = [float(line) for line in told.stdout.split()]
    assert len(found) == 2
    assert max(found) <= 1e-5


@pytest.mark.parametrize(
    ("change", "why"), [({"scale": 2}, "enlarges 2 times"), ({"side": 128}, "128 px leave nothing")]
)
def test_what_darktable_could_not_run_is_said_before(
    network: Make, tmp_path: Path, change: dict[str, int], why: str
) -> None:
    source = open_source(network(change.get("side", 0)))
    source = replace(source, spec=replace(source.spec, scale=change.get("scale", 1)))
    with pytest.raises(UnsupportedModelError, match=why):
        export_targets(source, tmp_path / "out", hosts_of([NAME]))
    assert not (tmp_path / "out").exists()


def test_ids_are_folder_names() -> None:
    assert [model_id(name) for name in ("tiny", "A b/../c", "..", "ä")] == ["tiny", "a-b-c", "model", "model"]


def test_the_shipped_network_is_routed_once_and_removes_noise() -> None:
    source = open_source(find_model(None).whole)
    frozen = frozen_for_noise(source)
    assert [value.name for value in frozen.model.graph.input] == ["image"]
    assert not frozen.spec.routed
    side = frozen.spec.size.static_px
    clean = natural_picture(side, side, 3, 20)
    noisy = (clean + np.random.default_rng(1).normal(0, 25 / 255, clean.shape)).clip(0, 1).astype(np.float32)
    answer = Probe(frozen.model, threads=1).run({"image": noisy})["restored"]
    assert psnr(answer.clip(0, 1), clean) > psnr(noisy, clean) + 5


def test_a_routed_network_without_its_other_graphs_is_refused(tmp_path: Path) -> None:
    source = replace(open_source(find_model(None).whole), tile=None)
    with pytest.raises(UnsupportedModelError, match="from a bundle"):
        export_targets(source, tmp_path / "out", hosts_of([NAME]))
    assert not (tmp_path / "out").exists()
