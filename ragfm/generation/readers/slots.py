"""Slots of the KV cache: their content, and the choice of a slot for a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ragfm.generation.readers.engine import PREFILL_BLOCK, Adapter
from ragfm.generation.readers.generation_request import GenerationRequest


@dataclass(eq=False, slots=True)
class Slot:
    """Room for one request, and the prompt of the last request in it."""

    number: int
    prompt: list[int] = field(default_factory=list)
    """Evaluated tokens of a prompt. Generated tokens are not reused: evaluated one by one, they have slightly different
    values than as part of a prompt."""
    cache_key: tuple[Adapter | None, str] = (None, "")
    """Adapter and scope that `prompt` was evaluated for."""
    request: GenerationRequest | None = None
    length: int = 0
    """Number of evaluated tokens, including generated ones."""
    last_token: int = 0
    """The token that was picked last, and is evaluated next."""
    generated: int = 0
    last_used: int = 0
    """Time at which a request last entered or left the slot."""
    since: float = 0.0
    """When the request entered the slot (`monotonic`)."""

    @property
    def adapter(self) -> Adapter | None:
        """The adapter that the content was evaluated with."""
        return self.cache_key[0]

    @property
    def scope(self) -> str:
        """The scope that the content was evaluated for."""
        return self.cache_key[1]

    @property
    def remaining(self) -> int:
        """Number of tokens of the request's prompt that are not evaluated yet."""
        return len(self.request.prompt) - len(self.prompt) if self.request else 0

    def reusable_tokens(self, request: GenerationRequest, multiple: int) -> int:
        """Number of tokens of a request's prompt that the slot already holds."""
        return _common_prefix(self.prompt, request.prompt, multiple) if self.cache_key == request.cache_key else 0


def assign_slot(slots: Sequence[Slot], request: GenerationRequest, multiple: int) -> tuple[Slot, Slot, int] | None:
    """Choose a slot, or None if the request must wait for a slot, or for another request that evaluates its prefix.

    Returns the slot, the slot (often the same) whose first tokens it reuses, and the number of these tokens. The slot
    is the one that holds most of the prompt if the prompt reuses at least half of its content. Otherwise it is the
    least recently used slot, with a copy of the prefix if another slot has it. A scope that has half of the slots
    replaces its own prompts, so that those of other scopes stay. Prefixes are reused up to a multiple of `multiple`
    tokens.
    """
    idle = [slot for slot in slots if slot.request is None]
    if not idle:
        return None
    scope = request.cache_key[1]
    has_half = 2 * sum(slot.scope == scope for slot in slots if slot.prompt or slot.request) >= len(slots)
    oldest = min(idle, key=lambda slot: (bool(slot.prompt), has_half and slot.scope != scope, slot.last_used))
    best = max(slots, key=lambda slot: slot.reusable_tokens(request, multiple))
    prefix_tokens = best.reusable_tokens(request, multiple)

    # Wait for a request that is evaluating a prompt of which more can be reused soon.
    for slot in slots:
        other = slot.request
        if other and slot.remaining > 0 and other.cache_key == request.cache_key:
            later = _common_prefix(other.prompt, request.prompt, multiple)
            if later >= max(prefix_tokens + 1, PREFILL_BLOCK):
                return None

    if best.request is None and 2 * prefix_tokens >= len(best.prompt) > 0:
        return best, best, prefix_tokens
    if prefix_tokens >= PREFILL_BLOCK:  # a copy takes about as long as evaluating a block
        return oldest, best, prefix_tokens
    return oldest, oldest, oldest.reusable_tokens(request, multiple)


def _common_prefix(evaluated: Sequence[int], prompt: Sequence[int], multiple: int) -> int:
    """Length of the common prefix, without the last two tokens of the prompt.

    The last token is evaluated for its logits, together with the one before it, because a token that is evaluated alone
    has slightly different values.
    """
    limit = min(len(evaluated), len(prompt) - 2)
    length = next((index for index in range(limit) if evaluated[index] != prompt[index]), max(limit, 0))
    return length // multiple * multiple
