"""How well a collection finds what questions should find, and how fast."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfm.core.errors import DataError, TooLongError
from ragfm.evaluation.metrics import (
    TOP,
    Estimate,
    Ranked,
    estimate_means,
    estimate_percentiles,
    measures_of,
    rank_hits,
)
from ragfm.evaluation.question_sets import Gold, Question, fingerprint
from ragfm.evaluation.run_file import asked, kept

if TYPE_CHECKING:
    from ragfm.collection import Collection
    from ragfm.core.types import Hit
    from ragfm.evaluation.corpus import TimedEmbedder
    from ragfm.retrieval.search import Mode

_DEEPEST = 16  # times k passages, that are searched for k documents


@dataclass(frozen=True, slots=True)
class QuestionResult:
    """What one question found. `rank` of the first gold counts from 1, None where it is not among the first k.

    `ms` is how long a search for ten hits took, `embed_ms` how much of it went into the question's vector, where that
    is known. `error` says why the question could not be asked; it has found nothing then.
    """

    id: str
    question: str
    gold: tuple[Gold, ...]
    measures: Mapping[str, float]
    rank: int | None
    ms: float | None
    embed_ms: float | None
    ranked: tuple[Ranked, ...]
    error: str | None = None

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> QuestionResult:
        """From a line of a run's file, which is a result as JSON."""
        gold = tuple(Gold(**gold) for gold in record["gold"])
        return cls(**{**record, "gold": gold, "ranked": tuple(Ranked(**place) for place in record["ranked"])})


@dataclass(frozen=True, slots=True)
class RetrievalReport:
    """A run. `about` says what was asked of what; `measures` are means over all questions.

    `latency_ms` and `embed_ms` have the percentiles p50, p95 and p99 in milliseconds.
    """

    about: Mapping[str, Any]
    results: tuple[QuestionResult, ...]
    measures: Mapping[str, Estimate]
    latency_ms: Mapping[str, Estimate]
    embed_ms: Mapping[str, Estimate]
    missing: tuple[str, ...] = field(default=())
    """Documents that should be found and are not in the collection."""

    @property
    def stopped(self) -> bool:
        """Whether a Ctrl-C came before all questions were asked."""
        return len(self.results) < int(self.about["questions"]["count"])


def evaluate_retrieval(
    collection: Collection,
    questions: Sequence[Question],
    *,
    mode: Mode = "hybrid",
    k: int = 100,
    out: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    stopwatch: TimedEmbedder | None = None,
    progress: Callable[[int, int], None] | None = None,
    partial: bool = False,
) -> RetrievalReport:
    """Ask a collection all questions, and measure the first `k` places of what each finds.

    The places are what `search` gives for ten hits, and below them what deeper searches add. With `out`, each question
    is written to that file when it is done, and a run that was interrupted goes on there. `about` is kept with it.
    `stopwatch` is the embedder that the collection was opened with, if its share of the time is to be known. With
    `partial`, a Ctrl-C gives the report on what was asked until then, if anything was.

    A question too long for the embedder counts as one that found nothing. Raises DataError where none of the documents
    that should be found is in the collection, and where `out` is of another run.
    """
    if k < TOP or not questions:
        raise ValueError(f"k is {k}, at least {TOP} is needed; and {len(questions)} questions, at least one")
    known, digest = content_of(collection)
    missing = sorted({gold.uri for question in questions for gold in question.gold} - known)
    if missing and len(missing) == len({gold.uri for question in questions for gold in question.gold}):
        raise DataError(
            f"None of the {len(missing)} documents that should be found is in {collection.path}: {missing[0]!r}, …",
            "`ragfm documents` lists the addresses there; name the collection with -c.",
        )
    facts = {
        "run": "retrieval",
        "mode": mode,
        "k": k,
        "questions": {"count": len(questions), "digest": fingerprint(questions)},
        **collection_facts(collection, digest),
        "settings": collection.settings.model_dump(mode="json", exclude={"sources", "reader", "ask", "files"}),
        **(about or {}),
    }
    done = kept(out, facts)
    if len(done) < len(questions):
        _warm_up(collection, questions[0], mode)
    records = asked(
        questions, lambda one: asdict(_ask(collection, one, mode, k, stopwatch)), done, out, progress, partial=partial
    )
    results = [QuestionResult.from_json(record) for record in records]
    return _report(facts, results, missing)


