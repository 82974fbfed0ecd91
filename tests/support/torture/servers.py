"""The trial of servers: processes with caches of their own search a collection that another process changes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from support.postgres_server import PostgresServer
from support.torture.fork_server import ForkServer
from support.torture.server_jobs import CHUNKS


def servers(
    fork_server: ForkServer, folder: Path, server: PostgresServer, seconds: float, chunks: int, checks: int
) -> dict[str, Any]:
    """Let two processes search for `seconds`. Returns counts and `problems`.

    Then one looks for canaries in `checks` hits of restricted handles, and again without conditions on groups.
    """
    start, documents, problems = time.monotonic(), chunks // CHUNKS, list[str]()
    parts = {"place": server.address("torture"), "folder": folder}
    writer = fork_server.start("write_versions", **parts, documents=documents, seconds=seconds)
    while not writer.lines():
        time.sleep(0.1)
    readers = [fork_server.start("read_versions", **parts, documents=documents, seed=seed) for seed in range(2)]
    while not all(reader.lines() for reader in readers):  # the views are built
        time.sleep(0.1)
    (folder / "go").touch()
    written = writer.result()
    results = [reader.result() for reader in readers]
    for number, result in enumerate(results):
        problems += [f"reader {number}: {problem}" for problem in result["problems"]]
        if result["crossings"]:
            problems.append(f"reader {number}: {result['crossings']} hits of other groups")
    canaries = {}
    for name, conditions in (("with_conditions", True), ("without_conditions", False)):
        found = fork_server.run("search_canaries", **parts, checks=checks, conditions=conditions)
        if found["crossings"] or not found["hidden_hits_of_the_owner"]:
            problems.append(f"{name}: {found}")
        canaries[name] = found
    return {
        "chunks": chunks,
        "commits": written["commits"],
        "searches": {mode: sum(result["searches"][mode] for result in results) for mode in results[0]["searches"]},
        "generations_searched": [result["generations"] for result in results],
        "checks": sum(result["checks"] for result in results),
        "crossings": sum(result["crossings"] for result in results),
        **canaries,
        "problems": problems,
        "seconds": round(time.monotonic() - start, 1),
    }
