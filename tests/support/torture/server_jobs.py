"""Jobs for the trial of servers: one fills and changes a collection, the others compare searches with an oracle."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from ragfm.core.types import Chunk, Document
from ragfm.store import filters
from ragfm.store.catalog import Source
from ragfm.store.document_rows import NewDocument
from ragfm.store.snapshot import Snapshot
from ragfm.store.tables import text_hash
from support.torture.helpers import WORDS, CachedHashingEmbedder, Report, open_collection

DIM, CHUNKS, K = 64, 50, 10  # of the vectors; chunks per document; hits
GROUPS = ("amber", "birch")
EMBEDDER = CachedHashingEmbedder(DIM)


def groups_of(document: int) -> tuple[str, ...] | None:
    """The groups that may see a document; None for everyone."""
    return (None, ("amber",), ("birch",), GROUPS)[document % 4]


def marker(document: int, version: int) -> str:
    """A word that only one version of one document has, without vowels, so that nothing is a suffix."""
    return "".join("bcdfghjkmn"[int(digit)] for digit in f"{document:05d}{version:05d}")


def texts(document: int, version: int) -> list[str]:
    """The chunks of a version of a document; restricted ones name a canary for each group."""
    rng, canaries = (
        random.Random(f"{document} {version}"),
        "".join(f"canary{one} " for one in groups_of(document) or ()),
    )
    name = f"{marker(document, version)} {canaries}"
    return [f"{name}{' '.join(rng.choices(WORDS, k=8))} c{number}.\n" for number in range(CHUNKS)]


def _new(document: int, version: int) -> NewDocument:
    parts = texts(document, version)
    at = np.cumsum([0, *map(len, parts)]).tolist()
    chunks = [Chunk(part, start, start + len(part)) for part, start in zip(parts, at, strict=False)]
    content = Document(f"s/{document}", "".join(parts), "text/plain", {"number": document})
    hashes = [text_hash(chunk.embedded_text) for chunk in chunks]
    return NewDocument(
        str(document), str(version), str(version), "", content, chunks, hashes, allow=groups_of(document)
    )


def write_versions(report: Report, place: str, folder: str, documents: int, seconds: float) -> None:
    """Fill a collection, then replace or remove documents in each commit, and say before what it will change."""
    plan, rng, live = Path(folder, "plan.jsonl"), random.Random(1), dict.fromkeys(range(documents), 0)
    collection = open_collection(place, dim=DIM)
    with collection._store.writing() as catalog:
        source = catalog.save_source(Source("s", "files", "s", "s"))

    def commit(changes: dict[int, int | None]) -> int:
        added = [_new(document, version) for document, version in changes.items() if version is not None]
        removed = [str(document) for document, version in changes.items() if version is None]
        with collection._store.writing() as catalog:
            generation = catalog.generation() + 1
            with plan.open("a") as file:
                file.write(json.dumps({"generation": generation, "changes": list(changes.items())}) + "\n")
            words = [chunk.text for new in added for chunk in new.chunks]
            if words:
                hashes = [one for new in added for one in new.hashes]
                catalog.add_vectors(catalog.at().contract_id, hashes, EMBEDDER.embed_passages(words))
            assert catalog.commit(source, added, removed) == generation
        return generation

    for first in range(0, documents, 100):
        commit(dict.fromkeys(range(first, min(first + 100, documents)), 0))
    report({"filled": collection.status().chunks})
    while not Path(folder, "go").exists():
        time.sleep(0.05)
    commits, versions, deadline = 0, 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        changes: dict[int, int | None] = {}
        for document in rng.sample(range(documents), 3):
            versions += 1
            changes[document] = None if document in live and rng.random() < 0.2 else versions
            live[document] = versions
            if changes[document] is None:
                del live[document]
        generation = commit(changes)
        commits += 1
        if commits % 40 == 0:
            collection.compact()
        time.sleep(0.2)
    Path(folder, "stop").touch()
    report({"commits": commits, "generation": generation})


class Oracle:
    """All chunks of the newest generation that was asked for, in arrays."""

    def __init__(self, folder: Path, documents: int) -> None:
        self._plan = (folder / "plan.jsonl").open()
        self._waiting: dict[str, Any] | None = None
        self.generation = 0
        self.version = np.full(documents, -1)
        self._text = np.full((documents, CHUNKS), "", dtype=object)
        self._vectors = np.zeros((documents, CHUNKS, DIM), dtype=np.float32)

    def go_to(self, generation: int) -> None:
        """Apply the plan up to a generation."""
        self.generation = generation
        while self._waiting or (line := self._plan.readline()):
            entry = self._waiting or json.loads(line)
            self._waiting = None
            if entry["generation"] > generation:
                self._waiting = entry
                return
            for document, version in entry["changes"]:
                self.version[document] = -1 if version is None else version
                if version is not None:
                    self._text[document] = texts(document, version)
                    self._vectors[document] = EMBEDDER.embed_passages(list(self._text[document]))

    def compare(self, query: str, hits: list[Any], *, groups: set[str] | None, below: int | None) -> list[str]:
        """What is wrong with the hits of a dense search among the documents below a number."""
        allowed = self.visible(groups)
        if below is not None:
            allowed &= np.arange(len(allowed)) < below
        rows = np.flatnonzero(allowed)
        scores = (self._vectors[rows] @ EMBEDDER.embed_queries([query])[0]).ravel()
        best = np.sort(np.partition(scores, -K)[-K:])[::-1]
        problems = [problem for hit in hits for problem in self.check(hit, groups)]
        found = np.array([hit.score for hit in hits], dtype=np.float32)
        if len(found) != K or not np.allclose(found, best, atol=1e-5):
            problems.append(f"scores {found.tolist()}, expected {best.tolist()}")
        if any(int(hit.uri[2:]) not in rows for hit in hits):
            problems.append("a hit is not among the documents of the filter")
        return problems

    def visible(self, groups: set[str] | None) -> Any:
        """A mask of the live documents that the groups may see; None for the owner."""
        seen = [groups is None or (names := groups_of(n)) is None or bool(groups & {*names}) for n in range(4)]
        return (self.version >= 0) & np.resize(seen, len(self.version))

    def check(self, hit: Any, groups: set[str] | None) -> list[str]:
        """What is wrong with a hit: of another generation, or of other groups."""
        document, number = int(hit.uri[2:]), int(hit.text.rstrip(".\n").rpartition(" c")[2])
        if not self.visible(groups)[document]:
            return [f"{hit.uri} is not visible"]
        return [] if self._text[document][number] == hit.text else [f"{hit.text!r} is of another version"]


def crosses(hit: Any, groups: set[str] | None) -> bool:
    """Whether the text has canaries, but none of the groups."""
    return groups is not None and "canary" in hit.text and not any(f"canary{one}" in hit.text for one in groups)


def read_versions(report: Report, place: str, folder: str, documents: int, seed: int) -> None:
    """Search until the writer has ended, and compare each search with the oracle at its generation."""
    rng, problems, generations = random.Random(seed), list[str](), list[int]()
    os.environ["XDG_CACHE_HOME"] = f"{folder}/machine-{seed}"
    collection, oracle = open_collection(place, dim=DIM), Oracle(Path(folder), documents)

    def recorded(search: Callable[..., Any]) -> Callable[..., Any]:
        def call(snapshot: Snapshot, *args: Any) -> Any:
            generations.append(snapshot.generation.id)
            return search(snapshot, *args)

        return call

    Snapshot.search, Snapshot.search_keywords = recorded(Snapshot.search), recorded(Snapshot.search_keywords)  # type: ignore[method-assign]
    searches, checks, crossings = dict.fromkeys(("dense", "hybrid", "keyword"), 0), 0, 0
    seen = set[int]()
    while not Path(folder, "stop").exists() and len(problems) < 20:
        groups = rng.choice((None, set[str](), {"amber"}, {"birch"}, {*GROUPS}))
        handle = collection if groups is None else collection.as_groups(groups)
        mode: Any = rng.choice(tuple(searches))
        below = rng.choice((None, documents // 2, documents // 10)) if mode == "dense" else None
        document = rng.randrange(documents)
        words = marker(document, max(0, int(oracle.version[document])))
        query = words if mode == "keyword" else f"{words} {' '.join(rng.choices(WORDS, k=4))}"
        hits = handle.search(
            query, 2 * CHUNKS if mode == "keyword" else K, mode=mode, filter=f"number < {below}" if below else None
        )
        if generations[-1] < oracle.generation:
            problems.append(f"generation {generations[-1]} after {oracle.generation}")
        oracle.go_to(generations[-1])
        seen.add(generations[-1])
        searches[mode] += 1
        checks += len(hits)
        crossings += sum(crosses(hit, groups) for hit in hits)
        if mode == "dense":
            wrong = oracle.compare(query, hits, groups=groups, below=below)
        else:
            wrong = [problem for hit in hits for problem in oracle.check(hit, groups)]
            of_marker = oracle.visible(groups)[document] and marker(document, oracle.version[document]) == words
            expected = CHUNKS * bool(of_marker) if mode == "keyword" else K
            wrong += [] if len(hits) == expected else [f"{len(hits)} hits, expected {expected}"]
        problems += [f"{mode}, {groups}, {below}, generation {generations[-1]}: {one}" for one in wrong[:3]]
        generations.clear()
        if sum(searches.values()) == 1:
            report({"ready": True})
    report(
        {
            "searches": searches,
            "generations": len(seen),
            "checks": checks,
            "crossings": crossings,
            "newest": oracle.generation,
            "problems": problems,
        }
    )


def search_canaries(report: Report, place: str, folder: str, checks: int, conditions: bool) -> None:
    """Search until that many hits are checked; without `conditions` on groups, as if they had been forgotten."""
    os.environ["XDG_CACHE_HOME"] = f"{folder}/machine-0"
    if not conditions:
        filters.visible_to = lambda _: sa.true()  # type: ignore[assignment]
    rng, collection = random.Random(2), open_collection(place, dim=DIM)
    done, crossings, hidden = 0, 0, 0
    while done < checks:
        groups = rng.choice((set[str](), {"amber"}, {"birch"}))
        query = " ".join(rng.choices([*WORDS, *(f"canary{one}" for one in GROUPS)], k=6))
        mode: Any = rng.choice(("dense", "hybrid", "keyword"))
        hits = collection.as_groups(groups).search(query, 50, mode=mode)
        done += len(hits)
        crossings += sum(crosses(hit, groups) for hit in hits)
        if rng.random() < 0.05:
            hidden += sum(crosses(hit, groups) for hit in collection.search(query, 50, mode=mode))
    report({"checks": done, "crossings": crossings, "hidden_hits_of_the_owner": hidden})
