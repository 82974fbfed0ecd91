"""Collections on PostgreSQL: what differs from a folder. What is equal is tested by tests of both databases."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from support.openai_server import wait_until
from support.postgres_server import POOL_PORT, USER, PostgresServer, pgbouncer, postgres_server
from support.shell import InProcessShell
from support.torture.full_disk import fill, small_disk

from ragfm import Answer, Collection, Settings, Usage
from ragfm.core.errors import (
    AccessDeniedError,
    CollectionBusyError,
    CollectionError,
    CollectionNotFound,
    CollectionUnavailableError,
    ConfigError,
    DamagedCollectionError,
    DiskFullError,
    LogError,
    MissingExtraError,
    UnsupportedError,
)
from ragfm.embedders import load_embedder
from ragfm.evaluation.settings_file import write_keys
from ragfm.generation.answer_log import AnswerContext
from ragfm.generation.log_entries import LogFilter
from ragfm.samples import HANDBOOK
from ragfm.server.api_keys import Key
from ragfm.server.key_table import KeyTable
from ragfm.store.catalog import read_property
from ragfm.store.postgres import PostgresDatabase, lease, postgres_database
from ragfm.store.upload_table import UploadTable
from ragfm.store.uploads import upload_id
from ragfm.testing import HashingEmbedder

psycopg = pytest.importorskip("psycopg", reason="needs the extra postgres")
QUERIES = ("How many days of leave?", "parents weeks", "office opens", "expenses", "a word that is nowhere: zyzzyva")


def _open(place: str | Path, embedder: HashingEmbedder | None = None) -> Collection:
    return Collection.open(place, settings=Settings(), embedder=embedder or HashingEmbedder())


def _schema(address: str) -> str:
    found = re.search(r"collection=(\w+)", address)
    assert found is not None
    return found[1]


def _write(docs: Path, count: int, word: str = "leave") -> Path:
    docs.mkdir(exist_ok=True)
    for number in range(count):
        (docs / f"{number}.txt").write_text(f"Document {number} is about {word} of {number} days.\n")
    return docs


@pytest.fixture
def another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The cache folder that stands for another machine, to set as XDG_CACHE_HOME."""
    return str(tmp_path / "another-machine")


# --- Search ------------------------------------------------------------------------------------------------------


