"""`/v1/chat/completions`, models, embeddings and searches, with OpenAI's client."""

from __future__ import annotations

import re
from base64 import b64encode
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from support.openai_server import WORDS, running_server
from support.running_server import ANSWER, QUESTION, SECRET, Running, eventually, request_lines, serve

from ragfm import Rag
from ragfm.core.table_rows import TableRow
from ragfm.core.types import Answer, Citation, Usage
from ragfm.generation.answer_log import AnswerLog
from ragfm.generation.answer_stream import AnswerStream
from ragfm.generation.readers import load_reader
from ragfm.server.api_keys import Key
from ragfm.server.prometheus_metrics import Metrics
from ragfm.server.request_guard import Limits, RequestGuard
from ragfm.testing import HashingEmbedder, ScriptedReader


def test_a_plain_answer_has_citations_usage_and_details(running: Running) -> None:
    answer = running.openai().chat.completions.create(model="handbook", messages=QUESTION)
    message = answer.choices[0].message
    assert message.content == "You get 28 days of leave [1]. Parents get 16 weeks more [2][1]."
    assert answer.choices[0].finish_reason == "stop"
    cited = [citation.url_citation for citation in message.annotations]
    first, second = "You get 28 days of leave [1].", "Parents get 16 weeks more [2][1]."
    assert [message.content[span.start_index : span.end_index] for span in cited] == [first, second, second]
    details = answer.model_extra["ragfm"]
    citation = details["citations"][0]
    assert citation["quote"] == "You get 28 days of leave."
    assert citation["verified"]
    assert cited[0].url == f"{running.address}/v1/documents/docs/leave.md?model=handbook"
    document = running.client().get(cited[0].url).json()
    assert document["text"][citation["start"] : citation["end"]] == citation["quote"]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 50
    assert details["dropped"] == []
    assert details["passages"][0]["n"] == 1
    assert not details["abstained"]


