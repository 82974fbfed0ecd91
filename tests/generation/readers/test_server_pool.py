"""The openai reader with several servers, and with what vLLM and llama-server have beyond OpenAI's protocol."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.free_port import free_port
from support.openai_server import WORDS, Server, running_server, wait_until

from ragfm.core.errors import ConfigError, EndpointError, ModelNotFoundError, ReaderBusyError, UnsupportedError
from ragfm.core.types import Message, Sampling, Stream
from ragfm.generation.readers import load_reader
from ragfm.generation.readers.openai_reader import OpenAIReader, estimate_tokens
from ragfm.models.adapters import SHIPPED
from ragfm.models.model_lookup import find_model
from ragfm.testing import check_reader

ASKED = [Message("user", "Count from one to ten, in words.")]


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Server]]:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    with ExitStack() as running:
        yield [running.enter_context(running_server()) for _ in range(3)]


def pool_of(*servers: Server, **options: Any) -> OpenAIReader:
    addresses = ", ".join(f"{server.address}/v1" for server in servers)
    return OpenAIReader("m", base_url=addresses, **options)


def never_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragfm.generation.readers.server_pool.FIRST_PAUSE", 1000.0)


def text_of(reader: OpenAIReader) -> str:
    return "".join(reader.stream(ASKED))


def test_a_request_goes_to_the_server_with_the_fewest_open_streams(servers: list[Server]) -> None:
    reader = pool_of(*servers)
    assert reader.slots == 24
    for server in servers:
        server.silent = 1
    streams: list[Stream] = []
    for number in range(6):
        streams.append(reader.stream(ASKED))
        next(streams[-1])
        assert sorted(len(server.asked) for server in servers)[0] == (number + 1) // 3
    assert [len(server.asked) for server in servers] == [2, 2, 2]
    streams[1].close()  # of the second server, as equally busy servers take turns
    wait_until(lambda: len(servers[1].connections) == 1)
    next(reader.stream(ASKED))
    assert [len(server.asked) for server in servers] == [2, 3, 2]


def test_a_failed_server_is_left_out_until_it_answers(servers: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = servers[:2]
    monkeypatch.setattr("ragfm.generation.readers.server_pool.FIRST_PAUSE", 0.3)
    reader = pool_of(first, second)
    port = first.server_address[1]
    first.die()
    for _ in range(4):
        assert text_of(reader) == WORDS
    assert len(second.asked) == 4
    with running_server(port=port) as again:
        wait_until(lambda: bool(again.other_requests))  # the probe
        wait_until(lambda: text_of(reader) == WORDS and bool(again.asked))


def test_a_request_moves_to_another_server_only_before_its_first_text(
    servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    never_probe(monkeypatch)
    first, second, third = servers
    first.failures, second.failures = [(503, {}, b"")], [0]  # the second one breaks off before the first word
    reader = pool_of(first, second, third)
    assert text_of(reader) == WORDS
    assert [len(server.asked) for server in servers] == [1, 1, 1]
    assert list(reader.servers.values()) == [False, True, True]  # one that breaks off an answer works otherwise

    first.failures = [3]
    with pytest.raises(EndpointError, match="stopped in the middle of its answer, after 16 characters") as caught:
        text_of(pool_of(first, second))
    assert first.address.removeprefix("http://") in str(caught.value)
    assert "--interrupt_requests False" in caught.value.hint
    assert second.address.removeprefix("http://") not in str(caught.value)
    assert [len(server.asked) for server in servers] == [2, 1, 1]
    first.silent = 2
    with pytest.raises(EndpointError, match="sent nothing for too long after 9 characters"):
        text_of(pool_of(first, second, seconds=0.3))
    assert [len(server.asked) for server in servers] == [3, 1, 1]


def test_a_check_leaves_out_the_servers_that_do_not_answer(
    servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    never_probe(monkeypatch)
    first, second, third = servers
    second.starting = True  # 503
    third.die()
    reader = pool_of(first, second, third)
    reader.check_servers()
    assert list(reader.servers.values()) == [True, False, False]


def test_when_a_server_dies_only_its_streams_end(servers: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    never_probe(monkeypatch)
    dying, living = servers[:2]
    reader = pool_of(dying, living)
    dying.silent, living.pause = 2, 1.0
    said: list[list[str]] = [[] for _ in range(6)]
    errors: list[str] = []

    def ask(number: int) -> None:
        try:
            said[number].extend(reader.stream(ASKED))
        except EndpointError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(dying.asked) == len(living.asked) == 3 and all(said))
    dying.die()
    living.pause = 0.0
    assert text_of(reader) == WORDS  # a new request
    for thread in threads:
        thread.join(60)
    assert ["".join(pieces) for pieces in said].count(WORDS) == 3
    assert len(errors) == 3
    assert all(dying.address.removeprefix("http://") in error for error in errors)


def test_the_error_names_all_servers_that_were_tried(servers: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    never_probe(monkeypatch)
    reader = pool_of(*servers[:2], retries=1)
    for server in servers[:2]:
        server.failures = [(500, {}, b"")] * 3
    hosts = [server.address.removeprefix("http://") for server in servers[:2]]
    with pytest.raises(EndpointError, match=f"{hosts[0]} and {hosts[1]} replied with status 500"):
        text_of(reader)
    assert [len(server.asked) for server in servers] == [1, 2, 0]  # the last one is tried again
    servers[0].failures = servers[1].failures = []
    assert text_of(reader) == WORDS  # though both are left out

    for server in servers[:2]:
        server.failures = [(404, {}, {"error": {"message": "no model m"}})]
    with pytest.raises(ModelNotFoundError):
        text_of(pool_of(*servers[:2]))
    assert sum(len(server.failures) for server in servers[:2]) == 1  # it would be the same on the other one


def test_a_busy_server_is_not_left_out(servers: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    never_probe(monkeypatch)
    busy, broken, _ = servers
    reader = pool_of(*servers, retries=0)
    busy.failures, broken.failures = [(429, {}, {})], [(503, {}, {})] * 9
    assert [text_of(reader) for _ in range(5)] == [WORDS] * 5
    assert [len(server.asked) for server in servers] == [3, 1, 3]
    busy.failures = [(429, {}, {"error": {"message": "slow down"}})]
    with pytest.raises(ReaderBusyError, match="slow down"):
        text_of(pool_of(busy, retries=0))


def test_the_key_goes_to_the_servers_that_the_environment_names(
    servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", ",".join(f"{server.address}/v1/" for server in servers[:2]))
    reader = OpenAIReader("m")
    assert reader.data_goes == f"to {' and '.join(server.address.removeprefix('http://') for server in servers[:2])}"
    text_of(reader)
    text_of(reader)
    reader = pool_of(servers[1], servers[2])
    text_of(reader)
    text_of(reader)
    keys = [[headers.get("authorization") for headers, _ in server.asked] for server in servers]
    assert keys == [["Bearer sk-secret"], ["Bearer sk-secret"] * 2, [None]]
    with pytest.raises(ConfigError, match="separated by commas"):
        OpenAIReader("m", base_url=f"{servers[0].address}, ftp://x")


# --- vLLM and llama-server ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", ["vllm", "llamacpp"])
def test_tokens_are_counted_by_the_server(owner: str) -> None:
    with running_server(owner) as server:
        reader = pool_of(server, context_tokens=512)
        assert reader.count_tokens(ASKED) == reader.count_tokens(ASKED) == 10
        assert reader.counts_exactly
        assert [path for path, _ in server.other_requests] == [
            "/v1/models",
            "/tokenize" if owner == "vllm" else "/v1/chat/completions/input_tokens",
        ]


def test_tokens_are_estimated_where_the_server_does_not_count(servers: list[Server]) -> None:
    reader = pool_of(servers[0])
    assert reader.count_tokens(ASKED) == estimate_tokens(ASKED)
    assert not reader.counts_exactly
    reader.count_tokens([Message("user", "another one")])
    assert [path for path, _ in servers[0].other_requests] == ["/v1/models"]
    with running_server("vllm") as server:
        reader = pool_of(server)
        assert reader.count_tokens(ASKED) == 10
        server.die()
    assert reader.count_tokens([Message("user", "x")]) == estimate_tokens([Message("user", "x")])
    assert reader.count_tokens(ASKED) == 10


def test_vllm_gets_a_salt_for_each_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that response times do not reveal to one tenant that another one had the same prompt."""
    with running_server("vllm") as vllm, running_server("llamacpp") as other:
        reader = pool_of(vllm, other)
        for scope in ("a", "b", "a"):
            for _ in range(2):  # the servers take turns
                assert "".join(reader.scoped(scope).stream(ASKED)) == WORDS
        first, second, third = (body["cache_salt"] for _, body in vllm.asked)
        assert first == third != second
        assert len(first) == len(second) == 64
        assert [body.get("cache_salt") for _, body in other.asked] == [None] * 3
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
        list(reader.scoped("a").stream(ASKED))
        assert vllm.asked[-1][1]["cache_salt"] not in (first, second)  # others cannot guess it
        for unsalted in (pool_of(vllm), pool_of(vllm, omit=["cache_salt"]).scoped("a")):
            list(unsalted.stream(ASKED))
            assert "cache_salt" not in vllm.asked[-1][1]


