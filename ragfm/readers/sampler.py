"""How the next token is picked: grammar, then the best one, or temperature, top_p, min_p and chance."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from ragfm.errors import ConfigError, UnsupportedError
from ragfm.llama import free_with, last_error, llama_cpp
from ragfm.types import Sampling

if TYPE_CHECKING:
    from ragfm.readers.context import Logits

__all__ = ["Sampler"]


class Sampler:
    """Picks the tokens of one request. Raises ConfigError for a grammar that can't be read."""

    def __init__(self, vocab: Any, sampling: Sampling) -> None:
        self._grammar: Any = None
        if sampling.grammar is not None:
            self._grammar = llama_cpp.llama_sampler_init_grammar(vocab, sampling.grammar.encode(), b"root")
            if not self._grammar:
                raise ConfigError(f"The grammar can't be read: {last_error()}", "It is GBNF, and its rule is `root`.")
            free_with(self, llama_cpp.llama_sampler_free, self._grammar)
        self._chance: Any = None
        if sampling.temperature > 0:
            self._chance = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
            free_with(self, llama_cpp.llama_sampler_free, self._chance)
            for step in (
                llama_cpp.llama_sampler_init_temp(sampling.temperature),
                llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
                llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1),
                llama_cpp.llama_sampler_init_dist(sampling.seed & 0x7FFFFFFF),  # 0xFFFFFFFF would mean a random one
            ):
                llama_cpp.llama_sampler_chain_add(self._chance, step)

    def pick(self, logits: Logits) -> int:
        """The next token. *Shape* of the logits: (vocabulary,)."""
        best = int(logits.argmax())
        token = best if self._chance is None and self._allows(best) else self._from_all(logits)
        if self._grammar:
            llama_cpp.llama_sampler_accept(self._grammar, token)
        return token

    def _allows(self, token: int) -> bool:
        """Whether the grammar takes a token: to ask it about all 50,000 takes longer than to evaluate one."""
        if not self._grammar:
            return True
        candidates, rows = _candidates(np.array([token]), np.zeros(1, np.float32))
        llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(candidates))
        return bool(rows["logit"][0] > -np.inf)

    def _from_all(self, logits: Logits) -> int:
        candidates, rows = _candidates(np.arange(len(logits)), logits)
        if self._grammar:
            llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(candidates))
            if rows["logit"].max() == -np.inf:
                raise UnsupportedError("The grammar allows none of the model's tokens here.", "Mend the grammar.")
        if self._chance:
            llama_cpp.llama_sampler_apply(self._chance, ctypes.byref(candidates))
            return int(rows["id"][candidates.selected])
        return int(rows["id"][rows["logit"].argmax()])


_ROW = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def _candidates(tokens: np.ndarray[Any, Any], logits: Logits) -> tuple[Any, np.ndarray[Any, Any]]:
    """Tokens with their logits, as llama.cpp's samplers take them, and the same memory as an array."""
    rows = np.zeros(len(tokens), _ROW)
    rows["id"], rows["logit"] = tokens, logits
    data = rows.ctypes.data_as(llama_cpp.llama_token_data_p)
    return llama_cpp.llama_token_data_array(data=data, size=len(rows), selected=-1, sorted=False), rows
