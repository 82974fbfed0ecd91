"""The processors, GPUs and memory that this process may use."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def usable_cpus() -> set[int]:
    """Numbers of the CPUs that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cpu_count() -> int:
    """Number of CPUs that this process may use at a time: no more than `cpu_quota`, rounded up."""
    return math.ceil(min(len(usable_cpus()), cpu_quota()))


def compute_threads() -> int:
    """Number of threads that a library computes with: `cpu_count`, or OMP_NUM_THREADS if that is lower."""
    count, limit = cpu_count(), os.environ.get("OMP_NUM_THREADS", "")
    return min(count, int(limit)) if limit.isdigit() and int(limit) else count


def limit_torch_threads() -> None:
    """Make torch use at most `cpu_count` threads, from this thread and from later ones: it knows no CPU quotas.

    With more threads than the quota allows, each operation waits until the quota of the next period.
    """
    import torch

    if torch.get_num_threads() > cpu_count():
        torch.set_num_threads(cpu_count())


def physical_cores() -> int:
    """Number of usable cores, counting hyper-threads once: a second thread on a core slows llama.cpp down.

    No more than `cpu_quota`, rounded up.
    """
    siblings = (Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in usable_cpus())
    cores = len({file.read_text() if file.exists() else str(file) for file in siblings})
    return math.ceil(min(cores, cpu_quota()))


def cpu_quota(root: Path = Path("/")) -> float:
    """CPUs that control groups let this process use at a time, such as 1.5 after `docker run --cpus 1.5`.

    Infinite without a limit.
    """
    quotas = [math.inf]
    for file in _cgroup_files(root, "cpu", "cpu.max", "cpu.cfs_quota_us"):
        quota, *period = file.read_text(encoding="utf-8").split()
        if quota not in ("max", "-1"):
            in_v1 = file.with_name("cpu.cfs_period_us")
            quotas.append(int(quota) / int(period[0] if period else in_v1.read_text(encoding="utf-8")))
    return min(quotas)


class FreeCpus:
    """Number of usable CPUs that other processes leave free, on average since the last call. Infinite outside Linux.

    The first number is at least the CPUs that no other thread wants at this moment: what used them until then may have
    been the helper processes of a model that was just loaded. `root` is the folder of `proc`.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._free, self._root = math.inf, root
        self._since, self._start = time.monotonic(), self._used()

    def __call__(self) -> float:
        """The number, which may be fractional. A call within a quarter of a second repeats the last one."""
        seconds = time.monotonic() - self._since
        if seconds > _SECONDS_TO_MEASURE and (used := self._used()) and self._start:
            by_all, by_this = (after - before for before, after in zip(self._start, used, strict=True))
            free = len(usable_cpus()) - max(0.0, by_all - by_this) / seconds
            if math.isinf(self._free):  # CPUs for which no thread is running or waiting now, apart from the calling one
                with suppress(OSError, ValueError, IndexError):
                    load = (self._root / "proc/loadavg").read_text(encoding="utf-8").split()[3]
                    free = max(free, len(usable_cpus()) - max(0, int(load.partition("/")[0]) - 1))
            self._free = free
            self._since, self._start = self._since + seconds, used
        return self._free

    def _used(self) -> tuple[float, float] | None:
        """CPU seconds that all processes, and this one, have used so far."""
        try:
            lines = (self._root / "proc/stat").read_text(encoding="utf-8").splitlines()
        except OSError:
            return None
        names, ticks = {f"cpu{cpu}" for cpu in usable_cpus()}, 0
        for name, *columns in map(str.split, lines):
            if name in names:
                user, nice, system, _idle, _waiting, interrupts, soft, stolen = map(int, columns[:8])
                ticks += user + nice + system + interrupts + soft + stolen
        return ticks / os.sysconf("SC_CLK_TCK"), time.process_time()


_SECONDS_TO_MEASURE = 0.25
"""The system counts in hundredths of a second."""


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16. False outside Linux."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return not {"avx512_bf16", "amx_bf16"}.isdisjoint(line.split())
    return False


def has_gpu() -> bool:
    """Whether a CUDA GPU appears to be available. Does not import torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible not in ("", "-1") and any(Path("/dev").glob("nvidia[0-9]*"))


def peak_memory_bytes() -> int:
    """Peak resident memory of this process. POSIX only."""
    import resource  # does not exist on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_limit_bytes() -> int:
    """Memory that this process may use: the machine's, or the lowest limit of its control groups. POSIX only."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *(int(file.read_text(encoding="utf-8")) for file in cgroup_memory_limits())])


def cgroup_memory_limits(root: Path = Path("/")) -> Iterator[Path]:
    """Files with the memory limits, in bytes, of this process's control groups."""
    for limit in _cgroup_files(root, "memory", "memory.max", "memory.limit_in_bytes"):
        if limit.read_text(encoding="utf-8").strip() != "max":
            yield limit


def _cgroup_files(root: Path, controller: str, name: str, name_in_v1: str) -> Iterator[Path]:
    """Files of a controller in this process's control groups and their parents, of version 2 and of version 1."""
    try:
        memberships = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not on Linux
        return
    for membership in memberships:
        number, controllers, path = membership.split(":", 2)
        if number != "0" and controller not in controllers.split(","):
            continue
        top, file_name = ("", name) if number == "0" else (controller, name_in_v1)
        folder = Path(path)
        # In a container, the path is often the host's while the files are the container's: try its parents, too.
        for parent in (folder, *folder.parents):
            file = root / "sys/fs/cgroup" / top / str(parent).lstrip("/") / file_name
            if file.is_file():
                yield file
