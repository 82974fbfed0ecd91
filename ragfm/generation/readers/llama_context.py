"""A llama.cpp context: evaluates tokens, with a separate KV cache for each slot.

With a cache shared by all requests (`kv_unified`), logits depend on where a request's tokens are stored; differences of
0.4 were measured. Flash attention computes a single request differently, too. With a cache per slot and without flash
attention, a request's logits are bit-identical alone and next to others. The cost is memory (each slot has a whole
window) and a tenth of the speed; docs/decisions/006-many-requests-at-once.md has the figures.
"""

from __future__ import annotations

import ctypes
import itertools
import struct
import time
from collections.abc import Sequence

import numpy as np

from ragfm.core.errors import RagfmError
from ragfm.generation.readers.engine import PREFILL_BLOCK, Adapter, BatchToken, Logits
from ragfm.generation.readers.llama_model import LlamaModel
from ragfm.models.llama_library import free_on_collection, last_error, llama_cpp
from ragfm.models.thread_count import ThreadCount

_MAX_GAP = 2
"""llama.cpp evaluates only adjacent slots in one batch. Gaps of up to this many idle slots are bridged."""
# A saved sequence of llama.cpp: 8 bytes of identification, the number of slots, a token count for each slot (0 for all
# but one, followed by its content). With counts for the new slots, a context with more slots takes it. llama.cpp
# validates what it reads. Models with several kinds of memory have other formats.
_NUMBER, _HEAD_BYTES = struct.Struct("=I"), 8


class LlamaContext:
    """A context with `slots` slots of `window` tokens. Used by one thread. Raises RagfmError if memory is short."""

    def __init__(self, model: LlamaModel, slots: int, window: int, threads: ThreadCount) -> None:
        self.model, self.slots = model, slots
        self._window, self._threads = window, threads
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = slots * window
        params.n_seq_max = slots
        params.kv_unified = False
        params.n_batch = params.n_ubatch = max(PREFILL_BLOCK, 2 * slots)
        params.n_threads = params.n_threads_batch = threads.maximum
        if not llama_cpp.llama_supports_gpu_offload():
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(model.handle, params)
        if not self._context:
            raise RagfmError(
                f"llama.cpp cannot open '{model.path}' with {slots} slots: {last_error()}.",
                "Try fewer context_tokens or slots.",
            )
        free_on_collection(self, llama_cpp.llama_free, self._context)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)
        free_on_collection(self, llama_cpp.llama_batch_free, self._batch)
        self._logits_type = ctypes.c_float * model.vocab_size
        self._adapter: Adapter | None = None
        self.has_pending_copies = False

    def evaluate(self, batch: Sequence[BatchToken]) -> list[Logits]:
        """The requested logits, in order; valid until the next call."""
        fillers = self._fill_gaps(batch)
        entries = sorted([*batch, *fillers], key=lambda entry: entry.slot) if fillers else batch
        llama_batch = self._batch
        for index, (token, position, slot, wants_logits) in enumerate(entries):
            llama_batch.token[index], llama_batch.pos[index] = token, position
            llama_batch.logits[index] = wants_logits
            llama_batch.n_seq_id[index], llama_batch.seq_id[index][0] = 1, slot
        llama_batch.n_tokens = len(entries)
        llama_cpp.llama_set_n_threads(self._context, self._threads.count, self._threads.count)
        start = time.perf_counter()
        if code := llama_cpp.llama_decode(self._context, llama_batch):
            raise RagfmError(f"llama.cpp failed to evaluate {len(batch)} tokens (code {code}): {last_error()}.")
        self._threads.record(len(entries), time.perf_counter() - start)
        self.has_pending_copies = False
        for filler in fillers:
            llama_cpp.llama_memory_seq_rm(self._memory, filler.slot, filler.position, -1)
        wanted = [index for index, entry in enumerate(entries) if entry.wants_logits]
        pointers = (llama_cpp.llama_get_logits_ith(self._context, index) for index in wanted)
        rows = (self._logits_type.from_address(ctypes.addressof(pointer.contents)) for pointer in pointers)
        return [np.ctypeslib.as_array(row) for row in rows]

    def truncate(self, slot: int, length: int) -> bool:
        """Keep the first `length` tokens of a slot. If the model cannot do this, empty the slot and return False."""
        if llama_cpp.llama_memory_seq_rm(self._memory, slot, length, -1):
            return True
        llama_cpp.llama_memory_seq_rm(self._memory, slot, -1, -1)
        return False

    def copy(self, source: int, target: int) -> None:
        """Copy the content of a slot to another slot, with the next evaluation."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self.has_pending_copies = True

    def set_adapter(self, adapter: Adapter | None) -> None:
        """Use a LoRA adapter, or none, for the following evaluations. Raises DamagedModelError."""
        if adapter == self._adapter:
            return
        handles = [self.model.adapter_handle(adapter)] if adapter else []
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(*handles)
        scales = (ctypes.c_float * 1)(1.0)
        if llama_cpp.llama_set_adapters_lora(self._context, adapters, len(handles), scales):
            name = f"the adapter '{adapter.path}'" if adapter else "no adapter"
            raise RagfmError(f"llama.cpp cannot switch to {name}: {last_error()}.")
        self._adapter = adapter

    def resized(self, slots: int) -> LlamaContext:
        """A context with more slots and the same content. Raises RagfmError if the content cannot be moved."""
        larger = LlamaContext(self.model, slots, self._window, self._threads)
        for slot in range(self.slots):
            size = llama_cpp.llama_state_seq_get_size(self._context, slot)
            saved = (ctypes.c_uint8 * size)()
            llama_cpp.llama_state_seq_get_data(self._context, saved, size, slot)
            state, before = bytes(saved), _NUMBER.pack(self.slots) + bytes(_NUMBER.size * slot)
            after = bytes(_NUMBER.size * (self.slots - 1 - slot))
            is_known = state.startswith(before, _HEAD_BYTES) and state.endswith(after)
            state = state[:_HEAD_BYTES] + _NUMBER.pack(slots) + state[_HEAD_BYTES + _NUMBER.size :]
            state += bytes(_NUMBER.size * (slots - self.slots))
            data = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
            if not is_known or not llama_cpp.llama_state_seq_set_data(larger._context, data, len(state), slot):
                raise RagfmError(f"llama.cpp cannot move the evaluated tokens to {slots} slots: {last_error()}.")
        return larger

    def _fill_gaps(self, batch: Sequence[BatchToken]) -> list[BatchToken]:
        """Tokens for idle slots between busy ones. Removing them afterwards is cheaper than a second batch.

        They are repeated from the batch. For a token that a model does not use, it may compute NaN, which would spoil
        all later answers in the slot: llama.cpp multiplies removed values by zero.
        """
        if not self.model.can_truncate:
            return []
        busy = sorted({entry.slot for entry in batch})
        fillers: list[BatchToken] = []
        for low, high in itertools.pairwise(busy):
            if not 1 < high - low <= _MAX_GAP + 1:
                continue
            for slot in range(low + 1, high):
                length = int(llama_cpp.llama_memory_seq_pos_max(self._memory, slot)) + 1
                if length >= self._window:
                    return []
                fillers.append(BatchToken(batch[0].token, length, slot, False))
        return fillers
