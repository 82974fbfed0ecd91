"""Rerankers: the contract, a real cross-encoder, and reranked searches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.judges import write_random_judge

from ragfm import Collection, Hit, Rag, Settings, load_reranker
from ragfm.answering.judge import Judge, JudgeReranker
from ragfm.core.config import AskSection, SearchSection
from ragfm.core.errors import ConfigError, ModelNotFoundError, UnknownPluginError, UnsupportedError
from ragfm.core.registry import plugins
from ragfm.core.types import embedded_text
from ragfm.models import hardware
from ragfm.models.model_lookup import find_model
from ragfm.retrieval.rerank import CrossEncoderReranker
from ragfm.retrieval.search import fuse, match_identifiers, match_names, rerank_hits, weigh_neighbours
from ragfm.testing import HashingEmbedder, ScriptedReader, check_reranker

QUERY = "how long may the boat stay in the harbour?"
TEXTS = [f"Note {n}: {'the boat may stay ' * n}in the harbour for {n} days." for n in range(1, 13)]


def _cross_encoder(folder: Path, labels: int = 1) -> Path:
    """A cross-encoder of the bundled model's weights and a random head."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(7)
    source = find_model("bundled", "embedder")
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=labels)
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _cross_encoder(tmp_path_factory.mktemp("models") / "cross-encoder")


@pytest.mark.parametrize("name", plugins("rerankers"))
def test_every_registered_reranker_keeps_the_contract(name: str, model: Path, tmp_path: Path) -> None:
    folders = {"cross-encoder": model, "judge": write_random_judge(tmp_path)}
    check_reranker(load_reranker(f"{name}:{folders[name]}"))


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="is a SentenceTransformer, not a CrossEncoder"):
        CrossEncoderReranker(str(find_model("bundled", "embedder"))).rerank(QUERY, TEXTS)