def test_results_equal_those_of_a_folder(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragfm.ingestion.preparation.WAIT_SECONDS", 600)  # one commit each, on a busy machine, too
    server, folder, docs = _open(address), _open(tmp_path / ".ragfm"), _write(tmp_path / "docs", 3)
    for collection in (server, folder):
        collection.sync(HANDBOOK, name="handbook", tags={"year": 2026})
        collection.sync(docs, allow=["hr"])
    for query in QUERIES:
        for mode in ("hybrid", "dense", "keyword"):
            assert server.search(query, 20, mode=mode) == folder.search(query, 20, mode=mode)  # type: ignore[arg-type]
        assert server.search(query, 20, filter="year = 2026 and uri like '%a%'") == folder.search(
            query, 20, filter="year = 2026 and uri like '%a%'"
        )
        for groups in (set[str](), {"hr"}):
            assert server.as_groups(groups).search(query, 50) == folder.as_groups(groups).search(query, 50)
    assert server.documents() == folder.documents()
    assert server.state == folder.state  # the digests of both histories are equal
    assert server.search("leave days", 50) != server.as_groups(set()).search("leave days", 50)


@pytest.mark.slow
@pytest.mark.data
def test_results_equal_those_of_a_folder_on_public_data(
    address: str, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of SciFact and of SQuAD, with the bundled embedder: cosines, BM25 and fused scores, to the digit."""
    docs = tmp_path / "docs"
    docs.mkdir()
    scifact = data / "beir/scifact"
    with gzip.open(scifact / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, itertools.islice(lines, 30)):
            (docs / f"{row['_id']}.md").write_text(f"# {row['title']}\n\n{row['text']}\n", encoding="utf-8")
    queries = [json.loads(line)["text"] for line in (scifact / "queries.jsonl").read_text().splitlines()[:20]]
    with gzip.open(data / "squad/squad-v2.0-dev.json.gz", "rt", encoding="utf-8") as file:
        for number, article in enumerate(json.load(file)["data"][:1]):
            text = "\n\n".join(paragraph["context"] for paragraph in article["paragraphs"])
            (docs / f"article-{number}.txt").write_text(text, encoding="utf-8")
            queries += [question["question"] for question in article["paragraphs"][0]["qas"]]
    embedder = load_embedder("bundled")
    embed, known = embedder.embed_passages, dict[str, Any]()

    def embed_once(passages: Sequence[str]) -> Any:  # the vectors of a text depend on the batch, in the last digits
        new = [text for text in passages if text not in known]
        known.update(zip(new, embed(new), strict=True) if new else ())
        return np.array([known[text] for text in passages])

    monkeypatch.setattr(embedder, "embed_passages", embed_once)
    folder = Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder=embedder)
    server = Collection.open(address, settings=Settings(), embedder=embedder)
    assert folder.sync(docs).chunks == server.sync(docs).chunks > 60
    for query in queries:
        for mode in ("hybrid", "dense", "keyword"):
            expected = folder.search(query, 10, mode=mode)  # type: ignore[arg-type]
            assert server.search(query, 10, mode=mode) == expected  # type: ignore[arg-type]
    assert len(queries) > 22
    assert server.state == folder.state


def test_every_machine_builds_its_own_view(
    address: str, docs: Path, another_machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = _open(address)
    writer.sync(docs)
    expected = writer.search("leave", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", another_machine)
    reader = _open(address)
    assert reader.search("leave", 10) == expected
    assert reader.path.is_relative_to(another_machine)
    shutil.rmtree(reader.path)
    assert not _open(address).verify().damaged
    assert reader.status().indexes[0]["vectors"] == len(expected)
    (docs / "more.txt").write_text("Night watchmen sleep by day.")
    writer.sync(docs)
    assert reader.search("watchmen", 1)[0].uri == "docs/more.txt"
    reader._store.settle()
    reader.search("watchmen", 1)
    reader._store.settle()
    assert reader.status().indexes[0]["pending"] == 0


def test_without_a_cache_folder_searches_are_equal(
    address: str, docs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _open(address).sync(docs)
    expected = _open(address).search("leave", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self")  # where nobody can create a folder
    assert _open(address).search("leave", 10) == expected
    assert "Set XDG_CACHE_HOME" in caplog.text


def test_locations_of_sources_hold_in_every_folder(
    address: str, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _open(address).sync("docs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    report = _open(address).sync()
    assert (report.unchanged, report.removed, len(report.failed)) == (4, 0, 0)
    assert _open(address).documents()[0].uri == "docs/hours.txt"


def test_the_settings_file(address: str, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ragfm.toml").write_text("[search]\nk = 2\n")
    Collection.open(address, embedder=HashingEmbedder()).sync(docs)
    assert len(Collection.open(address, embedder=HashingEmbedder()).search("leave")) == 2
    (tmp_path / "other.toml").write_text("[search]\nk = 3\n")
    monkeypatch.setenv("RAGFM_CONFIG", "other.toml")
    assert len(Collection.open(address, embedder=HashingEmbedder()).search("leave")) == 3
    monkeypatch.setenv("RAGFM_CONFIG", "missing.toml")
    with pytest.raises(ConfigError, match=r"no settings file 'missing\.toml'"):
        _ = Collection.open(address).settings


# --- Addresses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["mysql://host/db", "postgresql+asyncpg://host/db", "http://host"])
def test_an_unknown_kind_of_address_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="not a known kind of address"):
        Collection.open(address)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["Upper", "pg_mine", "a b", 'a"; DROP', "x" * 64])
def test_an_invalid_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name of the collection"):
        Collection.open(f"postgresql:///db?collection={name}")


def test_a_password_is_never_shown(postgres: PostgresServer) -> None:
    collection = Collection.open(f"postgresql://me:s3cret@/nowhere?host={postgres.folder}")
    with pytest.raises(CollectionUnavailableError, match="nowhere") as raised:
        collection.search("leave")
    assert "s3cret" not in f"{raised.value} {collection!r} {collection.location}"


def test_without_a_collection_nothing_is_created(address: str, postgres: PostgresServer, tmp_path: Path) -> None:
    for use in (lambda: _open(address).search("x"), lambda: _open(address).status(), lambda: _open(address).verify()):
        with pytest.raises(CollectionNotFound):
            use()
    assert postgres.sql(f"SELECT count(*) FROM pg_namespace WHERE nspname = '{_schema(address)}'") == "0"
    assert not (tmp_path / "cache").exists()


def test_importing_ragfm_does_not_import_psycopg() -> None:
    code = "import sys, ragfm.collection, ragfm.store.collection_store; sys.exit('psycopg' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"pip install -e '\.\[postgres\]'"):
        Collection.open("postgresql:///db").search("x")


# --- One writer --------------------------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_writes(address: str, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _open(address)
    first.sync(docs)
    monkeypatch.setattr(postgres_database, "LOCK_SECONDS", 0.1)
    with first._store.writing(), pytest.raises(CollectionBusyError, match=f"Process {os.getpid()} on"):
        _open(address).sync(docs)
    assert _open(address).sync(docs).unchanged == 4


def test_a_writer_that_lost_its_lease_cannot_write(address: str, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(lease.Lease, "_keep_renewing", lambda *_: None)  # as if it was suspended
    first, second = _open(address), _open(address)
    first.sync(docs)
    with first._store.writing() as catalog:
        (source,) = catalog.sources()
        (docs / "more.txt").write_text("More.")
        assert second.sync(docs).added == 1  # takes the lease over, once it has ended
        with pytest.raises(CollectionBusyError, match="was lost"):
            catalog.commit(source, [], ["more.txt"])
    assert len(_open(address).documents()) == 5
    assert not _open(address).verify().damaged


def test_a_long_commit_keeps_the_lease(address: str, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.3)
    monkeypatch.setattr(postgres_database, "LOCK_SECONDS", 0.2)
    first, other = _open(address), PostgresDatabase(address)
    first.sync(docs)

    def until() -> float:
        with other.reading() as connection:
            return float(read_property(connection, f"{lease.WRITER} until") or 0)

    with first._store.writing() as catalog:
        with catalog.new_generation():
            time.sleep(0.5)  # longer than the lease
            with pytest.raises(CollectionBusyError):
                _open(address).sync(docs)
            monkeypatch.setattr(lease, "LEASE_SECONDS", 6.0)
        with pytest.raises(CollectionBusyError):
            _open(address).sync(docs)
        before = until()
        wait_until(lambda: until() > before)  # renewed in the background
        (source,) = catalog.sources()
        catalog.commit(source, [], ["hours.txt"])


def test_one_process_at_a_time_has_the_turn(address: str, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _open(address).sync(docs)
    first, second = PostgresDatabase(address), PostgresDatabase(address)

    def is_taken() -> bool:
        with second.reading() as connection:
            return second.turn_is_taken(connection, "uploads")

    with first.turn("uploads") as has_turn:
        assert has_turn
        assert is_taken()
        with second.turn("uploads") as others_turn:
            assert not others_turn
        _open(address).sync(docs)  # the turn is not the write lock
    assert not is_taken()
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.3)
    monkeypatch.setattr(lease.Lease, "_keep_renewing", lambda *_: None)  # as if its machine had failed
    with first.turn("uploads") as has_turn:
        assert has_turn
        time.sleep(0.5)
        with second.turn("uploads") as others_turn:
            assert others_turn


WRITER = """
import sys
from ragfm import Collection, Settings
from ragfm.testing import HashingEmbedder
from ragfm.store.postgres import postgres_database
from ragfm.store.catalog_writer import CatalogWriter
address, docs, mode = sys.argv[1:]
postgres_database.LOCK_SECONDS = 60
collection = Collection.open(address, settings=Settings(), embedder=HashingEmbedder())
if mode == "hold":
    with collection._store.writing():
        print("holds", flush=True)
        sys.stdin.read()
report = collection.sync(docs, name="docs")
print(report.added, report.unchanged)
"""


def _writer(address: str, docs: Path, mode: str = "sync") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, address, str(docs), mode]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_killed_writer_holds_nothing_up(address: str, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_database, "LOCK_SECONDS", 1.0)  # its lease would last longer
    _open(address).sync(docs)
    writer = _writer(address, docs, "hold")
    assert writer.stdout is not None
    assert writer.stdout.readline() == "holds\n"
    with pytest.raises(CollectionBusyError, match=f"Process {writer.pid} on"):
        _open(address).sync(docs)
    writer.kill()
    writer.communicate()
    assert _open(address).sync(docs).unchanged == 4


@pytest.mark.slow
def test_concurrent_ingests_of_one_source_make_no_double(address: str, tmp_path: Path) -> None:
    docs = _write(tmp_path / "docs", 40)
    writers = [_writer(address, docs) for _ in range(3)]
    outputs = sorted(writer.communicate(timeout=120)[0] for writer in writers)
    assert outputs == ["0 40\n", "0 40\n", "40 0\n"]
    collection = _open(address)
    assert len(collection.documents()) == 40
    assert not collection.verify().damaged


# --- Durability --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes", "synchronous_commit"])
def test_a_server_that_may_lose_commits_is_refused(
    address: str, docs: Path, postgres: PostgresServer, setting: str
) -> None:
    postgres.sql(f"ALTER SYSTEM SET {setting} = off")
    try:
        postgres.sql("SELECT pg_reload_conf()")
        while postgres.sql(f"SHOW {setting}") != "off":
            time.sleep(0.05)
        with pytest.raises(CollectionError, match=f"may lose acknowledged commits: {setting}=off"):
            _open(address).sync(docs)
    finally:
        postgres.sql(f"ALTER SYSTEM RESET {setting}")
        postgres.sql("SELECT pg_reload_conf()")
    while postgres.sql(f"SHOW {setting}") != "on":
        time.sleep(0.05)
    assert _open(address).sync(docs).added == 4


def _clone(address: str, postgres: PostgresServer) -> str:
    """Restore a dump of a collection in another database. Returns its address there."""
    database = f"d{_schema(address)}"
    file = postgres.folder / f"{_schema(address)}.dump"  # where the user of the server may write
    postgres.dump(f"--schema={_schema(address)}", "--format=custom", f"--file={file}")
    postgres.sql(f"CREATE DATABASE {database}")
    postgres.restore(file, database)
    return postgres.address(_schema(address), database)


def test_a_clone_is_a_collection_of_its_own(
    address: str, docs: Path, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    original = _open(address)
    original.sync(docs)
    expected = original.search("leave", 10)
    cloned = _clone(address, postgres)
    (docs / "more.txt").write_text("Night watchmen sleep by day.")
    original.sync(docs)
    clone = _open(cloned)
    assert "is a clone of a collection elsewhere" not in caplog.text
    assert clone.search("leave", 10) == expected
    assert caplog.text.count("is a clone of a collection elsewhere") == 1
    assert not clone.verify().damaged
    assert clone.path != original.path
    policies = f"SELECT count(*) FROM pg_policies WHERE schemaname = '{_schema(address)}'"
    assert postgres.sql(policies, cloned.partition("@/")[2].partition("?")[0]) == "12"
    for change in ("Dogs bark.", "Dogs bark at night."):
        (docs / "dogs.txt").write_text(change)
        _open(cloned).sync(docs)  # sequences are restored, too
    assert clone.search("bark", 1)[0].text == "Dogs bark at night."
    assert original.search("watchmen", 1)[0].uri == "docs/more.txt"
    assert not _open(address).verify().damaged
    caplog.clear()
    assert not _open(cloned).verify().damaged
    assert "clone" not in caplog.text  # it has an id of its own by now
    ids = [postgres.sql(f"SELECT value FROM {_schema(address)}.properties WHERE key = 'collection'")]
    ids.append(_open(cloned).path.name.partition("-")[0])
    assert ids[0] != ids[1]


def test_an_older_dump_in_the_same_place_is_refused(address: str, docs: Path, postgres: PostgresServer) -> None:
    collection, schema = _open(address), _schema(address)
    collection.sync(docs)
    file = postgres.folder / f"{schema}.dump"
    postgres.dump(f"--schema={schema}", "--format=custom", f"--file={file}")
    (docs / "more.txt").write_text("Night watchmen sleep by day.")
    collection.sync(docs)
    collection.close()
    postgres.sql(f"DROP SCHEMA {schema} CASCADE")
    postgres.restore(file, "postgres")
    with pytest.raises(DamagedCollectionError, match=r"was acknowledged: commits were lost") as raised:
        _open(address).search("leave", 10)
    assert str(collection.path) in raised.value.hint
    shutil.rmtree(collection.path)  # as the hint says
    assert len(_open(address).documents()) == 4


def test_a_physical_copy_is_told_apart_by_its_home(address: str, docs: Path, postgres: PostgresServer) -> None:
    collection, schema = _open(address), _schema(address)
    collection.sync(docs)
    postgres.sql(f"UPDATE {schema}.properties SET value = 'staging' WHERE key = 'home'")
    assert _open(address).path != collection.path


def test_a_running_process_notices_lost_commits(address: str, docs: Path, postgres: PostgresServer) -> None:
    collection = _open(address)
    collection.sync(docs)
    (docs / "more.txt").write_text("Night watchmen sleep by day.")
    collection.sync(docs)
    collection.search("leave")
    schema = _schema(address)
    postgres.sql(f"UPDATE {schema}.generations SET digest = 'other' WHERE id = 2")
    with pytest.raises(DamagedCollectionError, match="commits were lost"):
        collection.search("leave")
    postgres.sql(f"DELETE FROM {schema}.generations WHERE id = 2")
    with pytest.raises(DamagedCollectionError, match="is at generation 1, but generation 2"):
        collection.search("leave")


def test_a_leftover_that_vanishes_hides_no_upload(address: str, docs: Path) -> None:
    collection = _open(address)
    collection.sync(docs)
    uploads = collection.store.open_uploads()
    stored = uploads.store(io.BytesIO(b"Text."), "a.txt", ["key:ann"])
    cache = collection.path / "uploads"
    cache.mkdir()
    (cache / "leftover").symlink_to("nowhere")  # cannot be examined, like one that is gone
    collection.sync(uploads.source, name=".uploads")
    assert stored.uri in {info.uri for info in collection.documents()}


def test_another_collection_in_its_place_is_noticed(address: str, docs: Path, postgres: PostgresServer) -> None:
    reader = _open(address)
    reader.sync(docs)
    assert reader.search("leave")
    postgres.sql(f"DROP SCHEMA {_schema(address)} CASCADE")
    with pytest.raises(CollectionError):
        reader.search("leave")
    (docs / "leave.md").write_text("Nothing but walnuts.")
    _open(address).sync(docs)
    assert reader.search("walnuts", 1)[0].text == "Nothing but walnuts."


def test_a_sync_notices_that_its_collection_was_dropped(address: str, docs: Path, postgres: PostgresServer) -> None:
    collection = _open(address)
    for created_again in (True, False):
        collection.sync(docs, tags={"year": 2025})
        collection.search("leave")
        postgres.sql(f"DROP SCHEMA {_schema(address)} CASCADE")
        if created_again:
            _open(address).sync(docs, allow=["hr"])
        collection.sync(docs)
        assert collection.status().sources[0]["allow"] == (["hr"] if created_again else [])
        assert collection.status().sources[0]["tags"] == {}
        assert not collection.verify().damaged


def test_damage_is_found(address: str, docs: Path, postgres: PostgresServer) -> None:
    collection = _open(address)
    collection.sync(docs)
    schema = _schema(address)
    postgres.sql(f"UPDATE {schema}.documents SET text = replace(text, '28', '29')")
    postgres.sql(f"DELETE FROM {schema}.tags")
    found = {finding.what for finding in collection.verify().findings}
    assert "the hash of the text of docs/leave.md" in found
    assert any(what.startswith("the tags of docs/") for what in found)
    postgres.sql(f"UPDATE {schema}.documents SET text = replace(text, '29', '28')")
    assert not collection.verify(repair=True).damaged


@pytest.mark.parametrize(
    "change",
    [
        "uri = uri || 'x'",
        "digest = 'x'",
        "recipe = '{}'",
        """allow = '["board"]', restricted = true""",
        "path = path || 'x'",
        "media_type = 'text/x'",
    ],
)
def test_a_changed_row_of_a_document_is_found(address: str, docs: Path, postgres: PostgresServer, change: str) -> None:
    collection, schema = _open(address), _schema(address)
    collection.sync(docs)
    collection.sync(docs, tags={"year": 2025})
    collection.sync(docs, allow=["hr"])
    assert not collection.verify().damaged
    postgres.sql(f"UPDATE {schema}.documents SET {change} WHERE uri = 'docs/leave.md'")
    if "restricted" in change:  # with rows that agree
        postgres.sql(f"""UPDATE {schema}.sources SET allow = '["board"]'; UPDATE {schema}.groups SET name = 'board'""")
    report = collection.verify()
    assert [found.what for found in report.findings if found.what.startswith("the checksum of the row of docs/leave")]
    assert report.lost


def test_rows_without_checksums_are_not_damage(address: str, docs: Path, postgres: PostgresServer) -> None:
    collection, schema = _open(address), _schema(address)
    collection.sync(docs)
    with pytest.MonkeyPatch.context() as without_right:
        without_right.setattr("ragfm.store.postgres.PostgresDatabase.seal", lambda *_: None)
        collection.sync(docs, tags={"team": "hr"})
    assert not collection.verify().damaged
    collection.sync(docs, tags={"team": "it"})
    assert not collection.verify().damaged
    postgres.sql(f"UPDATE {schema}.documents SET digest = 'x' WHERE uri = 'docs/leave.md'")
    assert collection.verify().lost == ("docs/leave.md",)


def test_backups_are_those_of_the_server(address: str, docs: Path, tmp_path: Path) -> None:
    collection = _open(address)
    collection.sync(docs)
    with pytest.raises(UnsupportedError, match="own backups") as raised:
        collection.backup(tmp_path / "file")
    assert "pg_dump" in raised.value.hint
    with pytest.raises(UnsupportedError, match="ragfm copy"):
        collection.restore(tmp_path / "file")


# --- Roles and commands ------------------------------------------------------------------------------------------


def test_the_roles_of_the_documentation(address: str, docs: Path, postgres: PostgresServer) -> None:
    page = (Path(__file__).parents[2] / "docs/scale-out.md").read_text(encoding="utf-8")
    found = re.search(r"^```sql\n(.*?)^```", page, re.M | re.S)
    assert found is not None
    schema = _schema(address)
    postgres.sql(found[1].replace("ragfm_", f"{schema}_").replace("handbook", schema))
    places = {role: address.replace(f"{USER}@", f"{schema}_{role}@") for role in ("owner", "writer", "reader")}
    with pytest.raises(AccessDeniedError):
        _open(places["writer"]).sync(docs)  # it cannot create the tables
    _open(places["owner"]).sync(docs)
    writer, reader = _open(places["writer"]), _open(places["reader"])
    (docs / "more.txt").write_text("Night watchmen sleep by day.")
    assert writer.sync(docs, tags={"team": "hr"}).added == 1
    assert reader.search("watchmen", 1, filter="team = hr")[0].uri == "docs/more.txt"
    assert not reader.verify().damaged
    for role, statement in (("writer", f"DROP TABLE {schema}.tags"), ("reader", f"DELETE FROM {schema}.tags")):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            postgres.sql(f"SET ROLE {schema}_{role}; {statement}")
    with pytest.raises(AccessDeniedError):
        reader.sync(docs)
    writer.compact()
    assert reader.search("watchmen", 1)[0].uri == "docs/more.txt"
    keys = {role: KeyTable(place) for role, place in places.items()}
    secrets = [keys[role].add(Key(name=role)) for role in ("owner", "writer")]  # the first one creates the table
    assert [key and key.name for key in map(keys["reader"].find, secrets)] == ["owner", "writer"]
    with pytest.raises(AccessDeniedError):
        keys["reader"].add(Key(name="reader"))
    often = Key(name="often", per_minute=1)  # the reader cannot share its count
    assert [keys[role].take(often) > 0 for role in ("writer", "owner", "reader", "reader")] == [
        False,
        True,
        False,
        True,
    ]
    stored = writer.store.open_uploads().store(io.BytesIO(b"A note."), "note.txt", ["key:ann"])
    assert [one.uri for one in reader.store.open_uploads().owned_by("key:ann")] == [stored.uri]
    with pytest.raises(AccessDeniedError):
        reader.store.open_uploads().store(io.BytesIO(b"A note."), "note.txt", ["key:ann"])
    answer = Answer("How much leave?", "28 days.", "answered", (), (), (), Usage(), 0.5, query="How much leave?")
    number = writer.answer_log.add(answer, AnswerContext("bundled", None, None, None, 0.0, 0.1))
    with pytest.raises(LogError, match="permission denied"):
        reader.answer_log.rate(number, "up")
    with pytest.raises(LogError, match="only the table's owner may rewrite it"):
        writer.answer_log.forget(LogFilter(ids=[number]))
    assert _open(places["owner"]).answer_log.forget(LogFilter(ids=[number])) == 0


def test_the_commands(address: str, tmp_path: Path, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGFM_COLLECTION", address)
    monkeypatch.setenv("RAGFM_EMBEDDER", "hashing")
    monkeypatch.setenv("RAGFM_CONFIG", "")  # --config sets it
    shell = InProcessShell()
    run = shell.json
    assert shell("search", "leave", code=1).startswith("There is no collection at 'postgresql://")
    assert run("ingest", "docs")["added"] == 4
    assert run("search", "days of leave", "-k", "1")["hits"][0]["uri"] == "docs/leave.md"
    assert run("status")["documents"] == 4
    assert [source["name"] for source in run("sources")["sources"]] == ["docs"]
    assert run("ingest", "docs", "--tag", "team=hr")["updated"] == 4
    assert len(run("documents", "--filter", "team = hr")["documents"]) == 4
    assert run("export", "out.jsonl")["documents"] == 4
    assert run("remove", "docs/hours.txt")["chunks"] == 1
    assert run("reembed", "--embedder", "hashing:wide")["chunks"] == 4
    assert run("compact")["documents"] == 1
    report = run("verify")
    assert (report["documents"], report["findings"]) == (3, [])
    assert "own backups" in shell("backup", "file", code=1)
    (tmp_path / "one.toml").write_text("[search]\nk = 1\n")
    assert len(run("search", "leave", "--config", "one.toml")["hits"]) == 1
    (tmp_path / "asked.jsonl").write_text('{"question": "How many days of leave?", "uri": "docs/leave.md"}\n')
    assert len(run("eval", "retrieval", "asked.jsonl", "--config", "one.toml")["measures"]) > 3
    write_keys(Collection.open(address).settings_file, {"search": {"k": 2}})
    assert len(run("search", "leave", "--config", "one.toml")["hits"]) == 2
    with pytest.raises(click.UsageError, match="--config requires"):
        shell("search", "leave", "-c", "folder", "--config", "x")
    assert not {path.name for path in tmp_path.iterdir()} & {".ragfm", "postgresql:"}


# --- Servers that stop, and poolers ------------------------------------------------------------------------------


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that a test may stop."""
    pytest.importorskip("psycopg")
    with postgres_server() as server:
        yield server


def test_a_handle_survives_a_restart_of_the_server(own_server: PostgresServer, address: str, docs: Path) -> None:
    collection = _open(own_server.address())
    collection.sync(docs)
    expected = collection.search("leave", 10)
    own_server.stop("immediate")
    with pytest.raises(CollectionUnavailableError, match="cannot be reached"):
        collection.search("leave", 10)
    with pytest.raises(CollectionUnavailableError):
        collection.sync(docs)
    own_server.start()
    assert collection.search("leave", 10) == expected
    own_server.stop()
    own_server.start()
    assert collection.search("leave", 10) == expected  # the first attempt fails, on a closed connection
    assert collection.sync(docs).unchanged == 4


@pytest.mark.slow
def test_a_full_disk_of_the_server(own_server: PostgresServer, docs: Path) -> None:
    disk = own_server.folder / "disk"
    disk.mkdir()
    with ExitStack() as stack:
        try:
            stack.enter_context(small_disk(disk))
        except OSError as error:
            pytest.skip(f"no file system can be mounted here: {error}")
        owner = (own_server.folder / "data").stat()
        os.chown(disk, owner.st_uid, owner.st_gid)
        own_server.sql(f"CREATE TABLESPACE small LOCATION '{disk}'")
        own_server.sql("CREATE DATABASE crowded TABLESPACE small")
        collection = _open(own_server.address(database="crowded"))
        collection.sync(docs)
        expected, state = collection.search("leave", 10), collection.state
        filler = fill(disk, 200_000)
        (docs / "long.txt").write_text(
            "\n\n".join(f"Number {number} {os.urandom(500).hex()}." for number in range(900))
        )
        with pytest.raises(DiskFullError, match="Earlier commits are intact"):
            collection.sync(docs)
        assert (collection.search("leave", 10), collection.state) == (expected, state)
        assert not collection.verify().damaged
        filler.unlink()
        assert collection.sync(docs).added == 1
        assert not collection.verify().damaged
        collection.close()
        own_server.sql("DROP DATABASE crowded WITH (FORCE)")
        own_server.sql("DROP TABLESPACE small")


def test_searches_recover_from_restarts_under_load(own_server: PostgresServer, docs: Path) -> None:
    collection = _open(own_server.address())
    collection.sync(docs)
    expected = collection.search("leave", 10)
    handles = [collection, collection, collection.as_groups({"hr"}), collection.as_groups({"hr"})]
    found, failures, stop = [0] * len(handles), list[BaseException](), threading.Event()

    def search(number: int) -> None:
        while not stop.is_set():
            try:
                assert handles[number].search("leave", 10) == expected
                found[number] += 1
            except CollectionUnavailableError:
                time.sleep(0.05)
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=search, args=(number,)) for number in range(len(handles))]
    for thread in threads:
        thread.start()
    for mode in ("immediate", "fast"):
        own_server.stop(mode)
        own_server.start()
        before, deadline = list(found), time.monotonic() + 60
        while not failures and any(now < then + 3 for now, then in zip(found, before, strict=True)):
            assert time.monotonic() < deadline, (before, found)
            time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


