"""Citations: found, put right, and never claimed where they don't hold."""

from __future__ import annotations

from ragfm.ground import ground
from ragfm.types import Hit

LEAVE = "Everybody has 28 days of leave a year. New parents get 16 weeks more. Ask Ms Okafor for the form."
ROOMS = "| room | seats |\n| --- | --- |\n| Oak | 12 |\n| Elm | 4 |"


def _shown(*texts: str) -> list[Hit]:
    return [
        Hit(f"docs/{n}.md", text, 100 * n, 100 * n + len(text), n, 0.5, {}, page=n, n=n)
        for n, text in enumerate(texts, 1)
    ]


def test_a_sentence_gets_the_passage_that_supports_it() -> None:
    text, citations = ground("How much leave do I get?", "You get 28 days of leave.", _shown(ROOMS, LEAVE))
    assert text == "You get 28 days of leave [2]."
    (citation,) = citations
    assert (citation.n, citation.uri, citation.page, citation.verified) == (2, "docs/2.md", 2, True)
    assert citation.quote == "Everybody has 28 days of leave a year."
    assert (citation.start, citation.end) == (200, 200 + len(citation.quote))


def test_each_sentence_is_held_against_its_own_evidence() -> None:
    text, citations = ground("What do parents get?", "Parents get 16 weeks. Ms Okafor has the form.", _shown(LEAVE))
    assert text == "Parents get 16 weeks [1]. Ms Okafor has the form [1]."
    assert [citation.quote for citation in citations] == [
        "New parents get 16 weeks more.",
        "Ask Ms Okafor for the form.",
    ]


def test_another_number_is_not_supported() -> None:
    text, citations = ground("How much leave do I get?", "You get 29 days of leave.", _shown(LEAVE))
    assert (text, citations) == ("You get 29 days of leave.", ())


def test_a_marker_of_the_reader_stays_and_says_when_it_does_not_hold() -> None:
    text, citations = ground("How much leave?", "You get 29 days of leave [1].", _shown(LEAVE))
    assert text == "You get 29 days of leave [1]."
    assert [citation.verified for citation in citations] == [False]


def test_a_marker_behind_the_full_stop_belongs_to_the_sentence_before() -> None:
    text, citations = ground("Leave?", "You get 28 days of leave. [1] Parents get 16 weeks more. [1]", _shown(LEAVE))
    assert text == "You get 28 days of leave [1]. Parents get 16 weeks more [1]."
    assert [citation.quote[:9] for citation in citations] == ["Everybody", "New paren"]


def test_several_markers_are_several_citations() -> None:
    _, citations = ground("Seats?", "Oak has 12 seats [1, 2].", _shown(ROOMS, "The room Oak has 12 seats."))
    assert [citation.n for citation in citations] == [1, 2]


def test_a_marker_of_no_passage_goes() -> None:
    text, citations = ground("Leave?", "Cats sleep a lot [7].", _shown(LEAVE))
    assert (text, citations) == ("Cats sleep a lot.", ())


def test_a_row_of_a_table_is_a_quote() -> None:
    _, citations = ground("How many seats does Oak have?", "Oak has 12 seats.", _shown(ROOMS))
    assert [citation.quote for citation in citations] == ["| Oak | 12 |"]


def test_the_question_tells_which_of_two_equal_numbers_is_meant() -> None:
    passage = "The trial period lasts 28 days. Annual leave is 28 days."
    _, citations = ground("How long is the trial period?", "28 days", _shown(passage))
    assert [citation.quote for citation in citations] == ["The trial period lasts 28 days."]


def test_words_without_content_support_nothing() -> None:
    assert ground("May I?", "Yes.", _shown(LEAVE)) == ("Yes.", ())
    assert ground("May I?", "", _shown(LEAVE)) == ("", ())


BONUS = "Full-time staff do not get a bonus. Part-time staff never get one."


def test_a_denial_supports_no_affirmation_and_the_other_way_round() -> None:
    _, citations = ground("Who gets a bonus?", "Full-time staff get a bonus of cash [1].", _shown(BONUS))
    assert [citation.verified for citation in citations] == [False]
    assert ground("Tell me of a bonus", "Full-time staff get it.", _shown(BONUS))[1] == ()
    _, citations = ground("Tell me of a bonus", "Full-time staff don't get it.", _shown(BONUS))
    assert [citation.quote for citation in citations] == ["Full-time staff do not get a bonus."]


def test_an_echo_of_the_question_claims_nothing() -> None:
    question = "How many weeks of leave do parents get?"
    assert ground(question, question, _shown(LEAVE)) == (question, ())
    _, citations = ground(question, f"{question} [1]", _shown(LEAVE))
    assert [citation.verified for citation in citations] == [False]
