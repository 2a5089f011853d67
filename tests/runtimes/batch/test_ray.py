"""The same pictures, bytes and journal on a local Ray of two workers as without Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clusir.errors import BackendError, ClusirError
from clusir.runtimes.batch.jobs import plan_jobs
from clusir.runtimes.batch.journal import Journal, read_journal
from clusir.runtimes.batch.pipeline import Outcome, Pipeline
from clusir.runtimes.batch.ray import RayOptions, RestoreBatch, connect, restore_on_ray
from clusir.runtimes.machine.measure import write_photo
from clusir.runtimes.restore.restorer import Restorer

MODEL = Path(__file__).parents[2] / "golden" / "standin.onnx"
OPTIONS: dict[str, Any] = {"model": str(MODEL), "backend": "ort", "device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=128 * 2**20)
    yield ray
    ray.shutdown()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for i in range(10):
        write_photo(folder / ("deep" if i % 2 else ".") / f"{i}.png", 30 + 5 * i, seed=i)
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    return folder


def _journal(folder: Path) -> Journal:
    return Journal(folder, "artefact", {"alpha": "keep"})


def _plain(photos: Path, out: Path) -> list[Outcome]:
    outcomes: list[Outcome] = []
    journal = _journal(out)
    with Restorer(**OPTIONS) as restorer:
        Pipeline(restorer, journal).run(plan_jobs([str(photos)], out), outcomes.append)
    journal.close()
    return outcomes


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


def _entries(folder: Path) -> dict[str, dict[str, Any]]:
    return {entry["target"]: entry for entry in read_journal(folder)}


def test_an_absent_cluster_is_a_backend_error() -> None:
    with pytest.raises(BackendError, match="cannot connect"):
        connect("nonsense://127.0.0.1:1")


def test_same_results_and_journal_as_without_ray(cluster: Any, photos: Path, tmp_path: Path) -> None:
    plain = _plain(photos, tmp_path / "plain")
    outcomes: list[Outcome] = []
    out = tmp_path / "ray"
    journal = _journal(out)
    jobs = plan_jobs([str(photos)], out)
    restore_on_ray(jobs, OPTIONS, outcomes.append, RayOptions(workers=2), journal)
    assert _tree(out) == _tree(tmp_path / "plain")
    assert len(_tree(out)) == 10
    assert _entries(out) == _entries(tmp_path / "plain")
    assert sorted(o.status for o in outcomes) == sorted(o.status for o in plain) == ["failed"] + ["restored"] * 10
    failed = next(o for o in outcomes if o.status == "failed")
    assert "bad.png" in (failed.reason or "")
    assert {o.job for o in outcomes} == set(jobs)
    good = next(o for o in outcomes if o.status == "restored")
    assert good.work.routing is not None
    assert good.work.infer_s > 0

    # A second run finds everything done; one output that is gone is made again.
    (out / "0.png").unlink()
    again: list[Outcome] = []
    restore_on_ray(jobs, OPTIONS, again.append, RayOptions(workers=1), journal)
    journal.close()
    assert {o.job.name: o.status for o in again if o.status != "skipped"} == {
        str(photos / "0.png"): "restored",
        str(photos / "bad.png"): "failed",
    }
    assert _tree(out) == _tree(tmp_path / "plain")


def test_a_worker_that_cannot_open_the_model_gives_one_line(cluster: Any, photos: Path, tmp_path: Path) -> None:
    jobs = plan_jobs([str(photos)], tmp_path / "out")
    with pytest.raises(ClusirError, match="no such file") as caught:
        restore_on_ray(jobs, {**OPTIONS, "model": "/nowhere.onnx"}, lambda outcome: None, RayOptions(workers=1))
    assert "\n" not in str(caught.value)


def test_the_callable_alone_needs_no_cluster(photos: Path, tmp_path: Path) -> None:
    worker = RestoreBatch(OPTIONS)
    sources = [str(photos / "0.png"), str(photos / "bad.png")]
    targets = [str(tmp_path / "o" / "0.png"), str(tmp_path / "o" / "bad.png")]
    rows = worker({"source": np.array(sources), "target": np.array(targets)})
    assert list(rows["status"]) == ["restored", "failed"]
    assert rows["reason"][0] == ""
    assert Path(targets[0]).is_file()
    assert not Path(targets[1]).exists()
    first = Path(targets[0]).read_bytes()
    worker({"source": np.array(sources[:1]), "target": np.array(targets[:1])})  # again: the same bytes
    assert Path(targets[0]).read_bytes() == first


def test_a_refused_job_is_not_what_its_neighbour_of_the_same_target_is(photos: Path, tmp_path: Path) -> None:
    worker = RestoreBatch(OPTIONS)
    target = str(tmp_path / "o.png")
    batch = {"source": [str(photos / "0.png"), str(photos / "2.png")], "target": [target, target]}
    rows = worker(batch | {"refusal": ["", "its output is that of 0.png too"]})
    assert list(rows["status"]) == ["restored", "failed"]
    assert "that of 0.png" in rows["reason"][1]
    assert [str(o.job.source) for o in rows["outcome"]] == batch["source"]


def test_command(cluster: Any, photos: Path, tmp_path: Path) -> None:
    """Three photos and the damaged file, which one worker restores: that several do is shown above."""
    from click.testing import CliRunner

    from clusir.cli.run import main

    for path in sorted(photos.rglob("?.png"), key=lambda path: path.name)[3:]:  # one of them is in a folder
        path.unlink()
    options = ["--model", str(MODEL), "--backend", "ort", "--threads", "1", "--json"]
    plain = CliRunner().invoke(main, [str(photos), "-o", str(tmp_path / "plain"), *options])
    on_ray = CliRunner().invoke(main, [str(photos), "-o", str(tmp_path / "ray"), *options, "--ray"])
    assert plain.exit_code == on_ray.exit_code == 1, on_ray.output  # bad.png
    assert _tree(tmp_path / "ray") == _tree(tmp_path / "plain")
    assert _entries(tmp_path / "ray") == _entries(tmp_path / "plain")
    summary = json.loads(on_ray.stdout.splitlines()[-1])["summary"]
    assert (summary["restored"], summary["failed"]) == (3, 1)
    refused = CliRunner().invoke(main, ["--ray", str(photos), "-o", str(tmp_path / "x")])
    assert refused.exit_code == 2
    assert "not an address" in refused.stderr
