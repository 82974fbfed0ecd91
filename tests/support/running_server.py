"""A server on loopback in a thread, and a slow reader."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from openai import OpenAI

from ragfm import Collection, Settings
from ragfm.core.errors import RagfmError
from ragfm.core.types import CLOSED, Message, Sampling, Stream, Usage
from ragfm.generation.readers import completion_limit, stream_until_stop
from ragfm.server.api_keys import SCOPES, Key, KeyFile
from ragfm.server.app import create_app
from ragfm.server.request_guard import KeyStore, Limits
from ragfm.server.served_models import ServedModels
from ragfm.server.uvicorn_server import Server

if TYPE_CHECKING:
    import pytest

    from ragfm.server.sign_in import SignIn

ANSWER = "You get 28 days of leave. Parents get 16 weeks more [1]."
QUESTION = [{"role": "user", "content": "How many days of leave do parents get?"}]
SECRET = "The salary of the director is 98765 crowns."

LIMITS = Limits()


class SlowReader:
    """Generates a word every 10 ms, or nothing if silent, until it is closed. Counts its streams."""

    def __init__(self, *, slots: int = 2, words: int = 2000, silent: bool = False) -> None:
        self.slots, self.words, self.silent = slots, words, silent
        self.context_tokens = 4096
        self.busy = 0
        self.asked = 0
        self._lock = threading.Lock()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(message.content.split()) for message in messages)

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        tokens = self.count_tokens(messages)
        limit = completion_limit(tokens, self.context_tokens, sampling.max_tokens)
        ended = threading.Event()
        with self._lock:
            self.busy += 1
            self.asked += 1
        return Stream(self._generate(tokens, min(limit, self.words), ended), cancel=ended.set)

    def _generate(self, tokens: int, limit: int, ended: threading.Event) -> Any:
        try:
            spoken, reason = yield from stream_until_stop(self._words(ended), limit, ())
        finally:
            with self._lock:
                self.busy -= 1
        return Usage(tokens, 0, spoken), reason

    def _words(self, ended: threading.Event) -> Iterator[str]:
        number = 0
        while not ended.wait(30 if self.silent else 0.01):
            yield f"leave{number} "
            number += 1
        raise RagfmError(CLOSED)


@dataclass
class Running:
    """A running server, and clients for its keys."""

    address: str
    keys: KeyStore
    folder: Path | str
    app: Any
    server: Server
    secrets: dict[str, str] = field(default_factory=dict)

    def client(self, key: str | None = "hr") -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.secrets[key]}"} if key else {}
        return httpx.Client(base_url=self.address, headers=headers, timeout=300, verify=False)  # loads no certificates

    def openai(self, key: str = "hr") -> OpenAI:
        return OpenAI(base_url=f"{self.address}/v1", api_key=self.secrets[key], max_retries=0, timeout=300)


def make_collection(folder: Path) -> Path:
    """A collection with two documents for all, one for `hr` and one for `board`."""
    docs = folder / "docs"
    for name in ("hr", "board"):
        (docs / name).mkdir(parents=True)
        (docs / name / ".ragfm-access").write_text(name)
    (docs / "leave.md").write_text("# Leave\n\nYou get 28 days of leave.\n\n## Parents\n\nParents get 16 weeks more.\n")
    (docs / "hours.txt").write_text("The office opens at nine and closes at five.\n")
    (docs / "hr" / "salaries.txt").write_text(f"{SECRET}\n")
    (docs / "board" / "plans.txt").write_text("The board plans to sell the boat in spring.\n")
    (folder / "ragfm.toml").write_text('[ask]\nreranker = "none"\n')  # the order of passages is that of their words
    collection = folder / "handbook"
    Collection.open(collection, settings=Settings(), embedder="hashing").sync(docs)
    return collection


@contextmanager
def serve(
    folder: Path,
    reader: Any,
    *,
    keys: bool = True,
    limits: Limits = LIMITS,
    waiting: int = 64,
    drain: float = 5.0,
    shutdown_delay: float = 0.0,
    collection: Path | str | None = None,
    store: KeyStore | None = None,
    sign_in: SignIn | None = None,
    port: int = 0,
) -> Iterator[Running]:
    """Run a server with the keys `hr` (group `hr`, all scopes), `guest` and `other` (no groups)."""
    collection = collection or make_collection(folder)
    file = store or KeyFile(folder / "keys.json")
    secrets = {}
    if not file.keys():
        for name, groups in (("hr", ("hr",)), ("guest", ()), ("other", ())):
            scopes = SCOPES if name == "hr" else SCOPES[:2]
            secrets[name] = file.add(Key(name=name, groups=groups, per_minute=1e6, scopes=scopes))
        (folder / "secrets.json").write_text(json.dumps(secrets))
    secrets = json.loads((folder / "secrets.json").read_text())
    app = create_app(
        ServedModels([("handbook", collection)], [("script", reader)], waiting=waiting),
        keys=file if keys else None,
        sign_in=sign_in,
        limits=limits,
    )
    listening, address = threading.Event(), list[str]()
    server = Server(
        app,
        host="127.0.0.1",
        port=port,
        drain=drain,
        shutdown_delay=shutdown_delay,
        on_listening=lambda at: (address.append(at), listening.set()),
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert listening.wait(60)
    try:
        yield Running(address[0], file, collection, app, server, secrets)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def eventually(holds: Callable[[], object], seconds: float = 20.0) -> Any:
    """Wait until a condition holds. Returns its value."""
    start = time.monotonic()
    while not (result := holds()):
        passed = time.monotonic() - start
        assert passed < seconds, "the condition never held"
        time.sleep(min(0.01 + passed / 10, 0.2))
    return result


def request_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The request log's lines so far; what another logger wrote meanwhile is left out."""
    return [vars(record)["fields"] for record in caplog.records if getattr(record, "event", "") == "request"]
