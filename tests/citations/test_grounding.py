"""Citations: found, corrected, and never claimed where they do not hold."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from ragfm.citations.decision import compose, ground
from ragfm.citations.grounding import cite, cite_sentences, correct_answer
from ragfm.citations.support import analyze, best_spans, nearest_window, terms_of
from ragfm.citations.verifier import Reading
from ragfm.core.text import MARKER
from ragfm.core.types import Hit
from ragfm.generation.prompt import build_prompt
from ragfm.testing import ScriptedReader

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


def test_each_sentence_is_checked_against_its_own_evidence() -> None:
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


def test_a_marker_does_not_split_an_abbreviation_from_its_full_stop() -> None:
    text, _ = ground("Where is it made?", "It is made in the U.S. [1].", _shown("It is made in the U.S. only."))
    assert text == "It is made in the U.S. [1]."


def test_a_subscript_in_code_is_not_a_marker() -> None:
    passages = _shown("The first argument is in `sys.argv[1]`.", "Call main to start it.")
    said = "Read `sys.argv[1]`, the first argument [1]. Call main to start it[2]."
    sentences = cite("How do I read the argument?", said, passages)
    answer = compose(sentences)
    assert answer.text == "Read `sys.argv[\u200c1]`, the first argument [1]. Call main to start it [2]."
    assert [citation.n for citation in answer.citations] == [1, 2]
    assert [said[start:end] for start, end in answer.output_spans] == [said[:43], said[44:]]
    assert ground("What?", "```\nx = a[0]\n```", passages)[0] == "```\nx = a[\u200c0]\n```"


def test_a_marker_without_a_passage_is_removed() -> None:
    text, citations = ground("Leave?", "Cats sleep a lot [7].", _shown(LEAVE))
    assert (text, citations) == ("Cats sleep a lot.", ())


def test_a_row_of_a_table_is_a_quote() -> None:
    _, citations = ground("How many seats does Oak have?", "Oak has 12 seats.", _shown(ROOMS))
    assert [citation.quote for citation in citations] == ["| Oak | 12 |"]


def test_the_header_of_a_table_counts_for_its_cells() -> None:
    prices = "| Length of the boat | One day | One week |\n| --- | --- | --- |\n| 26 to 40 feet | £12 | £46 |"
    depths = "A boat may be 58 feet long."
    _, citations = ground("What does a week cost for a boat of 30 feet?", "£46 [1]", _shown(prices, depths))
    assert [(citation.quote, citation.verified) for citation in citations] == [("| 26 to 40 feet | £12 | £46 |", True)]
    # a number in a header is no row's, and below the table there is no header
    years = "| room | 1911 |\n| --- | --- |\n| Oak | 12 |\n\nElm is new."
    for said in ("Oak 1911 [1]", "Elm is a room [1]"):
        assert [c.verified for c in ground("Which rooms are there?", said, _shown(years))[1]] == [False]


def test_a_row_belongs_to_the_section_above_it() -> None:
    rows = "| Sales: | |\n| Boats | 7 |\n| Lamps | 4 |\n| Costs: | |\n| Boats | 7 |\n| Lamps | 3 |\n\nBoats are red."
    passages = _shown(f"| | 2023 |\n| --- | --- |\n{rows}")
    for question, quote in (("What were the costs of lamps?", "| Lamps | 3 |"), ("Sales of lamps?", "| Lamps | 4 |")):
        found = nearest_window(analyze(question, passages))
        assert found is not None
        assert found.text == quote
    _, (citation,) = ground("What were the costs of boats in 2023?", "7 [1]", passages)
    assert citation.start == passages[0].start + passages[0].text.rindex("| Boats | 7 |")
    *_, lamps, prose = analyze("Why?", passages).all_windows
    assert lamps.row
    assert (lamps.row.section, prose.row) == ("Costs:", None)


def test_the_question_tells_which_of_two_equal_numbers_is_meant() -> None:
    passage = "The trial period lasts 28 days. Annual leave is 28 days."
    _, citations = ground("How long is the trial period?", "28 days", _shown(passage))
    assert [citation.quote for citation in citations] == ["The trial period lasts 28 days."]


def test_words_without_content_support_nothing() -> None:
    assert ground("May I?", "Yes.", _shown(LEAVE)) == ("Yes.", ())
    assert ground("May I?", "", _shown(LEAVE)) == ("", ())


BONUS = "Full-time staff do not get a bonus. Part-time staff never get one."


def test_a_denial_does_not_support_an_affirmation_or_vice_versa() -> None:
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


MOON = "Neil Armstrong, an American, was the first man on the moon. He landed in July 1969 with Buzz Aldrin."
MARS = "Valentina Tereshkova was the first woman in space. No human being has been on Mars, said Buzz Aldrin in 2019."


def faults(question: str, answer: str, *texts: str) -> list[str | None]:
    return [citation.fault for citation in ground(question, answer, _shown(*texts))[1]]


def test_another_name_is_not_supported() -> None:
    question = "Who was the first man on the moon?"
    assert faults(question, "Neil Armstrong was [1].", MOON) == [None]
    assert faults(question, "Neil Simpson was [1].", MOON) == ["fabricated"]
    assert faults(question, "The first man on the moon was Neil Simpson, an American, they say [1].", MOON) == [
        "fabricated"
    ]
    assert ground(question, "The American Yuri Gagarin was the first man.", _shown(MOON))[1] == ()


def test_a_name_must_also_be_a_name_in_the_quote() -> None:
    text = "The last bus to the coast leaves at nine."
    assert ground("Where does it go?", "It goes to the Last Coast.", _shown(text))[1] == ()
    assert len(ground("Where does the bus go?", "It goes to the coast.", _shown(text))[1]) == 1


def test_a_number_in_words_is_a_number() -> None:
    text = "The office opens at nine and has 12 rooms."
    assert len(ground("When does it open?", "The office opens at 9.", _shown(text))[1]) == 1
    assert len(ground("How many rooms has the office?", "The office has twelve rooms.", _shown(text))[1]) == 1
    assert ground("When does it open?", "The office opens at ten and has rooms.", _shown(text))[1] == ()


@pytest.mark.parametrize(
    ("said", "text", "holds"),
    [
        ("-5 degrees", "The lowest temperature is -5 degrees.", True),
        ("\u22125 degrees", "The lowest temperature is (-5) degrees.", True),
        ("-5 degrees", "The lowest temperature is minus 5 degrees.", True),
        ("-5 degrees", "The lowest temperature is 5 degrees.", False),
        ("5 degrees", "The lowest temperature is -5 degrees.", False),
        ("5 degrees", "The lowest temperature is minus 5 degrees.", False),
        ("5 degrees", "The lowest temperature is 3-5 degrees.", True),
        ("10 %", "The lowest temperature is at 5%-10% of the days.", True),
        ("COVID 19", "The lowest temperature was in COVID-19 times.", True),
        ("5 degrees", "The lowest temperature is:\n- 5 degrees, the lowest temperature", True),
        ("3,5 degrees", "The lowest temperature is 35 degrees.", False),
        ("3,5 degrees", "The lowest temperature is 3.5 degrees.", True),
        ("3,500 degrees", "The lowest temperature is 3500 degrees.", True),
        ("1,250.50 degrees", "The lowest temperature is 1250.50 degrees.", True),
        ("1,250.50 degrees", "The lowest temperature is 1.250,50 degrees.", True),
        ("1,250,000 degrees", "The lowest temperature is 1.250.000 degrees.", True),
        ("1,250 degrees", "The lowest temperature is 1.250 degrees.", False),
        ("0,500 degrees", "The lowest temperature is 500 degrees.", False),
        ("0,500 degrees", "The lowest temperature is 0.500 degrees.", True),
    ],
)
def test_signs_and_decimal_commas_are_part_of_a_number(said: str, text: str, holds: bool) -> None:
    assert verified("What is the lowest temperature?", f"The lowest temperature is {said}.", text) is holds


def test_a_number_alone_must_be_near_the_words_of_the_question() -> None:
    text = "The museum was built in 1974. The price of oil rose to 12 dollars in 1979."
    _, citations = ground("When was the museum built?", "1974", _shown(text))
    assert [citation.quote for citation in citations] == ["The museum was built in 1974."]
    assert ground("When did the president of Brazil resign?", "In 1974.", _shown(text))[1] == ()


def test_a_pronoun_refers_to_the_name_in_the_sentence_before() -> None:
    question = "Who landed in 1969?"
    _, citations = ground(question, "Neil Armstrong landed in July.", _shown(MOON))
    assert [citation.quote for citation in citations] == [MOON]
    assert citations[0].verified
    assert ground(question, "Valentina Tereshkova landed.", _shown(MOON, MARS))[1] == ()  # "No human" refers to none


def test_a_denial_counts_in_its_own_clause() -> None:
    text = "The aim of the law is to keep prices down, not to hinder trade."
    question = "What is the aim of the law?"
    assert faults(question, "It is to keep prices down [1].", text) == [None]
    assert faults(question, "It is to hinder trade [1].", text) == ["fabricated"]


def test_a_word_of_the_question_may_be_the_answer() -> None:
    text = "It is harder to change the law than to keep it."
    assert len(ground("Is it easier or harder to change the law than to keep it?", "Harder.", _shown(text))[1]) == 1
    assert ground("Is it easier or harder to change the law than to keep it?", "Easier.", _shown(text))[1] == ()


def test_a_quotation_must_occur_verbatim() -> None:
    question = "What does it say of Armstrong?"

    def said(quotation: str) -> list[str | None]:
        return faults(question, f'It says: "{quotation}" [1].', MOON, MARS)

    assert said("Neil Armstrong, an American, was the first man on the moon") == [None]
    assert said("neil Armstrong,\tan American, was the first man …") == [None]
    assert said("He landed in July 1969 with Buzz Aldrin.") == [None]
    assert said("Neil Armstrong, an American, was the best man on the moon") == ["fabricated"]
    assert said("Neil Armstrong, an American, was not the first man on the moon") == ["fabricated"]
    assert said("Neil Armstrong was the first man on the moon") == ["fabricated"]
    assert said("He landed in July 1968 with Buzz Aldrin.") == ["fabricated"]
    assert said("first man on the moon. No human being has been on Mars") == ["stitched"]
    assert said("Valentina Tereshkova was the first woman in space.") == ["subject", "misattributed"]


def test_a_quotation_over_two_sentences_is_cited_whole() -> None:
    quotation = "was the first man on the moon. He landed in July 1969"
    _, citations = ground("What does it say?", f"It says “{quotation}” of him.", _shown(MARS, MOON))
    assert [(citation.n, citation.quote, citation.verified) for citation in citations] == [(2, MOON, True)]


def test_text_copied_from_a_neutralized_prompt_is_cited_from_the_document() -> None:
    text = "Fees are below.\n[2] The fee of <b>guests</b> is 90 euros."
    (hit,) = _shown(text)
    copied = "[\u200c2] The fee of <\u200cb>guests<\u200c/b> is 90 euros"
    assert copied in build_prompt("Q?", [hit], ScriptedReader()).messages[-1].content
    said, citations = ground("What does it say?", f'It says: "{copied}" [1].', [hit])
    assert [(c.n, c.verified, c.quote) for c in citations] == [(1, True, text)]
    assert said.endswith("[1].")


def test_a_term_in_quotation_marks_is_not_a_quotation() -> None:
    assert faults("What is it?", 'The "first man" on the moon was an American [1].', MOON) == [None]


def test_a_sentence_with_the_marker_of_the_wrong_passage_is_misattributed() -> None:
    question = "Who was the first man on the moon?"
    assert faults(question, "Neil Armstrong, an American, was [2].", MOON, MARS) == [None, "misattributed"]
    assert faults(question, "An American with Tereshkova landed on Mars [2].", MOON, MARS) == ["stitched"]


@pytest.mark.parametrize(("said", "text"), [("28 [1].", "28 [2][1]."), ("28 [1, 3].", "28 [2][1][3].")])
def test_a_right_answer_with_a_wrong_marker_is_supported_by_the_right_passage(said: str, text: str) -> None:
    sentences = cite("How many days of leave has everybody?", said, _shown(ROOMS, LEAVE, MOON))
    for strict in (True, False):
        answer = compose(sentences, strict=strict)
        assert (answer.text, answer.unsupported) == (text, ())
        assert {c.n: c.fault for c in answer.citations} == {1: "misattributed", 2: None} | (
            {3: "misattributed"} if "3" in said else {}
        )


def test_a_right_marker_next_to_a_wrong_one_needs_no_third() -> None:
    text, citations = ground("How many days of leave has everybody?", "28 [1, 2].", _shown(ROOMS, LEAVE, LEAVE))
    assert text == "28 [1][2]."
    assert [c.fault for c in citations] == ["misattributed", None]


OLD = "In 2024, full-time staff get 28 days of leave a year."
NEW = "In 2026, full-time staff get 30 days of leave a year."


def test_unsupported_sentences_are_marked_or_left_out() -> None:
    sentences = cite("How much leave?", "Cats sleep. You get 28 days of leave. Dogs bark.", _shown(LEAVE))
    answer = compose(sentences)
    assert answer.text == "Cats sleep. You get 28 days of leave [1]. Dogs bark."
    assert [answer.text[start:end] for start, end in answer.unsupported] == ["Cats sleep.", "Dogs bark."]
    (citation,) = answer.citations
    assert answer.text[citation.answer_start : citation.answer_end] == "You get 28 days of leave [1]."
    strict = compose(sentences, strict=True)
    assert (strict.text, strict.unsupported) == ("You get 28 days of leave [1].", ())
    assert strict.citations == (replace(citation, answer_start=0, answer_end=29),)


def contradicting(question: str, answer: str, shown: list[Hit]) -> list[int]:
    """The passages that contradict an answer, which has one citation."""
    composed = compose(cite(question, answer, shown))
    assert len(composed.citations) == 1
    return [contradiction.n for contradiction in composed.contradictions]


def test_a_passage_that_says_otherwise_is_named() -> None:
    question = "How much leave do full-time staff get?"
    answer = compose(cite(question, "They get 28 days.", _shown(OLD, ROOMS, NEW)))
    assert answer.text == "They get 28 days [1]."
    (contradiction,) = answer.contradictions
    assert contradiction.sentence == f"But [3] says otherwise: “{NEW}”"
    assert answer.text[contradiction.answer_start : contradiction.answer_end] == answer.text
    assert [(citation.n, citation.quote, citation.verified) for citation in answer.citations] == [(1, OLD, True)]
    assert (contradiction.n, contradiction.quote) == (3, NEW)
    off = compose(cite(question, "They get 28 days.", _shown(OLD, NEW)), contradictions=False)
    assert (off.text, off.contradictions) == ("They get 28 days [1].", ())


def test_a_marker_in_a_documents_words_does_not_belong_to_the_answer() -> None:
    new = f"{NEW}[1]"
    sentences = cite("How much leave do full-time staff get?", "They get 28 days.", _shown(OLD, new))
    (contradiction,) = compose(sentences).contradictions
    line = contradiction.sentence
    assert line == f"But [2] says otherwise: “{NEW}[\u200c1]”"
    assert [int(n) for n in MARKER.findall(line)] == [2]
    assert contradiction.quote == new


def test_a_marker_in_the_verifiers_words_does_not_belong_to_the_answer() -> None:
    shown = _shown(ROOMS, "Leave is 30 days[1] a year.")
    reading = Reading(shown[1], (SimpleNamespace(best_within=lambda *_: (0.9, 9, 19)),))  # type: ignore[arg-type]
    said = correct_answer("Oak.", best_spans([reading], analyze("How much leave?", shown)))
    text, citations = ground("How much leave?", said, shown)
    assert text == "30 days[\u200c1] [2]."
    assert [(citation.n, citation.verified) for citation in citations] == [(2, True)]


CARS = """|  | mpg | cyl | hp | Male owners | Female owners |
| --- | --- | --- | --- | --- | --- |
| Fiat 128 | 32.4 | 4 | 66 | 12 | 9 |
| Maserati Bora | 15.0 | 8 | 335 | 3 |  |"""


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("What is the horsepower (hp) of the Maserati Bora?", "335"),
        ("How many male owners does the Maserati Bora have?", "3"),
        ("How many female owners does the Maserati Bora have?", "15.0"),  # the cell is empty
        ("How fast is the Maserati Bora?", "15.0"),
        ("How many owners does the Maserati Bora have?", "15.0"),  # male or female
    ],
)
def test_of_the_verifiers_row_the_cell_of_the_column_counts_that_the_question_names(question: str, text: str) -> None:
    shown = _shown(CARS)
    start = CARS.index("15.0")
    reading = Reading(shown[0], (SimpleNamespace(best_within=lambda *_: (0.9, start, start + 4)),))  # type: ignore[arg-type]
    assert best_spans([reading], analyze(question, shown)) == [(text, 1, 0.9)]


def test_an_answer_of_the_verifier_from_another_row_than_the_questions_is_replaced() -> None:
    shown = _shown(CARS)

    def best_within(start: int, end: int) -> tuple[float, int, int]:
        likely = [(0.3, CARS.index("32.4")), (0.02, CARS.index("15.0"))]
        return max(
            ((chance, at, at + 4) for chance, at in likely if start <= at and at + 4 <= end), default=(0.0, 0, 0)
        )

    reading = Reading(shown[0], (SimpleNamespace(best_within=best_within),))  # type: ignore[arg-type]
    assert best_spans([reading], analyze("How fast is the Maserati Bora?", shown)) == [("15.0", 1, 0.02)]
    assert best_spans([reading], analyze("How fast is the Volvo?", shown)) == [("32.4", 1, 0.3)]  # no row is about it


def test_passages_that_agree_or_have_another_subject_are_no_contradiction() -> None:
    question = "How much leave do full-time staff get?"
    same = "All full-time staff get 28 days of leave a year, in 2025 too."
    other = "Dogs are welcome in 30 rooms of the office."
    assert contradicting(question, "They get 28 days.", _shown(OLD, same, other)) == []
    shares = _shown("- Members of the Trust: 10 per cent.", "The director wants 6 per cent more.")
    assert contradicting("What is the reduction?", "10 per cent [1].", shares) == []


def test_comparisons_of_other_years_are_no_contradiction() -> None:
    """Both sentences have the question's words."""
    of_2022 = "Net sales grew by 5 percent in 2022 compared with 2021."
    of_2023 = "Net sales grew by 7 percent in 2023 compared with 2022."
    question = "How much did net sales grow in 2022?"
    assert contradicting(question, "By 5 percent.", _shown(of_2022, of_2023)) == []
    assert contradicting(question, "By 5 percent.", _shown(of_2022, of_2022.replace("5 ", "9 "))) == [2]
    built = ("The mill on the river was built in 1964.", "The mill on the river was built in 1946.")
    assert contradicting("When was the mill built?", "1964.", _shown(*built)) == [2]


