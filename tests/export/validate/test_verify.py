"""``clusir-verify`` on a good bundle and on one that is spoilt in every way that a file can be."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import standin_bundle
from click.testing import CliRunner, Result
from standin_bundle import Edit, constant_nan, seal, write_dynamic

from clusir.cli import _verify_session
from clusir.cli.verify import main
from clusir.errors import ModelFormatError
from clusir.export.formats import extras
from clusir.export.formats.artefacts import artefacts, check_manifest
from clusir.export.formats.extras import check_golden
from clusir.export.validate.files import ParityPlan, validate_files
from clusir.export.validate.parity import check_rows
from clusir.export.validate.tolerances import tolerance
from clusir.runtimes import open_runner
from clusir.spec import SizeRequirements


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standin_bundle.write_bundle(tmp_path_factory.mktemp("bundle"), formats=True)


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    standin_bundle.stand_in(monkeypatch)
    monkeypatch.setattr(_verify_session.checkpoints, "resolve", lambda *_: (None, "0" * 64))


@pytest.fixture
def bundle(good: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    shutil.copytree(good, folder)
    return folder


def verify(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def refused(done: Result, code: int, why: str) -> None:
    """It ends with ``code`` and one line that says why."""
    assert done.exit_code == code, done.output + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert re.search(f"^error: .*{why}", lines[0]), lines[0]


def test_a_good_bundle_passes_with_every_file_of_it(good: Path) -> None:
    done = verify(good, "--batches", "1,2", "--json")
    assert done.exit_code == 0, done.output + done.stderr
    rows = json.loads(done.stdout)["rows"]
    compared = {(row["artefact"], row["runner"]) for row in rows}
    onnx_files = ("model.onnx", "model.fp16.onnx", "model.tile.onnx", "model.router.onnx")
    assert compared >= {(name, runner) for name in onnx_files for runner in ("ort:cpu", "openvino:cpu")}
    assert compared >= {(f"{stem}.xml", "openvino:cpu") for stem in ("model", "model.tile", "model.router")}
    assert compared >= {(f"{stem}.ort", "ort:cpu") for stem in ("model", "model.tile", "model.router")}
    goldens = ("model.onnx", "model.fp16.onnx", "openvino/model.xml", "mobile/model.ort")
    assert {name for name, _ in compared} >= {f"{name} golden" for name in goldens}
    assert {row["batch"] for row in rows if row["artefact"] == "model.onnx"} == {1, 2}
    assert {row["degradation"] for row in rows if row["artefact"] == "model.onnx"} == {"noise", "haze", "none"}


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def edit(name: str, change: Callable[[Edit], None]) -> Callable[[Path], None]:
    return lambda folder: change(Edit(folder / name))


def golden(folder: Path, **change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = folder / "golden" / "noise.npz"
    with np.load(path) as stored:
        values = dict(stored)
    np.savez_compressed(path, **values | {name: spoil(values[name]) for name, spoil in change.items()})


def other_ir(folder: Path) -> None:
    """The IR of a network that runs two experts under the name of this one."""
    from clusir.export.formats.openvino import write_openvino

    shutil.copy(standin_bundle.GOLDEN / "standin_k2.onnx", folder / "two.onnx")
    Edit(folder / "two.onnx").spec(top_k=1)
    write_openvino([folder / "two.onnx"], folder / "openvino")
    for suffix in (".xml", ".bin"):
        shutil.move(folder / "openvino" / f"two{suffix}", folder / "openvino" / f"model{suffix}")
    (folder / "two.onnx").unlink()


def nan_ort(folder: Path) -> None:
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    work = folder / "work"
    work.mkdir()
    shutil.copy(folder / "model.onnx", work / "model.onnx")
    constant_nan(work / "model.onnx")
    convert_onnx_models_to_ort(work, folder / "mobile", [OptimizationStyle.Fixed])
    shutil.rmtree(work)


def empty_golden(folder: Path) -> None:
    for path in (folder / "golden").glob("*"):
        path.unlink()


# What is spoilt and the manifest then sealed again, so that only running the files can tell: (spoil, exit code, why).
SPOILT: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "router: posterior a tenth": (
        edit("model.router.onnx", lambda e: e.output("posterior", "Mul", 0.1)), 4, "model.router.onnx .*posterior"),
    "router: probability a half": (
        edit("model.router.onnx", lambda e: e.output("expert_probability", "Mul", 0.5)), 4, "expert_probability"),
    "router: statistics off": (
        edit("model.router.onnx", lambda e: e.output("statistics", "Add", 0.01)), 4, "statistics"),
    "router: without statistics": (
        edit("model.router.onnx", lambda e: e.without("statistics")), 4, "output statistics is missing"),
    "router: without two": (
        edit("model.router.onnx", lambda e: e.without("statistics", "posterior")), 4, "output posterior is missing"),
    "whole: gate a hundredth": (edit("model.onnx", lambda e: e.output("gate", "Mul", 0.01)), 4, "model.onnx.*gate"),
    "whole: gate NaN": (edit("model.onnx", lambda e: e.output("gate", "Add", float("nan"))), 4, "gate"),
    "whole: another expert": (edit("model.onnx", lambda e: e.rolled("gate")), 4, "other experts are chosen"),
    "whole: posterior zero": (edit("model.onnx", lambda e: e.output("posterior", "Mul", 0.0)), 4, "posterior"),
    "whole: posterior NaN": (
        edit("model.onnx", lambda e: e.output("posterior", "Mul", float("nan"))), 4, "posterior: its values are"),
    "whole: restored negated": (edit("model.onnx", lambda e: e.output("restored", "Mul", -1.0)), 4, "restored"),
    "whole: without routing": (edit("model.onnx", lambda e: e.without("gate", "posterior")), 4, "is missing"),
    "tile: NaN": (edit("model.tile.onnx", lambda e: e.output("restored", "Mul", float("nan"))), 4, "not finite"),
    "fp16: off": (edit("model.fp16.onnx", lambda e: e.output("restored", "Add", 0.01)), 4, "model.fp16.onnx"),
    "fp16: posterior a tenth": (edit("model.fp16.onnx", lambda e: e.output("posterior", "Mul", 0.1)), 4, "posterior"),
    "calls itself int8": (edit("model.onnx", lambda e: e.spec(precision="int8")), 2, "whole graph in int8, its name"),
    "calls itself a tile": (edit("model.onnx", lambda e: e.spec(graph="tile")), 2, "tile graph in fp32, its name says"),
    "of other weights": (edit("model.onnx", lambda e: e.spec(checkpoint_sha256="1" * 64)), 2, "exported from"),
    "no tile graph": (drop("model.tile.onnx"), 2, "it has no tile graph"),
    "no router graph": (drop("model.router.onnx"), 2, "it has no router graph"),
    "golden: other pixels": (lambda f: golden(f, restored=lambda x: x + 0.1), 4, "model.*golden on .*restored"),
    "golden: other posterior": (lambda f: golden(f, posterior=lambda x: x[:, ::-1]), 4, "golden .*posterior"),
    "golden: other gate": (lambda f: golden(f, gate=lambda x: np.roll(x, 1, axis=1)), 4, "golden .*other experts"),
    "golden: NaN": (lambda f: golden(f, restored=lambda x: x * np.nan), 4, "reference's values are not finite"),
    "golden: float picture": (lambda f: golden(f, image=lambda x: x / 255.0), 2, "golden case .*cannot be read"),
    "golden: no zip": (lambda f: (f / "golden" / "noise.npz").write_bytes(b"no") and None, 2, "cannot be read"),
    "golden: none": (empty_golden, 2, "names no golden case"),
    "openvino: another model": (other_ir, 4, "model.xml .*on openvino:cpu"),
    "mobile: all NaN": (nan_ort, 4, "model.ort .*on ort:cpu .*not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_bundle_is_refused(bundle: Path, name: str) -> None:
    spoil, code, why = SPOILT[name]
    for part in {"openvino", "mobile"} - {name.partition(":")[0]}:  # each file of them would be run too
        shutil.rmtree(bundle / part)
    spoil(bundle)
    seal(bundle)
    refused(verify(bundle, "--backend", "ort", "--batches", "1"), code, why)


def flip_a_byte(folder: Path) -> None:
    path = folder / "openvino" / "model.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def other_manifest(folder: Path, **files: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | files))


# What the manifest tells without running anything.
UNSEALED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a file is missing": (drop("mobile/model.tile.ort"), "mobile/model.tile.ort is missing"),
    "a byte is another": (flip_a_byte, r"openvino/model.bin is not the file that the manifest names \(its SHA-256"),
    "a file is longer": (lambda f: (f / "golden" / "haze.npz").open("ab").write(b"x") and None, "haze.npz is not"),
    "a model more": (lambda f: shutil.copy(f / "model.onnx", f / "model.int8.onnx") and None, "int8.onnx is in it"),
    "a golden case more": (
        lambda f: shutil.copy(f / "golden" / "haze.npz", f / "golden" / "rain.npz") and None, "rain.npz is in it"),
    "no manifest": (drop("manifest.json"), "it holds no manifest.json"),
    "no JSON": (lambda f: (f / "manifest.json").write_text("{") and None, "manifest.json cannot be read"),
    "no files": (lambda f: other_manifest(f, files={}), "its manifest names no file"),
    "no hashes": (lambda f: other_manifest(f, files={"model.onnx": 3}), "manifest.json cannot be read"),
    "outside": (
        lambda f: other_manifest(f, files={"../x": {"bytes": 1, "sha256": ""}}), "which is not inside it"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSEALED)
def test_a_bundle_that_is_not_what_its_manifest_says_is_refused(bundle: Path, name: str) -> None:
    spoil, why = UNSEALED[name]
    spoil(bundle)
    with pytest.raises(ModelFormatError, match=why):
        artefacts(str(bundle))


def test_the_command_reads_the_manifest(bundle: Path) -> None:
    flip_a_byte(bundle)
    refused(verify(bundle), 2, "bundle .*: openvino/model.bin is not the file")
    assert len(check_manifest(standin_bundle.write_bundle(bundle.parent / "small", formats=False))) == 6


def test_golden_cases_that_are_gone_are_no_comparison(tmp_path: Path) -> None:
    path = standin_bundle.GOLDEN / "standin.onnx"
    with (
        open_runner(path, "ort", "cpu", threads=1) as runner,
        pytest.raises(ModelFormatError, match="holds no golden case"),
    ):
        check_golden(runner, tmp_path, tolerance("fp32"), "model.onnx")


def test_a_named_file_is_checked_with_those_beside_it(bundle: Path) -> None:
    shutil.rmtree(bundle / "golden")
    names = ["model.onnx", "model.tile.onnx", "model.router.onnx", "model.fp16.onnx"]
    assert [artefact.name for artefact in artefacts(str(bundle / "model.onnx"))] == names
    for dotted in ("my.model", "a[1]"):
        for name in names:
            shutil.copy(bundle / name, bundle / name.replace("model", dotted, 1))
        found = [artefact.name for artefact in artefacts(str(bundle / f"{dotted}.onnx"))]
        assert found == [name.replace("model", dotted, 1) for name in names]


def test_only_the_second_size_or_batch_is_wrong(good: Path, tmp_path: Path) -> None:
    """A dynamic graph that answers otherwise for large pictures, or for batches: every size and batch is looked at."""
    for axis, largest in ((2, 48), (0, 1)):
        path = tmp_path / f"axis{axis}.onnx"
        write_dynamic(path, axis, largest)
        plan = ParityPlan(("ort",), sizes=((48, 48), (64, 48)), batches=(1, 2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "clusir.export.validate.files.reference_outputs", lambda _, feeds, __: {"restored": feeds["image"]}
            )
            rows = validate_files(None, [path], plan)  # type: ignore[arg-type]
        wrong = {(row.size, row.batch) for row in rows if not row.ok}
        assert wrong == ({("64x48", 1), ("64x48", 2)} if axis == 2 else {("48x48", 2), ("64x48", 2)})
        with pytest.raises(Exception, match="disagrees"):
            check_rows(rows)


def test_each_expert_of_a_float32_tile_graph_is_made_to_run(good: Path, tmp_path: Path) -> None:
    """A tile graph in which one gate does nothing: its own routing never asks for that expert on these pictures."""
    path = tmp_path / "model.tile.onnx"
    for index in range(7):
        shutil.copy(good / "model.tile.onnx", path)

        def mute(model: onnx.ModelProto, index: int = index) -> None:
            kept = np.ones((1, 7), np.float32)
            kept[0, index] = 0
            model.graph.initializer.append(onnx.numpy_helper.from_array(kept, "kept"))
            for node in model.graph.node:
                node.input[:] = ["gate_kept" if name == "gate" else name for name in node.input]
            model.graph.node.insert(0, onnx.helper.make_node("Mul", ["gate", "kept"], ["gate_kept"]))

        Edit(path).change(mute)
        rows = validate_files(None, [path], ParityPlan(("ort",), batches=(1, 3)))  # type: ignore[arg-type]
        assert not all(row.ok for row in rows), f"expert {index}"


def test_bisection_of_a_spoilt_file(bundle: Path, tmp_path: Path) -> None:
    whole = bundle / "model.onnx"
    shutil.copy(whole, bundle / "good.onnx")
    same = verify("--bisect", bundle / "good.onnx", whole, "--out", tmp_path / "none")
    assert same.exit_code == 0, same.output
    assert "No tensor is over the tolerance" in same.stdout
    Edit(whole).output("posterior", "Mul", 0.1)
    done = verify("--bisect", bundle / "good.onnx", whole, "--out", tmp_path / "out", "--json")
    refused(done, 4, "model.onnx differs from good.onnx at tensor posterior")
    assert json.loads(done.stdout)["tensor"] == "posterior"
    shutil.copy(bundle / "good.onnx", whole)
    constant_nan(whole)
    done = verify("--bisect", bundle / "good.onnx", whole, "--out", tmp_path / "nan", "--json")
    assert done.exit_code == 4

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    assert json.loads(done.stdout, parse_constant=refuse)["relative"] == "inf"
    assert json.loads((tmp_path / "nan" / "divergence.json").read_text(), parse_constant=refuse)["found"]


def strange(model: onnx.ModelProto) -> None:
    """Other names inside, and another answer."""
    ports = {port.name for port in (*model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [name if name in ports or not name else f"their_{name}" for name in names]
    for tensor in model.graph.initializer:
        tensor.name = f"their_{tensor.name}"
    del model.graph.value_info[:]


def wider(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.tile(onnx.numpy_helper.to_array(tensor), 2), tensor.name))


OTHERS: dict[str, Callable[[Edit], None]] = {
    "other": lambda file: file.spec(checkpoint_sha256="1" * 64),
    "untrained": lambda file: file.spec(checkpoint_sha256=""),
    "brought": lambda file: file.spec(clusters=(), experts=(), cluster_labels=()),
    "fixed": lambda file: file.spec(size=SizeRequirements(16, 16, 64), tile_px=64),
    "grey": lambda file: file.spec(channels=1),
    "wider": lambda file: file.change(wider),
    "strange": lambda file: (file.change(strange), file.output("restored", "Mul", 0.5)),  # type: ignore[func-returns-value]
    "none": lambda file: file.path.write_text("no model"),  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        (
            "mine.safetensors",
            "model.router.onnx",
            "the whole network and model.router.onnx is a router graph.*model.onnx",
        ),
        ("mine.safetensors", "model.tile.onnx", "the whole network and model.tile.onnx is a tile graph.*model.onnx"),
        ("mine.safetensors", "model.onnx", "of checkpoint [0-9a-f]{12} and model.onnx of checkpoint 000000000000"),
        ("mine.safetensors", "brought.onnx", "of checkpoint [0-9a-f]{12} and brought.onnx of a brought network"),
        (
            "model.onnx",
            "model.router.onnx",
            "the whole network and model.router.onnx is a router graph.*name model.onnx",
        ),
        ("model.tile.onnx", "model.onnx", "a tile graph and model.onnx is the whole network.*two files of one graph"),
        ("model.onnx", "other.onnx", "of checkpoint 000000000000 and other.onnx of checkpoint 111111111111"),
        ("model.onnx", "untrained.onnx", "of checkpoint 000000000000 and untrained.onnx of an untrained network"),
        ("model.onnx", "brought.onnx", "and brought.onnx of a brought network"),
        ("model.onnx", "fixed.onnx", "model.onnx takes 48 px only and fixed.onnx 64 px only"),
        ("model.onnx", "grey.onnx", r"the graph input image takes \?x3x48x48 and is given 1x1x48x48"),
        (
            "model.onnx",
            "wider.onnx",
            "constant_0 is 8x3x3x3 in model.onnx and 8x3x3x6 in wider.onnx, and so are .* weights: two networks",
        ),
        ("model.onnx", "strange.onnx", "share no tensor name but that of restored, which differs"),
        ("model.onnx", "none.onnx", "not an ONNX file"),
        ("model.onnx", "golden", "is a folder; name a file in it"),
        ("model.onnx", "gone.onnx", "gone.onnx is no file"),
    ],
)
def test_files_of_two_subjects_are_not_bisected(bundle: Path, a: str, b: str, why: str) -> None:
    (bundle / "mine.safetensors").write_bytes(b"weights")
    if (change := OTHERS.get(Path(b).stem)) is not None:
        shutil.copy(bundle / "model.onnx", bundle / b)
        change(Edit(bundle / b))
    refused(verify("--bisect", bundle / a, bundle / b), 2, why)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--bisect", "a.onnx", "b.onnx", "--backend", "ort"], "--backend does nothing with --bisect"),
        (["--bisect", "a.onnx", "b.onnx", "--sizes", "64x64"], "--sizes does nothing with --bisect"),
        (["model.onnx", "--bisect", "a.onnx", "b.onnx"], "MODEL does nothing with --bisect"),
        (["--bisect", "a.onnx", "b.onnx", "--seed", "3"], "--seed does nothing with --bisect"),
        (["--tolerance", "0.1"], "--tolerance does nothing without --bisect"),
        (["--out", "x"], "--out does nothing without --bisect"),
        (["--seed", "3"], "--seed does nothing without a random: checkpoint"),
        (["--device", "cuda", "--backend", "openvino"], "device cuda with backend openvino"),
    ],
)
def test_options_act_or_are_refused(arguments: list[str], why: str) -> None:
    refused(verify(*arguments), 2, why)


def test_cuda_alone_asks_onnx_runtime_only() -> None:
    request = _verify_session.VerifyRequest(None, None, 0, ("ort", "openvino"), "cuda", ((64, 64),), (1,), False)
    assert request.plan.backends == ("ort",)


def test_golden_cases_hold_what_is_found_of_each_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = standin_bundle.GOLDEN / "standin_told.onnx"
    with (
        open_runner(told, "ort", "cpu", 1) as runner,
        open_runner(told.with_suffix(".router.onnx"), "ort", "cpu", 1) as router,
    ):
        asked = np.full((1, len(router.spec.families)), -1, np.float32)

        def reference(_: object, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            found = router.run(feeds | {"permissions": asked})
            return runner.run(feeds) | {"expert_probability": found["expert_probability"]}

        monkeypatch.setattr(extras, "reference_outputs", reference)
        extras.write_golden_cases(None, tmp_path, runner.spec)  # type: ignore[arg-type]
        rows = check_golden(runner, tmp_path / "golden", tolerance("fp32"), "model.onnx")
        assert rows
        assert all(row.ok for row in rows), rows
        golden(tmp_path, evidence=lambda x: x * 0.5)
        rows = check_golden(runner, tmp_path / "golden", tolerance("fp32"), "model.onnx")
    assert ["evidence" in row.fault for row in rows] == ["noise" in row.degradation for row in rows]
