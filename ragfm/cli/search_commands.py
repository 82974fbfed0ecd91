"""`ragfm search` and `ragfm ask`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.options import (
    NON_EMPTY,
    collection_options,
    filter_option,
    hops_option,
    k_option,
    make_rag,
    mode_option,
    read_schema,
    reader_options,
    suggest_larger_reader,
    usage_error,
)
from ragfm.cli.output import (
    answer_json,
    extraction_json,
    hit_json,
    print_answer,
    print_extraction,
    print_hit,
    print_json,
    print_text,
)
from ragfm.cli.progress_bar import busy
from ragfm.collection import Collection

if TYPE_CHECKING:
    from ragfm.core.types import SearchStep


@click.command()
@click.argument("query", type=NON_EMPTY)
@k_option
@mode_option
@filter_option
@click.option("--rerank", metavar="NAME|auto|none", help="Reranker. Default: `search.reranker` of the settings.")
@hops_option
@collection_options
def search(
    collection: str,
    as_json: bool,
    query: str,
    k: int | None,
    mode: Any,
    filter: str | None,
    rerank: str | None,
    hops: Any,
) -> None:
    """Find the passages that match QUERY best."""
    hops = hops or 1
    if hops != 1 and rerank not in (None, "none"):
        usage_error("--rerank cannot be combined with --hops: the hits of several hops are not reranked.")
    with Collection.open(collection) as store, busy("searching"):
        steps: list[SearchStep] = []
        hits = store.search(query, k, mode=mode, filter=filter, rerank=rerank, hops=hops, record=steps.append)
    if as_json:
        searches = [asdict(step) for step in steps]
        print_json({"query": query, "hits": [hit_json(hit) for hit in hits], "searches": searches})
        return
    for rank, hit in enumerate(hits, 1):
        print_hit(f"{rank}." if hit.score is None else f"{rank}. {hit.score:.3f} ", hit)
    if not hits:
        print_text("No passage matches.")


@click.command()
@click.argument("question", type=NON_EMPTY)
@k_option
@reader_options
@filter_option
@hops_option
@click.option(
    "--schema",
    type=click.Path(exists=True, dir_okay=False),
    help="Answer with an object that conforms to this JSON schema.",
)
@collection_options
def ask(collection: str, as_json: bool, question: str, filter: str | None, schema: str | None, **options: Any) -> None:
    """Answer QUESTION from the documents, with citations."""
    if schema is not None:
        form = read_schema(schema)
        with Collection.open(collection) as store, busy("searching and reading"):
            extraction = make_rag(store, options).extract(question, form, filter=filter)
        if as_json:
            print_json(extraction_json(extraction))
        else:
            print_extraction(extraction)
        return
    with Collection.open(collection) as store, busy("searching and reading"):
        rag = make_rag(store, options)
        answer = rag.ask(question, filter=filter)
    if as_json:
        print_json(answer_json(answer))
    else:
        print_answer(answer)
        suggest_larger_reader(rag)