def _prepared(collection: Collection) -> list[str]:
    """The statements that are prepared in a session, after some searches."""
    with collection._store.catalog.driver() as pooled:
        rows = pooled.driver_connection.execute("SELECT statement FROM pg_prepared_statements").fetchall()
    return [statement for (statement,) in rows]


def test_queries_of_a_search_are_prepared_without_a_pooler(address: str, docs: Path) -> None:
    collection = _open(address)
    collection.sync(docs)
    for handle in (collection, collection.as_groups({"hr"})):
        assert handle.search("leave", 10)
    prepared = _prepared(collection)
    assert any("document_text" in statement for statement in prepared)
    assert len(prepared) < 10


def test_it_works_through_pgbouncer(address: str, docs: Path, postgres: PostgresServer) -> None:
    if shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("pgbouncer is not installed")
    pooled = f"{address}&port={POOL_PORT}"
    with pgbouncer(postgres):
        collection = _open(pooled)
        collection.sync(docs)
        failures: list[BaseException] = []

        def search() -> None:
            reader = _open(pooled)
            try:
                for _ in range(10):
                    assert reader.search("leave", 10)
                    assert reader.as_groups({"hr"}).search("leave", 10)
            except BaseException as error:
                failures.append(error)
            finally:
                reader.close()

        threads = [threading.Thread(target=search) for _ in range(6)]  # more than the pool has connections
        for thread in threads:
            thread.start()
        for number in range(5):
            (docs / f"{number}.txt").write_text(f"Number {number}.")
            collection.sync(docs)
        for thread in threads:
            thread.join()
        assert not failures
        assert not _prepared(collection)
        assert not collection.verify().damaged
        collection.compact()
        uploads, folder = collection.store.open_uploads(), docs.parent / "upload"
        assert isinstance(uploads, UploadTable)
        content = os.urandom(2**20 + 5)
        stored = uploads.store(io.BytesIO(content), "big.bin", ["key:ann", "hr"])
        folder.mkdir()
        with uploads.turn() as has_turn:
            assert has_turn
            uploads.write_to(folder, str(upload_id(stored.uri)))
        assert (folder / "big.bin").read_bytes() == content
        assert uploads.poll() == (True, False)
        uploads.remove(stored)
        assert (uploads.all(), uploads.is_pending(stored)) == ([], True)
        uploads.record_slice(failed={}, settled=uploads.pending())
        assert not uploads.is_pending(stored)
        assert [KeyTable(pooled).take(Key(name="ann", per_minute=1)) > 0 for _ in range(2)] == [False, True]
        answer = Answer("How much leave?", "28\0 days.", "answered", (), (), (), Usage(), 0.5, query="How much leave?")
        number = collection.answer_log.add(answer, AnswerContext("bundled", None, None, None, 0.0, 0.1))
        assert collection.answer_log.entry(number).answer == "28? days."
        assert collection.answer_log.redact(LogFilter(text="leave")) == 1
        assert collection.answer_log.entry(number).question == "How much [redacted]?"
        collection.close()
    direct = _open(address)
    assert len(direct.documents()) == 9