def test_a_quoted_table_row_is_a_markdown_table_below_the_answer(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = TableRow(("Country", "2025", "2026"), ("Norway", "€43", "€46"), label="Norway", column=2)
    quote = Citation(1, "docs/rates.md", None, 0, 22, "| Norway | €43 | €46 |", verified=False, row=row)
    shown = "I am not sure. The documents say: Norway — 2026: €46 [1]"
    answer = Answer("Norway?", "€46 [1].", "unsure", (), (), (), Usage(), 0.1, quote=quote, shown=shown)
    monkeypatch.setattr(Rag, "stream", lambda *_, **__: AnswerStream.of(answer))
    message = running.openai().chat.completions.create(model="handbook", messages=QUESTION).choices[0].message
    table = "| Country | 2025 | 2026 |\n| --- | --- | --- |\n| Norway | €43 | **€46** |"
    assert message.content == f"{shown}\n\n{table}"
    assert message.annotations[0].url_citation.end_index == len(shown)


@pytest.mark.parametrize("apart", [False, True], ids=["in the last chunk", "in a chunk of its own"])
def test_a_stream_has_the_readers_words_and_then_the_details(running: Running, apart: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if apart else {}
    stream = running.openai().chat.completions.create(model="handbook", messages=QUESTION, stream=True, **options)
    chunks = list(stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert (chunks[-1].choices == []) == apart
    end = chunks[-2 if apart else -1].choices[0]
    assert end.finish_reason == "stop"
    spans = [note["url_citation"] for note in end.delta.model_extra["annotations"]]
    first, second = "You get 28 days of leave.", "Parents get 16 weeks more [1]."
    assert [said[span["start_index"] : span["end_index"]] for span in spans] == [first, second, second]
    assert chunks[-1].usage.completion_tokens > 5
    details = chunks[-1].model_extra["ragfm"]
    assert details["answer"].count("[1]") == 2
    assert details["citations"][0]["uri"] == "docs/leave.md"
    assert all(chunk.usage is None and "ragfm" not in chunk.model_extra for chunk in chunks[:-1])


def test_conversation_and_sampling_reach_the_reader(running: Running, script: ScriptedReader) -> None:
    turns = [
        {"role": "system", "content": "Talk like a pirate."},
        {"role": "user", "content": [{"type": "text", "text": "How many days of leave do I get?"}]},
        {"role": "assistant", "content": "28 days [1]."},
        {"role": "user", "content": "And for parents?"},
    ]
    create = running.openai().chat.completions.create
    create(model="handbook:script", messages=turns[:2], max_tokens=2)
    answer = create(model="handbook:script", messages=turns, max_tokens=2)
    before, prompt = script.prompts[-2:]
    assert "pirate" not in str(prompt)
    passages, _, _ = before[1].content.rpartition("\n\n")  # not sent by the client
    assert prompt[1].content.startswith(f"{passages}\n\n")
    assert "\n\nQ: How many days of leave do I get?\nA: 28 days [1].\n\n" in prompt[1].content
    assert answer.model_extra["ragfm"]["query"] != "And for parents?"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 2


def test_no_hits_give_an_abstention(running: Running) -> None:
    options = {"ragfm": {"filter": "title = 'no such document'"}}
    answer = running.openai().chat.completions.create(model="handbook", messages=QUESTION, extra_body=options)
    assert answer.choices[0].message.content == "I don't know."
    assert answer.model_extra["ragfm"]["abstained"]


@pytest.mark.parametrize(
    ("asked", "error", "param"),
    [
        ({"model": "nothing"}, openai.NotFoundError, "model"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "assistant", "content": "hm"}]}, openai.BadRequestError, "messages"),
        ({"n": 2}, openai.BadRequestError, "n"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools"),
        ({"extra_body": {"ragfm": {"filter": "year >"}}}, openai.BadRequestError, None),
        ({"extra_body": {"ragfm": {"filter": "titel like '%'"}}}, openai.BadRequestError, None),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, openai.BadRequestError, None),
    ],
    ids=["model", "none", "no question", "n", "tools", "filter", "key", "too long"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_invalid_requests_are_refused_as_by_openai(
    running: Running, asked: dict[str, object], error: type[openai.APIStatusError], param: str | None, stream: bool
) -> None:
    with pytest.raises(error) as caught:
        running.openai().chat.completions.create(
            **{"model": "handbook", "messages": QUESTION, "stream": stream} | asked
        )
    assert caught.value.param == param
    assert caught.value.type
    assert caught.value.message


@pytest.mark.parametrize(
    ("route", "asked", "param", "known"),
    [
        ("chat/completions", {"messages": QUESTION, "ragfm": {"filters": "year > 1"}}, "ragfm.filters", "k, filter"),
        ("chat/completions", {"messages": QUESTION, "filter": "year > 1"}, "filter", "a member of `ragfm`"),
        ("search", {"query": "leave", "filters": "year > 1"}, "filters", "query, model, k, mode, filter"),
        ("ratings", {"rating": "handbook/1", "thumbs": "up", "comment": ""}, "comment", "rating, thumbs, correction"),
    ],
)
def test_unknown_members_of_ragfms_own_objects_are_refused(
    running: Running, route: str, asked: dict[str, object], param: str, known: str
) -> None:
    body = {**asked, "model": "handbook"} if route != "ratings" else asked
    said = running.client().post(f"/v1/{route}", json=body)
    assert said.status_code == 400
    assert said.json()["error"]["param"] == param
    assert said.json()["error"]["message"].startswith(f"{param}: ")
    assert known in said.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_ignored_members_of_openais_objects_are_named_in_a_header(running: Running, stream: bool) -> None:
    client = running.client()
    asked = {"model": "handbook", "messages": QUESTION, "stream": stream}
    said = client.post("/v1/chat/completions", json={**asked, "user": "ann", "top_k": 3, "no\r\nheader": 1})
    assert said.status_code == 200
    assert said.headers["x-ragfm-ignored"] == "user, top_k"
    assert "x-ragfm-ignored" not in client.post("/v1/chat/completions", json=asked).headers
    said = client.post("/v1/embeddings", json={"model": "handbook", "input": "leave", "user": "ann"})
    assert (said.status_code, said.headers["x-ragfm-ignored"]) == (200, "user")


@pytest.mark.parametrize(
    ("route", "asked", "message"),
    [
        ("embeddings", {"input": []}, "input: list should have at least 1 item"),
        ("embeddings", {"input": [[1, 2]]}, "input.0: input should be a valid string"),
        ("chat/completions", {"messages": QUESTION, "stop": ["."] * 17}, "stop: list should have at most 16 items"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]},
            "messages.0.content.0: input tag 'file' found using 'type' does not match",
        ),
    ],
    ids=["no text", "tokens", "stop", "part"],
)
def test_the_error_of_a_value_with_several_types_is_that_of_the_nearest_one(
    running: Running, route: str, asked: dict[str, object], message: str
) -> None:
    error = running.client().post(f"/v1/{route}", json={"model": "handbook", **asked}).json()["error"]
    assert error["message"].startswith(message)
    assert error["param"] == message.partition(":")[0]


