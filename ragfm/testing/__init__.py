"""Contract tests for plugins, and lightweight fakes of models.

Test your own plugin with one call, which raises AssertionError with a description of the first violation:

    check_connector(MyConnector("source"))      check_vector_index(MyVectorIndex)
    check_embedder(MyEmbedder())
    check_reader(MyReader())                    check_reranker(MyReranker())
    check_parser(MyParser(), {"name.suffix": b"..."})      check_backend(MyBackend, "new-folder")

`HashingEmbedder` and `ScriptedReader` replace models in tests.

Modules:

    backend_contract, connector_contract, embedder_contract, parser_contract, reader_contract, reranker_contract,
    vector_index_contract    the contract tests
    contract_checks          assertions that they share
    parser_service           the confined process in which parsers are checked
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from hashlib import blake2b
from typing import Literal

import numpy as np

from ragfm.core.errors import TooLongError
from ragfm.core.types import Message, Offsets, Sampling, Scalar, Stream, Usage, Vectors
from ragfm.generation.readers import check_images, completion_limit, stream_until_stop
from ragfm.testing.backend_contract import check_backend
from ragfm.testing.connector_contract import check_connector
from ragfm.testing.embedder_contract import check_embedder
from ragfm.testing.parser_contract import check_parser
from ragfm.testing.reader_contract import check_reader
from ragfm.testing.reranker_contract import check_reranker
from ragfm.testing.vector_index_contract import check_vector_index

__all__ = [
    "HashingEmbedder",
    "ScriptedReader",
    "check_backend",
    "check_connector",
    "check_embedder",
    "check_parser",
    "check_reader",
    "check_reranker",
    "check_vector_index",
]

_TOKEN = re.compile(r"\w+|[^\w\s]")


class HashingEmbedder:
    """A deterministic bag-of-words embedder without a model: feature hashing (Weinberger et al. 2009).

    A vector is the sum of pseudo-random directions of the lowercased words, so texts that share words have a higher
    cosine. Tokens are words and punctuation characters.
    """

    def __init__(self, model: str = "hashing", *, dim: int = 64, max_tokens: int = 64) -> None:
        self.model = model
        self.dim = dim
        self.max_tokens = max_tokens
        self.embedded = 0
        """Number of passages embedded so far, for tests of re-embedding."""

    @property
    def fingerprint(self) -> Mapping[str, Scalar]:
        """The embedding contract."""
        return {"model": self.model, "weights": "", "dim": self.dim, "pooling": "sum", "max_tokens": self.max_tokens}

    def tokenize(self, texts: Sequence[str]) -> list[Offsets]:
        """Offsets of words and punctuation characters."""
        return [
            np.array([match.span() for match in _TOKEN.finditer(text)], dtype=np.int64).reshape(-1, 2) for text in texts
        ]

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """*Shape:* (len(texts), dim), unit rows. Raises TooLongError for a text over `max_tokens`."""
        vectors = self.embed_queries(texts)
        self.embedded += len(texts)
        return vectors

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """The same vectors as `embed_passages`."""
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            words = _TOKEN.findall(text.lower())
            if len(words) > self.max_tokens:
                raise TooLongError(f"A text has {len(words)} tokens, and {self.model!r} accepts {self.max_tokens}.")
            for word in words or [""]:
                seed = int.from_bytes(blake2b(word.encode(), digest_size=8).digest())
                vectors[row] += np.random.default_rng(seed).standard_normal(self.dim, dtype=np.float32)
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


class ScriptedReader:
    """A reader that returns scripted answers: those of a list in turn, or the result of a function of the messages.

    It streams word by word, and records the messages of each request in `prompts`. Tokens are words and punctuation
    characters. With `vision`, it accepts images, of `image_tokens` tokens each.
    """

    def __init__(
        self,
        script: Sequence[str] | Callable[[Sequence[Message]], str] = (),
        *,
        context_tokens: int = 4096,
        vision: bool = False,
        image_tokens: int = 64,
    ) -> None:
        self.context_tokens, self.vision, self._image_tokens = context_tokens, vision, image_tokens
        self.prompts: list[tuple[Message, ...]] = []
        self._script = script
        self._lock = threading.Lock()

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Words and punctuation characters, plus three for each message, plus the images."""
        check_images(messages, vision=self.vision, reader="the scripted reader")
        images = sum(len(message.images) for message in messages)
        return sum(len(_TOKEN.findall(message.text)) + 3 for message in messages) + images * self._image_tokens

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling()) -> Stream:
        """Stream the next answer of the script."""
        prompt_tokens = self.count_tokens(messages)
        limit = completion_limit(prompt_tokens, self.context_tokens, sampling.max_tokens)
        with self._lock:
            self.prompts.append(tuple(messages))
            turn = len(self.prompts) - 1
        text = self._script(messages) if callable(self._script) else self._script[turn % len(self._script)]

        def pieces() -> Generator[str, None, tuple[Usage, Literal["stop", "length"]]]:
            words = iter(re.findall(r"\s*\S+\s*$|\s*\S+", text))
            tokens, reason = yield from stream_until_stop(words, limit, sampling.stop)
            return Usage(prompt_tokens, 0, tokens), reason

        return Stream(pieces())
