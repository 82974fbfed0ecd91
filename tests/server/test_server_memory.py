"""Memory is estimated before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.running_server import make_collection
from support.shell import Shell
from support.tiny_gguf import write_tiny

from ragfm.core.errors import ConfigError
from ragfm.server import memory_budget
from ragfm.server.memory_budget import check_memory, estimate_memory, free_memory
from ragfm.server.served_models import ServedModels
from ragfm.testing import ScriptedReader

TOKEN = 2 * 2 * 2 * (32 + 32)
"""Bytes that the tiny model keeps of a token: two bytes a number, two layers, two heads, a key and a value of 32."""


@pytest.fixture
def served(tmp_path: Path) -> ServedModels:
    folders = [(name, make_collection(tmp_path / name)) for name in "ab"]
    for name in "ab":
        (tmp_path / name / "ragfm.toml").write_text("[ask]\ncontext_tokens = 300\n")
    return ServedModels(
        folders, [("tiny", str(write_tiny(tmp_path / "tiny.gguf"))), ("script", ScriptedReader(["Yes."]))]
    )


def test_each_reader_counts_once_with_its_weights_and_slots(served: ServedModels, tmp_path: Path) -> None:
    parts = {name.split("/")[-1]: size for name, size in estimate_memory(served).items()}
    weights = (tmp_path / "tiny.gguf").stat().st_size
    assert parts["tiny.gguf"] == (weights + 300 * TOKEN, weights + 8 * 300 * TOKEN)
    views = tmp_path / "a" / "handbook" / "views"
    assert parts["the collection a"][0] == sum(file.stat().st_size for file in views.rglob("*") if file.is_file()) > 0
    assert set(parts) == {"the process", "tiny.gguf", "the collection a", "the collection b"}


def test_a_view_left_by_a_killed_process_does_not_count(served: ServedModels, tmp_path: Path) -> None:
    before = estimate_memory(served)
    (tmp_path / "a" / "handbook" / "views" / "9999999999.0123abcd.new").mkdir()
    assert estimate_memory(served) == before


def test_too_little_memory_is_refused_or_warned_of(
    served: ServedModels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    least, most = map(sum, zip(*estimate_memory(served).values(), strict=True))
    caplog.set_level("INFO", "ragfm.server")
    monkeypatch.setattr(memory_budget, "free_memory", lambda: most)
    check_memory(served)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert vars(caplog.records[0])["fields"]["together_mb"] == round(most / 1e6)
    monkeypatch.setattr(memory_budget, "free_memory", lambda: most - 1)
    check_memory(served)
    assert "`context_tokens` in [ask]" in caplog.records[-1].getMessage()
    monkeypatch.setattr(memory_budget, "free_memory", lambda: least - 1)
    with pytest.raises(ConfigError, match=r"MB are free, .*the reader .*tiny\.gguf"):
        check_memory(served)


def _machine(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_free_memory_is_limited_by_the_machine_and_its_control_groups(tmp_path: Path) -> None:
    meminfo = "MemTotal: 9000 kB\nMemAvailable:    5000 kB\n"
    assert free_memory(tmp_path / "nothing") is None
    assert free_memory(_machine(tmp_path / "plain", proc__meminfo=meminfo)) == 5_120_000
    second = _machine(
        tmp_path / "second",
        proc__meminfo=meminfo,
        proc__self__cgroup="0::/a/b\n",
        sys__fs__cgroup__a__memory_dot_max="3000000\n",
        sys__fs__cgroup__a__memory_dot_current="2500000\n",
        sys__fs__cgroup__a__memory_dot_stat="active_file 9\ninactive_file 700000\n",
        sys__fs__cgroup__a__b__memory_dot_max="max\n",
    )
    assert free_memory(second) == 3_000_000 - 1_800_000
    first = _machine(
        tmp_path / "first",
        proc__meminfo=meminfo,
        proc__self__cgroup="5:cpu,memory:/a\n",
        sys__fs__cgroup__memory__a__memory_dot_limit_in_bytes="3000000\n",
        sys__fs__cgroup__memory__a__memory_dot_usage_in_bytes="2500000\n",
        sys__fs__cgroup__memory__a__memory_dot_stat="inactive_file 1\ntotal_inactive_file 500000\n",
    )
    assert free_memory(first) == 1_000_000


def test_a_server_that_has_no_room_says_so_in_one_line(tmp_path: Path) -> None:
    make_collection(tmp_path)
    huge = write_tiny(tmp_path / "huge.gguf", context=2**31)
    (tmp_path / "ragfm.toml").write_text("[ask]\ncontext_tokens = 2000000000\n")
    failed = Shell(tmp_path)("serve", "-c", "handbook", "--reader", str(huge), "--no-auth", "--port", "0", code=1)
    said = failed.stderr.splitlines()
    assert said[0].startswith('{"time"')  # the estimate
    assert said[1].startswith("Error: The memory does not suffice: ")
    assert "give the reader fewer slots" in failed.stderr
