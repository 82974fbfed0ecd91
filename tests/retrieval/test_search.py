"""Modes of search: by vectors, by keywords, and by both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ragfm import Collection, Settings
from ragfm.core.config import SearchSection
from ragfm.retrieval.search import fuse
from ragfm.testing import HashingEmbedder

if TYPE_CHECKING:
    from ragfm.core.types import Vectors


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.txt").write_text(
            f"Pump type P-{4000 + number}/B runs at {10 + number} bar. Ask the workshop."
        )
    (folder / "de.md").write_text("# Urlaub\n\nAlle Mitarbeiterinnen haben dreißig Tage Urlaub im Jahr.")
    return folder


def _same(one: Collection, other: Collection, query: str, **options: object) -> None:
    found = [
        [(hit.uri, hit.text, hit.score, hit.scores["fused"]) for hit in handle.search(query, k=60, **options)]  # type: ignore[arg-type]
        for handle in (one, other)
    ]
    assert found[0] == found[1]


def test_a_part_number_is_found_by_keyword(collection: Collection, parts: Path) -> None:
    collection.sync(parts)
    for mode in ("keyword", "hybrid"):
        hit = collection.search("what about P-4017/B?", k=1, mode=mode)[0]  # type: ignore[arg-type]
        assert hit.uri == "parts/17.txt"
        assert hit.scores["keyword"] is not None
        assert hit.scores["keyword"] > 0


def test_hits_have_the_scores_of_the_mode(collection: Collection, parts: Path) -> None:
    collection.sync(parts)
    keyword = collection.search("pump P-4003/B workshop", k=3, mode="keyword")
    assert all(hit.score is None and hit.scores["dense"] is None and hit.scores["fused"] is None for hit in keyword)
    dense = collection.search("pump P-4003/B workshop", k=3, mode="dense")
    assert all(hit.scores["keyword"] is None and hit.score == hit.scores["dense"] for hit in dense)
    hybrid = collection.search("pump P-4003/B workshop", k=99)
    fused = [hit.scores["fused"] or 0 for hit in hybrid]
    assert fused == sorted(fused, reverse=True)
    assert fused[0] == pytest.approx(1)
    assert all(hit.score == hit.scores["dense"] for hit in hybrid)
    german = next(hit for hit in hybrid if hit.uri == "parts/de.md")
    assert german.scores["keyword"] == 0  # shares no word, but has a cosine
    assert len(hybrid) == 41


def test_keyword_search_for_unknown_words_has_no_hits(collection: Collection, parts: Path) -> None:
    collection.sync(parts)
    assert collection.search("xyzzy", mode="keyword") == []
    assert len(collection.search("xyzzy", k=5)) == 5


def test_keyword_search_loads_no_model(collection: Collection, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection.sync(parts)

    def refused(name: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr("ragfm.store.collection_store.load_embedder", refused)
    assert Collection.open(collection.location, settings=Settings()).search("workshop", mode="keyword")


@pytest.mark.parametrize("mode", ["keyword", "hybrid"])
def test_tail_and_removed_chunks_score_as_in_a_new_index(
    collection: Collection, parts: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.sync(parts)
    reader = Collection.open(collection.location, settings=Settings(), embedder=HashingEmbedder())
    monkeypatch.setattr("ragfm.store.collection_store.Store.save_view", lambda *_, **__: None)
    for number in range(4):
        reader.search("workshop", mode=mode)  # type: ignore[arg-type]
        (parts / f"new{number}.txt").write_text(f"Valve V-{number} beside pump P-40{number}0/B, new in the workshop.")
        (parts / f"{number}.txt").write_text(f"Pump P-{4000 + number}/B was scrapped.")
        collection.sync(parts)
    late = Collection.open(collection.location, settings=Settings(), embedder=HashingEmbedder())
    for query in ("P-4000/B scrapped", "valve workshop", "V-3"):
        _same(reader, late, query, mode=mode)
    assert reader.status().indexes[0]["pending"] == 12
    monkeypatch.undo()
    collection.compact()
    fresh = Collection.open(tmp_path / "fresh", settings=Settings(), embedder=HashingEmbedder())
    fresh.sync(parts)
    for query in ("P-4000/B scrapped", "valve workshop", "V-3"):
        _same(collection, fresh, query, mode=mode)


@pytest.mark.parametrize("mode", ["keyword", "hybrid", "dense"])
def test_filters_and_groups_hold_in_every_mode(tmp_path: Path, collection: Collection, mode: str) -> None:
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        for number in range(30):
            (tmp_path / name / f"{number}.txt").write_text(f"The plan of {name}, number {number}.")
        collection.sync(tmp_path / name, allow=[name], tags={"colour": name})
    for handle, options in ((collection.as_groups({"blue"}), {}), (collection, {"filter": "colour = blue"})):
        hits = handle.search("the plan of red", k=99, mode=mode, **options)  # type: ignore[arg-type]
        assert len(hits) == 30
        assert {hit.uri.split("/")[0] for hit in hits} == {"blue"}


def test_a_different_language_rebuilds_the_index(collection: Collection, parts: Path) -> None:
    collection.sync(parts)
    assert collection.search("Mitarbeiterin", mode="keyword") == []  # English stems
    german = Collection.open(collection.location, settings=Settings(language="de"), embedder=HashingEmbedder())
    german.sync(parts)
    assert german.search("Mitarbeiterin", mode="keyword")[0].uri == "parts/de.md"
    assert [index.get("language") for index in german.status().indexes] == [None, "de"]


def _scores(*values: float) -> Vectors:
    return np.array(values, dtype=np.float32)


def test_fused_scores_by_hand() -> None:
    cosines, bm25 = _scores(0.2, 0.8, 0.5), _scores(10, 0, 5)
    assert fuse(cosines, bm25, weight=0.6).tolist() == pytest.approx([0.4, 0.6, 0.5])
    assert fuse(cosines, bm25, weight=0).tolist() == pytest.approx([1, 0, 0.5])
    assert fuse(cosines[:0], bm25[:0]).tolist() == []


def test_documents_with_several_good_chunks_break_near_ties() -> None:
    cosines, bm25 = _scores(0.800, 0.799, 0.798, 0.797, 0.2), _scores(1, 1, 1, 1, 0)
    assert int(np.argmax(fuse(cosines, bm25))) == 0
    assert int(np.argmax(fuse(cosines, bm25, np.array([7, 3, 3, 3, 9])))) == 1
    assert int(np.argmax(fuse(cosines, bm25, np.array([7, 3, 9, 9, 9])))) == 0
    # By hand: fused scores 1, 0.5 and 0 with a mean of 0.5, so that the documents have 0.75 and (0.5 + 0 + 0.5) / 3.
    fused = fuse(_scores(0.9, 0.7, 0.5), _scores(3, 2, 1), np.array([1, 2, 2]))
    assert fused.tolist() == pytest.approx([1, 0.475, 0])
    assert fuse(cosines[:0], bm25[:0], np.array([], dtype=np.int64)).tolist() == []


def test_documents_of_one_chunk_keep_the_order_of_their_chunks() -> None:
    rng = np.random.default_rng(1)
    cosines, bm25 = rng.random((2, 50), dtype=np.float32)
    alone, each = fuse(cosines, bm25), fuse(cosines, bm25, np.arange(50))
    assert np.argsort(alone).tolist() == np.argsort(each).tolist()
    one = fuse(cosines, bm25, np.zeros(50, dtype=np.int64))
    assert np.argsort(alone).tolist() == np.argsort(one).tolist()


def test_hybrid_search_uses_the_documents_of_the_chunks(tmp_path: Path, collection: Collection) -> None:
    texts = {
        "a.md": "# Ferry\n\nferry timetable harbour north\n\n# Notes\n\ncats and dogs",
        "b.md": "# Ferry\n\nferry timetable harbour south\n\n# Ferry fares\n\nferry timetable harbour fares",
    }
    (tmp_path / "ferries").mkdir()
    for name, text in texts.items():
        (tmp_path / "ferries" / name).write_text(text)
    collection.sync(tmp_path / "ferries")
    hits = collection.search("ferry timetable harbour", k=4)
    expected = fuse(
        *(np.array([hit.scores[name] for hit in hits], dtype=np.float32) for name in ("dense", "keyword")),
        np.array([hit.uri.endswith("b.md") for hit in hits], dtype=np.int64),
    )
    assert [hit.scores["fused"] for hit in hits] == pytest.approx(expected.tolist())


def test_if_one_index_has_equal_scores_the_other_ranks() -> None:
    cosines = _scores(0.2, 0.8, 0.5, 0.4)
    assert np.argsort(-fuse(cosines, _scores(0, 0, 0, 0))).tolist() == [1, 2, 3, 0]
    equal, bm25 = _scores(0.3, 0.3, 0.3), _scores(1, 0, 5)
    assert int(np.argmax(fuse(equal, bm25))) == 2


def test_equal_scores_scale_to_the_maximum() -> None:
    assert fuse(_scores(0.7), _scores(3)).tolist() == pytest.approx([1])
    assert fuse(_scores(0.7), _scores(0)).tolist() == pytest.approx([0.6])  # it shares no word
    assert fuse(_scores(0.5, 0.5), _scores(0, 0)).tolist() == pytest.approx([0.6, 0.6])


def _ranking(collection: Collection, query: str, **settings: object) -> list[str]:
    search = SearchSection(**settings)  # type: ignore[arg-type]
    handle = Collection.open(collection.location, settings=Settings(search=search), embedder=HashingEmbedder())
    return [hit.uri for hit in handle.search(query, k=5)]


def test_the_settings_choose_the_weight(collection: Collection, parts: Path) -> None:
    collection.sync(parts)
    query = "the pump runs at 30 bar, ask P-4003/B"
    by_one = {mode: [hit.uri for hit in collection.search(query, k=5, mode=mode)] for mode in ("dense", "keyword")}  # type: ignore[arg-type]
    assert by_one["dense"] != by_one["keyword"]
    assert _ranking(collection, query, weight=1.0, code_weight=1.0) == by_one["dense"]
    assert _ranking(collection, query, weight=0.0) == by_one["keyword"]


def test_each_index_returns_the_configured_number_of_candidates(collection: Collection, parts: Path) -> None:
    collection.sync(parts)
    few = Collection.open(
        collection.path, settings=Settings(search=SearchSection(candidates=1)), embedder=HashingEmbedder()
    )
    query = "ask the workshop for P-4003/B at 30 bar"
    first = {few.search(query, k=1, mode=mode)[0].uri for mode in ("dense", "keyword")}  # type: ignore[arg-type]
    assert len(first) == 2
    (hit,) = few.search(query, k=1)
    assert hit.uri in first
    # Of two, each is the best by one score and the worst by the other; a twentieth is that of the document.
    assert hit.scores["fused"] == pytest.approx(0.95 * 0.6 + 0.05)
    assert (collection.search(query, k=1)[0].scores["fused"] or 0) > 0.7
    assert len(few.search("pump at 22 bar", k=30)) == 30  # more hits need more candidates


def test_both_scores_are_exact_whichever_index_found_the_chunk(collection: Collection, parts: Path) -> None:
    collection.sync(parts)
    for query in ("pump P-4003/B at 22 bar", "Urlaub workshop", "P-4011"):
        true = {
            mode: {hit.chunk_id: hit.scores[mode] for hit in collection.search(query, k=99, mode=mode)}  # type: ignore[arg-type]
            for mode in ("dense", "keyword")
        }
        few = Collection.open(
            collection.path, settings=Settings(search=SearchSection(candidates=2)), embedder=HashingEmbedder()
        )
        for narrowed in (None, "uri != 'parts/3.txt'"):
            for hit in few.search(query, k=3, filter=narrowed):
                assert hit.scores["dense"] == pytest.approx(true["dense"][hit.chunk_id])
                assert hit.scores["keyword"] == pytest.approx(true["keyword"].get(hit.chunk_id, 0))


def test_a_single_chunk_is_found(collection: Collection, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("The kettle is descaled on Mondays.")
    collection.sync(tmp_path / "one.txt")
    (hit,) = collection.search("descaled kettle")
    assert hit.scores["fused"] == pytest.approx(1)
    assert len(collection.search("xyzzy")) == 1
