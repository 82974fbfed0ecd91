"""The tools of the Model Context Protocol with the official client, over standard input and output and `/mcp`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from support.running_server import (
    LIMITS,
    SECRET,
    Running,
    SlowReader,
    eventually,
    make_collection,
    request_lines,
    serve,
)
from support.shell import Shell
from support.tiny_gguf import write_tiny

from ragfm.cli.server_commands import mcp as mcp_command
from ragfm.core.errors import MissingExtraError

TOOLS = [
    *("search", "ask", "verify", "list_documents", "outline", "read_page", "find_in_document"),
    "list_collections",
]
LEAVE = {"uri": "docs/leave.md"}
SALARIES = {"uri": "docs/hr/salaries.txt"}
ASKED = {"question": "How many days of leave do parents get?"}


def talk(server: Any, use: Callable[[Client], Awaitable[Any]], mode: Any = "auto", seconds: float = 300.0) -> Any:
    async def session() -> Any:
        async with asyncio.timeout(seconds), Client(server, mode=mode) as client:
            return await use(client)

    return asyncio.run(session())


def process(shell: Shell, *words: str) -> StdioServerParameters:
    env = shell.env | {"RAGFM_ASK__ANSWER_TOKENS": "8"}
    command = ["-c", "from ragfm.cli import main; main()", "mcp", *words]
    return StdioServerParameters(command=sys.executable, args=command, env=env, cwd=shell.folder)


def over_http(running: Running, key: str | None) -> Any:
    headers = {"Authorization": f"Bearer {running.secrets[key]}"} if key else {}
    return streamable_http_client(
        f"{running.address}/mcp", http_client=httpx2.AsyncClient(headers=headers, timeout=300)
    )


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    return result.content[0].text


async def called(client: Client, tool: str, **arguments: Any) -> Any:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return result.structured_content


async def uris(client: Client, query: str) -> set[str]:
    result = await client.call_tool("search", {"query": query})
    assert not result.is_error
    return {hit["uri"] for hit in result.structured_content["hits"]}


def test_a_process_serves_its_tools_over_its_input_and_output(tmp_path: Path) -> None:
    make_collection(tmp_path)
    reader = write_tiny(tmp_path / "tiny.gguf")

    async def use(client: Client) -> None:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == TOOLS
        assert all(tool.output_schema and tool.description and tool.annotations.read_only_hint for tool in tools)
        found = await client.call_tool("search", {"query": "leave for parents", "k": 1})
        (hit,) = found.structured_content["hits"]
        assert (hit["uri"], hit["text"]) == ("docs/leave.md", "## Parents\n\nParents get 16 weeks more.")
        answer = await client.call_tool("ask", ASKED)
        assert not answer.is_error, answer.content
        assert answer.structured_content["passages"]
        assert answer.structured_content["query"] == ASKED["question"]
        listed = await client.call_tool("list_documents", {"after": "docs/board"})
        assert [document["uri"] for document in listed.structured_content["documents"]] == [
            "docs/hours.txt",
            "docs/hr/salaries.txt",
            "docs/leave.md",
        ]
        named = {"collections": ["handbook", "handbook:tiny"]}
        assert (await client.call_tool("list_collections")).structured_content == named
        assert "docs/hr/salaries.txt" in await uris(client, "salary of the director")
        assert "docs/board/plans.txt" not in await uris(client, "The board plans to sell the boat")
        assert "expected a key" in await refused(client, "search", query="leave", filter="((")
        assert "Keys: title, " in await refused(client, "search", query="leave", filter="titel = Leave")
        found = await client.call_tool("search", {"query": "days of leave", "k": 1, "filter": "uri like '%LEAVE%'"})
        (hit,) = found.structured_content["hits"]
        assert (hit["uri"], hit["name"], hit["lines"]) == ("docs/leave.md", "docs/leave.md", [1, 3])
        empty = {"collection": "", "filter": ""}
        for left_out in (empty, dict.fromkeys(("k", "mode", "collection", "filter"))):
            found = await client.call_tool("search", {"query": "days of leave", **left_out})
            assert found.structured_content["hits"]
        assert "There are: handbook, handbook:tiny." in await refused(
            client, "search", query="leave", collection="nothing"
        )
        assert "question is empty" in await refused(client, "ask", question=" ")
        assert "query is empty" in await refused(client, "search", query=" ")
        assert "greater than or equal to 1" in await refused(client, "search", query="leave", k=0)

    talk(process(Shell(tmp_path), "-c", "handbook", "--reader", str(reader), "--groups", "hr"), use)


def test_a_failed_start_prints_one_line(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    assert shell("mcp", "-c", "nothing", code=1, typed="").stderr.startswith("Error: There is no collection")
    assert "--groups" in shell("mcp", "--groups", "#", code=2, typed="").stderr


def test_without_its_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ragfm.server.mcp_server", None)
    failed = CliRunner().invoke(mcp_command, []).exception
    assert isinstance(failed, MissingExtraError)
    assert "pip install -e '.[mcp]'" in str(failed)


def requests(caplog: pytest.LogCaptureFixture, field: str) -> list[dict[str, Any]]:
    """The request log's lines that have a field."""
    return [line for line in request_lines(caplog) if line.get(field)]


