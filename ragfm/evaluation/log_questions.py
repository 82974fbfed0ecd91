"""Turn the answer log into evaluation questions: answers that users rated good, and their corrections."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from ragfm.core.abstention import is_abstention
from ragfm.core.text import MARKER
from ragfm.core.types import Citation
from ragfm.evaluation.answer_matching import normalize
from ragfm.generation.log_entries import REDACTED, LogEntry


def rated_entries(entries: Iterable[LogEntry]) -> list[LogEntry]:
    """The entries whose right answer is known: rated good or corrected, not redacted, not structured.

    Of several entries with the same question only the last one is returned: a frequent question must not count more,
    and its ratings may disagree.
    """
    known = [
        entry
        for entry in entries
        if right_answer(entry) and REDACTED not in entry.query + entry.answer + right_answer(entry)
    ]
    last = {normalize(entry.query): entry.id for entry in known}
    return [entry for entry in known if last[normalize(entry.query)] == entry.id]


def right_answer(entry: LogEntry) -> str:
    """The right answer without citation markers; empty if it is unknown, and for a structured answer."""
    text = entry.correction or (entry.answer if entry.thumbs == "up" else "")
    with suppress(ValueError):
        if isinstance(json.loads(text), dict):  # an answer of `Rag.extract`
            return ""
    return MARKER.sub("", text).strip()


def questions_from_log(entries: Iterable[LogEntry]) -> Iterator[dict[str, Any]]:
    """The rated entries as lines for `load_jsonl`; an up-voted answer has a line for each passage that supports it.

    The question of a follow-up is its stand-alone form.
    """
    for entry in rated_entries(entries):
        right = right_answer(entry)
        line: dict[str, Any] = {"id": f"log-{entry.id}", "question": entry.query}
        if is_abstention(right):
            yield {**line, "unanswerable": True}
            continue
        line["answers"] = [right]
        citations = (
            [] if entry.correction else [citation for citation in entry.citations if Citation(**citation).supports]
        )
        for citation in citations:
            yield {**line, "uri": citation["uri"], "start": citation["start"], "end": citation["end"]}
        if not citations:
            yield line
