"""Brought models: what an export changes of its process ends with it, and options act or are refused."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from clusir.cli.export import main as export_main
from clusir.errors import UnsupportedModelError, UsageError, ValidationError
from clusir.export import compared
from clusir.export.experts.registry import clear_registry
from clusir.export.lowering.registry import taught_registry
from clusir.export.module import ModuleExport, declare_unused, export_module, load_factory
from clusir.export.quiet import printing_to
from clusir.export.subjects import user_code
from clusir.export.subjects.checks import check_batch, check_function
from clusir.export.subjects.factory import unused_of
from clusir.export.trace.symbolic.numbers import symbolic_numbers
from clusir.export.validate.cases import ModuleCheck

pytestmark = pytest.mark.usefixtures("small_measures")


def export(model: nn.Module, folder: Path, shape: str = "1x3x16x16", **options: Any) -> ModuleExport:
    return export_module(model.eval(), shape, folder / "model.onnx", backends=("ort",), **options)


@pytest.fixture(autouse=True)
def _clean_registry() -> Iterator[None]:
    clear_registry()
    yield
    clear_registry()


class Off(nn.Module):
    """The picture, off by a number; or only where several come ``together``."""

    def __init__(self, by: float, together: bool = False) -> None:
        super().__init__()
        self.by, self.least = by, 2 if together else 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by if len(x) >= self.least else x


def test_checks_of_a_module_have_bounds() -> None:
    pictures = torch.rand(2, 3, 8, 8)
    same = nn.Identity()
    for off in (Off(float("nan")), Off(2e-4)):
        with pytest.raises(UnsupportedModelError, match="does not say what the model does"):
            check_function(same, off, pictures)
    check_function(same, Off(5e-5), pictures)
    for off in (Off(float("nan"), together=True), Off(2e-4, together=True)):
        with pytest.raises(UnsupportedModelError, match="depends on the other pictures"):
            check_batch(same, off, pictures, 2)
        assert check_batch(off, same, pictures, 2)[1] != ()
    assert check_batch(same, Off(5e-5, together=True), pictures, 2) == (True, ())


class Restless(nn.Module):
    """The picture twice, then off by a number."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.calls, self.by = 0, by

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x if self.calls <= 2 else x + self.by


def test_a_model_that_answers_otherwise_the_second_time_is_not_deterministic() -> None:
    for by in (float("nan"), 1e-5):
        model = Restless(by)
        with pytest.raises(UnsupportedModelError, match="not deterministic"):
            check_function(model, model, torch.rand(2, 3, 8, 8))


class Headed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


class OtherHeaded(Headed):
    pass


def test_what_is_declared_unused_for_one_model_does_not_hold_for_the_next() -> None:
    declare_unused("head")
    assert unused_of(Headed()) == ("head",)
    assert unused_of(OtherHeaded()) == ()
    assert unused_of(Headed()) == ("head",)  # the same model again
    declare_unused("tail")
    assert unused_of("package.other:factory") == ("tail",)
    assert unused_of("package.another:factory") == ()
    assert unused_of("package.other:factory") == ("tail",)


def test_the_search_path_is_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_factory_here.py").write_text("import torch\ndef build(): return torch.nn.Identity()\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert isinstance(load_factory("my_factory_here:build"), nn.Identity)
    assert sys.path == before


def test_torch_is_taught_for_the_time_of_an_export() -> None:
    from torch.onnx._internal.exporter import _registration

    kind = _registration.ONNXRegistry
    before = [vars(kind)[name] for name in ("register_op", "from_torchlib")]
    with taught_registry():
        assert not {id(kind.register_op), id(vars(kind)["from_torchlib"])} & set(map(id, before))
        with taught_registry():
            pass
    assert [vars(kind)[name] for name in ("register_op", "from_torchlib")] == before


