"""Contract tests for plugins, and light stand-ins for models.

A third party's index is tested with `check_vector_index(MyIndex)` or `check_keyword_index(MyIndex)`, a connector with
`check_connector(connector)`, an embedder with `check_embedder(embedder)`, a reader with `check_reader(reader)`, a
reranker with `check_reranker(reranker)`: each raises AssertionError with what is wrong. `HashingEmbedder`,
`OverlapReranker` and `ScriptedReader` let tests run without a model.

Each of `connector_contract`, `embedder_contract`, `index_contract`, `keyword_contract`, `reader_contract` and
`reranker_contract` has one of these; `contract` has what they share.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

from ragfm.core.errors import TooLongError
from ragfm.core.types import Message, Sampling, Scalar, Stream, Usage
from ragfm.generation.readers import completion_limit, stream_until_stop
from ragfm.testing.connector_contract import check_connector
from ragfm.testing.embedder_contract import check_embedder
from ragfm.testing.index_contract import check_vector_index
from ragfm.testing.keyword_contract import check_keyword_index
from ragfm.testing.reader_contract import check_reader
from ragfm.testing.reranker_contract import check_reranker

if TYPE_CHECKING:
    from ragfm.core.types import Offsets, Vectors

__all__ = [
    "HashingEmbedder",
    "OverlapReranker",
    "ScriptedReader",
    "check_connector",
    "check_embedder",
    "check_keyword_index",
    "check_reader",
    "check_reranker",
    "check_vector_index",
]

_TOKEN = re.compile(r"\w+|[^\w\s]")


class HashingEmbedder:
    """A deterministic bag-of-words embedder without a model: feature hashing (Weinberger et al. 2009).

    Each word adds a pseudo-random direction that depends on its lower-cased letters alone, so texts that share words
    have a higher cosine. Tokens are words and single signs.
    """

    def __init__(self, model: str = "hashing", *, dim: int = 64, max_tokens: int = 64) -> None:
        self.model = model
        self.dim = dim
        self.max_tokens = max_tokens
        self.embedded = 0
        """How many passages were embedded so far, for tests of what is embedded again."""

    @property
    def fingerprint(self) -> Mapping[str, Scalar]:
        """The embedding contract."""
        return {"model": self.model, "weights": "", "dim": self.dim, "pooling": "sum", "max_tokens": self.max_tokens}

    def tokenize(self, texts: Sequence[str]) -> list[Offsets]:
        """Words and signs."""
        import numpy as np

        return [
            np.array([match.span() for match in _TOKEN.finditer(text)], dtype=np.int64).reshape(-1, 2) for text in texts
        ]

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """Sums of word directions, scaled to length 1."""
        vectors = self._embed(texts)
        self.embedded += len(texts)
        return vectors

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """The same as for passages."""
        return self._embed(texts)

    def _embed(self, texts: Sequence[str]) -> Vectors:
        import numpy as np

        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            words = _TOKEN.findall(text.lower())
            if len(words) > self.max_tokens:
                raise TooLongError(f"A text of {len(words)} tokens is over the embedder's {self.max_tokens}.")
            for word in words or [""]:
                seed = int.from_bytes(blake2b(word.encode(), digest_size=8).digest())
                vectors[row] += np.random.default_rng(seed).standard_normal(self.dim, dtype=np.float32)
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


class OverlapReranker:
    """A reranker without a model: the share of the query's words that a text has. `seconds` is how long each takes."""

    def __init__(self, model: str = "overlap", *, seconds: float = 0.0) -> None:
        self.model = model
        self.seconds = seconds

    def rerank(self, query: str, texts: Sequence[str], *, budget_ms: float | None = None) -> Vectors:
        """*Shape:* (len(texts),), in [0, 1]; NaN for those that the budget left out."""
        import numpy as np

        start, asked = time.monotonic(), set(_TOKEN.findall(query.lower()))
        scores = np.full(len(texts), np.nan, dtype=np.float32)
        for at, text in enumerate(texts):
            if budget_ms is not None and time.monotonic() - start + self.seconds >= budget_ms / 1000:
                break
            time.sleep(self.seconds)
            scores[at] = len(asked & set(_TOKEN.findall(text.lower()))) / max(1, len(asked))
        return scores


class ScriptedReader:
    """A reader that answers from a script: a list of answers in turn, or a function of the messages.

    It streams word by word, counts tokens as words and signs, and keeps what it was asked in `prompts`.
    """

    def __init__(
        self, script: Sequence[str] | Callable[[Sequence[Message]], str] = (), *, context_tokens: int = 4096
    ) -> None:
        self.context_tokens = context_tokens
        self.prompts: list[tuple[Message, ...]] = []
        self._script = script
        self._lock = threading.Lock()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Words and signs, and three for each message's frame."""
        return sum(len(_TOKEN.findall(message.content)) + 3 for message in messages)

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        """The next answer of the script."""
        prompt_tokens = self.count_tokens(messages)
        limit = completion_limit(prompt_tokens, self.context_tokens, sampling.max_tokens)
        with self._lock:
            self.prompts.append(tuple(messages))
            turn = len(self.prompts) - 1
        text = self._script(messages) if callable(self._script) else self._script[turn % len(self._script)]
        return Stream(_recite(text, prompt_tokens, limit, sampling.stop))


def _recite(
    text: str, prompt_tokens: int, limit: int, stop: Sequence[str]
) -> Generator[str, None, tuple[Usage, Literal["stop", "length"]]]:
    tokens, reason = yield from stream_until_stop(iter(re.findall(r"\s*\S+\s*$|\s*\S+", text)), limit, stop)
    return Usage(prompt_tokens, 0, tokens), reason
