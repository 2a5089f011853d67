"""Memory and cores by machine and control group: trees of both versions as the kernel shows them."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from clusir.runtimes.machine import allowed
from clusir.runtimes.machine.allowed import cores, free_bytes, held_bytes, memory_bytes, resident_bytes, thread_limit

NO_LIMIT = "9223372036854771712"


def kernel(root: Path, groups: str, mounts: list[tuple[str, str, str, str]], files: dict[str, str]) -> Path:
    """A /proc/self and control group folders below ``root``; a mount is (root, folder, type, options)."""
    proc = root / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(groups)
    lines = [
        f"{30 + i} 25 0:{i} {inside} {root}/{folder} rw,nosuid shared:{i} - {kind} {kind} {options}"
        for i, (inside, folder, kind, options) in enumerate(mounts)
    ]
    (proc / "mountinfo").write_text("\n".join(["25 1 8:1 / / rw - ext4 /dev/sda rw", *lines, "nonsense", ""]))
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return proc


V1 = [("/", "mem", "cgroup", "rw,memory"), ("/", "cpu", "cgroup", "rw,cpu,cpuacct"), ("/", "uni", "cgroup2", "rw")]
V1_GROUPS = "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/docker/abc\n"


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "memory_mb"),
    [
        (V1_GROUPS, V1, {"mem/docker/abc/memory.limit_in_bytes": str(300 << 20)}, 300),
        (V1_GROUPS, V1, {"mem/docker/memory.limit_in_bytes": str(200 << 20)}, 200),  # the group above
        (V1_GROUPS, V1, {"mem/docker/abc/memory.limit_in_bytes": NO_LIMIT}, None),
        (
            V1_GROUPS,
            V1,
            {"mem/docker/abc/memory.stat": f"cache 1\nhierarchical_memory_limit {100 << 20}\ntotal_cache 5"},
            100,
        ),
        # A container without a namespace of its own: its full path, and only its own part mounted.
        (
            V1_GROUPS,
            [("/docker/abc", "mem", "cgroup", "rw,memory")],
            {"mem/memory.limit_in_bytes": str(256 << 20)},
            256,
        ),
        (V1_GROUPS, [("/other", "mem", "cgroup", "rw,memory")], {"mem/memory.limit_in_bytes": str(1 << 28)}, 256),
        ("0::/\n", [("/", "uni", "cgroup2", "rw")], {"uni/memory.max": str(512 << 20)}, 512),
        ("0::/a\n", [("/", "uni", "cgroup2", "rw")], {"uni/a/memory.max": "max", "uni/memory.max": "104857600"}, 100),
        ("0::/a/b\n", [("/", "uni", "cgroup2", "rw")], {"uni/a/b/memory.high": str(50 << 20)}, 50),
        ("0::/../../x\n", [("/", "uni", "cgroup2", "rw")], {"uni/memory.max": str(64 << 20)}, 64),
        ("", [], {}, None),
        ("0::/\n", [("/", "uni", "cgroup2", "rw")], {"uni/memory.max": "rubbish"}, None),
    ],
)  # fmt: skip
def test_memory_is_the_least_of_all_limits(
    tmp_path: Path, groups: str, mounts: list[tuple[str, str, str, str]], files: dict[str, str], memory_mb: int | None
) -> None:
    found = memory_bytes(kernel(tmp_path, groups, mounts, files))
    assert found == (psutil.virtual_memory().total if memory_mb is None else memory_mb << 20)


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "left_mb"),
    [
        (
            "0::/a\n",
            [("/", "uni", "cgroup2", "rw")],
            {"uni/a/memory.max": str(50 << 20), "uni/a/memory.current": str(20 << 20)},
            30,
        ),
        (
            "0::/a\n",
            [("/", "uni", "cgroup2", "rw")],
            {"uni/memory.high": str(40 << 20), "uni/memory.max": str(50 << 20), "uni/memory.current": str(39 << 20),
             "uni/memory.stat": f"anon 5\ninactive_file {9 << 20}\nactive_file 3"},
            10,
        ),
        ("0::/a\n", [("/", "uni", "cgroup2", "rw")], {"uni/a/memory.max": "1000", "uni/a/memory.current": "2000"}, 0),
        ("0::/a\n", [("/", "uni", "cgroup2", "rw")], {"uni/a/memory.max": "max", "uni/a/memory.current": "2000"}, None),
        (
            V1_GROUPS,
            V1,
            {"mem/docker/memory.limit_in_bytes": str(60 << 20), "mem/docker/memory.usage_in_bytes": str(59 << 20)},
            1,
        ),
    ],
)  # fmt: skip
def test_what_is_left_is_the_least_that_any_group_leaves(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    groups: str,
    mounts: list[tuple[str, str, str, str]],
    files: dict[str, str],
    left_mb: int | None,
) -> None:
    machine = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    assert free_bytes(kernel(tmp_path, groups, mounts, files)) == (
        machine.available if left_mb is None else left_mb << 20
    )


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu/docker/abc/cpu.cfs_quota_us": "50000", "cpu/docker/abc/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/docker/cpu.cfs_quota_us": "250000", "cpu/docker/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/docker/abc/cpu.cfs_quota_us": "-1", "cpu/docker/abc/cpu.cfs_period_us": "100000"}, None),
        ({"uni/docker/abc/cpu.max": "150000 100000"}, 2),
        ({"uni/docker/abc/cpu.max": "max 100000"}, None),
        ({"uni/docker/abc/cpu.max": "900000 100000"}, None),  # more than there are
        ({"uni/docker/abc/cpu.max": ""}, None),
        ({"uni/docker/abc/cpu.max": "1 0"}, None),
    ],
)
def test_threads_are_what_the_share_of_time_is_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], limit: int | None
) -> None:
    monkeypatch.setattr(allowed, "_affinity", lambda: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    proc = kernel(tmp_path, V1_GROUPS, V1, files)
    assert thread_limit(proc) == limit
    assert cores(proc) == (limit or 8)


@pytest.mark.parametrize(("quota", "limit"), [("max", 2), ("300000", 2), ("100000", 1)])
def test_threads_are_no_more_than_the_cores_that_the_process_is_bound_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, limit: int
) -> None:
    """ONNX Runtime counts the machine's cores: bound to one of two, its two threads waited for each other."""
    monkeypatch.setattr(allowed, "_affinity", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    proc = kernel(tmp_path, V1_GROUPS, V1, {"uni/docker/abc/cpu.max": f"{quota} 100000"})
    assert thread_limit(proc) == cores(proc) == limit


def test_a_mount_with_a_space_in_its_name(tmp_path: Path) -> None:
    proc = kernel(tmp_path, "0::/\n", [], {"a b/memory.max": str(77 << 20)})
    (proc / "mountinfo").write_text(f"30 25 0:1 / {tmp_path}/a\\040b rw - cgroup2 cgroup2 rw\n")
    assert memory_bytes(proc) == 77 << 20


def test_pages_of_files_are_not_held(tmp_path: Path) -> None:
    (tmp_path / "status").write_text(
        "VmRSS:\t 900 kB\nRssAnon:\t 50 kB\nRssFile:\t 845 kB\nRssShmem:\t 5 kB\nVmSwap:\t 7 kB\n"
    )
    assert held_bytes(tmp_path) == 62 << 10
    assert held_bytes(tmp_path / "none") > 1 << 20, "another system: what is resident"


def test_this_process() -> None:
    assert 0 < resident_bytes() < memory_bytes()
    assert 1 <= cores() <= (os.cpu_count() or 1)
