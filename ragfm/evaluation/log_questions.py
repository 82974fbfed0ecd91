"""The answer log as questions to evaluate with: what users found right, and what they said would have been."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ragfm.core.abstention import is_abstention
from ragfm.core.text import MARKER
from ragfm.core.types import Citation
from ragfm.evaluation.answer_matching import normalised
from ragfm.generation.answer_log import REDACTED

if TYPE_CHECKING:
    from ragfm.generation.answer_log import LogEntry


def judged(entries: Iterable[LogEntry]) -> list[LogEntry]:
    """Those whose right answer is known: found good, or corrected; not what was redacted, nor structured answers.

    Of several that ask the same, the last one: what is asked often would count as often, and may be said otherwise.
    """
    known = [entry for entry in entries if right_answer(entry) and REDACTED not in entry.query + right_answer(entry)]
    last = {normalised(entry.query): entry.id for entry in known}
    return [entry for entry in known if last[normalised(entry.query)] == entry.id]


def right_answer(entry: LogEntry) -> str:
    """What would have been right, without markers; empty where nobody has said, and for a structured answer.

    That another passage says otherwise is no part of the answer.
    """
    said = entry.correction or (entry.answer if entry.thumbs == "up" else "")
    if _is_object(said):
        return ""
    return MARKER.sub("", said).strip()


def as_questions(entries: Iterable[LogEntry]) -> Iterator[dict[str, Any]]:
    """Lines that `load_jsonl` reads: up-voted answers with the passages that they cite, and corrections.

    A follow-up is there in its stand-alone form. What was redacted is left out.
    """
    for entry in judged(entries):
        right = right_answer(entry)
        line: dict[str, Any] = {"id": f"log-{entry.id}", "question": entry.query}
        if is_abstention(right):
            yield {**line, "unanswerable": True}
            continue
        line["answers"] = [right]
        own = [True] * len(entry.citations)
        cited = [] if entry.correction else [
            found for found, its in zip(entry.citations, own, strict=True) if its and Citation(**found).supports
        ]  # fmt: skip
        yield from ({**line, "uri": found["uri"], "start": found["start"], "end": found["end"]} for found in cited)
        if not cited:
            yield line


def _is_object(said: str) -> bool:
    """Whether it is JSON, as `Rag.extract` answers: right there, and wrong as the answer to a question."""
    try:
        return isinstance(json.loads(said), dict)
    except ValueError:
        return False


def _cited(entry: LogEntry) -> list[tuple[int, str]]:
    return [(found["n"], found["quote"]) for found in entry.citations]
