"""Graphs that keep their weights in one file: what is in it, who opens it, and what becomes of a file of another
export."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from standin_bundle import GOLDEN, GRAPHS, NAMES, seal

from clusir.cli.verify import main as verify
from clusir.errors import ModelFormatError, UsageError
from clusir.export.formats.ort_mobile import write_ort_mobile
from clusir.export.formats.weights import share_weights
from clusir.export.ownership import refuse_foreign, retire
from clusir.runtimes import Restorer, open_runner
from clusir.runtimes.page.server import page_files
from clusir.runtimes.runners.external import external_files
from clusir.runtimes.runners.files import find_model
from clusir.runtimes.runners.losses import losses_text


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """The stand-in's three graphs as an export with a file name leaves them."""
    folder = tmp_path / "inside"
    folder.mkdir()
    for graph, name in NAMES.items():
        shutil.copy(GOLDEN / GRAPHS[graph], folder / name)
    return folder


@pytest.fixture
def shared(tmp_path: Path, inside: Path) -> Path:
    folder = Path(shutil.copytree(inside, tmp_path / "shared"))
    assert share_weights([folder / name for name in NAMES.values()]) == folder / "model.onnx.data"
    return folder


def spoilt(folder: Path) -> None:
    """The weights of another training: as many bytes, other values."""
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[0] ^= 1
    (folder / "model.onnx.data").write_bytes(data)


def test_each_tensor_is_stored_once_and_small_ones_stay(inside: Path, shared: Path) -> None:
    graphs = {name: onnx.load(inside / name).graph.initializer for name in NAMES.values()}
    large = [t.raw_data for tensors in graphs.values() for t in tensors if len(t.raw_data) >= 1024]
    content = (shared / "model.onnx.data").read_bytes()
    assert len(large) > len(set(large)) > 1, "the stand-in's tile graph repeats what its whole graph holds"
    assert len(content) < sum(map(len, set(large))) + 64 * len(set(large))
    for name, tensors in graphs.items():
        now = onnx.load(shared / name, load_external_data=False).graph.initializer
        outside = [t for t in now if t.data_location == onnx.TensorProto.EXTERNAL]
        assert [t.name for t in outside] == [t.name for t in tensors if len(t.raw_data) >= 1024]
        for tensor in outside:
            place = {entry.key: entry.value for entry in tensor.external_data}
            assert place["location"] == "model.onnx.data"
            assert int(place["offset"]) % 64 == 0
        sums = [e.value for t in outside[:1] for e in t.external_data if e.key == "checksum"]
        assert sums == [hashlib.sha1(content).hexdigest()] * bool(outside)
        onnx.checker.check_model(str(shared / name))
        loaded = onnx.load(shared / name).graph.initializer
        assert [(t.name, t.raw_data) for t in loaded] == [(t.name, t.raw_data) for t in tensors]


def test_sharing_again_changes_nothing_and_graphs_without_large_tensors_stay(shared: Path) -> None:
    before = {path.name: path.read_bytes() for path in shared.iterdir()}
    share_weights([shared / name for name in NAMES.values()])
    assert {path.name: path.read_bytes() for path in shared.iterdir()} == before
    router = shared / "model.router.onnx"
    assert share_weights([router]) is None
    assert router.read_bytes() == before[router.name]


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_pictures_come_out_bit_for_bit_as_from_graphs_with_their_weights_inside(
    inside: Path, shared: Path, backend: str
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (70, 61, 3), np.uint8)
    restored = []
    for folder in (inside, shared):
        with Restorer(folder, backend=backend, threads=1) as restorer:
            restored.append(np.asarray(restorer.restore(picture)))
    assert np.array_equal(*restored)


