"""`ragfm ask`."""

from __future__ import annotations

from typing import Any

import click

from ragfm.cli.options import (
    OK,
    collection_options,
    filter_option,
    k_option,
    make_rag,
    read_schema,
    reader_options,
    require_text,
    suggest_larger_reader,
)
from ragfm.cli.output import answer_json, extraction_json, print_answer, print_extraction, print_json
from ragfm.cli.progress_bar import busy
from ragfm.collection import Collection
from ragfm.core.types import MAX_HOPS


@click.command()
@click.argument("question")
@k_option
@reader_options
@filter_option
@click.option(
    "--hops",
    type=click.IntRange(1, MAX_HOPS),
    metavar="N",
    help="Rounds of search; with 2, names in the best passages are searched for as well. Default: `ask.hops`.",
)
@click.option(
    "--schema",
    type=click.Path(exists=True, dir_okay=False),
    help="Answer with an object that conforms to this JSON schema.",
)
@collection_options
def ask(collection: str, as_json: bool, question: str, filter: str | None, schema: str | None, **options: Any) -> int:
    """Answer QUESTION from the documents, with citations."""
    question = require_text(question, "question")
    if schema is not None:
        form = read_schema(schema)
        with Collection.open(collection) as store, busy("searching and reading"):
            extraction = make_rag(store, options).extract(question, form, filter=filter)
        if as_json:
            print_json(extraction_json(extraction))
        else:
            print_extraction(extraction)
        return OK
    with Collection.open(collection) as store, busy("searching and reading"):
        rag = make_rag(store, options)
        answer = rag.ask(question, filter=filter)
    if as_json:
        print_json(answer_json(answer))
    else:
        print_answer(answer)
        suggest_larger_reader(rag)
    return OK
