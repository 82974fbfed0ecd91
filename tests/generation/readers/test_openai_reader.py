"""The openai reader with llama-cpp-python's server, and with a test server that fails in many ways."""

from __future__ import annotations

import base64
import gc
import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.free_port import free_port
from support.openai_server import WORDS, Server, running_server, wait_until

from ragfm import Collection, Rag, Settings
from ragfm.core.errors import (
    ConfigError,
    ContextOverflowError,
    EndpointError,
    ModelNotFoundError,
    RagfmError,
    ReaderBusyError,
    UnsupportedError,
)
from ragfm.core.types import CLOSED, ImagePart, Message, Sampling, Usage
from ragfm.evaluation.reader_verdict import judge_answer, verdict_sampling
from ragfm.generation.readers import configured_reader, load_reader
from ragfm.generation.readers.openai_reader import OpenAIReader, estimate_tokens
from ragfm.models.model_lookup import find_model
from ragfm.testing import HashingEmbedder, check_reader

ASKED = [Message("user", "Count from one to ten, in words.")]
KEY = "sk-secret-0123456789"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with running_server() as running:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{running.address}/v1/")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
        yield running


def test_it_keeps_the_contract(server: Server) -> None:
    check_reader(load_reader("openai:m", context_tokens=512))
    headers, body = server.asked[0]
    assert headers["authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": ASKED[0].content}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "max_tokens": 16,
    }


def test_request_parameters(server: Server) -> None:
    reader = OpenAIReader("m", omit=("stream_options",))
    stream = reader.stream(ASKED, Sampling(temperature=0.7, top_p=0.9, min_p=0.1, seed=3, max_tokens=5, stop=("", "X")))
    assert "".join(stream) == "One, two, three, four, five,"
    assert stream.finish_reason == "length"
    assert stream.usage == Usage(30, 10, 5)
    body = server.asked[0][1]
    assert body.items() >= {"temperature": 0.7, "top_p": 0.9, "min_p": 0.1, "seed": 3, "stop": ["X"]}.items()
    assert "stream_options" not in body


def test_judging_with_and_without_schema_support(server: Server) -> None:
    server.words = '{"right": true}'
    reader = load_reader("openai:m")
    way = verdict_sampling(reader)
    assert judge_answer(reader, way, "How many days?", ["28"], "28 days.")
    schemas = [body["response_format"]["json_schema"]["schema"]["properties"] for _, body in server.asked]
    assert schemas == 2 * [{"right": {"type": "boolean"}}]
    server.failures = [(400, {}, {"error": {"message": "response_format is unknown"}})]
    assert verdict_sampling(reader).schema is None


def test_a_schema_and_log_probabilities(server: Server) -> None:
    schema = {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]}
    stream = load_reader("openai:m").stream(ASKED, Sampling(max_tokens=3, schema=schema, logprobs=True))
    assert "".join(stream) == "One, two, three,"
    assert stream.logprobs == (-0.5, -0.5, -0.5)
    form = server.asked[0][1]["response_format"]["json_schema"]
    assert form == {"name": "answer", "schema": {**schema, "additionalProperties": False}, "strict": True}


