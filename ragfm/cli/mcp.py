"""`ragfm mcp`: the tools of a collection for programs that have a model of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ragfm.cli.options import FILLED, OK
from ragfm.cli.serve import collection_folders, named, reader_models, serve, split_names
from ragfm.core.errors import MissingExtraError


@click.command(params=list(serve.params))
@click.option("--groups", multiple=True, metavar="G,…", type=FILLED, help="Groups whose documents it sees, beside "
              "those open to all.")  # fmt: skip
@click.option("--http", is_flag=True, help="Serve at an address, under /mcp, as `ragfm serve` does: the options of "
              "addresses and keys go with this.")  # fmt: skip
def mcp(
    collections: tuple[str, ...], readers: tuple[str, ...], adapter: str | None, groups: tuple[str, ...], http: bool,
    **listening: Any,
) -> int:  # fmt: skip
    """Give programs that speak the Model Context Protocol tools to search, ask and list: docs/mcp.md."""
    context = click.get_current_context()
    if http and groups:
        raise click.UsageError("--groups goes without --http: there a key has its groups.", context)
    try:
        from ragfm.server.mcp_server import run_stdio
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"The tools need {error.name}.", "Run `pip install 'ragfm[mcp]'`.") from error
    if http:
        return int(context.invoke(serve, collections=collections, readers=readers, adapter=adapter, **listening))
    from ragfm.server.api_keys import Key
    from ragfm.server.served_models import Served, collection_name

    try:
        key = Key(name="local", groups=split_names(groups))
    except ValueError as error:
        raise click.BadParameter("no group can have one of these names.", param_hint="--groups") from error
    folders = [named(given, collection_name, Path(given).is_dir()) for given in collection_folders(collections)]
    run_stdio(Served(folders, reader_models(readers), adapter=adapter), key)
    return OK
