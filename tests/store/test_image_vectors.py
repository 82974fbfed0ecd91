"""Search of figures by their images: which are found, with which scores, by whom, and what happens to the vectors."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from support.figures import commit_figures, document_with_figures, picture

from ragfm import Collection, Settings
from ragfm.core.errors import ConfigError, UnsupportedError
from ragfm.core.types import Scalar, Vectors, image_key
from ragfm.ingestion import image_embedding
from ragfm.ingestion.image_embedding import embed_figures
from ragfm.store import collection_store
from ragfm.store.image_vectors import TOKENS, decode_tokens, encode_vectors, mean_vector
from ragfm.store.tables import vectors
from ragfm.testing import HashingEmbedder

IMAGES = [picture(f"picture {number}") for number in range(6)]
KEYS = [image_key(image) for image in IMAGES]
FIGURES = {f"Caption number {number}": image for number, image in enumerate(IMAGES)}
SETTINGS = Settings(parse={"images": True}, image_embedder="hashing", search={"image_weight": 0.5})  # type: ignore[arg-type]


class LateHashing(HashingEmbedder):
    """Late interaction: a token for every eight digits of an image's hash, and for every word of a query."""

    @property
    def fingerprint(self) -> Mapping[str, Scalar]:
        return {**super().fingerprint, "pooling": "none"}

    def embed_images(self, images: Sequence[bytes]) -> list[Vectors]:  # type: ignore[override]
        keys = [image_key(image) for image in images]
        return [self.embed_passages([key[at : at + 8] for at in range(0, 32, 8)]) for key in keys]

    def embed_queries(self, texts: Sequence[str]) -> list[Vectors]:  # type: ignore[override]
        return [super(LateHashing, self).embed_queries(text.split()) for text in texts]

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        return np.concatenate([super(LateHashing, self).embed_queries([text]) for text in texts])


@pytest.fixture(autouse=True)
def _late_interaction(monkeypatch: pytest.MonkeyPatch) -> None:
    load = collection_store.load_embedder
    monkeypatch.setattr(
        collection_store, "load_embedder", lambda name: LateHashing(name) if name == "late" else load(name)
    )


def with_settings(collection: Collection, settings: Settings) -> Collection:
    return Collection.open(collection.location, settings=settings, embedder=HashingEmbedder())


def embed(collection: Collection, settings: Settings = SETTINGS) -> tuple[Collection, int]:
    """Embed the figures as a sync does. Returns a new handle, and the number of images."""
    other = with_settings(collection, settings)
    with other._store.writing() as catalog:
        return other, embed_figures(other._store, catalog)


def stored(collection: Collection) -> set[str]:
    """The images that have vectors."""
    with collection._store.catalog.read() as connection:
        keys = connection.execute(sa.select(vectors.c.text_hash).where(vectors.c.contract_id > 1)).scalars()
        return {key.hex() for key in keys} & set(KEYS)


@pytest.mark.both_databases
def test_a_figure_is_found_by_its_image(collection: Collection) -> None:
    commit_figures(collection, [document_with_figures("a", FIGURES)])
    assert "image" not in collection.search(KEYS[2])[0].scores
    assert collection.status().image_embedder is None
    searched, count = embed(collection)
    assert count == len(IMAGES)
    hits = searched.search(KEYS[2], 9)
    assert (hits[0].image, hits[0].text) == (KEYS[2], "Caption number 2")
    assert (searched.status().image_embedder or {})["model"] == "hashing"
    assert hits[0].scores["image"] == pytest.approx(1.0)
    assert {hit.image for hit in hits} == {*KEYS, None}
    assert [hit.scores["image"] for hit in hits if hit.image is None] == [None]
    for mode in ("dense", "keyword"):
        assert all("image" not in hit.scores for hit in searched.search("caption", mode=mode))  # type: ignore[arg-type]
    assert searched.search(KEYS[2], hops=2)[0].scores["image"] == pytest.approx(1.0)
    # The collection knows its image embedder: another process needs no setting.
    assert with_settings(collection, Settings()).search(KEYS[2])[0].scores["image"] == pytest.approx(1.0)


