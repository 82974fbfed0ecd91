"""The snapshot trial: readers in several processes beside a writer that replaces everything with each commit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from support.torture.nursery import Nursery


def snapshots(nursery: Nursery, folder: Path, commits: int, searches: int, readers: int = 4) -> dict[str, Any]:
    """So many commits and, in all, at least so many searches. Gives counts, and `problems`: mixed rounds and errors."""
    start, stop = time.monotonic(), folder / "stop"
    writer = nursery.start("write_rounds", folder=folder, rounds=commits, stop=stop)
    while not writer.lines():
        time.sleep(0.01)
    share = -(-searches // readers)
    reading = [
        nursery.start("read_rounds", folder=folder, searches=share, stop=stop, seed=seed) for seed in range(readers)
    ]
    problems = []
    try:
        writer.result()
    except AssertionError as error:
        problems.append(f"the writer: {error}")
        stop.touch()
    said = []
    for number, reader in enumerate(reading):
        try:
            said.append(reader.result())
        except AssertionError as error:
            problems.append(f"reader {number}: {error}")
    for number, one in enumerate(said):
        problems += [f"reader {number}: {problem}" for problem in one["problems"]]
        if one["newest"] != commits - 1:
            problems.append(f"reader {number} has never seen the last round, but {one['newest']}")
    return {
        "readers": readers,
        "commits": commits,
        "searches": sum(one["asked"] for one in said),
        "rounds_seen": [one["rounds"] for one in said],
        "problems": problems,
        "seconds": round(time.monotonic() - start, 1),
    }
