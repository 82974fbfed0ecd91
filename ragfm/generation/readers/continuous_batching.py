"""Continuous batching: one thread evaluates the next token of all requests at once, on one context.

A request joins and leaves between two tokens. Prompts are read a block at a time, and after each the others get their
next token. What a finished request's slot holds stays until another one needs the slot: a prompt that begins like it is
not evaluated again as far as they are the same.
"""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Literal

import numpy as np

from ragfm.core.errors import RagfmError, ReaderBusyError, UnsupportedError
from ragfm.core.types import Stream, Usage
from ragfm.generation.readers import completion_room, speak
from ragfm.generation.readers.engine import Memory, Model, Row
from ragfm.generation.readers.generation_request import Request
from ragfm.generation.readers.slots import Slot, choose

if TYPE_CHECKING:
    from ragfm.generation.readers.engine import Adapter, Logits

__all__ = ["Batcher"]

TURNS = 8
"""Turns that the requests with one adapter have before those with another: to switch costs time."""
_NAME = "ragfm-reader"
_EXIT_SECONDS = 60.0
"""How long the end of the program waits for what is being evaluated."""

_log = logging.getLogger(__name__)


class Batcher:
    """Takes requests from any thread. Its own thread begins with the first one, and ends with this object."""

    def __init__(self, model: Model, *, window: int, slots: int, waiting: int, threads: int = 0) -> None:
        self._model, self._window = model, window
        self._loop = _Loop(model, window=window, slots=slots, threads=threads)
        self._most = slots + waiting
        self._said = f"The reader serves {slots} requests at once, and {waiting} more are waiting."
        self._starting = threading.Lock()
        weakref.finalize(self, self._loop.close).atexit = False

    def submit(self, request: Request) -> None:
        """Have a request served. Raises ReaderBusyError where too many wait already."""
        with self._starting:
            if self._loop.unfinished >= self._most:
                raise ReaderBusyError(self._said, "Ask again later, or load it with more slots or a longer queue.")
            self._loop.put(request)
            if self._loop.thread is None or not self._loop.thread.is_alive():
                self._loop.thread = threading.Thread(target=self._loop.run, name=_NAME, daemon=True)
                _loops.add(self._loop)
                self._loop.thread.start()

    def stream(self, request: Request, stop: Sequence[str]) -> Stream:
        """Have a request served, and give its text. Raises ReaderBusyError."""
        pieces = self._pieces(request, stop)
        next(pieces)  # up to where closing it, by hand or by the garbage collector, cancels the request
        return Stream(pieces, cancel=request.cancel, logprobs=() if request.logprobs is None else request.logprobs)

    def score(self, request: Request) -> list[float]:
        """Have a request's continuations scored. Raises ContextOverflowError, ReaderBusyError."""
        longest = max(map(len, request.continuations), default=0)
        completion_room(len(request.prompt) + longest - 1, self._window, None)
        if not request.continuations:
            return []
        self.submit(request)
        return list(request.results())

    def _pieces(
        self, request: Request, stop: Sequence[str]
    ) -> Generator[str, None, tuple[Usage, Literal["stop", "length"]]]:
        """An empty piece once the request is on its way, then its text."""
        self.submit(request)
        results = request.results()
        try:
            yield ""
            tokens, reason = yield from speak(self._model.texts(results), request.limit, stop)
        finally:
            request.cancelled = True
        return Usage(len(request.prompt), request.cached, tokens), reason


