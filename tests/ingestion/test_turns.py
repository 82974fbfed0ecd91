"""Turns: a sync in slices, in which each owner of documents gets a share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ragfm import Collection
from ragfm.core.types import Ref
from ragfm.ingestion.sources import sync_in_turns
from ragfm.ingestion.turns import Turns
from ragfm.store.sqlite_database import write_lock


def _owner(path: str) -> str:
    return path.partition("-")[0]


def _write(docs: Path, owner: str, *numbers: int) -> None:
    docs.mkdir(exist_ok=True)
    for number in numbers:
        _write_file(docs / f"{owner}-{number:03}.txt", f"The {owner} has number {number}.".encode())


def _write_file(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    os.utime(path, (10**9, 10**9))  # a file that has just changed is read a second time


def test_owners_take_turns_and_who_waits_longest_is_first() -> None:
    turns = Turns(_owner, seconds=None, max_documents=3)
    refs = [Ref(f"a-{number}", "1") for number in range(5)] + [Ref("b-0", "1"), Ref("b-1", "1")]
    first = turns.begin_slice(refs)
    assert [ref.path for ref in first] == ["a-0", "b-0", "a-1", "b-1", "a-2", "a-3", "a-4"]
    assert [turns.take(ref) for ref in first] == [True] * 3 + [False] * 4
    assert [turns.has_taken(ref) for ref in first] == [True] * 3 + [False] * 4
    assert [ref.path for ref in turns.postponed] == ["b-1", "a-2", "a-3", "a-4"]
    rest = turns.begin_slice([*first[3:], Ref("c-0", "1")])
    assert [ref.path for ref in rest] == ["c-0", "b-1", "a-2", "a-3", "a-4"]
    assert turns.take(rest[0])
    turns.count(10**6)  # a large document fills its slice
    assert not turns.take(rest[1])


def test_slices_follow_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("ragfm.ingestion.turns.monotonic", lambda: now)
    turns, sizes = Turns(_owner, seconds=2.0, max_documents=16), list[int]()
    for seconds in (1.0, 1.0, 0.1, 4.0, 100.0, 2.0):
        sizes.append(sum(turns.take(ref) for ref in turns.begin_slice(Ref(f"a-{n}", "1") for n in range(10_000))))
        now += seconds
    assert sizes == [16, 32, 64, 128, 64, 32]


def test_a_sync_in_turns_ends_with_the_same_collection(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    _write(docs, "a", *range(40))
    _write(docs, "b", *range(5))
    _write_file(docs / "a-empty.txt", b"")
    _write_file(docs / "a-broken.pdf", b"%PDF-1.4 nothing")
    sliced, whole = (Collection.open(tmp_path / name, embedder="hashing") for name in ("sliced", "whole"))
    whole.sync(docs, name="u")
    turns = Turns(_owner, seconds=None, max_documents=10)
    reports = list(sync_in_turns(sliced.store, docs, turns, name="u"))
    assert sum(report.added for report in reports) == 45
    assert (len(reports), turns.postponed) == (5, [])
    assert [info.uri for info in sliced.documents()] == [info.uri for info in whole.documents()]
    assert [failure.uri for failure in reports[-1].failed] == ["u/a-broken.pdf"]
    assert [skip.uri for skip in reports[-1].skipped] == ["u/a-empty.txt"]
    (docs / "a-000.txt").unlink()
    _write(docs, "a", *range(50, 75))
    (last,) = [report for report in sync_in_turns(sliced.store, docs, turns, name="u") if report.removed]
    assert last.removed == 1  # in the first slice, although not everything is indexed yet
    assert len(sliced.documents()) == 45 - 1 + 25


def test_documents_added_between_slices_join_the_next_slice(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    _write(docs, "heavy", *range(60))
    collection = Collection.open(tmp_path / "c", embedder="hashing")
    slices = sync_in_turns(collection.store, docs, Turns(_owner, seconds=None, max_documents=5), name="u")
    next(slices)
    with write_lock(tmp_path / "c"):  # another process may write now
        _write(docs, "light", 1)
    next(slices)
    assert "u/light-001.txt" in [info.uri for info in collection.documents()]
    assert len(collection.documents()) == 10
    assert collection.search("light number", 1)[0].uri == "u/light-001.txt"


def test_postponed_documents_keep_their_failures(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    _write_file(docs / "a-broken.pdf", b"%PDF-1.4 nothing")
    collection = Collection.open(tmp_path / "c", embedder="hashing")
    (report,) = sync_in_turns(collection.store, docs, Turns(_owner), name="u")
    assert report.failed[0].attempts == 1
    _write(docs, "b", *range(9))
    reports = list(sync_in_turns(collection.store, docs, Turns(_owner, seconds=None, max_documents=2), name="u"))
    assert len(reports) > 3
    assert all([failure.uri for failure in report.failed] == ["u/a-broken.pdf"] for report in reports)
    assert collection.status().failed[0].attempts == 2  # a run tries it once, not in each of its slices


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives_are_read_in_turn(tmp_path: Path, kind: str) -> None:
    docs = tmp_path / "docs"
    for owner in ("a", "b"):
        _write(tmp_path / owner, owner, *range(20))
        archive = shutil.make_archive(str(docs / f"{owner}-all"), kind.replace("tar.gz", "gztar"), tmp_path / owner)
        os.utime(archive, (1e9, 1e9))  # the revision of a file that has just been written changes once
    collection = Collection.open(tmp_path / "c", embedder="hashing")
    slices = sync_in_turns(collection.store, docs, Turns(_owner, seconds=None, max_documents=10), name="u")
    next(slices)
    assert [info.uri[:3] for info in collection.documents()] == ["u/a"] * 5 + ["u/b"] * 5
    assert len(list(slices)) == 3
    assert len(collection.documents()) == 40
