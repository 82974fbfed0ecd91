"""Token sampling for llama.cpp, optionally constrained by a GBNF grammar."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ragfm.core.errors import ConfigError, UnsupportedError
from ragfm.core.types import Sampling
from ragfm.generation.readers.engine import Logits
from ragfm.generation.readers.sampling import LogitsSampler
from ragfm.models.llama_library import free_on_collection, last_error, llama_cpp

_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama.cpp's `llama_token_data`."""


class GrammarSampler:
    """Picks the tokens of one request, with or without a grammar. Raises ConfigError for an invalid grammar."""

    def __init__(self, vocab: Any, sampling: Sampling) -> None:
        self._sampler = LogitsSampler(sampling)
        self._grammar: Any = None
        if sampling.grammar is not None:
            self._grammar = llama_cpp.llama_sampler_init_grammar(vocab, sampling.grammar.encode(), b"root")
            if not self._grammar:
                raise ConfigError(
                    f"Cannot read the grammar: {last_error()}.", "Specify a GBNF grammar with the start rule `root`."
                )
            free_on_collection(self, llama_cpp.llama_sampler_free, self._grammar)

    def pick(self, logits: Logits) -> int:
        """The next token. *Shape* of the logits: (vocabulary,).

        As in llama.cpp, the grammar first checks only the token that is picked without it: checking the whole
        vocabulary takes longer than evaluating a token.
        """
        token = self._sampler.pick(logits)
        if self._grammar:
            if self._apply_grammar(np.array([token]), logits[[token]])[0] == -np.inf:
                token = self._sampler.pick(self._apply_grammar(np.arange(len(logits)), logits))
            llama_cpp.llama_sampler_accept(self._grammar, token)
        return token

    def _apply_grammar(self, tokens: Any, logits: Logits) -> Logits:
        """The logits of the tokens, minus infinity for tokens that the grammar rejects."""
        rows = np.zeros(len(tokens), _TOKEN_DATA)
        rows["id"], rows["logit"] = tokens, logits
        data = rows.ctypes.data_as(llama_cpp.llama_token_data_p)
        candidates = llama_cpp.llama_token_data_array(data=data, size=len(rows), selected=-1, sorted=False)
        llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(candidates))
        if len(tokens) > 1 and rows["logit"].max() == -np.inf:
            raise UnsupportedError("The grammar rejects all of the model's tokens at this point.", "Fix the grammar.")
        allowed: Logits = rows["logit"]
        return allowed
