"""Examples from the answer log: what users found right, and what they said would have been.

entry ─search→ passages of now ─ground→ the words with their markers → an example, where a passage supports them
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ragfm.adapt.examples import Example
from ragfm.adapt.leaks import HeldOut
from ragfm.errors import TooLongError
from ragfm.evaluate.logged import judged, right_answer
from ragfm.ground import ground
from ragfm.prompt import ABSTENTION, is_abstention

if TYPE_CHECKING:
    from ragfm.answer_log import LogEntry
    from ragfm.rag import Rag
    from ragfm.types import Hit

__all__ = ["judged", "logged_examples"]

_DEEPER = 8  # times as many hits are looked at as are shown


def logged_examples(
    rag: Rag, entries: Sequence[LogEntry], *, held: HeldOut = HeldOut()  # noqa: B008
) -> tuple[list[Example], Counter[str]]:  # fmt: skip
    """An example of each entry that makes one, asked as it would be asked now; and why others were left out."""
    examples, left_out, hidden = [], Counter[str](), held.documents(rag.collection)
    for entry in entries:
        try:
            found = None if held.asks(entry.query) else _example(rag, entry, hidden)
        except TooLongError:
            found = None
        if found is None:
            why = "held out: the question" if held.asks(entry.query) else "no passage supports it now"
            left_out[f"log: {why}"] += 1
        else:
            examples.append(found)
    return examples, left_out


def _example(rag: Rag, entry: LogEntry, hidden: frozenset[str]) -> Example | None:
    right = right_answer(entry)
    hits = [hit for hit in rag.collection.search(entry.query, _DEEPER * rag.k) if hit.uri not in hidden]
    chosen, _ = rag.choose(hits)
    meta: dict[str, Any] = {"id": f"log-{entry.id}", "question": entry.query, "kind": "log: found good"}
    if entry.correction:
        meta["kind"] = "log: corrected"
    if is_abstention(right):
        prompt = rag.prompt(entry.query, chosen)
        return _made(prompt.messages, ABSTENTION, prompt.shown, meta, []) if prompt.shown else None
    for passages in (chosen, _with_support(entry.query, right, hits, chosen)):
        prompt = rag.prompt(entry.query, passages)
        completion, citations = ground(entry.query, right, prompt.shown)
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
