"""The answer log as questions to evaluate with: what users found right, and what they said would have been."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ragfm.answer_log import REDACTED
from ragfm.prompt import is_abstention

if TYPE_CHECKING:
    from ragfm.answer_log import LogEntry

_MARKER = re.compile(r"\s*\[\d+\]")


def as_questions(entries: Iterable[LogEntry]) -> Iterator[dict[str, Any]]:
    """Lines that `load_jsonl` reads: up-voted answers with the passages that they cite, and corrections.

    A follow-up is there in its stand-alone form. What was redacted is left out.
    """
    for entry in entries:
        right = entry.correction or (_MARKER.sub("", entry.answer) if entry.thumbs == "up" else "")
        if not right.strip() or REDACTED in entry.query + right:
            continue
        line: dict[str, Any] = {"id": f"log-{entry.id}", "question": entry.query}
        if is_abstention(right):
            yield {**line, "unanswerable": True}
            continue
        line["answers"] = [right]
        cited = [] if entry.correction else [found for found in entry.citations if found["verified"]]
        yield from ({**line, "uri": found["uri"], "start": found["start"], "end": found["end"]} for found in cited)
        if not cited:
            yield line
