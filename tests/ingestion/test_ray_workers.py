"""An ingest whose workers are actors on a Ray cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.postgres_server import PostgresServer
from support.ray_cluster import RayCluster, ray_cluster
from support.worker_process import code_on_ray, embedded_texts, recording_on_ray

from ragfm import Collection, Settings
from ragfm.core.errors import MissingExtraError, UnsupportedError
from ragfm.ingestion.ray_workers import shares

_PATIENT = 150.0  # seconds, on a busy machine
_IMPATIENT_DRIVER = "from ragfm.ingestion import ray_workers as w; w.SILENT_SECONDS = 8.0; w.main()"


@pytest.fixture(scope="module")
def small_cluster() -> Iterator[RayCluster]:
    """A head of two CPUs."""
    pytest.importorskip("ray", reason="needs the extra ray")
    with ray_cluster(2) as (cluster, _):
        yield cluster


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Sixty documents, changed an hour ago."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.md").write_text(f"# Leave {number}\n\nYou get {number} days of leave.\n")
        os.utime(folder / f"{number}.md", (time.time() - 3600,) * 2)
    return folder


def _ingest(folder: Path, address: str, *words: str, ray: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ragfm", "ingest", str(folder), "-c", address, "--embedder", "hashing", "--json"]
    return subprocess.Popen(
        [*command, "--executor", "ray", *words],
        env=os.environ | {"RAY_ADDRESS": ray},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait(condition: Callable[[], object], process: subprocess.Popen[Any] | None = None) -> None:
    deadline = time.monotonic() + _PATIENT
    while not condition():
        assert time.monotonic() < deadline
        if process is not None and process.poll() is not None:
            raise AssertionError(process.communicate())
        time.sleep(0.1)


def _actors(cluster: RayCluster) -> list[psutil.Process]:
    return [process for process in cluster.processes() if "RayWorker" in " ".join(process.cmdline())]


def _same_as_alone(address: str, many: Path, tmp_path: Path) -> None:
    def content(collection: Collection) -> list[object]:
        hits = collection.search("days of leave", 1000, mode="dense")
        documents = [collection.document(info.uri) for info in collection.documents()]
        return [*documents, *sorted(((hit.uri, hit.text, hit.score) for hit in hits), key=repr)]

    with (
        Collection.open(address, settings=Settings(), embedder="hashing") as shared,
        Collection.open(tmp_path / "alone", settings=Settings(), embedder="hashing") as alone,
    ):
        alone.sync(many, name="many")
        assert content(shared) == content(alone)


@pytest.mark.parametrize(
    ("cpus", "gpus", "wanted", "expected"),
    [
        ([4], 0, None, (3, 1, 0)),
        ([0, 8, 8], 0, None, (15, 1, 0)),
        ([1], 0, None, (0, 1, 0)),
        ([1], 0, 4, (0, 1, 0)),
        ([2, 2], 0, 8, (3, 1, 0)),
        ([16, 16, 16, 16], 0, 4, (4, 15, 0)),
        ([4, 1, 1], 0, 2, (2, 2, 0)),
        ([4, 1, 1], 0, 3, (3, 1, 0)),
        ([8, 8], 2, None, (2, 7, 1)),
        ([8, 8], 2, 5, (5, 2, 0)),
        ([], 0, 1, (0, 1, 0)),
    ],
)
def test_one_cpu_of_the_cluster_stays_free(
    cpus: list[int], gpus: int, wanted: int | None, expected: tuple[int, int, int]
) -> None:
    assert shares(cpus, gpus, wanted) == expected
    count, share, _ = expected
    assert not count or (count * share < sum(cpus) and sum(node // share for node in cpus) >= count)


def test_ray_needs_a_database_and_an_extra(
    docs: Path, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        Collection.open(tmp_path / ".ragfm", settings=Settings(), embedder="hashing") as folder,
        pytest.raises(UnsupportedError, match="need a collection on PostgreSQL"),
    ):
        folder.sync(docs, executor="ray")
    assert not (tmp_path / ".ragfm").exists()
    with Collection.open(address, settings=Settings(), embedder="hashing") as collection:
        with pytest.raises(UnsupportedError, match="executor 'slurm'"):
            collection.sync(docs, executor="slurm")
        monkeypatch.setattr("ragfm.ingestion.shared_work.find_spec", lambda _: None)
        with pytest.raises(MissingExtraError, match=r"\.\[ray\]"):
            collection.sync(docs, executor="ray")


def test_only_the_driver_imports_ray() -> None:
    code = "import sys, ragfm.collection, ragfm.ingestion.ray_workers, ragfm.cli.main; print('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.slow
def test_without_a_cluster_the_ingest_ends(address: str, docs: Path) -> None:
    pytest.importorskip("ray")
    ingest = _ingest(docs, address, ray="127.0.0.1:1")
    output, messages = ingest.communicate(timeout=_PATIENT)
    assert ingest.returncode == 1
    assert "No Ray cluster answers at '127.0.0.1:1'" in messages
    assert "ray start --head" in messages
    assert json.loads(output)["error"]["type"] == "RagfmError"


@pytest.mark.slow
def test_the_actors_end_with_the_ingest(small_cluster: RayCluster, address: str, many: Path, tmp_path: Path) -> None:
    for stop, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        for number in range(1500):  # enough for the signal to come in between
            (many / f"{stop}-{number}.md").write_text(f"{stop} {number}")
        ingest = _ingest(many, address, ray=small_cluster.address)
        _wait(lambda: _actors(small_cluster), ingest)
        ingest.send_signal(stop)
        ingest.communicate(timeout=_PATIENT)
        assert ingest.returncode == code
        _wait(lambda: not _actors(small_cluster))
    for path in many.glob("*-*.md"):
        path.unlink()
    finished = _ingest(many, address, "--allow-mass-delete", ray=small_cluster.address)
    output, messages = finished.communicate(timeout=_PATIENT)
    assert finished.returncode == 0, messages
    assert not json.loads(output)["failed"]
    _same_as_alone(address, many, tmp_path)


@pytest.mark.slow
def test_an_actor_that_gives_no_answer_is_replaced(small_cluster: RayCluster, address: str, many: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", _IMPATIENT_DRIVER, address, "1"],
        env=os.environ | {"RAY_ADDRESS": small_cluster.address},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert driver.stdin is not None
    assert driver.stderr is not None
    try:
        _wait(lambda: _actors(small_cluster), driver)
        first = _actors(small_cluster)[0]
        time.sleep(5)  # until it has answered once
        first.suspend()
        with Collection.open(address, settings=Settings(), embedder="hashing") as collection:
            end = time.monotonic() + _PATIENT

            def patient(_: object) -> None:
                assert time.monotonic() < end

            assert collection.sync(many, workers=0, progress=patient).added == 60
        second = [actor for actor in _actors(small_cluster) if actor.pid != first.pid]
        assert len(second) == 1
        driver.stdin.close()
        assert "does not answer. Another one takes its place." in driver.stderr.read()
        assert driver.wait(30) == 0
        _wait(lambda: not _actors(small_cluster))  # the suspended one, too
    finally:
        driver.kill()
        driver.wait()


@pytest.mark.slow
def test_a_node_that_cannot_do_the_work_ends_the_ingest(address: str, docs: Path, tmp_path: Path) -> None:
    """And a cluster without enough CPUs says so until a node has joined."""
    pytest.importorskip("ray")
    code = "from ragfm.ingestion import worker\nworker.version = lambda _: '0.0'"
    with ray_cluster(1, PYTHONPATH=code_on_ray(tmp_path / "code", code)) as (cluster, _):
        ingest = _ingest(docs, address, "--workers", "1", ray=cluster.address)
        assert ingest.stderr is not None
        for line in ingest.stderr:
            if "The Ray cluster has too few CPUs for 1 worker: 1, of which one stays free. Running: 0." in line:
                break
        else:
            raise AssertionError
        cluster.start(1)
        _, messages = ingest.communicate(timeout=_PATIENT)
    assert ingest.returncode == 1
    assert "A worker on Ray has ended: The ingest runs ragfm" in messages


@pytest.mark.slow
def test_a_node_and_the_head_may_be_killed(address: str, many: Path, tmp_path: Path, postgres: PostgresServer) -> None:
    pytest.importorskip("ray")
    log = tmp_path / "embedded"
    path = recording_on_ray(tmp_path / "code", log, seconds=1.0, batch=2)
    schema = address.partition("collection=")[2]
    with ray_cluster(1, 1, 1, PYTHONPATH=path) as (cluster, (head, node, other)):
        ingest = _ingest(many, address, ray=cluster.address)
        messages: list[str] = []
        assert ingest.stderr is not None
        reading = threading.Thread(target=lambda: messages.extend(ingest.stderr or ()))
        reading.start()
        _wait(lambda: len(embedded_texts(log)) >= 8, ingest)
        cluster.kill(node)
        embedded = len(embedded_texts(log))
        _wait(lambda: len(embedded_texts(log)) >= embedded + 8, ingest)
        for part in (head, other):
            cluster.kill(part)
        _wait(lambda: any("The head of the Ray cluster is gone" in line for line in messages), ingest)
        before = len(embedded_texts(log))
        assert before < 60
        cluster.start(2, head=True)
        assert ingest.stdout is not None
        report = json.loads(ingest.stdout.read())
        assert ingest.wait(_PATIENT) == 0
        reading.join()
    assert (report["added"], report["failed"]) == (60, [])
    assert postgres.sql(f"SELECT count(*) FROM {schema}.documents") == "60"
    counts = embedded_texts(log)
    assert counts.total() - len(counts) <= 4 * 2  # each worker that was killed had two documents
    _same_as_alone(address, many, tmp_path)
