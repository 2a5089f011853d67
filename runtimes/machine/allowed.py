"""What this process may use: memory and cores of the machine, and of every control group (container) that it is in."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cores", "free_bytes", "held_bytes", "memory_bytes", "resident_bytes", "thread_limit"]

_PROC = Path("/proc/self")


def memory_bytes(proc: Path = _PROC) -> int:
    """Bytes of memory: the least of the machine's and the limits of its control groups (versions 1 and 2)."""
    limits = [_physical_bytes()]
    for folder in _groups("memory", proc):
        for name in ("memory.limit_in_bytes", "memory.max", "memory.high"):
            text = _read(folder / name).strip()
            if text.isdigit():
                limits.append(int(text))
        # Version 1 says here what the groups above allow, which a container does not see.
        above = re.search(r"^hierarchical_memory_limit (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
        if above:
            limits.append(int(above[1]))
    return min(limits)


def free_bytes(proc: Path = _PROC) -> int:
    """Bytes that may still be taken: the least of what the machine has available and of what each control group
    (versions 1 and 2) has left below its limit; files that it only keeps to read them again count as left."""
    import psutil

    left = [int(psutil.virtual_memory().available)]
    for folder in _groups("memory", proc):
        for limits, usage in (
            (("memory.limit_in_bytes",), "memory.usage_in_bytes"),
            (("memory.max", "memory.high"), "memory.current"),
        ):
            used = _read(folder / usage).strip()
            bounds = [int(text) for name in limits if (text := _read(folder / name).strip()).isdigit()]
            if bounds and used.isdigit():
                kept = re.search(r"^(?:total_)?inactive_file (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
                left.append(max(0, min(bounds) - int(used) + (int(kept[1]) if kept else 0)))
    return min(left)


def thread_limit(proc: Path = _PROC) -> int | None:
    """How many threads the control groups' share of processor time is worth, or the cores that this process is bound
    to (``taskset``), at least 1; None where neither is fewer than the machine has: runtimes count its cores alone."""
    quotas = []
    for folder in _groups("cpu", proc):
        quota = _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()
        for used, period in (quota, [*_read(folder / "cpu.max").split(), "", ""][:2]):
            if used.isdigit() and period.isdigit() and int(period) > 0:
                quotas.append(int(used) / int(period))
    bound = _affinity()
    allowed = max(1, math.ceil(min(quotas))) if quotas else bound
    if allowed < bound:
        return allowed
    return bound if bound < (os.cpu_count() or 1) else None


def cores(proc: Path = _PROC) -> int:
    """CPUs that this process may keep busy: by affinity, and by the control groups' share of processor time."""
    return thread_limit(proc) or _affinity()


def resident_bytes() -> int:
    """What this process holds in memory now, by the operating system's count."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def held_bytes(proc: Path = _PROC) -> int:
    """What this process holds that no file holds as well. Linux drops pages of files, such as a library's, whenever it
    needs room, and reads them again: what is resident changes by hundreds of megabytes under load, and this does not.
    Elsewhere what is resident."""
    kept = re.findall(r"^(?:RssAnon|RssShmem|VmSwap):\s+(\d+) kB$", _read(proc / "status"), re.MULTILINE)
    return sum(map(int, kept)) << 10 if kept else resident_bytes()


def _physical_bytes() -> int:
    """Of the machine. POSIX tells it to the standard library; to import psutil takes longer than to decode a photo."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        import psutil

        return int(psutil.virtual_memory().total)


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _groups(controller: str, proc: Path) -> Iterator[Path]:
    """The folders of this process's own control group and of those above it, as far as they are mounted here."""
    groups = {}
    for line in _read(proc / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, group = rest.partition(":")
        if controller in names.split(",") or (number == "0" and not names):
            groups["cgroup" if names else "cgroup2"] = group
    for line in _read(proc / "mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in groups:
            continue
        if kind[0] == "cgroup" and controller not in kind[2].split(","):
            continue
        root, mount = (_unescaped(text) for text in fields[3:5])
        group = groups[kind[0]]
        # Without a namespace of its own a container sees its group's full path, and only its own part mounted.
        below = group.removeprefix(root.rstrip("/")) if f"{group}/".startswith(f"{root.rstrip('/')}/") else ""
        parts = [part for part in below.split("/") if part not in ("", "..")]
        yield from (Path(mount, *parts[:count]) for count in range(len(parts), -1, -1))


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
