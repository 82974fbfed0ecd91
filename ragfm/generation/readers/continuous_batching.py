"""Continuous batching: one thread evaluates the next token of all requests in one batch.

Requests join and leave between two tokens. Prompts are evaluated in blocks, and all other requests get a token after
each block. If several scopes have requests, each gets the same share of the time: a prompt waits while a request of a
scope that recently had less is being answered. A scope with more than half of the requests lets all others go first. A
finished request's prompt stays in its slot until another request needs the slot; a prompt with the same prefix is
evaluated only from where it differs. A request that runs alone may evaluate a draft of its next tokens in one step.
"""

from __future__ import annotations

import atexit
import logging
import math
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from ragfm.core.errors import RagfmError, ReaderBusyError
from ragfm.core.fork import end_openmp_threads
from ragfm.core.tracing import span
from ragfm.core.types import Stream, Usage
from ragfm.generation.readers import stream_until_stop
from ragfm.generation.readers.engine import Adapter, BatchToken, Logits
from ragfm.generation.readers.generation_request import GenerationRequest
from ragfm.generation.readers.slots import Slot, assign_slot

if TYPE_CHECKING:
    from ragfm.generation.readers.llama_context import LlamaContext
    from ragfm.generation.readers.llama_model import LlamaModel
    from ragfm.generation.readers.torch_kv_cache import BatchedKVCache, SingleKVCache
    from ragfm.generation.readers.torch_model import TorchModel

Model: TypeAlias = "LlamaModel | TorchModel"
"""Weights, tokenizer and chat template. A cached prefix is reused up to a multiple of `prefix_multiple` tokens, and
`prefill_block` tokens of a prompt are evaluated at once."""
KVCache: TypeAlias = "LlamaContext | BatchedKVCache | SingleKVCache"
"""Keys and values of evaluated tokens, in slots. Used by one thread.

The tokens of a slot continue its content, and slots come in ascending order. Logits are valid until the next call. With
`has_pending_copies`, copies were requested that take effect only with the next evaluation."""
CacheFactory: TypeAlias = "Callable[[int], KVCache]"
"""Makes an empty cache with a number of slots. Raises RagfmError if memory is short."""

STEPS_PER_ADAPTER = 8
"""Steps with one adapter before requests with another one get their turn: switching takes time."""
_THREAD_NAME = "ragfm-reader"
_EXIT_SECONDS = 60.0
"""How long the exit of the program waits for the running evaluation."""
_HALF_LIFE = 10.0
"""Seconds after which half of a scope's evaluation time no longer counts, so that a scope with one request now and then
goes before one that always has some. A scope that is busy all the time waits at most that long for a new one."""
_PATIENCE = 10.0
"""Seconds for which a request of the scope with most requests lets those of other scopes go first."""
_SMOOTHING = 0.25
"""Weight of the newest step in the average time of a step."""

_log = logging.getLogger(__name__)


class Batcher:
    """Accepts requests from any thread. Its own thread starts with the first request and ends with this object.

    `new_cache` makes the KV cache; it must not refer to the reader, or the thread would keep the reader alive. Up to
    `slots` requests run at once, and up to `waiting` more wait.
    """

    def __init__(self, model: Model, new_cache: CacheFactory, *, slots: int, waiting: int) -> None:
        self._model = model
        self._loop = _BatchLoop(model, new_cache, slots)
        self._max_requests = slots + waiting
        self._busy_message = f"The reader serves {slots} requests at once, and {waiting} more are waiting."
        self._starting = threading.Lock()
        weakref.finalize(self, self._loop.close).atexit = False

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request. Raises ReaderBusyError if the queue is full."""
        with self._starting:
            if self._loop.unfinished >= self._max_requests:
                raise ReaderBusyError(
                    self._busy_message, "Try again later, or load the reader with more slots or a longer queue."
                )
            self._loop.put(request)
            if self._loop.thread is None or not self._loop.thread.is_alive():
                self._loop.thread = threading.Thread(target=self._loop.run, name=_THREAD_NAME, daemon=True)
                _loops.add(self._loop)
                self._loop.thread.start()

    def stream(self, request: GenerationRequest, stop: Sequence[str]) -> Stream:
        """Queue a request and return its text. Raises ReaderBusyError."""
        pieces = self._pieces(request, stop)
        next(pieces)  # into its `try`: from there on, closing or collecting the generator cancels the request
        return Stream(pieces, cancel=request.cancel, logprobs=() if request.logprobs is None else request.logprobs)

    def charge(self, scope: str, seconds: float) -> None:
        """Count other work of a scope, which takes the same cores, like time of the reader."""
        self._loop.shares.add(scope, seconds)

    def _pieces(
        self, request: GenerationRequest, stop: Sequence[str]
    ) -> Generator[str, None, tuple[Usage, Literal["stop", "length"]]]:
        """An empty string once the request is queued, then its text."""
        self.submit(request)
        results = request.results()
        try:
            yield ""
            pieces = self._model.detokenize(results)
            tokens, reason = yield from stream_until_stop(pieces, request.max_tokens, stop)
        finally:
            request.cancelled = True
        lookup = request.lookup
        drafted, accepted = (lookup.drafted, lookup.accepted) if lookup else (0, 0)
        return Usage(len(request.prompt), request.cached_tokens, tokens, drafted, accepted), reason


class _RecentTime:
    """Seconds that each scope has recently used, see `_HALF_LIFE`. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}
        self._faded = 0.0

    def add(self, scope: str, seconds: float) -> None:
        with self._lock:
            self._fade()
            self._seconds[scope] = self._seconds.get(scope, 0.0) + seconds

    def of_each(self, scopes: Collection[str]) -> dict[str, float]:
        with self._lock:
            self._fade()
            return {scope: self._seconds.get(scope, 0.0) for scope in scopes}

    def _fade(self) -> None:
        now = monotonic()
        kept = 0.5 ** ((now - self._faded) / _HALF_LIFE)
        self._seconds = {scope: kept * old for scope, old in self._seconds.items() if kept * old > 0.001}
        self._faded = now


