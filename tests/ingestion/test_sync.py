"""Sync: the collection becomes equal to the source, and nothing is embedded twice."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_hex

import pytest
from ragfm_connectors.files import FilesConnector

from ragfm import Blob, Collection, Document, Ref, Settings
from ragfm.chunking import ChunkSettings
from ragfm.core.errors import (
    EmbedderMismatchError,
    EmbeddingError,
    FilterError,
    MassDeleteError,
    ModelNotFoundError,
    SourceError,
)
from ragfm.core.progress import Progress
from ragfm.ingestion.ingest_report import SyncReport
from ragfm.ingestion.recipe import environment_hash
from ragfm.ingestion.sync import RETRY_DELAYS, Sync, list_refs
from ragfm.parsing import ParserChoice, parse
from ragfm.store.catalog import Source
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.tables import failures
from ragfm.testing import HashingEmbedder


def _counts(report: SyncReport) -> tuple[int, int, int, int, int]:
    return report.added, report.updated, report.removed, report.unchanged, report.chunks


def _texts(collection: Collection) -> dict[str, str]:
    return {info.uri: collection.document(info.uri).text for info in collection.documents()}


def test_a_second_sync_embeds_nothing(collection: Collection, docs: Path, embedder: HashingEmbedder) -> None:
    first = collection.sync(docs)
    assert (first.added, first.chunks) == (4, collection.status().chunks)
    embedded = embedder.embedded
    assert _counts(collection.sync(docs)) == (0, 0, 0, 4, 0)
    assert embedder.embedded == embedded
    assert collection.status().generation == 1


def test_a_uri_that_postgresql_cannot_index_does_not_stop_the_others(tmp_path: Path, address: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"id": 1, "text": "A."}}\n{{"id": "{token_hex(2000)}", "text": "B."}}\n')
    collection = Collection.open(address, settings=Settings(), embedder=HashingEmbedder())
    report = collection.sync(tmp_path / "a.jsonl", connector="jsonl")
    assert (report.added, [skipped.why for skipped in report.skipped]) == (
        1,
        ["its uri has more than 2,500 bytes, which PostgreSQL cannot index"],
    )


def test_only_changed_documents_are_updated(collection: Collection, docs: Path, embedder: HashingEmbedder) -> None:
    (docs / "extra.txt").write_text("Extra words here.")
    collection.sync(docs)
    before = embedder.embedded
    (docs / "hours.txt").write_text("The office never closes.\n")  # changed
    (docs / "extra.txt").unlink()  # deleted
    (docs / "pets.markdown").rename(docs / "animals.markdown")  # renamed
    report = collection.sync(docs)
    assert _counts(report) == (1, 1, 2, 2, 2)
    assert embedder.embedded == before + 2  # the changed one, and the renamed one: its name is part of what is embedded
    texts = _texts(collection)
    assert sorted(texts) == ["docs/animals.markdown", "docs/hours.txt", "docs/leave.md", "docs/rooms.csv"]
    assert texts["docs/hours.txt"] == "The office never closes.\n"
    assert not collection.search("closes at five", k=9, filter="uri = docs/extra.txt")


@pytest.mark.parametrize(("part", "context"), [("", "hr leave"), ("hr/leave.md", "Leave"), ("rooms.csv", "rooms")])
def test_chunks_and_vectors_do_not_depend_on_where_a_source_is_synced_from(
    tmp_path: Path, docs: Path, monkeypatch: pytest.MonkeyPatch, part: str, context: str
) -> None:
    (docs / "hr").mkdir()
    (docs / "leave.md").rename(docs / "hr/leave.md")
    places: list[tuple[Path, Path, str | Path, str | None]] = [  # working directory, collection, location, name
        (tmp_path, tmp_path / ".ragfm", f"docs/{part}", None),
        (tmp_path, docs / ".ragfm", docs / part, None),
        (docs, tmp_path / "elsewhere/in/depth/.ragfm", f"./{part}", None),
        (docs / "hr", docs / "hr/.ragfm", f"../{part}", None),
        (tmp_path, tmp_path / "named/.ragfm", docs / part, "house rules/of 1973"),
    ]
    contents = []
    for folder, location, source, name in places:
        monkeypatch.chdir(folder)
        with Collection.open(location, settings=Settings(), embedder=HashingEmbedder()) as collection:
            collection.sync(source, name=name)
            for embedder in (None, HashingEmbedder("other", dim=96)):
                if embedder is not None:
                    collection.reembed(embedder)
                catalog = collection._store.catalog
                ids, vectors = catalog.chunk_vectors(catalog.at())
                rows = catalog.chunk_rows(ids.tolist())  # the row, its text, the document's text
                found = zip((rows[number] for number in ids.tolist()), vectors.tolist(), strict=True)
                contents.append(sorted((row.context, text, vector) for (row, text, _), vector in found))
    assert context in {found.partition(" > ")[0] for found, _, _ in contents[0]}
    assert contents == contents[:2] * 5


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


def test_a_new_recipe_updates_all_documents(collection: Collection, docs: Path, embedder: HashingEmbedder) -> None:
    collection.sync(docs)
    other = Collection.open(collection.location, settings=Settings(chunk={"size": 20}), embedder=embedder)
    assert other.sync(docs).updated == 4
    assert other.sync(docs).unchanged == 4


def test_new_tags_reach_the_documents_and_embed_nothing(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    with pytest.raises(FilterError):
        collection.documents("year = 2026")
    report = collection.sync(docs, tags={"year": "2026"})
    assert (report.updated, report.chunks) == (4, 0)
    assert len(collection.documents("year = 2026")) == 4
    assert collection.sync(docs).unchanged == 4  # tags stay with the source


def test_a_document_fails_alone_and_its_older_version_remains(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    (docs / "pets.markdown").unlink()
    (docs / "pets.pdf").write_text("No PDF.")
    (docs / "hours.txt").write_bytes(b"%PDF-1.7 and then nothing")
    for name in ("hours.txt", "pets.pdf"):
        os.utime(docs / name, (1e9, 1e9))  # long enough ago that its time tells of a change
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


def test_a_skipped_document_is_removed_and_not_a_failure(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    (docs / "hours.txt").write_bytes(b"")
    (docs / "program.bin").write_bytes(b"\x7fELF\2\1\1\0" + bytes(range(256)))
    report = collection.sync(docs)
    assert [skip.uri for skip in report.skipped] == ["docs/hours.txt", "docs/program.bin"]
    assert report.failed == ()
    assert report.removed == 1
    assert "docs/hours.txt" not in _texts(collection)


class _Listed:
    """A connector with a given listing."""

    root = "docs"

    def __init__(self, *refs: Ref, error: Exception | None = None) -> None:
        self.given, self.error = refs, error

    def refs(self) -> Iterator[Ref]:
        yield from self.given
        if self.error:
            raise self.error

    def fetch(self, ref: Ref) -> Blob:
        return Blob(f"Text of {ref.path}, revision {ref.revision}.".encode())


class _Same(_Listed):
    """A connector whose documents all have the same content."""

    def fetch(self, ref: Ref) -> Blob:
        return Blob(b"The same.")


def _run(collection: Collection, connector: _Listed, embedder: HashingEmbedder, *, retry: bool = False) -> SyncReport:
    with collection._store.writing() as catalog:
        refs = list_refs(connector)
        source = catalog.save_source(Source("docs", "files", "docs", "docs"))
        return Sync(catalog, source, lambda: embedder, ChunkSettings()).run(connector, refs, retry=retry)


def test_nothing_is_removed_after_an_incomplete_listing(collection: Collection, embedder: HashingEmbedder) -> None:
    _run(collection, _Listed(Ref("a", "1"), Ref("b", "1")), embedder)
    with pytest.raises(SourceError):
        _run(collection, _Listed(Ref("a", "2"), error=SourceError("the disk is gone")), embedder)
    assert sorted(_texts(collection)) == ["docs/a", "docs/b"]


def test_documents_of_an_unlisted_folder_are_kept(collection: Collection, embedder: HashingEmbedder) -> None:
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
    """An embedder that is interrupted at its second call."""

    calls = 0

    def embed_passages(self, texts: Sequence[str]) -> object:  # type: ignore[override]
        self.calls += 1
        if self.calls == 2:
            raise KeyboardInterrupt
        return super().embed_passages(texts)


def test_an_interrupted_sync_is_consistent_and_continues(tmp_path: Path, collection: Collection) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(100):
        (folder / f"{number:03}.txt").write_text(f"Document number {number}.")
    interrupted = _Interrupted()
    handle = Collection.open(collection.location, settings=Settings(), embedder=interrupted)
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
    monkeypatch.setattr("ragfm.ingestion.sync.MAX_COMMIT_DOCUMENTS", 10)
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
    assert seen[-1] == Progress("ingest", 4, 4, {"chunks": report.chunks, "waiting": 0})
    assert [step.done for step in seen] == sorted(step.done for step in seen)


def test_another_embedder_is_refused_even_with_nothing_to_do(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    other = Collection.open(collection.location, settings=Settings(), embedder=HashingEmbedder(dim=32))
    for use in (lambda: other.sync(docs), lambda: other.search("leave")):
        with pytest.raises(EmbedderMismatchError, match="dim: 64 instead of 32") as raised:
            use()
        assert "ragfm reembed --embedder" in raised.value.hint


def test_the_same_weights_under_another_name_are_the_same_embedder(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    moved = Collection.open(collection.location, settings=Settings(), embedder=HashingEmbedder("elsewhere"))
    assert moved.sync(docs).unchanged == 4


def test_a_bad_vector_never_gets_in(collection: Collection, docs: Path) -> None:
    class Bad(HashingEmbedder):
        def embed_passages(self, texts: Sequence[str]) -> object:  # type: ignore[override]
            vectors = super().embed_passages(texts)
            vectors[0, 0] = float("nan")
            return vectors

    with pytest.raises(EmbeddingError):
        Collection.open(collection.location, settings=Settings(), embedder=Bad()).sync(docs)
    assert collection.sync(docs).added == 4
    assert collection.search("leave", k=1)[0].uri == "docs/leave.md"


def test_a_bug_in_a_parser_fails_one_document(
    collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(blob: Blob, uri: str, choice: ParserChoice) -> Document:
        if uri.endswith(".csv"):
            raise KeyError("column")
        return parse(blob, uri, choice)

    monkeypatch.setattr("ragfm.parsing.sandbox.worker_pool.parse", broken)
    report = collection.sync(docs)
    assert [(failure.uri, failure.error) for failure in report.failed] == [("docs/rooms.csv", "KeyError: 'column'")]
    assert report.added == 3


def test_no_model_is_loaded_for_skipped_and_broken_documents(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    (docs / "program.bin").write_bytes(b"\x7fELF\2\1\1\0" + bytes(range(256)))
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


# --- Mass deletion -----------------------------------------------------------------------------------------------


def _many(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.txt").write_text(f"Document number {number}.")
    return folder


def test_losing_over_half_of_the_documents_raises_an_error(tmp_path: Path, collection: Collection) -> None:
    folder = _many(tmp_path / "many", 10)
    collection.sync(folder)
    for number in range(5):
        (folder / f"{number}.txt").unlink()
    assert collection.sync(folder).removed == 5  # half is not over half
    for number in range(5, 8):
        (folder / f"{number}.txt").unlink()
    (folder / "8.txt").write_text("Changed.")
    for number in range(20, 30):  # new ones don't make up for it, now or at the next sync
        (folder / f"{number}.txt").write_text(f"New {number}.")
    for changes in ((10, 1), (0, 0)):
        with pytest.raises(MassDeleteError, match=r"lost 3 of its 5 documents .*many/5.txt.*many/7.txt\. ") as raised:
            collection.sync(folder)
        assert "--allow-mass-delete" in raised.value.hint
        assert len(collection.documents()) == 15
        assert _texts(collection)["many/8.txt"] == "Changed."
        report = collection.sync()
        assert [(failure.uri, failure.stage, failure.stale) for failure in report.failed] == [("many", "remove", True)]
        assert (report.added, report.updated, report.removed) == (0, 0, 0), changes
    report = collection.sync(folder, allow_mass_delete=True)
    assert (report.added, report.removed, report.unchanged) == (0, 3, 12)
    assert len(collection.sync(folder).failed) == 0


def test_the_last_document_of_a_source_is_over_half(tmp_path: Path, collection: Collection) -> None:
    folder = _many(tmp_path / "many", 2)
    collection.sync(folder)
    (folder / "0.txt").unlink()
    assert collection.sync(folder).removed == 1
    (folder / "1.txt").write_text("")  # emptied by what may be a broken disk
    with pytest.raises(MassDeleteError, match="lost 1 of its 1 documents"):
        collection.sync(folder)
    assert len(collection.documents()) == 1


def test_other_sources_continue_after_a_mass_deletion(tmp_path: Path, collection: Collection) -> None:
    lost, whole = _many(tmp_path / "lost", 3), _many(tmp_path / "whole", 3)
    collection.sync(lost, whole)
    for file in lost.iterdir():
        file.unlink()
    (lost / "new.txt").write_text("New.")
    (whole / "0.txt").write_text("Changed.")
    report = collection.sync()
    assert (report.added, report.updated, report.removed, report.unchanged) == (1, 1, 0, 2)
    assert [(failure.uri, failure.stage) for failure in report.failed] == [("lost", "remove")]
    assert len(collection.documents()) == 7
    assert collection.sync(allow_mass_delete=True).removed == 3


def test_moved_documents_are_not_lost(tmp_path: Path, collection: Collection, embedder: HashingEmbedder) -> None:
    folder = _many(tmp_path / "many" / "top", 10)
    collection.sync(tmp_path / "many")
    folder.rename(tmp_path / "many" / "other")
    report = collection.sync(tmp_path / "many")
    assert (report.added, report.removed, report.chunks) == (10, 10, 10)
    _run(collection, _Listed(*(Ref(f"{n}", "1") for n in range(4))), embedder)
    same = _Same(*(Ref(f"{n}", "2") for n in range(4)))
    _run(collection, same, embedder)  # four of one content
    with pytest.raises(MassDeleteError, match="lost 3 of its 4"):  # of which one comes back
        _run(collection, _Same(Ref("new", "1")), embedder)


def test_an_interrupted_move_is_still_a_move(
    tmp_path: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragfm.ingestion.sync.MAX_COMMIT_DOCUMENTS", 3)
    folder = _many(tmp_path / "many" / "top", 10)
    collection.sync(tmp_path / "many")
    folder.rename(tmp_path / "many" / "a")
    commit, calls = CatalogWriter.commit, []

    def killed(self: CatalogWriter, *given: object) -> int:
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return commit(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(CatalogWriter, "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        collection.sync(tmp_path / "many")
    monkeypatch.setattr(CatalogWriter, "commit", commit)
    report = collection.sync(tmp_path / "many")
    assert (report.added, report.unchanged, report.removed) == (1, 9, 10)


def test_documents_of_an_interrupted_sync_do_not_outweigh_losses(
    tmp_path: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _many(tmp_path / "many", 4)
    collection.sync(folder)
    for file in folder.iterdir():
        file.unlink()
    for number in range(20):
        (folder / f"new{number}.txt").write_text(f"New {number}.")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ragfm.ingestion.sync.missing_paths", killed)  # at the end of the listing
    monkeypatch.setattr("ragfm.ingestion.sync.MAX_COMMIT_DOCUMENTS", 1)
    with pytest.raises(KeyboardInterrupt):
        collection.sync(folder)
    monkeypatch.undo()
    assert len(collection.documents()) == 24
    with pytest.raises(MassDeleteError, match="lost 4 of its 4"):
        collection.sync(folder)


def test_excluded_documents_are_not_lost(tmp_path: Path, collection: Collection) -> None:
    folder = _many(tmp_path / "many", 10)
    collection.sync(folder)
    report = collection.sync(folder, exclude=["[0-6].txt"])
    assert (report.removed, report.unchanged) == (7, 3)
    collection.sync(folder, exclude=[])
    for number in (7, 8):
        (folder / f"{number}.txt").unlink()
    with pytest.raises(MassDeleteError, match="lost 2 of its 3 documents"):  # of those that the options leave in
        collection.sync(folder, exclude=["[0-6].txt"])
    assert len(collection.documents()) == 10
    (folder / "7.txt").write_text("Document number 7.")
    assert collection.sync(folder).removed == 8  # the options were kept, and leave out on purpose still


def test_a_removed_source_that_comes_back_is_guarded(
    tmp_path: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _many(tmp_path / "many", 3)
    collection.sync(folder)
    with collection._store.writing() as catalog:
        catalog.remove_source(catalog.sources()[0])
    for number in range(3):
        (folder / f"{number}.txt").rename(folder / f"other{number}.txt")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ragfm.ingestion.sync.record_complete_sync", killed)
    with pytest.raises(KeyboardInterrupt):
        collection.sync(folder)
    monkeypatch.undo()
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(MassDeleteError, match="lost 3 of its 3"):
        collection.sync(folder)


# --- Failures ----------------------------------------------------------------------------------------------------


def _age(collection: Collection, seconds: int) -> None:
    """Set the time of all failures to this many seconds ago."""
    at = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")
    with collection._store.writing() as catalog, catalog.write() as connection:
        connection.execute(failures.update().values(at=at))


class _Unreachable(_Listed):
    fetched = 0

    def fetch(self, ref: Ref) -> Blob:
        self.fetched += 1
        raise OSError(5, "Input/output error")


def test_retry_delays_grow(collection: Collection, embedder: HashingEmbedder) -> None:
    source = _Unreachable(Ref("a", "1"))
    for attempts, delay in enumerate(RETRY_DELAYS, 1):
        report = _run(collection, source, embedder)
        assert source.fetched == report.failed[0].attempts == attempts
        if delay:
            for age in (1, delay - 10):
                _age(collection, age)
                waiting = _run(collection, source, embedder)
                assert waiting.failed == report.failed
            assert source.fetched == attempts
            assert collection.status().failed == report.failed
            _age(collection, delay + 1)
    _run(collection, source, embedder)
    _age(collection, RETRY_DELAYS[-1] - 10)
    _run(collection, source, embedder)
    assert source.fetched == len(RETRY_DELAYS) + 1
    _age(collection, -10_000)  # a clock that was set back
    _run(collection, source, embedder)
    assert source.fetched == len(RETRY_DELAYS) + 2


def test_a_change_is_retried_at_once_and_resets_the_attempts(
    collection: Collection, embedder: HashingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _Unreachable(Ref("a", "1"))
    for expected in (1, 2, 2):
        assert _run(collection, source, embedder).failed[0].attempts == expected
    assert source.fetched == 2
    source.given = (Ref("a", "2"),)
    for expected in (1, 2, 2):
        assert _run(collection, source, embedder).failed[0].attempts == expected
    assert source.fetched == 4
    for change in ("ragfm.parsing.own.own_parser._VERSION", "ragfm.ingestion.recipe.CHUNKER_VERSION"):
        monkeypatch.setattr(change, "another")
        for expected in (1, 2, 2):
            assert _run(collection, source, embedder).failed[0].attempts == expected
    assert source.fetched == 8
    monkeypatch.setattr("ragfm.ingestion.recipe.which", lambda _: "/another/soffice")
    assert _run(collection, source, embedder).failed[0].attempts == 1
    assert source.fetched == 9


def test_the_environment_hash_depends_on_installed_software(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    before = environment_hash("recipe")
    assert before == environment_hash("recipe") != environment_hash("other")
    (tmp_path / "extra-1.0.dist-info").mkdir()
    assert before != (now := environment_hash("recipe"))
    (tmp_path / "soffice").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert environment_hash("recipe") != now


def test_retry_ignores_the_delays(collection: Collection, docs: Path) -> None:
    (docs / "fake.pdf").write_bytes(b"%PDF-1.7 and then nothing")
    os.utime(docs / "fake.pdf", (1e9, 1e9))  # long enough ago that its time tells of a change
    for _ in range(3):
        report = collection.sync(docs)
        assert (report.unchanged, len(report.failed)) == (0, 1) if report.added else (4, 1)
    assert report.failed[0].attempts == 2
    assert collection.sync(docs, retry=True).failed[0].attempts == 3


def test_failures_of_removed_documents_are_cleared(collection: Collection, embedder: HashingEmbedder) -> None:
    source = _Unreachable(Ref("in/a", "1"), Ref("b", "1"))
    _run(collection, source, embedder)
    source.given = (Ref("in", error="Permission denied"),)
    report = _run(collection, source, embedder)
    assert [failure.uri for failure in report.failed] == ["docs/in"]
    assert [failure.uri for failure in collection.status().failed] == ["docs/in", "docs/in/a"]
    assert _run(collection, _Listed(), embedder).failed == ()
    assert collection.status().failed == ()


def test_a_skipped_document_is_not_fetched_again(collection: Collection, embedder: HashingEmbedder) -> None:
    class Empty(_Unreachable):
        def fetch(self, ref: Ref) -> Blob:
            self.fetched += 1
            return Blob(b"")

    source = Empty(Ref("a", "1"), Ref("b", "1"))
    reports = [_run(collection, source, embedder) for _ in range(3)]
    assert source.fetched == 2
    assert [(skip.uri, bool(skip.why)) for skip in reports[0].skipped] == [("docs/a", True), ("docs/b", True)]
    assert reports[0].skipped == reports[1].skipped == reports[2].skipped
    assert {report.failed for report in reports} == {()} == {collection.status().failed}
    source.given = (Ref("a", "1"), Ref("b", "2"))
    _run(collection, source, embedder)
    assert source.fetched == 3
    broken = _Unreachable(Ref("a", "1"))
    assert _run(collection, broken, embedder).failed == ()
    assert _run(collection, broken, embedder, retry=True).failed[0].attempts == 1
    assert _run(collection, _Listed(Ref("a", "4")), embedder).added == 1
    assert collection.status().failed == ()
