"""Measure the cost of row-level security for searches of a restricted handle on PostgreSQL.

    python benchmarks/bench_row_security.py [--count 30000] [--checks 2000]

Half of the documents are restricted to a group that the handle does not have. The same handle searches with the
policies and with the conditions of ragfm's queries alone, in turns of 50 questions; CPU time is that of ragfm and
PostgreSQL. "next" is the first search of the handle after a commit, which reads the ids of all visible chunks; later
ones use them again.

Then the conditions are removed, as if they had been forgotten, and handles with random groups search: a check is a
hit, a crossing one that its handle may not see. Prints one JSON line, kept in benchmarks/results/row_security.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import operator
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from bench_collection import fill, questions
from measure import about, save

from ragfm import Collection, Settings
from ragfm.store import filters
from ragfm.store.postgres import PostgresDatabase
from ragfm.store.postgres.policies import POLICIES
from ragfm.testing import HashingEmbedder

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.postgres_server import PostgresServer, postgres_server

TURNS, QUESTIONS, NEXT = 6, 50, 10
_restrict, _fetch = PostgresDatabase.restrict, PostgresDatabase.fetch
GROUPS = 10  # to one of which each second document is restricted


def apply_policies(server: PostgresServer, *, walled: bool) -> None:
    """Let row-level security apply to restricted handles, or not."""
    for table in POLICIES:
        for what in ("ENABLE", "FORCE") if walled else ("DISABLE", "NO FORCE"):
            server.sql(f"ALTER TABLE measured.{table} {what} ROW LEVEL SECURITY")
    PostgresDatabase.restrict = _restrict if walled else lambda *_: None  # type: ignore[assignment,method-assign]
    PostgresDatabase.fetch = _fetch if walled else lambda *args: _fetch(*args[:-1], None)  # type: ignore[method-assign]


def measure(server: PostgresServer, count: int) -> dict[str, Any]:
    """CPU time and latency of both ways in milliseconds, and the median of the ratios of CPU time in pairs of turns."""
    embedder = HashingEmbedder()
    vectors = np.random.default_rng(0).standard_normal((count, embedder.dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    collection = Collection.open(server.address("measured"), settings=Settings(), embedder=embedder)
    with collection._store.writing() as catalog:
        fill(catalog, vectors, 1, "first")
    server.sql("UPDATE measured.documents SET restricted = id % 2 = 0")
    server.sql(
        f"INSERT INTO measured.groups SELECT id, 'group ' || id / 2 % {GROUPS} FROM measured.documents WHERE restricted"
    )
    server.sql("VACUUM (ANALYZE)")
    handle, asked = collection.as_groups({"sales"}), questions()
    asked = asked * (TURNS * QUESTIONS // len(asked) + 1)
    taken: dict[tuple[str, bool], list[float]] = {}  # milliseconds of each search
    used: dict[tuple[str, bool], list[float]] = {}  # mean milliseconds of CPU time in each turn

    def search(name: str, walled: bool, queries: Sequence[str]) -> None:
        cpu = cpu_seconds(server)
        for query in queries:
            if name == "next":
                collection._store.snapshot()._allowed.clear()  # type: ignore[attr-defined]
            start = time.perf_counter()
            assert len(handle.search(query, 10)) == 10
            taken.setdefault((name, walled), []).append(1000 * (time.perf_counter() - start))
        used.setdefault((name, walled), []).append(1000 * (cpu_seconds(server) - cpu) / len(queries))

    handle.search(asked[0], 10)
    for turn in range(TURNS):
        for walled in (True, False) if turn % 2 else (False, True):
            apply_policies(server, walled=walled)
            handle.search(asked[0], 10)
            queries = asked[turn * QUESTIONS : (turn + 1) * QUESTIONS]
            search("search", walled, queries)
            search("next", walled, queries[:NEXT])
    return {
        name: {
            **{
                way: {
                    "cpu_ms": round(statistics.mean(used[name, walled]), 2),
                    "p50_ms": round(statistics.median(taken[name, walled]), 2),
                    "p95_ms": round(float(np.percentile(taken[name, walled], 95)), 2),
                }
                for way, walled in (("with", True), ("without", False))
            },
            "cpu_ratio": round(statistics.median(map(operator.truediv, used[name, True], used[name, False])), 3),
        }
        for name in ("search", "next")
    }


def cpu_seconds(server: PostgresServer) -> float:
    """CPU time of this process and of its connections' server processes."""
    seconds = time.process_time()
    for pid in server.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'").splitlines():
        with contextlib.suppress(FileNotFoundError):  # the connection of this query
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def count_crossings(server: PostgresServer, checks: int) -> dict[str, int]:
    """Search without the conditions on groups, until that many hits are checked."""
    apply_policies(server, walled=True)
    filters.visible_to = lambda _: sa.true()
    collection = Collection.open(server.address("measured"), settings=Settings(), embedder=HashingEmbedder())
    group_of = dict[str, str | None]()
    for row in server.sql(
        "SELECT uri, coalesce(name, '') FROM measured.documents LEFT JOIN measured.groups ON document_id = id"
    ).splitlines():
        uri, _, group = row.partition("|")
        group_of[uri] = group or None
    rng, asked, done, hidden, crossings = random.Random(0), questions(), 0, 0, 0
    while done < checks:
        names = {f"group {number}" for number in range(GROUPS) if rng.random() < 0.3}
        question = rng.choice(asked)
        for hit in collection.as_groups(names).search(question, 20):
            done += 1
            crossings += group_of[hit.uri] is not None and group_of[hit.uri] not in names
        hidden += sum(group_of[hit.uri] not in (None, *names) for hit in collection.search(question, 20))
    return {"checks": done, "crossings": crossings, "hits_of_the_owner_hidden": hidden}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=30_000)
    parser.add_argument("--checks", type=int, default=2_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache, postgres_server() as server:
        os.environ["XDG_CACHE_HOME"] = cache
        found = measure(server, given.count)
        found["without_conditions"] = count_crossings(server, given.checks)
        head = about("row security", ("ragfm", "sqlalchemy", "psycopg", "faiss-cpu"))
        version = server.sql("SHOW server_version")
    result = {**head, "postgresql": version, "chunks": given.count, **found, "load": os.getloadavg()[0]}
    save(result, "row_security")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
