"""The embedder for servers with OpenAI's embeddings API (`POST /embeddings`)."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import numpy as np

from ragfm.core.errors import ConfigError, EmbeddingError
from ragfm.core.types import Offsets, Scalar, Vectors
from ragfm.embedders.token_offsets import check_lengths

MAX_TOKENS = 256
"""Maximum tokens of a text by the estimate used here. Twice as many still fit into most models' window of 512."""
REQUEST_TEXTS = 64
"""Maximum texts in a request."""
TIMEOUT_SECONDS = 60
RETRY_SECONDS = (1, 2, 4, 8, 16)
"""Pause before each retry, unless the server sends a Retry-After header."""
MAX_RETRY_AFTER_SECONDS = 60.0

_TOKEN = re.compile(r"[A-Za-z]{1,5}|\S")
_RETRIED_STATUS = {408, 409, 429, 500, 502, 503, 504}

_log = logging.getLogger(__name__)


class EndpointEmbedder:
    """A model on the server at OPENAI_BASE_URL, with the API key in OPENAI_API_KEY if the server requires one.

    The embedding contract contains the model's name and dimensions, not the server, so a model may move to another
    host. The model's tokenizer is not available here: each run of up to five letters and every other character counts
    as a token, which slightly overestimates English.
    """

    def __init__(self, model: str) -> None:
        self.max_tokens = MAX_TOKENS
        self._name = model
        # Several addresses, separated by commas, are for the openai reader.
        self._base = os.environ.get("OPENAI_BASE_URL", "").split(",")[0].rstrip("/") or "https://api.openai.com/v1"
        if urlsplit(self._base).scheme not in ("http", "https"):
            raise ConfigError(
                "OPENAI_BASE_URL is not a valid address.", "Set it to a URL that begins with http:// or https://."
            )
        self._host = urlsplit(self._base).hostname or self._base
        self._opener = build_opener(_NoRedirect)

    @cached_property
    def dim(self) -> int:
        """Number of dimensions; the first access requests an embedding from the server."""
        return int(self._request_vectors(["dimension"]).shape[1])

    @property
    def fingerprint(self) -> Mapping[str, Scalar]:
        """The embedding contract. `weights` is only a name, since the weights are not available here."""
        return {
            "model": self._name,
            "weights": f"openai:{self._name}",
            "dim": self.dim,
            "pooling": "",
            "query_prompt": "",
            "passage_prompt": "",
            "max_tokens": self.max_tokens,
        }

    def tokenize(self, texts: Sequence[str]) -> list[Offsets]:
        """Estimated token offsets: runs of up to five letters, and all other characters."""
        spans = ([match.span() for match in _TOKEN.finditer(text)] for text in texts)
        return [np.array(span, dtype=np.int64).reshape(-1, 2) for span in spans]

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """*Shape:* (len(texts), dim), unit rows. Raises TooLongError or EmbeddingError."""
        return self._embed(texts, "passage")

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """*Shape:* (len(texts), dim), unit rows. Raises TooLongError or EmbeddingError."""
        return self._embed(texts, "question")

    def _embed(self, texts: Sequence[str], kind: str) -> Vectors:
        check_lengths(kind, map(len, self.tokenize(texts)), self.max_tokens, self._name)
        starts = range(0, len(texts), REQUEST_TEXTS)
        parts = [self._request_vectors(texts[start : start + REQUEST_TEXTS]) for start in starts]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), dtype=np.float32)

    def _request_vectors(self, texts: Sequence[str]) -> Vectors:
        """Vectors of up to `REQUEST_TEXTS` texts, with retries. Raises EmbeddingError."""
        key = os.environ.get("OPENAI_API_KEY", "")
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        body = json.dumps({"model": self._name, "input": list(texts), "encoding_format": "float"}).encode()
        request = Request(f"{self._base}/embeddings", body, headers)  # noqa: S310  http(s) only
        pauses: list[float] = list(RETRY_SECONDS)
        while True:
            retry_after = ""
            try:
                with self._opener.open(request, timeout=TIMEOUT_SECONDS) as opened:
                    response = json.load(opened)
                break
            except HTTPError as error:
                reason = f"status {error.code}, {_server_message(error, key)}"
                retry = error.code in _RETRIED_STATUS
                retry_after = error.headers.get("Retry-After", "")
            except (URLError, OSError, HTTPException, ValueError) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
                retry = True
            if not retry or not pauses:
                raise EmbeddingError(
                    f"Embedding with {self._name!r} failed: no answer from {self._host}: {reason}.",
                    "Check OPENAI_BASE_URL and OPENAI_API_KEY. Finished documents are kept.",
                )
            pause = pauses.pop(0)
            if retry_after.isdigit():
                pause = min(float(retry_after), MAX_RETRY_AFTER_SECONDS)
            _log.info("%s: %s; retrying in %s seconds", self._host, reason, pause)
            time.sleep(pause)
        try:
            rows = sorted(response["data"], key=lambda row: row["index"])
            vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
            if vectors.ndim != 2 or len(vectors) != len(texts):
                raise ValueError(f"vectors of shape {vectors.shape} for {len(texts)} texts")
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            if not np.all((lengths > 0) & (lengths < np.inf)):
                raise ValueError("a vector of zeros or null")
        except (KeyError, TypeError, ValueError) as error:
            raise EmbeddingError(
                f"The response of {self._host} cannot be read: {error!r}.",
                "Check that OPENAI_BASE_URL is a server with OpenAI's embeddings API.",
            ) from error
        unit: Vectors = vectors / lengths
        return unit


class _NoRedirect(HTTPRedirectHandler):
    """Follows no redirect, which could send the API key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _server_message(error: HTTPError, key: str) -> str:
    """The server's error message, without API keys: some servers repeat a part of the key."""
    try:
        message = str(json.load(error)["error"]["message"])[:300]
    except (OSError, ValueError, LookupError, TypeError):
        return str(error.reason)
    if key:
        message = message.replace(key, "…")
    return re.sub(r"sk-\S+", "…", message)
