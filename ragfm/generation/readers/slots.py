"""Slots: what each of them holds, and which one a request gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ragfm.generation.readers.engine import BLOCK, Adapter
from ragfm.generation.readers.generation_request import Request

__all__ = ["Place", "Slot", "choose"]


@dataclass(eq=False, slots=True)
class Slot:
    """A place for one request, and what the last one left there."""

    number: int
    held: list[int] = field(default_factory=list)
    """Tokens of a prompt that are evaluated. Generated ones behind them are not kept for others: evaluated one by one,
    they have other values than as part of a prompt."""
    kind: tuple[Adapter | None, str] = (None, "")
    """Of the request that left what is held: its adapter and scope."""
    request: Request | None = None
    length: int = 0
    """Tokens that are evaluated, generated ones included."""
    pending: int = 0
    """The token that was picked last, and is evaluated next."""
    spoken: int = 0
    used: int = 0
    """When a request came or went last: the higher, the later."""

    @property
    def adapter(self) -> Adapter | None:
        """With which what is held was evaluated."""
        return self.kind[0]

    @property
    def unread(self) -> int:
        """How many tokens of its request's prompt are not evaluated yet."""
        return len(self.request.prompt) - len(self.held) if self.request else 0

    @property
    def reading(self) -> bool:
        """Whether there are some."""
        return self.unread > 0

    def shared(self, request: Request, granule: int) -> int:
        """How many tokens of a request's prompt need not be evaluated, given what is held."""
        return _common(self.held, request.prompt, granule) if self.kind == request.kind else 0


class Place(NamedTuple):
    """The slot that a request gets, and that whose first `keep` tokens it begins with: often the same."""

    slot: Slot
    source: Slot
    keep: int


def choose(slots: Sequence[Slot], request: Request, granule: int) -> Place | None:
    """Where a request should go; None means to wait, for a slot or for one that just reads the same beginning.

    It takes the slot that holds most of its prompt, if that is most of what the slot holds; else the one that was not
    used for longest, with a copy of the beginning where another slot has it.
    """
    idle = [slot for slot in slots if slot.request is None]
    if not idle:
        return None
    best = max(slots, key=lambda slot: slot.shared(request, granule))
    keep = best.shared(request, granule)
    if max((_will_share(slot, request, granule) for slot in slots if slot.reading), default=0) >= max(keep + 1, BLOCK):
        return None
    oldest = min(idle, key=lambda slot: (bool(slot.held), slot.used))
    if best.request is None and 2 * keep >= len(best.held) > 0:
        return Place(best, best, keep)
    if keep >= BLOCK:  # a copy takes about as long as a block
        return Place(oldest, best, keep)
    return Place(oldest, oldest, oldest.shared(request, granule))


def _will_share(slot: Slot, request: Request, granule: int) -> int:
    other = slot.request
    return _common(other.prompt, request.prompt, granule) if other and other.kind == request.kind else 0


def _common(held: Sequence[int], prompt: Sequence[int], granule: int) -> int:
    """How many tokens both begin with, the last two of the prompt left out.

    These are evaluated for the logits, and are two since one on its own gets slightly other values.
    """
    most = min(len(held), len(prompt) - 2)
    same = next((at for at in range(most) if held[at] != prompt[at]), max(most, 0))
    return same // granule * granule
