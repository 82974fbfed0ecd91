"""The HTML page of a run of answers: measures by context, kinds of errors, risk and coverage, and example answers."""

from __future__ import annotations

from html import escape
from pathlib import Path

from ragfm.collection import Collection
from ragfm.core.text import counted
from ragfm.evaluation.answer_evaluation import AnsweredQuestion, AnswersReport, risk_coverage
from ragfm.evaluation.html_report import (
    counts_table,
    estimates_table,
    excerpt,
    html_table,
    settings_section,
    write_page,
)
from ragfm.evaluation.run_file import question_count

_EXAMPLES = 8  # of each kind of error
_CONTEXTS = {
    "retrieved": "From retrieved passages",
    "gold": "From the gold passage",
    "none": "From memory, without passages",
}


def write_answers_html(report: AnswersReport, path: str | Path, collection: Collection | None = None) -> None:
    """Write the page of a run; it contains questions and answers.

    The collection supplies the texts of the passages in the prompts.
    """
    sections = [f'<p class="dim">{escape(answers_summary(report))}</p>']
    for context, measures in report.measures.items():
        sections += [f"<h2>{_CONTEXTS[context]}</h2>", estimates_table({"": measures}, 3)]
    sections.append('<p class="dim">With 95 % bootstrap intervals over questions.</p>')
    if report.kinds:
        sections += ["<h2>Kinds of results</h2>", counts_table(report.kinds)]
        points = risk_coverage(report.results)
        if points:
            some = points[:: -max(1, len(points) // 10)]  # the last one, and about nine before it
            confidence = (
                "the confidence of the answer" if report.about["calibrated"] else "the cosine of the best passage"
            )
            sections += [
                "<h2>Risk and coverage</h2>",
                html_table(
                    [
                        ("questions answered", "of these, not right"),
                        *((f"{coverage:.0%}", f"{risk:.0%}") for coverage, risk in reversed(some)),
                    ]
                ),
                f'<p class="dim">Answers are given in the order of {confidence}, highest first.</p>',
            ]
    context, latency = next(iter(report.latency_ms.items()))
    if latency:
        times = ", ".join(
            f"{name} {time.value:.0f} [{time.low:.0f}, {time.high:.0f}]" for name, time in latency.items()
        )
        sections.append(f"<p>Time of an answer in milliseconds, {_CONTEXTS[context].lower()}: {times}.</p>")
    for kind in report.kinds:
        results = [result for result in report.results if result.kind == kind]
        if results and not kind.startswith("right"):
            shown = f"{min(len(results), _EXAMPLES)} of {len(results)}"
            sections.append(f"<h2>{kind.capitalize()}: {shown}</h2>")
            sections += [_question(result, collection) for result in results[:_EXAMPLES]]
    title = f"Answers: {report.about.get('data', 'questions')}"
    write_page(path, title, [*sections, settings_section(report.about)])


def answers_summary(report: AnswersReport) -> str:
    """A run in one line: number of questions, documents and chunks, reader, adapter and k."""
    about = report.about
    size = about["collection"]
    unanswerable = sum(result.unanswerable for result in report.results)
    adapter = f" with {about['adapter']}" if about["adapter"] else ""
    return (
        f"{question_count(len(report.results), about)}, {unanswerable} of them unanswerable; "
        f"{counted(document=size['documents'], chunk=size['chunks'])}; reader {about['reader']}{adapter}, "
        f"{counted(passage=about['k'])}"
    )


def _question(result: AnsweredQuestion, collection: Collection | None) -> str:
    lines = [
        f"<h3>{escape(result.question)}</h3>",
        f'<p class="dim">{escape(result.id)}</p>',
        f"<p><b>right</b> {escape(' / '.join(result.answers[:3]) or 'unanswerable')}</p>",
    ]
    for context, outcome in result.outcomes.items():
        lines.append(f"<p><b>{context}</b> {escape(outcome.error or outcome.answer)}</p>")
        if outcome.passages:
            passages = ""
            for passage in outcome.passages:
                label = f"[{passage.n}], holds a right answer" if passage.holds else f"[{passage.n}]"
                passages += f"<p><b>{label}</b> {excerpt(passage, collection)}</p>"
            lines.append(f"<details><summary>passages shown: {len(outcome.passages)}</summary>{passages}</details>")
    return f"<article>{''.join(lines)}</article>"
