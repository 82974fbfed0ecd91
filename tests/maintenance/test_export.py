"""Export: all documents of one generation that the handle may see."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragfm import Collection
from ragfm.core.errors import CollectionError, DamagedCollectionError, FilterError
from ragfm.core.progress import Progress
from ragfm.store.sqlite_file import CATALOG_FILE
from ragfm.testing import HashingEmbedder

pytestmark = pytest.mark.both_databases


@pytest.fixture
def filled(collection: Collection, docs: Path) -> Collection:
    (docs / "grüße.txt").write_text("Grüße aus Köln, 你好.\u2028Ende.")
    collection.sync(docs, tags={"year": 2026, "draft": False})
    return collection


def _lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.decode().split("\n")[:-1]]


def test_all_documents_are_exported_in_order(filled: Collection, tmp_path: Path) -> None:
    report = filled.export(tmp_path / "out.jsonl")
    rows = _lines((tmp_path / "out.jsonl").read_bytes())
    infos = filled.documents()
    assert (report.documents, report.chunks, report.generation) == (5, filled.status().chunks, 1)
    assert [row["uri"] for row in rows] == [info.uri for info in infos]
    for row, info in zip(rows, infos, strict=True):
        assert set(row) == {"uri", "source", "media_type", "metadata", "text", "chunks"}
        assert row["text"] == filled.document(info.uri).text
        assert (row["source"], row["media_type"], row["metadata"]) == (info.source, info.media_type, info.metadata)
        assert len(row["chunks"]) == info.chunks
    hits = {
        hit.chunk_id: (hit.start, hit.end, hit.page, hit.place, list(hit.headings), hit.context)
        for hit in filled.search("days", k=99)
    }
    exported = {
        chunk["chunk_id"]: tuple(chunk[key] for key in ("start", "end", "page", "place", "headings", "context"))
        for row in rows
        for chunk in row["chunks"]
    }
    assert exported == hits
    assert not list(tmp_path.glob("*.new"))


def test_exported_vectors_are_identical(filled: Collection, tmp_path: Path) -> None:
    catalog = filled._store.catalog
    ids, vectors = catalog.chunk_vectors(catalog.at())
    expected = {int(at): vector for at, vector in zip(ids, vectors, strict=True)}
    filled.export(tmp_path / "out.jsonl", vectors=True)
    rows = _lines((tmp_path / "out.jsonl").read_bytes())
    found = {c["chunk_id"]: np.array(c["vector"], dtype=np.float32) for row in rows for c in row["chunks"]}
    assert found.keys() == expected.keys()
    assert all((found[at] == expected[at]).all() for at in found)


def test_filter_and_groups_apply(filled: Collection, docs: Path, tmp_path: Path) -> None:
    board = tmp_path / "board"
    board.mkdir()
    (board / "salaries.txt").write_text("Salaries.")
    filled.sync(board, allow=["board"])

    def uris(collection: Collection, **options: Any) -> set[str]:
        file = io.BytesIO()
        collection.export(file, **options)
        return {row["uri"] for row in _lines(file.getvalue())}

    assert "board/salaries.txt" in uris(filled)
    assert "board/salaries.txt" in uris(filled.as_groups({"board"}))
    assert uris(filled.as_groups(set())) == uris(filled) - {"board/salaries.txt"}
    assert uris(filled, filter="uri = board/salaries.txt") == {"board/salaries.txt"}
    assert uris(filled.as_groups(set()), filter="uri = board/salaries.txt") == set()
    with pytest.raises(FilterError):
        filled.export(io.BytesIO(), filter="(")


def test_export_of_one_generation_during_commits_and_compaction(filled: Collection, docs: Path) -> None:
    """Another process replaces, removes and compacts between two documents."""
    script = (
        "from ragfm import Collection, Settings\nfrom ragfm.testing import HashingEmbedder\n"
        f"c = Collection.open({filled.location!r}, settings=Settings(), embedder=HashingEmbedder())\n"
        f"c.sync({str(docs)!r}); c.compact()\n"
    )
    before = io.BytesIO()
    filled.export(before)

    def progress(report: Progress) -> None:
        if report.done == 1:
            (docs / "rooms.csv").write_text("room,seats\nAsh,99\n")
            (docs / "leave.md").unlink()
            (docs / "zzz.txt").write_text("New.")
            subprocess.run([sys.executable, "-c", script], check=True, timeout=100)

    during = io.BytesIO()
    report = filled.export(during, progress=progress)
    assert report.generation == 1
    assert during.getvalue() == before.getvalue()
    after = io.BytesIO()
    assert filled.export(after).generation == 2
    assert "docs/zzz.txt" in {row["uri"] for row in _lines(after.getvalue())}


@pytest.mark.in_a_folder
def test_an_old_file_is_replaced_atomically(filled: Collection, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old")

    def progress(report: Progress) -> None:
        if report.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filled.export(out, progress=progress)
    assert out.read_text() == "old"
    assert not list(tmp_path.glob("*.new"))
    filled.export(out)
    assert len(_lines(out.read_bytes())) == 5
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CollectionError, match="cannot be written: It is not a regular file"):
        filled.export(tmp_path / "pipe")  # as the administrator, /dev/null was replaced by a file
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(CollectionError, match="No such file"):
        filled.export(tmp_path / "nowhere" / "out.jsonl")


def test_a_folder_is_not_replaced(filled: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (".", "/", str(tmp_path)):
        with pytest.raises(CollectionError, match="is a folder"):
            filled.export(folder)


@pytest.mark.in_a_folder
def test_damage_is_never_exported(filled: Collection, tmp_path: Path) -> None:
    from ragfm.store.sqlite_file import open_engine

    filled.close()
    engine = open_engine(filled.path, writable=True)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE documents SET text = 'You get 99 days.' WHERE uri = 'docs/leave.md'")
    engine.dispose()
    assert (filled.path / CATALOG_FILE).exists()
    with pytest.raises(DamagedCollectionError, match=r"docs/leave\.md"):
        filled.export(tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_collection(tmp_path: Path) -> None:
    """Export over 50 MB of text with a few MB of Python objects."""
    import tracemalloc

    from ragfm import Settings

    (tmp_path / "docs").mkdir()
    for number in range(64):
        (tmp_path / "docs" / f"{number}.txt").write_text(f"Number {number}. " * 70_000)
    collection = Collection.open(tmp_path / "c", settings=Settings(), embedder=HashingEmbedder(dim=8, max_tokens=8192))
    collection.sync(tmp_path / "docs")
    collection.export(tmp_path / "warm.jsonl", filter="uri = docs/0.txt")
    tracemalloc.start()
    collection.export(tmp_path / "out.jsonl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "out.jsonl").stat().st_size > 50_000_000
    assert peak < 20_000_000
