"""`ragfm eval retrieval`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from ragfm.cli.evaluation_data import data_collection, data_facts, exit_code, load_data, resumable
from ragfm.cli.options import collection_options, mode_option, question_options, report_option, run_option
from ragfm.cli.output import print_estimates, print_failures, print_json, print_note, print_text, print_written
from ragfm.core.text import counted


@click.command()
@click.argument("data", type=click.Path(exists=True))
@mode_option
@click.option("-k", type=click.IntRange(min=10), default=100, metavar="N", help="Number of ranks to evaluate.")
@question_options
@run_option
@report_option
@collection_options
def retrieval(collection: str, as_json: bool, data: str, report: str | None, **options: Any) -> int:
    """Measure retrieval quality and latency on the questions of DATA.

    DATA is a BEIR folder or a SQuAD file, which contain their documents, or a JSONL file of questions about the
    collection, each with its gold URI. docs/evaluation.md describes the formats and metrics.
    """
    from ragfm.evaluation import evaluate_retrieval, first_ranks, retrieval_summary, write_retrieval_html

    out = options["out"]
    questions = load_data(data, options)
    with data_collection(questions, collection, options, mode=options["mode"]) as (handle, embedder, synced):
        with resumable(out) as progress:
            evaluated = evaluate_retrieval(
                handle,
                questions.questions,
                mode=options["mode"],
                k=options["k"],
                out=out,
                about=data_facts(questions, options),
                stopwatch=embedder,
                progress=progress,
                partial=True,
            )
        if report:
            write_retrieval_html(evaluated, report, handle)
    if as_json:
        tables = {
            name: {key: asdict(value) for key, value in getattr(evaluated, name).items()}
            for name in ("measures", "latency_ms", "embed_ms")
        }
        value = {
            **evaluated.about,
            **tables,
            "first_rank": first_ranks(evaluated.results),
            "missing": list(evaluated.missing),
            "failed": [{"id": result.id, "error": result.error} for result in evaluated.results if result.error],
            "done": len(evaluated.results),
            "ingest": asdict(synced) if synced else None,
            "out": out,
            "report": report,
        }
        print_json(value)
        return exit_code(synced, evaluated.stopped, out)
    print_text(f"{evaluated.about['data']}: {retrieval_summary(evaluated)}")
    if synced and synced.chunks:
        print_text(f"{counted(chunk=synced.chunks)} embedded in {synced.seconds:.1f} s")
    print_text("")
    print_estimates(evaluated.measures, 3)
    ranks = "  ".join(f"{rank}: {count}" for rank, count in first_ranks(evaluated.results).items())
    print_text(f"\n{ranks}  (number of questions by rank of the first relevant hit)")
    if evaluated.latency_ms:
        print_text("\nsearch latency, ms")
        print_estimates(evaluated.latency_ms, 1)
    if evaluated.embed_ms:
        print_text("\nof which embedding, ms")
        print_estimates(evaluated.embed_ms, 1)
    if evaluated.missing:
        examples = ", ".join(evaluated.missing[:3]) + (", …" if len(evaluated.missing) > 3 else "")
        print_note(f"Relevant documents that are not in the collection: {len(evaluated.missing)} ({examples})")
    print_failures([(result.id, result.error) for result in evaluated.results if result.error], synced)
    print_written(out, report)
    return exit_code(synced, evaluated.stopped, out)
