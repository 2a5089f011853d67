"""Ten networks of other people's kinds on runtimes of phones: what is written is right; nothing else is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clusir.export.formats.hosts.registry import TARGETS
from tests import needs
from tests.bench.phones.brought import graph, run
from tests.bench.phones.networks import NETWORKS


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported graphs, each made once."""
    return tmp_path_factory.mktemp("brought")


@needs.FULL
@pytest.mark.parametrize("host", ["coreml", "litert", "mnn", "ncnn"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_another_kind_runs_right(files: Path, name: str, host: str) -> None:
    target = TARGETS[host]()
    if not os.environ.get(f"CLUSIR_{host.upper()}"):
        needs.skip(host)
    found = run(graph(name, files), target).findings
    assert {finding.via for finding in found} == {host}
    compared = [finding for finding in found if finding.agreement is not None]
    assert len(compared) >= (0 if host == "coreml" else 2)  # Core ML's program is compared before it is written
    assert all(finding.agreement.ok for finding in compared if finding.agreement is not None)
