"""Drafts of the next tokens, copied from where the last tokens occurred before (prompt lookup decoding, Saxena 2023).

Answers from passages repeat their names, terms and sentences. One batch evaluates a draft after the last token; the
tokens that the sampler picks decide how much of it is kept, so a wrong draft costs time and never changes what is
picked from given logits. docs/decisions/071-drafts-from-the-prompt.md has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence

_DRAFT_TOKENS = {3: 7, 2: 3}
"""How many tokens are drafted after so many known ones. llama.cpp multiplies rows in groups of four and eight."""


class PromptLookup:
    """The tokens of a request so far, prompt included, and where each pair and triple of them occurred last."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.drafted = self.accepted = 0
        """Tokens of all drafts that were evaluated, and how many of them the sampler picked, too."""
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        """For a sequence of tokens, the index of the token that followed it last."""
        for token in prompt:
            self.add(token)

    def add(self, token: int) -> None:
        """Append the token that was picked."""
        end = len(self._tokens)
        for size in _DRAFT_TOKENS:
            if end >= size:
                self._after[tuple(self._tokens[end - size :])] = end
        self._tokens.append(token)

    def draft(self, limit: int) -> list[int]:
        """Up to `limit` tokens that may follow; empty if the last two tokens are new."""
        for size, count in _DRAFT_TOKENS.items():
            if start := self._after.get(tuple(self._tokens[-size:])):
                return self._tokens[start : start + min(count, max(limit, 0))]
        return []
