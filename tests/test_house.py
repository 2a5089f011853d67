"""The floors of the house, the public names, and what a command may import before it does any work."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"clusir": ROOT / "clusir", "clusir.export": ROOT / "export", "clusir.runtimes": ROOT / "runtimes",
            "clusir.calibration": ROOT / "calibration"}  # fmt: skip
HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "skimage", "scipy", "ray")
COMMANDS = ("run", "page", "export", "verify", "bench", "train", "doctor")

# The floors, lowest first: a folder may import what stands on a lower line, never a higher one or a neighbour's.
FLOORS = (
    ("clusir.lazy", "clusir.markdown", "clusir.names"),
    ("clusir", "clusir.errors", "clusir.weights"),
    ("clusir.atomic", "clusir.rounding", "clusir.spec"),
    ("clusir.degrade",),
    ("clusir.network", "clusir.calibration"),
    ("clusir.runtimes.images.picture", "clusir.runtimes.images.formats", "clusir.runtimes.images.pillow_open"),
    ("clusir.runtimes.images.metadata",),
    ("clusir.runtimes.images.tiff",),
    ("clusir.runtimes.machine.allowed", "clusir.runtimes.machine.alternating"),
    ("clusir.runtimes.machine.fingerprint", "clusir.runtimes.machine.threads"),
    ("clusir.runtimes.runners", "clusir.runtimes.images"),
    ("clusir.quality",),
    ("clusir.training",),
    ("clusir.runtimes", "clusir.runtimes.machine.choice"),
    ("clusir.runtimes.restore",),
    ("clusir.runtimes.batch", "clusir.runtimes.report", "clusir.runtimes.machine", "clusir.runtimes.page"),
    ("clusir.export", "clusir.export.base", "clusir.export.graph", "clusir.export.validate.tolerances"),
    ("clusir.export.validate.compare",),
    ("clusir.export.subjects",),
    ("clusir.export.lowering", "clusir.export.quantize"),
    (
        "clusir.export.passes",
        "clusir.export.experts",
        "clusir.export.precision",
        "clusir.export.pooling",
        "clusir.export.scans",
    ),
    ("clusir.export.trace", "clusir.export.validate"),
    ("clusir.export.subject", "clusir.export.tiled", "clusir.export.fastest"),
    ("clusir.export.options", "clusir.export.compared", "clusir.export.undescribed", "clusir.export.rgba"),
    ("clusir.export.pipeline", "clusir.export.module", "clusir.export.adopt"),
    ("clusir.export.formats", "clusir.export.cuda"),
    ("clusir.cli",),
    ("clusir.__main__",),
)
LEVELS = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if {"cpp", "web", "mobile"} & set(parts):
                continue
            name = ".".join([package, *parts]).removesuffix(".__init__")
            found[name] = path
    return found


def room(module: str) -> str:
    """The folder (or the file, where FLOORS lists it) that a module belongs to."""
    parts = module.split(".")
    return next(name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in LEVELS)


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether it is only for the type checker) for every import statement of a file."""
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, typing_only: bool) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            typing_only = True
        if isinstance(node, ast.Import):
            found.extend((alias.name, typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, typing_only))
        for child in ast.iter_child_nodes(node):
            visit(child, typing_only)

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


def violations(module: str, found: list[tuple[str, bool]]) -> list[str]:
    wrong = []
    for target, typing_only in found:
        top = target.split(".")[0]
        if top == "clusir" and not typing_only:
            here, there = room(module), room(target)
            if here != there and LEVELS[there] >= LEVELS[here]:
                wrong.append(f"{module} imports {target}")
        runtime_side = module.startswith(("clusir.runtimes", "clusir.calibration"))
        if runtime_side and top in ("torch", "onnx") and not module.endswith("runners.torch") and not typing_only:
            wrong.append(f"{module} imports {target}")
    return wrong


# Places that may reach where others may not, each with its reason.
ALLOWED = {
    # Asks torch for its devices, inside a function that runs in a child process, where torch is installed.
    "clusir.runtimes.machine.probe imports torch",
}


def test_imports_go_down_only() -> None:
    wrong = [line for name, path in modules().items() for line in violations(name, imports(path))]
    assert set(wrong) == ALLOWED  # no import beyond these, and no allowance that nothing needs


def test_the_check_of_the_floors_can_fail() -> None:
    assert violations("clusir.runtimes.restore.tiling", [("clusir.export.base", False)])
    assert violations("clusir.runtimes.restore.tiling", [("torch", False)])
    assert violations("clusir.calibration.base", [("clusir.runtimes.runners.base", False)])
    assert violations("clusir.errors", [("clusir.spec", False)])
    assert violations("clusir.spec", [("clusir.errors", False)]) == []


