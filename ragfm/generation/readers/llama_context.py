"""llama.cpp's context: tokens in, logits out, and for each of its slots a memory of its own.

Where attention takes the memory of all requests as one (`kv_unified`), where a request's tokens lie in it changes their
sums: 0.4 in a logit was seen. Each with a memory of its own, and without flash attention (whose path for a lone request
sums otherwise), a request's logits are the same alone and beside others, to the bit. It costs memory (every slot has a
whole window) and a tenth of the speed; docs/decisions/006-many-requests-at-once.md has the figures.
"""

from __future__ import annotations

import ctypes
import itertools
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ragfm.core.errors import RagfmError
from ragfm.generation.readers.engine import BLOCK, Adapter, Row
from ragfm.models.llama_library import free_with, last_error, llama_cpp

if TYPE_CHECKING:
    from ragfm.generation.readers.engine import Logits
    from ragfm.generation.readers.llama_model import LlamaModel

__all__ = ["Context", "Row"]

_GAP = 2
"""llama.cpp evaluates only neighbouring slots at once; up to so many that have nothing to do are bridged."""


class Context:
    """Used by one thread. Raises RagfmError where there is not enough memory for so many slots."""

    def __init__(self, model: LlamaModel, slots: int, window: int, threads: int) -> None:
        self.model, self.slots = model, slots
        self._window, self._threads = window, threads
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = slots * window
        settings.n_seq_max = slots
        settings.kv_unified = False
        settings.n_batch = settings.n_ubatch = max(BLOCK, 2 * slots)
        settings.n_threads = settings.n_threads_batch = threads
        if not llama_cpp.llama_supports_gpu_offload():
            settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(model.handle, settings)
        if not self._context:
            hint = "Try with fewer context_tokens or slots."
            raise RagfmError(f"llama.cpp can't open {model.path} with {slots} slots: {last_error()}", hint)
        free_with(self, llama_cpp.llama_free, self._context)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(settings.n_batch, 0, 1)
        free_with(self, llama_cpp.llama_batch_free, self._batch)
        self._logits = ctypes.c_float * model.vocab_size
        self._adapter: Adapter | None = None
        self.settled = True
        """Whether what was copied is there: that is done with the next evaluation."""

    def evaluate(self, rows: Sequence[Row]) -> list[Logits]:
        """The logits of the rows in which they are wanted, in order; valid until the next call.

        A slot's rows follow what it holds. Slots come in ascending order.
        """
        bridges = self._bridges(rows)
        asked = sorted([*rows, *bridges], key=lambda row: row.slot) if bridges else rows
        batch = self._batch
        for at, (token, place, slot, wanted) in enumerate(asked):
            batch.token[at], batch.pos[at], batch.logits[at] = token, place, wanted
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, slot
        batch.n_tokens = len(asked)
        if code := llama_cpp.llama_decode(self._context, batch):
            raise RagfmError(f"llama.cpp failed to evaluate {len(rows)} tokens (code {code}): {last_error()}")
        self.settled = True
        for bridge in bridges:
            llama_cpp.llama_memory_seq_rm(self._memory, bridge.slot, bridge.place, -1)
        return [self._logits_at(at) for at, row in enumerate(asked) if row.wanted]

    def cut(self, slot: int, length: int) -> bool:
        """Forget all but the first `length` tokens of a slot. False where the model can't: then it forgets them all."""
        if llama_cpp.llama_memory_seq_rm(self._memory, slot, length, -1):
            return True
        llama_cpp.llama_memory_seq_rm(self._memory, slot, -1, -1)
        return False

    def copy(self, source: int, target: int) -> None:
        """Let a slot hold what another one does."""
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self.settled = False

    def use(self, adapter: Adapter | None) -> None:
        """Evaluate with a LoRA adapter from now on, or with none. Raises DamagedModelError for one that is none."""
        if adapter == self._adapter:
            return
        used = [self.model.adapter(adapter)] if adapter else []
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(*used)
        scales = (ctypes.c_float * 1)(1.0)
        if llama_cpp.llama_set_adapters_lora(self._context, adapters, len(used), scales):
            raise RagfmError(f"llama.cpp can't switch to the adapter {adapter}: {last_error()}")
        self._adapter = adapter

    def grown(self, slots: int) -> Context:
        """A context of more slots, which hold what these do. Raises RagfmError where that can't be moved."""
        new = Context(self.model, slots, self._window, self._threads)
        for slot in range(self.slots):
            if not new.restore(slot, self.state(slot)):
                raise RagfmError(f"llama.cpp can't move what is held to {slots} slots: {last_error()}")
        return new

    def state(self, slot: int) -> bytes:
        """What a slot holds, for `restore`; empty where that can't be had."""
        size = llama_cpp.llama_state_seq_get_size(self._context, slot)
        state = (ctypes.c_uint8 * size)()
        llama_cpp.llama_state_seq_get_data(self._context, state, size, slot)
        return _without_slots(bytes(state), slot, self.slots)

    def restore(self, slot: int, state: bytes) -> bool:
        """Let a slot hold what another one did, in this context or another. False where it can't: it is empty then."""
        data = _with_slots(state, slot, self.slots)
        buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        return bool(state and llama_cpp.llama_state_seq_set_data(self._context, buffer, len(data), slot))

    def _bridges(self, rows: Sequence[Row]) -> list[Row]:
        """Rows for idle slots between busy ones, which are taken back afterwards: cheaper than a second batch."""
        if not self.model.can_go_back:
            return []
        used = sorted({row.slot for row in rows})
        gaps = [(low + 1, high) for low, high in itertools.pairwise(used) if 1 < high - low <= _GAP + 1]
        idle = [(slot, self._length(slot)) for low, high in gaps for slot in range(low, high)]
        if any(length >= self._window for _, length in idle):
            return []
        return [Row(0, length, slot, False) for slot, length in idle]

    def _length(self, slot: int) -> int:
        return int(llama_cpp.llama_memory_seq_pos_max(self._memory, slot)) + 1

    def _logits_at(self, at: int) -> Logits:
        pointer = llama_cpp.llama_get_logits_ith(self._context, at)
        logits: Logits = np.ctypeslib.as_array(self._logits.from_address(ctypes.addressof(pointer.contents)))
        return logits


# A slot's state is 8 bytes that identify it, the number of slots, and for each a count of tokens, which is 0 for all
# but one, and what that holds. llama.cpp checks what it reads. Models with memory of several kinds have other states.
_NUMBER, _HEAD = struct.Struct("=I"), 8


def _without_slots(state: bytes, slot: int, slots: int) -> bytes:
    """A slot's state without the other slots; empty where it is not as expected."""
    begin = _NUMBER.pack(slots) + bytes(_NUMBER.size * slot)
    end = len(state) - _NUMBER.size * (slots - 1 - slot)
    if state[_HEAD : _HEAD + len(begin)] != begin or any(state[end:]):
        return b""
    return state[:_HEAD] + state[_HEAD + len(begin) : end]


def _with_slots(state: bytes, slot: int, slots: int) -> bytes:
    """The same among other slots."""
    begin = _NUMBER.pack(slots) + bytes(_NUMBER.size * slot)
    return state[:_HEAD] + begin + state[_HEAD:] + bytes(_NUMBER.size * (slots - 1 - slot))