def test_temporary_failures_are_retried_when_the_server_says(server: Server) -> None:
    server.failures = [(429, {"Retry-After": "0.3"}, {}), (503, {}, b"<html>")]
    start = time.monotonic()
    assert "".join(load_reader("openai:m").stream(ASKED)) == WORDS
    assert time.monotonic() - start >= 0.3
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        ((401, {}, {"error": {"message": f"Incorrect API key provided: {KEY}."}}), ConfigError, "status 401"),
        ((404, {}, {"error": {"message": "no model m"}}), ModelNotFoundError, "no model m"),
        ((429, {}, {"error": {"message": "slow down"}}), ReaderBusyError, "slow down"),
        ((400, {}, {"error": {"message": "no temperature"}}), UnsupportedError, "no temperature"),
        ((400, {}, {"error": {"code": "context_length_exceeded", "message": "9"}}), ContextOverflowError, "9"),
        ((500, {}, b"<html>"), EndpointError, "status 500"),
        ((302, {"Location": "/v2/chat/completions"}, b""), EndpointError, "302"),
        ((200, {"Content-Type": "text/html"}, b"<html>hello</html>"), EndpointError, "after 0 characters"),
        ((200, {"Content-Type": "text/event-stream"}, b"data: {torn\n\n"), EndpointError, "invalid response"),
        (
            (200, {"Content-Type": "text/event-stream"}, b'data: {"error": {"message": "out of memory"}}\n\n'),
            EndpointError,
            "out of memory",
        ),
        (3, EndpointError, "stopped in the middle of its answer, after 16 characters"),
        ((200, {"Content-Type": "text/event-stream", "Content-Length": "99"}, b": hello\n\n"), EndpointError, "closed"),
    ],
    ids=lambda value: "" if isinstance(value, tuple | int) else getattr(value, "__name__", value),
)
def test_errors_do_not_contain_the_key(
    server: Server, answer: Any, kind: type[Exception], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.failures = [answer]
    reader = load_reader("openai:m", retries=0)
    with caplog.at_level(logging.DEBUG), pytest.raises(kind, match=said) as caught:
        list(reader.stream(ASKED))
    assert "secret" not in f"{caught.value} {caught.value.__cause__} {caplog.text} {reader!r} {vars(reader)}"
    assert f"127.0.0.1:{server.server_address[1]}" in str(caught.value)
    if kind in (UnsupportedError, ContextOverflowError):  # whose messages ragfm's own server shows to its clients
        assert "127.0.0.1" not in caught.value.message


def test_chunks_of_other_servers_are_read(server: Server) -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
    chunks: list[dict[str, Any]] = [
        {"choices": None},
        {"choices": [{"index": 0, "delta": {"content": [thinking, {"type": "text", "text": "One"}]}}]},
        {"choices": [{"index": 0, "delta": {"content": ", two"}}]},
        {"choices": [{"index": 0, "delta": None, "finish_reason": "stop"}]},
        {"usage": {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}},
    ]
    body = "".join(f"data: {json.dumps({'id': '1', 'model': 'm', **chunk})}\n\n" for chunk in chunks)
    server.failures = [(200, {"Content-Type": "text/event-stream"}, f"{body}data: [DONE]\n\n".encode())]
    stream = load_reader("openai:m").stream(ASKED)
    assert "".join(stream) == "One, two"
    assert (stream.finish_reason, stream.usage.completion_tokens) == ("stop", 2)


def event(**delta: str) -> bytes:
    return (
        b"data: " + json.dumps({"id": "1", "model": "m", "choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"
    )


@pytest.mark.parametrize(("piece", "pieces"), [("on ", 12), ("x", 8 * 12)], ids=["words", "characters"])
def test_an_answer_that_ignores_its_limit_ends_there(server: Server, piece: str, pieces: int) -> None:
    server.endless = (200, b"", event(content=piece))
    stream = load_reader("openai:m").stream(ASKED, Sampling(max_tokens=12))
    assert "".join(stream) == piece * pieces
    assert stream.finish_reason == "length"
    assert server.broken.wait(30)  # the connection is closed


def test_single_characters_are_not_counted_as_tokens(server: Server) -> None:
    body = b"".join(event(content=character) for character in "Twenty-eight days.")
    end = b'data: {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
    server.failures = [(200, {"Content-Type": "text/event-stream"}, body + end)]
    stream = load_reader("openai:m").stream(ASKED, Sampling(max_tokens=6))
    assert "".join(stream) == "Twenty-eight days."
    assert stream.finish_reason == "stop"


def test_a_stream_without_text_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragfm.generation.readers.openai_reader._MAX_WITHOUT_TEXT", 100)
    server.endless = (200, b"", event(reasoning="Hm."))
    with pytest.raises(EndpointError, match="100 chunks without text"):
        list(load_reader("openai:m", retries=0).stream(ASKED))
    assert server.broken.wait(30)


@pytest.mark.parametrize(
    "endless",
    [
        (200, b"data: ", b"x" * 65536),
        (200, event(content="One"), b"data: x\n" * 8192),
        (404, b'{"error": "', b"\n\n" * 65536),
    ],
    ids=["a line", "an event", "an error"],
)
def test_what_has_no_end_does_not_fill_the_memory(server: Server, endless: tuple[int, bytes, bytes]) -> None:
    server.endless = endless
    with pytest.raises(EndpointError, match="more than 4,194,304 bytes without an end"):
        list(load_reader("openai:m", retries=0).stream(ASKED))
    assert server.broken.wait(30)


def test_silence_is_an_error(server: Server) -> None:
    server.silent = 1
    with pytest.raises(EndpointError, match=r"sent nothing for too long after 4 characters"):
        list(load_reader("openai:m", seconds=2.0, retries=0).stream(ASKED))  # enough for the first word


def test_a_closed_stream_ends_at_the_server(server: Server) -> None:
    server.endless = (200, b"", event(content="One,"))
    stream = load_reader("openai:m").stream(ASKED)
    assert next(stream) == "One,"
    stream.close()
    assert server.broken.wait(30)


@pytest.mark.parametrize("until", ["the first word", "the second word", "the next try"])
def test_another_thread_can_close_a_waiting_stream(server: Server, until: str) -> None:
    if until == "the next try":
        server.failures = [(429, {"Retry-After": "100"}, {})]
    else:
        server.silent = 0 if until == "the first word" else 1
    stream, said = load_reader("openai:m").stream(ASKED), list[str]()

    def read() -> None:
        try:
            said.extend(stream)
        except RagfmError as error:
            said.append(str(error))

    reading = threading.Thread(target=read)
    reading.start()
    wait_until(lambda: server.waits.is_set() and (server.silent != 1 or said == ["One,"]))
    time.sleep(0.2)  # so that it waits
    stream.close()
    reading.join(20)  # the server would be waited for for 100 or 120 seconds
    assert not reading.is_alive()
    assert said[-1] == CLOSED
    wait_until(lambda: not server.connections)


def test_closed_streams_leave_neither_threads_nor_connections(server: Server) -> None:
    def threads() -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name == "ragfm-openai"}

    gc.collect()
    wait_until(lambda: not threads())
    server.silent = 2
    reader = load_reader("openai:m")
    before = threading.active_count()
    for number in range(24):
        stream = reader.stream(ASKED)
        assert next(stream) == "One,"
        if number % 3:
            stream.close()
        del stream
        wait_until(lambda: not server.connections)
        wait_until(lambda: threading.active_count() <= before + 2)  # the loop's, and one that it has for what blocks
    assert len(server.asked) == 24
    unread = reader.stream(ASKED)
    unread.close()
    assert list(unread) == []
    assert len(server.asked) == 24
    server.silent = None
    assert "".join(reader.stream(ASKED)) == WORDS
    del reader, unread
    gc.collect()
    wait_until(lambda: not threads())


def test_a_forked_process_opens_its_own_connection(server: Server) -> None:
    code = (
        "import os\n"
        "from ragfm import Message, load_reader\n"
        "reader, asked = load_reader('openai:m'), [Message('user', 'Count.')]\n"
        "stream = reader.stream(asked)\n"
        "said = next(stream)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    try:\n"
        "        list(stream)\n"
        "    except Exception as error:\n"
        "        print('forked' in str(error))\n"
        "    stream = reader.stream(asked)\n"
        "    said = ''\n"
        "print(said + ''.join(stream), flush=True)\n"
        "assert not child or os.waitpid(child, 0)[1] == 0\n"
    )
    server.pause = 0.05
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]  # Python 3.12 warns of forks
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (sorted(done.stdout.splitlines()), done.stderr) == (sorted(["True", WORDS, WORDS]), "")


def test_the_key_is_sent_only_to_the_server_in_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ragfm.toml that came with documents may name a server, but that must not get the key."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    assert "".join(load_reader("openai:m", base_url=f"{server.address}/v1").stream(ASKED)) == WORDS
    assert "secret" not in str(server.asked)
    server.failures = [(401, {}, {"error": {"message": "who are you?"}})]
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL does not name this server"):
        list(load_reader("openai:m", base_url=server.address).stream(ASKED))
    with pytest.raises(ConfigError, match="http://"):
        load_reader("openai:m", base_url="ftp://x")


def test_settings_reach_the_reader(server: Server, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGFM_READER_OPTIONS", '{"openai": {"extra_body": {"top_k": 3}}}')
    monkeypatch.setenv("RAGFM_READER_OPTIONS__OPENAI__RETRIES", "0")
    collection = Collection.open(tmp_path / "c", settings=Settings(reader="openai:m"), embedder=HashingEmbedder())
    collection.sync(docs)
    Rag(collection).ask("How many days of leave do I get?")
    assert server.asked[-1][1]["top_k"] == 3
    server.failures = [(503, {}, b"")]
    with pytest.raises(EndpointError, match="status 503"):
        Rag(collection).ask("How many days of leave do I get?")
    monkeypatch.setenv("RAGFM_READER_OPTIONS__OPENAI__NONSENSE", "0")
    with pytest.raises(ConfigError, match="nonsense"):
        Rag(Collection.open(tmp_path / "c", settings=Settings(reader="openai:m")))


def test_unsupported_options_are_errors() -> None:
    reader = load_reader("openai:m")
    with pytest.raises(UnsupportedError, match="grammar"):
        reader.stream(ASKED, Sampling(grammar='root ::= "a"'))
    with pytest.raises(UnsupportedError, match="adapter"):
        list(reader.stream(ASKED, Sampling(adapter="x")))


@pytest.mark.parametrize(
    "option", [{"seconds": "soon"}, {"seconds": 0}, {"retries": -1}, {"retries": "x"}, {"context_tokens": 0}]
)
def test_an_invalid_option_is_an_error(option: dict[str, object]) -> None:
    (name,) = option
    with pytest.raises(ConfigError, match=f"Invalid reader option {name}: "):
        load_reader("openai:m", **option)


@pytest.mark.parametrize("name", ["openai", "openai:"])
def test_a_model_has_to_be_named(name: str) -> None:
    with pytest.raises(ConfigError, match="Use openai:NAME"):
        load_reader(name)


def test_omitted_parameters_are_not_sent() -> None:
    how = Sampling(temperature=0.7, min_p=0.1)
    assert OpenAIReader("m", omit=("min_p",))._request(ASKED, how, 5).keys().isdisjoint({"extra_body", "min_p"})
    sent = OpenAIReader("m", omit="temperature, seed")._request(ASKED, how, 5)  # as the environment may have it
    assert sent.keys().isdisjoint({"temperature", "seed"})
    assert sent["extra_body"] == {"min_p": 0.1}


def test_parameters_in_addition(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = {"top_k": 20, "chat_template_kwargs": {"enable_thinking": False}, "temperature": 0.6}
    how = Sampling(temperature=0.7, min_p=0.1, max_tokens=5)
    "".join(OpenAIReader("m", extra_body=extra).stream(ASKED, how))
    assert server.asked[0][1].items() >= {**extra, "min_p": 0.1}.items()
    monkeypatch.setenv("RAGFM_READER_OPTIONS__OPENAI__EXTRA_BODY", json.dumps(extra))
    reader = configured_reader("openai:m", Settings())
    "".join(reader.stream(ASKED, how))
    assert server.asked[1][1].items() >= extra.items()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("[1]", "not a table"),
        ("{", "extra_body: "),
        ({"model": "x"}, "itself sets 'model'"),
        ({"a": {1}}, "not JSON serializable"),
    ],
)
def test_an_invalid_extra_body_is_an_error(extra: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OpenAIReader("m", extra_body=extra)


# --- llama-cpp-python's server -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "log"


@pytest.fixture(scope="module")
def llama_server(llama_log: Path) -> Iterator[str]:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "llama_cpp.server",
        "--model",
        str(find_model("bundled", "reader")),
        "--port",
        str(port),
        "--n_ctx",
        "512",
        "--n_threads",
        "1",
        "--interrupt_requests",
        "false",
    ]
    environment = {**os.environ, "GOMP_SPINCOUNT": "300", "PYTHONUNBUFFERED": "1"}
    with llama_log.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.DEVNULL, env=environment)
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models").close()
                break
            except urllib.error.URLError:
                assert process.poll() is None, "the server has ended"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_real_server_keeps_the_contract(llama_server: str) -> None:
    check_reader(load_reader("openai:m", base_url=llama_server, context_tokens=512))


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [0, 1])
def test_a_real_server_ends_a_closed_stream(llama_server: str, llama_log: Path, pieces: int) -> None:
    """Before and after the first token. llama-cpp-python's server always finishes evaluating the prompt."""
    before = llama_log.read_text().count("Disconnected from client")
    reader = load_reader("openai:m", base_url=llama_server, context_tokens=512)
    stream = reader.stream([Message("user", f"{pieces} " + "Count to a thousand. " * 60)], Sampling(max_tokens=100))
    said, ended = list[str](), list[str]()

    def read() -> None:
        try:
            said.extend(stream)
        except RagfmError as error:
            ended.append(str(error))

    reading = threading.Thread(target=read)
    reading.start()
    time.sleep(0.5)
    wait_until(lambda: len(said) >= pieces, 120)
    stream.close()
    reading.join(120)
    assert ended == [CLOSED]
    assert len(said) < 90
    wait_until(lambda: llama_log.read_text().count("Disconnected from client") == before + 1, 120)
    assert "".join(reader.stream(ASKED, Sampling(max_tokens=2)))


