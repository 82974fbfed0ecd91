"""`ragfm eval answers`: how right the answers are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.eval import (
    about_data,
    check_options,
    data_options,
    exit_code,
    load_data,
    opened,
    print_estimates,
    resumable,
    tell_failures,
    tell_written,
)
from ragfm.cli.options import FILLED, make_rag, shared, strategy_option
from ragfm.cli.output import print_json, printable

if TYPE_CHECKING:
    from ragfm.collection import Collection
    from ragfm.evaluation import AnsweredQuestion, AnswersReport, QuestionSet
    from ragfm.ingestion.sync import SyncReport

_FILE = click.Path(dir_okay=False)
_CONTEXTS = ("retrieved", "gold", "none")
_FAILURES, _MOST = 3, 160  # printed, and characters of a text in each


@click.command()
@click.argument("data", type=click.Path(exists=True))
@click.option("--context", "contexts", multiple=True, type=click.Choice(_CONTEXTS), default=_CONTEXTS,
              help="What answers come from: passages that are found, the one that was asked about, or memory; may be "
              "repeated. Default: all three.")  # fmt: skip
@click.option("--reader", metavar="NAME", type=FILLED, help="The model that answers.")
@click.option("--adapter", metavar="DIR", type=FILLED, help="An adapter for the reader, or `none`.")
@strategy_option
@click.option("--judge", metavar="NAME", type=FILLED, help="A model that says, too, whether each answer is right.")
@click.option("-k", type=click.IntRange(min=1), metavar="N", help="How many passages it is given.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only N of the questions, picked at random.")
@click.option("--seed", default=0, show_default=True, help="Which ones --limit picks.")
@data_options
@click.option("--out", metavar="FILE", type=_FILE, help="Write each question there; a second run goes on with it.")
@click.option("--report", metavar="FILE", type=_FILE, help="Write an HTML page.")
@shared
def answers(collection: str, as_json: bool, data: str, report: str | None, **options: Any) -> int:
    """Have the reader answer all questions of DATA, and measure how right it is.

    DATA is a SQuAD file, which brings its documents, or a JSONL file with a question and its `answers` in each line, or
    `"unanswerable": true`, about the collection. docs/evaluation.md has the formats and the measures.
    """
    from ragfm.evaluation import write_answers_html

    loaded = load_data(data, options, answers=True)
    check_options(loaded, options)
    with opened(loaded, collection, {**options, "mode": "hybrid"}) as (handle, _, synced):
        evaluated = _asked(handle, loaded, options)
        if report:
            write_answers_html(evaluated, report, handle)
    if as_json:
        print_json(_as_json(evaluated, synced, options["out"], report))
    else:
        _print(evaluated)
        tell_failures([(result.id, errors[0]) for result in evaluated.results if (errors := _errors(result))], synced)
        tell_written(options["out"], report)
    return exit_code(synced, "answered" if evaluated.stopped else None, options["out"])


def _asked(collection: Collection, data: QuestionSet, options: Mapping[str, Any]) -> AnswersReport:
    from ragfm.evaluation import evaluate_answers
    from ragfm.generation.readers import configured_reader

    reader = options["reader"] or collection.settings.reader
    about = {**about_data(data, options), "reader": reader, "judge": options["judge"]}
    judge = configured_reader(options["judge"], collection.settings) if options["judge"] else None
    rag = make_rag(collection, options)
    if place := getattr(rag.reader, "data_goes", None):
        about["data_goes"] = place
    with resumable("answering", "answered", options["out"]) as progress:
        return evaluate_answers(
            rag, data.questions, contexts=options["contexts"], judge=judge, out=options["out"], about=about,
            progress=progress, partial=True,
        )  # fmt: skip


def _as_json(
    evaluated: AnswersReport, synced: SyncReport | None, out: str | None, report: str | None
) -> dict[str, Any]:  # fmt: skip
    return {
        **evaluated.about,
        **{name: {context: {key: asdict(value) for key, value in values.items()}
                  for context, values in getattr(evaluated, name).items()} for name in ("measures", "latency_ms")},
        "kinds": evaluated.kinds,
        "failed": [{"id": result.id, "context": context, "error": outcome.error} for result in evaluated.results
                   for context, outcome in result.outcomes.items() if outcome.error],
        "done": len(evaluated.results),
        "ingest": asdict(synced) if synced else None,
        "out": out,
        "report": report,
    }  # fmt: skip


def _print(evaluated: AnswersReport) -> None:
    from ragfm.evaluation import answers_summary

    click.echo(printable(f"{evaluated.about['data']}: {answers_summary(evaluated)}"))
    for context, measures in evaluated.measures.items():
        click.echo(f"\n{context}")
        print_estimates(measures, 3)
        if times := evaluated.latency_ms[context]:
            print_estimates({"p50, ms": times["p50"]}, 0)
    if evaluated.kinds:
        click.echo("\n" + "  ".join(f"{kind}: {count}" for kind, count in evaluated.kinds.items() if count))
        failures = [result for result in evaluated.results if not result.kind.startswith("right")]
        for result in failures[:_FAILURES]:
            right = " / ".join(result.answers[:3]) or "unanswerable"
            outcome = result.outcomes["retrieved"]
            told = (
                shorten(text, _MOST, placeholder=" …") for text in (result.question, outcome.error or outcome.answer)
            )
            click.echo(
                printable(f"\n{result.kind}, {result.id}: {next(told)}\n  right: {right}\n  said:  {next(told)}")
            )


def _errors(result: AnsweredQuestion) -> list[str]:
    return [outcome.error for outcome in result.outcomes.values() if outcome.error]
