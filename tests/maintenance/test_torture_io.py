"""A failing or full disk: a typed error, an intact older generation, and a successful retry."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.shell import Shell
from support.torture import faults
from support.torture.fork_server import ForkServer
from support.torture.helpers import prose

from ragfm import Collection, Settings
from ragfm.core.errors import CollectionError
from ragfm.testing import HashingEmbedder

needs_strace = pytest.mark.skipif(not faults.has_strace(), reason="strace is not installed, or may not trace here")


@pytest.mark.slow
@needs_strace
def test_some_calls_of_a_commit_fail(fork_server: ForkServer, tmp_path: Path) -> None:
    done = faults.fail_calls(fork_server, tmp_path / "site", ("commit",), step=25)
    assert done["problems"] == []
    assert done["failures"]["CollectionError"] >= 3


@pytest.mark.slow
@needs_strace
@pytest.mark.parametrize("change", faults.CHANGES)
def test_many_calls_fail(fork_server: ForkServer, tmp_path: Path, change: str) -> None:
    done = faults.fail_calls(fork_server, tmp_path / "site", (change,), step=8)
    assert done["problems"] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def _grow(docs: Path, count: int) -> None:
    docs.mkdir(exist_ok=True)
    rng = random.Random(count)
    for number in range(count):
        (docs / f"{number}.txt").write_text(prose(rng, f"Number {number}", 60))


def _filled(disk: Path, leave: int) -> Path:
    """Fill the disk except for `leave` bytes."""
    filler = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler.write_bytes(bytes(max(0, free - leave)))
    return filler


@pytest.mark.parametrize("leave", [0, 300_000, 1_500_000])
def test_a_full_disk(small_disk: Path, tmp_path: Path, leave: int) -> None:
    embedder = HashingEmbedder(dim=256)
    collection = Collection.open(small_disk / "c", settings=Settings(), embedder=embedder)
    _grow(tmp_path / "docs", 10)
    collection.sync(tmp_path / "docs")
    # By vectors only, since more documents change BM25 scores.
    before = [hit.text for hit in collection.search("number 3", k=20, mode="dense")]
    filler = _filled(small_disk, leave)
    (tmp_path / "kept").mkdir()
    _grow(tmp_path / "more", 60)
    with pytest.raises(CollectionError, match=r"full|[Nn]o space"):
        collection.sync(tmp_path / "more")
    for handle in (collection, Collection.open(small_disk / "c", settings=Settings(), embedder=embedder)):
        hits = handle.search("number 3", k=20, mode="dense", filter=f"source = {tmp_path / 'docs'}")
        assert [hit.text for hit in hits] == before
        found = {info.uri for info in handle.documents()}
        assert {f"{tmp_path / 'docs'}/{number}.txt" for number in range(10)} <= found
    filler.unlink()
    collection.sync(tmp_path / "more")
    assert len(collection.documents()) == 70


def test_a_full_disk_on_the_command_line(small_disk: Path, tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    _grow(tmp_path / "docs", 5)
    shell("ingest", "docs", "-c", small_disk / "c")
    before = shell.json("search", "number 3", "-c", small_disk / "c")["hits"]
    filler = _filled(small_disk, 100_000)
    _grow(tmp_path / "docs", 80)
    done = shell("ingest", "docs", "-c", small_disk / "c", code=1)
    assert len(done.stderr.strip().splitlines()) == 1
    assert "full" in done.stderr or "o space" in done.stderr
    assert shell.json("search", "number 3", "-c", small_disk / "c")["hits"] == before
    filler.unlink()
    assert shell.json("ingest", "docs", "-c", small_disk / "c")["added"] >= 75
    shutil.rmtree(small_disk / "c")
