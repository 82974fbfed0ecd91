"""`ragfm adapt data`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ragfm.cli.evaluation_data import check_no_documents, data_collection, load_data
from ragfm.cli.options import (
    collection_options,
    data_options,
    k_option,
    limit_option,
    out_folder_option,
    share_option,
    text_option,
    usage_error,
)
from ragfm.cli.output import print_json, print_note, print_text, print_written
from ragfm.cli.progress_bar import show_progress
from ragfm.core.errors import DataError
from ragfm.core.output_folder import make_output

_DATA = click.Path(exists=True)


@click.command()
@click.argument("questions", required=False, type=_DATA)
@click.option("--from-log", is_flag=True, help="Also use answers from the log that were rated good or corrected.")
@text_option("--reader", metavar="NAME", help="Reader to fine-tune.")
@k_option
@limit_option
@share_option("--abstain", 1 / 3, (0, 0.9), "Share of examples whose answer is an abstention.", show_default="1/3")
@share_option("--valid", 0.1, (0, 0.5), "Share of examples for validation; a document's examples stay together.")
@click.option(
    "--exclude-data",
    multiple=True,
    metavar="FILE",
    type=_DATA,
    help="Evaluation data whose questions and paragraphs must not be in the examples; may be repeated.",
)
@text_option("--licence", help="Licence of the data, for the data card.")
@data_options
@out_folder_option("ragfm-examples", "Folder for the examples and their data card.")
@collection_options
def data(collection: str, as_json: bool, questions: str | None, out: str, **options: Any) -> None:
    """Create training examples from QUESTIONS with known answers.

    QUESTIONS is a SQuAD file, which contains its documents, or a JSONL file of questions about the collection with
    `question`, `uri` and `answers` in each line. docs/adaptation.md describes the formats.
    """
    from ragfm.rag import Rag
    from ragfm.training import Recipe, load_held_out, make_dataset, write_dataset

    if Path(out).is_file():
        raise DataError(f"'{out}' is a file.", "Specify a folder for the examples with --out.")
    loaded = None
    if questions is None:
        if not options["from_log"]:
            usage_error("Specify a file of questions, or use --from-log.")
        if options["limit"]:
            usage_error("--limit requires QUESTIONS.")
        check_no_documents(options)
    else:
        loaded = load_data(questions, options, answers=True, by_document=True)
        if loaded.documents is not None and options["from_log"]:
            usage_error("--from-log requires questions about the collection.")
    recipe = Recipe(**{name: options[name] for name in ("abstain", "valid")})
    make_output(out)  # an error now loses nothing
    with data_collection(loaded, collection, options) as (handle, _):
        held_out = load_held_out(options["exclude_data"])
        if unknown := held_out.unknown_uris(handle):
            print_note(
                f"Warning: {len(unknown)} URIs of --exclude-data, such as {min(unknown)}, are not in the collection. "
                "They exclude nothing."
            )
        with show_progress("questions") as progress:
            dataset = make_dataset(
                Rag(handle, reader=options["reader"] or handle.settings.reader, k=options["k"]),
                loaded,
                recipe,
                from_log=options["from_log"],
                held_out=held_out,
                licence=options["licence"],
                limit=options["limit"],
                progress=progress,
            )
    write_dataset(dataset, out)
    if as_json:
        print_json({**dataset.card, "out": out})
    else:
        card = dataset.card
        counts, tokens = card["examples"], card["lengths"]["prompt_tokens"]
        print_text(f"{counts['train']} training examples, {counts['valid']} validation examples")
        for key in ("kinds", "left_out"):
            text = ", ".join(f"{name} {count}" for name, count in card[key].items())
            print_text(f"{key.replace('_', ' ')}: {text or 'none'}")
        print_text(f"prompt tokens: median {tokens['p50']}, 95th percentile {tokens['p95']}, maximum {tokens['max']}")
        print_written(*(str(Path(out) / name) for name in ("train.jsonl", "valid.jsonl", "card.json")))