@pytest.mark.parametrize(
    ("route", "asked"),
    [
        ("chat/completions", b'{"model": "handbook", "messages": [{"role": "user", "content": "leave \\ud800"}]}'),
        (
            "chat/completions",
            b'{"model": "handbook", "messages": [{"role": "user", "content": "\\ud800"},'
            b'{"role": "user", "content": "And now?"}], "stream": true}',
        ),
        ("embeddings", b'{"model": "handbook", "input": ["leave", "\\udfff"]}'),
        ("search", b'{"query": "leave \\ud800"}'),
    ],
    ids=["question", "conversation", "embeddings", "search"],
)
def test_a_lone_surrogate_is_a_client_error(running: Running, route: str, asked: bytes) -> None:
    said = running.client().post(f"/v1/{route}", content=asked, headers={"content-type": "application/json"})
    assert said.status_code == 400, said.text
    assert said.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("asked", "param", "message"),
    [
        (b'{"query": ""}', "query", "query: string should have at least 1 character."),
        (b"{}", "query", "query: field required."),
        (b'{"query": "leave"', None, "The body is not JSON: Expecting ',' delimiter at character 17."),
        (b'"leave"', None, "The body is not a JSON object, or lacks the header `Content-Type: application/json`."),
    ],
)
def test_an_invalid_body_is_named(running: Running, asked: bytes, param: str | None, message: str) -> None:
    said = running.client().post("/v1/search", content=asked, headers={"content-type": "application/json"})
    error = said.json()["error"]
    assert (said.status_code, error["param"], error["message"]) == (400, param, message)


def test_an_error_of_the_reader_gives_no_details(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> str:
        raise RuntimeError(SECRET)

    reader = running.app.state.service.served.models["handbook"].rag.reader
    monkeypatch.setattr(reader, "_script", fail)
    with pytest.raises(openai.InternalServerError) as caught:
        running.openai().chat.completions.create(model="handbook", messages=QUESTION)
    assert SECRET not in str(caught.value)
    assert caught.value.request_id


def test_models(running: Running) -> None:
    client = running.openai()
    assert [model.id for model in client.models.list()] == ["handbook", "handbook:script"]
    assert client.models.retrieve("handbook:script").owned_by == "ragfm"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("payroll")


def test_embeddings_are_the_collections_own(running: Running) -> None:
    texts = ["parents", "the office opens"]
    found = running.openai().embeddings.create(model="handbook", input=texts)  # asks for base64
    assert np.allclose([item.embedding for item in found.data], HashingEmbedder().embed_passages(texts))
    plain = running.openai().embeddings.create(model="handbook", input="parents", encoding_format="float")
    assert np.allclose(plain.data[0].embedding, found.data[0].embedding)
    assert found.usage.prompt_tokens == 4
    with pytest.raises(openai.BadRequestError):
        running.openai().embeddings.create(model="handbook", input="parents", dimensions=7)


def test_searches(running: Running) -> None:
    hits = running.client().post("/v1/search", json={"query": "the office opens and closes", "k": 1}).json()["data"]
    assert [hit["uri"] for hit in hits] == ["docs/hours.txt"]
    assert running.client().post("/v1/search", json={"query": " "}).status_code == 400


def test_a_request_has_an_id(running: Running) -> None:
    assert running.client().get("/healthz", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    odd = running.client().get("/healthz", headers={"X-Request-ID": "a b"}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{16}", odd)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/healthz", "GET, HEAD"),
        ("PUT", "/v1/documents", "GET, POST"),
        ("HEAD", "/v1/documents/docs/leave.md", "DELETE, GET"),
        ("POST", "/", "GET, HEAD"),
    ],
)
def test_other_methods_get_405_with_those_that_are_allowed(
    running: Running, method: str, path: str, allowed: str
) -> None:
    refused = running.client().request(method, path)
    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)


