from __future__ import annotations

import gzip
import json
import math
import unicodedata
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ragfm_indexes import bm25
from ragfm_indexes.bm25 import BM25Index
from ragfm_indexes.text_analysis import LANGUAGES, STOP_WORDS, Analyzer, detect_language, words
from support.keyword_index_contract import check_keyword_index

NONE = np.empty(0, dtype=np.int64)


def texts(n: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(f"w{'abcdefghij'[int(x)]}" for x in random.geometric(0.3, 12) % 10) for _ in range(n)]


def hits(index: Any, query: str, k: int = 10, **allowed: Any) -> list[tuple[int, float]]:
    scores, ids = index.search([query], k, **allowed)
    return [(i, s) for i, s in zip(ids[0].tolist(), scores[0].tolist(), strict=True) if i >= 0]


# --- The contract ------------------------------------------------------------------------------------------------


def test_the_index_keeps_the_contract() -> None:
    check_keyword_index(BM25Index)


class Unfiltered(BM25Index):
    def search(self, queries: Any, k: int, *, allowed: Any = None) -> Any:
        return super().search(queries, k)


class FilteredAfterwards(BM25Index):
    def search(self, queries: Any, k: int, *, allowed: Any = None) -> Any:
        scores, ids = super().search(queries, k)
        dropped = np.zeros(ids.shape, dtype=bool) if allowed is None else ~np.isin(ids, allowed)
        scores[dropped], ids[dropped] = -np.inf, -1
        order = np.argsort(-scores, axis=1, kind="stable")
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)


class Doubled(BM25Index):
    def search(self, queries: Any, k: int, *, allowed: Any = None) -> Any:
        scores, ids = super().search(queries, k, allowed=allowed)
        return scores * np.float32(2.2), ids


class HigherFirst(BM25Index):
    """Among equal scores the higher id comes first."""

    def search(self, queries: Any, k: int, *, allowed: Any = None) -> Any:
        scores, ids = super().search(queries, len(self) + k, allowed=allowed)
        order = np.array([np.lexsort((-row_ids, -row)) for row, row_ids in zip(scores, ids, strict=True)], dtype=int)
        order = order.reshape(len(queries), -1)
        return tuple(np.take_along_axis(values, order, axis=1)[:, :k] for values in (scores, ids))


class Padded(BM25Index):
    """Returns texts that do not match, with score 0."""

    def search(self, queries: Any, k: int, *, allowed: Any = None) -> Any:
        scores, ids = super().search(queries, k, allowed=allowed)
        return np.where(ids < 0, 0, scores).astype(np.float32), np.where(ids < 0, 2**40, ids)


class OwnStatistics(BM25Index):
    """Scores added texts by their own statistics, not by those of all texts."""

    def search(self, queries: Any, k: int, *, allowed: Any = None) -> Any:
        if not len(queries):
            return super().search(queries, k)
        found = [BM25Index([part], self.language, self._removed) for part in self._parts]
        both = [index.search(queries, k, allowed=allowed) for index in found]
        scores, ids = (np.concatenate(values, axis=1) for values in zip(*both, strict=True))
        order = np.array([np.lexsort((i, -s)) for s, i in zip(scores, ids, strict=True)]).reshape(len(queries), -1)
        return tuple(np.take_along_axis(values, order, axis=1)[:, :k] for values in (scores, ids))

    def updated(self, *args: Any, **more: Any) -> Any:
        index = super().updated(*args, **more)
        return OwnStatistics(index._parts, index.language, index._removed)


class Undead(BM25Index):
    """Returns removed texts."""

    def updated(self, ids: Any, texts: Any, *, removed: Any = None) -> Any:
        return super().updated(ids, texts)


class Trusting(BM25Index):
    """Accepts an id that it already has."""

    def updated(self, ids: Any, texts: Any, *, removed: Any = None) -> Any:
        has = bool(self._n) and bool(np.isin(ids, self._parts[0].ids).any())
        return self if has else super().updated(ids, texts, removed=removed)


class Changed(BM25Index):
    """`updated` changes the index itself."""

    def updated(self, ids: Any, texts: Any, *, removed: Any = None) -> Any:
        index = super().updated(ids, texts, removed=removed)
        if self._n:
            self.__dict__.update(index.__dict__)
        return index


