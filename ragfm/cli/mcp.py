"""`ragfm mcp`."""

from __future__ import annotations

import click

from ragfm.cli.options import adapter_option, split_names, text_option
from ragfm.cli.serve import collections_option, named_collections, named_readers, readers_option, server_debug_option
from ragfm.core.errors import MissingExtraError


@click.command()
@collections_option
@readers_option
@adapter_option
@text_option(
    "--groups",
    multiple=True,
    metavar="G,…",
    help="Groups whose documents the client may see, in addition to public ones.",
)
@server_debug_option
def mcp(collections: tuple[str, ...], readers: tuple[str, ...], adapter: str | None, groups: tuple[str, ...]) -> None:
    """Serve search, answers and the list of documents as tools over the Model Context Protocol: docs/mcp.md.

    The client starts the command and talks to it over standard input and output. `ragfm serve` has the same tools over
    HTTP.
    """
    try:
        from ragfm.server.api_keys import Key
        from ragfm.server.mcp_server import run_stdio
        from ragfm.server.served_models import ServedModels
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"`ragfm mcp` requires {error.name}.", "Install it with `pip install -e '.[mcp]'` in ragfm's source folder."
        ) from error
    try:
        key = Key(name="local", groups=split_names(groups))
    except ValueError as error:
        raise click.BadParameter("the name of a group is not valid.", param_hint="--groups") from error
    run_stdio(ServedModels(named_collections(collections), named_readers(readers), adapter=adapter), key)
