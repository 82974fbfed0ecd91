"""`ragfm doctor`: what an operator has to do before ragfm works well on this machine."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import click

from ragfm import __version__
from ragfm.cli.options import FAILED, OK, collection_options
from ragfm.cli.output import megabytes, print_json, print_table
from ragfm.collection import Collection
from ragfm.core.cache import cache_folder
from ragfm.core.errors import RagfmError
from ragfm.core.text import counted

if TYPE_CHECKING:
    from ragfm.store.postgres import PostgresDatabase

_FREE_BYTES = 1_000_000_000
_CLOCK_SECONDS = 5.0
_SPARE_CONNECTIONS = 15  # the most that a process of ragfm opens to a database
_OLDEST_POSTGRES = 15
_HASH = re.compile(r"[0-9a-f]{64}")


class Check(NamedTuple):
    """One check: what was found, and what to do about it; empty if nothing."""

    name: str
    found: str
    action: str = ""


@click.command()
@collection_options
def doctor(collection: str, as_json: bool) -> int:
    """Check models, disk, permissions, clock, database and versions; exit code 1 if there is something to do.

    Changes nothing. `ragfm verify` checks the stored data.
    """
    checks = list(_versions())
    try:
        with Collection.open(collection) as store:
            checks += _collection(store)
            for part in (_models, _disk, _permissions, _clock, _database):
                checks += _results(part.__name__.strip("_"), partial(part, store))
    except RagfmError as error:  # there is no such collection, or its settings are not valid
        checks.append(Check("collection", error.message, error.hint or "Correct it."))
    actions = [check for check in checks if check.action]
    if as_json:
        print_json({"ok": not actions, "checks": [check._asdict() for check in checks]})
    else:
        rows = [(f"{'! ' if check.action else '  '}{check.name}", check.found) for check in checks]
        for number, check in reversed(list(enumerate(checks))):
            if check.action:
                rows.insert(number + 1, ("", f"→ {check.action}"))
        print_table(["", ""], rows)
    return FAILED if actions else OK


def _results(name: str, part: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from part()
    except RagfmError as error:
        yield Check(name, error.message, error.hint or "See the message.")
    except OSError as error:
        yield Check(name, f"'{error.filename}': {error.strerror}", "Run this as the user of the server.")


def _versions() -> Iterator[Check]:
    """Installed distributions against the requirements of ragfm, and of those extras that are in use."""
    from packaging.requirements import Requirement

    wrong, found = dict[str, str](), set[str]()
    for requirement in map(Requirement, requires("ragfm") or ()):
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wrong[requirement.name] = f"{requirement.name} is not installed"
            continue
        found.add(requirement.name)
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong[str(requirement).partition(";")[0]] = f"{requirement.name} {installed}"
    python = ".".join(map(str, sys.version_info[:3]))
    names = " ".join(f"'{name}'" for name in wrong)
    yield Check(
        "versions",
        f"ragfm {__version__}, Python {python}, {', '.join(wrong.values()) or counted(requirement=len(found))}",
        f"Run `pip install {names}`." if wrong else "",
    )


def _collection(store: Collection) -> Iterator[Check]:
    status = store.status()
    yield Check("collection", f"{store.location}: {counted(document=status.documents, chunk=status.chunks)}")


def _models(store: Collection) -> Iterator[Check]:
    """Whether the models of the settings can be found, and have their checksums."""
    from ragfm.rag import Rag

    def reader() -> Iterator[Check]:
        rag = Rag(store)
        yield from _weights("reader", rag.reader_name)
        if check := getattr(rag.base_reader, "check_servers", None):
            check()
            for server, up in rag.base_reader.servers.items():  # type: ignore[attr-defined]
                yield Check("reader", f"{server} {'answers' if up else 'does not answer'}", "" if up else "Start it.")
        if rag.reader_name == "none" and store.settings.reader == "bundled":
            yield Check("reader", "Answers are quotes: llama.cpp is not installed. `pip install -e '.[llama-cpp]'`")
        yield Check("judge", f"sha256 {rag.judge.sha256[:12]}" if rag.judge else "none")

    yield from _results("embedder", lambda: _weights("embedder", str(store.contract["embedder"])))
    yield from _results("reader", reader)


def _weights(job: Literal["embedder", "reader"], name: str) -> Iterator[Check]:
    """A model's weights. Files of the hub's cache are named after their checksums; bundled ones have pinned ones."""
    from ragfm.core.registry import plugin_and_model
    from ragfm.models.model_lookup import files_sha256, find_model

    plugin, model = plugin_and_model("readers" if job == "reader" else "embedders", name)
    if not model or model == "none" or plugin not in ("llama-cpp", "transformers", "sentence-transformers"):
        yield Check(job, name)
        return
    path = find_model(model, job)
    for file in [path] if path.is_file() else path.rglob("*.safetensors"):
        blob = file.resolve()
        if _HASH.fullmatch(blob.name) and files_sha256([file]) != blob.name:
            yield Check(job, f"'{file}' is damaged.", f"Delete '{blob}', and run `ragfm models pull {name}`.")
            return
    yield Check(job, f"{name}: {path}")


def _disk(store: Collection) -> Iterator[Check]:
    """Free space of each file system: 1 GB, and that of the collection for a backup or `compact`."""
    places = {"collection": store.path, "cache": cache_folder(), "temporary files": Path(tempfile.gettempdir())}
    seen = set[int]()
    for name, folder in places.items():
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if (device := existing.stat().st_dev) in seen:
            continue
        seen.add(device)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if name == "collection" else 0
        free, needed = shutil.disk_usage(existing).free, max(_FREE_BYTES, 2 * size)
        action = f"Free {megabytes(needed - free)} there." if free < needed else ""
        yield Check("disk", f"{existing} ({name}): {megabytes(free)} free", action)


def _permissions(store: Collection) -> Iterator[Check]:
    """Whether others can read what is private, and whether all files belong to one user, who can write them."""
    folder, found = store.path, list[Check]()
    if not folder.exists():  # of a database, without views on this machine
        return
    # Keys and the answer log are for the owner only; a group may read the collection.
    private = [folder.with_name(f"{folder.name}{end}") for end in ("-keys.json", "-log.db")]
    private = [path for path in private if path.exists() and not store.store.database.shared]
    for path in [folder, *private]:
        if path.stat().st_mode & (0o007 if path == folder else 0o077):
            rights = "o-rwx" if path == folder else "go-rwx"
            found.append(Check("permissions", f"Other users can read '{path}'.", f"Run `chmod {rights} '{path}'`."))
    owner = folder.stat().st_uid
    if others := [path for path in [*folder.rglob("*"), *private] if path.stat().st_uid != owner]:
        names = " ".join(f"'{path}'" for path in [folder, *private])
        what = f"{counted(file=len(others))} of another user than '{folder}', such as '{others[0]}'"
        found.append(Check("permissions", what, f"Run `chown -R --reference='{folder}' {names}`."))
    yield from found or [Check("permissions", f"{folder} is private")]


def _clock(store: Collection) -> Iterator[Check]:
    """Compare the clock with that of the database or, for a folder, with that of its file system."""
    import sqlalchemy as sa

    start = time.time()
    if store.store.database.shared:
        with _postgres(store).reading() as connection:
            other = float(connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())")) or 0)
        name = "the database"
    else:
        other, name = max(path.stat().st_mtime for path in store.path.iterdir()), "the files of the collection"
        try:
            with tempfile.NamedTemporaryFile(dir=store.path) as file:
                other = max(other, Path(file.name).stat().st_mtime)
        except OSError:  # a read-only folder, whose files only tell whether this clock is behind
            other = max(other, start)
    behind = other - (start + time.time()) / 2
    action = "" if abs(behind) < _CLOCK_SECONDS else "Synchronise the clocks by NTP: sign-in, keys and locks need it."
    yield Check("clock", f"{abs(behind):.1f} s {'behind' if behind > 0 else 'ahead of'} {name}", action)


def _database(store: Collection) -> Iterator[Check]:
    if not store.store.database.shared:
        from ragfm.store.sqlite_driver import sqlite

        yield Check("database", f"SQLite {sqlite.sqlite_version}")
        return
    import sqlalchemy as sa

    database = _postgres(store)
    database.check_server()
    with database.reading() as connection:
        number, limit, role_limit, used, extensions = connection.execute(
            sa.text(
                "SELECT current_setting('server_version_num')::int / 10000,"
                " current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,"
                " (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user),"
                " (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),"
                " (SELECT coalesce(string_agg(extname || ' ' || extversion, ', '), '') FROM pg_extension)"
            )
        ).one()
    old = number < _OLDEST_POSTGRES
    yield Check("database", f"PostgreSQL {number}", f"Update it to {_OLDEST_POSTGRES} or later." if old else "")
    missing = store.settings.backend == "pgvector" and "vector " not in extensions
    action = "Run `CREATE EXTENSION vector` in the database as its owner." if missing else ""
    yield Check("database", f"extensions: {extensions or 'none'}", action)
    spare = (limit if role_limit < 0 else min(limit, role_limit)) - used
    few = f"Raise max_connections, or the role's limit: each process opens up to {_SPARE_CONNECTIONS}."
    yield Check("database", f"{counted(connection=spare)} left", few if spare < _SPARE_CONNECTIONS else "")


def _postgres(store: Collection) -> PostgresDatabase:
    return store.store.database  # type: ignore[return-value]
