"""The npm package as ``npm pack`` makes it: installed into an empty project, bundled by Vite, and run in Chromium."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from toolchain import WEB, run

from clusir.export.graph.session import Probe
from clusir.runtimes.restore.restorer import Restorer
from tests import needs
from tests.browser import chromium
from tests.golden.make.cases import FAMILIES
from tests.golden.make.standin import write_standin

MAIN = """
import * as ort from "onnxruntime-web/wasm";
import { Restorer } from "clusir";
import { restoreWith } from "clusir/with";
Object.assign(globalThis, { ort, Restorer, restoreWith });
"""


def test_an_empty_project_builds_and_restores_with_it(tmp_path: Path) -> None:
    if not os.environ.get("CLUSIR_VITE"):
        needs.skip("vite")
    node, npm = (needs.program(name, "browser") for name in ("node", "npm"))
    vite = Path(os.environ["CLUSIR_VITE"]) / "node_modules" / "vite" / "bin" / "vite.js"
    browser = chromium()
    project, models = tmp_path / "project", tmp_path / "models"
    (project / "public").mkdir(parents=True)
    run(npm, "pack", "--pack-destination", tmp_path, cwd=WEB)
    (project / "package.json").write_text('{"name": "empty", "private": true, "type": "module"}')
    (package,) = tmp_path.glob("clusir-*.tgz")
    run(npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", package, cwd=project)
    (project / "index.html").write_text('<!doctype html><script type="module" src="/main.js"></script>')
    (project / "main.js").write_text(MAIN)
    # The worker and the runtime are files that the page loads by their URLs: a bundler passes them by.
    shutil.copytree(project / "node_modules" / "clusir" / "dist", project / "public" / "clusir")
    run(node, vite, "build", cwd=project)

    model = write_standin(models, tile_px=64, halo_px=8, families=FAMILIES)
    for path in models.iterdir():
        path.rename(path.with_name(path.name.replace(model.stem, "tiny")))
    kernel = np.full((3, 3, 5, 5), 1 / 75, np.float32)
    shape = [1, 3, "height", "width"]
    given, answer = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("given", "answer"))
    graph = helper.make_graph([helper.make_node("Conv", ["given", "k"], ["answer"], pads=[2] * 4)], "blur", [given],
                              [answer], [numpy_helper.from_array(kernel, "k")])  # fmt: skip
    blur = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (models / "open.onnx").write_bytes(blur.SerializeToString())
    out = tmp_path / "made.json"
    told = run(node, WEB / "test" / "bundled.mjs", project / "dist", models, out, browser)
    assert told.splitlines()[-1].endswith(" passed, 0 failed"), told

    made = json.loads(out.read_text())
    image = ((np.arange(90 * 110 * 3) * 7919 % 1013) / 1013).astype(np.float32).reshape(90, 110, 3)
    with Restorer(models / "tiny.onnx", backend="ort", device="cpu") as restorer:
        expected = np.asarray(restorer.restore(image))
    assert np.abs(np.asarray(made["own"]).reshape(image.shape) - expected).max() <= 1e-4
    (whole,) = Probe(blur).run({"given": np.ascontiguousarray(image.transpose(2, 0, 1)[None])}).values()
    wanted = whole[0].transpose(1, 2, 0).clip(0, 1)
    assert np.abs(np.asarray(made["tiled"]).reshape(image.shape) - wanted).max() <= 1e-5
