"""Checks of answers of other systems, with the passages of real libraries."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ragfm
from ragfm import CheckedSentence, Collection
from ragfm.core.errors import DataError, TooLongError, UnsupportedError

LEAVE = "Every employee gets 28 days of leave."
PARENTS = "Parents get 16 weeks of leave."
DOGS = "Dogs are not allowed in the office."


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
    ("answer", "expected"),
    [
        ("Parents get 16 weeks of leave.", "supported"),
        ("Parents get 20 weeks of leave.", "contradicted"),
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


def test_a_contradiction_is_quoted() -> None:
    (sentence,) = ragfm.check("Parents get 20 weeks of leave.", [LEAVE, PARENTS])
    assert sentence.contradiction is not None
    assert (sentence.contradiction.n, sentence.contradiction.quote) == (2, PARENTS)
    assert not sentence.contradiction.verified


def test_where_passages_disagree_a_supported_sentence_has_its_contradiction() -> None:
    question = "How many weeks of leave do parents get?"
    (sentence,) = ragfm.check(PARENTS, ["Parents get 12 weeks of leave.", PARENTS], question=question)
    assert sentence.status == "supported"
    assert sentence.contradiction is not None
    assert sentence.contradiction.n == 1


def test_a_wrong_marker_has_a_fault() -> None:
    (sentence,) = ragfm.check("Parents get 16 weeks of leave [1].", [LEAVE, PARENTS])
    assert [(one.n, one.fault) for one in sentence.citations] == [(2, None), (1, "misattributed")]
    (sentence,) = ragfm.check("The boss is called Ann [1].", [LEAVE])
    assert [(one.n, one.fault) for one in sentence.citations] == [(1, "fabricated")]


def test_the_question_says_what_a_short_answer_is_about() -> None:
    question = "How many weeks of leave do parents get?"
    assert status("20 weeks.", LEAVE, PARENTS, question=question) == "contradicted"
    (sentence,) = ragfm.check("16 weeks.", [LEAVE, PARENTS], question=question)
    assert sentence.status == "supported"
    assert sentence.probability is not None
    assert sentence.probability > 0.5
    assert status("16 weeks.", LEAVE, PARENTS, question="How many days off do pilots get?") != "supported"


def test_a_probability_needs_a_question_in_a_language_that_the_verifier_reads() -> None:
    assert ragfm.check(PARENTS, [PARENTS])[0].probability is None
    german = "Eltern bekommen 16 Wochen Urlaub."
    (sentence,) = ragfm.check(german, [german], question="Wie viele Wochen Urlaub bekommen die Eltern?")
    assert (sentence.status, sentence.probability) == ("supported", None)


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
    assert ragfm.check(answer, collection.as_groups({"it"})) == [CheckedSentence(answer, 0, len(answer), "not_found")]


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
