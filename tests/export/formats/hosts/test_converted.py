"""Hosts with a converter and a runtime of their own: neither is believed; and the hosts themselves where they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clusir.errors import BackendError, ExportError, ModelFormatError, UnsupportedModelError, ValidationError
from clusir.export.formats.hosts import selftest
from clusir.export.formats.hosts.child import Refused, answers, call
from clusir.export.formats.hosts.converted import Converted
from clusir.export.formats.hosts.folders import export_targets, open_source
from clusir.export.formats.hosts.form import reference
from clusir.export.formats.hosts.registry import TARGETS
from tests.export.formats.hosts.own_host import RUNNER, Own
from tests.needs import NEEDS, skip

Make = Callable[..., Path]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> type[Own]:
    class Mine(Own):
        pass

    monkeypatch.setitem(TARGETS, "own", Mine)
    return Mine


def test_a_file_is_written_and_checked_again(own: type[Own], network: Make, tmp_path: Path) -> None:
    (made,) = export_targets(open_source(network(64)), tmp_path, [own()])
    assert made.files == ("golden/light.npz", "golden/noise.npz", "model.json", "model.own", "target.json")
    assert [found.via for found in selftest.verify_target("own", tmp_path)] == ["own", "own"]
    (tmp_path / "own" / "model.own").write_bytes(b"another")
    with pytest.raises(ModelFormatError, match=r"model\.own is not the file"):
        selftest.verify_target("own", tmp_path)


def test_a_grey_network_whose_values_go_from_minus_one_to_one(own: type[Own], network: Make, tmp_path: Path) -> None:
    source = open_source(network(64, channels=1, value_range=(-1.0, 1.0)))
    export_targets(source, tmp_path, [own()])
    image = np.random.default_rng(3).random((1, 1, 64, 64), dtype=np.float32)
    got = own().run(tmp_path / "own", image)
    # A blur: the sum of weights is 1, so that the range does not show but at the edges, where -1 stands for black.
    around = np.pad(2 * image - 1, [(0, 0), (0, 0), (1, 1), (1, 1)])
    wanted = sum(around[:, :, y : y + 64, x : x + 64] for y in range(3) for x in range(3)) / 18 + 0.5
    assert np.abs(got - wanted).max() <= 1e-6


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("print('success')", "its converter wrote no model.own"),
        ("import sys; open(sys.argv[1] + '/model.own', 'w'); print('success')", "its converter wrote no model.own"),
        ("import sys; print('Error: no Einsum', file=sys.stderr); sys.exit(1)", "Error: no Einsum"),
        ("import os; os.abort()", "its process ended with code -6"),
        ("import sys; open(sys.argv[1] + '/model.own', 'w').write('x')", r"refuses the graph: .*"),
    ],
)
def test_a_converter_is_not_believed(own: type[Own], network: Make, tmp_path: Path, script: str, why: str) -> None:
    own.converter = script
    with pytest.raises(UnsupportedModelError, match=why):
        export_targets(open_source(network(64)), tmp_path / "out", [own()])
    assert not (tmp_path / "out").exists()


def test_a_wrong_answer_is_never_written(own: type[Own], network: Make, tmp_path: Path) -> None:
    source = open_source(network(64))
    export_targets(source, tmp_path, [own()])
    for change in ("* 1.01", "* numpy.float32('nan')", "[:, :, :-1]", "+ numpy.random.rand() * 1e-4"):
        own.runner = RUNNER.replace("})[0])", f"}})[0] {change})")
        assert own.runner != RUNNER
        with pytest.raises(ValidationError, match=r"^own, (light|noise)"):
            selftest.verify_target("own", tmp_path)
        if "rand" not in change:  # within the bound, and seen by the self-test alone
            with pytest.raises(UnsupportedModelError, match="own takes the graph and answers wrong"):
                export_targets(source, tmp_path / "out", [own()])
            assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("change", "kept"), [("* numpy.float32(1.0004)", True), ("* 1.1", False)])
def test_a_file_of_float16_is_left_out_where_it_loses_too_much(
    own: type[Own], network: Make, tmp_path: Path, change: str, kept: bool
) -> None:
    own.half = (("half.own", "model.own"),)
    own.converter += (
        "; shutil.copy(sys.argv[1] + '/model.onnx', sys.argv[1] + '/half.own')"
        "; open(sys.argv[1] + '/half.own', 'ab').write(bytes([0x32, 0]))"
    )
    # The file of float16 is the other with an empty field behind it, by which the runner tells it.
    own.runner = RUNNER.replace(
        "})[0])",
        f"}})[0] {change} if half else session.run(None, {{'input': numpy.load(f'{{folder}}/{{index}}.npy')}})[0])",
    )
    own.runner = own.runner.replace(
        "session =", "half = open(folder + '/model.own', 'rb').read().endswith(bytes([0x32, 0]))\nsession ="
    )
    (made,) = export_targets(open_source(network(64)), tmp_path, [own()])
    assert ("half.own" in made.files) == kept
    told = [found for found in made.findings if found.case.endswith("float16")]
    assert [found.agreement is not None for found in told] == [kept] * 2
    if not kept:
        assert told[0].note == "half.own is left out: it is less than 60 dB from float32"
        return
    own.runner = own.runner.replace("1.0004", "1.1")
    with pytest.raises(ValidationError, match="own, float16: "):
        selftest.verify_target("own", tmp_path)


def test_a_runtime_that_is_not_there_is_named(own: type[Own], monkeypatch: pytest.MonkeyPatch) -> None:
    own.module = "not_installed_anywhere"
    with pytest.raises(BackendError, match=r"pip install own numpy, and CLUSIR_TEST_OWN=own-env/bin/python"):
        own().requires()
    monkeypatch.setenv("CLUSIR_TEST_OWN", "/nowhere/python")
    with pytest.raises(BackendError, match="'/nowhere/python', which is no program"):
        own().requires()


def test_what_a_process_says_is_one_line(tmp_path: Path) -> None:
    import sys

    with pytest.raises(Refused, match="left no answer"):
        answers(sys.executable, "pass", {}, [np.zeros((1, 3, 4, 4), np.float32)])
    with pytest.raises(Refused, match=r"^ValueError: too large$"):
        call(sys.executable, "raise ValueError('too large')", tmp_path)


# Core ML is a Converted too, and cannot be run here: test_coreml.py.
PHONES = sorted(name for name, host in TARGETS.items() if issubclass(host, Converted) and host.runs is Converted.runs)


@pytest.mark.parametrize("name", PHONES)
def test_the_runtime_itself_agrees(network: Make, tmp_path: Path, name: str) -> None:
    host = TARGETS[name]()
    assert isinstance(host, Converted)
    assert name in NEEDS
    if not os.environ.get(host.variable):
        skip(name)
    source = open_source(network(64))
    (made,) = export_targets(source, tmp_path, [host])
    assert [found.via for found in made.findings] == [name] * (2 + 2 * len(host.half))
    assert set(made.files) >= {file for file, _ in host.half}
    image = np.random.default_rng(4).random((1, 3, 64, 64), dtype=np.float32)
    got = host.run(tmp_path / name, image)
    assert np.abs(got - reference(source, host.form(source))(image)).max() <= 1e-5
    broken = tmp_path / name / host.files[0]
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(ExportError, match=f"{name} refuses"):
        host.run(tmp_path / name, image)
