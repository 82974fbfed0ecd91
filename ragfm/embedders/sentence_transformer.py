"""Sentence-transformers models: texts to unit vectors."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from ragfm.core.errors import UnsupportedError
from ragfm.embedders.model_folder import read_bert_folder
from ragfm.embedders.networks import BertNetwork, LibraryNetwork, Tokenised
from ragfm.models.model_lookup import find_model, weights_sha256

if TYPE_CHECKING:
    from ragfm.core.types import Offsets, Scalar, Vectors
    from ragfm.embedders.backend_choice import Measured
    from ragfm.embedders.networks import Form, Network

__all__ = ["SentenceTransformerEmbedder"]

FEW = 2_000
"""Tokens up to which a process embeds passages exactly, since another form takes a second to load."""
MANY = 20_000
"""Tokens from which on it pays to measure which form is the fastest."""

_log = logging.getLogger(__name__)


class SentenceTransformerEmbedder:
    """Any sentence-transformers model with a fast tokenizer (Reimers and Gurevych 2019).

    The model's own prompts are put before queries and passages. Queries are always embedded in fp32; passages in the
    fastest form whose vectors have a cosine of at least 0.999 to it, see docs/decisions/005-embedding.md. All methods
    may be called from several threads.
    """

    def __init__(self, model: str = "bundled") -> None:
        self._path = find_model(model, "embedder")
        if self._path.is_file():
            raise UnsupportedError(f"{self._path} is no sentence-transformers folder.", f"Use llama-cpp:{model}.")
        self._name = model
        folder = read_bert_folder(self._path)
        self._network: Network = LibraryNetwork(self._path, model) if folder is None else BertNetwork(folder)
        self._lock = threading.Lock()
        self._chosen: Form | None = None
        self._passage_tokens = 0

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._network.dim

    @property
    def max_tokens(self) -> int:
        """Tokens of a passage that fit, special tokens and the passage prompt taken off."""
        return self._room("document")

    @cached_property
    def fingerprint(self) -> Mapping[str, Scalar]:
        """The embedding contract: all that decides which vector a text gets, up to the precision of a form."""
        return {
            "model": self._name,
            "weights": self._weights,
            "dim": self.dim,
            "pooling": self._network.pooling,
            "query_prompt": self._prompt("query"),
            "passage_prompt": self._prompt("document"),
            "max_tokens": self.max_tokens,
        }

    def tokenize(self, texts: Sequence[str]) -> list[Offsets]:
        """Where the tokens of each text stand, by the model's own tokenizer."""
        from ragfm.embedders.token_offsets import offsets

        return offsets(self._network.tokenizer, texts)

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """*Shape:* (len(texts), dim), rows of length 1."""
        tokenised = self._tokenised(texts, "document")
        return self._run(tokenised, self._form(sum(map(len, tokenised.ids))))

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """*Shape:* (len(texts), dim), rows of length 1."""
        return self._run(self._tokenised(texts, "query"), self._exact)

    def measure(self) -> list[Measured]:
        """The forms of this model on this machine, the exact one first; the choice is remembered."""
        from ragfm.embedders.backend_choice import measure, remember

        results = measure(self._network, partial(self._tokenised, prompt="document"))
        remember(self._weights, results)
        return results

    def _run(self, tokenised: Tokenised, form: Form) -> Vectors:
        import numpy as np

        return form(tokenised) if tokenised.texts else np.zeros((0, self.dim), dtype=np.float32)

    def _form(self, tokens: int) -> Form:
        """The form for so many more tokens of passages."""
        with self._lock:
            self._passage_tokens += tokens
            if self._chosen is None and self._passage_tokens >= FEW:
                self._chosen = self._choose()
            return self._chosen or self._exact

    def _choose(self) -> Form | None:
        """What is remembered or, once it pays, measured; None for not yet. It never fails: there is the exact form."""
        from ragfm.embedders.backend_choice import fastest, recall

        try:
            form = recall(self._weights)
            if form is None and self._passage_tokens >= MANY:
                form = fastest(self.measure())
            if form is None or form == self._network.forms()[0]:
                return self._exact if form else None
            return self._network.load(form)
        except Exception:  # whatever a library does on a machine we don't know
            _log.info("The fastest form of %s could not be found; it stays in fp32.", self._name, exc_info=True)
            return self._exact

    def _tokenised(self, texts: Sequence[str], prompt: str) -> Tokenised:
        """Raises TooLongError where one does not fit: the model would cut it, and say nothing."""
        from ragfm.embedders.token_offsets import check_fits

        before = self._prompt(prompt)
        encodings = self._network.tokenizer.encode_batch([before + text for text in texts])

        def count(encoding: Any) -> int:
            if before:  # whose last token may reach into the text
                return sum(end > len(before) for _, end in encoding.offsets)
            return len(encoding.ids) - self._special

        what = "question" if prompt == "query" else "passage"
        check_fits(what, map(count, encodings), self._room(prompt), self._name)
        return Tokenised(texts, before, [encoding.ids for encoding in encodings])

    def _prompt(self, name: str) -> str:
        return self._network.prompts.get(name, "")

    def _room(self, prompt: str) -> int:
        return self._network.window - self._special - len(self.tokenize([self._prompt(prompt)])[0])

    @cached_property
    def _special(self) -> int:
        return int(self._network.tokenizer.num_special_tokens_to_add(False))

    @cached_property
    def _weights(self) -> str:
        return weights_sha256(self._path)

    @cached_property
    def _exact(self) -> Form:
        return self._network.load(self._network.forms()[0])