def test_figures(running: Running) -> None:
    running.client().post("/v1/search", json={"query": "leave"})
    text = running.client().get("/metrics").text
    assert 'ragfm_requests_total{method="POST",route="/v1/search",status="200"}' in text
    assert "ragfm_waiting 0.0" in text
    assert 'ragfm_generation{collection="handbook"}' in text
    assert 'ragfm_index_lag_seconds{collection="handbook"} ' in text
    assert not any(name in text for name in ("leave.md", "guest"))


def test_a_server_is_not_ready_while_no_server_of_its_reader_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragfm.server.service._CHECK_SECONDS", 0.05)
    with running_server() as first, running_server() as second:
        reader = load_reader("openai:m", base_url=f"{first.address}/v1,{second.address}/v1")
        with serve(tmp_path, reader) as running:
            client = running.client()

            def is_ready() -> bool:
                return client.get("/readyz").status_code == 200

            eventually(is_ready, 300)
            first.die()
            host = first.address.removeprefix("http://")
            eventually(lambda: f'ragfm_reader_server_up{{server="{host}"}} 0.0' in client.get("/metrics").text, 300)
            assert is_ready()
            second.die()
            eventually(lambda: client.get("/readyz").json() == {"status": "reader unavailable"}, 300)
            assert not is_ready()
            with running_server(port=second.server_address[1]):
                eventually(is_ready, 300)


def test_without_keys_only_local_requests_are_accepted() -> None:
    guard = RequestGuard(
        PlainTextResponse("in"),
        keys=None,
        sign_in=None,
        limits=Limits(),
        metrics=Metrics(lambda: 0, lambda: 0),
        is_public=lambda _: False,
    )
    client = TestClient(guard)
    for good in ({"host": "localhost:8000"}, {"host": "[::1]:8000", "origin": "http://[::1]:8000"}):
        assert client.get("/v1/models", headers=good).text == "in"
    for bad in (
        {"host": "evil.example:8000"},
        {"host": "localhost:8000", "origin": "https://evil.example"},
        {"host": ""},
        {"host": "localhost:8000", "origin": "http://localhost:3000"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "localhost:8000", "origin": "null"},
    ):
        refused = client.get("/v1/models", headers=bad)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_local")


def test_a_stream_that_fails_midway_ends_with_an_error(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = AnswerStream.step

    def failing(stream: AnswerStream) -> str | None:
        piece = taken(stream)
        if "28" in (piece or ""):
            raise RuntimeError(SECRET)
        return piece

    monkeypatch.setattr(AnswerStream, "step", failing)
    said = list[str]()
    stream = running.openai().chat.completions.create(model="handbook", messages=QUESTION, stream=True)
    with pytest.raises(openai.APIError) as caught:
        said.extend(chunk.choices[0].delta.content for chunk in stream)
    assert said == ["You", " get"]
    assert SECRET not in str(caught.value.body)
    figures = lambda: running.client().get("/metrics").text  # noqa: E731
    failed = 'ragfm_requests_total{method="POST",route="/v1/chat/completions",status="500"}'
    eventually(lambda: failed in figures())
    assert 'ragfm_failures_total{code="internal_error"}' in figures()


def test_only_the_answers_of_a_failed_server_end_with_an_error(tmp_path: Path) -> None:
    with running_server() as first, running_server() as second:
        reader = load_reader("openai:m", base_url=f"{first.address}/v1,{second.address}/v1", retries=0)
        with serve(tmp_path, reader) as running:
            first.failures = [3]  # words
            answers = []
            for _ in range(3):
                said: list[str] = []
                try:
                    stream = running.openai().chat.completions.create(model="handbook", messages=QUESTION, stream=True)
                    said.extend(chunk.choices[0].delta.content or "" for chunk in stream)
                    answers.append("".join(said))
                except openai.APIError as error:
                    answers.append(f"{error.code}: {error.message}")
            failed = "reader_unavailable: The reader's server failed. Ask again."
            assert [answer.removesuffix("\nI don't know.") for answer in answers] == [failed, WORDS, WORDS]
            first.failures = second.failures = [(503, {}, {})] * 20
            reply = running.client().post("/v1/chat/completions", json={"model": "handbook", "messages": QUESTION})
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "reader_unavailable")