def test_a_scoped_prompt_is_not_sent_before_the_server_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be vLLM and share its prefix cache."""
    never_probe(monkeypatch)
    with running_server("vllm") as server:
        server.starting = True
        reader = pool_of(server, retries=0)
        with pytest.raises(EndpointError, match="status 503"):
            list(reader.scoped("a").stream(ASKED))
        assert not server.asked
        server.starting = False
        assert "".join(reader.scoped("a").stream(ASKED)) == WORDS
        assert server.asked[0][1]["cache_salt"]


@pytest.mark.parametrize("owner", ["vllm", "llamacpp"])
def test_an_adapter_is_requested_by_its_name(owner: str) -> None:
    with running_server(owner) as server:
        server.adapters = {"first": "/srv/first.gguf", "second": "/srv/second/adapter.gguf"}
        reader = pool_of(server)
        for adapter in ("second", "somewhere/second", "second/adapter.gguf", "first.gguf"):
            list(reader.stream(ASKED, Sampling(adapter=adapter, temperature=0.5, min_p=0.1)))
        list(reader.stream(ASKED))
        bodies = [body for _, body in server.asked]
        if owner == "vllm":
            assert [body["model"] for body in bodies] == ["second", "second", "second", "first", "m"]
        else:
            lora = [[{"id": 1, "scale": 1.0}]] * 3 + [[{"id": 0, "scale": 1.0}], None]
            assert [body.get("lora") for body in bodies] == lora
            with pytest.raises(ModelNotFoundError, match="has no adapter 'third'; it has: first, second"):
                list(reader.stream(ASKED, Sampling(adapter="third")))
        assert all(body["min_p"] == 0.1 for body in bodies[:4])


def test_other_servers_have_no_adapters(servers: list[Server]) -> None:
    with pytest.raises(UnsupportedError, match="neither vLLM nor llama-server"):
        list(pool_of(servers[0]).stream(ASKED, Sampling(adapter="x")))


@pytest.mark.parametrize("owner", ["vllm", "llamacpp"])
def test_readers_of_two_servers_keep_the_contract(owner: str) -> None:
    with running_server() as one, running_server() as other:
        check_reader(load_reader("openai:m", base_url=f"{one.address}/v1,{other.address}/v1", context_tokens=512))
        assert one.asked
        assert other.asked


# --- llama.cpp's server, where there is one ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif("LLAMA_SERVER" not in os.environ, reason="LLAMA_SERVER is not the path of llama-server")
def test_llama_server_keeps_the_contract_and_serves_adapters() -> None:
    """`benchmarks/bench_reader.py` says how it is built."""
    address = f"http://127.0.0.1:{free_port()}"
    base, adapter = find_model("bundled", "reader"), SHIPPED / "adapter.gguf"
    command = [
        os.environ["LLAMA_SERVER"],
        "--model",
        str(base),
        "--lora-scaled",
        f"{adapter}:0",
        "--threads",
        "1",
    ]
    command += ["--port", address.rpartition(":")[2], "--ctx-size", "4096", "--parallel", "4", "--no-webui"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        reader = load_reader("openai:m", base_url=f"{address}/v1", context_tokens=1024, retries=10)
        assert "".join(reader.stream(ASKED, Sampling(max_tokens=4)))  # the SDK waits until it has started
        check_reader(reader)
        assert reader.counts_exactly
        prompt = [Message("user", "[1] The office opens at nine.\n\nWhen does the office open?")]
        local = load_reader("bundled", context_tokens=1024, threads=1)
        assert reader.count_tokens(prompt) == local.count_tokens(prompt)
        texts = ["".join(reader.stream(prompt, Sampling(max_tokens=12, adapter=name))) for name in (None, SHIPPED.name)]
        assert texts[0] != texts[1]
        assert texts[1] == "".join(local.stream(prompt, Sampling(max_tokens=12, adapter=str(adapter))))
    finally:
        process.kill()
        process.wait()