def first_ranks(results: Sequence[QuestionResult]) -> dict[str, int]:
    """How many questions have their first gold at which rank, and `none` of them nowhere."""
    bounds = ((1, 1), (2, 2), (3, 3), (4, 5), (6, 10), (11, 20), (21, 50), (51, 100), (101, None))
    counts = {}
    for low, high in bounds:
        count = sum(r.rank is not None and low <= r.rank <= (high or r.rank) for r in results)
        if count or (high and high <= TOP):
            counts[f"{low}" if low == high else f"{low}–{high}" if high else f"over {low - 1}"] = count
    return {**counts, "none": sum(result.rank is None for result in results)}


# --- Inside ------------------------------------------------------------------------------------------------------


def content_of(collection: Collection) -> tuple[set[str], str]:
    """The addresses of a collection's documents, and a hash of what is in it."""
    digest, known = blake2b(digest_size=16), set()
    for document in collection.documents():
        known.add(document.uri)
        digest.update(json.dumps([document.uri, document.digest, document.chunks]).encode())
    return known, digest.hexdigest()


def collection_facts(collection: Collection, digest: str) -> dict[str, Any]:
    """What a run was over: the version, what the collection holds, and its embedder."""
    from ragfm import __version__

    status = collection.status()
    return {
        "ragfm": __version__,
        "collection": {"documents": status.documents, "chunks": status.chunks, "digest": digest},
        "embedder": dict(status.embedder),
    }


def _warm_up(collection: Collection, question: Question, mode: Mode) -> None:
    """Load the model and the index, so that this isn't in the first question's time."""
    try:
        collection.search(question.text, TOP, mode=mode)
    except TooLongError:
        return


def _ask(
    collection: Collection, question: Question, mode: Mode, k: int, stopwatch: TimedEmbedder | None
) -> QuestionResult:  # fmt: skip
    before = stopwatch.seconds if stopwatch else 0.0
    start = time.perf_counter()
    try:
        hits = collection.search(question.text, TOP, mode=mode)
    except TooLongError as error:
        nothing = measures_of((), {}, k)
        return QuestionResult(question.id, question.text, question.gold, nothing, None, None, None, (), error.message)
    ms = 1000 * (time.perf_counter() - start)
    embed_ms = 1000 * (stopwatch.seconds - before) if stopwatch else None
    places, grades = rank_hits(question, _deepened(collection, question, hits, mode, k), k)
    rank = next((rank for rank, place in enumerate(places, 1) if place.gold is not None), None)
    return QuestionResult(
        id=question.id,
        question=question.text,
        gold=question.gold,
        measures=measures_of(places, grades, k),
        rank=rank,
        ms=round(ms, 3),
        embed_ms=None if embed_ms is None else round(embed_ms, 3),
        ranked=tuple(places),
    )


def _deepened(collection: Collection, question: Question, hits: Sequence[Hit], mode: Mode, k: int) -> list[Hit]:
    """The hits, and below them others until there are `k` places.

    What a search ranks first may depend on how many it is asked for, so the places that users see stay as they are.
    """
    all_hits = {hit.chunk_id: hit for hit in hits}
    asked, got, wanted = TOP, len(hits), max(k, 2 * TOP)
    while got == asked and wanted <= _DEEPEST * k:
        if len(all_hits if question.by_passage else {hit.uri for hit in all_hits.values()}) >= k:
            break
        more = collection.search(question.text, wanted, mode=mode)
        for hit in more:
            all_hits.setdefault(hit.chunk_id, hit)
        asked, got, wanted = wanted, len(more), 2 * wanted
    return list(all_hits.values())


def _report(about: Mapping[str, Any], results: Sequence[QuestionResult], missing: Sequence[str]) -> RetrievalReport:
    import numpy as np

    names = list(results[0].measures)
    values = np.array([[result.measures[name] for name in names] for result in results], dtype=np.float64)
    return RetrievalReport(
        about=about,
        results=tuple(results),
        measures=dict(zip(names, estimate_means(values), strict=True)),
        latency_ms=estimate_percentiles([result.ms for result in results if result.ms is not None]),
        embed_ms=estimate_percentiles([result.embed_ms for result in results if result.embed_ms is not None]),
        missing=tuple(missing),
    )