def test_another_name_in_the_same_words_is_a_contradiction() -> None:
    question = "Who won the cup in Vienna?"
    shown = _shown("The cup in Vienna was won by Maria Horn.", "The cup in Vienna was won by Petra Falk.")
    answer = compose(cite(question, "Maria Horn won it.", shown))
    assert [contradiction.n for contradiction in answer.contradictions] == [2]
    assert len(answer.citations) == 1


@pytest.mark.parametrize(
    ("question", "said", "text", "same", "other"),
    [
        (
            "How many people does Cirrus seat?",
            "8",
            "Cirrus seats 8 people.",
            "Cirrus seats 9 people.",
            "Stratus seats 9 people.",
        ),
        (
            "How many desks has Berlin?",
            "8",
            "Berlin has 8 new desks.",
            "Berlin has 9 new desks.",
            "Paris has 9 new desks.",
        ),
        (
            "Who wrote Emma?",
            "Jane Austen",
            "The novel Emma was written by Jane Austen.",
            "The novel Emma was written by Bram Stoker.",
            "The novel Dracula was written by Bram Stoker.",
        ),
        (
            "What is a sauna ticket?",
            "8 euros",
            "A sauna ticket costs 8 euros.",
            "Sauna tickets cost 9 euros.",
            "Pool tickets cost 9 euros.",
        ),
        ("How much leave was it in 2024?", "28", OLD, OLD.replace("28", "30"), NEW),
    ],
)
def test_the_same_words_about_another_subject_are_not_a_contradiction(
    question: str, said: str, text: str, same: str, other: str
) -> None:
    assert contradicting(question, f"{said}.", _shown(text, other)) == []
    assert contradicting(question, f"{said}.", _shown(text, other, same)) == [3]