def test_a_model_heeds_the_cpu_quota(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(hardware, "cpu_count", lambda: 1)
        CrossEncoderReranker(str(model), device="cpu").rerank(QUERY, TEXTS[:1])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_scores_are_those_of_the_model(model: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    network = AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokens = AutoTokenizer.from_pretrained(model)(
        [QUERY] * len(TEXTS), TEXTS, padding=True, truncation=True, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = torch.sigmoid(network(**tokens).logits[:, 0]).numpy()
    assert len(set(np.round(expected, 4))) > 6  # the scores differ
    scores = CrossEncoderReranker(str(model), device="cpu").rerank(QUERY, TEXTS)
    assert scores.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_models_that_are_not_rerankers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="3 labels"):
        load_reranker(str(_cross_encoder(tmp_path / "three", labels=3))).rerank(QUERY, TEXTS)
    for name in ("nobody/reranker", "bundled", str(tmp_path / "nothing")):
        with pytest.raises(ModelNotFoundError):
            load_reranker(name)
    with pytest.raises(UnknownPluginError, match="nobody"):
        load_reranker("nobody:model")


def test_names_are_parsed_like_those_of_readers_and_embedders(tmp_path: Path, model: Path) -> None:
    (tmp_path / "my:model").symlink_to(model)
    load_reranker(str(tmp_path / "my:model"))
    with pytest.raises(ModelNotFoundError, match="no model at"):
        load_reranker("./my:models/ce")
    with pytest.raises(ConfigError, match="Use cross-encoder:NAME"):
        load_reranker("cross-encoder")


@pytest.fixture
def harbour(tmp_path: Path, collection: Collection) -> Collection:
    (tmp_path / "notes").mkdir()
    for n, text in enumerate(TEXTS):
        (tmp_path / "notes" / f"{n:02}.txt").write_text(text)
    collection.sync(tmp_path / "notes")
    return collection


def _named(harbour: Collection, **settings: object) -> Collection:
    return _reranked(harbour, None, **settings)


def _reranked(harbour: Collection, reranker: Any, /, **settings: object) -> Collection:
    search = Settings(search=SearchSection(**settings))  # type: ignore[arg-type]
    return Collection.open(harbour.path, settings=search, embedder=HashingEmbedder(), reranker=reranker)


@pytest.mark.parametrize("mode", ["hybrid", "dense", "keyword"])
def test_hits_are_in_order_of_the_rerankers_scores(harbour: Collection, model: Path, mode: str) -> None:
    reranked = _named(harbour, reranker=str(model))
    hits = reranked.search(QUERY, k=12, mode=mode)  # type: ignore[arg-type]
    scores = [hit.scores["rerank"] or 0 for hit in hits]
    assert scores == sorted(scores, reverse=True)
    expected = CrossEncoderReranker(str(model)).rerank(QUERY, TEXTS)
    assert [hit.uri for hit in hits] == [f"notes/{at:02}.txt" for at in np.argsort(-expected)]
    plain = harbour.search(QUERY, k=12, mode=mode)  # type: ignore[arg-type]
    assert {hit.uri: hit.score for hit in hits} == {hit.uri: hit.score for hit in plain}
    assert all("rerank" not in hit.scores for hit in plain)


def test_only_the_candidates_are_reranked(harbour: Collection) -> None:
    class Backwards:
        def rerank(self, query: str, texts: list[str]) -> np.ndarray:
            self.asked = len(texts)
            return np.arange(len(texts), dtype=np.float32)

    reranker = Backwards()
    first = [hit.uri for hit in harbour.search(QUERY, k=5)]
    hits = _reranked(harbour, reranker, rerank_candidates=5).search(QUERY, k=2)
    assert [hit.uri for hit in hits] == first[::-1][:2]
    assert _reranked(harbour, reranker, rerank_candidates=5).search(QUERY, k=9)
    assert reranker.asked == 9


@pytest.mark.parametrize(("mode", "name"), [("hybrid", "fused"), ("dense", "dense"), ("keyword", "keyword")])
def test_a_weight_adds_the_score_of_the_search(harbour: Collection, mode: str, name: str) -> None:
    class Backwards:
        def rerank(self, query: str, texts: list[str]) -> np.ndarray:
            return np.arange(len(texts), dtype=np.float32) * 70 - 9

    plain = harbour.search(QUERY, k=12, mode=mode)  # type: ignore[arg-type]
    own = np.array([hit.scores[name] for hit in plain], dtype=np.float64)
    mixed = 0.3 * np.arange(12.0) / 11 + 0.7 * (own - own.min()) / (own.max() - own.min())
    uris = np.array([hit.uri for hit in plain])
    hits = _reranked(harbour, Backwards(), rerank_weight=0.3).search(QUERY, k=12, mode=mode)  # type: ignore[arg-type]
    assert [hit.uri for hit in hits] == list(uris[np.argsort(-mixed, kind="stable")])
    alone = _reranked(harbour, Backwards(), rerank_weight=0.0).search(QUERY, k=12, mode=mode)  # type: ignore[arg-type]
    assert [hit.uri for hit in alone] == list(uris)


@pytest.mark.parametrize("mode", ["hybrid", "dense", "keyword"])
def test_low_likelihoods_hardly_change_the_order(harbour: Collection, mode: str) -> None:
    class Likelihoods:
        weight, calibrated = 0.5, True

        def __init__(self, highest: float) -> None:
            self.highest = highest

        def rerank(self, query: str, texts: list[str]) -> np.ndarray:
            return np.linspace(0, self.highest, len(texts), dtype=np.float32)

    plain = [hit.uri for hit in harbour.search(QUERY, k=12, mode=mode)]  # type: ignore[arg-type]
    for highest, first in ((1e-6, plain[0]), (1.0, plain[-1])):
        handle = _reranked(harbour, Likelihoods(highest), rerank_weight=0.9 if highest == 1 else None)
        hits = handle.search(QUERY, k=12, mode=mode)  # type: ignore[arg-type]
        assert hits[0].uri == first


def test_neighbours_count_as_evidence_and_chunks_near_a_better_one_lose() -> None:
    likelihoods = np.array([0.1, 0.1, 0.9, 0.1, 0.1], dtype=np.float32)
    scores = np.array([0.50, 0.52, 0.70, 0.55, 0.45], dtype=np.float32)
    ids = np.array([10, 30, 31, 33, 32], dtype=np.int64)
    alone = weigh_neighbours(scores, likelihoods, ids, np.arange(5, dtype=np.int64))
    np.testing.assert_array_equal(alone, scores)
    weighed = weigh_neighbours(scores, likelihoods, ids, np.zeros(5, dtype=np.int64))
    # 30 and 32 gain from 31, and all three around it follow what is elsewhere; 10 is too far away for both.
    np.testing.assert_allclose(weighed, [0.50, 0.51, 0.71, 0.46, 0.44], atol=1e-6)


def test_names_of_documents_in_the_query_count_by_how_well_they_tell_documents_apart() -> None:
    names = ["Amcor 2022 report", "Amcor 2023 report", "Amcor 2023 report", "Best Buy 2023 report"]
    documents = np.array([4, 5, 5, 6], dtype=np.int64)
    contexts = [f"{name} > Item 1\nAmcor in 2021" for name in names]
    word, rarer = np.log(3 / 2), np.log(3)  # in the names of two documents of three, and of one
    for period in ("2023", "FY2023", "FY23", "'23"):
        found = match_names(f"What did AMCOR's report say of {period}?", documents, contexts)
        company = 0.5 * np.sqrt(word / (word + rarer))  # not the year 2022
        year = 0.5 * np.sqrt(word / (word + 2 * rarer))  # not "Best Buy"
        np.testing.assert_allclose(found, [company, 1, 1, year], atol=1e-6)
    for other in ("2021", "page 23"):
        np.testing.assert_array_equal(match_names(f"What did the report say of {other}?", documents, contexts), 0)
    assert match_names("Amcor", documents[:0], []).shape == (0,)
    np.testing.assert_allclose(match_names("report of Amcor", np.arange(2), ["report", "Amcor report"]), [0, 1])


def test_chunks_of_a_document_that_the_query_names_rank_higher() -> None:
    cosines, bm25 = np.array([0.9, 0.8, 0.1], dtype=np.float32), np.zeros(3, dtype=np.float32)
    documents, names = np.arange(3), np.array([0, 1, 0], dtype=np.float32)
    fused = fuse(cosines, bm25, documents)
    assert fused[0] > fused[1]
    with_names = fuse(cosines, bm25, documents, names)
    assert with_names[1] > with_names[0] > with_names[2]
    assert with_names.max() <= 1
    np.testing.assert_array_equal(fuse(cosines, bm25, documents, np.zeros(3, dtype=np.float32)), fused)


class Alike:
    """Finds all texts equally likely."""

    weight, calibrated = 0.5, True

    def rerank(self, query: str, texts: Sequence[str]) -> np.ndarray:
        return np.full(len(texts), 0.2, dtype=np.float32)


def test_a_definition_of_an_identifier_in_the_query_comes_first() -> None:
    headings = [(), ("Memory", "wal_buffers (integer)"), ("Memory", "shared_buffers (integer)"), ("json.dump(obj)",)]
    scores = [0.9, 0.8, 0.8, 0.5]
    hits = [
        Hit("a.html", "Text.", 0, 5, 10 * at, score, {"fused": score}, headings=path)
        for at, (score, path) in enumerate(zip(scores, headings, strict=True))
    ]
    np.testing.assert_array_equal(match_identifiers("What is shared_buffers?", hits), [0, 0, 1, 0])
    np.testing.assert_array_equal(match_identifiers("What does json.dump do?", hits), [0, 0, 0, 1])
    np.testing.assert_array_equal(match_identifiers("What are shared buffers in Memory?", hits), np.zeros(4))
    reranked = rerank_hits("What is shared_buffers?", hits, Alike())
    assert [hit.chunk_id for hit in reranked] == [20, 0, 10, 30]


def test_likelihoods_decide_between_hits_with_negative_cosines() -> None:
    class Likelihoods:
        weight, calibrated = 0.5, True

        def rerank(self, query: str, texts: Sequence[str]) -> np.ndarray:
            return np.array([0.1, 0.9], dtype=np.float32)

    hits = [Hit(f"{at}.md", "Text.", 0, 5, at, cosine, {"dense": cosine}) for at, cosine in enumerate((-0.01, -0.02))]
    assert [hit.uri for hit in rerank_hits("query", hits, Likelihoods())] == ["1.md", "0.md"]


def test_the_second_hit_is_not_next_to_the_first(tmp_path: Path) -> None:
    class Likelihoods:
        weight, calibrated = 0.99, True

        def rerank(self, query: str, texts: list[str]) -> np.ndarray:
            return np.array([0.9 if "second" in text else 0.8 for text in texts], dtype=np.float32)

    (tmp_path / "notes").mkdir()
    parts = [f"The {name} part. {'Ships sail far. ' * 9}" for name in ("first", "second", "third")]
    (tmp_path / "notes" / "long.txt").write_text("\n\n".join(parts))
    (tmp_path / "notes" / "other.txt").write_text("Other ships sail.")
    with Collection.open(tmp_path / "c", embedder=HashingEmbedder(), reranker=Likelihoods()) as collection:
        collection.sync(tmp_path / "notes", name="notes")
        hits = collection.search("ships", k=20)
    assert len(hits) == 4
    assert "second" in hits[0].text
    assert hits[1].uri == "notes/other.txt"


def test_the_settings_name_a_reranker_and_groups_share_it(harbour: Collection, tmp_path: Path) -> None:
    handle = _named(harbour, reranker=f"judge:{write_random_judge(tmp_path)}")
    assert "rerank" in handle.search(QUERY, k=1)[0].scores
    assert handle.as_groups(set())._store.reranker() is handle._store.reranker()
    assert "rerank" not in _named(harbour, reranker="none").search(QUERY, k=1)[0].scores
    with pytest.raises(ModelNotFoundError):
        _named(harbour, reranker="nobody/reranker").search(QUERY)


# --- The judge -----------------------------------------------------------------------------------------------------


def test_auto_is_the_judge_in_english(harbour: Collection, tmp_path: Path) -> None:
    name = str(write_random_judge(tmp_path))
    settings = Settings(ask=AskSection(verifier=name))
    judged = Collection.open(harbour.path, settings=settings, embedder=HashingEmbedder())
    hits = judged.search(QUERY, k=12, rerank="auto")
    likelihoods = JudgeReranker(name).rerank(QUERY, [embedded_text(hit.context, hit.text) for hit in hits])
    assert [hit.scores["rerank"] for hit in hits] == pytest.approx(likelihoods.tolist(), abs=0.02)
    fused = np.array([hit.scores["fused"] for hit in hits])
    mixed = 0.4 * likelihoods + 0.6 * fused / fused.max()
    assert [hit.uri for hit in hits] == [hits[at].uri for at in np.argsort(-mixed, kind="stable")]
    assert "rerank" not in harbour.search(QUERY, k=1, rerank="none")[0].scores
    assert "rerank" not in harbour.search("Где находится маяк?", k=1, rerank="auto")[0].scores
    answer = Rag(harbour, reader=ScriptedReader(["Yes."]), k=1).ask(QUERY)
    assert "rerank" in answer.hits[0].scores


def test_auto_is_the_reranker_of_the_settings_if_there_is_one(harbour: Collection, model: Path) -> None:
    handle = _named(harbour, reranker=f"cross-encoder:{model}")
    found = handle.search(QUERY, k=1)[0].scores["rerank"]
    assert handle.search(QUERY, k=1, rerank="auto")[0].scores["rerank"] == pytest.approx(found)


def test_auto_needs_the_bundled_model(harbour: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> Judge:
        raise ModelNotFoundError("There is none.", "Install it.")

    monkeypatch.setattr("ragfm.answering.judge.load_judge", missing)
    assert "rerank" not in harbour.search(QUERY, k=1, rerank="auto")[0].scores
