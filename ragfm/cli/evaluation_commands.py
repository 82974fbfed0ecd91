"""`ragfm eval …`: evaluation of retrieval and answers."""

from __future__ import annotations

from dataclasses import asdict, replace
from textwrap import shorten
from typing import Any

import click

from ragfm.cli.evaluation_data import data_collection, data_facts, exit_code, load_data, resumable
from ragfm.cli.help import CommandGroup
from ragfm.cli.options import (
    collection_options,
    json_options,
    k_option,
    make_rag,
    mode_option,
    question_options,
    reader_options,
    run_option,
    split_option,
    text_option,
)
from ragfm.cli.output import (
    print_estimates,
    print_failures,
    print_json,
    print_note,
    print_statuses,
    print_table,
    print_text,
    print_written,
)
from ragfm.core.text import counted


@click.command()
@click.argument("data", type=click.Path(exists=True))
@mode_option
@click.option("-k", type=click.IntRange(min=10), default=100, metavar="N", help="Number of ranks to evaluate.")
@split_option
@question_options
@run_option
@collection_options
def retrieval(collection: str, as_json: bool, data: str, **options: Any) -> int:
    """Measure retrieval quality and latency on the questions of DATA.

    DATA is a BEIR folder or a SQuAD file, which contain their documents, or a JSONL file of questions about the
    collection, each with its gold URI. docs/evaluation.md describes the formats and metrics.
    """
    from ragfm.evaluation import evaluate_retrieval, first_ranks
    from ragfm.evaluation.run_file import question_count

    out = options["out"]
    questions = load_data(data, options)
    with data_collection(questions, collection, options) as (handle, synced), resumable(out) as progress:
        evaluated = evaluate_retrieval(
            handle,
            questions.questions,
            mode=options["mode"],
            k=options["k"],
            out=out,
            about=data_facts(questions, options),
            progress=progress,
            partial=True,
        )
    failed = [(result.id, result.error) for result in evaluated.results if result.error]
    if as_json:
        facts = asdict(replace(evaluated, about={}, results=()))
        print_json(
            {
                **evaluated.about,
                **{name: facts[name] for name in ("measures", "latency_ms", "missing")},
                "first_rank": first_ranks(evaluated.results),
                "failed": [{"id": number, "error": error} for number, error in failed],
                "done": len(evaluated.results),
                "ingest": asdict(synced) if synced else None,
                "out": out,
            }
        )
        return exit_code(synced, evaluated.stopped, out)
    about, size = evaluated.about, evaluated.about["collection"]
    left_out = "".join(f", {count} {why} left out" for why, count in about.get("left_out", {}).items())
    print_text(
        f"{about['data']}: {question_count(len(evaluated.results), about)}{left_out}; "
        f"{counted(document=size['documents'], chunk=size['chunks'])}; {about['mode']}, first {about['k']}; "
        f"embedder {about['embedder']['model']}"
    )
    if synced and synced.chunks:
        print_text(f"{counted(chunk=synced.chunks)} embedded in {synced.seconds:.1f} s")
    print_text("")
    print_estimates(evaluated.measures, 3)
    ranks = "  ".join(f"{rank}: {count}" for rank, count in first_ranks(evaluated.results).items())
    print_text(f"\n{ranks}  (number of questions by rank of the first relevant hit)")
    if evaluated.latency_ms:
        print_text("\nsearch latency, ms")
        print_estimates(evaluated.latency_ms, 1)
    if evaluated.missing:
        examples = ", ".join(evaluated.missing[:3]) + (", …" if len(evaluated.missing) > 3 else "")
        print_note(f"Relevant documents that are not in the collection: {len(evaluated.missing)} ({examples})")
    print_failures(failed, synced)
    print_written(out)
    return exit_code(synced, evaluated.stopped, out)


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
@collection_options
def answers(collection: str, as_json: bool, data: str, **options: Any) -> int:
    """Measure the correctness of answers to the questions of DATA.

    DATA is a SQuAD file, which contains its documents, or a JSONL file of questions about the collection, each with
    `answers` or `"unanswerable": true`. docs/evaluation.md describes the formats and metrics.
    """
    from ragfm.evaluation import evaluate_answers
    from ragfm.evaluation.run_file import question_count
    from ragfm.generation.readers import configured_reader

    out = options["out"]
    questions = load_data(data, options, answers=True)
    with data_collection(questions, collection, options) as (handle, synced):
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
    failed = [
        {"id": result.id, "context": context, "error": outcome.error}
        for result in evaluated.results
        for context, outcome in result.outcomes.items()
        if outcome.error
    ]
    if as_json:
        tables = asdict(replace(evaluated, about={}, results=()))
        print_json(
            {
                **evaluated.about,
                **{name: tables[name] for name in ("measures", "latency_ms")},
                "kinds": evaluated.kinds,
                "statuses": {name: asdict(count) for name, count in evaluated.statuses.items()},
                "failed": failed,
                "done": len(evaluated.results),
                "ingest": asdict(synced) if synced else None,
                "out": out,
            }
        )
        return exit_code(synced, evaluated.stopped, out)
    facts, size = evaluated.about, evaluated.about["collection"]
    unanswerable = sum(result.unanswerable for result in evaluated.results)
    adapter = f" with {facts['adapter']}" if facts["adapter"] else ""
    print_text(
        f"{facts['data']}: {question_count(len(evaluated.results), facts)}, {unanswerable} of them unanswerable; "
        f"{counted(document=size['documents'], chunk=size['chunks'])}; reader {facts['reader']}{adapter}, "
        f"{counted(passage=facts['k'])}"
    )
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
    for failure in failed:
        first_errors.setdefault(failure["id"], failure["error"])
    print_failures(list(first_errors.items()), synced)
    print_written(out)
    return exit_code(synced, evaluated.stopped, out)