def test_a_heading_may_name_the_subject() -> None:
    cirrus, stratus, too = _shown("It seats 8 people.", "It seats 12 people.", "It seats 9 people.")
    shown = [replace(cirrus, context="Rooms > Cirrus"), replace(stratus, context="Rooms > Stratus")]
    assert contradicting("How many people does Cirrus seat?", "8.", shown) == []
    shown.append(replace(too, context="Rooms > Cirrus"))
    assert contradicting("How many people does Cirrus seat?", "8.", shown) == [3]


def verified(question: str, answer: str, *texts: str, context: str = "") -> bool:
    shown = [replace(hit, context=context) for hit in _shown(*texts)]
    return any(citation.verified for citation in ground(question, answer, shown)[1])


def test_most_of_the_words_must_be_there() -> None:
    assert not verified("How much leave do I get?", "It is 28 days of sabbatical and travel money.", LEAVE)


def test_a_number_alone_must_be_in_the_sentence_that_answers_the_question() -> None:
    text = "The museum of modern art in Vienna was built in 1974. In 1979 the prices of art rose."
    question = "When was the museum of modern art in Vienna built?"
    assert verified(question, "1974", text)
    assert not verified(question, "1979", text)


def test_a_question_that_denies_is_answered_by_a_denial() -> None:
    assert verified("What can an old man not do?", "Earn much.", "An old man cannot earn much.")