@pytest.mark.both_databases
@pytest.mark.parametrize("name", ["hashing", "late"])
def test_scores_and_order_are_exact(collection: Collection, name: str) -> None:
    commit_figures(collection, [document_with_figures("a", FIGURES)])
    searched, _ = embed(collection, SETTINGS.model_copy(update={"image_embedder": name}))
    embedder = LateHashing() if name == "late" else HashingEmbedder()
    query = f"{KEYS[4][:8]} {KEYS[4][8:16]} other words" if name == "late" else f"{KEYS[4]} other words"
    images = [np.atleast_2d(one) for one in embedder.embed_images(IMAGES)]
    rows = np.atleast_2d(embedder.embed_queries([query])[0])
    expected = {key: (rows @ image.T).max(axis=1).mean() for key, image in zip(KEYS, images, strict=True)}
    hits = searched.search(query, 9)
    found = {hit.image: hit.scores["image"] for hit in hits if hit.image}
    assert found == pytest.approx(expected, abs=0.01)
    assert hits[0].image == KEYS[4]
    images_of = searched._store.image_vectors(searched._store.catalog.at())
    assert images_of is not None
    nearest = images_of.nearest(rows, 3, images_of.allowed(None))
    means = {key: mean_vector(image) @ mean_vector(rows) for key, image in zip(KEYS, images, strict=True)}
    best = sorted(means, key=lambda key: -means[key])[:3]
    assert [images_of._figures[chunk] for chunk in nearest.tolist()] == best


