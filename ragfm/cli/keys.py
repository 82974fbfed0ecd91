"""`ragfm keys …`: the API keys of the server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import click

from ragfm.cli.help import CommandGroup
from ragfm.cli.options import NON_EMPTY, POSITIVE, Number, json_option, split_names, text_option
from ragfm.cli.output import print_json, print_result, print_table
from ragfm.cli.serve import first_collection, key_store, keys_option, named_collections, server_debug_option
from ragfm.core.errors import ConfigError


@click.group(cls=CommandGroup)
def keys() -> None:
    """Create, list, rotate and revoke API keys of the server."""


_MAX_DAYS = 36_500
_days_option = click.option(
    "--days",
    type=Number(0, _MAX_DAYS, min_open=True),
    metavar="N",
    help="Let the key expire after N days. Default: never, or as before.",
)


def _after(days: float | None) -> datetime | None:
    return None if days is None else datetime.now(UTC) + timedelta(days=days)


def _at(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).isoformat(timespec="seconds")


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
@text_option(
    "--scopes",
    multiple=True,
    default=["read,write"],
    metavar="S,…",
    help="What the key may do: read, write (upload and delete documents), metrics.",
)
@_days_option
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
    scopes: tuple[str, ...],
    days: float | None,
) -> None:
    """Create an API key and print it; it cannot be shown again."""
    from pydantic import ValidationError

    from ragfm.server.api_keys import Key

    if allowed:
        served = [served_name for served_name, _ in named_collections(collections)]
        for wanted in split_names(allowed):
            if wanted not in served:
                raise ConfigError(
                    f"The key '{name}' cannot be created: the collection '{wanted}' is not among {', '.join(served)}.",
                    "Specify all collections with -c, as for `ragfm serve`.",
                )
    try:
        key = Key(
            name=name,
            groups=split_names(groups),
            collections=split_names(allowed) or None,
            per_minute=rate,
            uploads_mb=uploads_mb,
            scopes=split_names(scopes),
            expires=_after(days),
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
    store = key_store(keys_path, first_collection(collections))
    listed, used = store.keys(), store.last_used()
    if as_json:
        secrets = {"sha256", "previous_sha256"}
        entries = [key.model_dump(mode="json", exclude=secrets) for key in listed]
        print_json({"keys": [entry | {"last_used": _at(used.get(entry["name"]))} for entry in entries]})
        return
    rows = [
        (
            key.name,
            ", ".join(key.collections) if key.collections is not None else "all",
            ", ".join(key.groups) or "none",
            ", ".join(key.scopes),
            f"{key.per_minute:g}",
            key.created,
            _at(key.expires) or "never",
            _at(used.get(key.name)) or "never",
        )
        for key in listed
    ]
    print_table(["name", "collections", "groups", "scopes", ">requests/min", "created", "expires", "last used"], rows)


@keys.command()
@click.argument("name", type=NON_EMPTY)
@click.option(
    "--overlap",
    type=Number(0, _MAX_DAYS * 24),
    default=24.0,
    metavar="HOURS",
    help="How long the previous secret stays valid.",
)
@_days_option
@_key_options
def rotate(
    name: str, overlap: float, days: float | None, collections: tuple[str, ...], keys_path: str | None, as_json: bool
) -> None:
    """Replace an API key by a new one with the same rights, and print it; the old one stays valid for a while."""
    store = key_store(keys_path, first_collection(collections))
    secret = store.rotate(name, timedelta(hours=overlap), _after(days))
    print_result({"name": name, "key": secret}, secret, as_json=as_json)


@keys.command()
@click.argument("name", type=NON_EMPTY)
@_key_options
def revoke(name: str, collections: tuple[str, ...], keys_path: str | None, as_json: bool) -> None:
    """Revoke an API key; a running server refuses it at once."""
    key_store(keys_path, first_collection(collections)).revoke(name)
    print_result({"revoked": name}, f"{name} is revoked.", as_json=as_json)
