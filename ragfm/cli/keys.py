"""`ragfm keys …`: the API keys of the server."""

from __future__ import annotations

from collections.abc import Callable

import click

from ragfm.cli.help import CommandGroup
from ragfm.cli.options import NON_EMPTY, POSITIVE, Number, json_option, split_names, text_option
from ragfm.cli.output import print_json, print_result, print_table
from ragfm.cli.serve import first_collection, key_store, keys_option, server_debug_option
from ragfm.core.errors import ConfigError


@click.group(cls=CommandGroup)
def keys() -> None:
    """Create, list and revoke API keys of the server."""


def _key_options(command: Callable[..., None]) -> Callable[..., None]:
    collection = text_option(
        "-c",
        "--collection",
        "collections",
        metavar="[NAME=]DIR",
        multiple=True,
        help="First collection that is served.  [default: .ragfm]",
    )
    return collection(keys_option(json_option(server_debug_option(command))))


@keys.command()
@click.argument("name", type=NON_EMPTY)
@text_option("--groups", multiple=True, metavar="G,…", help="Groups whose documents the key gives access to.")
@text_option(
    "--collections",
    "allowed",
    multiple=True,
    metavar="NAME,…",
    help="Collections that the key gives access to. Default: all.",
)
@click.option("--rate", type=POSITIVE, default=600.0, metavar="N", help="Maximum number of requests a minute.")
@click.option(
    "--uploads-mb",
    type=Number(min=0),
    default=1000.0,
    metavar="N",
    help="Maximum size of all uploads to a collection, in MB.",
)
@_key_options
def add(
    name: str,
    groups: tuple[str, ...],
    allowed: tuple[str, ...],
    collections: tuple[str, ...],
    keys_path: str | None,
    as_json: bool,
    rate: float,
    uploads_mb: float,
) -> None:
    """Create an API key and print it; it cannot be shown again."""
    from pydantic import ValidationError

    from ragfm.server.api_keys import Key

    try:
        key = Key(
            name=name,
            groups=split_names(groups),
            collections=split_names(allowed) or None,
            per_minute=rate,
            uploads_mb=uploads_mb,
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ConfigError(f"The key '{name}' cannot be created: {field}: {first['msg']}.") from error
    secret = key_store(keys_path, first_collection(collections)).add(key)
    print_result({"name": name, "key": secret}, secret, as_json=as_json)


@keys.command(name="list")
@_key_options
def list_keys(collections: tuple[str, ...], keys_path: str | None, as_json: bool) -> None:
    """List the API keys, without their secrets."""
    listed = key_store(keys_path, first_collection(collections)).keys()
    if as_json:
        print_json({"keys": [key.model_dump(exclude={"sha256"}) for key in listed]})
        return
    rows = [
        (
            key.name,
            ", ".join(key.collections) if key.collections is not None else "all",
            ", ".join(key.groups) or "none",
            f"{key.per_minute:g}",
            str(key.created),
        )
        for key in listed
    ]
    print_table(["name", "collections", "groups", ">requests/min", "created"], rows)


@keys.command()
@click.argument("name", type=NON_EMPTY)
@_key_options
def revoke(name: str, collections: tuple[str, ...], keys_path: str | None, as_json: bool) -> None:
    """Revoke an API key; a running server refuses it at once."""
    key_store(keys_path, first_collection(collections)).revoke(name)
    print_result({"revoked": name}, f"{name} is revoked.", as_json=as_json)
