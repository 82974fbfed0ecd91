"""`POST /v1/check`: an answer against passages, or against what the key may see."""

from __future__ import annotations

from typing import Any

import pytest
from support.running_server import SECRET, Running


def check(running: Running, key: str = "guest", **body: Any) -> Any:
    with running.client(key) as client:
        return client.post("/v1/check", json=body)


def statuses(running: Running, key: str = "guest", **body: Any) -> list[str]:
    return [sentence["status"] for sentence in check(running, key, **body).json()["data"]]


def test_each_sentence_has_its_evidence_in_the_collection(running: Running) -> None:
    answer = "You get 28 days of leave [7]. Parents get 20 weeks more. The canteen is closed."
    leave, parents, canteen = check(running, answer=answer).json()["data"]
    assert [one["status"] for one in (leave, parents, canteen)] == ["supported", "contradicted", "not_found"]
    assert leave["text"] == answer[leave["start"] : leave["end"]] == "You get 28 days of leave [7]."
    (citation,) = leave["citations"]
    assert (citation["uri"], citation["verified"], citation["lines"]) == ("docs/leave.md", True, [3, 3])
    with running.client("guest") as client:
        text = client.get("/v1/documents/docs/leave.md").json()["text"]
    assert text[citation["start"] : citation["end"]] == citation["quote"] == "You get 28 days of leave."
    assert parents["contradiction"]["quote"] == "Parents get 16 weeks more."
    assert canteen["citations"] == []


def test_a_key_checks_against_what_it_may_see(running: Running) -> None:
    assert statuses(running, "hr", answer=SECRET) == ["supported"]
    assert statuses(running, "guest", answer=SECRET) == ["not_found"]
    assert statuses(running, "hr", answer=SECRET, groups=[]) == ["not_found"]
    assert check(running, "guest", answer=SECRET, groups=["hr"]).status_code == 400
    with running.client(None) as nobody:
        assert nobody.post("/v1/check", json={"answer": SECRET}).status_code == 401


def test_given_passages_take_the_place_of_the_collection(running: Running) -> None:
    assert statuses(running, "hr", answer=SECRET, passages=["The director likes boats."]) == ["not_found"]
    assert statuses(running, answer=SECRET, passages=[{"content": SECRET}]) == ["supported"]
    assert statuses(running, answer=SECRET, passages=[]) == ["not_found"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"answer": " \n"}, "has no sentence"),
        ({"answer": "[1]"}, "has no sentence"),
        ({"answer": ""}, "answer: "),
        ({"answer": "A word. " * 5000}, "answer: "),
        ({"answer": "A word.", "passages": ["x" * 300_000]}, "maximum is 200,000"),
        ({"answer": "A word.", "passages": ["A word.", {"body": "A word."}]}, "Passage 2 has no text"),
        ({"answer": "A word.", "passages": [" "]}, "Passage 1 has no text"),
        ({"answer": "A word.", "passages": [7]}, "passages.0"),
        ({"answer": "A word.", "passage": ["A word."]}, "no such member"),
    ],
)
def test_what_cannot_be_checked_is_refused_with_the_reason(running: Running, body: dict[str, Any], words: str) -> None:
    refused = check(running, **body)
    assert refused.status_code == 400
    assert words in refused.json()["error"]["message"]
