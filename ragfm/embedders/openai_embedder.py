"""The embedder for servers with OpenAI's embeddings API (`POST /embeddings`), using OpenAI's SDK."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from urllib.parse import urlsplit

import numpy as np
import openai

from ragfm.core.errors import ConfigError, EmbeddingError
from ragfm.core.types import Offsets, Scalar, Vectors
from ragfm.embedders.token_offsets import check_lengths

MAX_TOKENS = 256
"""Maximum tokens of a text by the estimate used here. Twice as many still fit into most models' window of 512."""
REQUEST_TEXTS = 64
"""Maximum texts in a request."""
TIMEOUT_SECONDS = 60
RETRIES = 5
"""Of a temporary failure, with growing pauses, or after the delay that the server requests."""

_TOKEN = re.compile(r"[A-Za-z]{1,5}|\S")


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
        # A client for each request, so that a forked process shares no connection. A redirect could send texts and key
        # to another host.
        client = openai.OpenAI(
            api_key=key or "none",
            base_url=self._base,
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
            timeout=TIMEOUT_SECONDS,
            max_retries=RETRIES,
        )
        try:
            with client:
                headers = {} if key else {"Authorization": openai.Omit()}
                response = client.embeddings.create(
                    model=self._name, input=list(texts), encoding_format="float", extra_headers=headers
                )
        except (openai.OpenAIError, ValueError) as error:
            reason = str(error.__cause__ or error)
            if isinstance(error, openai.APIStatusError):
                body = error.body if isinstance(error.body, dict) else {}
                reason = f"status {error.status_code}, {str(body.get('message') or error.response.reason_phrase)[:300]}"
            if key:  # some servers repeat it, or a part of it
                reason = reason.replace(key, "…")
            reason = re.sub(r"sk-\S+", "…", reason)
            raise EmbeddingError(
                f"Embedding with {self._name!r} failed: no answer from {self._host}: {reason}.",
                "Check OPENAI_BASE_URL and OPENAI_API_KEY. Finished documents are kept.",
            ) from error
        try:
            rows = sorted(response.data, key=lambda row: row.index)
            vectors = np.array([row.embedding for row in rows], dtype=np.float32)
            if vectors.ndim != 2 or len(vectors) != len(texts):
                raise ValueError(f"vectors of shape {vectors.shape} for {len(texts)} texts")
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            if not np.all((lengths > 0) & (lengths < np.inf)):
                raise ValueError("a vector of zeros or null")
        except (AttributeError, TypeError, ValueError) as error:
            raise EmbeddingError(
                f"The response of {self._host} cannot be read: {error!r}.",
                "Check that OPENAI_BASE_URL is a server with OpenAI's embeddings API.",
            ) from error
        unit: Vectors = vectors / lengths
        return unit
