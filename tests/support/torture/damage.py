"""The damage trial: files rot in every way; what is read is what was written, or an error says which file it is."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.torture.nursery import Nursery

PAGE = 4096
_REPAIRED = 10  # each so many-th damaged view is repaired
_IRRELEVANT = ("LOCK", "LOCK.holder")


def damage(
    nursery: Nursery, folder: Path, flips: int, zeroed: int, cuts: int, *, seed: int = 0, only: str = ""
) -> dict[str, Any]:
    """Damage every file of a collection so many times. Gives outcomes by file, and `problems`: what was silent.

    `only` picks files by what is in their names.

    Once for a collection that was closed, once for one whose writer was killed, with its write-ahead log.
    """
    start, problems = time.monotonic(), list[str]()
    outcomes: dict[str, Counter[str]] = {}
    nursery.run("furnish", folder=folder)
    for place in ("c", "log"):
        if place == "log":
            nursery.run("furnish_log", folder=folder)
        whole = folder / place
        expected = nursery.run("answer", folder=_copied(whole, folder / "work"))
        assert not expected["warnings"], expected["warnings"]
        assert not any(isinstance(r, dict) and ("error" in r or "crash" in r) for r in expected["results"].values())
        rng = random.Random(seed)
        files = sorted(
            file
            for file in whole.rglob("*")
            if file.is_file() and file.name not in _IRRELEVANT and only in f"{place}: {file.name}"
        )
        for file in files:
            name = f"{place}: {file.name}"
            outcomes[name] = Counter()
            for what, data in damages(rng, file.read_bytes(), flips, zeroed, cuts):
                work = _copied(whole, folder / "work")
                damaged = work / file.relative_to(whole)
                damaged.unlink() if data is None else damaged.write_bytes(data)
                try:
                    found = nursery.run("answer", folder=work)
                except AssertionError as error:
                    outcomes[name]["crash"] += 1
                    problems.append(f"{name}, {what}: {error}")
                    continue
                outcome, why = judge(found, expected, work)
                outcomes[name][outcome] += 1
                if why:
                    problems.append(f"{name}, {what}: {why}")
                if "views" in damaged.parts and sum(outcomes[name].values()) % _REPAIRED == 1:
                    problems += [f"{name}, {what}: {why}" for why in _repaired(nursery, work, expected)]
    return {
        "outcomes": {name: dict(counts) for name, counts in outcomes.items()},
        "damaged": sum(sum(counts.values()) for counts in outcomes.values()),
        "problems": problems,
        "seconds": round(time.monotonic() - start, 1),
    }


def damages(rng: random.Random, whole: bytes, flips: int, zeroed: int, cuts: int) -> Iterator[tuple[str, bytes | None]]:
    """Flipped bits, zeroed pages, cuts and removal, each in words and as the file's content after it."""
    yield "removed", None
    if not whole:
        return
    for _ in range(flips):
        at, bit = rng.randrange(len(whole)), rng.randrange(8)
        yield f"bit {bit} of byte {at} flipped", whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]
    pages = range(-(-len(whole) // PAGE))
    for page in rng.sample(pages, min(zeroed, len(pages))):
        at = page * PAGE
        end = min(at + PAGE, len(whole))
        if any(whole[at:end]):
            yield f"page {page + 1} zeroed", whole[:at] + bytes(end - at) + whole[end:]
    for _ in range(cuts):
        at = rng.randrange(len(whole))
        yield f"cut to {at} bytes", whole[:at]


def judge(found: Any, expected: Any, work: Path) -> tuple[str, str]:
    """What came of it: `noticed` (by an error that names the place), `warned` or `same`; and what is wrong with it."""
    outcome = "warned" if found["warnings"] else "same"
    for name, result in found["results"].items():
        if isinstance(result, dict) and "crash" in result:
            return "crash", f"{name}: {' | '.join(result['crash'].splitlines()[-1:])} {_where(result['crash'])}"
        if isinstance(result, dict) and "error" in result:
            outcome = "noticed"
            if str(work) not in result["message"]:
                return "noticed", f"{name}: the error does not say where: {result}"
            if result["error"] not in ("DamagedCollectionError", "CollectionError", "CollectionNotFound"):
                return "noticed", f"{name}: {result}"
        elif result != expected["results"][name]:
            return "silent", f"{name}: {_difference(result, expected['results'][name])}"
    return outcome, ""


def _repaired(nursery: Nursery, work: Path, expected: Any) -> list[str]:
    """What is still wrong after a repair, of which nobody should have to be warned any more."""
    nursery.run("answer", folder=work, repair=True)
    found = nursery.run("answer", folder=work)
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


def _copied(whole: Path, work: Path) -> Path:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(whole, work)
    return work
