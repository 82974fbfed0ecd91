"""A failing or full disk: a typed error, an intact older generation, and a successful retry."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.shell import Shell
from support.torture import faults
from support.torture.fork_server import ForkServer
from support.torture.full_disk import fill, full_disk, small_disk
from support.torture.helpers import prose

from ragfm import Collection, Settings
from ragfm.core.errors import AccessDeniedError, DiskFullError
from ragfm.testing import HashingEmbedder

needs_strace = pytest.mark.skipif(not faults.has_strace(), reason="strace is not installed, or may not trace here")


@pytest.mark.slow
@needs_strace
@pytest.mark.parametrize("change", faults.CHANGES)
def test_many_calls_fail(fork_server: ForkServer, tmp_path: Path, change: str) -> None:
    # An odd step, since every second trial is a full disk, and the others an I/O error.
    done = faults.fail_calls(fork_server, tmp_path / "site", (change,), step=41)
    assert done["problems"] == []
    assert change != "commit" or done["failures"]["DiskFullError"] >= 2


@pytest.mark.slow
def test_changes_on_a_full_disk(fork_server: ForkServer, tmp_path: Path) -> None:
    try:
        done = full_disk(fork_server, tmp_path / "site", ("commit", "upload", "backup"), (0, 98_304))
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    assert done["problems"] == []
    assert sum(counts["DiskFullError"] for counts in done["outcomes"].values()) >= 3


@pytest.fixture(name="small_disk")
def mounted_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    with ExitStack() as mounts:
        try:
            mounts.enter_context(small_disk(place))
        except OSError as error:
            pytest.skip(f"no file system can be mounted here: {error}")
        yield place


def _grow(docs: Path, count: int) -> None:
    docs.mkdir(exist_ok=True)
    rng = random.Random(count)
    for number in range(count):
        (docs / f"{number}.txt").write_text(prose(rng, f"Number {number}", 60))


@pytest.mark.parametrize("leave", [0, 300_000, 1_500_000])
def test_a_full_disk(small_disk: Path, tmp_path: Path, leave: int) -> None:
    embedder = HashingEmbedder(dim=256)
    collection = Collection.open(small_disk / "c", settings=Settings(), embedder=embedder)
    _grow(tmp_path / "docs", 10)
    collection.sync(tmp_path / "docs")
    # By vectors only, since more documents change BM25 scores.
    before = [hit.text for hit in collection.search("number 3", k=20, mode="dense")]
    filler = fill(small_disk, leave)
    (tmp_path / "kept").mkdir()
    _grow(tmp_path / "more", 60)
    with pytest.raises(DiskFullError, match="No space left"):
        collection.sync(tmp_path / "more")
    for handle in (collection, Collection.open(small_disk / "c", settings=Settings(), embedder=embedder)):
        hits = handle.search("number 3", k=20, mode="dense", filter=f"source = {tmp_path / 'docs'}")
        assert [hit.text for hit in hits] == before
        found = {info.uri for info in handle.documents()}
        assert {f"{tmp_path / 'docs'}/{number}.txt" for number in range(10)} <= found
    filler.unlink()
    collection.sync(tmp_path / "more")
    assert len(collection.documents()) == 70


@pytest.mark.parametrize("leave", [0, 16_384, 200_000])
def test_a_backup_to_a_full_disk_says_so(small_disk: Path, tmp_path: Path, leave: int) -> None:
    with Collection.open(tmp_path / "c", settings=Settings(), embedder=HashingEmbedder(dim=256)) as collection:
        _grow(tmp_path / "docs", 60)
        collection.sync(tmp_path / "docs")
        filler = fill(small_disk, leave)
        with pytest.raises(DiskFullError, match="No space left"):
            collection.backup(small_disk / "backup")
        assert [path.name for path in small_disk.iterdir()] == ["filler"]
        filler.unlink()
        assert collection.backup(small_disk / "backup").documents == 60


def test_a_backup_to_a_read_only_disk_says_so(small_disk: Path, tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", settings=Settings(), embedder=HashingEmbedder()) as collection:
        _grow(tmp_path / "docs", 1)
        collection.sync(tmp_path / "docs")
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        with pytest.raises(AccessDeniedError, match="Read-only"):
            collection.backup(small_disk / "backup")


def test_verify_on_a_full_disk_finds_no_damage(small_disk: Path, tmp_path: Path) -> None:
    with Collection.open(small_disk / "c", settings=Settings(), embedder=HashingEmbedder()) as collection:
        _grow(tmp_path / "docs", 10)
        collection.sync(tmp_path / "docs")
    fill(small_disk, 0)
    with contextlib.suppress(DiskFullError):  # SQLite cannot always create the files that readers share
        assert collection.verify().findings == ()


@pytest.mark.slow
def test_a_full_disk_on_the_command_line(small_disk: Path, tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    _grow(tmp_path / "docs", 5)
    shell("ingest", "docs", "-c", small_disk / "c")
    before = shell.json("search", "number 3", "-c", small_disk / "c")["hits"]
    filler = fill(small_disk, 100_000)
    _grow(tmp_path / "docs", 80)
    done = shell("ingest", "docs", "-c", small_disk / "c", code=1)
    assert len(done.stderr.strip().splitlines()) == 1
    assert "full" in done.stderr or "o space" in done.stderr
    assert shell.json("search", "number 3", "-c", small_disk / "c")["hits"] == before
    filler.unlink()
    assert shell.json("ingest", "docs", "-c", small_disk / "c")["added"] >= 75
    shutil.rmtree(small_disk / "c")
