"""`ragfm adapt …`: the reader taught on your own documents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli_eval import check_options, data_options, load_data, opened
from ragfm.cli_options import FILLED, OK, counting, shared
from ragfm.show import print_json, printable

if TYPE_CHECKING:
    from ragfm.adapt import Dataset
    from ragfm.collection import Collection
    from ragfm.evaluate import QuestionSet

_FILES = click.Path(exists=True)


@click.group()
def adapt() -> None:
    """Teach the reader to answer from your documents: examples, training, export."""


@adapt.command("data")
@click.argument("questions", required=False, type=_FILES)
@click.option("--write", metavar="N", type=click.IntRange(min=1), help="Without QUESTIONS: the reader writes N, with "
              "their answers, from the collection.")  # fmt: skip
@click.option("--reader", metavar="NAME", type=FILLED, help="The reader that is taught; with --write it writes, too.")
@click.option("-k", type=click.IntRange(min=1), metavar="N", help="How many passages it is given.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only N of the questions, picked at random.")
@click.option("--seed", default=0, show_default=True, help="Which ones --limit picks, and all that is random.")
@click.option("--abstain", default=1 / 3, show_default="1/3", type=click.FloatRange(0, 0.9), metavar="SHARE",
              help="How many have the answer that it is not known.")  # fmt: skip
@click.option("--near", default=0.5, show_default=True, type=click.FloatRange(0, 1), metavar="SHARE",
              help="How many of these are near misses.")  # fmt: skip
@click.option("--valid", default=0.1, show_default=True, type=click.FloatRange(0, 0.5), metavar="SHARE",
              help="How many are kept to validate with, by whole documents.")  # fmt: skip
@click.option("--answers", "form", default="phrase", show_default=True, type=click.Choice(["phrase", "quoted"]),
              help="The answer alone, or with the sentence that it is from.")  # fmt: skip
@click.option("--keep-order", is_flag=True, help="Passages in the order of the search, not shuffled.")
@click.option("--exclude-data", multiple=True, metavar="FILE", type=_FILES, help="Data to be judged by: none of its "
              "questions and paragraphs is learned from; may be repeated.")  # fmt: skip
@click.option("--licence", metavar="TEXT", type=FILLED, help="The licence of the data, for the card.")
@data_options
@click.option("--out", default="ragfm-examples", show_default=True, metavar="DIR", type=FILLED,
              help="Where the examples and their card are written.")  # fmt: skip
@shared
def data_command(collection: str, as_json: bool, questions: str | None, out: str, **options: Any) -> int:
    """Make examples to train with, from QUESTIONS whose answers are known.

    QUESTIONS is a SQuAD file, which brings its documents, or a JSONL file about the collection with `question`, `uri`
    and `answers` in each line. docs/adaptation.md has the formats.
    """
    from ragfm.adapt import write_dataset

    loaded = _loaded(questions, options)
    check_options(loaded, options)
    with opened(loaded, collection, {**options, "mode": "hybrid"}) as (handle, _, _):
        dataset = _made(handle, loaded, options)
    write_dataset(dataset, out)
    if as_json:
        print_json({**dataset.card, "out": out})
    else:
        _print_card(dataset, out)
    return OK


# --- Inside ------------------------------------------------------------------------------------------------------


def _loaded(path: str | None, options: dict[str, Any]) -> QuestionSet | None:
    context = click.get_current_context()
    if path is None:
        if not options["write"]:
            raise click.UsageError("Name a file of questions, or have some written: --write N.", context)
        for name in ("split", "articles", "distractors", "limit"):
            if options[name]:
                raise click.UsageError(f"--{name} goes with QUESTIONS.", context)
        return None
    if options["write"]:
        raise click.UsageError("--write goes without QUESTIONS.", context)
    return load_data(path, options, answers=True)


def _made(collection: Collection, data: QuestionSet | None, options: dict[str, Any]) -> Dataset:
    from ragfm.adapt import Recipe, build_examples, held_out
    from ragfm.evaluate import write_questions
    from ragfm.rag import Rag

    held = held_out(options["exclude_data"])
    name = options["reader"] or collection.settings.reader
    rag = Rag(collection, reader=name, k=options["k"])
    if data is None:
        with counting("writing", "questions") as progress:
            asked = write_questions(collection, rag.reader, options["write"], seed=options["seed"], answers=True,
                                    progress=progress)  # fmt: skip
    else:
        asked = list(data.questions)
    recipe = Recipe(abstain=options["abstain"], near=options["near"], valid=options["valid"], form=options["form"],
                    shuffle=not options["keep_order"], seed=options["seed"])  # fmt: skip
    source = {
        "name": data.name if data else f"written by {name}",
        "licence": options["licence"],
        "left_out": dict(data.left_out if data else {}),
    }
    about = {"sources": [source], "reader": name, "limit": options["limit"]}
    with counting("making", "examples") as progress:
        return build_examples(rag, asked, recipe, held=held, about=about, progress=progress)


def _print_card(dataset: Dataset, out: str) -> None:
    card = dataset.card
    counts, tokens = card["examples"], card["lengths"]["prompt_tokens"]
    click.echo(f"{counts['train']} examples to train with, {counts['valid']} to validate with")
    for what in ("kinds", "left_out"):
        told = ", ".join(f"{name} {count}" for name, count in card[what].items())
        click.echo(printable(f"{what.replace('_', ' ')}: {told or 'none'}"))
    click.echo(f"tokens of a prompt: median {tokens['p50']}, 95 % up to {tokens['p95']}, at most {tokens['max']}")
    click.echo(printable(f"written: {Path(out) / 'train.jsonl'}, valid.jsonl, card.json"), err=True)