@pytest.mark.parametrize("backend", ["ort", "openvino"])
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (spoilt, r"model\.onnx\.data holds the weights of another export \(its SHA-1 differs\)"),
        (lambda folder: (folder / "model.onnx.data").unlink(), r"in model\.onnx\.data, which is not beside it"),
        (lambda folder: (folder / "model.onnx.data").write_bytes(b""), "another export"),
    ],
    ids=["other values", "missing", "empty"],
)
def test_weights_of_another_export_are_told(shared: Path, backend: str, spoil: object, why: str) -> None:
    assert callable(spoil)
    spoil(shared)
    with pytest.raises(ModelFormatError, match=why) as caught:
        open_runner(shared / "model.tile.onnx", backend, "cpu", threads=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("location", ["../secret.data", "/etc/hostname", "link.data"])
@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_weights_elsewhere_are_refused(shared: Path, backend: str, location: str) -> None:
    shutil.copy(shared / "model.onnx.data", shared.parent / "secret.data")
    (shared / "link.data").symlink_to(shared.parent / "secret.data")
    path = shared / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    assert external_files(path) == []
    with pytest.raises(ModelFormatError):
        open_runner(path, backend, "cpu", threads=1)


def test_what_stands_for_a_model_takes_the_weights_in(shared: Path) -> None:
    files = find_model(shared)
    assert {path.name for path in files.all()} == {*NAMES.values(), "model.onnx.data"}
    before, unchanged = files.sha256(), files.unchanged()
    spoilt(shared)
    assert files.sha256() != before
    assert not unchanged()


def test_a_page_is_given_the_file_under_the_name_that_graphs_say(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("page")
    served = page_files(find_model(shared), tmp_path)
    assert served["models/model.onnx.data"] == shared / "model.onnx.data"
    assert served["models/tiny.tile.onnx"] == shared / "model.tile.onnx"


def test_mobile_files_hold_their_weights(shared: Path, tmp_path: Path) -> None:
    report = write_ort_mobile(shared / "model.onnx", tmp_path / "mobile")
    assert {file.graph for file in report.files if file.max_abs < 1e-6} == {"whole", "tile", "router"}
    weights = (shared / "model.onnx.data").stat().st_size
    assert all(file.source_bytes > weights for file in report.files if file.graph == "whole")


def test_a_file_of_weights_is_ours_where_a_graph_of_ours_names_it(shared: Path) -> None:
    refuse_foreign(shared, ["model.onnx.data"], "model")
    (shared / "other.onnx.data").write_bytes(b"somebody's")
    with pytest.raises(Exception, match=re.escape("other.onnx.data is there and was not written by clusir-export")):
        refuse_foreign(shared, ["other.onnx.data"], "other")


def test_losses_beside_a_model_are_its_own_without_a_report(tmp_path: Path) -> None:
    (tmp_path / "model.losses.json").write_text(losses_text({}, {}), encoding="utf-8")
    refuse_foreign(tmp_path, ["model.losses.json"], "model")
    (tmp_path / "model.losses.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match=r"model.losses.json is there and was not written"):
        refuse_foreign(tmp_path, ["model.losses.json"], "model")


def test_what_a_later_export_leaves_behind_is_retired(inside: Path, shared: Path) -> None:
    for graph in ("", ".tile"):
        shutil.copy(inside / f"model{graph}.onnx", shared / f"model.int8{graph}.onnx")
    share_weights([shared / f"model.int8{graph}.onnx" for graph in ("", ".tile")])
    before = (shared / "model.onnx").read_bytes()
    assert retire(shared, "model", NAMES.values(), before) == []
    for name in NAMES.values():  # a later export, with its weights inside
        shutil.copy(inside / name, shared / name)
    retired = retire(shared, "model", NAMES.values(), before)
    assert set(retired) == {f"model{end}" for end in (".onnx.data", ".int8.onnx", ".int8.tile.onnx", ".int8.onnx.data")}
    assert {path.name for path in shared.glob("*.stale")} == {f"{name}.stale" for name in retired}
    assert open_runner(shared / "model.onnx", "ort", "cpu", threads=1).spec.graph == "whole"


def test_a_bundle_with_other_weights_is_refused_by_its_manifest(tmp_path: Path, shared: Path) -> None:
    seal(shared)
    spoilt(shared)
    done = CliRunner().invoke(verify, [str(shared)])
    assert done.exit_code == 2
    assert "model.onnx.data is not the file that the manifest names" in done.stderr
