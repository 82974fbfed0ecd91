"""The damage trial: each file is damaged in many ways. A read returns the written data or an error names the file."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.torture.fork_server import ForkServer

PAGE = 4096
_REPAIR_EVERY = 10  # damaged views
_IRRELEVANT = ("LOCK", "LOCK.holder")


def damage(
    fork_server: ForkServer, folder: Path, flips: int, zeroed: int, cuts: int, *, seed: int = 0, only: str = ""
) -> dict[str, Any]:
    """Flip `flips` bits of every file of a collection, zero `zeroed` pages, and cut it `cuts` times.

    Runs on a closed collection, and on one with a write-ahead log, as a killed writer leaves it. `only` selects files
    whose name contains it. Returns the outcomes by file, and `problems`: silent damage, crashes, bad errors.
    """
    start, problems = time.monotonic(), list[str]()
    outcomes: dict[str, Counter[str]] = {}
    fork_server.run("furnish", folder=folder)
    for place in ("c", "log"):
        if place == "log":
            fork_server.run("furnish_log", folder=folder)
        original = folder / place
        expected = fork_server.run("answer", folder=_copy(original, folder / "work"))
        assert not expected["warnings"], expected["warnings"]
        assert not any(isinstance(r, dict) and ("error" in r or "crash" in r) for r in expected["results"].values())
        rng = random.Random(seed)
        files = sorted(
            file
            for file in original.rglob("*")
            if file.is_file() and file.name not in _IRRELEVANT and only in f"{place}: {file.name}"
        )
        for file in files:
            name = f"{place}: {file.name}"
            outcomes[name] = Counter()
            for what, data in damaged_versions(rng, file.read_bytes(), flips, zeroed, cuts):
                work = _copy(original, folder / "work")
                damaged = work / file.relative_to(original)
                damaged.unlink() if data is None else damaged.write_bytes(data)
                try:
                    found = fork_server.run("answer", folder=work)
                except AssertionError as error:
                    outcomes[name]["crash"] += 1
                    problems.append(f"{name}, {what}: {error}")
                    continue
                outcome, why = judge(found, expected, work)
                outcomes[name][outcome] += 1
                if why:
                    problems.append(f"{name}, {what}: {why}")
                if "views" in damaged.parts and sum(outcomes[name].values()) % _REPAIR_EVERY == 1:
                    problems += [f"{name}, {what}: {why}" for why in _repaired(fork_server, work, expected)]
    return {
        "outcomes": {name: dict(counts) for name, counts in outcomes.items()},
        "damaged": sum(sum(counts.values()) for counts in outcomes.values()),
        "problems": problems,
        "seconds": round(time.monotonic() - start, 1),
    }


def damaged_versions(
    rng: random.Random, original: bytes, flips: int, zeroed: int, cuts: int
) -> Iterator[tuple[str, bytes | None]]:
    """A description of each damage (removal, flipped bits, zeroed pages, cuts) and the damaged content."""
    yield "removed", None
    if not original:
        return
    for _ in range(flips):
        at, bit = rng.randrange(len(original)), rng.randrange(8)
        yield f"bit {bit} of byte {at} flipped", original[:at] + bytes([original[at] ^ (1 << bit)]) + original[at + 1 :]
    pages = range(-(-len(original) // PAGE))
    for page in rng.sample(pages, min(zeroed, len(pages))):
        at = page * PAGE
        end = min(at + PAGE, len(original))
        if any(original[at:end]):
            yield f"page {page + 1} zeroed", original[:at] + bytes(end - at) + original[end:]
    for _ in range(cuts):
        at = rng.randrange(len(original))
        yield f"cut to {at} bytes", original[:at]


def judge(found: Any, expected: Any, work: Path) -> tuple[str, str]:
    """The outcome (`noticed` by an error, `warned`, `same`, `silent` or `crash`) and the problem, if any."""
    outcome = "warned" if found["warnings"] else "same"
    for name, result in found["results"].items():
        if isinstance(result, dict) and "crash" in result:
            return "crash", f"{name}: {' | '.join(result['crash'].splitlines()[-1:])} {_where(result['crash'])}"
        if isinstance(result, dict) and "error" in result:
            outcome = "noticed"
            if str(work) not in result["message"]:
                return "noticed", f"{name}: the error does not name the collection: {result}"
            if result["error"] not in ("DamagedCollectionError", "CollectionError", "CollectionNotFound"):
                return "noticed", f"{name}: {result}"
        elif result != expected["results"][name]:
            return "silent", f"{name}: {_difference(result, expected['results'][name])}"
    return outcome, ""


def _repaired(fork_server: ForkServer, work: Path, expected: Any) -> list[str]:
    """Problems that remain after a repair, warnings included."""
    fork_server.run("answer", folder=work, repair=True)
    found = fork_server.run("answer", folder=work)
    outcome, why = judge(found, expected, work)
    return [] if outcome == "same" else [f"after the repair: {outcome} {why} {found['warnings']}"]


def _where(trace: str) -> str:
    lines = [line.strip() for line in trace.splitlines() if "/ragfm" in line and "File" in line]
    return " | ".join(lines[-3:])


def _difference(found: Any, expected: Any) -> str:
    if isinstance(found, list) and isinstance(expected, list):
        for one, other in zip(found, expected, strict=False):
            if one != other:
                return f"{one!r:.300}, expected {other!r:.300}"
        return f"{len(found)} instead of {len(expected)}"
    return f"{found!r:.300}, expected {expected!r:.300}"


def _copy(original: Path, work: Path) -> Path:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(original, work)
    return work
