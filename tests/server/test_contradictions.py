"""Contradictions and citation spans in the server's responses, with a constructed answer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.running_server import QUESTION, Running

from ragfm.core.types import Answer, Citation, Contradiction, Usage
from ragfm.rag import Rag
from ragfm.server.chat_routes import footnotes, without_footnotes

STREAMED = "You get 28 days. Parents get 16 weeks more."
TEXT = "You get 28 days [1]. Parents get 16 weeks more [1]."
FIRST, SECOND = "You get 28 days [1].", "Parents get 16 weeks more [1]."
LINES = ["But [2] says otherwise: “You get 30 days.”", "But [3] says otherwise: “Parents get 20 weeks more.”"]
SOURCES = (
    "\n\nSources:\n[1] docs/leave.md, page 2: “You get 28 days of leave.”\n[1] docs/leave.md: “Parents get 16 weeks.”\n"
    "[2] docs/old.md, page 7: “You get 30 days.”\n[3] docs/new.md: “Parents get 20 weeks more.”"
)
ANSWER = Answer(
    question="How much leave?",
    text=TEXT,
    status="answered",
    citations=(
        Citation(1, "docs/leave.md", 2, 0, 25, "You get 28 days of leave.", True, None, 0, len(FIRST)),
        Citation(1, "docs/leave.md", None, 30, 51, "Parents get 16 weeks.", True, None, len(FIRST) + 1, len(TEXT)),
    ),
    hits=(),
    dropped=(),
    usage=Usage(10, 0, 12),
    seconds=0.1,
    contradictions=(
        Contradiction(2, "docs/old.md", 7, 0, 16, "You get  30 days.", 0, len(FIRST)),
        Contradiction(3, "docs/new.md", None, 0, 26, "Parents get 20 weeks more.", len(FIRST) + 1, len(TEXT)),
    ),
)


class FixedStream(Iterator[str]):
    """Streams the answer without its markers."""

    answer = ANSWER
    cited_spans = ((0, 16), (17, len(STREAMED)))
    checking = False

    def __init__(self) -> None:
        self._pieces = iter([STREAMED[:20], STREAMED[20:]])

    def __next__(self) -> str:
        return next(self._pieces)

    def step(self) -> str | None:
        return next(self._pieces, None)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _fixed_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rag, "stream", lambda *_, **__: FixedStream())


def spans(content: str, annotations: list[Any]) -> list[str]:
    """The words of the content that each annotation is about."""
    citations = [annotation["url_citation"] for annotation in annotations]
    return [content[citation["start_index"] : citation["end_index"]] for citation in citations]


def test_lines_and_footnotes() -> None:
    assert [contradiction.sentence for contradiction in ANSWER.contradictions] == LINES
    assert footnotes(ANSWER) == SOURCES
    below = "\n\n" + "\n".join(LINES)
    for added in ("", below, SOURCES, below + SOURCES):
        assert without_footnotes(TEXT + added) == TEXT
    kept = "But [2] says otherwise: “a”\n\nSources:\nnone"
    assert without_footnotes(kept) == kept


def test_white_space_in_a_message_does_not_stop_the_server() -> None:
    start = time.thread_time()
    assert without_footnotes(f"a{' ' * 100_000}b \n") == f"a{' ' * 100_000}b"
    assert time.thread_time() - start < 1  # half a minute, if each space is tried as the end of the text


@pytest.mark.parametrize("notes", ["false", "true"])
def test_a_whole_answer_has_its_contradictions_below(running: Running, notes: str) -> None:
    body = {"model": "handbook", "messages": QUESTION}
    response = running.client().post("/v1/chat/completions", json=body, headers={"x-ragfm-footnotes": notes}).json()
    message, details = response["choices"][0]["message"], response["ragfm"]
    assert message["content"] == TEXT + "\n\n" + "\n".join(LINES) + (SOURCES if notes == "true" else "")
    assert spans(message["content"], message["annotations"]) == [FIRST, SECOND, *LINES]
    titles = [annotation["url_citation"]["title"] for annotation in message["annotations"]]
    assert titles == ["docs/leave.md, page 2", "docs/leave.md", "docs/old.md, page 7", "docs/new.md"]
    assert details["answer"] == TEXT
    assert [(c["answer_start"], c["answer_end"]) for c in details["citations"]] == [(0, 20), (21, len(TEXT))]
    assert details["contradictions"][0] == {
        "n": 2,
        "uri": "docs/old.md",
        "page": 7,
        "start": 0,
        "end": 16,
        "quote": "You get  30 days.",
        "answer_start": 0,
        "answer_end": 20,
        "name": "",
        "row": None,
        "date": "",
    }


def test_a_streamed_answer_has_its_contradictions_below(running: Running) -> None:
    body = {"model": "handbook", "messages": QUESTION, "stream": True}
    events = running.client().post("/v1/chat/completions", json=body).text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    content = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert content == STREAMED + "\n\n" + "\n".join(LINES)
    annotations = chunks[-1]["choices"][0]["delta"]["annotations"]
    assert spans(content, annotations) == ["You get 28 days.", "Parents get 16 weeks more.", *LINES]
    assert chunks[-1]["ragfm"]["answer"] == TEXT
