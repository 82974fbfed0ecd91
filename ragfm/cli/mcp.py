"""`ragfm mcp`."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from ragfm.cli.options import split_names, text_option, usage_error
from ragfm.cli.serve import named_collections, named_readers, serve
from ragfm.core.errors import MissingExtraError


@click.command(params=list(serve.params))
@text_option(
    "--groups",
    multiple=True,
    metavar="G,…",
    help="Groups whose documents the client may see, in addition to public ones.",
)
@click.option(
    "--http",
    is_flag=True,
    help="Serve over HTTP, under /mcp, as `ragfm serve` does. Required by --host, --port, --keys, --no-auth, --drain, "
    "--shutdown-delay.",
)
def mcp(
    collections: tuple[str, ...],
    readers: tuple[str, ...],
    adapter: str | None,
    groups: tuple[str, ...],
    http: bool,
    **server_options: Any,
) -> None:
    """Serve search, answers and the list of documents as tools over the Model Context Protocol: docs/mcp.md."""
    context = click.get_current_context()
    if http and groups:
        usage_error("--groups cannot be combined with --http, where each API key has its groups.")
    for option in context.command.params:
        is_given = context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
        if is_given and option.name in server_options and not http:
            usage_error(f"{option.opts[0]} requires --http.")
    try:
        from ragfm.server.mcp_server import run_stdio
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"`ragfm mcp` requires {error.name}.", "Install it with `pip install -e '.[mcp]'` in ragfm's source folder."
        ) from error
    if http:
        context.invoke(serve, collections=collections, readers=readers, adapter=adapter, **server_options)
        return
    from ragfm.server.api_keys import Key
    from ragfm.server.served_models import ServedModels

    try:
        key = Key(name="local", groups=split_names(groups))
    except ValueError as error:
        raise click.BadParameter("the name of a group is not valid.", param_hint="--groups") from error
    run_stdio(ServedModels(named_collections(collections), named_readers(readers), adapter=adapter), key)