@pytest.mark.parametrize(
    ("said", "text", "holds"),
    [
        ("Cirrus has no projector.", "Cirrus has a projector.", False),
        ("Cirrus has no projector.", "Cirrus has no projector.", True),
        ("Cirrus has no projector.", "Cirrus, unlike Stratus, has no projector.", True),
        ("Cirrus has no projector.", "Cirrus has a projector, but no window.", False),
        ("Cirrus doesn't have a projector.", "Cirrus has a projector, but doesn't have a window.", False),
        ("Cirrus.", "Cirrus has no projector.", True),
        ("Cirrus.", "Cirrus has a projector.", False),
        ("Cirrus.", "Not only Stratus, but also Cirrus has a projector.", False),
    ],
)
def test_a_denial_must_be_in_the_quote_even_if_the_question_has_one(said: str, text: str, holds: bool) -> None:
    assert verified("Which rooms have no projector?", said, text) is holds


@pytest.mark.parametrize(
    ("said", "marked"),
    [
        ("Yes.", ["Yes."]),
        ("No.", ["No."]),
        ("Yes [1].", ["Yes."]),
        ("Yes. You get 28 days of leave.", []),
        ("It is.", []),
    ],
)
def test_a_yes_that_is_the_whole_answer_is_not_supported(said: str, marked: list[str]) -> None:
    answer = compose(cite("Is parking allowed?", said, _shown(LEAVE)))
    assert [answer.text[start:end] for start, end in answer.unsupported] == marked


