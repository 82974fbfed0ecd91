"""Insights: what was asked, worst first; who sees what of it; and how long it takes for a long log."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.browser import Visit, browsing, expect
from support.running_server import ANSWER, SECRET, Running, make_collection, serve

from ragfm import Answer, Collection, Hit, Message, Usage
from ragfm.core.types import Citation
from ragfm.evaluation.log_insights import group_questions, insights
from ragfm.generation.answer_log import AnswerContext, AnswerLog, Origin
from ragfm.generation.log_entries import LogFilter
from ragfm.generation.prompt import Prompt
from ragfm.server.api_keys import SCOPES, Key
from ragfm.store.tables import answer_log
from ragfm.testing import ScriptedReader

LEAVE = "How many days of leave do I get?"


@pytest.fixture(scope="module")
def logging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with an answer log: two users asked about leave, one about salaries."""
    folder = tmp_path_factory.mktemp("insights")
    collection = make_collection(folder)
    (folder / "ragfm.toml").write_text('[ask]\nreranker = "none"\nlog = true\n')
    with serve(folder, ScriptedReader([ANSWER]), collection=collection) as it:
        for key, question in (("guest", LEAVE), ("other", "How many days leave do I get"), ("hr", "Which salary?")):
            asked = {"model": "handbook", "messages": [{"role": "user", "content": question}], "ragfm": {"k": 20}}
            said = it.client(key).post("/v1/chat/completions", json=asked).json()["ragfm"]
            rating = {"rating": said["rating"], "thumbs": "down" if key == "hr" else "up"}
            assert it.client(key).post("/v1/ratings", json=rating | {"correction": SECRET}).status_code == 200
        yield it


def insights_of(running: Running, key: str) -> dict[str, Any]:
    said = running.client(key).get("/v1/insights").json()
    assert said["everybody"] == (key == "hr")
    data: dict[str, Any] = said["data"]
    return data


def test_owners_see_all_questions_grouped_and_the_worst_first(logging: Running) -> None:
    data = insights_of(logging, "hr")
    assert data["counts"] == {"asked": 3, "unanswered": 0, "unsure": data["counts"]["unsure"], "down": 1, "up": 2}
    groups = [[one["question"] for one in group["questions"]] for group in data["groups"]]
    assert groups[0] == ["Which salary?"]
    assert sorted(groups[1]) == ["How many days leave do I get", LEAVE]
    assert [day["counts"]["asked"] for day in data["days"]] == [3]
    assert {part["part"] for part in data["latency"]} == {"search", "read", "write", "total"}
    assert data["cited"][0]["uri"] == "docs/leave.md"
    assert (data["never"], data["uncited"]) == (["docs/hours.txt"], 1)  # the board's plans are hidden from this key


def test_other_keys_see_their_own_questions_and_documents(logging: Running) -> None:
    data = insights_of(logging, "guest")
    assert [one["question"] for group in data["groups"] for one in group["questions"]] == [LEAVE]
    assert "hr" not in json.dumps([data["cited"], data["never"]])
    numbers = {one["id"] for group in insights_of(logging, "hr")["groups"] for one in group["questions"]}
    codes = [logging.client("guest").get(f"/v1/insights/{number}").status_code for number in sorted(numbers)]
    assert codes == [200, 404, 404]
    assert logging.client("guest").get(f"/v1/insights/{2**64}").status_code == 400


def test_a_question_opens_with_its_answer_and_passages(logging: Running) -> None:
    said = logging.client("guest").get("/v1/insights/1").json()
    assert said["question"] == LEAVE
    assert said["answer"].startswith("You get 28 days of leave [1].")
    assert "28 days of leave" in said["passages"][0]["text"]
    assert {citation["uri"] for citation in said["citations"]} == {"docs/leave.md"}


def test_an_owner_does_not_see_answers_from_documents_that_are_hidden_from_the_key(logging: Running) -> None:
    """The reader of the user `hr` has read the salaries. This owner may not."""
    logging.secrets["owner"] = logging.keys.add(Key(name="owner", scopes=SCOPES))
    client = logging.client("owner")
    assert client.get("/v1/insights").json()["data"]["counts"]["asked"] == 3
    assert SECRET in logging.client("hr").get("/v1/insights/3").text
    said = client.get("/v1/insights/3")
    assert (said.json()["question"], said.json()["answer"], said.json()["citations"]) == ("Which salary?", None, [])
    for text in (said.text, client.get("/v1/insights").text, client.get("/v1/insights/export").text.splitlines()[-1]):
        assert "salaries.txt" not in text
        assert "98765" not in text or "Which salary" not in text


