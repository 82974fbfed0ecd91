"""Evaluate retrieval: how well a collection finds the gold of labelled questions, and how fast."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from ragfm import __version__
from ragfm.collection import Collection
from ragfm.core.errors import DataError, TooLongError
from ragfm.core.progress import ProgressCallback
from ragfm.evaluation.metrics import (
    CUTOFF,
    Estimate,
    Ranked,
    estimate_means,
    estimate_percentiles,
    rank_hits,
    ranking_measures,
)
from ragfm.evaluation.question_sets import Gold, Question, fingerprint
from ragfm.evaluation.run_file import load_finished, parse_records, run_questions
from ragfm.retrieval.search import Mode

_MAX_DEPTH_FACTOR = 16  # passages searched for k documents, as a multiple of k


@dataclass(frozen=True, slots=True)
class QuestionResult:
    """The ranking of one question and its measures.

    - `rank`: rank of the first gold, from 1; None if it is not among the first k.
    - `ms`: time of a search for ten hits in milliseconds; None if the search failed.
    - `error`: why the question could not be searched for; its measures are 0 then.
    """

    id: str
    question: str
    gold: tuple[Gold, ...]
    measures: Mapping[str, float]
    rank: int | None
    ms: float | None
    ranked: tuple[Ranked, ...]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RetrievalReport:
    """A run. `about` describes data, collection and settings; `measures` are means over all questions.

    `latency_ms` has the percentiles `p50`, `p95` and `p99` in milliseconds.
    """

    about: Mapping[str, Any]
    results: tuple[QuestionResult, ...]
    measures: Mapping[str, Estimate]
    latency_ms: Mapping[str, Estimate]
    missing: tuple[str, ...] = ()
    """Gold documents that are not in the collection."""

    @property
    def stopped(self) -> bool:
        """Whether a Ctrl-C ended the run early."""
        return len(self.results) < int(self.about["questions"]["count"])


def evaluate_retrieval(
    collection: Collection,
    questions: Sequence[Question],
    *,
    mode: Mode = "hybrid",
    k: int = 100,
    out: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: ProgressCallback | None = None,
    partial: bool = False,
) -> RetrievalReport:
    """Search a collection for all questions, and measure the first `k` places of each ranking.

    The first ten hits are those of a search for ten; deeper searches add the places below them. A question too long
    for the embedder has no hits.

    - `out`: run file; each question is written to it when it is finished, and an interrupted run is resumed from it.
    - `about`: further facts to store in the report and the run file.
    - `partial`: a Ctrl-C returns the report on the questions so far, if there are any.

    Raises DataError if no gold document is in the collection, and if `out` belongs to a different run.
    """
    if k < CUTOFF or not questions:
        raise ValueError(f"k must be {CUTOFF} or more, not {k}, and there must be questions, not {len(questions)}")
    uris, digest = collection_content(collection)
    missing = missing_gold(collection, uris, questions)
    facts = {
        "run": "retrieval",
        "mode": mode,
        "k": k,
        "questions": {"count": len(questions), "digest": fingerprint(questions)},
        **collection_facts(collection, digest),
        "settings": collection.settings.model_dump(mode="json", exclude={"sources", "reader", "ask", "files"}),
        **(about or {}),
    }
    finished = load_finished(out, facts)
    if len(finished) < len(questions):
        with suppress(TooLongError):  # loads model and index, so that the first question's time does not include it
            collection.search(questions[0].text, CUTOFF, mode=mode)
    records = run_questions(
        questions,
        lambda question: asdict(_search(collection, question, mode, k)),
        finished,
        out,
        stage="searching",
        progress=progress,
        partial=partial,
    )
    results = parse_records(QuestionResult, records)
    names = list(results[0].measures)
    values = np.array([[result.measures[name] for name in names] for result in results], dtype=np.float64)
    return RetrievalReport(
        about=facts,
        results=tuple(results),
        measures=dict(zip(names, estimate_means(values), strict=True)),
        latency_ms=estimate_percentiles([result.ms for result in results if result.ms is not None]),
        missing=missing,
    )


def first_ranks(results: Sequence[QuestionResult]) -> dict[str, int]:
    """The number of questions by the rank of their first gold, in ranges; `none` counts those without."""
    ranges = ((1, 1), (2, 2), (3, 3), (4, 5), (6, 10), (11, 20), (21, 50), (51, 100), (101, None))
    counts = {}
    for low, high in ranges:
        count = sum(result.rank is not None and low <= result.rank <= (high or result.rank) for result in results)
        if count or (high and high <= CUTOFF):
            counts[f"{low}" if low == high else f"{low}–{high}" if high else f"over {low - 1}"] = count
    return {**counts, "none": sum(result.rank is None for result in results)}


def missing_gold(collection: Collection, uris: Set[str], questions: Sequence[Question]) -> tuple[str, ...]:
    """The gold documents that are not among the addresses of a collection. Raises DataError if none is there."""
    gold_uris = {gold.uri for question in questions for gold in question.gold}
    missing = sorted(gold_uris - uris)
    if missing and len(missing) == len(gold_uris):
        raise DataError(
            f"None of the {len(missing)} gold documents is in {collection.path}, for example {missing[0]!r}.",
            "`ragfm documents --json` lists the uris there, not only the names; name the collection with -c.",
        )
    return tuple(missing)


def collection_content(collection: Collection) -> tuple[set[str], str]:
    """The addresses of a collection's documents, and a hash of its content."""
    digest, uris = blake2b(digest_size=16), set()
    for document in collection.documents():
        uris.add(document.uri)
        digest.update(json.dumps([document.uri, document.digest, document.chunks]).encode())
    return uris, digest.hexdigest()


def collection_facts(collection: Collection, digest: str) -> dict[str, Any]:
    """The facts of a run about the collection: version of ragfm, size, `digest` of the content, and embedder."""
    status = collection.status()
    return {
        "ragfm": __version__,
        "collection": {"documents": status.documents, "chunks": status.chunks, "digest": digest},
        "embedder": dict(status.embedder),
    }


def _search(collection: Collection, question: Question, mode: Mode, k: int) -> QuestionResult:
    start = time.perf_counter()
    try:
        hits = collection.search(question.text, CUTOFF, mode=mode)
    except TooLongError as error:
        zeros = ranking_measures((), {}, k)
        return QuestionResult(question.id, question.text, question.gold, zeros, None, None, (), error.message)
    ms = 1000 * (time.perf_counter() - start)

    # Deeper searches add hits until there are `k` places. The order of the first hits may depend on the number that is
    # searched for, so they stay as users see them.
    all_hits = {hit.chunk_id: hit for hit in hits}
    depth, returned, next_depth = CUTOFF, len(hits), max(k, 2 * CUTOFF)
    while returned == depth and next_depth <= _MAX_DEPTH_FACTOR * k:
        if k <= (len(all_hits) if question.by_passage else len({hit.uri for hit in all_hits.values()})):
            break
        deeper_hits = collection.search(question.text, next_depth, mode=mode)
        for hit in deeper_hits:
            all_hits.setdefault(hit.chunk_id, hit)
        depth, returned, next_depth = next_depth, len(deeper_hits), 2 * next_depth

    places, grades = rank_hits(question, list(all_hits.values()), k)
    return QuestionResult(
        id=question.id,
        question=question.text,
        gold=question.gold,
        measures=ranking_measures(places, grades, k),
        rank=next((rank for rank, place in enumerate(places, 1) if place.gold is not None), None),
        ms=round(ms, 3),
        ranked=tuple(places),
    )
