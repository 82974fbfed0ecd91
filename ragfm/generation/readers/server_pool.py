"""Servers that offer the same model: each request goes to one of them, and to another one if that one fails.

The pool runs in the event loop of one thread, so it needs no locks.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from itertools import count
from typing import Any, cast

import openai
from openai.types.chat import ChatCompletionChunk

from ragfm.core.errors import ModelNotFoundError, UnsupportedError
from ragfm.core.tracing import trace_headers
from ragfm.models.adapters import served_name

VLLM, LLAMA_SERVER, OTHER = "vllm", "llamacpp", ""
"""Kinds of servers, by the owner that they state for their models."""
SHORT_SECONDS = 5.0
"""Time limit for requests that need no model: the list of models, and token counts."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds between two probes of a server that failed; each pause is twice the one before."""
CUT_HINT = "llama-cpp-python's server does so for each new request unless it runs with `--interrupt_requests False`."
_BUSY = (408, 409, 429)

_log = logging.getLogger(__name__)


class Server:
    """One server. `url` is its base address, `kind` is None until the server was asked, and after it failed."""

    def __init__(
        self,
        url: str,
        host: str,
        client: openai.AsyncOpenAI,
        headers: Mapping[str, openai.Omit],
        kind: str | None = None,
    ) -> None:
        self.url, self.host, self.client, self.headers = url, host, client, headers
        self.kind = self._known_kind = kind
        self.counts = True
        """False after a request for a token count failed."""
        self.open_streams = 0
        self.last_used = 0
        self.probe: asyncio.Task[None] | None = None
        """Set while the server is left out because it failed."""

    async def request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The reply, as JSON. A `path` that begins with a slash is relative to the server, else to its base address."""
        url = self.url.removesuffix("/v1") + path if path.startswith("/") else f"{self.url}/{path}"
        timeout = openai.Timeout(SHORT_SECONDS, connect=cast("openai.Timeout", self.client.timeout).connect)
        options: Any = {"headers": self.headers, "timeout": timeout, "max_retries": 0}
        if body is None:
            return await self.client.get(url, cast_to=object, options=options)
        return await self.client.post(url, cast_to=object, body=body, options=options)

    async def identify(self) -> str:
        """The kind of the server. Raises the SDK's errors if it is not ready."""
        if self.kind is None:
            owners = set()
            try:
                owners = {model.get("owned_by") for model in (await self.request("models"))["data"]}
            except (AttributeError, KeyError, TypeError, ValueError):
                pass  # it has no such list
            except openai.OpenAIError as error:
                if is_temporary(error):
                    raise
            self.kind = next((kind for kind in (VLLM, LLAMA_SERVER) if kind in owners), OTHER)
        return self.kind

    async def answers(self) -> bool:
        """Whether the server answers, with whatever."""
        try:
            await self.request("models")
        except openai.OpenAIError as error:
            return not is_temporary(error) or getattr(error, "status_code", None) in _BUSY
        except ValueError:
            pass  # it answers, but not with JSON
        return True

    def forget(self) -> None:
        """After a failure, another program may serve the address."""
        self.kind, self.counts = self._known_kind, True