def test_every_public_name_is_there() -> None:
    for name, path in modules().items():
        if path.name == "__main__.py" or name.startswith("clusir.cli."):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if not any(isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__" for n in tree.body):
            continue
        module = importlib.import_module(name)
        missing = [public for public in module.__all__ if not hasattr(module, public)]
        assert missing == [], name


def test_no_file_is_longer_than_400_lines() -> None:
    files = [*modules().values(), *(ROOT / "tests").rglob("*.py")]
    long = {str(p): n for p in files if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400}
    assert long == {}


def test_nobody_imports_openvino_so_that_it_reports_that() -> None:
    """``import_openvino`` is the way: each report would fork the process, too."""
    files = [*modules().values(), *(ROOT / "tests").rglob("*.py")]
    plain = [str(p.relative_to(ROOT)) for p in files if any(name == "openvino" for name, _ in imports(p))]
    allowed = {"runtimes/runners/quiet.py", "runtimes/runners/openvino.py"}  # itself; names of what is imported
    assert {p for p in plain if not p.startswith("tests/bench/")} == allowed


# Functions of more parameters than seven, each with its reason.
MANY_PARAMETERS = {
    "runtimes/restore/restorer.py Restorer.__init__": "the public constructor: each is an option with a default",
    "export/lowering/operators.py _attention": "the signature of the ATen operator",
    "export/trace/substitutes.py _conv_transpose2d": "the signature of the ATen operator",
    "export/trace/short_time.py _stft": "the signature of torch's function",
    "export/trace/short_time.py _istft": "the signature of torch's function",
    "export/scans/mamba.py selective_scan_fn": "the signature of the published function",
    "clusir/training/loop.py train": "the public entry point: each is an option with a default",
}


def wide_functions(tree: ast.AST, most: int = 7, inside: str = "") -> list[str]:
    """Functions with more than ``most`` parameters beside self; entry points of commands (click) are left out."""
    found = []
    for node in ast.iter_child_nodes(tree):
        name = inside
        if isinstance(node, ast.ClassDef):
            name = f"{inside}{node.name}."
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            is_command = any("command(" in ast.unparse(decorator) for decorator in node.decorator_list)
            if len([n for n in names if n not in ("self", "cls")]) > most and not is_command:
                found.append(f"{inside}{node.name}")
            name = f"{inside}{node.name}."
        found += wide_functions(node, most, name)
    return found


def test_no_function_has_more_than_seven_parameters() -> None:
    wide = {
        f"{path.relative_to(ROOT)} {name}"
        for path in modules().values()
        for name in wide_functions(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert wide == set(MANY_PARAMETERS)  # no function beyond these, and no allowance that nothing needs


def test_the_check_of_parameters_can_fail() -> None:
    many = ", ".join("abcdefgh")
    assert wide_functions(ast.parse(f"class A:\n    def f(self, {many}): ...")) == ["A.f"]
    assert wide_functions(ast.parse(f"@command(name='x')\ndef main({many}): ...")) == []


def test_no_folder_holds_more_than_twenty_files() -> None:
    left_out = {".git", ".venv", "node_modules", "__pycache__", "golden", "build", "dist", "demo-out", "site", "built"}
    full = {}
    for top in ("clusir", "export", "runtimes", "calibration", "tests", "docs", ".ci"):
        for folder, folders, files in os.walk(ROOT / top):
            folders[:] = [name for name in folders if name not in left_out]
            if len(files) > 20:
                full[str(Path(folder).relative_to(ROOT))] = len(files)
    assert full == {}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    script = (
        f"import sys, json; from clusir.cli.{command} import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: code = end.code\n"
        f"print(json.dumps([code, [m for m in {HEAVY!r} if m in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
    assert "Usage:" in done.stdout


def test_importing_clusir_and_its_runtimes_needs_no_torch() -> None:
    names = [n for n in modules() if n.startswith(("clusir.runtimes", "clusir.calibration")) and "torch" not in n
             and not n.endswith("batch.ray")]  # fmt: skip
    script = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'onnx', 'safetensors'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import importlib\n"
        f"for name in {['clusir', 'clusir.cli.run', *names]!r}: importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_missing_package_is_one_line_with_the_extra_that_brings_it(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'torch': raise ModuleNotFoundError('no torch', name='torch')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from clusir.cli.export import main\n"
        "main(['--onnx', sys.argv[1]])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr == 'error: torch is not installed; install it with: pip install "clusir[export]"\n'


def test_one_place_writes_onnx() -> None:
    called = "torch.onnx.export("
    wrote = [path.name for path in modules().values() if f"= {called}" in path.read_text(encoding="utf-8")]
    assert wrote == ["writer.py"]


# Files that are renamed over others, and why it is no writing of one file.
RENAMED = {
    "clusir/atomic.py": "the one place that writes a file whole or not at all",
    "export/staging.py": "checked files move to their names together",
    "export/ownership.py": "a file of an export that is no longer written steps aside",
    "runtimes/batch/journal.py": "a damaged journal steps aside",
}


def test_one_place_writes_files_whole() -> None:
    renaming = {
        str(path.relative_to(ROOT)) for path in modules().values() if "os.replace(" in path.read_text(encoding="utf-8")
    }
    assert renaming == set(RENAMED)