def test_a_registry_that_was_read_before_is_the_same_and_nobody_elses() -> None:
    from torch.onnx._internal.exporter import _registration

    def ours(x: Any) -> Any:
        return x

    for opset in (18, 20):
        theirs = _registration.ONNXRegistry.from_torchlib(opset_version=opset)
        with taught_registry():
            first, second = (_registration.ONNXRegistry().from_torchlib(opset_version=opset) for _ in range(2))
        assert first.opset_version == opset
        assert list(first.functions) == list(theirs.functions)
        for target, found in theirs.functions.items():
            assert [(m.onnx_function, m.is_complex) for m in first.functions[target]] == [
                (m.onnx_function, m.is_complex) for m in found
            ]
        first.register_op(torch.ops.aten.relu.default, ours)
        assert first.is_registered(torch.ops.aten.relu.default)
        assert ours in [m.onnx_function for m in first.get_decomps(torch.ops.aten.relu.default)]
        assert ours not in [m.onnx_function for m in second.get_decomps(torch.ops.aten.relu.default)]


def test_output_of_other_threads_is_theirs(capsys: pytest.CaptureFixture[str]) -> None:
    import io

    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        inside.wait(10)
        sys.stdout.write("from another thread")
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with printing_to(io.StringIO()) as kept:
        inside.set()
        done.wait(10)
        sys.stdout.write("mine")
        print("and stderr", file=sys.stderr)
    thread.join()
    sys.stdout.write(" afterwards")
    assert kept.getvalue() == "mineand stderr\n"
    assert capsys.readouterr().out == "from another thread afterwards"


class Chatty(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        sys.stdout.write("tracing\n")
        return x * 2


def test_a_model_that_writes_to_standard_output_is_exported(tmp_path: Path) -> None:
    from clusir.export.trace.program import trace_module

    assert trace_module(Chatty().eval(), torch.rand(1, 3, 8, 12)).dynamic_size


def test_a_neighbour_of_this_package_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(user_code.__file__).resolve().parents[1]
    assert not user_code.is_users(str(own / "subjects" / "user_code.py"))
    assert user_code.is_users(str(own) + "_mine/net.py")
    assert not user_code.is_users(torch.__file__)
    assert user_code.is_users(torch.__file__.replace("site-packages", "site-packages-of-mine"))


def test_libraries_that_another_environment_lends_are_not_the_users() -> None:
    assert not user_code.is_users("/somewhere/else/lib/python3.11/site-packages/torch/__init__.py")
    assert not user_code.is_users("/usr/lib/python3/dist-packages/numpy/__init__.py")


@pytest.mark.parametrize(
    ("code", "replaced"),
    [
        ("def f(h):\n    return int(h / 2)\n", True),
        ("def f(h: int) -> int:\n    return int(h) if isinstance(h, (int, float)) else 0\n", True),
        ("def f(h):\n    return int(h / 2) if type(h) is int and int is not type(0.5) else 7\n", True),
        ("def f(h):\n    return int(h / 2) if type(h) is int and isinstance(f, type) is False else 7\n", False),
        ("sort = type\ndef f(h):\n    return int(h / 2) if type(h) is int else 7\n", False),
        ("kinds = [int]\ndef f(h):\n    return int(h / 2)\n", True),
        ("kinds = [int]\ndef f(h):\n    return int(h / 2) if type(h) in kinds else 7\n", True),
    ],
)
def test_int_is_replaced_only_where_that_cannot_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, replaced: bool
) -> None:
    name = f"user_int_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__(name)
    with symbolic_numbers(nn.Identity()):
        assert ("int" in vars(module)) == replaced
        inside = module.f(4)
    assert inside == module.f(4)
    assert "int" not in vars(module)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--device", "cuda"], "--device"),
        (["--openvino"], "--openvino"),
        (["--ort-mobile"], "--ort-mobile"),
        (["--checkpoint", "random:tiny"], "--checkpoint"),
        (["--check-passes"], "--check-passes"),
    ],
)
def test_options_that_do_nothing_for_a_module_are_refused(tmp_path: Path, options: list[str], why: str) -> None:
    done = CliRunner().invoke(export_main, ["--onnx", str(tmp_path / "m.onnx"), "--module", "a:b", *options])
    assert done.exit_code == 2
    assert f"{why} would have no effect" in done.stderr


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--calibration", "x"], "--calibration does nothing without --precision fp16 or int8"),
        (["--seed", "7"], "--seed does nothing"),
        (["--engine", "nncf", "--precision", "fp16"], "--engine does nothing without --precision int8"),
        (["--precision", "int8", "--batch", "2"], "export a batch of 1"),
        (["--precision", "fp16", "--router", "conditional"], "--router conditional"),
    ],
)
def test_options_of_precisions_act_or_are_refused(tmp_path: Path, options: list[str], why: str) -> None:
    done = CliRunner().invoke(export_main, ["--onnx", str(tmp_path / "m.onnx"), "--module", "a:b", *options])
    assert done.exit_code == 2
    assert why in done.stderr