def test_a_key_rates_only_its_own_answers(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    model = running.app.state.service.served.models["handbook"]
    monkeypatch.setattr(model.rag, "log", AnswerLog.for_collection(running.folder))
    answer = running.openai("guest").chat.completions.create(model="handbook", messages=QUESTION)
    rating = {"rating": answer.model_extra["ragfm"]["rating"], "thumbs": "down", "correction": "16 weeks"}
    said: httpx.Response = running.client("guest").post("/v1/ratings", json=rating)
    assert said.status_code == 200
    entry = model.rag.log.entries()[-1]
    assert (entry.thumbs, entry.correction) == ("down", "16 weeks")
    for number in range(entry.id + 2):  # the ids do not tell how much others ask
        said = running.client("guest").post("/v1/ratings", json=rating | {"rating": f"handbook/{number}"})
        assert said.status_code == 404
    for key in ("hr", "other"):
        assert running.client(key).post("/v1/ratings", json=rating).status_code == 404
    assert running.client("guest").post("/v1/ratings", json=rating | {"rating": "handbook/77"}).status_code == 404


def test_a_request_sees_only_the_groups_that_it_names(running: Running) -> None:
    secret = running.keys.add(Key(name="portal", groups=("hr", "board")))
    client = httpx.Client(base_url=running.address, headers={"Authorization": f"Bearer {secret}"}, timeout=60)
    own = client.post("/v1/documents", files={"file": ("crowns.txt", b"Crowns of the director.")}).json()["uri"]
    eventually(lambda: client.get(f"/v1/documents/{own}").json()["state"] == "ready", 300)
    hr, board = "docs/hr/salaries.txt", "docs/board/plans.txt"
    for groups, seen in ((None, {hr, board, own}), (["hr"], {hr}), (["board"], {board}), ([], set())):
        body = {"query": "director salary boat", "k": 50} | ({} if groups is None else {"groups": groups})
        found = {hit["uri"] for hit in client.post("/v1/search", json=body).json()["data"]}
        options = {"k": 50} | ({} if groups is None else {"groups": groups})
        asked = {"model": "handbook", "messages": [{"role": "user", "content": body["query"]}], "ragfm": options}
        answer = client.post("/v1/chat/completions", json=asked).json()["ragfm"]
        for uris in (found, {hit["uri"] for hit in answer["passages"]}):
            assert uris & {hr, board, own} == seen
    running.keys.revoke("portal")


def test_a_request_cannot_name_a_group_that_its_key_does_not_have(running: Running) -> None:
    client = running.client("guest")
    for group in ("hr", "key:hr", "key:guest"):
        asked = {"model": "handbook", "messages": QUESTION, "ragfm": {"groups": [group]}}
        for route, body in (("search", {"query": "leave", "groups": [group]}), ("chat/completions", asked)):
            said = client.post(f"/v1/{route}", json=body)
            assert (said.status_code, said.json()["error"]["message"]) == (400, f"The key has no group {group!r}.")


def test_the_logs_have_the_groups_and_the_id_of_a_request(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = running.app.state.service.served.models["handbook"]
    monkeypatch.setattr(model.rag, "log", AnswerLog.for_collection(running.folder))
    client = running.client("hr")
    asked = {"model": "handbook", "messages": QUESTION, "ragfm": {"groups": []}}
    with caplog.at_level("INFO", "ragfm.server.requests"):
        said = client.post("/v1/chat/completions", json=asked, headers={"X-Request-ID": "ticket-7"})
        # a request of the test before may be noted here: a response is sent before its line is written
        (line,) = eventually(lambda: [line for line in request_lines(caplog) if line["request_id"] == "ticket-7"])
    details, entry = said.json()["ragfm"], model.rag.log.entries()[-1]
    assert (line["request_id"], line["groups"]) == ("ticket-7", [])
    assert (entry.request_id, entry.key, entry.groups) == ("ticket-7", "hr", [])
    assert (entry.status, entry.confidence, entry.shown) == tuple(details[k] for k in ("status", "confidence", "shown"))
    rating = {"rating": details["rating"], "thumbs": "up"}
    assert client.post("/v1/ratings", json=rating).status_code == 200
    assert running.client("other").post("/v1/ratings", json=rating).status_code == 404


# --- images ------------------------------------------------------------------------------------------------------

PICTURE = b"\x89PNG\r\n\x1a\n any bytes: the scripted reader does not look at them"
DATA_URI = f"data:image/png;base64,{b64encode(PICTURE).decode()}"


def with_image(url: str, role: str = "user") -> list[dict[str, object]]:
    image = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    text = {"type": "text", "text": "How many days of leave does this form show?"}
    return [{"role": role, "content": [text, image]}]


def test_images_reach_a_reader_with_vision(tmp_path: Path) -> None:
    reader = ScriptedReader(["You get 28 days of leave [1]."], vision=True)
    with serve(tmp_path, reader) as running:
        asked = [*with_image(DATA_URI), {"role": "assistant", "content": "28."}, *with_image(DATA_URI)]
        answer = running.openai().chat.completions.create(model="handbook", messages=asked)
    assert answer.choices[0].message.content
    images = reader.prompts[-1][-1].images
    assert [(image.media_type, image.data) for image in images] == [("image/png", PICTURE)] * 2
    assert answer.model_extra["ragfm"]["notes"] == []


@pytest.mark.parametrize(
    ("vision", "messages", "why"),
    [
        (False, with_image(DATA_URI), "'handbook' cannot see images"),
        (True, with_image(DATA_URI, "assistant") + QUESTION, "Only a user's messages"),
        (True, with_image("https://example.org/chart.png"), "no addresses are fetched"),
        (True, with_image("file:///etc/passwd"), "no addresses are fetched"),
        (True, with_image("data:image/svg+xml;base64,PHN2Zy8+"), "PNG, JPEG or WebP"),
        (True, with_image("data:image/png;base64,!!!"), "base64 of an image is not valid"),
        (True, [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "messages"),
    ],
)
def test_images_that_cannot_be_used_are_refused(
    tmp_path: Path, vision: bool, messages: list[dict[str, object]], why: str
) -> None:
    reader = ScriptedReader(["28 days."], vision=vision)
    with serve(tmp_path, reader) as running, pytest.raises(openai.BadRequestError, match=re.escape(why)) as caught:
        running.openai().chat.completions.create(model="handbook", messages=messages)
    assert "messages" in str(caught.value.param)
    assert not reader.prompts


def test_every_error_has_the_id_of_its_request(running: Running) -> None:
    wrong: list[tuple[str, dict[str, object]]] = [
        ("/v1/nothing", {}),
        ("/v1/search", {"query": ""}),
        ("/v1/chat/completions", {"model": "other", "messages": QUESTION}),
    ]
    for number, (path, body) in enumerate(wrong):
        refused = running.client().post(path, json=body, headers={"X-Request-ID": f"ticket-{number}"})
        assert refused.json()["error"]["request_id"] == refused.headers["x-request-id"] == f"ticket-{number}"
    refused = running.client(None).post("/v1/search", json={"query": "leave"})
    assert (refused.status_code, refused.json()["error"]["request_id"]) == (401, refused.headers["x-request-id"])
