"""Migrations from older schemas.

    1 → 2   catalog.sqlite becomes catalog.db, with page checksums. Documents get a hash of their text, vectors a
            checksum, generations a count of chunks. The next sync parses all documents again, because schema 1 did not
            store the parser's marks; it embeds nothing.
    images  the table of images, and the columns of chunks for figures. The schema keeps its number: versions of ragfm
            that do not know them read and write the rest.

The migration to schema 2 writes a new file and renames it, so a crash leaves either the old or the new one. The other
one is a transaction.
"""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any
from zlib import crc32

import pysqlite3
import sqlalchemy as sa

from ragfm.core.durable_files import storage_failure, sync_file, sync_folder, temporary_path
from ragfm.core.errors import CollectionError
from ragfm.store.sqlite_file import CATALOG_FILE, create_database, file_address, open_engine
from ragfm.store.tables import SCHEMA, SCHEMA_VERSION, WITH_IMAGES, chunks, images, properties, text_hash

SCHEMA_1_FILE = "catalog.sqlite"
"""The name of the catalog up to schema 1."""

# SQL expressions for columns that schema 1 lacks, by table; `t` is the old row. An empty recipe makes the next sync
# parse the document again.
_NEW_COLUMNS = {
    "generations": {"chunks": "(SELECT count(*) FROM old.chunks WHERE born <= t.id AND ifnull(died, t.id + 1) > t.id)"},
    "sources": {"removed": "0"},
    "documents": {"allow": "NULL", "text_hash": "text_hash(t.text)", "marks": "NULL", "recipe": "''"},
    "chunks": {"image": "NULL", "box": "NULL"},
    "vectors": {"checksum": "crc32(t.vector)"},
    "failures": {"recipe": "''"},
}


def needs_migration(folder: Path) -> bool:
    """Whether the folder holds a collection with an older schema."""
    return (folder / SCHEMA_1_FILE).exists() and not (folder / CATALOG_FILE).exists()


def migrate(folder: Path) -> None:
    """Upgrade a collection to the current schema; do nothing if it has it. The caller holds its lock.

    Raises CollectionError, which leaves the collection unchanged.
    """
    if needs_migration(folder):
        temporary = temporary_path(folder / CATALOG_FILE)
        try:
            temporary.mkdir()
            _copy_tables(folder / SCHEMA_1_FILE, temporary)
            sync_file(temporary / CATALOG_FILE)
            (temporary / CATALOG_FILE).replace(folder / CATALOG_FILE)
            sync_folder(folder)
        except (OSError, pysqlite3.Error) as error:
            error_type, why = storage_failure(folder, error)
            raise error_type(
                f"The collection '{folder}' cannot be migrated from schema 1 to {SCHEMA_VERSION}: {why}.",
                "It is unchanged. Fix the cause and run the command again.",
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    if (folder / CATALOG_FILE).exists():
        for old in folder.glob(f"{SCHEMA_1_FILE}*"):
            old.unlink()


def add_images(connection: sa.Connection, chunks_table: str) -> None:
    """Add the table of images and the columns for figures, which an older catalog lacks."""
    for column in (chunks.c.image, chunks.c.box):
        definition = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {chunks_table} ADD COLUMN {definition}")
    next(index for index in chunks.indexes if index.name == "chunks_image").create(connection)
    images.create(connection)
    connection.execute(properties.insert().values(key=WITH_IMAGES, value="1"))


def _copy_tables(old: Path, folder: Path) -> None:
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
            cursor.execute("ATTACH ? AS old", (file_address(old, "mode=rw"),))
            schema = cursor.execute("SELECT value FROM old.properties WHERE key = 'schema'").fetchone()
            if schema != ("1",):
                raise CollectionError(f"The catalog '{old}' has schema {schema}, expected 1.")
            cursor.execute("BEGIN")
            for table in SCHEMA.sorted_tables:
                if table is images:
                    continue
                new_columns = _NEW_COLUMNS.get(table.name, {})
                names = [f'"{column.name}"' for column in table.columns]
                values = [new_columns.get(column.name, f't."{column.name}"') for column in table.columns]
                cursor.execute(
                    f"INSERT INTO main.{table.name} ({', '.join(names)}) "  # noqa: S608  names of our own tables
                    f"SELECT {', '.join(values)} FROM old.{table.name} t"
                )
            cursor.execute("UPDATE properties SET value = ? WHERE key = 'schema'", (str(SCHEMA_VERSION),))
            cursor.execute("INSERT INTO properties (key, value) VALUES ('floor', '0'), (?, '1')", (WITH_IMAGES,))
            cursor.execute("COMMIT")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            cursor.execute("DETACH old")
    finally:
        engine.dispose()
