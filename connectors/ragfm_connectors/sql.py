"""Rows of a table or a query, in any database that SQLAlchemy reaches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from ragfm.core.errors import ConfigError, ConnectorError, MissingExtraError, SourceError
from ragfm.core.types import Blob, Ref
from ragfm_connectors.records import Fields, as_path, revision, scalar
from ragfm_connectors.secrets import check_no_secret, expand, hide, without_user

_TOGETHER = 200
"""Rows that are fetched at once where they are fetched in the order of the listing."""
_PARAMETER = re.compile(r"(?<![:\w\\]):(?=\w)")  # what SQLAlchemy takes for a parameter of a text


class SqlConnector:
    """Rows of a table, `DATABASE-URL#table`, or of a `query`, each a document.

    The URL is SQLAlchemy's, as `postgresql+psycopg://${USER}:${PASSWORD}@host/name` or `sqlite:////folder/file.db`;
    what is written as `${NAME}` is looked up in the environment. With a `query`, what follows the `#` is a name for
    it, so that one database can be several sources.

    `id` is a column that no two rows have the same value in; `title`, `text`, `metadata` and `media_type` say which
    columns are what, see `ragfm_connectors.records`. With `changed`, a column whose value is another one after each
    change, a listing reads these two columns alone, else it reads all rows; it becomes `modified`. Nothing is ever
    written.
    """

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
    ) -> None:
        """Raises ConfigError for an address that can't be one, or that has a password in it."""
        check_no_secret(location)
        address, _, name = location.partition("#")
        self.root = without_user(address).partition("?")[0] + (f"#{name}" if name else "")
        """The database's address and the name, without user and password."""
        self._address, self._name, self._query = address, name, query
        self._id, self._changed = id, changed
        self._fields = Fields(id, title, tuple(text), metadata, media_type)
        self._ids: dict[str, Any] = {}  # by path, in the order of the listing
        self._ahead: dict[str, Blob] = {}
        self._engine: sa.Engine | None = None

    def refs(self) -> Iterator[Ref]:
        """All rows. The revision is the value of `changed`, or a hash of what the row is made into.

        Raises SourceError where the database can't be reached, or breaks off in the middle.
        """
        self._ids, self._ahead = {}, {}
        with self._reading(SourceError) as connection:
            rows = self._rows()
            self._check_columns(connection.execute(sa.select(sa.text("*")).select_from(rows).limit(0)).keys())
            for number, (value, mark) in enumerate(self._revisions(connection, rows), 1):
                yield self._ref(number, value, mark)

    def fetch(self, ref: Ref) -> Blob:
        """A row as it is now. Raises ConnectorError where it is gone, or the database can't be reached."""
        if ref.path not in self._ids:
            list(self.refs())
        if ref.path not in self._ids:
            raise ConnectorError(f"There is no row {ref.path!r} any more.", "The next ingest removes it.")
        if ref.path not in self._ahead:
            self._ahead = self._blobs(ref.path, _TOGETHER if self._ahead else 1)
        if ref.path not in self._ahead:
            raise ConnectorError(f"The row {ref.path!r} has gone since it was listed.", "The next ingest removes it.")
        return self._ahead[ref.path]

    def _ref(self, number: int, value: Any, mark: str) -> Ref:
        if scalar(value) is None:
            return Ref(f"#{number}", error=f"row {number:,} has no {self._id!r}")
        path = as_path(str(value))
        if path in self._ids:
            return Ref(f"{path}#{number}", skip=f"its {self._id!r} is that of another row")
        self._ids[path] = value
        return Ref(path, mark)

    def _revisions(self, connection: sa.Connection, rows: sa.FromClause) -> Iterator[tuple[Any, str]]:
        """The id of each row and its revision.

        A row may change once more within the tick of the clock in which it was listed: of those with the newest
        `changed`, and of those without one, the content counts too.
        """
        everything = sa.select(sa.text("*")).select_from(rows)
        if self._changed is None:
            for row in connection.execute(everything).mappings():
                yield row[self._id], revision(self._blob(row))
            return
        changed: sa.ColumnClause[Any] = sa.column(self._changed)
        newest = connection.execute(sa.select(sa.func.max(changed)).select_from(rows)).scalar()
        unsettled = sa.or_(changed == newest, changed.is_(None))
        mapped = blake2b(repr(self._fields).encode(), digest_size=8).hexdigest()  # another mapping: another revision
        for row in connection.execute(everything.where(unsettled)).mappings():
            yield row[self._id], f"{row[self._changed]}:{mapped}:{revision(self._blob(row))}"
        settled = sa.select(sa.column(self._id), changed).select_from(rows).where(changed != newest)
        for value, at in connection.execute(settled):
            yield value, f"{at}:{mapped}"

    def _blobs(self, path: str, count: int) -> dict[str, Blob]:
        """A row's content, and that of those listed after it."""
        paths = iter(self._ids)
        wanted = [path, *islice((other for other in paths if other == path), 1), *islice(paths, count - 1)]
        values = [self._ids[at] for at in dict.fromkeys(wanted)]
        with self._reading(ConnectorError) as connection:
            query = sa.select(sa.text("*")).select_from(self._rows()).where(sa.column(self._id).in_(values))
            rows = connection.execute(query).mappings().all()
        return {as_path(str(row[self._id])): self._blob(row) for row in reversed(rows)}

    def _blob(self, row: sa.RowMapping) -> Blob:
        record = dict(row)
        at = None if self._changed is None else scalar(record.pop(self._changed))
        blob = self._fields.blob(record)
        return blob if at is None else replace(blob, metadata={**blob.metadata, "modified": at})

    def _rows(self) -> sa.FromClause:
        if self._query is None:
            if not self._name:
                raise ConfigError(
                    f"Which rows of {self.root} are meant?", "Write #TABLE behind the address, or set the option query."
                )
            schema, _, table = self._name.rpartition(".")
            return sa.table(table, schema=schema or None)
        query = _PARAMETER.sub(r"\\:", self._query.strip().rstrip(";"))
        return sa.text(query).columns(sa.column(self._id)).subquery("ragfm_rows")

    def _check_columns(self, columns: Sequence[str] | Any) -> None:
        known = list(columns)
        wanted = [self._id, *self._fields.text, *([self._changed] if self._changed else [])]
        for name in wanted:
            if name not in known and name.partition(".")[0] not in known:
                raise SourceError(
                    f"{self.root} has no column {name!r}, but {', '.join(map(repr, known))}.",
                    "Set the options id, text and changed.",
                )

    @contextmanager
    def _reading(self, kind: type[SourceError]) -> Iterator[sa.Connection]:
        """A connection that can't write and streams its results; what goes wrong is said without secrets."""
        try:
            with self._connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            said = hide(str(getattr(error, "orig", None) or error).strip(), self._address)
            raise kind(f"{self.root} can't be read: {' '.join(said.split())}.", "Nothing was changed.") from None

    @contextmanager
    def _connect(self) -> Iterator[sa.Connection]:
        if self._engine is None:
            self._engine = _engine(self._address)
        options: Mapping[str, Any] = {"stream_results": True, "yield_per": 500}
        if self._engine.dialect.name == "postgresql":
            options = {**options, "postgresql_readonly": True}
        with self._engine.connect().execution_options(**options) as connection:
            if self._engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = ON")
            yield connection
            connection.rollback()


def _engine(address: str) -> sa.Engine:
    try:
        url = sa.make_url(expand(address))
        if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).is_file():
            raise SourceError(f"There is no database {url.database!r}.", "Check the path.")
        return sa.create_engine(url, hide_parameters=True, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{without_user(address)} needs the module {error.name!r}, which is not installed.",
            "Run `pip install 'ragfm[sql]'` for PostgreSQL; else install the database's own driver.",
        ) from None
    except SQLAlchemyError as error:
        raise ConfigError(
            f"{without_user(address)} is no address of a database: {hide(str(error), address)}."
        ) from None
