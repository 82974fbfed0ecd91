"""Jobs for the snapshot trial: one replaces all documents in each commit, the others search."""

from __future__ import annotations

import random
import re
import traceback
from pathlib import Path

from support.torture.helpers import Report, open_collection, prose

ROUNDS = 10  # documents that each commit replaces, all of them


def write_rounds(report: Report, folder: str, rounds: int, stop: str) -> None:
    """Replace all documents in each commit (a round), and compact now and then."""
    place, rng = Path(folder), random.Random(6)
    (place / "rounds").mkdir(exist_ok=True)
    collection = open_collection(place / "c", dim=32)
    for number in range(rounds):
        for document in range(ROUNDS):
            text = prose(rng, f"Document {document} of round {number}", rng.choice((0, 0, 8)))
            (place / "rounds" / f"{document}.txt").write_text(text)
        collection.sync(place / "rounds")
        if number == 0:
            report({"begun": True})
        if number % 8 == 7:
            collection.compact()
    Path(stop).touch()
    report({"generation": collection.status().generation})


def read_rounds(report: Report, folder: str, searches: int, stop: str, seed: int) -> None:
    """Search until the writer has ended, but at least `searches` times; no search may see two rounds."""
    rng, problems = random.Random(seed), list[str]()
    collection = open_collection(Path(folder) / "c", dim=32)
    handle = collection.as_groups({"staff"}) if seed % 2 else collection
    asked, newest, seen = 0, 0, set[int]()
    while asked < searches or not Path(stop).exists():
        mode = rng.choice(("dense", "hybrid", "keyword"))
        filter = rng.choice((None, "source = rounds", "uri in (rounds/1.txt, rounds/2.txt, rounds/3.txt)"))
        # Words that many rounds share, and those of one that is over or about to come.
        query = f"Document {rng.randrange(ROUNDS)} of round {max(0, newest + rng.randint(-2, 2))}"
        try:
            hits = handle.search(query, k=rng.choice((5, 10, 60)), mode=mode, filter=filter)
            rounds = {int(match) for hit in hits for match in re.findall(r"of round (\d+)", hit.text)}
        except Exception:
            problems.append(f"search {asked}, {mode}, {filter}: {traceback.format_exc()[-1500:]}")
            rounds = set()
            if len(problems) > 20:
                break
        asked += 1
        seen |= rounds
        if len(rounds) > 1:
            problems.append(f"search {asked}, {mode}, {filter}: rounds {sorted(rounds)} in one answer")
        elif rounds and min(rounds) < newest:
            problems.append(f"search {asked}, {mode}: round {min(rounds)} after round {newest}")
        elif not rounds and mode != "keyword":
            problems.append(f"search {asked}, {mode}, {filter}: nothing found")
        newest = max([newest, *rounds])
    report({"asked": asked, "rounds": len(seen), "newest": newest, "problems": problems})
