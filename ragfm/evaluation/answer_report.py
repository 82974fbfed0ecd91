"""A run of answers as one HTML page: measures by context, kinds of errors, risk and coverage, and answers to read."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ragfm.evaluation.answer_evaluation import KINDS, risk_coverage
from ragfm.evaluation.html_report import all_settings, excerpt, page
from ragfm.evaluation.plots import bars, curve, distribution, histogram
from ragfm.evaluation.run_file import how_many

if TYPE_CHECKING:
    from ragfm.collection import Collection
    from ragfm.evaluation.answer_evaluation import AnsweredQuestion, AnswersReport, Shown
    from ragfm.evaluation.calibration import CalibrationReport

_EACH = 8  # answers of each kind of error
_CONFIDENCE = {True: "the confidence of an answer", False: "the cosine of the best passage"}
_AXES = ("share of the questions that is answered", "share of the answers that is not right")
_OF = {"right": "that are right", "wrong": "that are wrong", "unanswerable": "to unanswerable questions"}
_TOLD = {
    "retrieved": "from the passages that were found",
    "gold": "from the passage that was asked about",
    "none": "from memory, without passages",
}


def write_answers_html(report: AnswersReport, path: str | Path, collection: Collection | None = None) -> None:
    """Write a run as a page that can be sent around; it has the questions and answers in it.

    The collection that was asked gives the texts of the passages that were shown.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(render_answers_html(report, collection), encoding="utf-8")


def render_answers_html(report: AnswersReport, collection: Collection | None = None) -> str:
    """The page's text."""
    about = report.about
    title = f"Answers: {about.get('data', 'questions')}"
    sections = [f"<h1>{escape(title)}</h1>", f'<p class="dim">{escape(answers_summary(report))}</p>']
    for context, measures in report.measures.items():
        sections += [f"<h2>{_TOLD[context].capitalize()}</h2>", bars(measures, f"Measures, {context}")]
    sections.append('<p class="dim">The lines are 95 % bootstrap intervals over questions.</p>')
    if report.kinds:
        sections += [
            "<h2>What became of each question</h2>",
            histogram(report.kinds, "Questions by what became of them"),
        ]
        points = risk_coverage(report.results)
        if points:
            sections += [
                "<h2>Risk and coverage</h2>",
                curve(points, *_AXES, "Risk by coverage"),
                f'<p class="dim">As ever less confident answers are given, by {_CONFIDENCE[about["calibrated"]]}.</p>',
            ]  # fmt: skip
    first = next(iter(report.measures))
    times = [1000 * one.seconds for result in report.results if not (one := result.outcomes[first]).error]
    marks = {name: value.value for name, value in report.latency_ms[first].items()}
    if times:
        sections += [
            f"<h2>Time of an answer {_TOLD[first]}, in milliseconds, on a logarithmic scale</h2>",
            distribution(times, marks, "Answers by how long they took"),
        ]
    if report.kinds:
        for kind in (kind for kind in KINDS if not kind.startswith("right")):
            sections += _some(report, kind, collection)
    return page(title, [*sections, "<h2>How it was run</h2>", all_settings(about)])


def write_confidence_html(report: CalibrationReport, path: str | Path) -> None:
    """Write what was fitted as a page: risk by coverage, and how it was run."""
    given = ", ".join(f"{share:.0%} of those {_OF[kind]}" for kind, share in report.given.items())
    below = f"Below {report.calibration.threshold:.4f} an answer is withheld; given are then {given}."
    title = f"Confidence: {report.about.get('data', 'questions')}"
    sections = [
        f"<h1>{escape(title)}</h1>", f'<p class="dim">{escape(report.why)}</p>', f"<p>{escape(below)}</p>",
        "<h2>Risk and coverage</h2>", curve(report.risk, *_AXES, "Risk by coverage"),
        '<p class="dim">By the confidence of a model that has not seen the answer.</p>',
        "<h2>How it was run</h2>", all_settings(report.about),
    ]  # fmt: skip
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(page(title, sections), encoding="utf-8")


def answers_summary(report: AnswersReport) -> str:
    """A run in one line: questions, and of how many if it was stopped; documents, reader, k."""
    about = report.about
    held = about["collection"]
    unanswerable = sum(result.unanswerable for result in report.results)
    adapter = f" with {about['adapter']}" if about["adapter"] else ""
    asked = how_many(len(report.results), about)
    return (
        f"{asked} questions, {unanswerable} of them unanswerable; {held['documents']} documents, "
        f"{held['chunks']} chunks; reader {about['reader']}{adapter}, {about['k']} passages"
    )


def _some(report: AnswersReport, kind: str, collection: Collection | None) -> list[str]:
    results = [result for result in report.results if result.kind == kind]
    if not results:
        return []
    shown = f"{min(len(results), _EACH)} of {len(results)}"
    return [f"<h2>{kind.capitalize()}: {shown}</h2>", *(_question(result, collection) for result in results[:_EACH])]


def _question(result: AnsweredQuestion, collection: Collection | None) -> str:
    right = " / ".join(result.answers[:3]) or "unanswerable"
    lines = [f"<h3>{escape(result.question)}</h3>", f'<p class="dim">{escape(result.id)}</p>',
             f"<p><b>right</b> {escape(right)}</p>"]  # fmt: skip
    for context, outcome in result.outcomes.items():
        lines.append(f"<p><b>{context}</b> {escape(outcome.error or outcome.answer)}</p>")
        if outcome.passages:
            places = "".join(_passage(place, collection) for place in outcome.passages)
            lines.append(f"<details><summary>passages shown: {len(outcome.passages)}</summary>{places}</details>")
    return f"<article>{''.join(lines)}</article>"


def _passage(place: Shown, collection: Collection | None) -> str:
    holds = ", holds a right answer" if place.holds else ""
    return f"<p><b>[{place.n}]{holds}</b> {excerpt(place, collection)}</p>"
