"""Several processes ingest one collection on PostgreSQL."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
import sqlalchemy as sa
from support.killed_sync import sync_killed
from support.postgres_server import USER, PostgresServer
from support.processes import RUN_VARIABLE, started_in, wait_for_end
from support.worker_process import embedded_texts, start_worker, stop_worker

from ragfm import Collection, Settings
from ragfm.chunking import ChunkSettings
from ragfm.core.errors import CollectionError, CollectionUnavailableError, SourceError, UnsupportedError
from ragfm.core.progress import Progress
from ragfm.core.types import Blob, Ref
from ragfm.ingestion import shared_work
from ragfm.ingestion.parse_queue import ParseQueue
from ragfm.ingestion.preparation import Outcome, split
from ragfm.ingestion.shared_work import job_of
from ragfm.parsing.parsers import ParserChoice
from ragfm.store import tables, work_queue
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.collection_store import Store
from ragfm.store.postgres import PostgresDatabase
from ragfm.store.work_queue import WorkQueue
from ragfm.testing import HashingEmbedder


def _open(place: str | Path) -> Collection:
    return Collection.open(place, settings=Settings(), embedder="hashing")


def _deadline(seconds: float = 150.0) -> Callable[[Progress], None]:
    """For `progress`: fails if nobody comes to do the work."""
    end = time.monotonic() + seconds

    def check(progress: Progress) -> None:
        assert time.monotonic() < end, progress

    return check


def _content(collection: Collection) -> list[tuple[object, ...]]:
    """Everything that a sync stores, apart from the history."""
    documents = [(info, collection.document(info.uri)) for info in collection.documents()]
    chunks = [
        (hit.uri, hit.start, hit.end, hit.text, hit.headings, hit.score)
        for hit in collection.search("days of leave", 10_000, mode="dense")
    ]
    return [*documents, *sorted(chunks, key=repr)]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Eighty documents of several formats and sizes, changed an hour ago; two are skipped, one cannot be parsed."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(80):
        lines = [
            f"Rule {line} of {number}: you get {number + line} days of leave.\n" for line in range(6 * (number % 5))
        ]
        name, text = f"{number}.md", f"# Leave {number}\n\n{''.join(lines)}"
        if number % 10 == 3:
            name, text = f"{number}.html", f"<h1>Rooms {number}</h1><p>Room {number} has {number} seats.</p>"
        (folder / name).write_text(text)
    (folder / "empty.txt").write_text("")
    (folder / "picture.xyz").write_bytes(b"\x00\x01\x02\xff" * 100)
    (folder / "broken.docx").write_bytes(b"PK\x03\x04 not a document")
    for path in folder.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)
    return folder


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "embedded"


@pytest.fixture
def workers() -> Iterator[list[Popen[bytes]]]:
    started: list[Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_workers_that_are_killed_make_the_collection_of_one_process(
    address: str,
    tmp_path: Path,
    many: Path,
    log: Path,
    workers: list[Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (work_queue, shared_work):  # chance may let five workers end with the same document
        monkeypatch.setattr(module, "MAX_LEASES", 100)
    workers += [start_worker(address, log, seconds=0.3) for _ in range(3)]
    done, kills = threading.Event(), 0

    def kill_workers() -> None:
        nonlocal kills
        chance = random.Random(7)
        while kills < 5 and not done.wait(chance.uniform(1.0, 2.0)):
            victim = chance.randrange(3)
            if embedded_texts(log):
                workers[victim].kill()
                workers[victim].wait()
                workers[victim] = start_worker(address, log, seconds=0.3)
                kills += 1

    killer = threading.Thread(target=kill_workers)
    killer.start()
    try:
        with _open(address) as shared:
            report = shared.sync(many, name="many", workers=0, progress=_deadline())
    finally:
        done.set()
        killer.join()
    with _open(tmp_path / "alone") as alone:
        expected = alone.sync(many, name="many")
        assert _content(shared) == _content(alone)
    assert kills
    assert (report.added, report.skipped) == (expected.added, expected.skipped)
    assert report.failed == expected.failed
    assert [failed.uri for failed in report.failed] == ["many/broken.docx"]
    counts = embedded_texts(log)
    assert len(counts) == expected.chunks
    assert (
        counts.total() - len(counts) <= kills * 4 * 5
    )  # a worker that is killed has four documents of up to five chunks
    assert [stop_worker(worker) for worker in workers] == [0, 0, 0]


@pytest.mark.slow
def test_an_unchanged_source_needs_no_workers(
    address: str, docs: Path, log: Path, workers: list[Popen[bytes]], postgres: PostgresServer
) -> None:
    for path in docs.iterdir():  # the revision of a file that has just been written changes once
        os.utime(path, (time.time() - 3600,) * 2)
    workers.append(start_worker(address, log))
    with _open(address) as collection:
        first = collection.sync(docs, workers=0, progress=_deadline())
        assert stop_worker(workers[0]) == 0
        commit, embedded = collection.commit, embedded_texts(log)
        second = collection.sync(workers=0, progress=_deadline())
        assert collection.commit == commit
        assert (second.added, second.unchanged) == (0, first.added)
        assert embedded_texts(log) == embedded
    schema = address.partition("collection=")[2]
    assert postgres.sql(f"SELECT count(*) FROM {schema}.work") == "0"


@pytest.mark.slow
@pytest.mark.parametrize("where", ["commit", "committed"])
def test_an_ingest_that_is_killed_goes_on_with_what_is_staged(
    address: str,
    tmp_path: Path,
    many: Path,
    log: Path,
    workers: list[Popen[bytes]],
    postgres: PostgresServer,
    where: str,
) -> None:
    """Killed before its second commit, or before it removes what it has committed."""
    workers.append(start_worker(address, log))
    sync_killed(address, many, documents=20, where=where, name="many", workers=0)
    with _open(address) as shared, _open(tmp_path / "alone") as alone:
        report = shared.sync(many, name="many", workers=0, progress=_deadline())
        expected = alone.sync(many, name="many")
        assert stop_worker(workers[0]) == 0
        assert _content(shared) == _content(alone)
        assert report.added < expected.added
    assert set(embedded_texts(log).values()) == {1}
    schema = address.partition("collection=")[2]
    assert postgres.sql(f"SELECT count(*) FROM {schema}.documents") == str(expected.added)  # no version was replaced


@pytest.mark.slow
def test_a_worker_that_could_not_stage_prepares_its_documents_again(
    address: str, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, calls, stop = WorkQueue.stage, [], threading.Event()

    def failing(self: WorkQueue, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            raise CollectionUnavailableError("The server is away.")
        stage(self, *arguments)

    monkeypatch.setattr(WorkQueue, "stage", failing)
    monkeypatch.setattr("ragfm.ingestion.worker._RETRY_SECONDS", 0.1)
    with _open(address) as collection, _open(address) as other:
        worker = threading.Thread(target=other.work, kwargs={"stop": stop})
        worker.start()
        try:
            assert collection.sync(docs, workers=0, progress=_deadline(60)).added == 4
        finally:
            stop.set()
            worker.join()
    assert len(calls) > 1


def test_a_folder_has_no_workers(docs: Path, tmp_path: Path) -> None:
    with _open(tmp_path / ".ragfm") as collection:
        with pytest.raises(UnsupportedError, match="PostgreSQL"):
            collection.sync(docs, workers=2)
        with pytest.raises(UnsupportedError, match="PostgreSQL"):
            collection.work()
        assert not (tmp_path / ".ragfm").exists()


@pytest.fixture
def queue(address: str, docs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[WorkQueue, CatalogWriter]]:
    """The queue of a collection with one entry, which may be leased twice, and the catalog of its lister."""
    monkeypatch.setattr(work_queue, "MAX_LEASES", 2)
    with _open(address) as collection:
        collection.sync(docs / "hours.txt")
    store = Store(PostgresDatabase(address), Settings(), None)
    with store.writing() as catalog:
        queue = WorkQueue(PostgresDatabase(address))
        queue.add(catalog, 1, "run", "job", {"a": (Ref("a", "1"), None)})
        yield queue, catalog


def _end_leases(catalog: CatalogWriter) -> None:
    with catalog.write() as connection:
        connection.execute(tables.work.update().values(until=0))


def _paths(rows: Sequence[Any]) -> list[str]:
    return [row.path for row in rows]


def test_an_entry_is_leased_again_when_its_lease_has_ended(queue: tuple[WorkQueue, CatalogWriter]) -> None:
    work, catalog = queue
    row = work.lease("one", 5)[0]
    assert (row.source_id, row.path, row.job, row.ref["revision"]) == (1, "a", "job", "1")
    assert work.lease("two", 5) == []
    _end_leases(catalog)
    assert _paths(work.lease("two", 5)) == ["a"]
    work.stage("one", {row.id: b"late"})
    assert work.take(catalog, 1, "run", b"") == []
    work.stage("two", {row.id: b"prepared"})
    assert work.take(catalog, 1, "run", b"") == [("a", b"prepared")]
    assert work.take(catalog, 1, "run", b"") == []
    work.add(catalog, 1, "next run", "job", {"a": (Ref("a", "1"), None)})
    assert work.take(catalog, 1, "next run", b"") == [("a", b"prepared")]
    work.add(catalog, 1, "next run", "job", {"a": (Ref("a", "2"), None)})
    assert work.take(catalog, 1, "next run", b"") == []
    assert _paths(work.lease("one", 5)) == ["a"]


def test_a_lease_is_renewed_and_given_up(
    queue: tuple[WorkQueue, CatalogWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, catalog = queue
    monkeypatch.setattr(work_queue, "LEASE_SECONDS", 1.5)  # renewed every 0.5 s

    def until() -> float:
        with catalog.read() as connection:
            return float(connection.execute(sa.select(tables.work.c.until)).scalar_one())

    with work.working() as name:
        assert _paths(work.lease(name, 5)) == ["a"]
        leased, deadline = until(), time.monotonic() + 30
        while until() == leased:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert until() > leased
    for _ in range(3):  # more often than MAX_LEASES: an interruption is not an attempt
        with work.working() as name:
            assert _paths(work.lease(name, 5)) == ["a"]
        assert work.busy_workers() == 0


def test_an_entry_that_ends_its_workers_fails(queue: tuple[WorkQueue, CatalogWriter]) -> None:
    work, catalog = queue
    for name in ("one", "two"):
        assert work.take(catalog, 1, "run", b"gave up") == []
        assert _paths(work.lease(name, 5)) == ["a"]
        _end_leases(catalog)
    assert work.lease("three", 5) == []
    assert work.take(catalog, 1, "run", b"gave up") == [("a", b"gave up")]


def test_staged_texts_are_hidden_from_groups(queue: tuple[WorkQueue, CatalogWriter]) -> None:
    _, catalog = queue
    query = sa.select(sa.func.count()).select_from(tables.work)
    with catalog.read() as connection:
        assert connection.scalar(query) == 1
    with catalog.restricted_to(frozenset({"hr"})).read() as connection:
        assert connection.scalar(query) == 0


def test_an_outcome_is_the_same_after_it_was_stored(docs: Path, embedder: HashingEmbedder) -> None:
    parsing = ParseQueue(ParserChoice())
    for path in sorted(docs.iterdir()):
        blob = Blob(path.read_bytes(), None, {"year": 2026, "share": 0.5, "open": True})
        parsing.add(Ref(path.name), "digest", blob, path.name)
        outcome = split(parsing.pop(), ParserChoice(), lambda: embedder, ChunkSettings())
        assert outcome.document is not None
        assert Outcome.from_bytes(outcome.to_bytes()) == outcome
    assert Outcome.from_bytes(Outcome("skip", "nul \0, half \ud800").to_bytes()).reason == "nul \0, half \ud800"


def test_a_source_that_only_the_lister_can_read_is_refused(address: str, tmp_path: Path) -> None:
    (tmp_path / "mail.eml").write_text("Subject: Leave\n\n28 days.\n")
    with _open(address) as collection:
        with pytest.raises(SourceError, match="'mail'"):
            collection.sync(tmp_path / "mail.eml", connector="mail", workers=0, progress=_deadline())
        assert collection.sync(tmp_path / "mail.eml", connector="mail").added == 1


def test_a_worker_of_another_version_ends(
    queue: tuple[WorkQueue, CatalogWriter], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, catalog = queue
    job = job_of(ParserChoice(), ChunkSettings(), 1, 1000, "")
    work.add(catalog, 1, "run", job, {"a": (Ref("a", "1"), None)})
    monkeypatch.setattr("ragfm.ingestion.worker.version", lambda _: "0.0")
    with _open(address) as collection, pytest.raises(CollectionError, match=r"this worker ragfm 0\.0"):
        collection.work()


def test_a_password_is_given_to_workers_outside_of_the_command_line() -> None:
    for user, parameter in (("ann:se%40cret", ""), ("ann", "&password=se%40cret")):
        database = PostgresDatabase(
            f"postgresql://{user}@db.lan:5433/knowledge?collection=handbook&host=a,b{parameter}"
        )
        assert database.address == "postgresql://ann@db.lan:5433/knowledge?collection=handbook&host=a%2Cb"
        assert database.password_variables == {"PGPASSWORD": "se@cret"}
        assert "cret" not in database.location
    assert PostgresDatabase("postgresql:///knowledge").password_variables == {}


@pytest.mark.slow
def test_the_workers_of_an_ingest_end_with_it(address: str, many: Path) -> None:
    command = [sys.executable, "-m", "ragfm", "ingest", str(many), "-c", address, "--embedder", "hashing", "--json"]
    done = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["added"] == 81

    (many / "new.txt").write_text("new")
    for stop, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        run = uuid.uuid4().hex
        ingest = subprocess.Popen(
            [*command, "--workers", "2"], env=os.environ | {RUN_VARIABLE: run}, stdout=subprocess.DEVNULL
        )
        while len(started_in(run)) < 3:
            assert ingest.poll() is None
            time.sleep(0.05)
        ingest.send_signal(stop)
        assert ingest.wait(30) == code
        assert not wait_for_end(run, seconds=20)
    with _open(address) as collection:
        assert collection.sync(many, name="many", workers=1, progress=_deadline()).added == 1


@pytest.mark.slow
def test_a_worker_needs_few_rights(
    address: str, docs: Path, log: Path, workers: list[Popen[bytes]], postgres: PostgresServer
) -> None:
    schema = address.partition("collection=")[2]
    role = f"{schema}_worker"
    with _open(address) as collection:
        collection.sync(docs / "hours.txt")
        for statement in (
            f"CREATE ROLE {role} LOGIN",
            f"GRANT USAGE ON SCHEMA {schema} TO {role}",
            f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}",
            f"GRANT INSERT ON {schema}.vectors TO {role}",
            f"GRANT UPDATE ON {schema}.work TO {role}",
        ):
            postgres.sql(statement)
        workers.append(start_worker(address.replace(f"{USER}@", f"{role}@"), log))
        assert collection.sync(docs / "pets.html", workers=0, progress=_deadline()).added == 1
    assert len(embedded_texts(log)) == 1
