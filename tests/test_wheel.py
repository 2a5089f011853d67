"""The wheel and the source distribution: built from a copy of the checkout, read, and installed into empty places."""

from __future__ import annotations

import base64
import email
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clusir.runtimes.restore.restorer import Restorer
from tests import needs
from tests.browser import Browser
from tests.golden.make.cases import FAMILIES
from tests.golden.make.standin import write_standin

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
HOMES = {"clusir": "clusir", "clusir.export": "export", "clusir.runtimes": "runtimes",
         "clusir.calibration": "calibration"}  # fmt: skip
WEB = ROOT / "runtimes" / "web"
PAGE = "clusir/runtimes/page/built/"
NOT_COPIED = (".git", ".venv", "node_modules", "build", "build-*", "dist", "*.egg-info", ".*_cache", "__pycache__",
              "demo-out", "site", ".hypothesis", ".state", "built")  # fmt: skip
# What the wheel holds beside modules: where, and which suffixes.
WEIGHTS = {".onnx", ".data", ".safetensors", ".md", ".tsv", "", ".losses.json"}
DATA = {"clusir": {".typed", ".json"}, "clusir/weights": WEIGHTS,
        "clusir/runtimes/report": {".css", ".js", ".html"}, "clusir/training/recipes": {".toml"}}  # fmt: skip


def packages() -> dict[str, Path]:
    """Every folder of modules under the four roots: {dotted name: folder}."""
    found = {}
    for name, top in HOMES.items():
        for init in (ROOT / top).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / top).parts
            if not {"cpp", "web", "mobile"} & set(parts):
                found[".".join([name, *parts])] = init.parent
    return found


def home(folder: str) -> Path:
    """The folder of the checkout that is installed as ``folder``."""
    top = max((name for name in HOMES if folder.startswith(name.replace(".", "/"))), key=len)
    return ROOT / HOMES[top] / folder.removeprefix(top.replace(".", "/")).lstrip("/")


