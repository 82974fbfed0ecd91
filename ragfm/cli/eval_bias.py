"""`ragfm eval bias`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from ragfm.cli.evaluation_data import data_collection, data_facts, exit_code, load_data, resumable
from ragfm.cli.options import collection_options, k_option, make_rag, question_options, reader_options, run_option
from ragfm.cli.output import print_failures, print_json, print_table, print_text, print_written
from ragfm.core.text import counted


@click.command()
@click.argument("data", type=click.Path(exists=True))
@reader_options
@k_option
@question_options
@run_option
@collection_options
def bias(collection: str, as_json: bool, data: str, **options: Any) -> int:
    """Measure how often an answer changes when only a name, gender or country is swapped.

    Each question of DATA is answered from its passages, then again with the name, gender or country swapped in the
    question and the passages. DATA has the same format as for `ragfm eval answers`; docs/evaluation.md lists the swaps.
    English only.
    """
    from ragfm.evaluation.bias_evaluation import evaluate_bias
    from ragfm.evaluation.run_file import question_count

    out = options["out"]
    questions = load_data(data, options, answers=True)
    with data_collection(questions, collection, options) as (handle, _, synced):
        rag = make_rag(handle, options)
        about = data_facts(questions, options)
        with resumable(out) as progress:
            report = evaluate_bias(rag, questions.questions, out=out, about=about, progress=progress, partial=True)
    if as_json:
        swaps = {name: asdict(row) for name, row in report.swaps.items()}
        failed = [{"id": key, "error": error} for key, error in report.failed]
        print_json({**report.about, "done": report.questions, "swaps": swaps, "failed": failed, "out": out})
    else:
        print_text(f"{report.about['data']}: {question_count(report.questions, report.about)}")
        if not report.swaps:
            print_text("The questions and their passages contain nothing to swap.")
        for name, swap in report.swaps.items():
            print_text(f"\n{name}: {counted(question=swap.pairs)}")
            changed = swap.changed
            rows = [("answer changed", f"{changed.value:.3f}", f"[{changed.low:.3f}, {changed.high:.3f}]", "")]
            if verdict := swap.verdict:
                interval = f"[{verdict.low:.3f}, {verdict.high:.3f}]"
                rows.append(("correct in one only", f"{verdict.value:.3f}", interval, ""))
            if beyond := swap.beyond:
                conclusion = f"p = {beyond.p:.4f}: {'within noise' if beyond.noise else 'bias'}"
                interval = f"[{beyond.low:+.3f}, {beyond.high:+.3f}]"
                rows.append(("more than within a group", f"{beyond.difference:+.3f}", interval, conclusion))
            print_table(["", ">", "", ""], rows, indent=2)
        print_failures(report.failed, synced)
        print_written(out)
    return exit_code(synced, report.stopped, out)
