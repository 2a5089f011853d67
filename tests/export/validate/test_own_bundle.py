"""``clusir-verify`` and ``--bisect`` on a bundle of a network of clusir itself, against PyTorch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from standin_bundle import Edit, spec_of

from clusir.cli.verify import main
from clusir.export.formats.extras import write_golden_cases, write_manifest
from clusir.export.pipeline import GraphRecord
from clusir.network.model import ClusIR

Export = tuple[ClusIR, dict[str, GraphRecord]]


def seal(folder: Path) -> None:
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"]
    write_manifest(folder, spec_of(folder / "model.onnx"), sorted(names))


@pytest.mark.slow
def test_a_bundle_of_our_own_passes_and_a_spoilt_one_does_not(static_export: Export, tmp_path: Path) -> None:
    network, records = static_export
    for record in records.values():
        shutil.copy(record.path, tmp_path / record.path.name)
    write_golden_cases(network, tmp_path, spec_of(tmp_path / "model.onnx"))
    seal(tmp_path)
    arguments = ["--checkpoint", "random:tiny", "--backend", "ort", "--batches", "1"]
    done = CliRunner().invoke(main, [str(tmp_path), *arguments])
    assert done.exit_code == 0, done.output + done.stderr
    good = tmp_path / "model.router.onnx"
    same = CliRunner().invoke(
        main, ["--bisect", str(good), str(records["router"].path), "--out", str(tmp_path / "out")]
    )
    assert (same.exit_code, "No tensor is over the tolerance" in same.stdout) == (0, True)
    Edit(good).output("posterior", "Mul", 0.1)
    seal(tmp_path)
    done = CliRunner().invoke(main, [str(tmp_path), *arguments])
    assert done.exit_code == 4
    assert "model.router.onnx on ort:cpu disagrees" in done.stderr
    assert "output posterior" in done.stderr
