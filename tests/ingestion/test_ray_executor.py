"""An ingest whose documents are prepared on a Ray cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.otlp_collector import collector
from support.postgres_server import USER, PostgresServer
from support.ray_cluster import RayCluster, embedded_texts, ray_cluster, recording_on_ray

from ragfm import Collection, Settings
from ragfm.chunking import ChunkSettings
from ragfm.core.errors import RagfmError, SourceError, UnsupportedError
from ragfm.ingestion.preparation import Entry
from ragfm.ingestion.ray_executor import Job, RayExecutor, prepare_batch
from ragfm.ingestion.sync import list_refs
from ragfm.parsing.parsers import ParserChoice
from ragfm.store.catalog import Source
from ragfm.store.collection_store import Store
from ragfm.store.postgres import PostgresDatabase

_PATIENT = 150.0  # seconds, on a busy machine


def _open(place: str | Path) -> Collection:
    return Collection.open(place, settings=Settings(), embedder="hashing")


@pytest.fixture
def job(docs: Path, address: str) -> Job:
    """The job of a source whose collection has one of its documents."""
    with _open(address) as collection:
        collection.sync(docs / "hours.txt", name="hours")
    source = Source("docs", "files", str(docs), str(docs))
    return Job("run", version("ragfm"), address, source, ParserChoice(), ChunkSettings(), 1, 10**6)


@pytest.fixture
def entries(docs: Path) -> Sequence[Entry]:
    from ragfm_connectors.files import FilesConnector

    (docs / "broken.docx").write_bytes(b"PK\x03\x04 not a document")
    return [(ref, None) for ref in list_refs(FilesConnector(docs))]


def test_a_batch_is_prepared_and_its_vectors_are_stored(
    job: Job, entries: Sequence[Entry], postgres: PostgresServer
) -> None:
    count = f"SELECT count(*) FROM {job.address.partition('collection=')[2]}.vectors"
    assert postgres.sql(count) == "1"
    prepared = prepare_batch(job, {}, entries)
    assert not isinstance(prepared, str)
    kinds = {ref.path: outcome.kind for ref, outcome in prepared}
    assert kinds == {**dict.fromkeys((ref.path for ref, _ in entries), "document"), "broken.docx": "parse"}
    chunks = sum(len(outcome.chunks) for _, outcome in prepared)
    assert postgres.sql(count) == str(chunks)
    assert sum(outcome.embedded for _, outcome in prepared) == chunks - 1
    again = prepare_batch(job, {}, [(ref, outcome.digest or None) for ref, outcome in prepared])
    assert not isinstance(again, str)
    assert {outcome.kind for _, outcome in again} == {"unchanged", "parse"}


def test_a_node_says_why_it_cannot_do_the_work(job: Job, entries: Sequence[Entry]) -> None:
    source = Source("docs", "nobody", "docs", "docs")
    for wrong, reason in (
        (replace(job, version="0.0"), "the ingest runs ragfm 0.0"),
        (replace(job, contract_id=7), "the embedder of the collection has changed"),
        (replace(job, run="other", source=source), "'nobody'"),
    ):
        assert reason in str(prepare_batch(wrong, {}, entries))


def test_a_task_needs_few_rights(job: Job, entries: Sequence[Entry], postgres: PostgresServer) -> None:
    schema = job.address.partition("collection=")[2]
    role = f"{schema}_worker"
    for statement in (
        f"CREATE ROLE {role} LOGIN",
        f"GRANT USAGE ON SCHEMA {schema} TO {role}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}",
        f"GRANT INSERT ON {schema}.vectors TO {role}",
    ):
        postgres.sql(statement)
    prepared = prepare_batch(replace(job, run="few", address=job.address.replace(f"{USER}@", f"{role}@")), {}, entries)
    assert not isinstance(prepared, str)


class _Ray:
    """Runs tasks when their results are fetched. One is lost if it has an entry with a name in `deadly`."""

    exceptions = SimpleNamespace(RayError=ChildProcessError, RayTaskError=RecursionError)

    def __init__(self, deadly: str) -> None:
        self.deadly, self.batches, self.options = deadly, list[int](), dict[str, Any]()

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **options: Any) -> Callable[[Any], SimpleNamespace]:
        self.options = options
        return lambda function: SimpleNamespace(remote=partial(partial, function))

    def wait(self, tasks: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return tasks[:1], tasks[1:]

    def get(self, task: Any) -> Any:
        entries = task.args[2]
        self.batches.append(len(entries))
        if any(ref.path == self.deadly for ref, _ in entries):
            raise ChildProcessError
        return task()


def test_documents_of_a_lost_task_are_tried_one_by_one(job: Job, entries: Sequence[Entry]) -> None:
    ray = _Ray("leave.md")
    with RayExecutor(Store(PostgresDatabase(job.address), Settings(), None), ray) as executor:
        prepared = list(executor.prepare(job.source, job.choice, job.chunks, job.contract_id, entries))
        outcomes = {item[0].path: item[1] for item in prepared if item is not None}
        assert ray.batches == [5, 1, 1, 1, 1, 1]
        assert (outcomes["leave.md"].kind, outcomes["hours.txt"].kind) == ("parse", "document")
        assert outcomes["leave.md"].reason == "4 processes ended while they prepared it"
        assert (ray.options["max_retries"], ray.options["num_gpus"]) == (3, 0)
        with pytest.raises(RagfmError, match="cannot do the work: the embedder of the collection has changed"):
            list(executor.prepare(job.source, job.choice, job.chunks, 7, entries))


def test_ray_needs_a_database_and_a_source_that_can_be_read_anywhere(docs: Path, tmp_path: Path, address: str) -> None:
    pytest.importorskip("ray")
    with _open(tmp_path / ".ragfm") as folder, pytest.raises(UnsupportedError, match="a collection on PostgreSQL"):
        folder.sync(docs, executor="ray")
    assert not (tmp_path / ".ragfm").exists()
    (tmp_path / "mail.eml").write_text("Subject: Leave\n\n28 days.\n")
    with _open(address) as collection:
        with pytest.raises(UnsupportedError, match="executor 'slurm'"):
            collection.sync(docs, executor="slurm")  # type: ignore[arg-type]
        with pytest.raises(SourceError, match="'mail'"):
            collection.sync(tmp_path / "mail.eml", connector="mail", executor="ray")


def test_a_password_is_passed_on_outside_of_the_address() -> None:
    for user, parameter in (("ann:se%40cret", ""), ("ann", "&password=se%40cret")):
        database = PostgresDatabase(
            f"postgresql://{user}@db.lan:5433/knowledge?collection=handbook&host=a,b{parameter}"
        )
        assert database.address == "postgresql://ann@db.lan:5433/knowledge?collection=handbook&host=a%2Cb"
        assert database.password_variables == {"PGPASSWORD": "se@cret"}
        assert "cret" not in database.location
    assert PostgresDatabase("postgresql:///knowledge").password_variables == {}


def test_ray_is_imported_when_there_is_something_to_prepare() -> None:
    code = "import sys, ragfm.ingestion.ray_executor, ragfm.cli.main; print('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# --- With a cluster ----------------------------------------------------------------------------------------------


def _ingest(folder: Path, address: str, *, ray: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ragfm", "ingest", str(folder), "--name", "many", "-c", address, "--json"]
    return subprocess.Popen(
        [*command, "--embedder", "hashing", "--executor", "ray"],
        env=os.environ | {"RAY_ADDRESS": ray, "RAY_gcs_rpc_server_reconnect_timeout_s": "5"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for_texts(log: Path, ingest: subprocess.Popen[str]) -> None:
    """Wait until more texts are embedded than now."""
    before, deadline = embedded_texts(log).total(), time.monotonic() + _PATIENT
    while embedded_texts(log).total() == before:
        assert time.monotonic() < deadline
        if ingest.poll() is not None:
            raise AssertionError(ingest.communicate())
        time.sleep(0.1)


@pytest.mark.slow
def test_without_a_cluster_the_ingest_ends(address: str, docs: Path) -> None:
    pytest.importorskip("ray")
    ingest = _ingest(docs, address, ray="127.0.0.1:1")
    output, _ = ingest.communicate(timeout=_PATIENT)
    assert ingest.returncode == 1
    error = json.loads(output)["error"]
    assert "No Ray cluster answers at '127.0.0.1:1'" in error["message"]
    assert "ray start --head" in error["hint"]


@pytest.mark.slow
def test_tasks_are_part_of_the_trace_of_the_ingest(address: str, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("opentelemetry.sdk")
    with collector() as found, ray_cluster(1, **found.environment) as (cluster, _):
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        ingest = _ingest(docs, address, ray=cluster.address)
        assert ingest.communicate(timeout=_PATIENT) is not None
        assert ingest.returncode == 0
        (sync,) = (one for one in found.spans if one.name == "sync")
        spans = found.trace(sync.trace)
        (task,) = (one for one in spans if one.name == "prepare")
        assert task.parent == sync.id
        below = {one.name.partition(" ")[0] for one in spans if one.parent == task.id}
        assert below == {"fetch", "parse", "embeddings"}


@pytest.mark.slow
def test_a_node_the_ingest_and_the_head_may_be_lost(address: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    many, log = tmp_path / "many", tmp_path / "embedded"
    many.mkdir()
    for number in range(240):
        (many / f"{number}.md").write_text(f"# Leave {number}\n\nYou get {number} days of leave.\n")
        os.utime(many / f"{number}.md", (time.time() - 3600,) * 2)

    def running(cluster: RayCluster) -> bool:
        return any("prepare_batch" in " ".join(process.cmdline()) for process in cluster.processes())

    with ray_cluster(1, 1, 1, PYTHONPATH=recording_on_ray(tmp_path / "code", log, 1.5)) as (cluster, (head, node, _)):
        for stop, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
            ingest = _ingest(many, address, ray=cluster.address)
            _wait_for_texts(log, ingest)
            ingest.send_signal(stop)
            ingest.communicate(timeout=_PATIENT)
            assert ingest.returncode == code
            deadline = time.monotonic() + _PATIENT
            while running(cluster):
                assert time.monotonic() < deadline
                time.sleep(0.1)
        ingest = _ingest(many, address, ray=cluster.address)
        _wait_for_texts(log, ingest)
        cluster.kill(node)
        output, messages = ingest.communicate(timeout=_PATIENT)
        assert ingest.returncode == 0, messages
        report = json.loads(output)
        assert (report["added"] + report["unchanged"], report["failed"]) == (240, [])

        (many / "new.md").write_text("New.")
        for number in range(100, 164):
            (many / f"{number}.md").write_text(f"You get {number} days more.")
        ingest = _ingest(many, address, ray=cluster.address)
        _wait_for_texts(log, ingest)
        cluster.kill(head)
        ingest.communicate(timeout=_PATIENT)
        assert ingest.returncode != 0
    counts = embedded_texts(log)
    assert counts.total() - len(counts) <= 2 * 3 * 16 + 16  # what each process had when it was stopped

    def content(collection: Collection) -> list[object]:
        hits = collection.search("days of leave", 1000, mode="dense")
        found = [collection.document(info.uri) for info in collection.documents()]
        return [*found, *sorted(((hit.uri, hit.text, hit.score) for hit in hits), key=repr)]

    with _open(address) as shared, _open(tmp_path / "alone") as alone:
        shared.sync(many, name="many")  # the next one goes on, without Ray
        alone.sync(many, name="many")
        assert content(shared) == content(alone)
