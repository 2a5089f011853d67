"""The folder of transformers.js in the npm package itself: in Node, every precision by its name, and in a browser that
is given nothing from outside."""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from small_graphs import Net

from clusir.calibration.balance import BalanceConfig
from clusir.errors import BudgetError, ValidationError
from clusir.export.formats.hosts.base import Source
from clusir.export.formats.hosts.folders import Written, export_targets, hosts_of, open_source
from clusir.export.formats.hosts.form import reference
from clusir.export.formats.hosts.integers import Int8Config
from clusir.export.formats.hosts.registry import TARGETS
from clusir.export.formats.hosts.selftest import verify_target, write_record
from clusir.export.formats.hosts.transformers_js import TransformersJs
from clusir.export.graph.session import Probe
from clusir.export.passes.simplify import AttachMetadata
from clusir.spec import ModelSpec, SizeRequirements
from tests.browser import Browser
from tests.needs import skip

JS = "transformers.js"
SIZE = (13, 50)

# The package with its ONNX Runtime in it; the wasm beside it is taken from this machine, not from a CDN.
PAGE = """<!doctype html><title>restored</title><script type="module">
const wasm = "/npm/onnxruntime-web/dist/";
try {
  const { env, pipeline, RawImage } = await import("/npm/@huggingface/transformers/dist/transformers.min.js");
  env.allowLocalModels = true;
  env.allowRemoteModels = false;
  env.localModelPath = "/models/";
  env.backends.onnx.wasm.wasmPaths = wasm;
  env.backends.onnx.wasm.numThreads = 1;
  const restore = await pipeline("image-to-image", "transformers.js", { device: "wasm" });
  const pixels = new Uint8ClampedArray(await (await fetch("/in.rgb")).arrayBuffer());
  const out = await restore(new RawImage(pixels, WIDTH, HEIGHT, 3));
  window.answer = [out.height, out.width, out.channels, btoa(String.fromCharCode(...out.data))];
} catch (error) {
  window.answer = [String(error)];
}
document.body.append(Object.assign(document.createElement("p"), { id: "done", textContent: "done" }));
</script><body></body>"""


class _Handler(SimpleHTTPRequestHandler):
    """Files of several folders, by the first part of the path."""

    def __init__(self, *given: Any, folders: dict[str, Path], **more: Any) -> None:
        self.folders = folders
        super().__init__(*given, **more)

    def translate_path(self, path: str) -> str:
        first, _, rest = path.partition("?")[0].lstrip("/").partition("/")
        return str(self.folders[first] / rest if rest and first in self.folders else self.folders[""] / first)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[[dict[str, Path]], str]]:
    servers: list[ThreadingHTTPServer] = []

    def start(folders: dict[str, Path]) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, folders=folders))
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Shipped(NamedTuple):
    """A folder with INT8 in it, and the network of which it is."""

    source: Source
    made: Written


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    folder = tmp_path_factory.mktemp("made")
    source = open_source(dense(folder))
    few = Int8Config(balance=BalanceConfig(size=4, pool=8, minimum=1), evaluation_crops=1)
    (written,) = export_targets(source, folder / "out", hosts_of([JS]), int8=few)
    return Shipped(source, written)


@pytest.fixture
def shipped(made: Shipped, tmp_path: Path) -> Shipped:
    """A copy of the folder, for a test to change."""
    return made._replace(made=replace(made.made, folder=Path(shutil.copytree(made.made.folder, tmp_path / JS))))


def dense(folder: Path) -> Path:
    """A chain of dense convolutions beside a skip, of any size in multiples of 8 px, in values from -1 to 1."""
    net = Net()
    net.input("image", "batch", 3, "height", "width")
    x = net.op("Relu", net.op("Conv", "image", net.random(16, 3, 3, 3), net.random(16), pads=[1, 1, 1, 1]))
    kernel = np.random.default_rng(5).normal(0, 0.1, (2, 16, 16, 3, 3)).astype(np.float32)
    for index in range(2):
        weight = net.const(kernel[index], name=f"body.{index}.weight")
        x = net.op("Relu", net.op("Conv", x, weight, net.random(16), pads=[1, 1, 1, 1]))
    x = net.op("DepthToSpace", net.op("SpaceToDepth", x, blocksize=8), blocksize=8)
    small = net.op("Mul", net.op("Conv", x, net.random(3, 16, 1, 1)), net.const(np.float32(1e-2)))
    net.output(net.op("Add", "image", small, name="restored"))
    spec = ModelSpec(name="chain", size=SizeRequirements(8, 8, 0), tile_px=64, halo_px=8, dft_form="none",
                     value_range=(-1.0, 1.0))  # fmt: skip
    path = folder / "chain.onnx"
    onnx.save(AttachMetadata(spec).apply(net.model()).model, str(path))
    return path


def in_onnxruntime(path: Path, image: np.ndarray) -> np.ndarray:
    return Probe(onnx.load(str(path)), threads=1).run({"pixel_values": image})["reconstruction"]


