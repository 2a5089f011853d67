"""``clusir page``: what its server answers, and to whom. The page in a browser: tests/test_wheel.py."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from clusir.cli.page import main
from clusir.errors import BackendError, UsageError
from clusir.runtimes.page.server import PageServer, page_files
from clusir.runtimes.runners.files import find_model


@pytest.fixture
def built(tmp_path: Path) -> Path:
    folder = tmp_path / "built"
    folder.mkdir()
    for name in ("index.html", "worker.js", "ort.wasm", "loader.mjs"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def server(built: Path) -> Iterator[PageServer]:
    with PageServer(page_files(find_model(), built)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(server: PageServer, path: str, method: str = "GET", host: str = "") -> tuple[http.client.HTTPResponse, bytes]:
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{port}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_the_page_and_the_model_are_answered(server: PageServer) -> None:
    files = find_model()
    assert server.url == f"http://127.0.0.1:{server.server_address[1]}/"
    assert ask(server, "/")[1] == b"index.html"
    assert ask(server, "/worker.js?again=1")[1] == b"worker.js"
    assert files.tile is not None
    assert ask(server, "/models/tiny.tile.onnx")[1] == files.tile.read_bytes()
    kinds = {
        name: ask(server, f"/{name}")[0].headers["Content-Type"] for name in ("worker.js", "ort.wasm", "loader.mjs")
    }
    assert kinds == {"worker.js": "text/javascript; charset=utf-8", "ort.wasm": "application/wasm",
                     "loader.mjs": "text/javascript; charset=utf-8"}  # fmt: skip
    head, body = ask(server, "/worker.js", "HEAD")
    assert (head.status, head.headers["Content-Length"], body) == (200, "9", b"")


def test_every_answer_isolates_the_page_and_keeps_it_here(server: PageServer) -> None:
    for path in ("/", "/models/tiny.onnx", "/nothing"):
        headers = ask(server, path, "HEAD")[0].headers
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["connect-src"] == "'self'"
        assert "http" not in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "path", ["/nothing", "/../server.py", "/%2e%2e/server.py", "/models/../../server.py", "//etc/passwd"]
)
def test_other_paths_lead_nowhere(server: PageServer, built: Path, path: str) -> None:
    (built.parent / "server.py").write_text("secret")
    assert ask(server, path)[0].status == 404


def test_other_names_and_other_methods_are_refused(server: PageServer) -> None:
    port = server.server_address[1]
    assert ask(server, "/", host=f"localhost:{port}")[0].status == 200
    assert ask(server, "/", host="photos.example")[0].status == 403  # somebody's name that was pointed here
    assert ask(server, "/", method="POST")[0].status == 501


def test_it_listens_to_this_machine_only(server: PageServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(OSError, match=r"."):
        socket.create_connection(("127.0.0.2", server.server_address[1]), timeout=2)


def test_a_taken_port_is_named(server: PageServer) -> None:
    with pytest.raises(UsageError, match=rf"^--port {server.server_address[1]}: .*; 0 takes a free port$"):
        PageServer(server.files, server.server_address[1])


def test_sources_without_a_built_page_say_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"run page, and install again$"):
        page_files(find_model(), tmp_path)
    package = json.loads((Path(__file__).parents[2] / "runtimes" / "web" / "package.json").read_text("utf-8"))
    assert package["scripts"]["page"] == "node build.mjs --page"


def test_models_that_a_page_cannot_open_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Path
) -> None:
    monkeypatch.setattr("clusir.runtimes.page.server.page_files.__defaults__", (built,))
    for name, line in (("model.xml", "the page opens .onnx files"), ("model.onnx", "not an ONNX file")):
        (tmp_path / name).write_bytes(b"<xml/>")
        done = CliRunner().invoke(main, ["--no-open", "--model", str(tmp_path / name)])
        assert done.exit_code == 2
        assert line in done.stderr
