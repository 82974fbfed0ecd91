"""Sync: the collection becomes equal to the source, and nothing is embedded twice."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from ragfm_connectors.files import FilesConnector

from ragfm import Blob, Collection, Document, Ref, Settings
from ragfm.catalog import Source
from ragfm.chunk import ChunkSettings
from ragfm.commit import CatalogWriter
from ragfm.errors import EmbedderMismatchError, EmbeddingError, ModelNotFoundError, SourceError
from ragfm.parse import parse
from ragfm.sync import Progress, Sync, SyncReport, list_refs
from ragfm.testing import HashingEmbedder


def _counts(report: SyncReport) -> tuple[int, int, int, int, int]:
    return report.added, report.updated, report.removed, report.unchanged, report.chunks


def _texts(collection: Collection) -> dict[str, str]:
    return {info.uri: collection.document(info.uri).text for info in collection.documents()}


def test_twice_embeds_nothing(collection: Collection, docs: Path, embedder: HashingEmbedder) -> None:
    first = collection.sync(docs)
    assert (first.added, first.chunks) == (4, collection.status().chunks)
    embedded = embedder.embedded
    assert _counts(collection.sync(docs)) == (0, 0, 0, 4, 0)
    assert embedder.embedded == embedded
    assert collection.status().generation == 1


def test_exactly_what_changed_changes(collection: Collection, docs: Path, embedder: HashingEmbedder) -> None:
    (docs / "extra.txt").write_text("Extra words here.")
    collection.sync(docs)
    before = embedder.embedded
    (docs / "hours.txt").write_text("The office never closes.\n")  # changed
    (docs / "extra.txt").unlink()  # deleted
    (docs / "pets.html").rename(docs / "animals.html")  # renamed
    report = collection.sync(docs)
    assert _counts(report) == (1, 1, 2, 2, 1)
    assert embedder.embedded == before + 1  # the changed one alone
    texts = _texts(collection)
    assert sorted(texts) == ["docs/animals.html", "docs/hours.txt", "docs/leave.md", "docs/rooms.csv"]
    assert texts["docs/hours.txt"] == "The office never closes.\n"
    assert not collection.search("closes at five", k=9, filter="uri = docs/extra.txt")


def test_a_touched_file_is_not_parsed_again(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    os.utime(docs / "hours.txt", (1, 1))
    assert _counts(collection.sync(docs)) == (0, 0, 0, 4, 0)
    with collection._store.catalog.read() as connection:
        revision = connection.exec_driver_sql("SELECT revision FROM documents WHERE path = 'hours.txt'").scalar_one()
    assert revision.endswith(":1000000000")  # so that the next sync doesn't read it again


def test_a_change_of_equal_size_within_the_same_tick_is_seen(collection: Collection, docs: Path) -> None:
    (docs / "hours.txt").write_text("aaaa")
    stat = (docs / "hours.txt").stat()
    collection.sync(docs)
    (docs / "hours.txt").write_text("bbbb")
    os.utime(docs / "hours.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert collection.sync(docs).updated == 1
    assert _texts(collection)["docs/hours.txt"] == "bbbb"


def test_another_recipe_counts_as_changed(collection: Collection, docs: Path, embedder: HashingEmbedder) -> None:
    collection.sync(docs)
    other = Collection.open(collection.path, settings=Settings(chunk={"size": 20}), embedder=embedder)
    assert other.sync(docs).updated == 4
    assert other.sync(docs).unchanged == 4


def test_new_tags_reach_the_documents_and_embed_nothing(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    assert not collection.documents("year = 2026")
    report = collection.sync(docs, tags={"year": "2026"})
    assert (report.updated, report.chunks) == (4, 0)
    assert len(collection.documents("year = 2026")) == 4
    assert collection.sync(docs).unchanged == 4  # tags stay with the source


def test_a_document_that_fails_fails_alone_and_its_older_version_serves(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    (docs / "pets.html").rename(docs / "pets.pdf")
    (docs / "hours.txt").write_bytes(b"%PDF-1.7 and then nothing")
    report = collection.sync(docs)
    assert [(failure.uri, failure.stage, failure.stale) for failure in report.failed] == [
        ("docs/hours.txt", "parse", True),
        ("docs/pets.pdf", "parse", False),
    ]
    assert (report.unchanged, report.removed) == (2, 1)
    assert "five" in _texts(collection)["docs/hours.txt"]
    again = collection.sync(docs)
    assert [failure.attempts for failure in again.failed] == [2, 2]
    assert [failure.uri for failure in collection.status().failed] == ["docs/hours.txt", "docs/pets.pdf"]
    (docs / "hours.txt").write_text("Open.")
    (docs / "pets.pdf").unlink()
    assert collection.sync(docs).failed == ()
    assert collection.status().failed == ()


def test_skipped_is_not_failed_and_leaves_the_collection(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    (docs / "hours.txt").write_bytes(b"")
    (docs / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    report = collection.sync(docs)
    assert [skip.uri for skip in report.skipped] == ["docs/hours.txt", "docs/picture.png"]
    assert report.failed == ()
    assert report.removed == 1
    assert "docs/hours.txt" not in _texts(collection)


class _Listed:
    """A connector whose listing is what a test says."""

    root = "docs"

    def __init__(self, *refs: Ref, error: Exception | None = None) -> None:
        self.given, self.error = refs, error

    def refs(self) -> Iterator[Ref]:
        yield from self.given
        if self.error:
            raise self.error

    def fetch(self, ref: Ref) -> Blob:
        return Blob(f"Text of {ref.path}, revision {ref.revision}.".encode())


def _run(collection: Collection, connector: _Listed, embedder: HashingEmbedder) -> SyncReport:
    with collection._store.writing() as catalog:
        refs = list_refs(connector)
        source = catalog.save_source(Source("docs", "files", "docs", "docs"))
        return Sync(catalog, source, lambda: embedder, ChunkSettings()).run(connector, refs)


def test_nothing_is_removed_when_the_listing_breaks_off(collection: Collection, embedder: HashingEmbedder) -> None:
    _run(collection, _Listed(Ref("a", "1"), Ref("b", "1")), embedder)
    with pytest.raises(SourceError):
        _run(collection, _Listed(Ref("a", "2"), error=SourceError("the disk is gone")), embedder)
    assert sorted(_texts(collection)) == ["docs/a", "docs/b"]


def test_what_could_not_be_listed_is_not_gone(collection: Collection, embedder: HashingEmbedder) -> None:
    _run(collection, _Listed(Ref("in/a", "1"), Ref("in/b", "1"), Ref("inside", "1")), embedder)
    report = _run(collection, _Listed(Ref("in", error="Permission denied")), embedder)
    assert sorted(_texts(collection)) == ["docs/in/a", "docs/in/b"]
    assert [(failure.uri, failure.stage) for failure in report.failed] == [("docs/in", "list")]
    assert report.removed == 1


def test_a_path_listed_twice_changes_nothing(collection: Collection, embedder: HashingEmbedder) -> None:
    with pytest.raises(SourceError, match="twice"):
        _run(collection, _Listed(Ref("a", "1"), Ref("a", "2")), embedder)
    assert collection.documents() == []


class _Interrupted(HashingEmbedder):
    """Is interrupted at its second call."""

    calls = 0

    def embed_passages(self, texts: Sequence[str]) -> object:  # type: ignore[override]
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt
        return super().embed_passages(texts)


def test_an_interrupted_sync_is_consistent_and_goes_on(tmp_path: Path, collection: Collection) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(100):
        (folder / f"{number:03}.txt").write_text(f"Document number {number}.")
    interrupted = _Interrupted()
    handle = Collection.open(collection.path, settings=Settings(), embedder=interrupted)
    with pytest.raises(KeyboardInterrupt):
        handle.sync(folder)
    assert collection.documents() == []  # whole or not at all
    report = collection.sync(folder)
    assert report.added == 100
    assert report.chunks == 100 - interrupted.embedded  # what was embedded is not embedded again
    assert interrupted.embedded == 64


def test_a_kill_between_commits_keeps_what_was_committed(
    tmp_path: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragfm.sync.DOCUMENTS", 10)
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:03}.txt").write_text(f"Document number {number}.")
    commit, calls = CatalogWriter.commit, []

    def killed(self: CatalogWriter, *given: object) -> int:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return commit(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(CatalogWriter, "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        collection.sync(folder)
    assert len(collection.documents()) == 20
    assert len(collection.search("document number", k=30)) == 20
    monkeypatch.setattr(CatalogWriter, "commit", commit)
    report = collection.sync(folder)
    assert (report.added, report.unchanged, report.chunks) == (10, 20, 0)


def test_progress_reaches_the_end(collection: Collection, docs: Path) -> None:
    seen: list[Progress] = []
    report = collection.sync(docs, progress=seen.append)
    assert seen[-1] == Progress(4, 4, report.chunks, 0)
    assert [step.documents for step in seen] == sorted(step.documents for step in seen)


def test_another_embedder_is_refused_even_with_nothing_to_do(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    other = Collection.open(collection.path, settings=Settings(), embedder=HashingEmbedder(dim=32))
    for use in (lambda: other.sync(docs), lambda: other.search("leave")):
        with pytest.raises(EmbedderMismatchError, match="dim 64 there, 32 now") as raised:
            use()
        assert "ragfm reembed --embedder" in raised.value.hint


def test_the_same_weights_under_another_name_are_the_same_embedder(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    moved = Collection.open(collection.path, settings=Settings(), embedder=HashingEmbedder("elsewhere"))
    assert moved.sync(docs).unchanged == 4


def test_a_bad_vector_never_gets_in(collection: Collection, docs: Path) -> None:
    class Bad(HashingEmbedder):
        def embed_passages(self, texts: Sequence[str]) -> object:  # type: ignore[override]
            vectors = super().embed_passages(texts)
            vectors[0, 0] = float("nan")
            return vectors

    with pytest.raises(EmbeddingError):
        Collection.open(collection.path, settings=Settings(), embedder=Bad()).sync(docs)
    assert collection.sync(docs).added == 4
    assert collection.search("leave", k=1)[0].uri == "docs/leave.md"


def test_a_mistake_of_a_parser_fails_its_document_alone(
    collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(blob: Blob, uri: str) -> Document:
        if uri.endswith(".csv"):
            raise KeyError("column")
        return parse(blob, uri)

    monkeypatch.setattr("ragfm.sync.parse", broken)
    report = collection.sync(docs)
    assert [(failure.uri, failure.error) for failure in report.failed] == [("docs/rooms.csv", "KeyError: 'column'")]
    assert report.added == 3


def test_no_model_is_loaded_for_what_is_skipped_or_broken(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    (docs / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    (docs / "fake.pdf").write_text("No PDF.")

    def never() -> HashingEmbedder:
        raise AssertionError

    with collection._store.writing() as catalog:
        (source,) = catalog.sources()
        connector = FilesConnector(docs)
        report = Sync(catalog, source, never, ChunkSettings()).run(connector, list_refs(connector))
    assert (report.unchanged, len(report.skipped), len(report.failed)) == (4, 1, 1)


def test_an_embedder_that_cannot_be_loaded_ends_the_sync(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    (docs / "new.txt").write_text("New.")

    def missing() -> HashingEmbedder:
        raise ModelNotFoundError("gone")

    with collection._store.writing() as catalog:
        (source,) = catalog.sources()
        connector = FilesConnector(docs)
        refs = list_refs(connector)
        with pytest.raises(ModelNotFoundError):
            Sync(catalog, source, missing, ChunkSettings()).run(connector, refs)
    assert collection.status().failed == ()
