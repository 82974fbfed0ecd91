"""`/v1/review` and the page `/review`: who may label citations, of which documents, and what is stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.browser import Visit, browsing, expect
from support.running_server import SECRET, Running, make_collection, serve

from ragfm import Answer, Citation, Collection, Usage
from ragfm.generation.answer_log import AnswerContext, AnswerLog
from ragfm.testing import ScriptedReader

QUESTION = "How many days of leave do I get?"
LEAVE = "You get 28 days of leave."


def add(collection: Collection, uri: str, text: str, question: str = QUESTION, probability: float = 0.96) -> int:
    """Log an answer that cites a document."""
    (hit,) = [hit for hit in collection.search(text, 20) if text in hit.text and hit.uri == uri]
    start = hit.start + hit.text.index(text)
    citation = Citation(
        1, uri, None, start, start + len(text), text, verified=True, probability=probability, answer_end=len(text)
    )
    answer = Answer(question, text, "answered", (citation,), (replace(hit, n=1),), (), Usage(), 0.5, query=question)
    made = AnswerContext("script", None, frozenset({"x"}), None, 0.0, 0.1, fingerprint={"judge": "a"})
    return collection.answer_log.add(answer, made)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Running]:
    folder = make_collection(tmp_path)
    (tmp_path / "ragfm.toml").write_text("[ask]\nlog = true\n")
    with serve(tmp_path, ScriptedReader([LEAVE]), collection=folder) as it:
        yield it


@pytest.fixture
def owner(served: Running) -> Collection:
    return Collection.open(served.folder, embedder="hashing")


def review(served: Running, key: str | None = "hr", **parameters: Any) -> Any:
    with served.client(key) as client:
        return client.get("/v1/review", params=parameters)


def label(served: Running, key: str | None = "hr", **body: Any) -> Any:
    with served.client(key) as client:
        return client.post("/v1/review", json=body)


def test_a_citation_is_shown_and_labelled(served: Running, owner: Collection) -> None:
    entry = add(owner, "docs/leave.md", LEAVE)
    add(owner, "docs/leave.md", LEAVE, probability=0.5)  # it is not verified
    found = review(served).json()
    (cited,) = found["data"]
    assert (found["waiting"], found["model"]) == (1, "handbook")
    text = owner.document("docs/leave.md").text
    assert text[cited["start"] : cited["end"]] == cited["quote"] == cited["sentence"] == LEAVE
    assert (cited["question"], cited["uri"], cited["entry"], cited["citation"]) == (QUESTION, "docs/leave.md", entry, 1)
    assert "probability" not in cited
    stored = label(served, entry=entry, citation=1, right=False).json()
    assert stored == {"by": "hr"}
    (one,) = owner.answer_log.labels()
    assert (one.entry, one.citation, one.right, one.by, one.rated) == (entry, 1, False, "hr", False)
    assert review(served).json()["waiting"] == 0


def test_the_order_is_random_and_that_of_the_command(served: Running, owner: Collection) -> None:
    for _ in range(12):
        add(owner, "docs/leave.md", LEAVE)
    orders = [[one["entry"] for one in review(served, seed=seed).json()["data"]] for seed in (0, 1)]
    assert orders == [[entry.id for entry, _ in AnswerLog(owner.answer_log.path).to_review(seed)] for seed in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_only_owners_label(served: Running, owner: Collection) -> None:
    entry = add(owner, "docs/leave.md", LEAVE)
    for refused in (review(served, "guest"), label(served, "guest", entry=entry, citation=1, right=True)):
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope")
    assert review(served, None).status_code == 401
    assert not owner.answer_log.labels()


def test_an_owner_sees_answers_of_documents_that_the_key_may_see(served: Running, owner: Collection) -> None:
    plans = add(owner, "docs/board/plans.txt", "The board plans to sell the boat in spring.")
    salaries = add(owner, "docs/hr/salaries.txt", SECRET)
    assert [one["entry"] for one in review(served).json()["data"]] == [salaries]
    hidden = label(served, entry=plans, citation=1, right=True)
    missing = label(served, entry=99, citation=1, right=True)
    assert hidden.status_code == missing.status_code == 404
    assert hidden.json()["error"]["code"] == missing.json()["error"]["code"] == "entry_not_found"
    assert not owner.answer_log.labels()


def test_what_cannot_be_labelled_is_an_error(served: Running, owner: Collection) -> None:
    assert review(served).json()["error"]["code"] == "no_answer_log"
    entry = add(owner, "docs/leave.md", LEAVE, probability=0.5)
    for citation, words in ((1, "did not verify"), (2, "no citation 2")):
        refused = label(served, entry=entry, citation=citation, right=True)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "citation")
        assert words in refused.json()["error"]["message"]
    assert label(served, entry=entry, citation=1, right="maybe").status_code == 400
    assert label(served, entry=entry, citation=1, right=True, by="anna").status_code == 400


@browsing
def test_one_key_labels_on_the_page(served: Running, owner: Collection, browser: Any) -> None:
    entries = {add(owner, "docs/leave.md", LEAVE, f"{QUESTION} <b>{number}</b>") for number in range(4)}
    visit = Visit(browser, served.address)
    page = visit.page
    page.evaluate("secret => sessionStorage.setItem('ragfm/key', secret)", served.secrets["hr"])
    page.wait_for_load_state("networkidle")
    visit.errors.clear()  # of the chat, without a key
    page.goto(f"{served.address}/review")
    questions = []
    for key in ("r", "w", "s"):
        expect(page.locator(".passage mark")).to_have_text(LEAVE)
        expect(page.locator("#quote")).to_have_text(LEAVE)
        questions.append(page.locator(".question").inner_text())
        page.keyboard.press(key)
        expect(page.locator(".question")).not_to_have_text(questions[-1])
    page.get_by_role("button", name="Right").click()
    expect(page.get_by_text("No citation is left to label")).to_be_visible()
    labels = owner.answer_log.labels()
    assert [one.right for one in labels] == [True, False, True]
    assert {one.by for one in labels} == {"hr"}
    page.get_by_role("button", name="Look again").click()  # the one that was skipped
    expect(page.locator(".question")).to_have_text(questions[2])
    assert len(entries - {one.entry for one in labels}) == 1
    visit.all_well()