@pytest.mark.slow
def test_the_token_estimate_is_an_upper_bound() -> None:
    counting = load_reader("bundled", threads=1)
    texts = [
        "The office opens at nine.",
        "x" * 40,
        "日本語のテキスト",
        "naïve café, œuvre — 3.14159",
        "def f(x):\n\treturn x\n" * 3,
    ]
    for text in [*texts, Path(__file__).read_text("utf-8")[:3000], Path("README.md").read_text("utf-8")[:3000]]:
        messages = [Message("system", "Answer."), Message("user", text)]
        exact = counting.count_tokens(messages)
        assert exact <= estimate_tokens(messages) <= 2 * exact + 40


# --- images ------------------------------------------------------------------------------------------------------


def png(width: int, height: int, colour: str = "red") -> ImagePart:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return ImagePart(buffer.getvalue(), "image/png")


def sent_image(part: dict[str, Any]) -> tuple[str, bytes]:
    header, _, data = part["image_url"]["url"].partition(",")
    assert part["type"] == "image_url"
    return header, base64.b64decode(data)


def test_it_keeps_the_contract_with_vision(server: Server) -> None:
    server.prompt_tokens = lambda body: 30 + 60 * json.dumps(body["messages"]).count("image_url")
    check_reader(load_reader("openai:m", context_tokens=1024, vision=True))


