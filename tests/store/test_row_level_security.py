"""Policies of collections on PostgreSQL: they hide rows even from queries that lack the condition on groups."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from support.postgres_server import USER, PostgresServer

from ragfm import Answer, Collection, Settings, Usage
from ragfm.core.errors import CollectionError, FilterError
from ragfm.generation.answer_log import AnswerContext
from ragfm.testing import HashingEmbedder

pytest.importorskip("psycopg", reason="needs the extra postgres")
CANARY = "walnut"
_TEXTS = ("documents", "chunks", "vectors", "tags", "groups", "failures")


def _open(address: str) -> Collection:
    return Collection.open(address, settings=Settings(), embedder=HashingEmbedder())


def _schema(address: str) -> str:
    found = re.search(r"collection=(\w+)", address)
    assert found is not None
    return found[1]


@pytest.fixture
def restricted(address: str, docs: Path, tmp_path: Path) -> Collection:
    """The owner's handle on four public documents, and one that only the group `board` may see."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "pay.md").write_text(f"# {CANARY} pay\n\nThe {CANARY} office opens for the board: leave days, dogs.\n")
    (secret / "broken.pdf").write_bytes(b"%PDF-1.4 no more")
    collection = _open(address)
    collection.sync(docs, tags={"kind": "public"})
    collection.sync(secret, tags={CANARY: CANARY}, allow=["board"])
    return collection


