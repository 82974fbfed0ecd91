"""Embeddings from a server that speaks OpenAI's protocol (`POST /embeddings`)."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import numpy as np

from ragfm.core.errors import ConfigError, EmbeddingError
from ragfm.embedders.token_offsets import check_fits

if TYPE_CHECKING:
    from ragfm.core.types import Offsets, Scalar, Vectors

__all__ = ["EndpointEmbedder"]

WINDOW = 256
"""Tokens of a text, as counted here; even where the server counts two to one they fit into most models' 512."""
TOGETHER = 64
"""Texts in a request."""
SECONDS = 60
"""How long an answer may take."""
PAUSES = (1, 2, 4, 8, 16)
"""Seconds before each further try, where the server says nothing of its own."""

_TOKEN = re.compile(r"[A-Za-z]{1,5}|\S")
_AGAIN = {408, 409, 429, 500, 502, 503, 504}

_log = logging.getLogger(__name__)


class EndpointEmbedder:
    """A model by its name on the server at OPENAI_BASE_URL, with the key in OPENAI_API_KEY if it wants one.

    The embedding contract holds the model's name and dimensions: the same model may move to another server. Its
    tokenizer is not known here; tokens are counted as pieces of up to five letters, somewhat more than English has.
    """

    def __init__(self, model: str, *, dim: int | None = None) -> None:
        self.max_tokens = WINDOW
        self._name = model
        self._base = os.environ.get("OPENAI_BASE_URL", "").rstrip("/") or "https://api.openai.com/v1"
        if urlsplit(self._base).scheme not in ("http", "https"):
            raise ConfigError("OPENAI_BASE_URL is not an address that begins with http:// or https://.")
        self._opener = build_opener(_NoRedirect)
        if dim is not None:
            self.dim = dim

    @cached_property
    def dim(self) -> int:
        """Length of a vector; the server is asked once."""
        return int(self._ask(["dimension"]).shape[1])

    @property
    def fingerprint(self) -> Mapping[str, Scalar]:
        """The embedding contract. `weights` are known by their name only."""
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
        """Pieces of up to five letters, and all other signs."""
        spans = ([match.span() for match in _TOKEN.finditer(text)] for text in texts)
        return [np.array(span, dtype=np.int64).reshape(-1, 2) for span in spans]

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """*Shape:* (len(texts), dim), rows of length 1."""
        return self._embed(texts, "passage")

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """*Shape:* (len(texts), dim), rows of length 1."""
        return self._embed(texts, "question")

    def _embed(self, texts: Sequence[str], what: str) -> Vectors:
        check_fits(what, map(len, self.tokenize(texts)), self.max_tokens, self._name)
        parts = [self._ask(texts[start : start + TOGETHER]) for start in range(0, len(texts), TOGETHER)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), dtype=np.float32)

    def _ask(self, texts: Sequence[str]) -> Vectors:
        """One request, tried again with growing pauses. Raises EmbeddingError."""
        answer = self._post({"model": self._name, "input": list(texts), "encoding_format": "float"})
        try:
            rows = sorted(answer["data"], key=lambda row: row["index"])
            vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
            if vectors.ndim != 2 or len(vectors) != len(texts):
                raise ValueError(f"vectors of shape {vectors.shape} for {len(texts)} texts")
        except (KeyError, TypeError, ValueError) as error:
            raise EmbeddingError(f"{self._host} gave an answer that can't be read: {error!r}.") from error
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    def _post(self, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = Request(f"{self._base}/embeddings", json.dumps(body).encode(), headers)  # noqa: S310  http(s) only
        pause: float | None
        for pause in (*PAUSES, None):
            try:
                with self._opener.open(request, timeout=SECONDS) as answer:
                    return json.load(answer)
            except HTTPError as error:
                why, again = f"status {error.code}, {_said(error)}", error.code in _AGAIN
                pause = _asked_pause(error, pause)
            except (URLError, OSError, HTTPException, ValueError) as error:
                why, again = str(getattr(error, "reason", error)) or type(error).__name__, True
            if not again or pause is None:
                break
            _log.info("%s: %s; trying again in %s seconds", self._host, why, pause)
            time.sleep(pause)
        raise EmbeddingError(
            f"The embeddings of {self._name} could not be had from {self._host}: {why}.",
            "Check OPENAI_BASE_URL and OPENAI_API_KEY; what was embedded before is kept.",
        )

    @property
    def _host(self) -> str:
        return urlsplit(self._base).hostname or self._base


class _NoRedirect(HTTPRedirectHandler):
    """A redirect could carry the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _asked_pause(error: HTTPError, pause: float | None) -> float | None:
    """What the server asks for, up to a minute."""
    asked = error.headers.get("Retry-After", "")
    return min(float(asked), 60.0) if pause is not None and asked.isdigit() else pause


def _said(error: HTTPError) -> str:
    """The server's own words; it may repeat a part of the key, which is nobody's business."""
    try:
        message = json.load(error)["error"]["message"]
    except (OSError, ValueError, LookupError, TypeError):
        return str(error.reason)
    key = os.environ.get("OPENAI_API_KEY", "")
    return re.sub(r"sk-\S+", "…", str(message)[:300].replace(key, "…") if key else str(message)[:300])
