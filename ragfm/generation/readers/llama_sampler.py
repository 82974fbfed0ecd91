"""How llama.cpp's reader picks the next token: by chance or the best one, from those that a grammar allows."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from ragfm.core.errors import ConfigError, UnsupportedError
from ragfm.core.types import Sampling
from ragfm.generation.readers.sampling import Chance
from ragfm.models.llama_library import free_with, last_error, llama_cpp

if TYPE_CHECKING:
    from ragfm.generation.readers.engine import Logits

__all__ = ["Sampler"]


class Sampler:
    """Picks the tokens of one request. Raises ConfigError for a grammar that can't be read."""

    def __init__(self, vocab: Any, sampling: Sampling) -> None:
        self._chance = Chance(sampling)
        self._grammar: Any = None
        if sampling.grammar is not None:
            self._grammar = llama_cpp.llama_sampler_init_grammar(vocab, sampling.grammar.encode(), b"root")
            if not self._grammar:
                raise ConfigError(f"The grammar can't be read: {last_error()}", "It is GBNF, and its rule is `root`.")
            free_with(self, llama_cpp.llama_sampler_free, self._grammar)

    def pick(self, logits: Logits) -> int:
        """The next token. *Shape* of the logits: (vocabulary,).

        The grammar is asked about the one that would be picked without it, as llama.cpp does: to ask about all 50,000
        takes longer than to evaluate one.
        """
        token = self._chance.pick(logits)
        if self._grammar:
            if self._allowed(np.array([token]), logits[[token]])[0] == -np.inf:
                token = self._chance.pick(self._allowed(np.arange(len(logits)), logits))
            llama_cpp.llama_sampler_accept(self._grammar, token)
        return token

    def _allowed(self, tokens: Any, logits: Logits) -> Logits:
        """The logits of tokens, or minus infinity where the grammar does not take them."""
        rows = np.zeros(len(tokens), _ROW)
        rows["id"], rows["logit"] = tokens, logits
        data = rows.ctypes.data_as(llama_cpp.llama_token_data_p)
        candidates = llama_cpp.llama_token_data_array(data=data, size=len(rows), selected=-1, sorted=False)
        llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(candidates))
        if len(tokens) > 1 and rows["logit"].max() == -np.inf:
            raise UnsupportedError("The grammar allows none of the model's tokens here.", "Mend the grammar.")
        allowed: Logits = rows["logit"]
        return allowed


_ROW = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