def test_a_bare_no_is_not_supported_by_an_unrelated_negation() -> None:
    text, citations = ground("Are dogs allowed in Cirrus?", "No [1].", _shown("Cirrus has no projector for dogs."))
    assert (text, citations) == ("No.", ())


def test_words_of_headings_count_for_a_quote_but_numbers_do_not() -> None:
    assert verified("How much is it?", "Sailors get 16 weeks.", "It is 16 weeks.", context="Leave > Sailors")
    assert not verified("How much is it?", "Sailors get 16 weeks.", "It is 16 weeks.")
    assert not verified("What is a coffee?", "It costs 3 euros in 2026.", "It costs 3 euros.", context="Prices 2026")


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        ("It is within 30 days from delivery.", "It is 30 days from delivery.", "It is 30 weeks from delivery."),
        (
            "It is within 30 working days from delivery.",
            "It is 30 days from delivery.",
            "It is 30 weeks from delivery.",
        ),
        ("The dose is 400 mg per day.", "The dose is 400 milligrams a day.", "The dose is 400 g per day."),
        ("The dose is 400 mg per day.", "The dose is 400 mg/day.", "The dose is 400 mg per week."),
        ("It costs 30 euros a month.", "It costs €30 per month.", "It costs 30 dollars a month."),
        ("It costs 30 € every month.", "It costs 30 euros a month.", "It costs 30 euros a year."),
        ("It rose by 5 per cent in spring.", "It rose by 5% in spring.", "It rose by 5 dollars in spring."),
        ("It opens at 9:00 am on weekdays.", "It opens at 9:00 a.m. on weekdays.", "It opens at 9:00 pm on weekdays."),
        ("It takes thirty minutes to get there.", "It takes 30 min to get there.", "It takes 30 h to get there."),
        (
            "More than 50 people work in the house.",
            "It has over 50 people at work.",
            "Fewer than 50 people work there.",
        ),
        ("The house is non-refundable.", "The house is nonrefundable.", "The house is refundable."),
        (
            "The house is on the second floor of the yard.",
            "The house is on the second floor of the yard.",
            "The house is on the first floor of the yard.",
        ),
        ("It rose by 5 euros last year.", "It grew by 5 euros last year.", "It fell by 5 euros last year."),
        (
            "The minimum age at night is 18 years.",
            "At night, the minimum age is 18.",
            "The maximum age at night is 18.",
        ),
        (
            "Bikes in the front yard are prohibited.",
            "Bikes in the yard are prohibited.",
            "Bikes in the front yard are allowed.",
        ),
        ("It is disabled in version 5 of the gate.", "It is disabled in version 5.", "It is enabled in version 5."),
        ("The dose is 400 µg per day.", "The dose is 400 mcg a day.", "The dose is 400 mg per day."),
        ("It costs 30 CHF a month.", "It costs 30 francs a month.", "It costs $30 a month."),
        ("Call before 9 on weekdays.", "Call until 9 on weekdays.", "Call after 9 on weekdays."),
        ("The gate is always open at night.", "It is open at night, always.", "It is rarely open at night."),
        ("Write to help@acme.com for help.", "Write to help@acme.com.", "Write to sales@acme.com for help."),
        ("It is in /etc/acme/a.conf there.", "It is in /etc/acme/a.conf.", "It is in /etc/acme/b.conf there."),
        ("| fee in euros | 30 |", "The fee is 30 euros.", "The fee is 31 euros."),
    ],
)
def test_units_opposites_and_addresses_must_be_the_same(text: str, right: str, wrong: str) -> None:
    question = "What about the house, the gate, the fee and how to write to them?"
    assert (verified(question, right, text), verified(question, wrong, text)) == (True, False)


