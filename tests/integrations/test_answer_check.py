"""Checks of answers of other systems, with the passages of real libraries."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.judges import ScriptedJudge

import ragfm
from ragfm import CheckedSentence, Collection, Settings
from ragfm.answering.grounding import CONTRADICTED, SUPPORTED
from ragfm.core.config import AskSection
from ragfm.core.errors import DataError, TooLongError, UnsupportedError
from ragfm.testing import HashingEmbedder

LEAVE = "Every employee gets 28 days of leave."
PARENTS = "Parents get 16 weeks of leave."
DOGS = "Dogs are not allowed in the office."


GERMAN = "Die Eltern bekommen 16 Wochen Urlaub, und Hunde sind im Büro nicht erlaubt."


def use_judge(monkeypatch: pytest.MonkeyPatch, judge: ScriptedJudge) -> None:
    monkeypatch.setattr("ragfm.answering.judge.load_judge", lambda _: judge)


def status(answer: str, *passages: object, **options: Any) -> str:
    (sentence,) = ragfm.check(answer, passages, **options)
    return sentence.status


def test_sentences_and_quotes_are_slices_of_answer_and_passages() -> None:
    answer = "Parents get 16 weeks of leave [2]. The boss is called Ann.\n\n- Every employee gets 28 days of leave."
    passages = [f"# Leave\n\n{LEAVE}", PARENTS]
    sentences = ragfm.check(answer, passages=passages)
    assert [one.status for one in sentences] == ["supported", "not_found", "supported"]
    assert [answer[one.start : one.end] for one in sentences] == [one.text for one in sentences]
    for sentence in sentences:
        for citation in sentence.citations:
            assert passages[citation.n - 1][citation.start : citation.end] == citation.quote
            assert citation.verified
    assert [one.citations[0].n for one in sentences if one.citations] == [2, 1]


@pytest.mark.parametrize(
    ("supports", "contradicts", "expected"),
    [
        (SUPPORTED, 0.0, "supported"),
        (SUPPORTED - 0.01, 0.0, "not_found"),
        (0.1, CONTRADICTED, "contradicted"),
        (0.1, CONTRADICTED - 0.01, "not_found"),
    ],
)
def test_the_probabilities_of_the_judge_decide(
    supports: float, contradicts: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_judge(monkeypatch, ScriptedJudge(supports=lambda _: supports, contradicts=lambda _: contradicts))
    (sentence,) = ragfm.check("No dog may come.", [DOGS])
    assert (sentence.status, sentence.probability) == (expected, supports)
    assert (sentence.contradiction is not None) is (expected == "contradicted")


@pytest.mark.judge
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Parents get 16 weeks of leave.", "supported"),
        pytest.param(
            "Parents get 20 weeks of leave.",
            "contradicted",
            marks=pytest.mark.xfail(strict=True, reason="the small judge neither supports nor contradicts it"),
        ),
        ("Bob gets 20 weeks of leave.", "not_found"),
        ("Parents of twins get 22 weeks of leave.", "not_found"),
        ("Dogs are not allowed in the office.", "supported"),
        ("Dogs are allowed in the office.", "contradicted"),
        ("Cats are allowed in the office.", "not_found"),
        ("In the office, cats are allowed.", "not_found"),
        ("...", "not_found"),
        ("Yes.", "not_found"),
    ],
)
def test_a_sentence_is_supported_contradicted_or_not_found(answer: str, expected: str) -> None:
    assert status(answer, LEAVE, PARENTS, DOGS) == expected


@pytest.mark.parametrize(
    ("answer", "passage", "expected"),
    [
        ("Parents get 20 weeks of leave.", PARENTS, "contradicted"),
        ("Since 1998, parents get 16 weeks of leave.", PARENTS, "not_found"),  # it does not say since when
        (GERMAN.replace("16", "20"), GERMAN, "contradicted"),
        ("Die Lehrer bekommen 20 Wochen Urlaub.", GERMAN, "not_found"),
        ("20 Wochen.", GERMAN, "not_found"),
    ],
)
def test_what_is_supported_but_for_another_number_is_contradicted(answer: str, passage: str, expected: str) -> None:
    assert status(answer, passage) == expected


def test_an_answer_in_another_language_than_the_passages_is_not_for_the_judge() -> None:
    (sentence,) = ragfm.check("Die Probezeit beträgt drei Monate.", ["The probation period is six months."])
    assert (sentence.status, sentence.probability) == ("not_found", None)


def test_a_contradiction_is_quoted() -> None:
    (sentence,) = ragfm.check("Parents get 20 weeks of leave.", [LEAVE, PARENTS])
    assert sentence.contradiction is not None
    assert (sentence.contradiction.n, sentence.contradiction.quote) == (2, PARENTS)
    assert not sentence.contradiction.verified


def test_where_passages_disagree_a_supported_sentence_has_its_contradiction(monkeypatch: pytest.MonkeyPatch) -> None:
    use_judge(monkeypatch, ScriptedJudge(contradicts=lambda one: 0.9 if "12" in one.text else 0.0))
    (sentence,) = ragfm.check(PARENTS, ["Parents get 12 weeks of leave.", PARENTS])
    assert sentence.status == "supported"
    assert sentence.contradiction is not None
    assert sentence.contradiction.n == 1


def test_a_wrong_marker_has_a_fault() -> None:
    (sentence,) = ragfm.check("Parents get 16 weeks of leave [1].", [LEAVE, PARENTS])
    assert [(one.n, one.fault) for one in sentence.citations] == [(2, None), (1, "misattributed")]
    (sentence,) = ragfm.check("The boss is called Ann [1].", [LEAVE])
    assert [(one.n, one.fault) for one in sentence.citations] == [(1, "fabricated")]


@pytest.mark.judge
def test_the_question_says_what_a_short_answer_is_about() -> None:
    question = "How many weeks of leave do parents get?"
    assert status("20 weeks.", LEAVE, PARENTS, question=question) == "contradicted"
    assert status("16 weeks.", LEAVE, PARENTS, question=question) == "supported"
    assert status("16 weeks.", LEAVE, PARENTS, question="How many days off do pilots get?") != "supported"


def test_a_probability_needs_a_judge_that_reads_the_language(shared_handbook: Collection) -> None:
    (sentence,) = ragfm.check(GERMAN, [GERMAN])
    assert (sentence.status, sentence.probability) == ("supported", None)
    settings = Settings(ask=AskSection(verifier="none"))
    answer = "Dogs are welcome on Fridays."
    with Collection.open(shared_handbook.location, settings=settings, embedder=HashingEmbedder()) as unread:
        probabilities = [ragfm.check(answer, one)[0].probability for one in (shared_handbook, unread)]
    assert probabilities == [pytest.approx(0.95), None]


@pytest.mark.parametrize(
    "text", ["Das Büro öffnet um neun Uhr.", "会社は九時に開きます。", "Офис открывается в девять."]
)
def test_answers_in_other_languages_are_checked(text: str) -> None:
    assert status(text, LEAVE, text) == "supported"
    assert status(text, LEAVE) == "not_found"


def test_the_objects_of_langchain_are_passages() -> None:
    documents = pytest.importorskip("langchain_core.documents")
    document = documents.Document(PARENTS, metadata={"source": "leave.pdf", "page": 3, "start_index": 100})
    assert _cited(document) == ("leave.pdf", 3, 100, 100 + len(PARENTS))


def test_the_objects_of_llama_index_are_passages() -> None:
    schema = pytest.importorskip("llama_index.core.schema")
    node = schema.TextNode(text=PARENTS, metadata={"file_name": "leave.pdf", "page_label": "3"})
    for passage in (node, schema.NodeWithScore(node=node, score=0.5)):
        assert _cited(passage) == ("leave.pdf", 3, 0, len(PARENTS))


def test_the_objects_of_haystack_are_passages() -> None:
    haystack = pytest.importorskip("haystack")
    document = haystack.Document(
        content=PARENTS, meta={"file_path": "leave.pdf", "page_number": 3, "split_idx_start": 100}
    )
    assert _cited(document) == ("leave.pdf", 3, 100, 100 + len(PARENTS))


@pytest.mark.parametrize(
    "passage",
    [
        {"text": PARENTS, "uri": "leave.pdf", "page": 3, "start": 100},
        {"page_content": PARENTS, "metadata": {"source": "leave.pdf", "page": 3, "start": "100"}},
        {"content": PARENTS, "meta": {"url": "leave.pdf", "page": "3", "start": 100}},
        SimpleNamespace(text=PARENTS, metadata={"uri": "leave.pdf", "page": 3, "start": 100}),
    ],
)
def test_dictionaries_and_other_objects_are_passages(passage: Any) -> None:
    assert _cited(passage) == ("leave.pdf", 3, 100, 100 + len(PARENTS))


@pytest.mark.parametrize("page", ["iv", "9" * 5000, -1, 2.5, True, [3]])
def test_what_is_not_a_page_number_is_none(page: object) -> None:
    assert _cited({"text": PARENTS, "page": page}) == ("passage 2", None, 0, len(PARENTS))


def _cited(passage: object) -> tuple[str, int | None, int, int]:
    """Source, page and characters of the citation of the second passage."""
    (sentence,) = ragfm.check(PARENTS, [LEAVE, passage])
    (citation,) = sentence.citations
    assert (citation.n, citation.verified) == (2, True)
    return citation.uri, citation.page, citation.start, citation.end


def test_a_collection_is_searched_for_each_sentence(shared_handbook: Collection) -> None:
    answer = "You get 28 days of leave [9]. Dogs are welcome on Fridays. The canteen is closed [1]."
    sentences = ragfm.check(answer, shared_handbook, k=1)
    assert [one.status for one in sentences] == ["supported", "supported", "not_found"]
    assert [answer[one.start : one.end] for one in sentences] == [one.text for one in sentences]
    assert [one.citations[0].uri for one in sentences[:2]] == ["docs/leave.md", "docs/pets.markdown"]
    assert sentences[2].citations == ()


def test_hits_are_passages(shared_handbook: Collection) -> None:
    hits = shared_handbook.search("dogs on Fridays", 2)
    (sentence,) = ragfm.check("Dogs are welcome on Fridays [1].", hits)
    (citation,) = sentence.citations
    text = shared_handbook.document(citation.uri).text
    assert text[citation.start : citation.end] == citation.quote == "Dogs are welcome on Fridays."


def test_a_collection_shows_what_its_handle_may_see(collection: Collection, docs: Path) -> None:
    (docs / ".ragfm-access").write_text("hr")
    collection.sync(docs)
    answer = "Dogs are welcome on Fridays."
    assert ragfm.check(answer, collection.as_groups({"hr"}))[0].status == "supported"
    assert ragfm.check(answer, collection.as_groups({"it"})) == [
        CheckedSentence(answer, 0, len(answer), "not_found", probability=0.0)
    ]


def test_a_sentence_longer_than_the_embedders_window_is_checked(shared_handbook: Collection) -> None:
    assert len(ragfm.check("Dogs are welcome and " * 300, shared_handbook)) == 1


@pytest.mark.parametrize(
    ("answer", "passages", "error", "words"),
    [
        ("", [PARENTS], DataError, "'' cannot be checked: it has no sentence"),
        ("[1]", [PARENTS], DataError, "no sentence"),
        ("A word. " * 125_000, [PARENTS], TooLongError, "1,000,000 characters"),
        (PARENTS, ["A word. " * 125_000], TooLongError, "1,000,000 characters"),
        (PARENTS, [PARENTS, ""], DataError, "Passage 2 has no text"),
        (PARENTS, [None], DataError, "Passage 1 has no text: 'None'"),
        (PARENTS, [{"text": 7}], DataError, "Passage 1 has no text"),
        ("\ud800", [PARENTS], UnsupportedError, "lone surrogate"),
        (PARENTS, ["\ud800"], UnsupportedError, "text of passage 1"),
    ],
)
def test_what_cannot_be_checked_is_named(answer: str, passages: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ragfm.check(answer, passages)


def test_the_example_of_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "answer-checks.md").read_text(encoding="utf-8")
    (found,) = re.finditer(r"^```python\n(?P<code>.*?)^```\n\n(?P<printed>(?:    [^\n]*\n)+)", page, re.M | re.S)
    exec(found["code"], {})
    assert capsys.readouterr().out.splitlines() == [line.strip() for line in found["printed"].splitlines()]


def test_without_passages_nothing_is_found() -> None:
    assert status(PARENTS) == "not_found"
