"""`ragfm search`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ragfm.cli.options import (
    OK,
    collection_options,
    filter_option,
    k_option,
    mode_option,
    require_text,
    usage_error,
)
from ragfm.cli.output import hit_json, print_hit, print_json, print_text
from ragfm.cli.progress_bar import busy
from ragfm.collection import Collection
from ragfm.core.types import MAX_HOPS

if TYPE_CHECKING:
    from ragfm.core.types import SearchStep


@click.command()
@click.argument("query")
@k_option
@mode_option
@filter_option
@click.option("--rerank", metavar="NAME|auto|none", help="Reranker. Default: `search.reranker` of the settings.")
@click.option(
    "--hops",
    type=click.IntRange(1, MAX_HOPS),
    default=1,
    metavar="N",
    help="Rounds of search; with 2, names in the best passages are searched for as well. Default: 1.",
)
@collection_options
def search(
    collection: str,
    as_json: bool,
    query: str,
    k: int | None,
    mode: Any,
    filter: str | None,
    rerank: str | None,
    hops: int,
) -> int:
    """Find the passages that match QUERY best."""
    if hops != 1 and rerank not in (None, "none"):
        usage_error("--rerank cannot be combined with --hops: the hits of several hops are not reranked.")
    with Collection.open(collection) as store, busy("searching"):
        steps: list[SearchStep] = []
        hits = store.search(
            require_text(query, "query"), k, mode=mode, filter=filter, rerank=rerank, hops=hops, record=steps.append
        )
    if as_json:
        searches = [asdict(step) for step in steps]
        print_json({"query": query, "hits": [hit_json(hit) for hit in hits], "searches": searches})
        return OK
    for rank, hit in enumerate(hits, 1):
        print_hit(f"{rank}." if hit.score is None else f"{rank}. {hit.score:.3f} ", hit)
    if not hits:
        print_text("No passage matches.")
    return OK
