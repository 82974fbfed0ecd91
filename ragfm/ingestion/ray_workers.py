"""Workers on a Ray cluster. Ray places them on its nodes and restarts them; their work is in the queue.

    ragfm ingest ──starts──→ this module, a driver of Ray ──places──→ RayWorker actors ──lease, stage──→ the queue

The driver is a process of its own, since Ray ends the drivers of a head that is killed: the ingest goes on without it.

    python -m ragfm.ingestion.ray_workers ADDRESS WORKERS [again]
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ragfm.core.errors import RagfmError
from ragfm.core.progress import ignore_progress
from ragfm.ingestion.shared_work import LOST
from ragfm.ingestion.worker import Worker
from ragfm.store.collection_store import Store
from ragfm.store.postgres import PostgresDatabase

FAILED = 1
"""Exit code if the workers cannot do the work."""
LOOK_SECONDS = 2.0
"""Time between two looks at the workers and the cluster."""
SILENT_SECONDS = 60.0
"""How long an actor may give no answer before another one replaces it, and wait for a place before a warning."""
_AWAY = 3  # looks at the head in vain
_CONNECT_SECONDS = 30.0
_RETRY_SECONDS = 5.0
_STOP_SECONDS = 8.0  # the ingest waits for ten
_log = logging.getLogger(__name__)


class RayWorker:
    """The worker of an actor. It is given the address of the collection, and no document ever passes through Ray."""

    def __init__(self, address: str, variables: Mapping[str, str]) -> None:
        os.environ.update(variables)
        self._address, self._stop = address, threading.Event()

    def run(self) -> str:
        """Work until `stop`. Returns the reason if this node cannot do the work, else an empty string."""
        store = Store(PostgresDatabase(self._address), None, None)
        try:
            Worker(store, self._stop, ignore_progress).run()
        except RagfmError as error:
            return str(error)
        finally:
            store.close()
        return ""

    def alive(self) -> None:
        """Return at once, in another thread than `run`."""

    def stop(self) -> None:
        """End `run`."""
        self._stop.set()


def shares(cpus: Iterable[int], gpus: int, wanted: int | None) -> tuple[int, int, int]:
    """How many workers to start on nodes with these CPUs, and the number of CPUs and GPUs of each.

    One CPU of the cluster stays free: actors that hold all of them let every other task of the cluster wait without an
    error. Without `wanted`, a worker per GPU, else per CPU.
    """
    nodes = list(cpus)
    usable = max(0, sum(nodes) - 1)
    count = min(usable, gpus or usable) if wanted is None else min(wanted, usable)
    fitting = (
        share
        for share in range(usable // max(1, count), 0, -1)
        if sum(node // share for node in nodes) >= count and share <= max(nodes)
    )
    return count, next(fitting, 1), int(0 < count <= gpus)


@dataclass
class _Actor:
    """An actor, with its work and the answer that is waited for."""

    handle: Any
    work: Any
    answer: Any
    since: float = field(default_factory=time.monotonic)
    started: bool = False


class _Driver:
    """Places workers, replaces those that are silent, and says why some do not start."""

    def __init__(self, ray: Any, address: str, wanted: int | None) -> None:
        self._ray, self._wanted = ray, wanted
        database = PostgresDatabase(address)
        self._arguments = (database.address, database.password_variables)
        self._actors: list[_Actor] = []
        self._warned: object = None

    def place(self) -> None:
        """Start the workers that the cluster has CPUs for and that do not run yet."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cpus = [int(node.get("CPU", 0)) for node in nodes]
        count, share, gpus = shares(cpus, int(sum(node.get("GPU", 0) for node in nodes)), self._wanted)
        if count < (self._wanted or 1) and self._warned != sum(cpus):
            self._warned = sum(cpus)
            wanted = self._wanted or 1
            _log.warning(
                "The Ray cluster has too few CPUs for %d worker%s: %d, of which one stays free. Running: %d. "
                "Add nodes or CPUs; the others then start by themselves.",
                *(wanted, "s" * (wanted > 1), self._warned, count),
            )
        # Both are restarted without limit: the actor, and the call that is its work.
        again = {"max_restarts": -1, "max_task_retries": -1}
        actor = self._ray.remote(
            num_cpus=share, num_gpus=gpus, max_concurrency=3, scheduling_strategy="SPREAD", **again
        )(RayWorker)
        while len(self._actors) < count:
            handle = actor.remote(*self._arguments)
            self._actors.append(_Actor(handle, handle.run.remote(), handle.alive.remote()))

    def check(self) -> str:
        """Replace silent workers. Returns why the workers cannot work, or an empty string."""
        ended, _ = self._ray.wait([actor.work for actor in self._actors], timeout=0) if self._actors else ([], [])
        for work in ended:
            try:
                return str(self._ray.get(work, timeout=LOOK_SECONDS))
            except self._ray.exceptions.RayError as error:  # in the constructor or outside of the worker's errors
                return str(error)
        now = time.monotonic()
        for actor in list(self._actors):
            if self._ray.wait([actor.answer], timeout=0)[0]:
                actor.answer, actor.since, actor.started = actor.handle.alive.remote(), now, True
            elif now - actor.since > SILENT_SECONDS and actor.started:
                _log.warning("A worker on Ray does not answer. Another one takes its place.")
                self._ray.kill(actor.handle)
                self._actors.remove(actor)
            elif now - actor.since > SILENT_SECONDS:
                actor.since = now
                free = int(self._ray.available_resources().get("CPU", 0))
                _log.warning("A worker waits for a place on Ray, which has %d free CPUs.", free)
        return ""

    def stop(self) -> None:
        """Let the workers give their leases back."""
        started = [actor for actor in self._actors if actor.started]
        for actor in started:
            actor.handle.stop.remote()
        if started:
            self._ray.wait([actor.work for actor in started], num_returns=len(started), timeout=_STOP_SECONDS)


