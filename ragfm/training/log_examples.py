"""Training examples from the answer log: answers that users rated good or corrected.

log entry ─search→ current passages ─ground→ the sentences that they support, with markers → example
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ragfm.answering.decision import ground
from ragfm.core.abstention import ABSTENTION, is_abstention
from ragfm.core.errors import TooLongError
from ragfm.core.types import Hit
from ragfm.evaluation.log_questions import right_answer
from ragfm.generation.log_entries import LogEntry
from ragfm.rag import Rag
from ragfm.training.examples import Example, supported_answer
from ragfm.training.held_out import HeldOut

_DEPTH_FACTOR = 8  # hits searched for each passage that is shown


def examples_from_log(
    rag: Rag,
    entries: Sequence[LogEntry],
    *,
    held_out: HeldOut = HeldOut(),  # noqa: B008  frozen
) -> tuple[list[Example], Counter[str]]:
    """Examples from judged entries, with the prompts that `rag` builds now; and counts of the other entries by reason.

    An entry becomes an example if current passages support at least one sentence of its answer.
    """
    examples, left_out = [], Counter[str]()
    hidden = held_out.document_uris(rag.collection)
    for entry in entries:
        if held_out.contains_question(entry.query):
            left_out["log: held out: the question"] += 1
            continue
        if is_abstention(right_answer(entry)):
            known = {passage["chunk_id"] for passage in entry.passages}
            passages, _ = rag.choose(_search(rag, entry.query))
            if any(hit.chunk_id not in known for hit in passages):
                left_out["log: not known then, and other passages are found now"] += 1
                continue
        with suppress(TooLongError):
            if example := _make_example(rag, entry, hidden):
                examples.append(example)
                continue
        left_out["log: no passage supports it now"] += 1
    return examples, left_out


def _search(rag: Rag, query: str) -> list[Hit]:
    try:
        return rag.collection.search(query, _DEPTH_FACTOR * rag.k, rerank=rag.collection.settings.ask.reranker)
    except TooLongError:
        return []


def _make_example(rag: Rag, entry: LogEntry, hidden: frozenset[str]) -> Example | None:
    answer = right_answer(entry)
    hits = [hit for hit in _search(rag, entry.query) if hit.uri not in hidden]
    passages, _ = rag.choose(hits)
    meta: dict[str, Any] = {
        "id": f"log-{entry.id}",
        "question": entry.query,
        "kind": "log: corrected" if entry.correction else "log: rated good",
        "uris": [],
        "group": f"log-{entry.id}",
    }
    if is_abstention(answer):
        prompt = rag.prompt(entry.query, passages, pictures=False)
        if not prompt.shown:
            return None
        return Example(tuple(prompt.messages), ABSTENTION, {**meta, "shown": [hit.uri for hit in prompt.shown]})
    choices = [passages]
    for hit in hits:  # the best hit that supports the answer may replace the last passage
        _, found = ground(entry.query, answer, [replace(hit, n=1)], None, rag.judge)
        if any(citation.verified for citation in found):
            choices.append([*passages[:-1], hit])
            break
    for candidates in choices:
        prompt = rag.prompt(entry.query, candidates, pictures=False)
        if composed := supported_answer(entry.query, answer, prompt.shown, rag.judge):
            uris = [citation.uri for citation in composed.citations if citation.verified]
            meta |= {"uris": uris, "group": uris[0], "shown": [hit.uri for hit in prompt.shown]}
            return Example(tuple(prompt.messages), composed.text, meta)
    return None