@pytest.mark.parametrize(
    ("said", "text", "holds"),
    [
        ("The fee is 5 percent.", "The fee is 5%.", True),
        ("The fee is 5 per cent.", "The fee is 5%.", True),
        ("The fee is 30 euros.", "The fee is €30.", True),
        ("The fee is 30 USD.", "The fee is $30.", True),
        ("The fee is 30 euros.", "The fee is $30.", False),
        ("The fee is 30 euros.", "The fee is 30.", False),
        ("30 minutes.", "The fee is paid within 30 min.", True),
        ("9 a.m.", "The fee is due at 9 am.", True),
        ("9 a.m.", "The fee is due at 9 pm.", False),
    ],
)
def test_a_unit_may_have_another_form(said: str, text: str, holds: bool) -> None:
    assert verified("What is the fee?", said, text) is holds


ZH = "会议室在三楼。我们每周五开会，会议持续四十五分钟。停车费每天二十元，找前台的张伟付。"
JA = "会議室は三階にあります。プロジェクターは受付の田中さんに借ります。駐車料金は１日500円です。"


@pytest.mark.parametrize(
    ("question", "said", "text", "holds"),
    [
        ("会议室在哪里？", "会议室在三楼。", ZH, True),
        ("会议室在哪里？", "三楼。", ZH, True),
        ("会议室在哪里？", "在3楼。", ZH, True),
        ("会议室在哪里？", "会议室在四楼。", ZH, False),
        ("会议室在哪里？", "会议室在十三楼。", ZH, False),
        ("会议多长时间？", "会议持续45分钟。", ZH, True),
        ("会议多长时间？", "会议持续四十分钟。", ZH, False),
        ("停车费找谁付？", "停车费找前台的张伟付。", ZH, True),
        ("停车费找谁付？", "停车费找李明经理付。", ZH, False),
        ("会議室はどこですか？", "会議室は三階です。", JA, True),
        ("会議室はどこですか？", "3階にあります。", JA, True),
        ("会議室はどこですか？", "会議室は四階にあります。", JA, False),
        ("プロジェクターは誰に借りますか？", "受付の田中さんに借ります。", JA, True),
        ("誰に何を借りますか？", "プロジェクターは田中さんに借ります。", JA, True),
        ("プロジェクターは誰に借りますか？", "受付の鈴木様に借ります。", JA, False),
        ("駐車料金はいくらですか？", "1日５００円です。", JA, True),
        ("駐車料金はいくらですか？", "1日600円です。", JA, False),
    ],
)
def test_chinese_and_japanese_are_compared_by_pairs_of_characters(
    question: str, said: str, text: str, holds: bool
) -> None:
    assert verified(question, said, text) is holds
    sentences = cite(question, said, _shown(ROOMS, text))
    assert compose(sentences, strict=True).text == (f"{said[:-1]} [2]。" if holds else "")


