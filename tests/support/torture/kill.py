"""The kill trial: a writer is killed at random times; everything it acknowledged must be there."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

from support.torture.expected_state import SOURCES, ExpectedState
from support.torture.fork_server import ForkServer

_KILLS_PER_COLLECTION = 40  # then a new collection starts, so that its creation is interrupted too


def kill(fork_server: ForkServer, folder: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill a writer `kills` times. Returns counts, and `problems`: what was lost or incomplete."""
    rng, start = random.Random(seed), time.monotonic()
    expected, problems, commits, slowest = ExpectedState(), list[str](), 0, 0.0
    for number in range(kills):
        if number % _KILLS_PER_COLLECTION == 0:
            commits += expected.acknowledged
            expected = ExpectedState()
            for place in ("c", *SOURCES):
                shutil.rmtree(folder / place, ignore_errors=True)
        writer = fork_server.start("ingest", folder=folder, seed=rng.randrange(10**9))
        time.sleep(rng.choice((0.05, 0.3, 0.9)) * rng.random())
        writer.kill()
        status = writer.wait()
        lines = writer.lines()
        if status != -9:
            problems.append(f"kill {number}: the writer failed: {lines[-1:]}")
        expected.process(lines)
        try:
            found = fork_server.run("inspect", folder=folder / "c")
        except AssertionError as error:
            problems.append(f"kill {number}: it cannot be opened again: {error}")
            expected = ExpectedState()
            for place in ("c", *SOURCES):
                shutil.rmtree(folder / place, ignore_errors=True)
            continue
        slowest = max(slowest, found.get("seconds", 0.0))
        problems += [f"kill {number}: {problem}" for problem in expected.compare(found)]
    return {
        "kills": kills,
        "commits_acknowledged": commits + expected.acknowledged,
        "problems": problems,
        "slowest_reopening": round(slowest, 2),
        "seconds": round(time.monotonic() - start, 1),
    }