_MAX_VALUE = 80  # characters of a setting's value


@click.command()
@click.argument("a", type=click.Path(exists=True, dir_okay=False))
@click.argument("b", type=click.Path(exists=True, dir_okay=False))
@json_options
def compare(a: str, b: str, as_json: bool) -> None:
    """Compare runs A and B, which were written with --out, question by question."""
    from ragfm.evaluation import compare_runs

    compared = compare_runs(a, b)
    if as_json:
        print_json({**asdict(compared), "settings": compared.settings})
        return
    only = f"; {compared.only_a} only in A, {compared.only_b} only in B" if compared.only_a or compared.only_b else ""
    print_text(f"{counted(question=compared.questions)}{only}")
    for key, values in compared.settings.items():
        in_a, in_b = (shorten(str(value), _MAX_VALUE, placeholder="…") for value in values)
        print_text(f"{key}: {in_a} in A, {in_b} in B")
    rows = []
    for row in compared.differences:
        verdict = "within noise" if row.noise else "B is better" if row.difference > 0 else "A is better"
        rows.append(
            (
                row.measure,
                f"{row.a:.3f}",
                f"{row.b:.3f}",
                f"{row.difference:+.3f}",
                f"[{row.low:+.3f}, {row.high:+.3f}]",
                f"{row.p:.4f}",
                f"{row.wins} / {row.losses} / {row.ties}",
                verdict,
            )
        )
    print_text("")
    print_table(["", ">A", ">B", ">B - A", "95 % interval", ">p", "better / worse / same in B", ""], rows)
    if compared.changed:
        print_text(f"\nLargest changes of {compared.differences[0].measure}:")
    for change in compared.changed:
        print_text(f"  {change.a:.2f} → {change.b:.2f}  {' '.join(change.question.split())}  ({change.id})")


@click.group("eval", cls=CommandGroup)
def evaluation() -> None:
    """Measure the quality of retrieval and answers, and compare runs."""


for command in (retrieval, answers, compare):
    evaluation.add_command(command)
