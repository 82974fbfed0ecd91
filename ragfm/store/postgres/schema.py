"""The schema of a collection: its tables, the place of its server, and checksums of rows, which pages need not have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import sqlalchemy as sa
from sqlalchemy.schema import CreateSchema

from ragfm.core.errors import CollectionError, CollectionReadOnlyError
from ragfm.store.catalog import read_property, set_property
from ragfm.store.tables import SCHEMA, SERVER_STATE, document_checksums, generations

SEALED = "document checksums"
"""The property with the generation up to which `document_checksums` is complete."""
_DURABLE_SETTINGS = ("fsync", "full_page_writes", "synchronous_commit")
# Everything in the row of a document that no other checksum covers, except what changes with the source's listing, and
# its groups.
_ROW_CHECKSUM = """
    sha256(convert_to(json_build_array(
        source_id, born, restricted, characters, chunk_count, encode(text_hash, 'hex'), digest, recipe, media_type,
        path, uri, allow, metadata, marks,
        (SELECT json_agg(g.name ORDER BY g.name) FROM {schema}.groups g WHERE g.document_id = documents.id)
    )::text, 'UTF8'))
"""


def check_server(connection: sa.Connection, location: str) -> None:
    """Raise CollectionError for a server that may lose acknowledged commits, or that cannot be written."""
    names = (*_DURABLE_SETTINGS, "server_encoding")
    row = connection.execute(sa.select(*(sa.func.current_setting(name) for name in names))).one()
    values = dict(zip(names, row, strict=True))
    off = [f"{name}=off" for name in _DURABLE_SETTINGS if values[name] == "off"]
    if off:
        raise CollectionError(
            f"The server of '{location}' may lose acknowledged commits: {', '.join(off)}.",
            "Turn it on in postgresql.conf, for the database and for the role.",
        )
    if values["server_encoding"] != "UTF8":
        raise CollectionError(
            f"The database of '{location}' has the encoding {values['server_encoding']}, which cannot store all texts.",
            "Create one with `CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0`.",
        )
    if connection.scalar(sa.select(sa.func.pg_is_in_recovery())):
        raise CollectionReadOnlyError(
            f"The collection '{location}' cannot be written: its server is a standby.",
            "Connect to the primary server.",
        )


def server_place(connection: sa.Connection, schema: str) -> str:
    """The server, which a standby has in common with its primary server, the database, and the schema."""
    may = sa.text("SELECT has_function_privilege('pg_control_system()', 'EXECUTE')")
    server = sa.text("SELECT system_identifier FROM pg_control_system()")
    database = sa.text("SELECT oid FROM pg_database WHERE datname = current_database()")
    system = connection.scalar(server) if connection.scalar(may) else "unknown"
    return f"{system}/{connection.scalar(database)}/{schema}"


def has_tables(connection: sa.Connection, schema: str) -> bool:
    """Whether the schema has the tables of a collection."""
    return connection.scalar(sa.select(sa.func.to_regclass(f'"{schema}".generations'))) is not None


def create_tables(connection: sa.Connection, schema: str, location: str) -> None:
    """Create the schema, if it does not exist, and its tables. Raises CollectionError if the tables exist."""
    # One process at a time creates tables.
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(f"ragfm {schema}", 0))))
    schemas = sa.text("SELECT count(*) FROM pg_namespace WHERE nspname = :name")
    if not connection.scalar(schemas, {"name": schema}):
        connection.execute(CreateSchema(schema))
    if has_tables(connection, schema):
        raise CollectionError(f"There already is a collection at '{location}'.", "Choose a different name.")
    SCHEMA.create_all(connection, checkfirst=False)
    SERVER_STATE.create_all(connection, checkfirst=False)
    connection.exec_driver_sql(
        f'ALTER TABLE "{schema}".upload_parts ALTER COLUMN data SET STORAGE EXTERNAL'  # not compressed
    )


def seal(connection: sa.Connection, schema: str, generation: int, written: Sequence[int] | None) -> None:
    """Store checksums of these documents, or of all; then those of this generation are complete.

    Without the right to write them, they stay incomplete until a role that has it opens the collection for writing.
    """
    if not _may(connection, schema, "UPDATE"):
        return
    if written != []:
        statement = (
            f'INSERT INTO "{schema}".document_checksums '  # noqa: S608  our own names
            f"""SELECT id, {_ROW_CHECKSUM.format(schema=f'"{schema}"')} FROM "{schema}".documents """
            f"{'' if written is None else 'WHERE id = ANY(:ids)'} "
            "ON CONFLICT (document_id) DO UPDATE SET checksum = excluded.checksum"
        )
        connection.execute(sa.text(statement), {} if written is None else {"ids": written})
    set_property(connection, SEALED, str(generation))


def is_sealed(connection: sa.Connection) -> bool:
    """Whether the rows of the newest generation, like those of all before it, have checksums."""
    newest = connection.scalar(sa.select(sa.func.max(generations.c.id)))
    return bool(read_property(connection, SEALED) == str(newest))


def damaged_rows(connection: sa.Connection, schema: str) -> Iterator[tuple[str, str, str]]:
    """See Database. Checksums are compared if they are complete, and this role may read them."""
    if is_sealed(connection) and _may(connection, schema, "SELECT"):
        checksum = _ROW_CHECKSUM.format(schema=f'"{schema}"')
        query = sa.text(
            "SELECT uri, encode(checksum, 'hex') AS expected, encode(actual, 'hex') AS actual FROM "  # noqa: S608
            f'(SELECT id, uri, died, {checksum} AS actual FROM "{schema}".documents) d '
            f'LEFT JOIN "{schema}".document_checksums ON document_id = id '
            "WHERE died IS NULL AND checksum IS DISTINCT FROM actual ORDER BY id"
        )
        for row in connection.execute(query):
            yield row.uri, str(row.expected), row.actual


def _may(connection: sa.Connection, schema: str, privilege: str) -> bool:
    """Whether this role has a privilege on the checksums."""
    query = sa.text("SELECT has_table_privilege(:table, :privilege)")
    values = {"table": f'"{schema}".{document_checksums.name}', "privilege": privilege}
    return bool(connection.scalar(query, values))