def test_stored_matrices_are_close_to_the_original() -> None:
    random = np.random.default_rng(0)
    matrix = random.standard_normal((50, 128)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    key = bytes(16)
    encoded = encode_vectors([key], [matrix])
    assert {name: len(data) for name, data in encoded.items()} == {key: 4 * 128, key + TOKENS: 50 * (128 + 4)}
    decoded = decode_tokens(encoded[key + TOKENS], 128)
    assert ((decoded * matrix).sum(axis=1) / np.linalg.norm(decoded, axis=1)).min() > 0.9999
    assert np.array_equal(np.frombuffer(encoded[key], "<f4"), mean_vector(matrix))
    assert encode_vectors([key], matrix[:1]) == {key: matrix[0].tobytes()}


@pytest.mark.both_databases
def test_images_of_closed_documents_are_not_found(collection: Collection) -> None:
    commit_figures(collection, [document_with_figures("open", {"Open": IMAGES[0]})])
    commit_figures(collection, [document_with_figures("closed", {"Secret": IMAGES[1]})], name="closed", allow=["board"])
    searched, _ = embed(collection)
    member, outsider = searched.as_groups({"board"}), searched.as_groups({"sales"})
    assert member.search(KEYS[1])[0].image == KEYS[1]
    hits = outsider.search(KEYS[1], 9)
    assert {hit.image for hit in hits} == {KEYS[0], None}
    # Scores are scaled over visible images only: the closed one leaves no trace.
    embed(collection)
    collection.remove("closed")
    assert [hit.scores for hit in outsider.search(KEYS[1], 9)] == [hit.scores for hit in hits]
    assert {hit.image for hit in searched.search(KEYS[1], 9, filter="uri = open")} == {KEYS[0], None}


@pytest.mark.both_databases
def test_a_replaced_figure_is_not_found_and_its_vector_is_deleted(collection: Collection) -> None:
    commit_figures(collection, [document_with_figures("a", {"One": IMAGES[0], "Two": IMAGES[1]})])
    searched, _ = embed(collection)
    assert searched.search(KEYS[0])[0].image == KEYS[0]
    commit_figures(collection, [document_with_figures("a", {"Two": IMAGES[1], "Three": IMAGES[2]})])
    assert {hit.image for hit in searched.search(KEYS[0], 9)} == {KEYS[1], KEYS[2], None}
    assert searched.search(KEYS[2], 9)[0].scores["image"] is None or stored(searched) == {KEYS[0], KEYS[1]}
    assert embed(collection)[1] == 1
    assert searched.search(KEYS[2])[0].scores["image"] == pytest.approx(1.0)
    assert stored(searched) == {KEYS[0], KEYS[1], KEYS[2]}
    collection.compact()
    assert stored(searched) == {KEYS[1], KEYS[2]}
    assert searched.search(KEYS[1])[0].image == KEYS[1]
    assert not collection.verify().damaged


def test_tokens_of_deleted_figures_are_deleted(collection: Collection) -> None:
    settings = SETTINGS.model_copy(update={"image_embedder": "late"})
    commit_figures(collection, [document_with_figures("a", {"One": IMAGES[0], "Two": IMAGES[1]})])
    embed(collection, settings)
    commit_figures(collection, [document_with_figures("a", {"Two": IMAGES[1]})])
    collection.compact()
    query = sa.select(vectors.c.text_hash).where(vectors.c.contract_id > 1)
    with collection._store.catalog.read() as connection:
        kept = set(connection.execute(query).scalars())
    assert kept == {bytes.fromhex(KEYS[1]), bytes.fromhex(KEYS[1]) + TOKENS}
    assert not collection.verify().damaged
    with collection._store.writing() as catalog, catalog.write() as connection:
        connection.execute(vectors.update().where(vectors.c.text_hash.in_(kept)).values(vector=b"0", checksum=0))
    assert len(collection.verify().findings) == 2


@pytest.mark.both_databases
def test_reembedding_texts_keeps_the_vectors_of_images(collection: Collection) -> None:
    commit_figures(collection, [document_with_figures("a", FIGURES)])
    embed(collection)
    collection.reembed(HashingEmbedder(dim=32))
    collection.compact()
    searched = Collection.open(collection.location, settings=SETTINGS, embedder=HashingEmbedder(dim=32))
    assert searched.search(KEYS[3])[0].scores["image"] == pytest.approx(1.0)
    with searched._store.writing() as catalog:
        assert embed_figures(searched._store, catalog) == 0


def test_an_interrupted_embedding_is_continued(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_figures(collection, [document_with_figures("a", FIGURES)])
    monkeypatch.setattr(image_embedding, "BATCH_IMAGES", 2)
    calls: list[int] = []
    whole = HashingEmbedder.embed_images

    def fails_once(self: HashingEmbedder, images: Sequence[bytes]) -> Vectors:
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, images)

    monkeypatch.setattr(HashingEmbedder, "embed_images", fails_once)
    with pytest.raises(KeyboardInterrupt):
        embed(collection)
    assert len(stored(collection)) == 2
    assert "image" not in collection.search(KEYS[0])[0].scores  # nothing is searched before it is complete
    searched, count = embed(collection)
    assert (count, calls) == (4, [2, 2, 2, 2])
    generation = searched.status().generation
    assert embed(collection)[1] == 0
    assert searched.status().generation == generation


@pytest.mark.both_databases
def test_another_embedder_replaces_the_first_in_one_commit(collection: Collection) -> None:
    commit_figures(collection, [document_with_figures("a", FIGURES)])
    first, _ = embed(collection)
    other = with_settings(collection, SETTINGS.model_copy(update={"image_embedder": "late"}))
    assert other.search(KEYS[0])[0].scores["image"] == pytest.approx(1.0)  # by the one that the figures have
    second, count = embed(collection, SETTINGS.model_copy(update={"image_embedder": "late"}))
    assert count == len(IMAGES)
    assert first.search(KEYS[0][:8])[0].scores["image"] == pytest.approx(1.0, abs=0.01)
    second.compact()
    assert embed(collection)[1] == len(IMAGES)  # the vectors of the first one were deleted
    none, _ = embed(collection, Settings())
    assert "image" not in none.search(KEYS[0])[0].scores
    assert "image" not in first.search(KEYS[0])[0].scores


def test_a_damaged_image_is_skipped_with_a_warning(collection: Collection, caplog: pytest.LogCaptureFixture) -> None:
    damaged = IMAGES[1][:-1]
    commit_figures(collection, [document_with_figures("a", {"One": IMAGES[0], "Bad": damaged})])
    with caplog.at_level(logging.WARNING):
        searched, count = embed(collection)
    assert count == 1
    assert f"The image {image_key(damaged)} is not embedded" in caplog.text
    hits = searched.search(KEYS[0], 9)
    assert [hit.scores["image"] for hit in hits if hit.image == image_key(damaged)] == [None]


def test_a_query_over_the_window_is_searched_for_in_texts(collection: Collection) -> None:
    commit_figures(collection, [document_with_figures("a", FIGURES)])
    searched = Collection.open(collection.location, settings=SETTINGS, embedder=HashingEmbedder(max_tokens=64))
    embed(collection)
    searched._store.image_vectors(searched._store.catalog.at())
    for embedder in (searched.embedder,):
        embedder.max_tokens = 999  # type: ignore[misc]
    hits = searched.search("Caption " * 70)
    assert hits
    assert "image" not in hits[0].scores


def test_damaged_vectors_are_found(collection: Collection) -> None:
    commit_figures(collection, [document_with_figures("a", FIGURES)])
    searched, _ = embed(collection)
    assert not collection.verify().damaged
    key = bytes.fromhex(KEYS[0])
    with collection._store.writing() as catalog, catalog.write() as connection:
        connection.execute(vectors.update().where(vectors.c.text_hash == key).values(vector=b"0" * 256))
    assert f"the vector {KEYS[0]}" in collection.verify().findings[0].what
    searched.close()
    with pytest.raises(Exception, match=f"the image {KEYS[0]} are damaged"):
        searched.search("anything")


def test_a_copy_has_the_vectors(collection: Collection, address: str) -> None:
    commit_figures(collection, [document_with_figures("a", FIGURES)])
    embed(collection)
    collection.copy(address)
    server = Collection.open(address, settings=SETTINGS, embedder=HashingEmbedder())
    assert server.search(KEYS[5])[0].scores["image"] == pytest.approx(1.0)
    assert server.as_groups(set()).search(KEYS[5])[0].scores["image"] == pytest.approx(1.0)
    with server._store.writing() as catalog:
        assert embed_figures(server._store, catalog) == 0


@pytest.mark.usefixtures("_pgvector")
def test_images_are_searched_here_where_a_server_has_the_vectors_of_texts(address: str) -> None:
    settings = SETTINGS.model_copy(update={"backend": "pgvector"})
    collection = Collection.open(address, settings=settings, embedder=HashingEmbedder())
    commit_figures(collection, [document_with_figures("a", FIGURES)])
    collection.compact()
    searched, _ = embed(collection, settings)
    assert searched.search(KEYS[1])[0].scores["image"] == pytest.approx(1.0)
    collection.compact()
    assert not collection.verify().damaged
    assert searched.as_groups(set()).search(KEYS[1])[0].image == KEYS[1]


def test_a_sync_embeds_new_figures(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "one.png").write_bytes(IMAGES[0])
    (files / "text.md").write_text("# About\n\nA text without figures.\n")
    collection = Collection.open(tmp_path / ".ragfm", settings=SETTINGS, embedder=HashingEmbedder())
    seen: list[tuple[int, int | None]] = []
    collection.sync(files, progress=lambda one: seen.append((one.done, one.total)) if one.stage == "figures" else None)
    assert seen == [(1, 1)]
    assert collection.search(KEYS[0])[0].scores["image"] == pytest.approx(1.0)
    (files / "two.png").write_bytes(IMAGES[1])
    collection.sync(files, progress=lambda one: seen.append((one.done, one.total)) if one.stage == "figures" else None)
    assert seen[1:] == [(1, 1)]
    assert collection.search(KEYS[1])[0].image == KEYS[1]


def test_wrong_settings_are_refused_before_anything_is_parsed(tmp_path: Path, docs: Path) -> None:
    blind = Collection.open(tmp_path / "a", settings=Settings(image_embedder="hashing"), embedder=HashingEmbedder())
    with pytest.raises(ConfigError, match="figures are not indexed"):
        blind.sync(docs)
    texts = SETTINGS.model_copy(update={"image_embedder": "openai:text-embedding-3-small"})
    with pytest.raises(UnsupportedError, match="embeds texts only"):
        Collection.open(tmp_path / "b", settings=texts, embedder=HashingEmbedder()).sync(docs)


def test_texts_are_ingested_and_answered_without_image_libraries(tmp_path: Path, docs: Path) -> None:
    script = f"""
import sys
from ragfm import Collection, Rag, Settings
from ragfm.testing import HashingEmbedder, ScriptedReader
collection = Collection.open({str(tmp_path / ".ragfm")!r}, settings=Settings(), embedder=HashingEmbedder())
collection.sync({str(docs)!r})
Rag(collection, reader=ScriptedReader(["It is here [1]."])).ask("How long is the leave?")
print([name for name in ("PIL", "torch", "torchvision", "ragfm.embedders.image_decoding") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
