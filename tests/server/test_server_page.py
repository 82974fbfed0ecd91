"""The page at `/`: files, chat by mouse and keyboard, documents, keys and errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.browser import ANSWER, Actor, Visit, browsing, expect
from support.running_server import Running, eventually

from ragfm.generation.answer_log import AnswerLog
from ragfm.store.uploads import UploadFolder

# --- What everybody may have -------------------------------------------------------------------------------------


def test_the_pages_files_need_no_key_and_come_once(running: Running) -> None:
    with running.client(None) as client:
        page = client.get("/")
        files = set(re.findall(r'(?:href|src)="(page/[^"]+)"', page.text))
        assert files >= {"page/app.js", "page/page.css", "page/icon.svg", "page/theme.js"}
        for path in ["/", *(f"/{name}" for name in files)]:
            said = client.get(path)
            assert said.status_code == 200
            assert client.head(path).headers["content-length"] == str(len(said.content))
            again = client.get(path, headers={"If-None-Match": f'"x", W/{said.headers["etag"]}'})
            assert (again.status_code, again.content) == (304, b"")
            policy = said.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';")
            assert "unsafe" not in policy
            assert said.headers["x-content-type-options"] == "nosniff"
        assert client.get("/page/../app.py").status_code == 401
        assert client.get("/page/nothing.js").status_code == 401
        assert client.post("/").status_code == 405
    assert not re.search(r"<script>|\son\w+=|\sstyle=|https?://", page.text), "the policy forbids it"


# --- Chat --------------------------------------------------------------------------------------------------------


@browsing
def test_an_answer_is_streamed_and_its_numbers_lead_to_the_words(visit: Visit) -> None:
    page = visit.page
    visit.ask("How many days of leave do I get?")
    assert (
        page.locator(".answer .text").text_content()
        == "You get 28 days of leave 1. Parents get 16 weeks more 1. Unsupported: Cats get 99 weeks."
    )
    assert page.locator(".answer .text .doubt").inner_text() == "Cats get 99 weeks."
    page.locator("button.cite").nth(1).click()
    sources = page.get_by_role("complementary", name="Sources")
    assert sources.locator("mark").all_inner_texts() == ["You get 28 days of leave 🎈.", "Parents get 16 weeks more."]
    assert sources.locator("mark.active").inner_text() == "Parents get 16 weeks more."
    expect(sources.locator("mark.active")).to_be_focused()
    expect(sources.locator("h3").first).to_contain_text("leave.md")
    sources.get_by_role("button", name="Show in the document").first.click()
    document = page.get_by_role("dialog", name="leave.md")
    expect(document.locator("mark.active")).to_have_text("Parents get 16 weeks more.")
    expect(document.locator("mark.active")).to_be_in_viewport()
    visit.all_well()


@browsing
def test_contradictions_follow_the_answer_and_lead_to_their_passage(visit: Visit) -> None:
    page = visit.page
    expect(page.locator("#model")).to_have_value("handbook")
    source = {"uri": "docs/leave.md", "page": None, "start": 0, "end": 28}
    hit = {**source, "text": "You get 28 days of leave.", "n": 1, "headings": [], "place": None}
    other = {**hit, "uri": "docs/old.md", "text": "You get  30 days of leave.", "n": 2}
    citation = {**source, "end": 25, "n": 1, "quote": hit["text"], "verified": True, "fault": None}
    contradiction = {**source, "end": 26, "uri": "docs/old.md", "n": 2, "quote": other["text"], "name": "old.md"}
    details = {
        "answer": "You get 28 days [1].",
        "shown": "You get 28 days [1].",
        "status": "answered",
        "quote": None,
        "citations": [{**citation, "answer_start": 0, "answer_end": 20}],
        "contradictions": [{**contradiction, "answer_start": 0, "answer_end": 20, "date": "2025-03-01"}],
        "passages": [hit, other],
        "dropped": [],
        "unsupported": [],
        "query": "leave",
        "seconds": 0.1,
        "rating": None,
    }
    text = "You get 28 days.\n\nBut [2] says otherwise: “You get 30 days of leave.”"
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": "stop"}
    body = f"data: {json.dumps({'choices': [choice], 'ragfm': details})}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", partial(_fulfil, {"body": body}), times=1)
    visit.ask("How many days of leave do I get?")
    assert page.locator(".answer .text p").all_text_contents() == [
        "You get 28 days 1.",
        "But 2 says otherwise: “You get 30 days of leave.” (old.md, 2025-03-01)",
    ]
    page.locator("button.cite").last.click()
    sources = page.get_by_role("complementary", name="Sources")
    assert sources.locator("mark.active").inner_text() == "You get  30 days of leave."
    expect(sources.locator(".note")).to_have_text("The passage contradicts the answer.")
    assert page.locator(".chip .n").all_inner_texts() == ["1", "2"]


@browsing
def test_a_table_row_is_shown_as_a_table_and_the_reasons_of_dropped_passages_are_named(visit: Visit) -> None:
    page = visit.page
    expect(page.locator("#model")).to_have_value("handbook")
    row = "| Norway | €43 | €46 |"
    hit = {"uri": "docs/rates.md", "page": None, "start": 0, "end": 45, "n": 1, "headings": ["Rates"], "place": None}
    hit |= {
        "text": f"| Denmark | €50 | €52 |\n{row}",
        "context": "Rates\n| Country | 2025 | 2026 |\n| --- | --- | --- |",
    }
    cells = {"header": ["Country", "2025", "2026"], "cells": ["Norway", "€43", "€46"], "label": "Norway", "column": 2}
    quote = {"uri": "docs/rates.md", "page": None, "n": 1, "start": 24, "end": 46, "quote": row, "row": cells}
    twin, long = "near-duplicate of a better hit in docs/rates.md", "does not fit: the reader has room for 9 tokens"
    details = {
        "answer": "€46 [1].",
        "shown": "I am not sure. The documents say: Norway — 2026: €46 [1]",
        "status": "unsure",
        "quote": quote,
        "citations": [],
        "passages": [hit],
        "dropped": [{"chunk_id": at, "why": why} for at, why in enumerate((twin, long, twin))],
        "unsupported": [],
        "query": "rate",
        "seconds": 0.1,
        "rating": None,
    }
    choice = {"index": 0, "delta": {"content": details["shown"]}, "finish_reason": "stop"}
    body = f"data: {json.dumps({'choices': [choice], 'ragfm': details})}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", partial(_fulfil, {"body": body}), times=1)
    visit.ask("What is the rate of Norway in 2026?")
    answer = page.locator(".answer .text")
    assert answer.locator("p").inner_text() == "I am not sure. The documents say: Norway — 2026: €46 1"
    assert answer.locator("tr").all_inner_texts() == ["Country\t2025\t2026", "Norway\t€43\t€46"]
    assert answer.locator("mark").all_inner_texts() == ["€46"]
    answer.locator("button.cite").click()
    sources = page.get_by_role("complementary", name="Sources")
    assert sources.locator("tr").all_inner_texts() == ["Country\t2025\t2026", "Denmark\t€50\t€52", "Norway\t€43\t€46"]
    assert sources.locator("mark.active").all_inner_texts() == ["Norway", "€43", "€46"]
    assert sources.locator("> .foot").all_inner_texts()[-2:] == [
        f"2 more passages not read: {twin}.",
        f"1 more passage not read: {long}.",
    ]


@browsing
def test_a_calculation_is_a_table_whose_numbers_lead_to_their_cells(visit: Visit) -> None:
    page = visit.page
    expect(page.locator("#model")).to_have_value("handbook")
    row, text = "| Revenue | 1,577 | 1,373 |", "204 = 1,577 [1] − 1,373 [1]"
    hit = {"uri": "docs/report.md", "page": None, "start": 0, "end": len(row), "n": 1, "text": row}
    hit |= {"context": "| | 2023 | 2022 |\n| --- | --- | --- |"}
    cells = {"header": ["", "2023", "2022"], "cells": ["Revenue", "1,577", "1,373"], "label": "Revenue"}
    citation = {**hit, "quote": row, "verified": False, "fault": "unclear"}
    calculation = {
        "operation": "difference",
        "result": "204",
        "working": "1,577 − 1,373",
        "operands": [{"label": f"Revenue — {year}", "text": cells["cells"][at]} for at, year in ((1, 2023), (2, 2022))],
    }
    details = {
        "answer": text,
        "shown": text,
        "status": "answered",
        "quote": None,
        "citations": [{**citation, "row": {**cells, "column": at}} for at in (1, 2)],
        "calculation": calculation,
        "passages": [hit],
        "dropped": [],
        "unsupported": [],
        "query": "revenue",
        "seconds": 0.1,
        "rating": None,
    }
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": "stop"}
    body = f"data: {json.dumps({'choices': [choice], 'ragfm': details})}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", partial(_fulfil, {"body": body}), times=1)
    visit.ask("What is the change in revenue from 2022 to 2023?")
    table = page.get_by_role("group", name="Calculation")
    assert table.locator("tr").all_inner_texts() == [
        "Revenue — 2023\t1,577\t1",
        "Revenue — 2022\t1,373\t1",
        "difference\t204\t",
    ]
    sources = page.get_by_role("complementary", name="Sources")
    for at, number in enumerate(("1,577", "1,373")):
        table.locator("button.cite").nth(at).click()
        assert sources.locator("mark").all_inner_texts() == ["1,577", "1,373"]
        assert sources.locator("mark.active").all_inner_texts() == [number]
    visit.all_well()


@browsing
def test_by_keys_alone_on_a_narrow_screen(browser: Any, open_server: Running) -> None:
    visit = Visit(browser, open_server.address, viewport={"width": 360, "height": 700})
    page, keys = visit.page, visit.page.keyboard
    expect(page.get_by_label("Your question")).to_be_focused()
    keys.type("How many days?")
    keys.press("Shift+Enter")
    keys.type("Of leave, I mean.")
    keys.press("Enter")
    page.locator(".tools").wait_for()
    assert page.locator(".question h2").inner_text() == "How many days?\nOf leave, I mean."
    page.locator("#turns").focus()
    keys.press("Tab")
    expect(page.locator("button.cite").first).to_be_focused()
    assert page.locator("button.cite").first.get_attribute("aria-label") == "Source 1: leave.md, line 3"
    keys.press("Enter")
    expect(page.locator("mark.active")).to_be_focused()
    for _ in range(12):  # the page below can't be reached
        keys.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('#sources')")
    keys.press("Escape")
    expect(page.locator("#sources")).to_be_hidden()
    expect(page.locator("button.cite").first).to_be_focused()
    page.locator("#menu").focus()
    keys.press("Enter")
    expect(page.locator("#new")).to_be_focused()
    keys.press("Escape")
    expect(page.locator("#menu")).to_be_focused()
    visit.all_well()
    visit.context.close()


@browsing
def test_an_answer_can_be_stopped_and_what_came_of_it_stays(visit: Visit, actor: Actor) -> None:
    page = visit.page
    visit.ask("Tell of leave SLOWLY", wait=False)
    expect(page.locator(".answer .text")).to_contain_text("leave5")
    assert actor.slow.busy == 1
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".note")).to_have_text("Stopped.")
    eventually(lambda: actor.slow.busy == 0)
    page.reload()
    page.locator("#chats button.chat").click()
    expect(page.locator(".answer .text")).to_contain_text("leave5")
    visit.all_well()


@browsing
def test_chats_are_kept_in_the_browser_until_they_are_deleted(visit: Visit, actor: Actor) -> None:
    page = visit.page
    visit.ask("How much leave is there?")
    visit.ask("And for parents?")
    assert f"Q: How much leave is there?\nA: {ANSWER}\n" in actor.prompts[-1][-1].content
    page.get_by_role("button", name="New chat").click()
    visit.ask("Is there leave for cats?")
    page.reload()
    assert page.locator("#chats .chat").all_inner_texts() == ["Is there leave for cats?", "How much leave is there?"]
    page.get_by_role("button", name="How much leave is there?", exact=True).click()
    assert page.locator(".question").count() == 2
    page.locator("button.cite").first.click()
    assert page.locator("mark").count() == 2
    page.get_by_role("button", name="Delete the chat “Is there leave for cats?”").click()
    page.get_by_role("button", name="Keep").click()
    assert page.locator("#chats .chat").count() == 2
    visit.ask("Tell of leave SLOWLY", wait=False)
    expect(page.locator(".answer .text").last).to_contain_text("leave3")
    page.get_by_role("button", name="Delete all").click()
    page.locator("#confirm-yes").click()
    expect(page.locator(".welcome")).to_be_visible()
    eventually(lambda: actor.slow.busy == 0)
    page.wait_for_timeout(200)  # what was being answered is not kept either
    assert page.locator("#chats .chat").count() == 0
    assert page.evaluate("Object.keys(localStorage).filter((name) => name.includes('chat'))") == []
    assert page.evaluate("document.cookie") == ""
    visit.all_well()


@browsing
def test_a_question_before_the_models_are_listed_is_answered_once(browser: Any, open_server: Running) -> None:
    visit = Visit(browser, "about:blank")
    late = []
    visit.page.route("**/v1/models", lambda route: late.append(route))
    visit.page.goto(open_server.address)
    visit.ask("How many days of leave do I get?", wait=False)
    eventually(lambda: visit.page.wait_for_timeout(10) or len(late) == 2)
    for route in late:
        route.continue_()
    visit.page.locator(".tools").wait_for()
    assert visit.page.locator(".turn").count() == 1
    visit.context.close()


@browsing
def test_it_works_below_another_path(browser: Any, open_server: Running) -> None:
    visit = Visit(browser, "about:blank")
    below = f"{open_server.address}/handbooks/"
    visit.page.route("**/*", lambda route: route.continue_(url=route.request.url.replace("/handbooks/", "/")))
    visit.page.goto(below)
    expect(visit.page.locator("#model")).to_have_value("handbook")
    visit.ask("How many days of leave do I get?")
    visit.page.locator("button.cite").first.click()
    visit.page.get_by_role("button", name="Show in the document").first.click()
    visit.page.locator("#document-body mark.active").wait_for()
    assert [url for url in visit.requests if not url.startswith(below)] == []
    assert visit.errors == []
    visit.context.close()


@browsing
def test_thumbs_reach_the_log(visit: Visit, open_server: Running) -> None:
    page = visit.page
    visit.ask("How many days of leave do I get?")
    page.get_by_role("button", name="Bad answer").click()
    page.get_by_label("What is the correct answer?").fill("29 days")
    page.keyboard.press("Enter")
    expect(page.locator(".tools")).to_contain_text("Thank you.")
    expect(page.get_by_role("button", name="Bad answer")).to_have_attribute("aria-pressed", "true")
    entry = AnswerLog.for_collection(open_server.folder).entries(limit=1)[0]
    assert (entry.thumbs, entry.correction) == ("down", "29 days")


# --- Documents ---------------------------------------------------------------------------------------------------

DROP = """([name, text]) => {
    const data = new DataTransfer();
    data.items.add(new File([text], name));
    for (const kind of ["dragenter", "dragover", "drop"])
        document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


@browsing
@pytest.mark.slow
def test_a_file_is_dropped_indexed_asked_about_and_deleted(visit: Visit) -> None:
    page = visit.page
    expect(page.locator("#model")).to_have_value("handbook")
    page.evaluate(DROP, ["zebra <b>.txt", "The zebra is called Bob. " * 40])
    documents = page.get_by_role("dialog", name="Documents of handbook")
    mine = documents.locator(".card", has_text="zebra")
    expect(mine).to_contain_text(re.compile("Waiting to be indexed|Being indexed"))
    expect(mine).to_contain_text("yours · 4 passages", timeout=60_000)
    expect(page.locator("#status")).to_have_text("zebra _b_.txt: Ready")
    mine.locator("button.name").click()
    expect(page.locator("#document-body")).to_contain_text("The zebra is called Bob.")
    page.keyboard.press("Escape")
    assert documents.locator(".card", has_text="leave.md").get_by_role("button", name="Delete").count() == 0
    mine.get_by_role("button", name="Delete").click()
    page.locator("#confirm-yes").click()
    expect(mine).to_have_count(0, timeout=60_000)
    visit.all_well()


BUSY = "The server is busy. Try again in 1 s."

# --- What goes wrong ---------------------------------------------------------------------------------------------


@browsing
def test_a_server_with_keys_asks_for_one_and_forgets_it_with_the_tab(browser: Any, running: Running) -> None:
    visit = Visit(browser, running.address)
    page = visit.page
    dialog = page.get_by_role("dialog", name="Key")
    expect(dialog.get_by_label("Key", exact=True)).to_be_focused()
    page.keyboard.type("ragfm-wrong")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_have_text("The server does not accept this key.")
    dialog.get_by_label("Key", exact=True).fill(running.secrets["hr"])
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    visit.ask("How many days of leave do parents get?")
    secret = running.secrets["hr"]
    assert secret not in page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")
    assert all(secret not in url for url in visit.requests)
    page.get_by_role("button", name="Key").click()
    dialog.get_by_label("Key", exact=True).fill(running.secrets["guest"])
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    assert page.locator("#chats .chat").count() == 0, "another key sees no chats of the first"
    page.get_by_role("button", name="Key").click()
    dialog.get_by_role("button", name="Forget the key").click()
    expect(dialog).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    visit.context.close()


@browsing
def test_an_upload_is_shared_with_the_groups_that_are_ticked(browser: Any, running: Running) -> None:
    visit = Visit(browser, running.address)
    page = visit.page
    page.get_by_role("dialog", name="Key").get_by_label("Key", exact=True).fill(running.secrets["hr"])
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_have_value("handbook")
    page.locator("#documents-open").click()
    page.get_by_role("group", name="Share what you add with").get_by_label("hr").wait_for()
    page.locator("#files").set_input_files({"name": "unshared.txt", "mimeType": "text/plain", "buffer": b"Mine."})
    page.locator(".card", has_text="unshared.txt").first.wait_for()  # of an upload, or already of a document
    page.get_by_role("group", name="Share what you add with").get_by_label("hr").check()
    page.locator("#files").set_input_files({"name": "shared.txt", "mimeType": "text/plain", "buffer": b"Of us."})
    (team,) = eventually(lambda: list(running.folder.glob("uploads/[!.]*/shared.txt")))
    (mine,) = eventually(lambda: list(running.folder.glob("uploads/[!.]*/unshared.txt")))
    records = UploadFolder(running.folder).records()
    assert records[team.parent.name].groups == ("key:hr", "hr")
    assert records[mine.parent.name].groups == ("key:hr",)
    visit.context.close()


@browsing
def test_an_upload_that_has_no_place_yet_is_sent_again(visit: Visit) -> None:
    page, refused = visit.page, list[str]()
    waiting = json.dumps({"error": {"message": "x", "type": "rate_limit_error", "code": "uploads_waiting"}})

    def refuse_once(route: Any) -> None:
        if route.request.method == "POST" and not refused:
            refused.append(route.request.url)
            route.fulfill(status=429, headers={"Retry-After": "1"}, body=waiting)
        else:
            route.continue_()

    page.route("**/v1/documents*", refuse_once)
    expect(page.locator("#model")).to_have_value("handbook")
    page.locator("#documents-open").click()
    page.locator("#files").set_input_files({"name": "late.txt", "mimeType": "text/plain", "buffer": b"Late."})
    expect(page.locator("#uploads .card", has_text="late.txt")).to_contain_text("Waiting")
    expect(page.locator("#cards .card", has_text="late.txt").first).to_be_visible()
    assert refused


def _fulfil(answer: dict[str, Any], route: Any) -> None:
    route.fulfill(**answer)


@browsing
def test_errors_are_shown_and_the_question_can_be_asked_again(visit: Visit) -> None:
    page = visit.page
    expect(page.locator("#model")).to_have_value("handbook")
    busy = json.dumps({"error": {"message": "x", "type": "rate_limit_error", "param": None, "code": "queue_full"}})
    cut = 'data: {"choices":[{"index":0,"delta":{"content":"Half an <b>ans"},"finish_reason":null}]}\n\n'
    late = cut + 'data: {"error":{"message":"It took too long."}}\n\n'
    for answer, said in (
        ({"status": 429, "headers": {"Retry-After": "1"}, "body": busy}, BUSY),
        ({"status": 502, "body": "<html>Bad gateway"}, "The server failed (502)."),
        ({"body": cut}, "The connection broke before the end of the answer."),
        ({"body": late}, "It took too long."),
    ):
        page.route("**/v1/chat/completions", partial(_fulfil, answer), times=1)
        visit.ask("How many days of leave do I get?", wait=False)
        expect(page.get_by_role("alert").locator("p")).to_have_text(said)
        if "body" in answer and answer["body"] in (cut, late):
            expect(page.locator(".text").last).to_have_text("Half an <b>ans")
        page.get_by_role("button", name="Ask again", exact=True).click()
        page.locator(".turn").last.locator(".chip").wait_for()
        assert page.get_by_role("alert").locator("p").count() == 0
    visit.context.set_offline(True)
    visit.ask("How many days of leave do I get?", wait=False)
    expect(page.get_by_role("alert").locator("p")).to_contain_text("The server cannot be reached.")


# --- The real thing ----------------------------------------------------------------------------------------------


@browsing
@pytest.mark.slow
def test_a_newcomer_gets_from_the_demo_to_a_chatting_page_with_two_commands(browser: Any, tmp_path: Path) -> None:
    ragfm = [sys.executable, "-c", "from ragfm.cli import main; main()"]
    subprocess.run([*ragfm, "demo"], cwd=tmp_path, check=True, capture_output=True)
    command = [*ragfm, "serve", "-c", "ragfm-demo/.ragfm", "--no-auth", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        try:
            said = next(line for line in server.stderr if "http://" in line)
            threading.Thread(target=server.stderr.read, daemon=True).start()
            visit = Visit(browser, re.findall(r"http://[\d.]+:\d+", said)[0])
            visit.context.set_default_timeout(120_000)
            assert httpx.get(visit.address).status_code == 200
            visit.ask("How long is the probation period?")
            visit.page.locator("button.cite").first.click()
            assert "four months" in visit.page.locator("mark.active").inner_text()
            visit.all_well()
        finally:
            server.terminate()
            assert server.wait(60) in (0, -15)