@pytest.fixture
def _without_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries of restricted handles lack the condition on groups, as if it was forgotten."""
    monkeypatch.setattr("ragfm.store.filters.visible_to", lambda _: sa.true())


def _exported(collection: Collection) -> str:
    out = io.BytesIO()
    collection.export(out, vectors=True)
    return out.getvalue().decode()


def _filter_error(collection: Collection) -> str:
    with pytest.raises(FilterError) as raised:
        collection.search("office", filter="no = 1")
    return f"{raised.value} {raised.value.hint}"


READS: dict[str, Callable[[Collection], Any]] = {
    "hybrid": lambda collection: collection.search(f"{CANARY} office", 50),
    "dense": lambda collection: collection.search(f"{CANARY} office", 50, mode="dense"),
    "keyword": lambda collection: collection.search(f"{CANARY} office", 50, mode="keyword"),
    "hops": lambda collection: collection.search(f"{CANARY} office", 50, hops=2),
    "filter": lambda collection: collection.search("office", 50, filter="not uri = x"),
    "neighbours": lambda collection: collection.neighbours(collection.search("leave", 50)),
    "tables": lambda collection: collection.table_chunks(collection.search("leave", 50)),
    "documents": lambda collection: collection.documents(),
    "status": lambda collection: (collection.status().documents, collection.status().chunks),
    "export": _exported,
    "keys": _filter_error,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_row_level_security_holds_without_conditions(
    restricted: Collection, read: Callable[[Collection], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    outsider, member = restricted.as_groups({"sales"}), restricted.as_groups({"board"})
    expected, seen = read(outsider), read(member)
    assert read(restricted) != expected or read in (READS["neighbours"], READS["tables"], READS["filter"])
    monkeypatch.setattr("ragfm.store.filters.visible_to", lambda _: sa.true())
    restricted.close()  # nothing is cached
    assert read(outsider) == expected
    assert CANARY not in repr(read(outsider))
    assert read(member) == seen
    monkeypatch.setattr(Collection, "_conditions", lambda *_: [])  # as if the conditions were not even passed on
    restricted.close()
    if read not in (READS["filter"], READS["keys"]):
        assert read(outsider) == expected


@pytest.mark.usefixtures("_without_conditions")
def test_a_document_by_name_needs_its_group(restricted: Collection) -> None:
    assert CANARY in restricted.as_groups({"board"}).document("secret/pay.md").text
    for read in (Collection.document, Collection.info):
        with pytest.raises(CollectionError, match="no document"):
            read(restricted.as_groups(set()), "secret/pay.md")


def test_a_query_of_any_table_returns_only_visible_rows(restricted: Collection) -> None:
    def rows(groups: set[str] | None) -> dict[str, int]:
        handle = restricted if groups is None else restricted.as_groups(groups)
        with handle._catalog().read() as connection:
            schema = connection.get_execution_options()["schema_translate_map"][None]
            return {
                table: connection.exec_driver_sql(f"SELECT count(*) FROM {schema}.{table}").scalar_one()
                for table in _TEXTS
            }

    everything, public, board = rows(None), rows({"sales", "'); --"}), rows({"board"})
    assert [public[table] for table in ("documents", "groups", "failures")] == [4, 0, 0]
    assert {table: everything[table] - board[table] for table in _TEXTS} == dict.fromkeys(_TEXTS, 0) | {"failures": 1}
    assert all(everything[table] > public[table] for table in _TEXTS)
    assert rows(None) == everything  # the setting ends with its transaction


def test_revoked_rights_damage_no_view(restricted: Collection, tmp_path: Path) -> None:
    member = restricted.as_groups({"board"})
    assert member.search(CANARY, 1)[0].uri == "secret/pay.md"
    catalog = member._catalog()
    store, ids = restricted._store, catalog.chunk_ids(catalog.generation())
    restricted.sync(tmp_path / "secret", allow=["nobody"])
    assert len(catalog.chunk_rows(ids.tolist())) == len(ids) - 1
    assert CANARY not in repr(member.search(CANARY, 50))
    assert store.snapshot().usable
    assert restricted.search(CANARY, 1)[0].uri == "secret/pay.md"


def test_row_level_security_holds_for_uploads_and_logs(restricted: Collection) -> None:
    uploads, log = restricted.store.open_uploads(), restricted.answer_log
    for owner in ("key:ann", "key:bob"):
        uploads.store(io.BytesIO(owner.encode()), f"{owner}.txt", [owner, "sales"])
        groups = frozenset({owner, "sales"})
        log.add(
            Answer("q", "a", "answered", (), (), (), Usage(), 0.5), AnswerContext("r", None, groups, None, 0.0, 0.1)
        )
    database = restricted._store.database

    def rows(*groups: str) -> list[int]:
        with restricted._store.catalog.read() as connection:
            if groups:
                database.restrict(connection, frozenset(groups))
            schema = connection.get_execution_options()["schema_translate_map"][None]
            tables = ("uploads", "upload_parts", "answer_log")
            return [connection.exec_driver_sql(f"SELECT count(*) FROM {schema}.{name}").scalar_one() for name in tables]

    assert rows() == [2, 2, 2]
    assert rows("key:ann", "sales") == [1, 1, 1]
    assert rows("sales") == rows("key:carl", "sales") == [0, 0, 0]
    assert rows("key:ann") == [1, 1, 0]  # the answer was for `sales`, too


def test_row_level_security_holds_for_the_owner_of_the_tables(
    address: str, docs: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = f"{_schema(address)}_owner"
    postgres.sql(f"CREATE ROLE {role} LOGIN; CREATE SCHEMA {_schema(address)} AUTHORIZATION {role}")
    collection = _open(address.replace(f"{USER}@", f"{role}@"))
    collection.sync(docs, allow=["board"])
    monkeypatch.setattr("ragfm.store.filters.visible_to", lambda _: sa.true())
    assert collection.as_groups(set()).search("office") == []
    assert len(collection.as_groups({"board"}).documents()) == len(collection.documents()) == 4


def test_policies_that_were_switched_off_are_switched_on(
    address: str, docs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as without:
        without.setattr("ragfm.store.postgres.policies.POLICIES", {})
        _open(address).sync(docs, allow=["board"])
        assert _open(address).as_groups(set()).search("office") == []  # by the conditions of the queries
    assert "row-level policies do not apply, they are switched off" in caplog.text
    _open(address).sync()
    monkeypatch.setattr("ragfm.store.filters.visible_to", lambda _: sa.true())
    assert _open(address).as_groups(set()).search("office") == []


def test_a_role_that_bypasses_policies_is_named(
    address: str, docs: Path, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    schema = _schema(address)
    _open(address).sync(docs, allow=["board"])
    postgres.sql(f"CREATE ROLE {schema}_all LOGIN BYPASSRLS")
    postgres.sql(f"GRANT USAGE ON SCHEMA {schema} TO {schema}_all")
    postgres.sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {schema}_all")
    reader = _open(address.replace(f"{USER}@", f"{schema}_all@"))
    assert reader.as_groups(set()).search("office") == []
    assert f"the role '{schema}_all' bypasses them" in caplog.text


def test_a_dump_by_the_owner_of_the_tables_has_all_rows(address: str, docs: Path, postgres: PostgresServer) -> None:
    schema = _schema(address)
    collection = _open(address)
    collection.sync(docs, allow=["board"])
    postgres.sql(f"CREATE ROLE {schema}_owner LOGIN")
    postgres.sql(f"GRANT USAGE ON SCHEMA {schema} TO {schema}_owner")
    for table in postgres.sql(f"SELECT tablename FROM pg_tables WHERE schemaname = '{schema}'").splitlines():
        postgres.sql(f"ALTER TABLE {schema}.{table} OWNER TO {schema}_owner")
    words = (f"--schema={schema}", "--role", f"{schema}_owner", "--enable-row-security", "--inserts")
    assert postgres.dump(*words).count("Dogs are welcome") == 1


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE {}.chunks DISABLE ROW LEVEL SECURITY",
        "DROP POLICY access ON {}.chunks",
        "ALTER POLICY access ON {}.chunks USING (true)",
    ],
    ids=["disabled", "dropped", "opened"],
)
def test_row_level_security_that_is_off_is_found_and_switched_on(
    restricted: Collection, address: str, postgres: PostgresServer, statement: str
) -> None:
    assert not restricted.verify().damaged
    postgres.sql(statement.format(_schema(address)))
    found = [(finding.file, finding.what, finding.found) for finding in restricted.verify().findings]
    assert found == [("chunks", "row-level security", "off")]
    report = restricted.verify(repair=True)
    assert (report.damaged, report.mended) == (False, ("switched on row-level security of chunks",))