class _Loop:
    """What the thread does. It knows nothing of the Batcher, so that the one can end with the other."""

    def __init__(self, model: Model, *, window: int, slots: int, threads: int) -> None:
        self._model, self._window, self._most_slots, self._threads = model, window, slots, threads
        self.thread: threading.Thread | None = None
        self._inbox: SimpleQueue[Request | None] = SimpleQueue()
        self._counting = threading.Lock()
        self.unfinished = 0
        self._waiting: deque[Request] = deque()
        self._context: Memory | None = None
        self._slots: list[Slot] = []
        self._movable = True
        """Whether what slots hold can be moved to a context with more of them; else that waits until none is busy."""
        self._clock = 0
        self._served: dict[Adapter | None, int] = {}
        """When each adapter had its last turn, and how many it had since the one before."""
        self._turns = 0

    # --- What other threads call ---------------------------------------------------------------------------------

    def put(self, request: Request) -> None:
        """Add a request."""
        with self._counting:
            self.unfinished += 1
        self._inbox.put(request)

    def close(self) -> None:
        """End the thread soon. A garbage collector may call this, at any line of any thread: it takes no lock."""
        self._inbox.put(None)

    # --- The thread ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve requests until it is closed."""
        try:
            while self._collect():
                try:
                    self._drop_cancelled()
                    self._admit()
                    self._turn()
                except Exception as error:  # whatever it is, nobody may wait for ever
                    _log.debug("Evaluating failed.", exc_info=True)
                    self._fail_all(error)
        finally:
            self._fail_all(RagfmError("The reader was closed."))

    def _collect(self) -> bool:
        """Take in what was asked, and wait where there is nothing else to do. False once it is closed."""
        idle = not self._waiting and not self._busy()
        try:
            while True:
                request = self._inbox.get(block=idle)
                if request is None:
                    return False
                self._waiting.append(request)
                idle = False
        except Empty:
            return True

    def _busy(self) -> list[Slot]:
        """The slots with a request, the earliest first."""
        return sorted((slot for slot in self._slots if slot.request), key=lambda slot: slot.used)

    def _drop_cancelled(self) -> None:
        for slot in self._busy():
            if slot.request and slot.request.cancelled:
                self._release(slot)
        for request in [request for request in self._waiting if request.cancelled]:
            self._waiting.remove(request)
            self._finish(request)

    def _admit(self) -> None:
        """Give slots to those who wait, in order; one that waits for what another one reads lets others pass."""
        if len(self._waiting) > len(self._slots) - len(self._busy()):
            self._grow()
        for request in list(self._waiting):
            place = choose(self._slots, request, self._model.granule)
            if place is None or self._context is None:
                continue
            slot, source, keep = place
            begun = self._begun(self._context, slot, request, keep)
            if begun is not None:
                keep = begun
            elif source is not slot:
                self._context.copy(source.number, slot.number)
            if not self._context.cut(slot.number, keep):
                keep = 0
            self._waiting.remove(request)
            self._clock += 1
            slot.request, slot.kind, slot.used = request, request.kind, self._clock
            slot.held, slot.length, slot.spoken, request.cached = request.prompt[:keep], keep, 0, keep

    def _begun(self, context: Memory, slot: Slot, request: Request, keep: int) -> int | None:
        """How many tokens of its prompt a slot has from the disk; None where that is no more than is kept otherwise."""
        on_disk = self._model.beginnings
        size = on_disk.of(request.prompt) if on_disk else 0
        if not on_disk or size <= keep or not context.settled:  # what the slot holds may still have to be copied
            return None
        return on_disk.read(context, slot.number, request.prompt[:size], request.adapter)

    def _grow(self) -> None:
        """Make slots for those who wait, at least twice as many as there are, up to the limit."""
        have, busy = len(self._slots), len(self._busy())
        wanted = min(self._most_slots, max(2 * have, busy + len(self._waiting)))
        if wanted <= have or (busy and not self._movable) or (self._context and not self._context.settled):
            return
        kept: list[Slot] = []
        if self._context and self._movable:
            try:
                self._context, kept = self._context.grown(wanted), self._slots
            except RagfmError as error:
                _log.info("What the reader holds can't be moved to %d slots: %s", wanted, error)
                self._movable = False
                return
        else:
            self._context, self._slots = None, []  # first: there may be no memory for both
            self._context, wanted = self._anew(wanted)
        self._slots = kept + [Slot(number) for number in range(len(kept), wanted)]

    def _anew(self, slots: int) -> tuple[Memory, int]:
        """An empty memory of so many slots, or of as many as there is room for. Raises RagfmError for none at all."""
        try:
            return self._model.memory(slots, self._window, self._threads), slots
        except RagfmError as error:
            if slots == 1:
                raise
            _log.info("The reader can't have %d slots: %s", slots, error)
            found = self._anew(slots // 2)
            self._most_slots = found[1]
            return found

    def _turn(self) -> None:
        """Read one block of the prompt that came first, or all of several short ones, and give all others a token."""
        group = self._group()
        if not group or self._context is None:
            return
        try:
            self._context.use(group[0].adapter)
        except RagfmError as error:
            for slot in group:
                self._release(slot, error)
            return
        reading = [slot for slot in group if slot.reading]
        writing = [slot for slot in group if not slot.reading and slot.request and slot.request.sampler]
        scoring = [slot for slot in group if slot not in reading and slot not in writing]
        room = self._model.block
        for slot in reading:
            if slot is reading[0] or slot.unread <= room:
                room -= min(slot.unread, self._model.block)
                self._read(self._context, slot)
        for slot in scoring[:1]:
            self._score(self._context, slot)
        if writing:
            self._write(self._context, sorted(writing, key=lambda slot: slot.number))

    def _group(self) -> list[Slot]:
        """Those whose turn it is, the earliest first: all of them have the same adapter."""
        busy = self._busy()
        adapters = {slot.adapter for slot in busy}
        if not adapters:
            return []
        current = max(self._served, key=lambda adapter: self._served[adapter], default=None)
        if current not in adapters or self._turns >= TURNS:
            current = min(adapters, key=lambda adapter: self._served.get(adapter, 0))
            self._turns = 0
        self._clock += 1
        self._served[current] = self._clock
        self._turns += 1
        return [slot for slot in busy if slot.adapter == current]

    def _read(self, context: Memory, slot: Slot) -> None:
        assert slot.request
        prompt, start = slot.request.prompt, len(slot.held)
        end = min(start + self._model.block, len(prompt))
        if len(prompt) - end == 1 and end - start > 2:  # one token on its own gets slightly other values
            end -= 1
        begun = self._model.beginnings.of(prompt) if self._model.beginnings else 0
        if start + 1 < begun < end:
            end = begun
        rows = [Row(prompt[at], at, slot.number, at == len(prompt) - 1) for at in range(start, end)]
        logits = context.evaluate(rows)
        slot.held += prompt[start:end]
        slot.length = end
        if end == begun and self._model.beginnings:
            self._model.beginnings.write(context, slot.number, slot.held, slot.adapter)
        if logits and slot.request.sampler:
            self._pick(slot, logits[0])
        elif logits:
            slot.request.after_prompt = _log_probabilities(logits[0])

    def _write(self, context: Memory, slots: Sequence[Slot]) -> None:
        logits = context.evaluate([Row(slot.pending, slot.length, slot.number, True) for slot in slots])
        for slot, row in zip(slots, logits, strict=True):
            slot.length += 1
            self._pick(slot, row)

    def _pick(self, slot: Slot, logits: Logits) -> None:
        request = slot.request
        assert request
        assert request.sampler
        try:
            token = request.sampler.pick(logits)
        except Exception as error:  # whatever it is, it is this request's alone
            self._release(slot, _told(error))
            return
        if self._model.ends(token):
            self._release(slot)
            return
        if request.logprobs is not None:
            request.logprobs.append(float(_log_probabilities(logits)[token]))
        request.give(token)
        slot.pending = token
        slot.spoken += 1
        if slot.spoken == request.limit:
            self._release(slot)

    def _score(self, context: Memory, slot: Slot) -> None:
        """Give one continuation's log-likelihood."""
        request = slot.request
        assert request
        assert request.after_prompt is not None
        tokens, start, size = request.continuations[request.given], len(slot.held), self._model.block
        total = float(request.after_prompt[tokens[0]]) if tokens else 0.0
        for first in range(0, len(tokens) - 1, size):
            block = tokens[first : first + size + 1]
            rows = [Row(token, start + first + at, slot.number, True) for at, token in enumerate(block[:-1])]
            for row, token in zip(context.evaluate(rows), block[1:], strict=True):
                total += float(_log_probabilities(row)[token])
        request.give(total)
        if not context.cut(slot.number, start):
            self._release(slot, UnsupportedError(f"{self._model.path} is recurrent: it can't score.", "Use another."))
        elif request.given == len(request.continuations):
            self._release(slot)

    # --- Ends ----------------------------------------------------------------------------------------------------

    def _release(self, slot: Slot, error: Exception | None = None) -> None:
        request, slot.request = slot.request, None
        self._clock += 1
        slot.used = self._clock
        if request:
            self._finish(request, error)

    def _finish(self, request: Request, error: Exception | None = None) -> None:
        with self._counting:
            self.unfinished -= 1
        request.end(error)

    def _fail_all(self, error: Exception) -> None:
        """Nobody waits for what does not come, and the next request finds a new context."""
        with suppress(Empty):
            while request := self._inbox.get(block=False):
                self._waiting.append(request)
            self.close()  # that was its message
        requests = [slot.request for slot in self._busy() if slot.request] + list(self._waiting)
        self._waiting.clear()
        self._context, self._slots = None, []
        for request in requests:
            self._finish(request, _told(error))


def _told(error: Exception) -> RagfmError:
    return error if isinstance(error, RagfmError) else RagfmError(f"The reader failed: {error!r}.")


def _log_probabilities(logits: Logits) -> Logits:
    """Their logarithms, after the softmax. *Shape:* (vocabulary,)."""
    shifted = logits - logits.max()
    result: Logits = shifted - np.log(np.exp(shifted).sum())
    return result


_loops: weakref.WeakSet[_Loop] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """The threads end before the interpreter takes llama.cpp or torch away under them.

    Of a reader that is gone already too: its thread may just be freeing the weights, and torch ends the program where
    that is cut off.
    """
    for loop in list(_loops):
        loop.close()
    for thread in threading.enumerate():
        if thread.name == _NAME:
            thread.join(_EXIT_SECONDS)
