"""`ragfm adapt retriever`."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ragfm.cli.evaluation_data import data_collection, load_data, resumable
from ragfm.cli.options import (
    POSITIVE,
    collection_options,
    out_folder_option,
    question_options,
    split_option,
    text_option,
)
from ragfm.cli.output import print_json, print_table, print_text

_HELD_OUT = 0.3  # share of the questions: half select the epoch, half test the result


@click.command()
@click.argument("questions", type=click.Path(exists=True))
@text_option("--base", default="bundled", metavar="NAME", help="Embedder to start from.")
@click.option(
    "--epochs",
    default=3,
    type=click.IntRange(min=1),
    help="Number of passes over the questions; the best epoch on held-out questions is kept.",
)
@click.option("--rate", default=3e-5, type=POSITIVE, help="Peak learning rate.")
@split_option
@question_options
@out_folder_option("ragfm-retriever", "Folder of the model; a second run resumes there.")
@collection_options
def retriever(collection: str, as_json: bool, questions: str, out: str, **options: Any) -> None:
    """Fine-tune the embedder on QUESTIONS, and measure the gain.

    QUESTIONS has the same format as for `ragfm eval retrieval`. Hard negatives are other passages that a search
    returns. The collection is not changed; the output says how to adopt the result.
    """
    from ragfm.training.hard_negatives import split_questions
    from ragfm.training.retriever_training import RetrieverSettings, adapt_retriever

    loaded = load_data(questions, options)
    settings = RetrieverSettings(**{name: options[name] for name in ("base", "epochs", "rate")})
    split = split_questions(loaded.questions, _HELD_OUT)
    with data_collection(loaded, collection, options) as (handle, _), resumable(out) as progress:
        report = adapt_retriever(handle, split, out, settings, progress=progress)
    if as_json:
        print_json({**asdict(report), "better": report.better, "out": out})
        return
    counts, figures, first = report.questions, report.numbers, report.differences[0]
    loss = figures["loss"]
    print_text(
        f"trained on {counts['learn']} questions ({report.lessons} passages), chosen on {counts['choose']}, "
        f"tested on {counts['test']}"
    )
    print_text(
        f"loss {loss['first']:.3f} → {loss['last_5']:.3f} in {figures['steps']} steps, {figures['seconds']:.0f} s; "
        f"epoch {figures['kept_epoch']} is kept\n"
    )
    rows = []
    for prefix, differences in (("", report.differences), ("dense, ", report.dense[:1])):
        for row in differences:
            interval = f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
            rows.append((prefix + row.measure, f"{row.a:.3f}", f"{row.b:.3f}", interval, f"{row.p:.4f}"))
    print_table(["", ">before", ">after", "difference, 95 % interval", ">p"], rows)
    if report.better:
        print_text("\nThe result is better, beyond noise. To adopt it:")
    elif first.noise:
        print_text(
            f"\nBy {first.measure}, the change is within noise: there is no reason to adopt it. To do so anyway:"
        )
    else:
        print_text(f"\nThe result is worse by {first.measure}. Do not adopt it. To do so anyway:")
    print_text(f"    ragfm reembed --embedder {shlex.quote(str(Path(out).absolute()))}")
