"""`ragfm serve`, `mcp` and `keys …`."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from ragfm.cli.help import CommandGroup
from ragfm.cli.options import (
    NON_EMPTY,
    POSITIVE,
    Number,
    adapter_option,
    json_option,
    split_names,
    text_option,
    usage_error,
)
from ragfm.cli.output import print_json, print_note, print_result, print_table
from ragfm.core.errors import ConfigError, needs_extra

if TYPE_CHECKING:
    from ragfm.server.request_guard import KeyStore
    from ragfm.server.served_models import ServedModels
    from ragfm.server.sign_in import SignIn


_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_NAME = re.compile(r"[\w.@-]+")

keys_option = text_option(
    "--keys",
    "keys_path",
    metavar="FILE",
    envvar="RAGFM_KEYS",
    help="File of API keys. Default: next to the first collection, or in its database.",
)
server_debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    help="Show tracebacks and debug messages, which may contain document text.",
)
collections_option = text_option(
    "-c",
    "--collection",
    "collections",
    multiple=True,
    metavar="[NAME=]DIR",
    help="Folder of a collection; may be repeated. The first one has the API keys.  [default: .ragfm]",
)
readers_option = text_option(
    "--reader",
    "readers",
    multiple=True,
    metavar="[NAME=]MODEL",
    help="Model that answers; may be repeated: clients then name the model `COLLECTION:NAME`.",
)


@click.command()
@collections_option
@readers_option
@adapter_option
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="Port to listen on; 0 picks a free port.")
@keys_option
@click.option("--no-auth", is_flag=True, help="Require no API keys; allowed on loopback addresses only.")
@text_option(
    "--oidc",
    "issuer",
    metavar="ISSUER",
    help="Let users of this OpenID Connect provider sign in. Default: `server.oidc.issuer` of the first collection.",
)
@click.option(
    "--drain",
    type=Number(min=0),
    default=30.0,
    metavar="SECONDS",
    help="Grace period for answers in progress at shutdown.",
)
@click.option(
    "--shutdown-delay",
    type=Number(min=0),
    default=0.0,
    metavar="SECONDS",
    help="After SIGTERM, keep accepting requests while /readyz fails, until a proxy has noticed.",
)
@click.option(
    "--log-format",
    type=click.Choice(["json", "text"]),
    default="json",
    help="Log lines as JSON objects, or as text for people.",
)
@server_debug_option
def serve(
    collections: tuple[str, ...],
    readers: tuple[str, ...],
    adapter: str | None,
    host: str,
    port: int,
    keys_path: str | None,
    no_auth: bool,
    issuer: str | None,
    drain: float,
    shutdown_delay: float,
    log_format: Literal["json", "text"],
) -> None:
    """Serve collections over an OpenAI-compatible API, with a web page for chatting: docs/server.md."""
    if no_auth and host not in _LOOPBACK:
        usage_error("--no-auth requires a loopback address.")
    if no_auth and issuer:
        usage_error("--oidc and --no-auth exclude each other.")
    with needs_extra("The server", "server"):
        from ragfm.server.app import create_app
        from ragfm.server.json_logging import configure_logging
        from ragfm.server.memory_budget import check_memory
        from ragfm.server.served_models import ServedModels
        from ragfm.server.uvicorn_server import Server
    folders = named_collections(collections)
    served = ServedModels(folders, named_readers(readers), adapter=adapter)
    keys = None if no_auth else key_store(keys_path, folders[0][1])
    sign_in = None if keys is None else _sign_in(served, issuer)
    if keys is not None and sign_in is None and not keys.keys():
        command = "ragfm keys add NAME"
        if keys_path:
            command += f" --keys {shlex.quote(keys_path)}"
        elif collections:  # the location of a database, unlike the option, has no password
            command += f" -c {shlex.quote(str(keys.path) if keys.remote else collections[0])}"
        raise ConfigError(f"There are no API keys in '{keys.path}'.", f"Create one with `{command}`, or use --no-auth.")
    configure_logging(debug="--debug" in sys.argv, form=log_format)
    check_memory(served)
    app = create_app(served, keys=keys, sign_in=sign_in)

    def show_address(address: str) -> None:
        if sys.stderr.isatty():  # a log has lines of JSON only
            print_note(f"ragfm serves an API at {address}/v1 and a chat page at {address}/")

    server = Server(app, host=host, port=port, drain=drain, shutdown_delay=shutdown_delay, on_listening=show_address)
    server.run()


def _sign_in(served: ServedModels, issuer: str | None) -> SignIn | None:
    """Return the sign-in by the settings of the first collection, at this issuer if there is one; None without any."""
    oidc = next(iter(served.models.values())).rag.collection.settings.server.oidc
    if issuer:
        oidc = oidc.model_copy(update={"issuer": issuer})
    if not oidc.issuer:
        return None
    with needs_extra("Sign-in", "oidc"):
        from ragfm.server.sign_in import SignIn
    return SignIn(oidc)


def named_collections(collections: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the name and folder of each collection, of texts `NAME=DIR` or `DIR`; by default that of the folder."""
    from ragfm.store.collection_store import open_database

    return [
        (_check_name(name or open_database(folder).default_name), folder)
        for name, folder in _split_collections(collections)
    ]


def named_readers(readers: tuple[str, ...]) -> list[tuple[str, str | None]]:
    """Return the name and model of each reader, of texts `NAME=MODEL` or `MODEL`; by default the collection's own."""
    named = list[tuple[str, str | None]]()
    for text in readers:
        name, model = _split_name(text, ":" in text)
        file = model.rstrip("/").rpartition("/")[2].removesuffix(".gguf")
        named.append((_check_name(name or re.sub(r"[^\w.@-]+", "-", file).strip("-")), model))
    return named or [("", None)]


def first_collection(collections: tuple[str, ...]) -> str:
    """Return the folder of the first collection, of texts `NAME=DIR` or `DIR`; its keys are those of the server."""
    return _split_collections(collections)[0][1]


def key_store(path: str | None, collection: str) -> KeyStore:
    """Return the API keys in the file at `path`, by default next to the collection, or in its database."""
    from ragfm.server.api_keys import KeyFile, default_key_path
    from ragfm.store.database import is_address

    if path is None and is_address(collection):
        from ragfm.server.key_table import KeyTable

        return KeyTable(collection)
    return KeyFile(path or default_key_path(collection))


def _split_collections(collections: tuple[str, ...]) -> list[tuple[str, str]]:
    from ragfm.store.database import is_address

    texts = collections or (os.environ.get("RAGFM_COLLECTION") or ".ragfm",)
    return [_split_name(text, Path(text).is_dir() or is_address(text)) for text in texts]


def _split_name(text: str, may_contain_equals: bool) -> tuple[str, str]:
    """The name, empty if there is none, and the value of `NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not equals or not value or (may_contain_equals and not _NAME.fullmatch(name)):
        return "", text
    return name, value


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"'{name}' is not a valid model name.", "Specify a name: NAME=VALUE.")
    return name


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
    with needs_extra("`ragfm mcp`", "mcp"):
        from ragfm.server.api_keys import Key
        from ragfm.server.mcp_server import run_stdio
        from ragfm.server.served_models import ServedModels
    try:
        key = Key(name="local", groups=split_names(groups))
    except ValueError as error:
        raise click.BadParameter("the name of a group is not valid.", param_hint="--groups") from error
    run_stdio(ServedModels(named_collections(collections), named_readers(readers), adapter=adapter), key)


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
    return collections_option(keys_option(json_option(server_debug_option(command))))


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
