"""The kill trials: a writer or PostgreSQL is killed at random times; everything acknowledged must be there."""

from __future__ import annotations

import itertools
import random
import shutil
import time
from pathlib import Path
from typing import Any

from support.postgres_server import PostgresServer
from support.torture.expected_state import SOURCES, ExpectedState
from support.torture.fork_server import ForkServer

_KILLS_PER_COLLECTION = 40  # then a new collection starts, so that its creation is interrupted too


def kill(
    fork_server: ForkServer,
    folder: Path,
    kills: int,
    seed: int = 0,
    *,
    server: PostgresServer | None = None,
    kill_server: bool = False,
) -> dict[str, Any]:
    """Kill a writer `kills` times. Returns counts, and `problems`: what was lost or incomplete.

    With a server, the collections are on it. With `kill_server`, the server is shut down immediately, without a
    checkpoint, and the writer fails.
    """
    rng, start = random.Random(seed), time.monotonic()
    expected: ExpectedState | None = None
    problems, commits, slowest = list[str](), 0, 0.0
    names = itertools.count()
    place: str | Path = folder / "c"
    for number in range(kills):
        if number % _KILLS_PER_COLLECTION == 0 or expected is None:
            commits += expected.acknowledged if expected else 0
            expected = ExpectedState()
            for name in ("c", *SOURCES):
                shutil.rmtree(folder / name, ignore_errors=True)
            if server is not None:
                place = server.address(f"killed{seed}_{kill_server:d}_{next(names)}")
        others = _clients(server) if server is not None else set()
        writer = fork_server.start("ingest", folder=folder, place=place, seed=rng.randrange(10**9))
        reports, deadline = rng.choice((0, 1, rng.randrange(2, 20))), time.monotonic() + 60
        while len(writer.lines()) < reports and time.monotonic() < deadline:  # however busy the machine is
            time.sleep(0.002)
        time.sleep(rng.choice((0.05, 0.3, 0.9)) * rng.random())
        if server is not None and kill_server:
            server.stop("immediate")
        else:
            writer.kill()
        status = writer.wait()
        lines = writer.lines()
        if server is not None and kill_server:
            if status != 1 or "CollectionUnavailableError" not in lines[-1].get("crash", ""):
                problems.append(f"kill {number}: the writer did not report that the server is gone: {lines[-1:]}")
            server.start()
        elif status != -9:
            problems.append(f"kill {number}: the writer failed: {lines[-1:]}")
        if server is not None:
            while not _clients(server) <= others:  # a commit that it has received may still be done
                time.sleep(0.02)
        expected.process(lines)
        try:
            found = fork_server.run("inspect", folder=place)
        except AssertionError as error:
            problems.append(f"kill {number}: it cannot be opened again: {error}")
            expected = None
            continue
        slowest = max(slowest, found.get("seconds", 0.0))
        problems += [f"kill {number}: {problem}" for problem in expected.compare(found)]
    return {
        "kills": kills,
        "commits_acknowledged": commits + (expected.acknowledged if expected else 0),
        "problems": problems,
        "slowest_reopening": round(slowest, 2),
        "seconds": round(time.monotonic() - start, 1),
    }


def _clients(server: PostgresServer) -> set[str]:
    """The processes of the server that serve a client; tests before may have left some."""
    query = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    return set(server.sql(query).split())