def test_a_file_in_the_way_is_refused_before_any_work(tmp_path: Path) -> None:
    class Unasked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            pytest.fail("the network was run first")

    (tmp_path / "model.onnx").write_bytes(b"mine")
    with pytest.raises(UsageError, match="was not written by clusir-export"):
        export(Unasked(), tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == b"mine"
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UsageError, match=r"folder\.onnx is there"):
        export_module(Unasked().eval(), "1x3x16x16", tmp_path / "folder.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.onnx", "model.onnx"]


def test_backends_that_cannot_serve_the_form_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--dft op with --backends openvino"):
        export_module(
            nn.Conv2d(3, 3, 3, padding=1).eval(), "1x3x16x16", tmp_path / "m.onnx", dft="op", backends=("openvino",)
        )


INSTALLED = """
from torch import nn
from installed_windows.helpers import batch_of

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 3, padding=1)
    def forward(self, x):
        b, c, h, w = x.shape
        parts = x.view(b, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 3, 5, 1).reshape(-1, 64, c)
        parts = parts.softmax(dim=1) + parts
        b = batch_of(parts, h, w)
        whole = parts.view(b, h // 8, w // 8, 8, 8, -1).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)
        return x + self.mix(whole)
"""
HELPERS = "def batch_of(parts, h, w):\n    return int(parts.shape[0] / (h * w / 8 / 8))\n"


def test_the_code_of_an_installed_package_is_traced_as_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published networks come as packages: their ``int(windows / (h * w / 8 / 8))`` fixed batch and size."""
    package = tmp_path / "site-packages" / "installed_windows"
    package.mkdir(parents=True)
    for name, text in {"__init__": "", "net": INSTALLED, "helpers": HELPERS}.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(package.parent))
    made = export_module("installed_windows.net:Net", "1x3x32x32", tmp_path / "net.onnx", backends=("ort",))
    assert not user_code.is_users(torch.nn.modules.conv.__file__)
    assert user_code.is_users(str(package / "helpers.py"))
    assert not made.spec.size.static_px
    assert not [note for note in made.notes if "fixes the batch" in note]


def test_what_one_trace_got_wrong_is_asked_of_the_next_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is wrong at a size is not right because the next was compared at others."""
    real, asked, least = compared.validate, [], []

    def fails_once(path: Path, given: ModuleCheck, *more: Any) -> Any:
        asked.append(set(given.sizes))
        least.append(set(given.least))
        if len(asked) == 1:
            raise ValidationError("differs by 0.1")
        return real(path, given, *more)

    monkeypatch.setattr(compared, "validate", fails_once)
    made = export(nn.Conv2d(3, 3, 3, padding=1), tmp_path)
    assert asked[0] < asked[1]
    assert asked[0] <= least[1], "a size at which a file was wrong may be left out"
    assert set(made.sizes) == asked[1]
