"""Examples from the answer log: what users found right, and what they said would have been.

entry ─search→ passages of now ─ground→ the sentences that they support, with markers → an example, where there are any
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ragfm.citations.decision import compose, ground
from ragfm.citations.grounding import cite
from ragfm.core.abstention import ABSTENTION, is_abstention
from ragfm.core.errors import TooLongError
from ragfm.evaluation.log_questions import rated_entries, right_answer
from ragfm.training.examples import Example
from ragfm.training.held_out import HeldOut

if TYPE_CHECKING:
    from ragfm.core.types import Hit
    from ragfm.generation.answer_log import LogEntry
    from ragfm.rag import Rag

__all__ = ["logged_examples", "outdated", "rated_entries"]

_DEEPER = 8  # times as many hits are looked at as are shown


def logged_examples(
    rag: Rag, entries: Sequence[LogEntry], *, held: HeldOut = HeldOut()  # noqa: B008
) -> tuple[list[Example], Counter[str]]:  # fmt: skip
    """An example of each entry that makes one, asked as it would be asked now; and why others were left out."""
    examples, left_out, hidden = [], Counter[str](), held.documents(rag.collection)
    for entry in entries:
        if held.asks(entry.query):
            left_out["log: held out: the question"] += 1
        elif outdated(rag, entry):
            left_out["log: not known then, and other passages are found now"] += 1
        else:
            with suppress(TooLongError):
                if found := _example(rag, entry, hidden):
                    examples.append(found)
                    continue
            left_out["log: no passage supports it now"] += 1
    return examples, left_out


def outdated(rag: Rag, entry: LogEntry) -> bool:
    """Whether it may be known by now what was not known then: passages are found that were not found then."""
    if not is_abstention(right_answer(entry)):
        return False
    then = {passage["chunk_id"] for passage in entry.passages}
    now, _ = rag.choose(_found(rag, entry.query))
    return any(hit.chunk_id not in then for hit in now)


def _found(rag: Rag, query: str) -> list[Hit]:
    try:
        return rag.collection.search(query, _DEEPER * rag.k)
    except TooLongError:
        return []


def _example(rag: Rag, entry: LogEntry, hidden: frozenset[str]) -> Example | None:
    right = right_answer(entry)
    hits = [hit for hit in _found(rag, entry.query) if hit.uri not in hidden]
    chosen, _ = rag.choose(hits)
    meta: dict[str, Any] = {"id": f"log-{entry.id}", "question": entry.query, "kind": "log: found good"}
    if entry.correction:
        meta["kind"] = "log: corrected"
    if is_abstention(right):
        prompt = rag.prompt(entry.query, chosen)
        return _made(prompt.messages, ABSTENTION, prompt.shown, meta, []) if prompt.shown else None
    for passages in (chosen, _with_support(entry.query, right, hits, chosen)):
        prompt = rag.prompt(entry.query, passages)
        sentences = cite(entry.query, right, prompt.shown)
        composed = compose(sentences, strict=True, contradictions=False)
        completion, citations = composed.text, composed.citations
        uris = [citation.uri for citation in citations if citation.verified]
        if uris:
            return _made(prompt.messages, completion, prompt.shown, meta, uris)
    return None


def _with_support(question: str, right: str, hits: Sequence[Hit], chosen: Sequence[Hit]) -> list[Hit]:
    """What is shown, the last one replaced by the best hit that supports the answer, where there is one."""
    for hit in hits:
        _, citations = ground(question, right, [replace(hit, n=1)])
        if any(citation.verified for citation in citations):
            return [*chosen[:-1], hit]
    return list(chosen)


def _made(
    messages: Sequence[Any], completion: str, shown: Sequence[Hit], meta: dict[str, Any], uris: list[str]
) -> Example:  # fmt: skip
    group = uris[0] if uris else str(meta["id"])
    about = {**meta, "uris": uris, "group": group, "shown": [passage.uri for passage in shown]}
    return Example(tuple(messages), completion, about)
