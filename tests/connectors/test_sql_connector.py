"""The connector for database rows: SQLite, and PostgreSQL where it is installed."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from ragfm_connectors import sql
from ragfm_connectors.sql import SqlConnector
from support.shell import Shell

from ragfm import Collection, Ref
from ragfm.core.errors import ConfigError, ConnectorError, MassDeleteError, MissingExtraError, SourceError
from ragfm.testing import check_connector

PASSWORD = "s3cret/of@the:base"
START = datetime(2026, 3, 1, tzinfo=UTC)
META = sa.MetaData()
NOTES = sa.Table(
    "notes",
    META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("title", sa.String),
    sa.Column("text", sa.Text),
    sa.Column("author", sa.String),
    sa.Column("year", sa.Integer),
    sa.Column("raw", sa.LargeBinary),
    sa.Column("changed", sa.DateTime),
)


class Database:
    def __init__(self, location: str, engine: sa.Engine) -> None:
        self.location, self.engine = location, engine
        with engine.begin() as connection:
            META.create_all(connection)
        self.minute = 0
        for number in range(4):
            self.put(number, f"Trees number {number}")

    @property
    def table(self) -> str:
        return f"{self.location}#notes"

    def put(self, number: int, text: str | None, *, changed: bool = True) -> None:
        """Write a row, a minute after the last one; None deletes it."""
        self.minute += changed
        values = {
            "id": number,
            "title": f"Note {number}",
            "text": text,
            "author": "Ann",
            "year": 2020 + number,
            "raw": b"\0\1",
            "changed": (START + timedelta(minutes=self.minute)).replace(tzinfo=None),
        }
        with self.engine.begin() as connection:
            connection.execute(NOTES.delete().where(NOTES.c.id == number))
            if text is not None:
                connection.execute(NOTES.insert().values(**values))


def _postgres() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


class Postgres:
    """A server for this test that requires a password."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        self.user = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        folder.chmod(0o777)
        (folder / "password").write_text(PASSWORD)
        self("initdb", "-D", folder / "data", "-A", "scram-sha-256", "--pwfile", folder / "password", "-U", "me", "-N")
        with (folder / "data/postgresql.conf").open("a") as settings:
            settings.write(f"listen_addresses = ''\nunix_socket_directories = '{folder}'\nfsync = off\n")
        self.start()
        self.location = f"postgresql+psycopg://me:${{RAGFM_TEST_PASSWORD}}@/postgres?host={folder}"

    def __call__(self, program: str, *words: str | Path) -> None:
        command = [str(self.programs / program), *map(str, words)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", timeout=120, **self.user)  # type: ignore[call-overload]

    def start(self) -> None:
        self("pg_ctl", "-D", self.folder / "data", "-w", "-l", self.folder / "log", "start")

    def stop(self) -> None:
        self("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    programs = _postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg", reason="needs the extra sql")
    folder = Path(tempfile.mkdtemp(prefix="ragfm-pg-"))  # the path of a socket must be short
    server = Postgres(programs, folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def base(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setenv("PGPASS_TEST", PASSWORD)
    if request.param == "sqlite":
        location = f"sqlite:///{tmp_path}/notes.db"
        engine = sa.create_engine(location)
    else:
        location = request.getfixturevalue("postgres").location.replace("RAGFM_TEST_PASSWORD", "PGPASS_TEST")
        engine = sa.create_engine(sql.expand(location))
        with engine.begin() as connection:
            META.drop_all(connection)
    yield Database(location, engine)
    engine.dispose()


def listed(location: str, **options: Any) -> dict[str, Ref]:
    return {ref.path: ref for ref in SqlConnector(location, **options).refs()}


def test_rows_become_documents(base: Database) -> None:
    for options in ({}, {"changed": "changed"}):
        connector = SqlConnector(base.table, **options)
        refs = {ref.path: ref for ref in connector.refs()}
        assert sorted(refs) == ["0", "1", "2", "3"]
        blob = connector.fetch(refs["2"])
        assert (blob.data, blob.media_type) == (b"Note 2\n\nTrees number 2", "text/plain")
        at = blob.metadata["modified" if options else "changed"]
        assert str(at).replace(" ", "T").startswith("2026-03-01T00:03:00")
        assert dict(list(blob.metadata.items())[:3]) == {"title": "Note 2", "author": "Ann", "year": 2022}
        assert len(blob.metadata) == 4
        assert [connector.fetch(refs[path]).data[-1:] for path in "1230"] == [b"1", b"2", b"3", b"0"]
        check_connector(connector)


def test_a_query_and_its_columns(base: Database) -> None:
    query = "SELECT author || ':' || id AS key, text AS body, ':x %' AS sign, year FROM notes WHERE year > 2021;"
    connector = SqlConnector(f"{base.location}#late", query=query, id="key", text=["sign", "body"], metadata=["year"])
    refs = {ref.path: ref for ref in connector.refs()}
    assert sorted(refs) == ["Ann:2", "Ann:3"]
    blob = connector.fetch(refs["Ann:3"])
    assert (blob.data, blob.metadata) == (b":x %\n\nTrees number 3", {"year": 2023})
    check_connector(connector)
    twice = listed(base.location, query="SELECT 1 AS id, text FROM notes UNION ALL SELECT NULL, 'x'")
    assert len([ref for ref in twice.values() if ref.skip == "another row has the same 'id'"]) == 3
    assert [ref.error.endswith("has no 'id'") for ref in twice.values() if ref.error] == [True]


def test_text_of_sqlite_that_is_not_utf_8(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db")) as database:
        database.execute("CREATE TABLE a AS SELECT 1 AS id, CAST(x'636166e9' AS TEXT) AS text UNION SELECT 2, 'Oaks'")
    connector = SqlConnector(f"sqlite:///{tmp_path}/a.db#a")
    assert [connector.fetch(ref).data.decode() for ref in connector.refs()] == ["caf\ufffd", "Oaks"]


def test_a_query_that_ends_in_a_comment(base: Database) -> None:
    assert list(listed(base.location, query="SELECT id, text FROM notes WHERE id = 1 -- for now")) == ["1"]


@pytest.mark.parametrize("options", [{}, {"changed": "changed"}])
def test_a_row_without_the_nested_text_fails_alone(tmp_path: Path, options: dict[str, Any]) -> None:
    sqlite3.register_converter("JSON", json.loads)
    with closing(sqlite3.connect(tmp_path / "a.db")) as database:
        database.execute("CREATE TABLE a (id INTEGER, data JSON, changed INTEGER)")
        rows = [(1, '{"body": "Oaks"}', 1), (2, '{"body": "Elms"}', 1), (3, None, 1), (4, '{"body": "Pines"}', 2)]
        database.executemany("INSERT INTO a VALUES (?, ?, ?)", rows)
        database.commit()
    connector = SqlConnector(f"sqlite:///{tmp_path}/a.db?detect_types=1#a", text=["data.body"], **options)
    refs = {ref.path: ref for ref in connector.refs()}
    assert [connector.fetch(refs[path]).data for path in ("1", "2", "4")] == [b"Oaks", b"Elms", b"Pines"]
    with pytest.raises(ConnectorError, match=r"none of the text fields 'data\.body'"):
        connector.fetch(refs["3"])
    if not options:
        assert "none of the text fields" in (refs["3"].error or "")


def test_a_change_within_the_tick_of_the_clock_is_seen(base: Database) -> None:
    before = listed(base.table, changed="changed")
    base.put(3, "changed at once", changed=False)  # as new as it was
    after = listed(base.table, changed="changed")
    assert {path for path in after if after[path] != before[path]} == {"3"}
    with base.engine.begin() as connection:
        connection.execute(NOTES.update().where(NOTES.c.id == 1).values(changed=None))
    first = listed(base.table, changed="changed")
    with base.engine.begin() as connection:
        connection.execute(NOTES.update().where(NOTES.c.id == 1).values(text="new, without a time"))
    assert first["1"].revision != listed(base.table, changed="changed")["1"].revision
    other = listed(base.table, changed="changed", metadata=[])
    assert not {ref.revision for ref in other.values()} & {ref.revision for ref in first.values()}


def test_nothing_can_be_written(base: Database) -> None:
    for statement in ("DELETE FROM notes RETURNING id", "UPDATE notes SET text = '' RETURNING id"):
        rows = f"WITH gone AS ({statement}) SELECT id, '' AS text FROM gone"
        for query in (statement, rows, f"SELECT 1 AS id, 'x' AS text) AS y; {statement}; --"):
            with pytest.raises(SourceError):
                listed(base.location, query=query)
    with SqlConnector(base.table)._reading(SourceError) as connection, pytest.raises(sa.exc.DBAPIError):
        connection.execute(NOTES.delete())
    assert len(listed(base.table)) == 4
    if base.engine.dialect.name == "postgresql":
        with base.engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE OR REPLACE FUNCTION wipe() RETURNS integer LANGUAGE sql AS 'DELETE FROM notes; SELECT 1'"
            )
        with pytest.raises(SourceError, match="read-only"):
            listed(base.location, query="SELECT wipe() AS id, 'x' AS text")
        assert len(listed(base.table)) == 4


def test_errors_name_the_cause(base: Database, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no column 'body'; its columns are 'id', 'title', 'text'"):
        listed(base.table, text=["body"])
    with pytest.raises(SourceError, match="no column 'at'"):
        listed(base.table, changed="at")
    with pytest.raises(SourceError, match="nothing"):
        listed(f"{base.location}#nothing")
    with pytest.raises(ConfigError, match="No table or query"):
        listed(base.location)
    with pytest.raises(SourceError, match="no database"):
        listed(f"sqlite:///{tmp_path}/none.db#notes")
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(ConfigError, match="not a valid database address"):
        listed("nothing://x#y")
    with pytest.raises(MissingExtraError, match="oracledb"):
        listed("oracle+oracledb://x#y")
    with pytest.raises(ConnectorError, match="row '77' no longer exists"):
        SqlConnector(base.table).fetch(Ref("77"))
    connector = SqlConnector(base.table)
    (ref, *_) = connector.refs()
    base.put(int(ref.path), None)
    with pytest.raises(ConnectorError, match="removed after it was listed"):
        connector.fetch(ref)


def test_sync_adds_changes_and_deletes(base: Database, collection: Collection) -> None:
    options = {"changed": "changed"}
    assert collection.sync(base.table, connector="sql", name="notes", options=options).added == 4
    assert collection.sync().unchanged == 4
    base.put(1, None)
    base.put(2, "Now about bees")
    base.put(9, "A new one")
    report = collection.sync()
    assert (report.added, report.updated, report.removed, report.unchanged) == (1, 1, 1, 2)
    assert collection.search("bees", mode="keyword", filter="year = 2022")[0].uri == "notes/2"
    second = f"{base.location}#names"
    options = {"query": "SELECT DISTINCT author AS id, author AS text FROM notes"}
    assert collection.sync(second, connector="sql", name="names", options=options).added == 1
    assert len(collection.sync().failed) == 0
    for number in (0, 2, 3):
        base.put(number, None)
    with pytest.raises(MassDeleteError):
        collection.sync(base.table)


def test_a_listing_that_breaks_off_removes_nothing(
    base: Database, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.sync(base.table, connector="sql", name="notes")
    real = SqlConnector._revisions

    def breaking(self: SqlConnector, connection: sa.Connection, rows: sa.FromClause) -> Iterator[Any]:
        yield next(real(self, connection, rows))
        connection.exec_driver_sql("SELECT no_such_thing")

    monkeypatch.setattr(SqlConnector, "_revisions", breaking)
    base.put(1, None)
    with pytest.raises(SourceError, match="no_such_thing"):
        collection.sync(base.table)
    assert len(collection.documents()) == 4


# --- PostgreSQL only ---------------------------------------------------------------------------------------------


def test_a_server_that_dies_in_the_middle(
    postgres: Postgres, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGFM_TEST_PASSWORD", PASSWORD)
    query = "SELECT n AS id, repeat('tree ', 200) AS text FROM generate_series(1, 20000) AS n"
    connector = SqlConnector(f"{postgres.location}#many", query=query)
    refs = connector.refs()
    next(refs)
    postgres.stop()
    try:
        with pytest.raises(SourceError, match="cannot be read"):
            list(refs)
        with pytest.raises(SourceError, match="cannot be read"):
            collection.sync(f"{postgres.location}#many", connector="sql", name="many", options={"query": query})
    finally:
        postgres.start()
    small = {"query": query.replace("20000", "3")}
    assert collection.sync(f"{postgres.location}#many", connector="sql", name="many", options=small).added == 3


def test_the_password_is_nowhere(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PGPASS_TEST", PASSWORD)
    engine = sa.create_engine(sql.expand(location := postgres.location.replace("RAGFM_TEST_PASSWORD", "PGPASS_TEST")))
    Database(location, engine)
    engine.dispose()
    shell = Shell(tmp_path)
    said = shell("ingest", f"{location}#notes", "--connector", "sql", "--debug").stderr
    for words in (["status"], ["sources"], ["documents"], ["status", "--json"], ["search", "trees", "--json"]):
        done = shell(*words)
        said += done.stdout + done.stderr
    monkeypatch.setenv("PGPASS_TEST", "wr0ng-passw0rd")
    shell.env["PGPASS_TEST"] = "wr0ng-passw0rd"
    command = [sys.executable, "-c", "from ragfm.cli import main; main()", "ingest", f"{location}#notes", "--debug"]
    failed = subprocess.run(command, cwd=tmp_path, env=shell.env, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "authentication failed" in failed.stderr
    assert "Traceback" in failed.stderr  # which shows what led to it
    with caplog.at_level(0), pytest.raises(SourceError) as caught:
        listed(f"{location}#notes")
    said += failed.stderr + repr(caught.value) + caplog.text + repr(vars(SqlConnector(location)))
    stored = b"".join(path.read_bytes() for path in (tmp_path / ".ragfm").rglob("*") if path.is_file())
    for form in (PASSWORD, sql.expand("${PGPASS_TEST}"), "s3cret", "of%40the", "wr0ng"):
        assert form not in said
        assert form.encode() not in stored
    assert "${PGPASS_TEST}" in shell("sources").stdout
    with pytest.raises(ConfigError) as refused:
        SqlConnector(location.replace("${PGPASS_TEST}", "abcdefg"))
    assert "abcdefg" not in str(refused.value)
    shell.env.pop("PGPASS_TEST")
    assert "variable PGPASS_TEST of" in shell("ingest", f"{location}#notes", code=1).stderr
