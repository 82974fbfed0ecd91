"""Citations of figures: words of a chart alone verify nothing, and what only the picture shows is unchecked."""

from __future__ import annotations

from ragfm.citations.decision import compose
from ragfm.citations.grounding import cite_answer
from ragfm.core.types import Citation, Hit

CAPTION = "Figure 3: Sales by region"
LABELS = "North South East 2022 2023 2024 10 20 30 40"
CHART = Hit(
    "report.pdf", f"{CAPTION}\n\n{LABELS}", 100, 100 + len(CAPTION) + 2 + len(LABELS), 1, None, {}, n=1, image="a"
)
TEXT = Hit("report.pdf", "The office opens at nine and closes at five.", 0, 44, 2, None, {}, n=2)
QUESTION = "Which region sold most in 2024?"


def citations(output: str, *, pictured: bool, question: str = QUESTION) -> tuple[Citation, ...]:
    hits = [CHART, TEXT]
    seen = {1} if pictured else set()
    cited = cite_answer(question, output, hits, "en", verifier=None, corrects=False, pictured=seen)
    answer = compose(cited.sentences)
    return answer.citations


def test_what_only_the_picture_shows_is_unchecked() -> None:
    output = "The western region is shown as the tallest bar, at 57 units [1]."
    (seen,) = citations(output, pictured=True)
    assert (seen.n, seen.verified, seen.fault, seen.supports) == (1, False, "picture", False)
    assert seen.image == "a"
    (unseen,) = citations(output, pictured=False)
    assert unseen.fault == "fabricated"
    (text,) = citations(output.replace("[1]", "[2]"), pictured=True)
    assert text.fault == "fabricated"


def test_another_passage_that_says_so_still_counts() -> None:
    found = citations("The office closes at five [1].", pictured=True, question="When does the office close?")
    assert [(one.n, one.fault, one.verified) for one in found] == [(2, None, True), (1, "misattributed", False)]


def test_labels_of_a_chart_verify_nothing() -> None:
    """All words of the sentence stand in the figure's text, but not what it says."""
    for output in ("North had 40 in 2024 [1].", "North [1].", "40 [1]."):
        for pictured in (True, False):
            for one in citations(output, pictured=pictured):
                assert not one.verified, (output, one)
    (overlap,) = citations("North had 40 in 2024 [1].", pictured=True, question="Which region had sales of 40 in 2024?")
    assert (overlap.fault, overlap.supports) == ("unclear", True)
    same = Hit("report.md", CHART.text, 100, CHART.end, 1, None, {}, n=1)
    cited = cite_answer(
        "Which region had sales of 40 in 2024?",
        "North had 40 in 2024 [1].",
        [same],
        "en",
        verifier=None,
        corrects=False,
    )
    assert cited.sentences[0].evidence[0].verified  # in a text, the same words are a sentence


def test_a_caption_is_a_text() -> None:
    caption = "Sales in the northern region grew by 12 percent in 2024."
    chart = Hit("report.pdf", caption, 0, len(caption), 1, None, {}, n=1, image="a")
    question = "How much did sales in the northern region grow in 2024?"
    for output, verified in [(f"{caption[:-1]} [1].", True), ("They grew by 12 percent [1].", False)]:
        cited = cite_answer(question, output, [chart], "en", verifier=None, corrects=False, pictured={1})
        assert cited.sentences[0].evidence[0].verified == verified
    # The verifier reads the caption, and finds the answer in it.
    cited = cite_answer(
        question, "They grew by 12 percent [1].", [chart], "en", verifier="bundled", corrects=False, pictured={1}
    )
    (evidence,) = cited.sentences[0].evidence
    assert evidence.verified
    assert evidence.quote == caption
