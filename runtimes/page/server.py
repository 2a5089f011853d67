"""A server of the browser page and of one model, for the browsers of this machine.

It listens on 127.0.0.1 only and answers GET and HEAD for a fixed list of files, so that no path leads elsewhere. Its
headers isolate the page from other origins, which the threads of WebAssembly need (SharedArrayBuffer), and forbid it to
load from or send to anything but this server.
"""

from __future__ import annotations

import os
import shutil
import socketserver
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from clusir.errors import BackendError, UsageError
from clusir.runtimes.runners.external import external_files
from clusir.runtimes.runners.files import ModelFiles
from clusir.runtimes.runners.metadata import read_metadata

__all__ = ["MODEL", "PageServer", "built_files", "model_graphs", "page_files"]

BUILT = Path(__file__).resolve().parent / "built"
MODEL = "models/tiny"  # the name that the page asks for, whatever the model's own is

# Written out: the system's table of types may lack or mistake some, and a browser runs no module of another type.
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
}
_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:; manifest-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def page_files(model: ModelFiles, built: Path = BUILT) -> dict[str, Path]:
    """``{path of a URL: file}`` of the page and of ``model``.

    Raises BackendError where the page was not built, UsageError for a model that a page cannot load, ModelFormatError
    for a file that is no model.
    """
    page, graphs = built_files(built), model_graphs(model)
    # What graphs keep their weights in is asked for beside them, by the name that they give.
    beside = PurePosixPath(MODEL).parent
    weights = {
        (beside / path.relative_to(graph.parent.resolve()).as_posix()).as_posix(): path
        for graph in graphs.values()
        for path in external_files(graph)
    }
    return page | weights | graphs


def built_files(built: Path = BUILT) -> dict[str, Path]:
    """``{path of a URL: file}`` of the page alone. Raises BackendError where it was not built."""
    if not (built / "index.html").is_file():
        raise BackendError(
            "the browser page is not in this installation: it was installed from sources in which the page was not "
            "built; build it in a checkout with: npm --prefix runtimes/web ci --ignore-scripts && "
            "npm --prefix runtimes/web run page, and install again"
        )
    return {path.name: path for path in built.iterdir() if path.is_file()}


def model_graphs(model: ModelFiles) -> dict[str, Path]:
    """``{path of a URL: file}`` of the graphs that the page asks for. Raises UsageError for a model that a page cannot
    load, ModelFormatError for a file that is no model."""
    graphs = {f"{MODEL}.onnx": model.whole}
    for kind, second in (("router", model.router), ("statistics", model.statistics)):
        if model.tile is not None and second is not None:
            graphs |= {f"{MODEL}.tile.onnx": model.tile, f"{MODEL}.{kind}.onnx": second}
    for graph in graphs.values():
        if graph.suffix != ".onnx":
            raise UsageError(f"model {graph}: the page opens .onnx files; make one with clusir-export --onnx OUT")
        read_metadata(graph)
    return graphs


class PageServer(ThreadingHTTPServer):
    """Serves ``files`` (:func:`page_files`) on 127.0.0.1; ``port`` 0 takes a free one. Raises UsageError where the
    port is taken. ``serve_forever`` runs it."""

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # on Windows it would let two servers share a port

    def __init__(self, files: dict[str, Path], port: int = 0) -> None:
        self.files = files
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UsageError(f"--port {port}: {error.strerror or error}; 0 takes a free port") from error

    def server_bind(self) -> None:
        """Without the base's look-up of a name for the address, which may ask a server elsewhere."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a browser that closes a connection early is no fault of anybody's."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: PageServer

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        # Another name that leads here is somebody else's page, which would read what is served (DNS rebinding).
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            self.send_error(403)
            return
        name = unquote(urlsplit(self.path).path).lstrip("/") or "index.html"
        file = self.server.files.get(name)
        try:
            stream = file.open("rb") if file is not None else None
        except OSError:
            stream = None
        if stream is None:
            self.send_error(404)
            return
        with stream:
            length = stream.seek(0, 2)
            stream.seek(0)
            self.send_response(200)
            self.send_header("Content-Type", _TYPES.get(PurePosixPath(name).suffix, "application/octet-stream"))
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if body:
                shutil.copyfileobj(stream, self.wfile)

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: what is asked for is nobody's news."""
