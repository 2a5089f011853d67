"""``clusir page --out``: the page as a folder, and the model in it in fewer bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from clusir.cli.page import main
from clusir.degrade.recipe import Recipe, Step
from clusir.errors import ModelFormatError
from clusir.export.lowering import dft
from clusir.runtimes.page.packing import packed
from clusir.runtimes.restore.restorer import Restorer
from clusir.runtimes.runners.files import find_model

RNG = np.random.default_rng(0)


def halved(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16).astype(np.float32)


def tensors() -> dict[str, np.ndarray]:
    """By what has to become of them: a matrix of one turn, float16, or nothing at all."""
    found = {}
    for n in (45, 128, 286):
        bins = dft.half_bins(n)
        rows = dft.cos_sin(bins, n, n)
        weight = np.where(2 * np.arange(bins) % n == 0, 0.5, 1.0)[:, None]
        found |= {f"turn cosines {n}": rows[0], f"turn sines {n}": rows[1]}
        found[f"turn weighted {n}"] = (rows[0] * weight / n).T
        found[f"turn forward {n}"] = dft.real_forward(n, bins)
        found[f"turn inverse {n}"] = dft.real_inverse(n, 1 / n)
        found[f"turn whole {n}"] = dft.cos_sin(n, n, n)[0]
    found["half weights"] = RNG.standard_normal((8, 12, 3, 3))
    found["half large"] = RNG.uniform(-6e4, 6e4, (40, 40))
    found["as it is: small values"] = RNG.standard_normal((40, 40)) * 1e-8
    found["as it is: large values"] = RNG.standard_normal((40, 40)) * 1e6
    found["as it is: no number"] = np.where(RNG.random((40, 40)) < 0.1, np.nan, 1.0)
    found["as it is: few"] = RNG.standard_normal(12)
    found["as it is: fed"] = RNG.standard_normal((40, 40))
    single = {name: np.ascontiguousarray(array, np.float32) for name, array in found.items()}
    return single | {"as it is: integers": RNG.integers(-(2**40), 2**40, (40, 40))}


def graph_of(arrays: dict[str, np.ndarray], path: Path, beside: bool) -> Path:
    """A graph that answers with its own weights, in a file beside it or inside."""
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    nodes = [helper.make_node("Identity", [name], [f"{name}!"]) for name in arrays]
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
    infos = {n: (kinds[a.dtype], a.shape) for n, a in arrays.items()}
    outputs = [helper.make_tensor_value_info(f"{name}!", *info) for name, info in infos.items()]
    fed = [helper.make_tensor_value_info(name, *info) for name, info in infos.items() if name.endswith("fed")]
    graph = helper.make_graph(nodes, "weights", fed, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path, save_as_external_data=beside, location="w.data", size_threshold=1024)
    return path


@pytest.mark.parametrize("beside", [False, True], ids=["inside", "beside"])
def test_weights_become_float16_and_transforms_one_turn(tmp_path: Path, beside: bool) -> None:
    ort = pytest.importorskip("onnxruntime")
    arrays = tensors()
    path = graph_of(arrays, tmp_path / "w.onnx", beside)
    files = packed({"w.onnx": path}, "w.onnx.data")
    (tmp_path / "out").mkdir()
    for name, content in files.items():
        (tmp_path / "out" / name).write_bytes(content)
    onnx.checker.check_model(str(tmp_path / "out" / "w.onnx"), full_check=True)
    session = ort.InferenceSession(tmp_path / "out" / "w.onnx", providers=["CPUExecutionProvider"])
    for (name, array), found in zip(arrays.items(), session.run(None, {}), strict=True):
        expected = halved(array) if name.startswith("half") else array
        assert np.array_equal(found, expected, equal_nan=name.endswith("no number")), name
    stored = {tensor.name for tensor in onnx.load(tmp_path / "out" / "w.onnx").graph.initializer}
    for name in arrays:
        what = "/table" if name.startswith("turn") else "/half" if name.startswith("half") else ""
        assert f"{name}{what}" in stored
    turns = sum(array.nbytes for name, array in arrays.items() if name.startswith("turn"))
    rest = sum(array.nbytes for name, array in arrays.items() if not name.startswith("turn"))
    assert len(files["w.onnx.data"]) < rest + turns / 4


def test_packing_again_changes_no_value_and_what_is_small_stays(tmp_path: Path) -> None:
    small = graph_of({"few": np.ones(4, np.float32)}, tmp_path / "s.onnx", beside=False)
    assert packed({"s.onnx": small}, "s.onnx.data") == {"s.onnx": small.read_bytes()}
    once = packed({"w.onnx": graph_of(tensors(), tmp_path / "w.onnx", beside=True)}, "w.onnx.data")
    for name, content in once.items():
        (tmp_path / name).write_bytes(content)
    again = packed({"w.onnx": tmp_path / "w.onnx"}, "w.onnx.data")
    assert len(again["w.onnx.data"]) == len(once["w.onnx.data"])


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = graph_of(tensors(), tmp_path / "w.onnx", beside=True)
    (tmp_path / "w.data").unlink()
    with pytest.raises(ModelFormatError, match=r"its weights are in w\.data, which is not beside it"):
        packed({"w.onnx": path}, "w.onnx.data")
    path.write_bytes(b"\x3a\x40")
    with pytest.raises(ModelFormatError, match=r"w\.onnx: it cannot be packed \(a field longer than its message\)"):
        packed({"w.onnx": path}, "w.onnx.data")


def test_weights_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    path = graph_of(tensors(), tmp_path / "w.onnx", beside=True)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../w.data" if entry.key == "location" else entry.value
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "w.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(
        ModelFormatError, match=r"w\.onnx: it cannot be packed \(its weights are in \.\./w\.data, which is no file"
    ):
        packed({"w.onnx": inner / "w.onnx"}, "w.onnx.data")


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_the_pictures_of_the_shipped_model_are_the_same(tmp_path: Path, backend: str) -> None:
    found = find_model()
    graphs = {path.name: path for path in (found.whole, found.tile, found.router) if path is not None}
    files = packed(graphs, "tiny.onnx.data")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    clean = np.kron(RNG.random((26, 6, 3)), np.ones((10, 10, 1))).astype(np.float32)
    noisy = Recipe((Step("noise", {"sigma": 25.0}),), 0).apply(clean)
    given = np.rint(255 * np.clip(noisy, 0, 1)).astype(np.uint8)
    errors = []
    for model in (found.whole, tmp_path / found.whole.name):
        with Restorer(model, backend=backend, device="cpu", threads=1) as restorer:
            picture = np.asarray(restorer.restore(given)).astype(np.float64)
        errors.append(10 * np.log10(np.mean((picture - 255 * clean) ** 2)))
    assert abs(errors[1] - errors[0]) <= 0.02


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "built"
    folder.mkdir()
    for name in ("index.html", "worker.js"):
        (folder / name).write_text(name)
    monkeypatch.setattr("clusir.runtimes.page.folder.write_page.__defaults__", (folder,))
    return folder


def test_a_folder_holds_the_page_and_what_it_asks_for(built: Path, tmp_path: Path) -> None:
    site = tmp_path / "new" / "site"
    done = CliRunner().invoke(main, ["--out", str(site)])
    assert done.exit_code == 0, done.output
    files = {path.relative_to(site).as_posix(): path.stat().st_size for path in site.rglob("*") if path.is_file()}
    model = {f"models/tiny.{part}" for part in ("tile.onnx", "router.onnx", "onnx.data")}
    assert set(files) == {"index.html", "worker.js", *model}
    size = sum(files[name] for name in model)
    assert size <= 3_000_000
    assert f"{site}: the page, and {size / 1e6:.1f} MB of model" in done.output
    assert [path.name for path in site.parent.iterdir()] == ["site"]
    for name in ("tile", "router"):
        onnx.checker.check_model(str(site / "models" / f"tiny.{name}.onnx"))


def test_what_is_there_is_not_written_over(built: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "letter.txt").write_text("dear")
    for out in (tmp_path / "site", tmp_path / "site" / "letter.txt"):
        done = CliRunner().invoke(main, ["--out", str(out)])
        assert done.exit_code == 2
        assert f"--out {out} is there and not empty" in done.stderr
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["letter.txt"]
    done = CliRunner().invoke(main, ["--out", str(tmp_path / "other"), "--no-open"])
    assert done.exit_code == 2
    assert "with --out there is none" in done.stderr
    assert not (tmp_path / "other").exists()
