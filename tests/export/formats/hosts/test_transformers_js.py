"""The folder of transformers.js in the npm package itself, in a browser that is given nothing from outside."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from clusir.export.formats.hosts.folders import export_targets, hosts_of, open_source
from clusir.export.formats.hosts.form import reference
from clusir.export.formats.hosts.registry import TARGETS
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
