"""Model files: zips of every origin, what closing gives back, and what a runtime may not do on the side."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import models
import numpy as np
import pytest

from clusir.errors import ModelFormatError, UsageError
from clusir.runtimes.restore.restorer import Restorer
from clusir.runtimes.runners.files import find_model

PIXELS = np.full((20, 30, 3), 100, np.uint8)


def pack(path: Path, names: list[str], data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo("x")
            info.filename = name  # as old tools write it: ZipInfo itself would correct it
            archive.writestr(info, data)
    return path


def test_a_bundle_zipped_with_backslashes_opens(tmp_path: Path) -> None:
    data = models.save_identity(tmp_path / "m.onnx").read_bytes()
    path = pack(tmp_path / "b.zip", ["bundle\\model.onnx", "bundle\\docs\\README.md"], data)
    with Restorer(path, backend="ort", device="cpu") as restorer:
        np.testing.assert_array_equal(restorer.restore(PIXELS), PIXELS)
    with pytest.raises(ModelFormatError, match="leaves the bundle"):
        find_model(pack(tmp_path / "evil.zip", ["..\\..\\model.onnx"], data))


def test_closing_removes_what_was_unpacked_and_says_so_afterwards(tmp_path: Path) -> None:
    path = pack(tmp_path / "b.zip", ["model.onnx"], models.save_identity(tmp_path / "m.onnx").read_bytes())
    restorer = Restorer(path, backend="ort", device="cpu")
    folder = restorer.files.whole.parent
    assert folder.is_dir()
    restorer.close()
    restorer.close()
    assert not folder.exists()
    with pytest.raises(UsageError, match="closed"):
        restorer.restore(PIXELS)


def test_a_run_writes_no_identifier_into_the_home_folder(tmp_path: Path) -> None:
    model = models.save_identity(tmp_path / "m.onnx")
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    script = (
        "import sys, numpy\nfrom clusir.runtimes import Restorer\n"
        "Restorer(sys.argv[1], backend='ort').restore(numpy.zeros((8, 8, 3), numpy.uint8))"
    )
    environment["CLUSIR_CACHE"] = "off"  # OpenVINO's compiled models, which are documented
    for command in (
        ["-c", script, str(model)],
        ["-c", script.replace("'ort'", "'openvino'"), str(model)],
        ["-m", "clusir.runtimes.machine.probe", "ort"],
        ["-m", "clusir.runtimes.machine.probe", "openvino"],
    ):
        home = tmp_path / "home"
        home.mkdir()
        subprocess.run([sys.executable, *command], check=True, env=environment | {"HOME": str(home)}, cwd=tmp_path,
                       capture_output=True)  # fmt: skip
        assert [str(p) for p in home.rglob("*") if p.is_file()] == []
        shutil.rmtree(home)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_web_package_takes_arrays_of_another_page(tmp_path: Path) -> None:
    pixels = Path(__file__).parents[3] / "runtimes" / "web" / "src" / "pixels.js"
    script = tmp_path / "realm.mjs"
    script.write_text(
        f"import vm from 'node:vm';\nimport {{ topOf }} from {str(pixels.as_uri())!r};\n"
        "const tops = ['Uint8Array', 'Uint8ClampedArray', 'Uint16Array', 'Float32Array'].map((kind) =>\n"
        "  topOf(vm.runInNewContext(`new ${kind}(4)`)));\n"
        "const refused = ['Int16Array', 'Float64Array', 'Array'].filter((kind) => {\n"
        "  try { topOf(vm.runInNewContext(`new ${kind}(4)`)); return false; }\n"
        "  catch (error) { return error instanceof TypeError; }\n"
        "});\n"
        "let fake = { [Symbol.toStringTag]: 'Uint8Array' };\n"
        "try { topOf(fake); } catch (error) { refused.push(error.name); }\n"
        "console.log(JSON.stringify([tops, refused]));\n"
    )
    done = subprocess.run(["node", str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[[255,255,65535,1],["Int16Array","Float64Array","Array","TypeError"]]'
