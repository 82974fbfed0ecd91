"""Rows of a table or a query, in any database that SQLAlchemy supports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import blake2b
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from ragfm.core.access_groups import still_allows
from ragfm.core.errors import ConfigError, ConnectorError, MissingExtraError, SourceError
from ragfm.core.identities import Identities
from ragfm.core.types import Blob, Ref
from ragfm_connectors.records import Fields, as_path, record_revision, scalar
from ragfm_connectors.secrets import check_no_secret, expand, hide, without_user

_BATCH = 200
"""Number of rows fetched at once when they are fetched in the order of the listing."""
_PARAMETER = re.compile(r"(?<![:\w\\]):(?=\w)")  # what SQLAlchemy reads as a parameter of a textual query


class SqlConnector:
    """Rows of a table, `DATABASE-URL#table`, or of a `query`; each row is a document.

    The URL is one of SQLAlchemy's, such as `postgresql+psycopg://${USER}:${PASSWORD}@host/name` or
    `sqlite:////folder/file.db`; `${NAME}` stands for an environment variable. With a `query`, the part after the `#` is
    a name for it, so that one database can be several sources.

    `id` is a column with unique values. `title`, `text`, `metadata` and `media_type` name the other columns, see
    `ragfm_connectors.records`. `changed` is a column whose value changes with each change of the row, and becomes the
    metadata `modified`: with it, a listing reads only these two columns, else all rows. Nothing is ever written.

    `readers` is a column with the identities that may see a row, a JSON array or separated by commas, and `identities`
    the path of the file that maps them to groups, see `ragfm.core.identities`.
    """

    fetch_anywhere = True

    def __init__(
        self,
        location: str,
        *,
        query: str | None = None,
        id: str = "id",
        title: str = "title",
        text: Sequence[str] = ("text",),
        metadata: Sequence[str] | None = None,
        changed: str | None = None,
        media_type: str = "text/plain",
        readers: str | None = None,
        identities: str | None = None,
    ) -> None:
        """Raises ConfigError for an invalid address, one with a password in it, and an invalid mapping file."""
        check_no_secret(location)
        address, _, name = location.partition("#")
        self.root = without_user(address).partition("?")[0] + (f"#{name}" if name else "")
        """The database's address and the name, without user and password."""
        self._address, self._name, self._query = address, name, query
        self._id, self._changed = id, changed
        if (readers is None) != (identities is None):
            raise ConfigError("Of the options readers and identities, one is missing.", "Set both, or neither.")
        self._readers = readers
        self.identities = Identities(identities) if identities is not None else None
        """The groups that the identities in the column `readers` stand for."""
        self._fields = Fields(id, title, tuple(text), metadata, media_type)
        self._ids: dict[str, Any] = {}  # by path, in the order of the listing
        self._fetched: dict[str, tuple[Blob, tuple[str, ...] | None]] = {}  # with the groups that may see it
        self._engine: sa.Engine | None = None

    def refs(self) -> Iterator[Ref]:
        """All rows. The revision is the value of `changed`, or a hash of the row's document.

        Raises SourceError if the database cannot be reached, or fails during the listing.
        """
        self._ids, self._fetched = {}, {}
        with self._reading(SourceError) as connection:
            rows = self._rows()
            columns = list(connection.execute(sa.select(sa.text("*")).select_from(rows).limit(0)).keys())
            for name in (self._id, *self._fields.text, *filter(None, (self._changed, self._readers))):
                if name not in columns and name.partition(".")[0] not in columns:
                    raise SourceError(
                        f"{self.root} has no column {name!r}; its columns are {', '.join(map(repr, columns))}.",
                        "Set the options id, text, changed and readers.",
                    )
            for number, (value, revision, problem, allow) in enumerate(self._revisions(connection, rows), 1):
                path = as_path(str(value))
                if scalar(value) is None:
                    yield Ref(f"#{number}", error=f"row {number:,} has no {self._id!r}")
                elif path in self._ids:
                    yield Ref(f"{path}#{number}", skip=f"another row has the same {self._id!r}")
                else:
                    self._ids[path] = value
                    yield Ref(path, revision, error=problem, allow=allow)

    def fetch(self, ref: Ref) -> Blob:
        """The current content of a row. Raises ConnectorError if it is gone, or the database cannot be reached."""
        if ref.path not in self._ids:
            list(self.refs())
        if ref.path not in self._ids:
            raise ConnectorError(f"The row {ref.path!r} no longer exists.", "The next ingest removes it.")
        if ref.path not in self._fetched:
            # The row, and those listed after it if the last rows were fetched in order.
            paths = islice(dropwhile(lambda path: path != ref.path, self._ids), _BATCH if self._fetched else 1)
            values = [self._ids[path] for path in paths]
            with self._reading(ConnectorError) as connection:
                query = sa.select(sa.text("*")).select_from(self._rows()).where(sa.column(self._id).in_(values))
                rows = connection.execute(query).mappings().all()
            self._fetched = {}
            for row in reversed(rows):
                path = as_path(str(row[self._id]))
                try:
                    self._fetched[path] = self._blob(row), self._allow(row)
                except ConnectorError:
                    if path == ref.path:
                        raise
        if ref.path not in self._fetched:
            raise ConnectorError(
                f"The row {ref.path!r} was removed after it was listed.", "The next ingest removes its document."
            )
        blob, allow = self._fetched[ref.path]
        if not still_allows(allow, ref.allow):
            raise ConnectorError(
                f"The row {ref.path!r} has been closed to a group since it was listed.", "The next ingest tries again."
            )
        return blob

    def _revisions(
        self, connection: sa.Connection, rows: sa.FromClause
    ) -> Iterator[tuple[Any, str, str | None, tuple[str, ...] | None]]:
        """The id and revision of each row, why its content cannot be read, and the groups that may see it.

        A row can change again within the tick of the clock in which it was listed, so for rows with the newest value of
        `changed`, and for rows without one, the revision includes the content.
        """
        all_columns = sa.select(sa.text("*")).select_from(rows)
        if self._changed is None:
            for row in connection.execute(all_columns).mappings():
                yield row[self._id], *self._content_revision(row), self._allow(row)
            return
        changed: sa.ColumnClause[Any] = sa.column(self._changed)
        newest = connection.execute(sa.select(sa.func.max(changed)).select_from(rows)).scalar()
        fields_hash = blake2b(repr(self._fields).encode(), digest_size=8).hexdigest()
        for row in connection.execute(all_columns.where(sa.or_(changed == newest, changed.is_(None)))).mappings():
            content, problem = self._content_revision(row)
            yield row[self._id], f"{row[self._changed]}:{fields_hash}:{content}", problem, self._allow(row)
        columns: list[sa.ColumnClause[Any]] = [sa.column(self._id), changed]
        if self._readers is not None:
            columns.append(sa.column(self._readers))
        for row in connection.execute(sa.select(*columns).select_from(rows).where(changed != newest)).mappings():
            yield row[self._id], f"{row[self._changed]}:{fields_hash}", None, self._allow(row)

    def _content_revision(self, row: sa.RowMapping) -> tuple[str, str | None]:
        try:
            return record_revision(self._blob(row)), None
        except ConnectorError as error:
            return "", error.message

    def _allow(self, row: sa.RowMapping) -> tuple[str, ...] | None:
        """The groups that may see a row; nobody if its readers are not named."""
        if self.identities is None or self._readers is None:
            return None
        readers = row[self._readers]
        if isinstance(readers, str) and readers.lstrip().startswith("["):
            with suppress(ValueError):
                readers = json.loads(readers)
        names = readers if isinstance(readers, list) else str(readers or "").split(",")
        return self.identities.groups(name.strip() for name in map(str, names) if name.strip())

    def _blob(self, row: sa.RowMapping) -> Blob:
        record = dict(row)
        record.pop(self._readers, None)  # else a change of permissions would change the document
        modified = None if self._changed is None else scalar(record.pop(self._changed))
        blob = self._fields.blob(record)
        return blob if modified is None else replace(blob, metadata={**blob.metadata, "modified": modified})

    def _rows(self) -> sa.FromClause:
        if self._query is None:
            if not self._name:
                raise ConfigError(
                    f"No table or query is specified for {self.root}.",
                    "Add #TABLE to the address, or set the option query.",
                )
            schema, _, table = self._name.rpartition(".")
            return sa.table(table, schema=schema or None)
        query = _PARAMETER.sub(r"\\:", self._query.strip().rstrip(";"))
        return sa.text(f"{query}\n").columns(sa.column(self._id)).subquery("ragfm_rows")

    @contextmanager
    def _reading(self, error_class: type[SourceError]) -> Iterator[sa.Connection]:
        """A connection that cannot write and streams its results.

        Errors of the database are raised as `error_class`, without secrets.
        """
        try:
            if self._engine is None:
                try:
                    url = sa.make_url(expand(self._address))
                    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).is_file():
                        raise SourceError(f"There is no database {url.database!r}.", "Check the path.")
                    self._engine = sa.create_engine(url, hide_parameters=True, pool_pre_ping=True)
                except ModuleNotFoundError as error:
                    raise MissingExtraError(
                        f"{without_user(self._address)} needs the module {error.name!r}, which is not installed.",
                        "For PostgreSQL, run `pip install -e '.[sql]'` in ragfm's source folder; else install its "
                        "driver.",
                    ) from None
                except SQLAlchemyError as error:
                    reason = hide(str(error), self._address)
                    raise ConfigError(
                        f"{without_user(self._address)} is not a valid database address: {reason}."
                    ) from None
            options: dict[str, Any] = {"stream_results": True, "yield_per": 500}
            if self._engine.dialect.name == "postgresql":
                options["postgresql_readonly"] = True
            with self._engine.connect().execution_options(**options) as connection:
                if self._engine.dialect.name == "sqlite":
                    connection.exec_driver_sql("PRAGMA query_only = ON")
                    # One row that is not UTF-8 must not hide all others.
                    driver: Any = connection.connection.driver_connection
                    driver.text_factory = lambda data: data.decode("utf-8", "replace")
                yield connection
                connection.rollback()
        except SQLAlchemyError as error:
            message = hide(str(getattr(error, "orig", None) or error).strip(), self._address)
            raise error_class(
                f"{self.root} cannot be read: {' '.join(message.split())}.", "Nothing was changed."
            ) from None