def test_answers_of_tools_are_counted_and_limited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def ask(client: Client) -> Any:
        return (await client.call_tool("ask", ASKED)).structured_content

    with serve(tmp_path, SlowReader(), limits=replace(LIMITS, answer_tokens=7)) as running:
        with caplog.at_level("INFO", "ragfm.server"):
            assert len(talk(over_http(running, "hr"), ask)["answer"].split()) == 7
        figures = running.client().get("/metrics").text
    assert 'ragfm_tokens_total{kind="completion"} 7.0' in figures
    assert 'ragfm_tokens_total{kind="drafted"} 0.0' in figures
    assert "ragfm_first_token_seconds_count 1.0" in figures
    eventually(lambda: requests(caplog, "model"))  # a response is sent before its line is written
    noted = requests(caplog, "model")
    assert [(line["model"], line["completion_tokens"]) for line in noted] == [("handbook", 7)]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_over_http_each_key_has_its_own_view(running: Running, mode: str) -> None:
    async def as_hr(client: Client) -> None:
        assert [tool.name for tool in (await client.list_tools()).tools] == TOOLS
        assert "docs/hr/salaries.txt" in await uris(client, "salary of the director")
        answer = (await client.call_tool("ask", ASKED)).structured_content
        assert answer["answer"].startswith("You get 28 days of leave")
        assert answer["citations"][0]["verified"]

    async def as_guest(client: Client) -> None:
        assert "docs/hr/salaries.txt" not in await uris(client, "salary of the director")
        assert SECRET not in str(await client.call_tool("ask", {"question": "What is the salary of the director?"}))
        listed = await client.call_tool("list_documents")
        assert {document["uri"] for document in listed.structured_content["documents"]} == {
            "docs/hours.txt",
            "docs/leave.md",
        }
        said = await refused(client, "search", query="word " * 100)
        assert "tokens" in said
        assert str(running.folder) not in said

    talk(over_http(running, "hr"), as_hr, mode)
    talk(over_http(running, "guest"), as_guest, mode)


def test_a_document_is_read_by_its_outline(running: Running) -> None:
    async def use(client: Client) -> None:
        found = await called(client, "outline", **LEAVE)
        assert [(one["headings"], one["level"]) for one in found["sections"]] == [
            (["Leave"], 1),
            (["Leave", "Parents"], 2),
        ]
        part = await called(client, "read_page", section="parents", **LEAVE)
        assert part["text"] == "## Parents\n\nParents get 16 weeks more.\n"
        assert part["next"] is None
        rest = await called(client, "read_page", start=part["end"] - 6, page=None, section="", **LEAVE)
        assert rest["text"] == "more.\n"
        (place,) = (await called(client, "find_in_document", text="28  DAYS", **LEAVE))["places"]
        whole = await called(client, "read_page", **LEAVE)
        assert whole["text"][place["start"] : place["end"]] == "28 days"
        assert place["headings"] == ["Leave"]
        assert "no section 'Holidays'" in await refused(client, "read_page", section="Holidays", **LEAVE)
        assert "no page '2'" in await refused(client, "read_page", page=2, **LEAVE)
        assert "text is empty" in await refused(client, "find_in_document", text=" ", **LEAVE)

    talk(over_http(running, "guest"), use)