def main() -> None:
    """Keep workers on a cluster until the end of the standard input."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    address, workers, *again = sys.argv[1:]
    stop = threading.Event()

    def no_cluster(reason: str = "time-out") -> None:
        _log.warning("No Ray cluster answers at %r: %s", cluster, reason)
        if not again:
            _log.warning("Start one with `ray start --head`, or set RAY_ADDRESS.")
            os._exit(FAILED)
        stop.wait(_RETRY_SECONDS)
        os._exit(LOST)

    def wait_for_end() -> None:
        sys.stdin.buffer.read()
        stop.set()
        if connecting.is_alive():
            os._exit(0)

    cluster = os.environ.get("RAY_ADDRESS", "auto")
    connecting = threading.Timer(_CONNECT_SECONDS, no_cluster)  # Ray itself tries for minutes
    connecting.daemon = True
    connecting.start()
    threading.Thread(target=wait_for_end, name="ragfm-parent", daemon=True).start()
    import ray

    try:
        ray.init(cluster, namespace="ragfm", logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        no_cluster(str(error).strip().partition("\n")[0])
    connecting.cancel()
    driver = _Driver(ray, address, None if workers == "all" else int(workers))
    host, port = ray.get_runtime_context().gcs_address.rsplit(":", 1)
    away = 0
    while not stop.is_set():
        try:  # a call to a head that is gone would not return
            socket.create_connection((host, int(port)), timeout=LOOK_SECONDS).close()
            away = 0
        except OSError:
            away += 1
            if away == _AWAY:
                _log.warning("The head of the Ray cluster is gone. The ingest goes on with the next cluster.")
                os._exit(LOST)
        if not away:
            driver.place()
            if reason := driver.check():
                _log.error("A worker on Ray has ended: %s", reason)
                os._exit(FAILED)
        stop.wait(LOOK_SECONDS)
    driver.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
