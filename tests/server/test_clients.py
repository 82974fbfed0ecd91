"""Unmodified clients against a local server: whole and streamed answers, citations, errors.

OpenAI's own client is tested in test_server_chat.py.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.npm import install
from support.running_server import ANSWER, QUESTION, Running

ASKED = QUESTION[0]["content"]
TEXT = "You get 28 days of leave [1]. Parents get 16 weeks more [2][1]."
"""The answer with corrected citations. The pieces of a stream have the reader's own."""
NOTES = "\n\nSources:\n[1] docs/leave.md: “You get 28 days of leave.”\n[2] docs/leave.md: “Parents get 16 weeks more.”"
FOOTNOTES = {"x-ragfm-footnotes": "true"}
NO_MODEL = "There is no model 'nothing'."
AI_SDK = Path(__file__).parent / "ai_sdk"


# --- LangChain ---------------------------------------------------------------------------------------------------


def langchain(running: Running, model: str = "handbook", **more: Any) -> Any:
    from langchain_openai import ChatOpenAI

    key = running.secrets["hr"]
    return ChatOpenAI(model=model, base_url=f"{running.address}/v1", api_key=key, max_retries=0, **more)


def test_langchain(running: Running) -> None:
    message = langchain(running).invoke(QUESTION)
    assert message.content == TEXT
    assert message.usage_metadata["output_tokens"] == 12
    chunks = list(langchain(running).stream(QUESTION))
    assert len(chunks) > 10
    assert "".join(chunk.content for chunk in chunks) == ANSWER
    assert [chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata] == [12]


def test_langchain_shows_citations_as_footnotes(running: Running, script: Any) -> None:
    chat = langchain(running, default_headers=FOOTNOTES)
    answer = chat.invoke(QUESTION)
    assert answer.content == TEXT + NOTES
    assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == ANSWER + NOTES
    chat.invoke([*QUESTION, answer, ("user", "And when does the office open?")])
    assert "Sources:" not in str(script.prompts[-1])  # the footnotes are removed from the history
    assert "Parents get 16 weeks more [2][1]." in str(script.prompts[-1])


def test_langchain_raises_what_it_raises_for_openai(running: Running) -> None:
    import openai

    with pytest.raises(openai.NotFoundError, match=NO_MODEL):
        langchain(running, "nothing").invoke(QUESTION)
    with pytest.raises(openai.NotFoundError, match=NO_MODEL):
        list(langchain(running, "nothing").stream(QUESTION))


# --- Haystack ----------------------------------------------------------------------------------------------------


@pytest.fixture
def haystack(running: Running, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    from haystack.components.generators.chat import OpenAIChatGenerator
    from haystack.dataclasses import ChatMessage
    from haystack.utils import Secret

    def ask(model: str = "handbook", **more: Any) -> Any:
        key = Secret.from_token(running.secrets["hr"])
        generator = OpenAIChatGenerator(key, model, api_base_url=f"{running.address}/v1", max_retries=0)
        return generator.run([ChatMessage.from_user(ASKED)], **more)["replies"][0]

    return ask


def test_haystack(haystack: Any) -> None:
    import openai

    reply = haystack()
    assert reply.text == TEXT
    assert reply.meta["usage"]["completion_tokens"] == 12
    pieces: list[Any] = []
    assert haystack(streaming_callback=pieces.append).text == ANSWER
    assert len(pieces) > 10
    assert pieces[-1].finish_reason == "stop"
    noted = {"generation_kwargs": {"extra_headers": FOOTNOTES}}
    assert haystack(**noted).text == TEXT + NOTES
    assert haystack(**noted, streaming_callback=pieces.append).text == ANSWER + NOTES
    for more in ({}, {"streaming_callback": pieces.append}):
        with pytest.raises(openai.NotFoundError, match=NO_MODEL):
            haystack("nothing", **more)


# --- The command `llm` -------------------------------------------------------------------------------------------


def test_the_command_llm(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = {"api_base": f"{running.address}/v1", "api_key_name": "ragfm"}
    models = [
        {"model_id": "handbook", "model_name": "handbook", **server},
        {"model_id": "notes", "model_name": "handbook", "headers": FOOTNOTES, **server},
        {"model_id": "nothing", "model_name": "nothing", **server},
    ]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))
    (tmp_path / "keys.json").write_text(json.dumps({"ragfm": running.secrets["hr"]}))

    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "")
    command = pytest.importorskip("llm.cli").cli

    def llm(*words: str) -> Any:
        return CliRunner().invoke(command, [*words, ASKED])

    assert llm("-m", "notes").stdout.strip() == ANSWER + NOTES
    assert llm("-m", "handbook", "--no-stream").stdout.strip() == TEXT
    failed = llm("-m", "nothing")
    assert failed.exit_code == 1
    assert NO_MODEL in failed.stderr


# --- The AI SDK for JavaScript -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def ai_sdk() -> Path:
    """The client script."""
    return install(AI_SDK) / "client.js"


@pytest.mark.slow
def test_the_ai_sdk(running: Running, ai_sdk: Path) -> None:
    command = ["node", str(ai_sdk), f"{running.address}/v1", running.secrets["hr"], "handbook", ASKED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    for provider in ("compatible", "openai"):
        plain, streamed = got[provider]["plain"], got[provider]["streamed"]
        assert plain["text"] == TEXT
        assert len(streamed["pieces"]) > 10
        assert "".join(streamed["pieces"]) == ANSWER
        assert plain["reason"] == streamed["reason"] == "stop"
        assert plain["usage"]["outputTokens"] == streamed["usage"]["outputTokens"] == 12
        assert got[provider]["error"] == {"message": NO_MODEL, "status": 404}
        assert got[provider]["parts"] == [NO_MODEL]
    for answer in (got["compatible"]["plain"], got["compatible"]["streamed"]):
        assert answer["metadata"]["ragfm"]["citations"][0]["quote"] == "You get 28 days of leave."
    for answer in (got["openai"]["plain"], got["openai"]["streamed"]):
        assert [source["title"] for source in answer["sources"]] == ["docs/leave.md"] * 3