@pytest.mark.parametrize("tool", ["outline", "read_page", "find_in_document"])
def test_a_hidden_document_is_as_one_that_does_not_exist(running: Running, tool: str) -> None:
    arguments = {"text": "director"} if tool == "find_in_document" else {}

    async def as_guest(client: Client) -> None:
        for uri in (SALARIES["uri"], "docs/nothing.txt"):
            said = await refused(client, tool, uri=uri, **arguments)
            assert f"There is no document {uri!r}. (Request " in said

    async def as_hr(client: Client) -> None:
        assert (await called(client, tool, **SALARIES, **arguments))["uri"] == SALARIES["uri"]

    talk(over_http(running, "guest"), as_guest)
    talk(over_http(running, "hr"), as_hr)


def test_an_answer_is_verified_against_what_the_key_may_see(running: Running) -> None:
    answer = f"{SECRET} Parents get 20 weeks more."

    async def statuses(client: Client) -> list[str]:
        found = await called(client, "verify", answer=answer, question=None)
        return [sentence["status"] for sentence in found["data"]]

    assert talk(over_http(running, "hr"), statuses) == ["supported", "contradicted"]
    assert talk(over_http(running, "guest"), statuses) == ["not_found", "contradicted"]


def test_an_answer_is_verified_against_given_passages(running: Running) -> None:
    async def use(client: Client) -> None:
        passages = ["The boat is blue.", {"text": "The boat is sold in May.", "uri": "boat.pdf", "page": 3}]
        (sentence,) = (await called(client, "verify", answer="The boat is sold in May.", passages=passages))["data"]
        (citation,) = sentence["citations"]
        assert (citation["uri"], citation["page"], citation["verified"]) == ("boat.pdf", 3, True)
        passages[0] = {"title": "x"}
        said = await refused(client, "verify", answer="The boat is blue.", passages=passages)
        assert "Passage 1 has no text: '{'title': 'x'}'" in said

    talk(over_http(running, "guest"), use)


def test_over_http_a_key_is_required(running: Running) -> None:
    for method in ("GET", "POST", "DELETE"):
        with running.client(None) as client:
            assert client.request(method, "/mcp").status_code == 401
    assert "/mcp" not in running.app.openapi()["paths"]


def test_a_bug_is_logged_and_not_shown_to_the_client(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(SlowReader):
        def stream(self, messages: Any, sampling: Any = None) -> Any:
            raise KeyError(SECRET)

    async def use(client: Client) -> str:
        return await refused(client, "ask", **ASKED)

    with serve(tmp_path, Broken()) as running, caplog.at_level("INFO", "ragfm.server"):
        said = talk(over_http(running, "hr"), use)
        eventually(lambda: requests(caplog, "error"))
        eventually(lambda: [record for record in caplog.records if record.levelname == "ERROR"])
    (line,) = requests(caplog, "error")
    assert (line["route"], line["key"], line["error"]) == ("/mcp", "hr", "KeyError")
    (about,) = [vars(record)["fields"] for record in caplog.records if record.levelname == "ERROR"]
    assert (about["request_id"], about["error"]) == (line["request_id"], "KeyError")
    assert said.endswith(f"Its log has the reason under this request's id. (Request {line['request_id']}.)")
    assert ".py:" in about["place"]
    assert SECRET not in caplog.text


def test_a_call_that_is_given_up_frees_the_reader(tmp_path: Path) -> None:
    reader = SlowReader(slots=1, silent=True)

    async def give_up(client: Client) -> None:
        asking = asyncio.create_task(client.call_tool("ask", ASKED))
        while not reader.busy:
            await asyncio.sleep(0.01)
        asking.cancel()

    with serve(tmp_path, reader, limits=LIMITS) as running:
        talk(over_http(running, "hr"), give_up)
        eventually(lambda: reader.busy == 0)
