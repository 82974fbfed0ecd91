"""What this machine has, and what of it this process may use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cgroup_limits", "cores", "cpus", "has_gpu", "peak_bytes", "physical_cores", "processor"]


def cpus() -> set[int]:
    """The numbers of those that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cores() -> int:
    """How many of these libraries take: OMP_NUM_THREADS may say fewer."""
    usable, limit = len(cpus()), os.environ.get("OMP_NUM_THREADS", "")
    return min(usable, int(limit)) if limit.isdigit() and int(limit) else usable


def physical_cores() -> int:
    """Cores that this process may use, hyper-threads counted once: a second thread on a core slows llama.cpp down."""
    siblings = (Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in cpus())
    return len({file.read_text() if file.exists() else str(file) for file in siblings})


def processor() -> tuple[str, frozenset[str]]:
    """The processor's name, and which of `bf16` it has; unknown outside Linux."""
    name, flags = "", frozenset[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return name, flags
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() == "flags":
            flags = frozenset({"bf16"} if {"avx512_bf16", "amx_bf16"} & set(value.split()) else ())
            break
    return name, flags


def has_gpu() -> bool:
    """Whether there is one that CUDA may use, as far as can be told without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible not in ("", "-1") and any(Path("/dev").glob("nvidia[0-9]*"))


def peak_bytes() -> int:
    """The most memory that this process has had; POSIX only."""
    import resource  # elsewhere there is none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cgroup_limits(root: Path = Path("/")) -> Iterator[Path]:
    """The files of the memory limits, in bytes, of the control groups that this process is in, of version 1 and 2."""
    try:
        memberships = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not on Linux
        return
    for membership in memberships:
        number, controllers, path = membership.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        top, name = ("", "memory.max") if number == "0" else ("memory", "memory.limit_in_bytes")
        folder = Path(path)
        for inner in (folder, *folder.parents):  # in a container the path is often that of the host, the files are not
            limit = root / "sys/fs/cgroup" / top / str(inner).lstrip("/") / name
            if limit.is_file() and limit.read_text(encoding="utf-8").strip() != "max":
                yield limit