def test_every_precision_is_a_file_of_its_own(shipped: Shipped) -> None:
    folder = shipped.made.folder / "onnx"
    sizes = {name: (folder / name).stat().st_size for name in ("model.onnx", "model_fp16.onnx", "model_quantized.onnx")}
    assert sorted(sizes) == sorted(path.name for path in folder.iterdir())
    stored = {name: {t.data_type for t in onnx.load(str(folder / name)).graph.initializer} for name in sizes}
    assert TensorProto.FLOAT16 in stored["model_fp16.onnx"] - stored["model.onnx"]
    assert TensorProto.INT8 in stored["model_quantized.onnx"] - stored["model.onnx"]
    image = np.random.default_rng(3).random((1, 3, *SIZE), dtype=np.float32)
    right = reference(shipped.source, TARGETS[JS]().form(shipped.source))(image)
    for name, (least, most) in {"model.onnx": (0, 1e-5), "model_fp16.onnx": (1e-6, 2e-3),
                                "model_quantized.onnx": (1e-6, 2e-2)}.items():  # fmt: skip
        graph = onnx.load(str(folder / name)).graph
        assert [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)] == [TensorProto.FLOAT] * 2
        assert least <= np.abs(in_onnxruntime(folder / name, image) - right).max() <= most
    said = [(found.case, found.via) for found in shipped.made.findings if found.agreement is not None]
    assert said[:3] == [("light", "onnxruntime"), ("light, float16", "onnxruntime"), ("light, int8", "onnxruntime")]
    (told,) = [found.note for found in shipped.made.findings if found.case == "int8"]
    assert told.startswith("loses ")


@pytest.mark.parametrize("name", ["model_fp16.onnx", "model_quantized.onnx"])
def test_a_file_of_another_precision_that_is_wrong_is_seen(shipped: Shipped, name: str) -> None:
    path = shipped.made.folder / "onnx" / name
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT16, TensorProto.INT8) and len(tensor.dims) == 4:
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.size == 1 and value.dtype in (np.float32, np.float16) and abs(float(value.reshape(())) - 0.01) < 1e-3:
            tensor.CopyFrom(numpy_helper.from_array((value * 60).astype(value.dtype), tensor.name))
    onnx.save(model, str(path))
    (shipped.made.folder / "target.json").unlink()
    write_record(shipped.made.folder, JS, ("pixel_values", "reconstruction"))
    with pytest.raises(ValidationError, match=r"^onnxruntime, light, (float16|int8): "):
        verify_target(JS, shipped.made.folder)


def test_float16_that_loses_too_much_is_left_out(
    network: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise BudgetError("too far")

    monkeypatch.setattr("clusir.export.formats.hosts.transformers_js.convert_fp16", refuse)
    (made,) = export_targets(open_source(network()), tmp_path / "out", hosts_of([JS]))
    assert "onnx/model_fp16.onnx" not in made.files
    (told,) = {found.note for found in made.findings if "float16" in found.case}
    assert told.startswith("model_fp16.onnx is left out: ")


@pytest.mark.parametrize(
    ("dtype", "file"), [("fp16", "model_fp16.onnx"), ("q8", "model_quantized.onnx"), ("", "model.onnx")]
)
def test_in_node(shipped: Shipped, dtype: str, file: str) -> None:
    if not os.environ.get("CLUSIR_TRANSFORMERS_JS"):
        skip(JS)
    own = {found.case: found.agreement for found in shipped.made.findings if found.via == JS and found.case != "int8"}
    assert sorted(own) == ["light", "light, float16", "light, int8", "noise", "noise, float16", "noise, int8"]
    assert all(agreement is not None and agreement.ok for agreement in own.values())
    host = TransformersJs()
    image = np.rint(np.random.default_rng(2).random((1, 3, *SIZE)) * 255).astype(np.float32) / np.float32(255)
    wanted = in_onnxruntime(shipped.made.folder / "onnx" / file, image)
    for other in (shipped.made.folder / "onnx").iterdir():
        if other.name != file:
            other.unlink()  # the option names this file and no other
    assert np.abs(host.run(shipped.made.folder, image, dtype) - wanted.clip(0, 1)).max() <= 0.51 / 255


def test_in_a_browser_offline(
    network: Callable[..., Path], serve: Callable[[dict[str, Path]], str], tmp_path: Path
) -> None:
    home = os.environ.get("CLUSIR_TRANSFORMERS_JS")
    if not home:
        skip(JS)
    export_targets(open_source(network()), tmp_path / "out", hosts_of([JS]))
    image = np.random.default_rng(3).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    site = tmp_path / "site"
    site.mkdir()
    (site / "in.rgb").write_bytes(image.tobytes())
    (site / "page.html").write_text(PAGE.replace("HEIGHT", str(SIZE[0])).replace("WIDTH", str(SIZE[1])), "utf-8")
    at = serve({"": site, "models": tmp_path / "out", "npm": Path(home) / "node_modules"})
    browser = Browser()
    try:
        browser.open(f"{at}/page.html")
        browser.wait("#done")
        answer = browser.run("return window.answer")
        loaded = browser.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    finally:
        browser.close()
    assert len(answer) == 4, answer
    assert [name for name in loaded if not name.startswith(at)] == []
    assert [name for name in loaded if re.search(r"/models/.*\.onnx$", name)] == [f"{at}/models/{JS}/onnx/model.onnx"]
    got = np.frombuffer(base64.b64decode(answer[3]), np.uint8).reshape(answer[:3])
    source, plain = open_source(network()), image.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
    wanted = reference(source, TARGETS[JS]().form(source))(plain)[0].transpose(1, 2, 0)
    assert np.abs(got / 255 - wanted).max() <= 0.501 / 255
