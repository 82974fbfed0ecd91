"""`ragfm eval answers`."""

from __future__ import annotations

from dataclasses import asdict
from textwrap import shorten
from typing import Any

import click

from ragfm.cli.evaluation_data import data_collection, data_facts, exit_code, load_data, resumable
from ragfm.cli.options import (
    collection_options,
    k_option,
    make_rag,
    question_options,
    reader_options,
    report_option,
    run_option,
    text_option,
)
from ragfm.cli.output import print_estimates, print_failures, print_json, print_statuses, print_text, print_written

_CONTEXTS = ("retrieved", "gold", "none")
_MAX_FAILURES = 3  # wrong answers that are printed
_MAX_TEXT = 160  # characters of a text in each


@click.command()
@click.argument("data", type=click.Path(exists=True))
@click.option(
    "--context",
    "contexts",
    multiple=True,
    type=click.Choice(_CONTEXTS),
    default=_CONTEXTS,
    show_default=False,
    help="Passages for the reader: retrieved ones, the gold passage, or none; may be repeated. Default: all three.",
)
@reader_options
@text_option("--judge", metavar="NAME", help="Model that also judges whether each answer is correct.")
@k_option
@question_options
@run_option
@report_option
@collection_options
def answers(collection: str, as_json: bool, data: str, report: str | None, **options: Any) -> int:
    """Measure the correctness of answers to the questions of DATA.

    DATA is a SQuAD file, which contains its documents, or a JSONL file of questions about the collection, each with
    `answers` or `"unanswerable": true`. docs/evaluation.md describes the formats and metrics.
    """
    from ragfm.evaluation import answers_summary, evaluate_answers, write_answers_html
    from ragfm.generation.readers import configured_reader

    out = options["out"]
    questions = load_data(data, options, answers=True)
    with data_collection(questions, collection, options) as (handle, _, synced):
        reader = options["reader"] or handle.settings.reader
        about = {**data_facts(questions, options), "reader": reader, "judge": options["judge"]}
        judge = configured_reader(options["judge"], handle.settings) if options["judge"] else None
        rag = make_rag(handle, options)
        if data_goes := getattr(rag.reader, "data_goes", None):
            about["data_goes"] = data_goes
        with resumable(out) as progress:
            evaluated = evaluate_answers(
                rag,
                questions.questions,
                contexts=options["contexts"],
                judge=judge,
                out=out,
                about=about,
                progress=progress,
                partial=True,
            )
        if report:
            write_answers_html(evaluated, report, handle)
    failed = [
        {"id": result.id, "context": context, "error": outcome.error}
        for result in evaluated.results
        for context, outcome in result.outcomes.items()
        if outcome.error
    ]
    if as_json:
        tables = {}
        for name in ("measures", "latency_ms"):
            by_context = getattr(evaluated, name).items()
            tables[name] = {context: {key: asdict(value) for key, value in row.items()} for context, row in by_context}
        value = {
            **evaluated.about,
            **tables,
            "kinds": evaluated.kinds,
            "statuses": {name: asdict(count) for name, count in evaluated.statuses.items()},
            "failed": failed,
            "done": len(evaluated.results),
            "ingest": asdict(synced) if synced else None,
            "out": out,
            "report": report,
        }
        print_json(value)
        return exit_code(synced, evaluated.stopped, out)
    print_text(f"{evaluated.about['data']}: {answers_summary(evaluated)}")
    for context, measures in evaluated.measures.items():
        print_text(f"\n{context}")
        print_estimates(measures, 3)
        if times := evaluated.latency_ms[context]:
            print_estimates({"p50, ms": times["p50"]}, 0)
    if evaluated.statuses:
        print_text("")
        print_statuses({"": evaluated.statuses})
    if evaluated.kinds:
        print_text("\n" + "  ".join(f"{kind}: {count}" for kind, count in evaluated.kinds.items() if count))
        wrong = [result for result in evaluated.results if not result.kind.startswith("right")]
        for result in wrong[:_MAX_FAILURES]:
            outcome = result.outcomes["retrieved"]
            question = shorten(result.question, _MAX_TEXT, placeholder=" …")
            answer = shorten(outcome.error or outcome.user_text or outcome.answer, _MAX_TEXT, placeholder=" …")
            expected = " / ".join(result.answers[:3]) or "unanswerable"
            print_text(f"\n{result.kind}, {result.id}: {question}\n  expected: {expected}\n  answer:   {answer}")
    first_errors: dict[str, str] = {}
    for one in failed:
        first_errors.setdefault(one["id"], one["error"])
    print_failures(list(first_errors.items()), synced)
    print_written(out, report)
    return exit_code(synced, evaluated.stopped, out)