class _BatchLoop:
    """The evaluation thread's state. It does not refer to the Batcher, so that it can end with the Batcher."""

    def __init__(self, model: Model, new_cache: CacheFactory, slots: int) -> None:
        self._model, self._new_cache, self._max_slots = model, new_cache, slots
        self.thread: threading.Thread | None = None
        self._inbox: SimpleQueue[GenerationRequest | None] = SimpleQueue()
        self._counting = threading.Lock()
        self.unfinished = 0
        self._waiting: deque[GenerationRequest] = deque()
        self._cache: KVCache | None = None
        self._slots: list[Slot] = []
        self._resizable = True
        """Whether the cache can be resized with its content. If not, it is replaced when no request runs."""
        self._clock = 0
        self._last_served: dict[Adapter | None, int] = {}
        """Time of the last step with each adapter."""
        self._steps_with_adapter = 0
        self.shares = _RecentTime()
        self._step_seconds: dict[int, float] = {}
        """Average time of a step by its number of answers."""
        self._ahead = 0.0
        """Seconds that the smaller scopes' answers have had since the last step of those of the largest one."""

    # --- Called by other threads ---------------------------------------------------------------------------------

    def put(self, request: GenerationRequest) -> None:
        with self._counting:
            self.unfinished += 1
        # It ends in the thread that evaluates, so it must not be current in this one.
        request.span = copy_context().run(span("batch", input_tokens=len(request.prompt)).__enter__)
        self._inbox.put(request)

    def close(self) -> None:
        """End the thread soon. Takes no lock: a garbage collector may call this at any line of any thread."""
        self._inbox.put(None)

    # --- The thread ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            while self._receive():
                try:
                    self._admit()
                    self._step()
                except Exception as error:  # any failure must end the requests that wait for results
                    _log.debug("Evaluation failed.", exc_info=True)
                    self._fail_all(error)
        finally:
            self._fail_all(RagfmError("The reader was closed.", "Load it again."))

    def _receive(self) -> bool:
        """Receive new requests, blocking if there is nothing else to do. False once the loop is closed."""
        idle = not self._waiting and not self._busy_slots()
        if idle and self._cache and self._inbox.empty():
            end_openmp_threads()
        try:
            while True:
                request = self._inbox.get(block=idle)
                if request is None:
                    return False
                self._waiting.append(request)
                idle = False
        except Empty:
            return True

    def _busy_slots(self) -> list[Slot]:
        """The slots with a request, oldest request first."""
        return sorted((slot for slot in self._slots if slot.request), key=lambda slot: slot.last_used)

    def _admit(self) -> None:
        """Drop cancelled requests, then assign slots in order. One that waits for a prefix lets others pass."""
        for slot in self._busy_slots():
            if slot.request and slot.request.cancelled:
                self._release(slot)
        for request in [request for request in self._waiting if request.cancelled]:
            self._waiting.remove(request)
            self._finish(request)
        if len(self._waiting) > len(self._slots) - len(self._busy_slots()):
            self._add_slots()
        for request in list(self._waiting):
            assignment = assign_slot(self._slots, request, self._model.prefix_multiple)
            if assignment is None or self._cache is None:
                continue
            slot, source, prefix_tokens = assignment
            if source is not slot:
                self._cache.copy(source.number, slot.number)
            if not self._cache.truncate(slot.number, prefix_tokens):
                prefix_tokens = 0
            self._waiting.remove(request)
            self._clock += 1
            slot.request, slot.cache_key, slot.last_used = request, request.cache_key, self._clock
            slot.since = monotonic()
            slot.prompt, slot.length, slot.generated = request.prompt[:prefix_tokens], prefix_tokens, 0
            request.cached_tokens = prefix_tokens
            request.span.event("admitted")
            request.span.set(cached_tokens=prefix_tokens, slot=slot.number, slots=len(self._slots))

    def _add_slots(self) -> None:
        """Make slots for the waiting requests, at least doubling their number, up to the limit."""
        present, busy = len(self._slots), len(self._busy_slots())
        wanted = min(self._max_slots, max(2 * present, busy + len(self._waiting)))
        if wanted <= present or (busy and not self._resizable) or (self._cache and self._cache.has_pending_copies):
            return
        if self._cache and self._resizable:
            try:
                self._cache = self._cache.resized(wanted)
            except RagfmError as error:
                _log.info("Cannot move the evaluated tokens to %d slots: %s", wanted, error)
                self._resizable = False
                return
            self._slots = self._slots + [Slot(number) for number in range(present, wanted)]
            return

        # A new cache, with half as many slots as long as memory is short.
        self._cache, self._slots = None, []  # frees the old cache first: there may not be memory for both
        slots = wanted
        while self._cache is None:
            try:
                self._cache = self._new_cache(slots)
            except RagfmError as error:
                if slots == 1:
                    raise
                _log.info("There is not enough memory for %d slots: %s", slots, error)
                slots //= 2
        if slots < wanted:
            self._max_slots = slots
        self._slots = [Slot(number) for number in range(slots)]

    def _step(self) -> None:
        """Evaluate a block of the oldest prompt, or all of several short ones, and a token of every other request."""
        busy = self._busy_slots()
        adapters = {slot.adapter for slot in busy}
        if not adapters or self._cache is None:
            return
        current = max(self._last_served, key=lambda adapter: self._last_served[adapter], default=None)
        if current not in adapters or self._steps_with_adapter >= STEPS_PER_ADAPTER:
            current = min(adapters, key=lambda adapter: self._last_served.get(adapter, 0))
            self._steps_with_adapter = 0
        self._clock += 1
        self._last_served[current] = self._clock
        self._steps_with_adapter += 1
        group = [slot for slot in busy if slot.adapter == current]  # oldest request first
        try:
            self._cache.set_adapter(current)
        except RagfmError as error:
            for slot in group:
                self._release(slot, error)
            return
        now, seconds = monotonic(), self.shares.of_each({slot.scope for slot in busy})
        (largest, requests), *_ = Counter(slot.scope for slot in busy).most_common(1)
        others = [slot for slot in group if slot.scope != largest]
        largest_yields = 2 * requests > len(busy) and bool(others)
        ready = [slot for slot in group if slot in others or not largest_yields or now - slot.since > _PATIENCE]
        prefilling = sorted((slot for slot in ready if slot.remaining > 0), key=lambda slot: seconds[slot.scope])
        budget = self._model.prefill_block
        least = min((seconds[slot.scope] for slot in ready if slot.remaining <= 0), default=math.inf)
        if prefilling and seconds[prefilling[0].scope] > least:
            prefilling = []  # until the other scope has had as much time
        decoding = [slot for slot in group if slot.remaining <= 0]
        for slot in prefilling:
            if slot is prefilling[0] or slot.remaining <= budget:
                budget -= min(slot.remaining, self._model.prefill_block)
                with self._measured(slot):
                    self._prefill(self._cache, slot)
        if largest_yields:
            decoding = self._take_turns(decoding, largest)
        if len(busy) == 1 and decoding and not self._waiting and (draft := self._draft(decoding[0])):
            with self._measured(*decoding):
                self._verify(self._cache, decoding[0], draft)
        elif decoding:
            decoding.sort(key=lambda slot: slot.number)
            entries = [BatchToken(slot.last_token, slot.length, slot.number, True) for slot in decoding]
            start = monotonic()
            with self._measured(*decoding):
                for slot, logits in zip(decoding, self._cache.evaluate(entries), strict=True):
                    slot.length += 1
                    self._pick_token(slot, logits)
            step, before = monotonic() - start, self._step_seconds.get(len(entries))
            self._step_seconds[len(entries)] = step if before is None else before + _SMOOTHING * (step - before)

    def _draft(self, slot: Slot) -> list[int]:
        """Tokens that may follow the last one, none if the request does not draft."""
        request = slot.request
        return request.lookup.draft(request.max_tokens - slot.generated - 1) if request and request.lookup else []

    def _verify(self, cache: KVCache, slot: Slot, draft: Sequence[int]) -> None:
        """Evaluate the last token and a draft in one batch, and pick tokens as long as they equal the draft."""
        request = slot.request
        assert request
        assert request.lookup
        entries = [
            BatchToken(token, slot.length + offset, slot.number, True)
            for offset, token in enumerate([slot.last_token, *draft])
        ]
        request.lookup.drafted += len(draft)
        for logits, drafted in zip(cache.evaluate(entries), [*draft, None], strict=True):
            slot.length += 1
            self._pick_token(slot, logits)
            if slot.request is None or slot.last_token != drafted:
                break
            request.lookup.accepted += 1
        cache.truncate(slot.number, slot.length)

    def _take_turns(self, decoding: list[Slot], largest: str) -> list[Slot]:
        """The answers that get a token in this step: all, or those of the largest scope and the others in turn.

        In one batch, each answer waits for all. Where a step takes longer the more answers it has, as on a CPU, the
        largest scope and the others therefore have steps of their own, with equal shares of the time.
        """
        others = [slot for slot in decoding if slot.scope != largest]
        many = [slot for slot in decoding if slot.scope == largest]
        if not others or not many:
            return decoding
        seconds, seconds_of_many = (self._step_seconds.get(len(slots)) for slots in (others, many))
        if seconds is None or seconds_of_many is None:
            return others if seconds is None else many
        if seconds_of_many < 2 * seconds:
            return decoding
        if self._ahead < seconds_of_many:
            self._ahead += seconds
            return others
        self._ahead = 0.0
        return many

    @contextmanager
    def _measured(self, *slots: Slot) -> Iterator[None]:
        """Count the time of the block for the scopes of the slots, in equal parts."""
        start = monotonic()
        yield
        for slot in slots:
            self.shares.add(slot.scope, (monotonic() - start) / len(slots))

    def _prefill(self, cache: KVCache, slot: Slot) -> None:
        """Evaluate the next block of a slot's prompt; at its end, pick the first token of the answer."""
        assert slot.request
        prompt, start = slot.request.prompt, len(slot.prompt)
        end = min(start + self._model.prefill_block, len(prompt))
        if len(prompt) - end == 1 and end - start > 2:  # a token that is evaluated alone has slightly different values
            end -= 1
        last = len(prompt) - 1
        logits = cache.evaluate(
            [BatchToken(prompt[index], index, slot.number, index == last) for index in range(start, end)]
        )
        slot.prompt += prompt[start:end]
        slot.length = end
        if logits:
            slot.request.span.event("prompt evaluated")
            self._pick_token(slot, logits[0])

    def _pick_token(self, slot: Slot, logits: Logits) -> None:
        request = slot.request
        assert request
        try:
            token = request.sampler.pick(logits)
        except Exception as error:  # fails this request only
            self._release(slot, _as_ragfm_error(error))
            return
        if self._model.is_end_token(token):
            self._release(slot)
            return
        if request.logprobs is not None:
            shifted = logits - logits.max()
            request.logprobs.append(float(shifted[token] - np.log(np.exp(shifted).sum())))
        if request.lookup:
            request.lookup.add(token)
        request.put(token)
        slot.last_token = token
        slot.generated += 1
        if slot.generated == request.max_tokens:
            self._release(slot)

    # --- End of requests -----------------------------------------------------------------------------------------

    def _release(self, slot: Slot, error: Exception | None = None) -> None:
        request, slot.request = slot.request, None
        self._clock += 1
        slot.last_used = self._clock
        if request:
            self._finish(request, error)

    def _finish(self, request: GenerationRequest, error: Exception | None = None) -> None:
        with self._counting:
            self.unfinished -= 1
        request.span.set(output_tokens=request.count, cancelled=request.cancelled)
        request.span.__exit__(type(error) if error else None, error, None)
        request.finish(error)

    def _fail_all(self, error: Exception) -> None:
        """Fail all requests and drop the cache. The next request gets a new one."""
        with suppress(Empty):
            while request := self._inbox.get(block=False):
                self._waiting.append(request)
            self.close()  # the message just received was the one that closes the loop
        requests = [slot.request for slot in self._busy_slots() if slot.request] + list(self._waiting)
        self._waiting.clear()
        self._cache, self._slots = None, []
        for request in requests:
            self._finish(request, _as_ragfm_error(error))


def _as_ragfm_error(error: Exception) -> RagfmError:
    return error if isinstance(error, RagfmError) else RagfmError(f"The reader failed: {error!r}.")


_loops: weakref.WeakSet[_BatchLoop] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End the threads before the interpreter unloads llama.cpp or torch.

    This includes the thread of a reader that no longer exists: it may be freeing the weights, and torch aborts the
    program if that is interrupted.
    """
    for loop in list(_loops):
        loop.close()
    for thread in threading.enumerate():
        if thread.name == _THREAD_NAME:
            thread.join(_EXIT_SECONDS)