@pytest.mark.parametrize(
    ("numeral", "number"),
    [
        ("二〇二四", "2024"),
        ("十", "10"),
        ("一百零五", "105"),
        ("三千五百", "3500"),
        ("一万二千", "12000"),
        ("三億", "300000000"),
        ("一亿二千万", "120000000"),
        ("一万二千亿", "1200000000000"),
    ],
)
def test_chinese_numerals_are_numbers(numeral: str, number: str) -> None:
    assert terms_of(f"约{numeral}人").numbers == {number}


def test_sentences_end_by_the_rules_of_the_passages_language() -> None:
    text = "Der Antrag ist einzureichen. Resturlaub verfällt am 31. März des Folgejahres."
    analysis = analyze("Wann verfällt Resturlaub?", _shown(text), "de")
    (sentence,) = cite_sentences("Resturlaub verfällt am 31. März.", analysis)
    assert sentence.text == "Resturlaub verfällt am 31. März [1]."
    assert [found.quote for found in sentence.evidence] == ["Resturlaub verfällt am 31. März des Folgejahres."]


def test_only_a_sentence_that_refers_back_borrows_a_name() -> None:
    assert verified("Who landed?", "Neil Armstrong landed in July.", "Neil Armstrong was there. He landed in July.")
    assert not verified(
        "Who landed?", "Neil Armstrong landed in July.", "Neil Armstrong was there. Others landed in July."
    )


def test_quotations_are_told_from_terms_and_all_of_them_count() -> None:
    assert verified("What was he?", 'The "moon man" was an American.', MOON)
    assert verified("What does it say?", 'It says: "He landed in July 1969."', MOON)
    both = 'It says "was the first man" and "an American".'
    assert verified("What does it say?", both, MOON)
    assert not verified("What does it say?", 'It says "was the first man" and "landed in June 1969".', MOON)


def test_a_repetition_of_the_question_is_not_verified_even_if_it_is_a_quote() -> None:
    question = "Do parents get many weeks of leave?"
    assert not verified(question, "Parents get many weeks of leave.", "Parents get many weeks of leave.")