def test_exports_are_questions_and_labels(logging: Running) -> None:
    def export(key: str, form: str) -> list[dict[str, Any]]:
        text = logging.client(key).get("/v1/insights/export", params={"form": form}).text
        return [json.loads(line) for line in text.splitlines()]

    assert {line["id"] for line in export("hr", "questions")} == {"log-1", "log-2", "log-3"}
    assert {line["id"] for line in export("guest", "questions")} == {"log-1"}
    log = logging.app.state.service.served.models["handbook"].rag.log
    assert [label["entry"] for label in export("hr", "labels")] == [label.entry for label in log.labels()]
    assert all({"entry", "citation", "right"} <= label.keys() for label in export("hr", "labels"))
    assert {label["entry"] for label in export("guest", "labels")} <= {1}


def test_without_a_log_the_error_says_how_to_get_one(running: Running) -> None:
    said = running.client().get("/v1/insights")
    assert (said.status_code, said.json()["error"]["code"]) == (404, "no_answer_log")
    assert "log = true" in said.json()["error"]["message"]


def test_near_duplicates_are_grouped_by_their_rare_words_and_numbers() -> None:
    alike = [LEAVE, "how many days leave do I get", "How many days of leave do I get???"]
    others = ["How many days of notice do I get?", "Leave in 2025?", "Leave in 2026?", "有几天假期？", "有几天假期"]
    groups = group_questions([*alike, *others, *(f"Question about topic{n}" for n in range(20))])
    assert len(set(groups[:3])) == 1
    assert len(set(groups[2:7])) == 5
    assert groups[6] == groups[7]


def fill(log: AnswerLog) -> None:
    """Log 20 answers with prompts of ordinary size. One in ten has no answer, and each question is asked twice."""
    text = "You get 28 days of leave. " * 40
    hit = Hit("docs/leave.md", text, 0, len(text), 1, 0.5, {}, n=1)
    cited = Citation(1, "docs/leave.md", None, 0, 25, text[:25], verified=True)
    prompt = Prompt((Message("user", "\n\n".join(f"[{n}] {text}" for n in range(1, 6))),), (), ())
    context = AnswerContext("bundled", None, None, prompt, 0.0, 0.1)
    for number in range(20):
        question, bad = f"How do I get the form for project {number // 2}?", number % 10 == 0
        status, citations = ("not_found", ()) if bad else ("answered", (cited,))
        answer = Answer(question, text, status, citations, (hit,) * 5, (), Usage(), 0.5, query=question)
        log.add(answer, replace(context, origin=Origin(f"key{number}")))


def seconds_of_insights(log: AnswerLog, entries: int) -> float:
    start = time.process_time()
    found = insights(log.overview(LogFilter()), ["docs/leave.md", "docs/hours.txt"])
    seconds = time.process_time() - start
    assert (found.counts.asked, found.counts.unanswered, found.all_groups) == (entries, entries // 10, entries // 2)
    assert [(one.uri, one.answers) for one in found.cited] == [("docs/leave.md", entries * 9 // 10)]
    assert found.never == ["docs/hours.txt"]
    return seconds


def test_a_database_has_the_same_insights(address: str, tmp_path: Path) -> None:
    Collection.open(address, embedder="hashing").sync(make_collection(tmp_path).parent / "docs")
    log = Collection.open(address).answer_log
    fill(log)
    assert len(log.overview(LogFilter(key="key7"))) == 1
    seconds_of_insights(log, 20)


def test_ten_thousand_questions_take_less_than_a_second_of_the_processor(tmp_path: Path) -> None:
    log = AnswerLog(tmp_path / "log.db")
    fill(log)
    names = [column.name for column in answer_log.c if column.name not in ("id", "rating_id", "question")]
    columns = ", ".join(f'"{name}"' for name in names)
    with closing(sqlite3.connect(log.path)) as database, database:
        database.execute(
            "WITH RECURSIVE copy(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM copy WHERE n < 499) "
            f"INSERT INTO answer_log (rating_id, question, {columns}) "
            f"SELECT n || rating_id, replace(question, '?', ' of unit u' || n || '?'), {columns} FROM answer_log, copy"
        )
    assert seconds_of_insights(log, 10_000) < 1


@browsing
def test_the_page_shows_the_worst_question_and_opens_it(browser: Any, logging: Running) -> None:
    visit = Visit(browser, f"{logging.address}/insights")
    try:
        page = visit.page
        expect(page.get_by_text("Sign in or enter a key")).to_be_visible()
        page.evaluate(f"sessionStorage.setItem('ragfm/key', '{logging.secrets['hr']}')")
        visit.errors.clear()  # 401
        page.reload()
        rows = page.locator(".asked > li")
        expect(rows).to_have_count(2)
        expect(rows.first).to_contain_text("rated down")
        rows.first.get_by_role("button", name="Which salary?").click()
        panel = page.get_by_role("complementary")
        expect(panel).to_contain_text(SECRET)
        panel.get_by_role("button", name="Show in the document").first.click()
        expect(page.locator("#document-body")).not_to_be_empty()
        page.locator("#document .close").click()
        with page.expect_download() as download:
            page.get_by_role("button", name="Rated answers").click()
        assert len(Path(download.value.path()).read_text().splitlines()) >= 3
        visit.address = logging.address
        visit.all_well()
    finally:
        visit.context.close()
