"""Re-embedding: one commit switches; handles follow once they have the new embedder."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from ragfm import Collection, Settings
from ragfm.core.errors import EmbedderMismatchError
from ragfm.core.progress import Progress
from ragfm.store.tables import contracts
from ragfm.testing import HashingEmbedder

pytestmark = pytest.mark.both_databases


def _spans(collection: Collection) -> set[tuple[str, int, int]]:
    return {(hit.uri, hit.start, hit.end) for hit in collection.search("leave", k=500)}


def test_the_result_equals_a_fresh_collection(collection: Collection, docs: Path, tmp_path: Path) -> None:
    collection.sync(docs)
    new = HashingEmbedder("other", dim=96, max_tokens=12)
    seen: list[Progress] = []
    report = collection.reembed(new, progress=seen.append)
    documents = len(collection.documents())
    assert seen[-1] == Progress("reembed", documents, documents)
    fresh = Collection.open(
        tmp_path / "fresh", settings=Settings(), embedder=HashingEmbedder("other", dim=96, max_tokens=12)
    )
    fresh.sync(docs)
    assert report.embedded == new.embedded == fresh.status().chunks
    assert report.chunks == collection.status().chunks == fresh.status().chunks
    for query in ("28 days of leave", "desk", "Ada"):
        assert [
            (hit.uri, hit.text, hit.score, hit.page, hit.headings, hit.context) for hit in collection.search(query)
        ] == [(hit.uri, hit.text, hit.score, hit.page, hit.headings, hit.context) for hit in fresh.search(query)]
    assert collection.status().embedder["dim"] == 96
    again = collection.sync(docs)
    assert (again.unchanged, again.updated, again.chunks) == (documents, 0, 0)
    assert collection.reembed(new).embedded == 0


def test_old_chunks_do_not_die_twice(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    collection.reembed(HashingEmbedder("other", dim=96, max_tokens=12))
    switched = collection.status().generation
    died = collection._store.catalog.dead_ids(0, switched)
    for path in sorted(docs.rglob("*.md")):
        path.write_text("Another text.\n")
    collection.sync(docs, allow_mass_delete=True)
    assert collection._store.catalog.dead_ids(0, switched).tolist() == died.tolist()
    assert len(collection.search("text", k=500, mode="dense")) == collection.status().chunks
    assert not collection.verify().findings


def test_an_interrupted_run_continues(collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection.sync(docs)
    before = _spans(collection)
    monkeypatch.setattr("ragfm.ingestion.embedding.FIRST_BATCH", 2)
    monkeypatch.setattr("ragfm.ingestion.embedding.BATCH_SECONDS", 0)

    class Interrupted(HashingEmbedder):
        def embed_passages(self, texts):  # type: ignore[no-untyped-def]
            if self.embedded >= 2:
                raise KeyboardInterrupt
            return super().embed_passages(texts)

    with pytest.raises(KeyboardInterrupt):
        collection.reembed(Interrupted("other", dim=96))
    late = Collection.open(collection.location, settings=Settings(), embedder=HashingEmbedder())
    assert _spans(late) == before  # the old one serves
    late.compact()  # keeps what is already embedded
    new = HashingEmbedder("other", dim=96)
    report = late.reembed(new)
    assert report.embedded == new.embedded == report.chunks - 2


def test_vectors_of_an_interrupted_run_to_another_embedder_are_deleted(
    collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.sync(docs)
    for embedder in (HashingEmbedder("first", dim=32), HashingEmbedder("second", dim=48)):
        monkeypatch.setattr(embedder, "embed_passages", lambda _: [].pop())
        with pytest.raises(IndexError):
            collection.reembed(embedder)
    with collection._store.catalog.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(contracts)).scalar() == 2


def test_a_reader_follows_when_it_has_the_new_embedder(
    collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = f"wide in {docs}"  # a name of its own: collections of other tests may still share theirs
    made = {"hashing": HashingEmbedder(), wide: HashingEmbedder(wide, dim=96)}
    downloaded = threading.Event()

    def load(name: str) -> HashingEmbedder:
        if name == wide:
            assert downloaded.wait(60)
        return made[name]

    monkeypatch.setattr("ragfm.store.collection_store.load_embedder", load)
    collection.sync(docs)
    reader = Collection.open(collection.location, settings=Settings())
    expected = reader.search("28 days of leave")
    collection.reembed(made[wide])
    during = reader.search("28 days of leave")
    assert [(hit.chunk_id, hit.score) for hit in during] == [(hit.chunk_id, hit.score) for hit in expected]
    downloaded.set()
    reader._store.settle()
    after = reader.search("28 days of leave")
    assert [hit.text for hit in after][:1] == [hit.text for hit in expected][:1]
    assert {hit.chunk_id for hit in after}.isdisjoint(hit.chunk_id for hit in expected)
    assert reader.status().embedder["dim"] == 96
    collection.compact()
    assert reader.search("28 days of leave") == after


def test_a_reader_bound_to_the_old_embedder_says_so(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    collection.reembed(HashingEmbedder("other", dim=96))
    with pytest.raises(EmbedderMismatchError):
        Collection.open(collection.location, settings=Settings(), embedder=HashingEmbedder()).search("leave")
