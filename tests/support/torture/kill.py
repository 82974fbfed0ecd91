"""The kill trial: a writer is killed at random times, over and over; what it had acknowledged is there."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import Any

from support.torture.nursery import Nursery
from support.torture.truth import SOURCES, Truth

_LIVES = 40  # kills that a collection goes through before a new one is made, so that making one is killed too


def kill(nursery: Nursery, folder: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill a writer so many times. Gives counts, and under `problems` what was lost or half there."""
    rng, start = random.Random(seed), time.monotonic()
    truth, problems, commits, slowest = Truth(), list[str](), 0, 0.0
    for number in range(kills):
        if number % _LIVES == 0:
            commits += truth.acknowledged
            truth = Truth()
            for place in ("c", *SOURCES):
                shutil.rmtree(folder / place, ignore_errors=True)
        writer = nursery.start("ingest", folder=folder, seed=rng.randrange(10**9))
        time.sleep(rng.choice((0.05, 0.3, 0.9)) * rng.random())
        writer.kill()
        status = writer.wait()
        lines = writer.lines()
        if status != -9:
            problems.append(f"kill {number}: the writer failed: {lines[-1:]}")
        truth.hear(lines)
        try:
            found = nursery.run("inspect", folder=folder / "c")
        except AssertionError as error:
            problems.append(f"kill {number}: it can't be opened again: {error}")
            truth = Truth()
            for place in ("c", *SOURCES):
                shutil.rmtree(folder / place, ignore_errors=True)
            continue
        slowest = max(slowest, found.get("seconds", 0.0))
        problems += [f"kill {number}: {problem}" for problem in truth.against(found)]
    return {
        "kills": kills,
        "commits_acknowledged": commits + truth.acknowledged,
        "problems": problems,
        "slowest_reopening": round(slowest, 2),
        "seconds": round(time.monotonic() - start, 1),
    }