def test_images_are_sent_as_data_uris_in_their_places(server: Server) -> None:
    reader = OpenAIReader("m", vision="true", image_side=64)
    small, large = png(40, 20), png(300, 150)
    messages = [
        Message("system", "Be brief."),
        Message("user", ("[1] A chart. ", small, "[2] A photo. ", large, "Which?")),
    ]
    "".join(reader.stream(messages))
    system, user = server.asked[0][1]["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    texts = [part.get("text") for part in user["content"]]
    assert texts == ["[1] A chart. ", None, "[2] A photo. ", None, "Which?"]
    assert sent_image(user["content"][1]) == ("data:image/png;base64", small.data)  # nothing to change
    header, data = sent_image(user["content"][3])
    assert header == "data:image/png;base64"
    scaled = Image.open(io.BytesIO(data))
    assert (scaled.size, scaled.getpixel((0, 0))) == ((64, 32), (255, 0, 0))


def test_the_estimate_of_images(server: Server) -> None:
    """OpenAI's rule of tiles, or Qwen2-VL's of patches where it gives more."""
    reader = OpenAIReader("m", vision=True)
    plain = reader.count_tokens([Message("user", "What is it?")])
    for width, height, tokens in [(32, 32, 255), (512, 512, 363), (1024, 600, 816), (4096, 2048, 705)]:
        assert reader.count_tokens([Message("user", ("What is it?", png(width, height)))]) == plain + tokens
    small = OpenAIReader("m", vision=True, context_tokens=plain + 300)
    with pytest.raises(ContextOverflowError):
        small.stream([Message("user", ("What is it?", png(512, 512)))])


def test_images_need_vision(server: Server) -> None:
    with pytest.raises(UnsupportedError, match="cannot see images"):
        OpenAIReader("m").stream([Message("user", ("What is it?", png(8, 8)))])
    with pytest.raises(ConfigError, match="vision"):
        OpenAIReader("m", vision="perhaps")
    assert not server.asked