class ServerPool:
    """Sends each request to the server with the fewest open streams; servers with equally many take turns.

    A server that failed is left out, and probed in the background until it answers. If all have failed, they are used
    nevertheless.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self.servers = servers
        self._turns = count(1)

    async def stream(
        self, request: Mapping[str, Any], scope: str, adapter: str | None, tried: Callable[[str], None]
    ) -> AsyncIterator[ChatCompletionChunk]:
        """The chunks of a completion.

        Before the first text, a temporary failure moves the request to a server that was not tried; the last one gets
        the SDK's retries. `tried` is called with the host of each server that gets the request. Raises the SDK's errors
        and UnsupportedError.
        """
        failed: list[Server] = []
        while True:
            left = [server for server in self.servers if server not in failed]
            up = [server for server in left if server.probe is None]
            server = min(up or left, key=lambda server: (server.open_streams, server.last_used))
            is_last = len(failed) + 1 == len(self.servers)
            client = server.client if is_last else server.client.with_options(max_retries=0)
            tried(server.host)
            server.last_used = next(self._turns)
            spoke = finished = False
            server.open_streams += 1
            try:
                parameters = await _parameters(server, request, scope, adapter)
                headers: dict[str, str | openai.Omit] = {**server.headers, **trace_headers()}
                async with await client.chat.completions.create(**parameters, extra_headers=headers) as response:
                    async for chunk in response:
                        choices = chunk.choices or ()
                        spoke = spoke or any(choice.delta and choice.delta.content for choice in choices)
                        finished = finished or any(choice.finish_reason for choice in choices)
                        yield chunk
                if not finished:  # the server itself works: it answers other requests
                    about = {"event": "reader_answer_cut", "fields": {"server": server.host}}
                    _log.warning("The server %s broke off an answer. %s", server.host, CUT_HINT, extra=about)
                if finished or spoke or is_last:
                    return
            except openai.OpenAIError as error:
                if is_temporary(error) and getattr(error, "status_code", None) not in _BUSY:
                    self._leave_out(server)
                if spoke or is_last or not is_temporary(error):
                    raise
            finally:
                server.open_streams -= 1
            failed.append(server)

    async def count_tokens(self, request: Mapping[str, Any]) -> int | None:
        """The tokens of a prompt of `model` and `messages` by a server's own tokenizer; None if there is none."""
        able = [server for server in self.servers if server.probe is None and server.counts and server.kind != OTHER]
        if not able:
            return None
        server = min(able, key=lambda server: server.open_streams)
        try:
            kind = await server.identify()
            if kind == VLLM:
                return int((await server.request("/tokenize", request))["count"])
            if kind == LLAMA_SERVER:
                return int((await server.request("chat/completions/input_tokens", request))["input_tokens"])
        except openai.OpenAIError as error:
            server.counts = False
            if is_temporary(error):
                self._leave_out(server)
        except (KeyError, TypeError, ValueError):
            server.counts = False
        return None

    async def check(self) -> None:
        """Leave out the servers that do not answer."""
        servers = [server for server in self.servers if server.probe is None]
        for server, up in zip(servers, await asyncio.gather(*(server.answers() for server in servers)), strict=True):
            if not up:
                self._leave_out(server)

    def _leave_out(self, server: Server) -> None:
        if server.probe is None:
            about = {"event": "reader_server_down", "fields": {"server": server.host}}
            _log.warning("The server %s failed. It is left out until it answers.", server.host, extra=about)
            server.forget()

            async def probe_until_it_answers() -> None:
                pause = FIRST_PAUSE
                while True:
                    await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311  processes take turns
                    if await server.answers():
                        about = {"event": "reader_server_up", "fields": {"server": server.host}}
                        _log.warning("The server %s answers again.", server.host, extra=about)
                        server.probe = None
                        return
                    pause = min(2 * pause, LONGEST_PAUSE)

            server.probe = asyncio.create_task(probe_until_it_answers())


async def _parameters(server: Server, request: Mapping[str, Any], scope: str, adapter: str | None) -> dict[str, Any]:
    """The request as this kind of server takes it: vLLM and llama-server have parameters of their own.

    Raises ModelNotFoundError and UnsupportedError for an adapter.
    """
    if not scope and not adapter:
        return dict(request)
    kind, own = await server.identify(), dict[str, Any](request.get("extra_body", {}))
    if scope and kind == VLLM:
        own["cache_salt"] = scope
    parameters = {**request, "extra_body": own}
    if adapter and kind == VLLM:
        parameters["model"] = adapter
    elif adapter:
        if kind != LLAMA_SERVER:
            raise UnsupportedError(
                f"The server {server.host} is neither vLLM nor llama-server, so adapters cannot be requested by name.",
                "Use the name under which the server offers the model with its adapter.",
            )
        adapters = await server.request("/lora-adapters")  # each time: after a restart, the ids may differ
        ids = {served_name(entry["path"]): entry["id"] for entry in adapters}
        if adapter not in ids:
            names = ", ".join(sorted(ids)) or "none"
            raise ModelNotFoundError(
                f"The server {server.host} has no adapter '{adapter}'; it has: {names}.",
                "Start it with `--lora-scaled FILE:0`, the file of the adapter in GGUF.",
            )
        own["lora"] = [{"id": ids[adapter], "scale": 1.0}]
    return parameters


def is_temporary(error: openai.OpenAIError) -> bool:
    """Whether the same request may succeed on another server, or later."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code in _BUSY or (error.status_code >= 500 and error.status_code != 501)
    return isinstance(error, openai.APIConnectionError)
