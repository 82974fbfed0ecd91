"""Which sentences are cited with which quote, next to a judge that reads what a test says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from support.judges import ScriptedJudge
from support.passages import JUDGE, cited_answer, grounded, passages

from ragfm import Hit
from ragfm.answering.decision import compose
from ragfm.answering.grounding import SUPPORTED, VERIFIED, Grounding, agrees
from ragfm.answering.judge import Evidence
from ragfm.core.abstention import ABSTENTION
from ragfm.core.text import MARKER

LEAVE = "Everybody has 28 days of leave a year. New parents get 16 weeks more. Ask Ms Okafor for the form."
ROOMS = "| room | seats |\n| --- | --- |\n| Oak | 12 |\n| Elm | 4 |"
MOON = "Neil Armstrong, an American, was the first man on the moon. He landed in July 1969 with Buzz Aldrin."
MARS = "Valentina Tereshkova was the first woman in space. No human being has been on Mars, said Buzz Aldrin."
HOW_MUCH = "How much leave do I get?"


def faults(question: str, output: str, *texts: str) -> list[str | None]:
    return [citation.fault for citation in grounded(question, output, passages(*texts))[1]]


# --- Markers -----------------------------------------------------------------------------------------------------


def test_a_sentence_gets_the_passage_that_supports_it() -> None:
    text, (citation,) = grounded(HOW_MUCH, "You get 28 days of leave.", passages(ROOMS, LEAVE))
    assert text == "You get 28 days of leave [2]."
    assert (citation.n, citation.uri, citation.page, citation.verified) == (2, "docs/2.md", 2, True)
    assert citation.quote == "Everybody has 28 days of leave a year."
    assert (citation.start, citation.end) == (200, 200 + len(citation.quote))


def test_a_citation_has_the_judges_probability_of_support() -> None:
    said = "You get 28 days of leave [1]."
    _, (judged,) = grounded(HOW_MUCH, said, passages(LEAVE), ScriptedJudge(supports=lambda _: 0.7))
    assert (judged.probability, judged.fault) == (0.7, "unclear")
    answer = compose(Grounding(HOW_MUCH, passages(LEAVE), "en", None).cite(said))
    assert [one.probability for one in answer.citations] == [None]


def test_each_sentence_is_checked_against_its_own_evidence() -> None:
    text, citations = grounded("What do parents get?", "Parents get 16 weeks. Ms Okafor has it.", passages(LEAVE))
    assert text == "Parents get 16 weeks [1]. Ms Okafor has it [1]."
    assert [one.quote for one in citations] == ["New parents get 16 weeks more.", "Ask Ms Okafor for the form."]


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("You get 28 days of leave [1].", "You get 28 days of leave [1]."),
        ("You get 28 days of leave. [1]", "You get 28 days of leave [1]."),
        ("You get 29 days of leave [1].", "You get 29 days of leave [1]."),  # it stays, and is not verified
        ("You get 29 days of leave.", "You get 29 days of leave."),
        ("You get 28 days of leave [7].", "You get 28 days of leave [1]."),
        ("Cats sleep a lot [7].", "Cats sleep a lot."),
        ("I like the U.S. [1].", "I like the U.S. [1]."),
        ("Yes.", "Yes."),
        ("", ""),
    ],
)
def test_markers_are_corrected(output: str, text: str) -> None:
    assert grounded(HOW_MUCH, output, passages(LEAVE))[0] == text


def test_several_markers_are_several_citations() -> None:
    _, citations = grounded("Seats?", "Oak has 12 seats [1, 2].", passages(ROOMS, "The room Oak has 12 seats."))
    assert [one.n for one in citations] == [1, 2]


def test_a_subscript_in_code_is_not_a_marker() -> None:
    hits = passages("The first argument is in `sys.argv[1]`.", "Call main to start it.")
    said = "Read `sys.argv[1]`, the first argument [1]. Call main to start it[2]."
    answer = compose(Grounding("How do I read the argument?", hits, "en", JUDGE).cite(said))
    assert answer.text == "Read `sys.argv[\u200c1]`, the first argument [1]. Call main to start it [2]."
    assert [citation.n for citation in answer.citations] == [1, 2]
    assert [said[start:end] for start, end in answer.output_spans] == [said[:43], said[44:]]


@pytest.mark.parametrize(("said", "text"), [("28 [1].", "28 [2][1]."), ("28 [1, 3].", "28 [2][1][3].")])
def test_a_right_answer_with_a_wrong_marker_is_supported_by_the_right_passage(said: str, text: str) -> None:
    sentences = Grounding("How much leave has everybody?", passages(ROOMS, LEAVE, MOON), "en", JUDGE).cite(said)
    for strict in (True, False):
        answer = compose(sentences, strict=strict)
        assert (answer.text, answer.unsupported) == (text, ())
        assert {one.fault for one in answer.citations} == {None, "misattributed"}


def test_a_right_marker_next_to_a_wrong_one_needs_no_third() -> None:
    text, citations = grounded("How much leave has everybody?", "28 [1, 2].", passages(ROOMS, LEAVE, LEAVE))
    assert text == "28 [1][2]."
    assert [one.fault for one in citations] == ["misattributed", None]


# --- Support and faults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("likelihood", "supports", "fault"),
    [
        (VERIFIED, True, None),
        (VERIFIED - 0.01, True, "unclear"),
        (SUPPORTED, True, "unclear"),
        (SUPPORTED - 0.01, False, "fabricated"),
    ],
)
def test_the_judges_probability_decides(likelihood: float, supports: bool, fault: str | None) -> None:
    judge = ScriptedJudge(supports=lambda _: likelihood)
    _, (citation,) = grounded(HOW_MUCH, "You get 28 days [1].", passages(LEAVE), judge)
    assert (citation.supports, citation.fault, citation.verified) == (supports, fault, fault is None)


def test_the_judge_reads_question_claim_unit_and_what_stands_above_it() -> None:
    read = list[Evidence]()

    def supports(evidence: Evidence) -> float:
        read.append(evidence)
        return 0.9

    grounded(
        "How much?",
        "It is 28 [1].",
        passages("Leave is 28 days.", context="Handbook"),
        ScriptedJudge(supports=supports),
    )
    assert Evidence("Leave is 28 days.", "How much?", "It is 28.", "Handbook") in read


def test_what_is_exact_can_refute_but_not_support() -> None:
    sure, unsure = (ScriptedJudge(supports=lambda _, p=p: p) for p in (0.99, 0.01))  # type: ignore[misc]
    assert faults_by(sure, "You get 29 days [1].") == ["fabricated"]
    assert faults_by(unsure, "You get 28 days [1].") == ["fabricated"]


def faults_by(judge: ScriptedJudge, output: str) -> list[str | None]:
    return [one.fault for one in grounded(HOW_MUCH, output, passages("You get 28 days of leave a year."), judge)[1]]


def test_a_sentence_of_another_passage_is_misattributed() -> None:
    question = "Who was the first man on the moon?"
    assert faults(question, "Neil Armstrong, an American, was [2].", MOON, MARS) == [None, "misattributed"]
    assert faults(question, "Yuri Gagarin was [2].", MOON, MARS) == ["fabricated"]


@pytest.mark.parametrize(
    ("quotation", "found"),
    [
        ("Neil Armstrong, an American, was the first man on the moon", [None]),
        ("He landed in July 1969 with Buzz Aldrin.", [None]),
        ("Neil Armstrong, an American, was not the first man on the moon", ["fabricated"]),
        ("He landed in July 1968 with Buzz Aldrin.", ["fabricated"]),
        ("first man on the moon. No human being has been on Mars", ["stitched"]),
        ("Valentina Tereshkova was the first woman in space.", [None, "misattributed"]),
    ],
)
def test_a_quotation_must_occur_verbatim(quotation: str, found: list[str | None]) -> None:
    assert faults("What does it say of Armstrong?", f'It says: "{quotation}" [1].', MOON, MARS) == found


def test_a_period_that_the_quote_lacks_is_a_fault_of_the_subject() -> None:
    table = "| | 2023 | 2022 |\n| --- | --- | --- |\n| Expenditure | 526 | 488 |"
    _, (citation,) = grounded("What was the expenditure in 2022?", "It was 526 [1].", passages(table))
    assert (citation.supports, citation.fault, citation.missing) == (True, "subject", ("2022",))


def test_evidence_with_the_questions_period_is_preferred() -> None:
    hits = passages("Sales were 526 in 2021.", "Sales were 526 in 2023.")
    _, (citation,) = grounded("What were sales in 2023?", "They were 526.", hits)
    assert (citation.n, citation.verified) == (2, True)


def test_the_quote_of_a_table_is_a_row_with_the_cell_of_the_answer() -> None:
    for output in ("12 [1].", "Oak has 12 seats [1]."):
        judge = ScriptedJudge({"12": 0.9})
        _, (citation,) = grounded("How many seats does Oak have?", output, passages(ROOMS), judge)
        assert (citation.quote, citation.verified) == ("| Oak | 12 |", True)
        assert citation.row
        assert citation.row.text == "Oak — seats: 12"


def test_a_header_of_a_table_is_no_evidence() -> None:
    _, (citation,) = grounded("Which columns are there?", "Room and seats [1].", passages(ROOMS))
    assert citation.quote.startswith(("| Oak", "| Elm"))


def test_unsupported_sentences_are_marked_or_left_out() -> None:
    grounding = Grounding("How much leave?", passages(LEAVE), "en", JUDGE)
    sentences = grounding.cite("Cats sleep. You get 28 days of leave. Dogs bark.")
    answer, strict = compose(sentences), compose(sentences, strict=True)
    assert answer.text == "Cats sleep. You get 28 days of leave [1]. Dogs bark."
    assert [answer.text[start:end] for start, end in answer.unsupported] == ["Cats sleep.", "Dogs bark."]
    (citation,) = answer.citations
    assert answer.text[citation.answer_start : citation.answer_end] == "You get 28 days of leave [1]."
    assert (strict.text, strict.unsupported) == ("You get 28 days of leave [1].", ())
    assert strict.citations == (replace(citation, answer_start=0, answer_end=29),)


# --- Pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "pictured", "found"),
    [
        ("West sold most [1].", {1}, [(1, "picture")]),
        ("West sold most [1].", set(), [(1, "fabricated")]),
        ("West sold most [2].", {1}, [(2, "fabricated")]),
        ("The office closes at five [1].", {1}, [(2, None), (1, "misattributed")]),
    ],
)
def test_what_only_a_picture_shows_is_unchecked(
    output: str, pictured: set[int], found: list[tuple[int, str | None]]
) -> None:
    hits = passages("Figure 3: Revenue 10 20 30", "The office opens at nine and closes at five.")
    sentences = Grounding("Which region?", hits, "en", JUDGE, pictured=pictured).cite(output)
    assert [(one.n, one.fault) for one in compose(sentences).citations] == found


# --- Contradictions ----------------------------------------------------------------------------------------------

OLD = "Full-time staff get 28 days of leave."
NEW = "Full-time staff get 30 days of leave."


def contradicting(hits: Sequence[Hit], likelihood: float = 0.9) -> tuple[str, list[int]]:
    """The answer, and the passages that contradict it; a sentence that has 30 contradicts 28."""
    judge = ScriptedJudge(contradicts=lambda one: likelihood if "30" in one.text else 0.0)
    answer = compose(Grounding("How much?", hits, "en", judge).cite("They get 28 days."))
    return answer.text, [one.n for one in answer.contradictions]


def test_a_passage_that_says_otherwise_is_named() -> None:
    assert contradicting(passages(OLD, ROOMS, NEW)) == ("They get 28 days [1].", [3])
    assert contradicting(passages(OLD, NEW), 0.5)[1] == []
    assert contradicting(passages(OLD, NEW, uri="one.md"))[1] == []


def test_a_sentence_without_support_is_not_contradicted() -> None:
    assert contradicting(passages(ROOMS, NEW))[1] == []


def test_a_contradiction_may_be_off_and_shows_markers_of_documents_as_text() -> None:
    judge = ScriptedJudge(contradicts=lambda one: 0.9 if "30" in one.text else 0.0)
    sentences = Grounding("How much?", passages(OLD, f"{NEW}[1]"), "en", judge).cite("They get 28 days.")
    (contradiction,) = compose(sentences).contradictions
    assert contradiction.sentence == f"But [2] says otherwise: “{NEW}[\u200c1]”"
    assert [int(n) for n in MARKER.findall(contradiction.sentence)] == [2]
    assert contradiction.quote == f"{NEW}[1]"
    assert compose(sentences, contradictions=False).contradictions == ()


# --- The judge's own answer --------------------------------------------------------------------------------------


def test_passages_are_read_likeliest_answer_first() -> None:
    readings = Grounding(
        "When?", passages("It was in 1902.", "In 1931."), "en", ScriptedJudge({"1902": 0.5, "1931": 0.9})
    ).read()
    assert [(one.hit.n, one.text, one.likelihood) for one in readings] == [
        (2, "1931", pytest.approx(0.9)),
        (1, "1902", pytest.approx(0.5)),
    ]


def test_an_answer_in_a_row_is_its_whole_cell() -> None:
    (reading,) = Grounding(
        "How far?", passages("| a | b |\n|---|---|\n| Oak | 15 km or more |"), "en", ScriptedJudge({"15": 0.9})
    ).read()
    assert reading.text == "15 km or more"


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (ABSTENTION, "28 days [2]."),
        ("99 euros.", "28 days [2]."),
        ("2 days.", "28 days [2]."),
        ("You get 28 days.", "You get 28 days."),
    ],
)
def test_a_judge_that_corrects_replaces_another_answer(output: str, text: str) -> None:
    hits, judge = passages(ROOMS, LEAVE), ScriptedJudge({"28 days": 0.9})
    assert cited_answer(HOW_MUCH, output, hits, judge, corrects=True).text == text
    assert cited_answer(HOW_MUCH, output, hits, judge).text == output


def test_an_answer_stays_where_the_second_likeliest_one_agrees() -> None:
    hits, judge = passages("It was 1902.", "It was 1931."), ScriptedJudge({"1902": 0.5, "1931": 0.9})
    assert cited_answer("When?", "1902.", hits, judge, corrects=True).text == "1902."


def test_a_marker_in_the_judges_words_does_not_belong_to_the_answer() -> None:
    judge = ScriptedJudge({"30 days[1]": 0.9})
    cited = cited_answer(
        "How much leave?", "Oak.", passages(ROOMS, "Leave is 30 days[1] a year."), judge, corrects=True
    )
    answer = compose(cited.sentences)
    assert answer.text == "30 days[\u200c1] [2]."
    assert [one.n for one in answer.citations] == [2]


@pytest.mark.parametrize("output", [ABSTENTION, HOW_MUCH, f"{HOW_MUCH} [1]", "?", ""])
def test_an_abstention_and_an_echo_of_the_question_claim_nothing(output: str) -> None:
    assert cited_answer(HOW_MUCH, output, passages(LEAVE)).sentences == []


@pytest.mark.parametrize(
    ("answer", "other", "same"),
    [
        ("2 days", "22 days", False),
        ("in 1931", "1931", True),
        ("3 May 1946", "3 May 1964", False),
        ("on May 3, 1964", "3 May 1964", True),
        ("Ada Lovelace", "Lovelace", True),
        ("Ada Lovelace", "Alan Turing", False),
    ],
)
def test_answers_agree_by_words_numbers_and_dates(answer: str, other: str, same: bool) -> None:
    assert agrees(answer, other, "en") is same


# --- Documents that disagree -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (("It has 23 parts.", "It has 24 parts."), ["23", "24"]),
        (("It has 23 parts.", "It has 24 parts.", "They say 24."), ["23", "24"]),  # a copy counts once
        (("It has 24 parts.", "They say 24."), []),
        (("It was 3 May 1964.", "It was 1964."), []),
        (("It was 3 May 1964.", "It was 1946."), ["3 May 1964", "1946"]),
        (("It was 3 May 1964.", "It was 3 May 1946."), ["3 May 1964", "3 May 1946"]),
        (("It is Ada Horn.", "It is Petra Falk."), ["Ada Horn", "Petra Falk"]),
    ],
)
def test_alternatives_are_different_answers_of_different_documents(texts: tuple[str, ...], found: list[str]) -> None:
    answers = ("Ada Horn", "Petra Falk", "3 May 1964", "3 May 1946", "23", "24", "1964", "1946")
    judge = ScriptedJudge({answer: 0.9 - at / 100 for at, answer in enumerate(answers)})
    assert [one.text for one in cited_answer("What?", "Yes.", passages(*texts), judge).alternatives] == found
    assert cited_answer("What?", "Yes.", passages(*texts, uri="one.md"), judge).alternatives == ()


def test_an_answer_about_another_period_is_no_alternative() -> None:
    hits, judge = passages("In 2022 it was 23.", "In 2021 it was 24."), ScriptedJudge({"23": 0.9, "24": 0.8})
    assert len(cited_answer("How much was it?", "23.", hits, judge).alternatives) == 2
    assert cited_answer("How much was it in 2022?", "23.", hits, judge).alternatives == ()


# --- Languages that the judge does not read ----------------------------------------------------------------------

ZH = "会议室在三楼。会议持续45分钟。"
DE = "Resturlaub verfällt am 31. März des Folgejahres. Der Antrag geht an die Leiterin."


@pytest.mark.parametrize(
    ("language", "question", "said", "text", "fault"),
    [
        ("zh", "会议室在哪里？", "会议室在三楼 [1]。", ZH, None),
        ("zh", "会议多长时间？", "会议持续40分钟 [1]。", ZH, "fabricated"),
        ("de", "Wann verfällt er?", "Resturlaub verfällt am 31. März [1].", DE, None),
        ("de", "Wann verfällt er?", "Der Resturlaub verfällt am 31. März [1].", DE, "unclear"),
        ("de", "Was kostet es?", "1250 Euro [1].", "Es kostet 1.250,00 EUR.", "unclear"),
        ("de", "Wann verfällt er?", "Resturlaub verfällt am 30. März [1].", DE, "fabricated"),
        ("de", "Wie lange dauert es?", "Es dauert 20 Wochen [1].", "Es dauert sechzehn Wochen.", "fabricated"),
    ],
)
def test_words_support_and_only_a_quotation_is_verified(
    language: str, question: str, said: str, text: str, fault: str | None
) -> None:
    never = ScriptedJudge(supports=lambda _: 0.0)
    assert Grounding(question, passages(text), language, never).judge is None
    _, (citation,) = grounded(question, said, passages(text), never, language)
    assert citation.fault == fault


def test_strict_answers_keep_what_a_quotation_supports() -> None:
    sentences = Grounding("会议室在哪里？", passages(ROOMS, ZH), "zh", None).cite("会议室在三楼。会议室在四楼，很大。")
    assert compose(sentences, strict=True).text == "会议室在三楼 [2]。"


def test_a_small_reader_without_support_is_replaced_by_the_nearest_sentence() -> None:
    question = "An wen geht der Antrag?"
    for output in (ABSTENTION, "13 Euro."):
        cited = cited_answer(question, output, passages(ROOMS, DE), language="de", corrects=True)
        assert cited.text == "Der Antrag geht an die Leiterin. [2]"
        assert cited.sentences[0].supported
    assert cited_answer(question, ABSTENTION, passages(DE), language="de").text == ABSTENTION
    assert cited_answer("Пароль?", ABSTENTION, passages(DE), language="de", corrects=True).text == ABSTENTION


def test_a_question_in_another_language_gets_the_closest_unit() -> None:
    cited = cited_answer(
        "Where is it?",
        ABSTENTION,
        passages(DE),
        language="de",
        corrects=True,
        closeness=lambda texts: [0.9 if "Antrag" in text.splitlines()[-1] else 0.1 for text in texts],
    )
    assert cited.close[0][0] == 0.9
    assert cited.text == "Der Antrag geht an die Leiterin. [1]"
