"""Migrations: from the schemas of older versions to this one's.

    1 → 2   catalog.sqlite becomes catalog.db, whose pages have checksums; documents get a hash of their text, vectors
            a checksum, generations their count of chunks. Documents are parsed again by the next sync, since schema 1
            did not keep what a parser knows about the text; nothing is embedded again.

A migration writes a new file beside the old one and renames it: a crash leaves one of the two whole.
"""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any
from zlib import crc32

import pysqlite3

from ragfm.core.durable_files import beside, sync_file, sync_folder
from ragfm.core.errors import CollectionError
from ragfm.store.catalog import text_hash
from ragfm.store.database import FILE, create_database, open_engine
from ragfm.store.tables import SCHEMA, SCHEMA_VERSION

OLD_FILE = "catalog.sqlite"
"""The catalog's name up to schema 1."""

_ADDED = {  # columns that schema 1 did not have, and one that it had, by table
    "generations": {"chunks": "(SELECT count(*) FROM old.chunks WHERE born <= t.id AND ifnull(died, t.id + 1) > t.id)"},
    "sources": {"removed": "0"},
    "documents": {"allow": "NULL", "text_hash": "text_hash(t.text)", "marks": "NULL", "recipe": "''"},
    "vectors": {"checksum": "crc32(t.vector)"},
    "failures": {"recipe": "''"},
}  # fmt: skip


def is_old(folder: Path) -> bool:
    """Whether a folder has a collection of an older schema."""
    return (folder / OLD_FILE).exists() and not (folder / FILE).exists()


def migrate(folder: Path) -> None:
    """Bring a collection to this version's schema. The caller holds its lock. Does nothing where it has it.

    Raises CollectionError where it can't be done; the collection is then as it was.
    """
    if is_old(folder):
        temporary = beside(folder / FILE)
        try:
            temporary.mkdir()
            _copy(folder / OLD_FILE, temporary)
            sync_file(temporary / FILE)
            (temporary / FILE).replace(folder / FILE)
            sync_folder(folder)
        except (OSError, pysqlite3.Error) as error:
            raise CollectionError(
                f"{folder} can't be brought from schema 1 to {SCHEMA_VERSION}: {error}.",
                "It is as it was. Mend the cause and run it again.",
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    if (folder / FILE).exists():
        for left in folder.glob(f"{OLD_FILE}*"):
            left.unlink()


def _copy(old: Path, folder: Path) -> None:
    create_database(folder)
    engine = open_engine(folder, writable=True)
    try:
        with engine.begin() as connection:
            SCHEMA.create_all(connection)
        with closing(engine.raw_connection()) as raw:
            driver: Any = raw.driver_connection
            driver.create_function("crc32", 1, crc32, deterministic=True)
            driver.create_function("text_hash", 1, text_hash, deterministic=True)
            cursor = driver.cursor()
            cursor.execute("ATTACH ? AS old", (f"file:{old}?mode=rw",))
            found = cursor.execute("SELECT value FROM old.properties WHERE key = 'schema'").fetchone()
            if found != ("1",):
                raise CollectionError(f"{old} has schema {found}, expected 1.")
            cursor.execute("BEGIN")
            for table in SCHEMA.sorted_tables:
                added = _ADDED.get(table.name, {})
                names = [f'"{column.name}"' for column in table.columns]
                values = [added.get(column.name, f't."{column.name}"') for column in table.columns]
                cursor.execute(
                    f"INSERT INTO main.{table.name} ({', '.join(names)}) "  # noqa: S608  names of our own tables
                    f"SELECT {', '.join(values)} FROM old.{table.name} t"
                )
            cursor.execute("UPDATE properties SET value = ? WHERE key = 'schema'", (str(SCHEMA_VERSION),))
            cursor.execute("INSERT INTO properties (key, value) VALUES ('floor', '0')")
            cursor.execute("COMMIT")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            cursor.execute("DETACH old")
    finally:
        engine.dispose()