def build(source: Path, out: Path) -> tuple[Path, Path]:
    """(wheel, source distribution) of a tree: the wheel is built from the source distribution. With the browser page,
    where the npm packages are there to build it with."""
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NOT_COPIED))
    if (WEB / "node_modules" / "esbuild").is_dir() and (node := shutil.which("node")):
        run(source, node, WEB / "build.mjs", "--page", source / "runtimes" / "page" / "built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("dist")
    return build(folder / "source", folder / "out")


def install(wheel: Path, extras: str, place: Path) -> Path:
    """The bin folder of a new environment that holds the wheel, its extras and nothing else."""
    venv.create(place)  # a pip of its own and compiled modules that nothing imports would take most of the time
    pip = [sys.executable, "-m", "pip", "--python", place, "install", "-q", "--disable-pip-version-check",
           "--no-compile", "-c", ROOT / ".ci" / "constraints.txt", f"{wheel}[{extras}]"]  # fmt: skip
    run(place, *pip)
    return place / "bin"


def run(cwd: Path, *command: Path | str) -> str:
    """Standard output of a command that runs outside the checkout, without this process's environment variables."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "PYTEST"))}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_every_folder_of_modules_is_a_listed_package() -> None:
    assert PROJECT["tool"]["setuptools"]["packages"] == sorted(packages())


def test_the_wheel_holds_every_module_and_nothing_stray(dist: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(dist[0]).namelist())
    info = f"clusir-{PROJECT['project']['version']}.dist-info/"
    held = {n for n in names if not n.startswith(info)}
    wanted = {f"{name.replace('.', '/')}/{path.name}" for name, at in packages().items() for path in at.glob("*.py")}
    assert {n for n in held if n.endswith(".py")} == wanted
    data = {n for n in held - wanted if not n.startswith(PAGE)}
    assert data == {f"{folder}/{path.name}" for folder, suffixes in DATA.items() for path in home(folder).iterdir()
                    if path.is_file() and {path.suffix, "".join(path.suffixes[-2:])} & suffixes}  # fmt: skip
    terms = {f"clusir/weights/{name}" for name in ("MODEL_CARD.md", "LICENSE", "ATTRIBUTION.tsv")}
    assert {"clusir/py.typed"} | terms <= data
    assert {f"clusir/weights/tiny{kind}" for kind in (".onnx", ".tile.onnx", ".router.onnx", ".safetensors")} <= data
    assert {f"{info}licenses/LICENSE", f"{info}licenses/clusir/weights/LICENSE"} <= names


def test_the_wheel_says_what_it_is(dist: tuple[Path, Path]) -> None:
    wheel = zipfile.ZipFile(dist[0])
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    told = email.message_from_bytes(wheel.read(name))
    # MIT: onnxruntime-web, in the browser page; the licences of what it is bundled with lie beside it.
    assert told["License-Expression"] == "Apache-2.0 AND MIT"
    assert told["Requires-Python"] == ">=3.11"
    assert told["Description-Content-Type"] == "text/markdown"
    kinds = told.get_all("Classifier") or []
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} <= set(kinds)
    assert told["Keywords"]
    assert told.get_all("Project-URL")


def test_the_source_distribution_can_be_tested(dist: tuple[Path, Path]) -> None:
    with tarfile.open(dist[1]) as archive:
        names = {n.split("/", 1)[1] for n in archive.getnames() if "/" in n}
    assert {"tests/conftest.py", "tests/export/conftest.py", "tests/golden/manifest.json", "tests/embed/toolchain.py",
            "runtimes/cpp/CMakeLists.txt", "runtimes/web/package.json", "docs/running.md", "CHANGELOG.md", "Makefile",
            "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", ".ci/constraints.txt"} <= names  # fmt: skip
    assert [n for n in names if "node_modules" in n or n.endswith(".pyc")] == []


def test_all_languages_have_one_version() -> None:
    import clusir

    cpp = (ROOT / "runtimes/cpp/include/clusir/clusir.h").read_text("utf-8")
    cmake = (ROOT / "runtimes/cpp/CMakeLists.txt").read_text("utf-8")
    lock = json.loads((ROOT / "runtimes/web/package-lock.json").read_text("utf-8"))
    found = {
        "pyproject.toml": PROJECT["project"]["version"],
        "clusir.__version__": clusir.__version__,
        "clusir.h": ".".join(re.findall(r"#define CLUSIR_VERSION(?:_\w+)?\s+\"?([\d.]+)", cpp)),
        "CMakeLists.txt": re.findall(r"project\(\s*clusir\s+VERSION\s+([\d.]+)", cmake)[0],
        "package.json": json.loads((ROOT / "runtimes/web/package.json").read_text("utf-8"))["version"],
        "package-lock.json": lock["version"],
        "package-lock.json, packages": lock["packages"][""]["version"],
        "CITATION.cff": re.findall(r"^version: ([\d.]+)", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)[0],
    }
    assert set(found.values()) == {clusir.__version__}, found


def test_the_wheel_restores_a_photo_in_an_empty_environment(dist: tuple[Path, Path], tmp_path: Path) -> None:
    bin_ = install(dist[0], "cpu", tmp_path / "env")
    rng = np.random.default_rng(0)
    ramp = np.linspace(40, 200, 96)[None, :, None] + np.zeros((80, 96, 3))
    noisy = np.clip(np.rint(ramp + rng.normal(0, 25, ramp.shape)), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(tmp_path / "photo.png")
    run(tmp_path, bin_ / "clusir-run", "photo.png", "-o", "better.png")
    better = np.asarray(Image.open(tmp_path / "better.png"))
    assert better.shape == noisy.shape
    assert not (np.abs(better - ramp).mean() >= 0.5 * np.abs(noisy - ramp).mean())  # the noise went, not the picture
    assert run(tmp_path, bin_ / "clusir", "--version").split() == ["clusir,", "version", PROJECT["project"]["version"]]
    modules = [n for n in packages() if n.startswith(("clusir.runtimes", "clusir.calibration", "clusir.cli"))]
    script = "import importlib\nfor name in {!r}: importlib.import_module(name)\nimport clusir; print(clusir.__file__)"
    home = run(tmp_path, bin_ / "python", "-c", script.format(modules)).strip()
    assert home.startswith(str(tmp_path / "env"))
    absent = "import importlib.util as u; print([n for n in ('torch', 'onnx', 'pytest') if u.find_spec(n)])"
    assert run(tmp_path, bin_ / "python", "-c", absent).strip() == "[]"


@pytest.fixture
def unpacked(dist: tuple[Path, Path], tmp_path: Path) -> Path:
    """The folder of the wheel's modules as an installation holds it, in an environment that has their requirements."""
    if not any(name.startswith(PAGE) for name in zipfile.ZipFile(dist[0]).namelist()):
        needs.skip("browser", "the npm packages are not installed")
    zipfile.ZipFile(dist[0]).extractall(tmp_path / "installed")
    return tmp_path / "installed"


def test_the_page_of_the_wheel_restores_a_photo_in_a_browser(unpacked: Path, tmp_path: Path) -> None:
    """With threads, as Python does, and with no way out of this machine."""
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 256, (150, 170, 3), dtype=np.uint8)
    Image.fromarray(noisy).save(tmp_path / "photo.png")
    model = write_standin(tmp_path, tile_px=64, halo_px=8, families=FAMILIES)
    with Restorer(model, backend="ort", device="cpu") as restorer:
        expected = restorer.restore(noisy)
    with served(unpacked, "--model", model) as url:
        browser = Browser()
        try:
            browser.open(url)
            browser.upload("#file", tmp_path / "photo.png")
            browser.wait("#save, #error")
            assert browser.run("return document.querySelector('#error').textContent") == ""
            about = browser.run("return document.querySelector('#about').value")
            threads = browser.run("return crossOriginIsolated && navigator.hardwareConcurrency")
            assert f"on wasm, {'one thread' if threads == 1 else f'{min(threads, 8)} threads'}" in about
            png = browser.run("return document.querySelector('#after').toDataURL('image/png')")
            assert browser.complaints() == []
            browser.run("document.addEventListener('securitypolicyviolation', (e) => (window.refused = e.blockedURI));"
                        "fetch('http://127.0.0.1:9/').catch(() => 0)")  # fmt: skip
            assert browser.run("return window.refused") == "http://127.0.0.1:9/"
        finally:
            browser.close()
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(png.partition(",")[2]))).convert("RGB"))
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected.astype(int)).max() <= 1


@contextmanager
def served(home: Path, *options: Path | str) -> Iterator[str]:
    """The address that ``clusir page`` of an unpacked wheel prints; ended by SIGTERM, which is no failure."""
    command = [sys.executable, "-m", "clusir", "page", "--no-open", *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(home), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line
        yield line.split()[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()


@needs.FULL
def test_the_wheel_exports_in_an_empty_environment(dist: tuple[Path, Path], tmp_path: Path) -> None:
    bin_ = install(dist[0], "cpu,export", tmp_path / "env")
    run(tmp_path, bin_ / "clusir-export", "--onnx", "out", "--checkpoint", "random:tiny", "--backends", "ort")
    assert {"model.onnx", "model.tile.onnx", "model.router.onnx", "manifest.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    run(tmp_path, bin_ / "clusir-verify", "out", "--checkpoint", "random:tiny", "--backend", "ort")
