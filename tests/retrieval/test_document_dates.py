"""Messages of one thread, and documents with the same title: the newer one comes first, and the older one is named."""

from __future__ import annotations

import mailbox
from email.message import EmailMessage
from pathlib import Path

import pytest

from ragfm import Collection, Hit, Rag
from ragfm.retrieval.document_dates import find_superseded, newest_first
from ragfm.testing import ScriptedReader

DOCUMENTS = {
    "1": {"date": "2026-05-01T08:00:00+00:00", "title": "Report", "message_id": "<1@x>"},
    "2": {"date": "2026-05-09", "title": "AW: Re: report", "message_id": "<2@x>"},
    "3": {"date": "2026-05-20", "title": "Other", "message_id": "<3@x>", "references": "<0@x> <1@x>"},
    "4": {"date": "2026-06-01", "title": "Alone"},
    "5": {"title": "Report"},
}


def hit(uri: str, score: float, text: str = "") -> Hit:
    return Hit(uri, text, 0, len(text), int(uri), score, {"dense": score})


def order(query: str, *hits: Hit) -> str:
    return "".join(hit.uri for hit in newest_first(query, hits, DOCUMENTS.__getitem__))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"1": 0.9, "2": 0.8}, "21"),  # the same subject
        ({"1": 0.9, "3": 0.8}, "31"),  # an answer
        ({"2": 0.9, "3": 0.8}, "23"),  # they have nothing in common
        ({"2": 0.9, "1": 0.8}, "21"),
        ({"1": 0.9, "2": 0.4}, "12"),  # it says too little
        ({"1": 0.9, "4": 0.8, "5": 0.7}, "145"),  # another title, no date
        ({"1": 0.9, "4": 0.8, "2": 0.7}, "214"),
    ],
)
def test_newer_documents_come_before_older_ones_that_belong_to_them(scores: dict[str, float], expected: str) -> None:
    assert order("When is it due?", *(hit(uri, score) for uri, score in scores.items())) == expected


def test_a_query_with_a_number_of_the_older_document_asks_for_that() -> None:
    hits = hit("1", 0.9, "In 2025, it was due on 18 May."), hit("2", 0.8, "In 2026, it is due on 25 May.")
    assert order("When was it due in 2025?", *hits) == "12"
    assert order("When is it due in 2026?", *hits) == "21"


def test_superseded_passages_are_found_once_per_document() -> None:
    hits = [hit("3", 0.9), hit("1", 0.8), hit("1", 0.7), hit("2", 0.6), hit("4", 0.5)]
    found = [(one.older.uri, one.newer.uri, one.older_date) for one in find_superseded(hits, DOCUMENTS.__getitem__)]
    assert found == [("1", "3", "2026-05-01")]  # 2 is newer than 1, but says less


@pytest.mark.judge
def test_an_answer_prefers_the_newer_mail_and_names_the_older_one(tmp_path: Path, collection: Collection) -> None:
    box = mailbox.mbox(tmp_path / "box")
    texts = ["The report is due on 18 May 2026.", "It is due on 25 May 2026.", "Thanks, I will bring cake."]
    for number, text in enumerate(texts, 1):
        message = EmailMessage()
        message["Message-ID"], message["Subject"] = f"<{number}@example.org>", "Re: report" if number > 1 else "Report"
        message["Date"] = f"Tue, {number:02} Apr 2026 10:00:00 +0000"
        message.set_content(text)
        box.add(message)
    box.close()
    collection.sync(tmp_path / "box", connector="mail")
    question = "When is the report due?"
    assert collection.search(question, k=1)[0].uri == "box/1@example.org"
    answer = Rag(collection, reader=ScriptedReader(["It is due on 25 May 2026."])).ask(question)
    assert [hit.uri for hit in answer.hits] == ["box/2@example.org", "box/1@example.org", "box/3@example.org"]
    assert answer.notes == ("box/1@example.org (2026-04-01) is older than box/2@example.org (2026-04-02).",)
