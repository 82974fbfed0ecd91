"""`ragfm serve` and `ragfm keys`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ragfm.cli.options import FILLED, OK, adapter_option, json_option
from ragfm.cli.output import print_json
from ragfm.core.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from ragfm.server.api_keys import KeyFile

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_NAME = re.compile(r"[\w.@-]+")

_keys_option = click.option(
    "--keys", "keys_path", metavar="FILE", envvar="RAGFM_KEYS", type=FILLED,
    help="The file of keys. Default: beside the first collection.",
)  # fmt: skip
_debug = click.option(
    "--debug", is_flag=True, expose_value=False, help="Show tracebacks and what is going on, words of documents too."
)


@click.command()
@click.option("-c", "--collection", "collections", multiple=True, metavar="[NAME=]DIR", type=FILLED,
              help="A collection's folder; may be repeated.  [default: .ragfm]")  # fmt: skip
@click.option("--reader", "readers", multiple=True, metavar="[NAME=]MODEL", type=FILLED,
              help="A model that answers; may be repeated, then `collection:NAME` asks it.")  # fmt: skip
@adapter_option
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="The port; 0 picks one.")
@_keys_option
@click.option("--no-auth", is_flag=True, help="Ask for no keys; only where nobody but this machine can connect.")
@click.option("--drain", type=click.FloatRange(min=0), default=30.0, show_default=True, metavar="SECONDS",
              help="How long running answers have when the server is to end.")  # fmt: skip
@_debug
def serve(
    collections: tuple[str, ...], readers: tuple[str, ...], adapter: str | None, host: str, port: int,
    keys_path: str | None, no_auth: bool, drain: float,
) -> int:  # fmt: skip
    """Serve collections to clients of OpenAI's API: docs/server.md."""
    if no_auth and host not in _LOOPBACK:
        raise click.UsageError("--no-auth goes with a loopback address only.", click.get_current_context())
    try:
        from ragfm.server.app import create_app
        from ragfm.server.json_logging import log_as_json
        from ragfm.server.memory_budget import check_memory
        from ragfm.server.served_models import Served, collection_name
        from ragfm.server.uvicorn_server import Server
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"The server needs {error.name}.", "Run `pip install 'ragfm[server]'`.") from error
    folders = [named(given, collection_name, Path(given).is_dir()) for given in collection_folders(collections)]
    keys = None if no_auth else _key_file(keys_path, folders[0][1])
    if keys is not None and not keys.keys():
        raise ConfigError(f"There are no keys in {keys.path}.", "`ragfm keys add NAME` makes one; or --no-auth.")
    served = Served(folders, reader_models(readers), adapter=adapter)
    log_as_json(debug="--debug" in sys.argv)
    check_memory(served)
    app = create_app(served, keys=keys)
    Server(app, host=host, port=port, drain=drain, told=_tell).run()
    return OK


@click.group()
def keys() -> None:
    """Make, list and revoke the keys that a server asks for."""


def _shared(function: Callable[..., int]) -> Callable[..., int]:
    collection = click.option("-c", "--collection", "collections", metavar="DIR", multiple=True, type=FILLED,
                              help="The first collection that is served.  [default: .ragfm]")  # fmt: skip
    return collection(_keys_option(json_option(_debug(function))))


@keys.command()
@click.argument("name", type=FILLED)
@click.option("--groups", multiple=True, metavar="G,…", type=FILLED, help="Groups whose documents it sees.")
@click.option("--collections", "asks", multiple=True, metavar="NAME,…", type=FILLED,
              help="Collections that it may ask. Default: all that are served.")  # fmt: skip
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=600.0, show_default=True,
              metavar="N", help="Requests a minute.")  # fmt: skip
@click.option("--uploads-mb", type=click.FloatRange(min=0), default=1000.0, show_default=True, metavar="N",
              help="What its uploads to a collection may take together.")  # fmt: skip
@_shared
def add(
    name: str, groups: tuple[str, ...], asks: tuple[str, ...], collections: tuple[str, ...], keys_path: str | None,
    as_json: bool, **limits: float,
) -> int:  # fmt: skip
    """Make a key and print it: it is shown only now."""
    from pydantic import ValidationError

    from ragfm.server.api_keys import Key

    try:
        key = Key(name=name, groups=split_names(groups), collections=split_names(asks) or None,
                  per_minute=limits["rate"], uploads_mb=limits["uploads_mb"])  # fmt: skip
    except ValidationError as error:
        said = error.errors()[0]
        raise ConfigError(f"A key can't be made so: {'.'.join(map(str, said['loc']))}: {said['msg']}.") from error
    secret = _key_file(keys_path, collection_folders(collections)[0]).add(key)
    print_json({"name": name, "key": secret}) if as_json else click.echo(secret)
    return OK


@keys.command(name="list")
@_shared
def list_keys(collections: tuple[str, ...], keys_path: str | None, as_json: bool) -> int:
    """List the keys; what they are can't be shown."""
    found = _key_file(keys_path, collection_folders(collections)[0]).keys()
    if as_json:
        print_json({"keys": [key.model_dump(exclude={"sha256"}) for key in found]})
        return OK
    for key in found:
        asks = ", ".join(key.collections) if key.collections is not None else "all collections"
        groups = ", ".join(key.groups) or "no groups"
        click.echo(f"{key.name:<20} {asks}; {groups}; {key.per_minute:g} a minute; since {key.created}")
    return OK


@keys.command()
@click.argument("name", type=FILLED)
@_shared
def revoke(name: str, collections: tuple[str, ...], keys_path: str | None, as_json: bool) -> int:
    """Take a key away; a running server refuses it at once."""
    _key_file(keys_path, collection_folders(collections)[0]).revoke(name)
    print_json({"revoked": name}) if as_json else click.echo(f"{name} is revoked.")
    return OK


# --- Inside ------------------------------------------------------------------------------------------------------


def collection_folders(given: tuple[str, ...]) -> list[str]:
    """Those that were given, or the usual one."""
    return list(given) or [os.environ.get("RAGFM_COLLECTION") or ".ragfm"]


def _key_file(path: str | None, collection: str) -> KeyFile:
    from ragfm.server.api_keys import KeyFile, keys_beside

    return KeyFile(path or keys_beside(collection))


def named(given: str, usual: Callable[[str], str], whole: bool) -> tuple[str, str]:
    """Name and value of `NAME=VALUE`, or of a value that is to have its usual name."""
    name, equals, value = given.partition("=")
    if not equals or not value or (whole and not _NAME.fullmatch(name)):
        name, value = usual(given), given
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} can't be a model's name.", "Give it one: NAME=VALUE.")
    return name, value


def reader_models(given: tuple[str, ...]) -> list[tuple[str, str | None]]:
    """Names and models of the readers that were given, or the collection's own."""
    return [named(reader, _reader_name, ":" in reader) for reader in given] or [("", None)]


def _reader_name(model: str) -> str:
    return re.sub(r"[^\w.@-]+", "-", model.rstrip("/").rpartition("/")[2].removesuffix(".gguf")).strip("-")


def split_names(given: tuple[str, ...]) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(part.strip() for text in given for part in text.split(",") if part.strip())


def _tell(address: str) -> None:
    sys.stderr.write(f"ragfm serves at {address}/v1, and a page to chat at {address}/\n")
    sys.stderr.flush()