class Forgetful(BM25Index):
    """Loses the language when saved."""

    def save(self, folder: Path) -> None:
        BM25Index(self._parts, None, self._removed).save(folder)


class Unstemmed(BM25Index):
    @classmethod
    def build(cls, ids: Any, texts: Any, *, language: str | None = None) -> Any:
        texts = list(texts)
        index = super().build(ids, texts, language="simple")
        return cls(index._parts, super().build(ids, texts, language=language).language, NONE)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Unfiltered, "hits than|not allowed"),
        (FilteredAfterwards, "hits, expected"),
        (Doubled, "but BM25 gives"),
        (HigherFirst, "which has the same text"),
        (Padded, "more hits"),
        (OwnStatistics, "but BM25 gives"),
        (Undead, "are left"),
        (Trusting, "the index already has"),
        (Changed, "len is"),
        (Forgetful, "the language is"),
        (Unstemmed, "the hits of"),
    ],
)
def test_the_contract_catches_a_broken_index(broken: type[BM25Index], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_keyword_index(broken)


# --- BM25 --------------------------------------------------------------------------------------------------------


def test_a_score_computed_by_hand() -> None:
    index = BM25Index.build(np.array([7, 8, 9]), ["cat cat dog", "dog", "bird bird"], language="simple")
    idf = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    assert hits(index, "cat") == [(7, pytest.approx(idf * 2 / (2 + 1.2 * (0.25 + 0.75 * 3 / 2)), rel=1e-6))]
    assert hits(index, "cat cat CAT")[0][1] == pytest.approx(3 * hits(index, "cat")[0][1], rel=1e-6)


@given(
    st.lists(st.integers(0, 6), max_size=700), st.integers(1, 12), st.one_of(st.none(), st.sets(st.integers(0, 699)))
)
def test_the_top_rows_equal_those_of_a_full_sort(values: list[int], k: int, chosen: set[int] | None) -> None:
    scores = np.array(values, dtype=np.float32)
    within = None if chosen is None else np.array(sorted(row for row in chosen if row < len(values)), dtype=np.int64)
    rows = range(len(values)) if within is None else within.tolist()
    expected = sorted((row for row in rows if values[row] > 0), key=lambda row: (-values[row], row))[:k]
    assert bm25._top_rows(scores, k, within).tolist() == expected


def test_counts_are_capped() -> None:
    index = BM25Index.build([1, 2], ["cat " * 70_000, "dog"], language="simple")
    assert hits(index, "cat")[0][0] == 1
    assert index._parts[0].counts.max() == 65_535


# --- Updates -----------------------------------------------------------------------------------------------------


def test_updated_indexes_score_bit_identically_to_one_index() -> None:
    some = texts(500)
    ids = np.random.default_rng(3).permutation(500)
    whole = BM25Index.build(ids, some, language="en")
    index = BM25Index.build(ids[:200], some[:200], language="en")
    for start in range(200, 500, 7):
        index = index.updated(ids[start : start + 7], some[start : start + 7])
    assert 1 < len(index._parts) < 6
    for allowed in (None, ids[::3]):
        found, expected = (i.search(["wa wb", "wc", "wj wi"], 50, allowed=allowed) for i in (index, whole))
        assert np.array_equal(found[0], expected[0])
        assert np.array_equal(found[1], expected[1])


def test_saving_drops_removed_texts_from_the_statistics(tmp_path: Path) -> None:
    some = texts(90)
    some[3] += " alone"
    index = BM25Index.build(np.arange(60), some[:60], language="simple")
    index = index.updated(np.arange(60, 90), some[60:], removed=np.array([3, 70, 1000]))
    index = index.updated(NONE, [], removed=np.array([4]))
    assert len(index) == 87
    index.save(tmp_path)
    kept = [row for row in range(90) if row not in (3, 4, 70)]
    expected = BM25Index.build(np.array(kept), [some[row] for row in kept], language="simple")
    loaded = BM25Index.load(tmp_path)
    assert hits(loaded, "wa wc", 100) == hits(expected, "wa wc", 100) != hits(index, "wa wc", 100)
    assert len(loaded._parts[0].keys) == len(expected._parts[0].keys)
    with pytest.raises(ValueError, match="got 4, which"):
        index.updated([4], ["again"])


def test_texts_removed_while_parts_are_merged_stay_removed(tmp_path: Path) -> None:
    index = BM25Index.build([1], ["cat"]).updated([2, 3, 4], ["cat", "cat", "dog"], removed=np.array([1, 3]))
    assert len(index._parts) == 1
    index.save(tmp_path)
    for which in (index, BM25Index.load(tmp_path)):
        assert [i for i, _ in hits(which, "cat")] == [2]
        assert len(which) == 2


def test_an_id_removed_before_it_was_added_is_found() -> None:
    index = BM25Index.build([1], ["cat"]).updated(NONE, [], removed=np.array([2])).updated([2], ["cat"])
    assert [i for i, _ in hits(index, "cat")] == [1, 2]


def test_an_empty_index_detects_the_language_of_its_first_texts(tmp_path: Path) -> None:
    BM25Index.build([], []).save(tmp_path)
    empty = BM25Index.load(tmp_path)
    assert empty.language is None
    german = empty.updated([1], ["Die Häuser und der Wald"])
    assert german.language == "de"
    assert german.updated([2], ["The houses and the woods are by the sea"]).language == "de"


# --- Texts -------------------------------------------------------------------------------------------------------


class Text(str):
    """A string that can be weakly referenced."""


def test_texts_are_not_kept_during_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragfm_indexes.postings._BATCH_WORDS", 500)
    living: weakref.WeakSet[Text] = weakref.WeakSet()
    most = 0

    def stream() -> Iterator[str]:
        nonlocal most
        for number, text in enumerate(texts(300)):
            watched = Text(f"{text} {number}")
            living.add(watched)
            most = max(most, len(living))
            yield watched

    index = BM25Index.build(np.arange(300), stream())
    assert most < 5
    assert hits(index, "217")[0][0] == 217


@pytest.mark.parametrize(
    ("text", "language", "terms"),
    [
        ("The dogs' running, RUNS!", "en", "dog run run"),
        ("AB-1234/5", "en", "ab-1234/5 ab 1234 5"),
        ("v2.3.1", "en", "v2.3.1 2.3.1 v2 3 1"),
        ("E1101: x", "en", "e1101 1101 x"),
        ("0x80070005", "en", "0x80070005 80070005"),
        ("1,000,000 or 3.14", "en", "1000000 1 000 3.14 3 14"),
        ("R&D in C++ and C#", "en", "r&d r d c++ c c# c"),
        ("snake_case well-known", "en", "snake_case snake case well known"),
        ("don't, it’s O'Neill's", "en", "neill"),
        ("l'eau d’Orléans qu'il", "fr", "eau orlean"),
        ("Straße STRASSE Häuser", "de", "strass strass haus"),
        ("cafe\u0301 CAFÉ ﬁne so\u00adft", "simple", "cafe cafe fine soft"),
        ("हिन्दी किताबें", "simple", "हिन्दी किताबें"),
        ("我用iPhone手机。水", "zh", "我用 iphone phone 手机 水"),
        ("getUserName HTTPServer PDFs", "en", "getusernam get user name httpserver http server pdfs"),
        ("U.S. sales in the US, for IT", "en", "u.s us sale us it"),
        ("tell us who it is, at 3 p.m.", "en", "tell us 3 p.m pm"),
        ("WHO IS IT FOR", "en", ""),
        ("WHO", "en", "who"),  # a query for an acronym
        ("self.readAll(utf8Text)", "en", "self.readall self readal self.read read utf8text 8text utf text utf8 8"),
        ("カタカナ ﾊﾞﾝ", "ja", "カタ タカ カナ バン"),
        ("ＡＢ－１２", "en", "ab-12 ab 12"),
        ("العَرَبِيَّة", "ar", "عرب"),
        ("… ?! -- 🙂", "en", ""),
        ("\ud800x", "en", "x"),
    ],
)
def test_terms(text: str, language: str, terms: str) -> None:
    analyzer = Analyzer(language)
    found = [unicodedata.normalize("NFC", term) for word in words(text) for term in analyzer.terms(word)]
    assert found == terms.split()


@given(st.text(max_size=60))
def test_any_text_finds_itself(text: str) -> None:
    index = BM25Index.build([1, 2], ["other things", text])
    analyzer = Analyzer(index.language or "simple")
    found = [i for i, _ in hits(index, text)]
    assert (2 in found) == any(analyzer.terms(word) for word in words(text))


SENTENCES = {
    "ar": "كان هذا هو اليوم الذي ذهب فيه إلى المدينة مع أصدقائه",
    "da": "Jeg ved ikke hvad det er, men hun har været her hele dagen efter arbejde",
    "de": "Ich weiß nicht, was das ist, aber sie war den ganzen Tag hier",
    "en": "I do not know what this is, but she has been here all day",
    "es": "No sé lo que es esto, pero ella ha estado aquí todo el día con los niños",
    "fi": "En tiedä mikä tämä on, mutta hän on ollut täällä koko päivän",
    "fr": "Je ne sais pas ce que c'est, mais elle est ici depuis ce matin avec les enfants",
    "hu": "Nem tudom, hogy mi ez, de egész nap itt volt, és most már haza kell mennie",
    "id": "Saya tidak tahu apa ini, tetapi dia sudah di sini sejak pagi dengan anak-anak",
    "it": "Non so che cosa sia questo, ma lei è stata qui tutto il giorno con gli amici",
    "nl": "Ik weet niet wat dit is, maar ze is hier de hele dag geweest met haar vrienden",
    "no": "Jeg vet ikke hva dette er, men hun har vært her hele dagen etter arbeid fra morgenen av",
    "pl": "Nie wiem, co to jest, ale ona była tutaj przez cały dzień i już jest z nim",
    "pt": "Não sei o que é isto, mas ela esteve aqui o dia todo com os seus amigos",
    "ro": "Nu știu ce este aceasta, dar ea a fost aici toată ziua cu prietenii săi",
    "ru": "Я не знаю, что это, но она была здесь весь день со своими друзьями",
    "sv": "Jag vet inte vad det är, men hon har varit här hela dagen och efter arbetet",
    "tr": "Bunun ne olduğunu bilmiyorum ama o bütün gün burada ve çok iyi bir şey için",
    "ja": "これが何であるかは知りませんが、彼女は一日中ここにいました",
    "ko": "이것이 무엇인지 모르지만 그녀는 하루 종일 여기에 있었다",
    "th": "ฉันไม่รู้ว่านี่คืออะไร แต่เธออยู่ที่นี่ทั้งวัน",
    "zh": "我不知道这是什么，但她整天都在这里",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_languages_are_detected(language: str) -> None:
    assert detect_language(Counter(words(SENTENCES[language]))) == language


@pytest.mark.parametrize(
    ("question", "language"),
    [
        ("Wie viele Tage Urlaub habe ich?", "de"),
        ("How many days of leave do I get?", "en"),
        ("休暇は何日ありますか", "ja"),
        ("Brannay 2026?", None),
    ],
)
def test_the_language_of_a_question_is_that_of_its_stop_words(question: str, language: str | None) -> None:
    assert BM25Index.language_of(question) == language


def test_all_languages_are_supported() -> None:
    assert STOP_WORDS.keys() <= SENTENCES.keys() <= LANGUAGES
    for language, stop_words in STOP_WORDS.items():
        assert all(word == word.casefold() for word in stop_words)
        assert not hits(BM25Index.build([1], [" ".join(stop_words)], language=language), " ".join(stop_words))
    assert detect_language(Counter(words("東京都知事選挙、投票日は日曜日。候補者討論会開催"))) == "ja"
    assert detect_language({}) == detect_language({"xyzzy": 3}) == "en"
    assert detect_language(Counter(words("return this.a(e, i, o) + e * i - this.c(i, e);"))) == "en"


@pytest.mark.data
@pytest.mark.parametrize("language", ["ar", "de", "en", "es", "ru", "zh"])
def test_questions_find_their_paragraph(data: Path, language: str) -> None:
    with gzip.open(data / "xquad" / f"xquad.{language}.json.gz", "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    index = BM25Index.build(np.arange(len(paragraphs)), (paragraph["context"] for paragraph in paragraphs))
    assert index.language == language
    asked = [(qa["question"], row) for row, paragraph in enumerate(paragraphs) for qa in paragraph["qas"]]
    _, ids = index.search([question for question, _ in asked], 10)
    found = ids == np.array([row for _, row in asked])[:, np.newaxis]
    assert float((found / np.arange(1, 11)).sum(axis=1).mean()) > 0.92  # without stems: ru 0.85, ar 0.87, de 0.90


@pytest.mark.data
def test_scifact(data: Path) -> None:
    folder = data / "beir" / "scifact"
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        documents = [json.loads(line) for line in file]
    lines = (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    queries = {query["_id"]: query["text"] for query in map(json.loads, lines)}
    judged: dict[str, set[int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        if int(grade) > 0:
            judged.setdefault(query, set()).add(int(document))
    ids = np.array([int(document["_id"]) for document in documents])
    index = BM25Index.build(ids, (f"{document['title']} {document['text']}" for document in documents))
    _, found = index.search([queries[query] for query in judged], 10)
    gains = [1 / math.log2(rank + 2) for rank in range(10)]
    ndcg = [
        sum(gain for gain, i in zip(gains, row, strict=True) if i in right) / sum(gains[: len(right)])
        for row, right in zip(found.tolist(), judged.values(), strict=True)
    ]
    assert index.language == "en"
    assert sum(ndcg) / len(ndcg) >= 0.68


# --- Files -------------------------------------------------------------------------------------------------------


def test_arrays_are_mapped(tmp_path: Path) -> None:
    BM25Index.build(np.arange(50), texts(50)).save(tmp_path)
    part = BM25Index.load(tmp_path)._parts[0]
    for name in ("ids", "lengths", "keys", "offsets", "rows", "counts"):
        array = getattr(part, name)
        while array is not None and not isinstance(array, np.memmap):
            array = array.base
        assert array is not None, name


def test_an_index_with_a_different_analysis_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BM25Index.build([1], ["cats"]).save(tmp_path)
    monkeypatch.setattr(bm25, "FINGERPRINT", "1, Snowball 9.9")
    with pytest.raises(ValueError, match=r"expected the analysis 1, Snowball 9\.9, got 3, Snowball"):
        BM25Index.load(tmp_path)


@pytest.mark.parametrize("name", ["ids", "lengths", "keys", "offsets", "rows", "counts"])
@pytest.mark.parametrize("harm", ["shorter", "other type", "cut", "empty", "not JSON"])
def test_incomplete_files_are_refused(tmp_path: Path, name: str, harm: str) -> None:
    BM25Index.build(np.arange(50), texts(50)).save(tmp_path)
    path = tmp_path / f"{name}.npy"
    array = np.load(path)
    if harm == "shorter":
        np.save(path, array[:-1])
    elif harm == "other type":
        np.save(path, array.astype(np.float64))
    elif harm == "not JSON":
        (tmp_path / "bm25.json").write_text("{", encoding="utf-8")
    else:
        path.write_bytes(path.read_bytes()[:-8] if harm == "cut" else b"")
    with pytest.raises(ValueError, match=r"."):
        BM25Index.load(tmp_path)


def test_the_scores_of_the_last_query_are_kept() -> None:
    """Hybrid search asks for the best texts, and then for the scores of the best vectors' texts."""
    index = BM25Index.build(np.arange(40), texts(40))
    every, some = hits(index, "wa wb", 40), np.arange(0, 40, 3)
    scores = index._scores("wa wb")
    assert hits(index, "wa wb", 40, allowed=some) == [(i, s) for i, s in every if i in some]
    assert index._scores("wa wb") is scores
    other = hits(index, "wc", 40)
    assert other == hits(BM25Index.build(np.arange(40), texts(40)), "wc", 40) != every
    assert hits(index, "wa wb", 40) == every
    assert hits(index.updated(np.array([40]), ["wa wb"], removed=np.arange(2)), "wa wb", 41) != every
