"""Limits that control groups set."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ragfm.models import hardware
from ragfm.models.hardware import cgroup_memory_limits, compute_threads, cpu_quota, limit_torch_threads, physical_cores


@pytest.mark.parametrize(
    ("membership", "files", "limits"),
    [
        ("0::/app/web", {"app/web/memory.max": "max", "app/memory.max": "4096", "memory.max": "8192"}, [4096, 8192]),
        ("0::/of/the/host", {"memory.max": "4096\n"}, [4096]),
        ("5:cpu:/a\n4:memory:/a", {"memory/a/memory.limit_in_bytes": "12288", "cpu/a/memory.max": "1"}, [12288]),
        ("4:cpu,memory:/", {"memory/memory.limit_in_bytes": "12288"}, [12288]),
        ("0::/", {}, []),
    ],
)
def test_limits_of_control_groups_are_honoured(
    tmp_path: Path, membership: str, files: dict[str, str], limits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_control_groups(tmp_path, membership, files)
    found = list(cgroup_memory_limits(tmp_path))
    assert [int(file.read_text()) for file in found] == limits
    monkeypatch.setattr(hardware, "cgroup_memory_limits", lambda: found)
    if limits:
        assert hardware.memory_limit_bytes() == limits[0]


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/app/web", {"app/web/cpu.max": "max 100000", "app/cpu.max": "400000 100000"}, 4.0),
        ("4:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "200000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 2.0),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("4:memory:/", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("0::/", {}, math.inf),
    ],
)
def test_processors_of_control_groups_are_honoured(
    tmp_path: Path, membership: str, files: dict[str, str], quota: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_control_groups(tmp_path, membership, files)
    assert cpu_quota(tmp_path) == quota
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for count in (physical_cores, compute_threads):
        cores = count()
        for allowed, threads in ((0.5, 1), (1.0, 1), (1.5, 2), (math.inf, cores)):
            with monkeypatch.context() as within:
                within.setattr(hardware, "cpu_quota", lambda allowed=allowed: allowed)
                assert count() == min(threads, cores)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert compute_threads() == 1


def test_torch_heeds_the_quota_of_control_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        monkeypatch.setattr(hardware, "cpu_count", lambda: 3)
        limit_torch_threads()
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
        monkeypatch.setattr(hardware, "cpu_count", lambda: 8)
        limit_torch_threads()  # never more than OMP_NUM_THREADS, or what the user has set
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def write_control_groups(root: Path, membership: str, files: dict[str, str]) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership + "\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_without_control_groups_there_are_no_limits(tmp_path: Path) -> None:
    assert list(cgroup_memory_limits(tmp_path)) == []
    assert cpu_quota(tmp_path) == math.inf
