"""The snapshot trial: readers in several processes next to a writer that replaces everything in each commit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from support.torture.fork_server import ForkServer


def snapshots(fork_server: ForkServer, folder: Path, commits: int, searches: int, readers: int = 4) -> dict[str, Any]:
    """Run `commits` commits and at least `searches` searches in all. Returns counts and `problems`."""
    start, stop = time.monotonic(), folder / "stop"
    writer = fork_server.start("write_rounds", folder=folder, rounds=commits, stop=stop)
    while not writer.lines():
        time.sleep(0.01)
    share = -(-searches // readers)
    reader_processes = [
        fork_server.start("read_rounds", folder=folder, searches=share, stop=stop, seed=seed) for seed in range(readers)
    ]
    problems = []
    try:
        writer.result()
    except AssertionError as error:
        problems.append(f"the writer: {error}")
        stop.touch()
    results = []
    for number, reader in enumerate(reader_processes):
        try:
            results.append(reader.result())
        except AssertionError as error:
            problems.append(f"reader {number}: {error}")
    for number, result in enumerate(results):
        problems += [f"reader {number}: {problem}" for problem in result["problems"]]
        if result["newest"] != commits - 1:
            problems.append(f"reader {number} did not see the last round, but {result['newest']}")
    return {
        "readers": readers,
        "commits": commits,
        "searches": sum(result["asked"] for result in results),
        "rounds_seen": [result["rounds"] for result in results],
        "problems": problems,
        "seconds": round(time.monotonic() - start, 1),
    }
