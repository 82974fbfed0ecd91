"""KV caches of transformers models.

`BatchedKVCache` has a row for each slot, which is written in place. All rows start at position 0, so one token of many
requests is evaluated together, however long their texts are; a mask excludes the tokens of other requests. Virtual
tokens of an adapter (prefix and prompt tuning) precede the text in its row:

    row    [ virtual tokens ][ prompt ][ completion ]
    column 0 …            19  20 …

Models with recurrent or shared layers use `SingleKVCache`: one request at a time, with transformers' own cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from ragfm.core.errors import RagfmError
from ragfm.generation.readers.engine import Adapter, BatchToken, Logits
from ragfm.generation.readers.torch_model import TorchModel


class BatchedKVCache:
    """A cache with `slots` slots of `window` tokens. Used by one thread."""

    has_pending_copies = False

    def __init__(self, model: TorchModel, slots: int, window: int) -> None:
        self._model, self._slots, self._window = model, slots, window
        self._step = _Step()
        layers = [_CacheLayer(self._step, slots, window) for _ in range(model.config.num_hidden_layers)]
        self._cache = Cache(layers=layers)
        self._columns = [0] * slots  # of each row that are in use

    @torch.inference_mode()
    def evaluate(self, batch: Sequence[BatchToken]) -> list[Logits]:
        """The requested logits, those of the last token of a slot, in order. All slots have as many tokens."""
        slots = list(dict.fromkeys(entry.slot for entry in batch))
        per_slot = len(batch) // len(slots)
        virtual = self._model.virtual_tokens
        positions = torch.tensor([virtual + entry.position for entry in batch]).view(len(slots), per_slot)
        length = int(positions.max()) + 1
        self._step.set(slots, positions, length)
        for entry in batch:
            self._columns[entry.slot] = virtual + entry.position + 1
            if virtual and entry.position == 0:
                for layer, (keys, values) in zip(self._cache.layers, self._model.virtual_cache, strict=True):
                    if not layer.is_initialized:
                        layer.lazy_initialization(keys, values)
                    layer.keys[entry.slot, :, :virtual] = keys[0]
                    layer.values[entry.slot, :, :virtual] = values[0]
        tokens = torch.tensor([entry.token for entry in batch]).view(len(slots), per_slot)

        # The tokens of its slot that each token attends to, per type of layer. *Shape:* (slots, 1, tokens, length).
        columns = torch.arange(length)
        full = columns <= positions[:, None, :, None]
        window = getattr(self._model.config, "sliding_window", None)
        sliding = full & (columns > positions[:, None, :, None] - window) if window else full
        layer_types = set(getattr(self._model.config, "layer_types", None) or ())
        masks: torch.Tensor | dict[str, torch.Tensor] = self._to_mask(full if layer_types else sliding)
        if "sliding_attention" in layer_types:
            masks = {"full_attention": self._to_mask(full), "sliding_attention": self._to_mask(sliding)}
        logits, _ = self._model.forward(tokens, self._cache, position_ids=positions, attention_mask=masks)
        return [row for row, entry in zip(logits, batch[per_slot - 1 :: per_slot], strict=True) if entry.wants_logits]

    def truncate(self, slot: int, length: int) -> bool:
        """Keep the first `length` tokens of a slot. Those after them are overwritten, or masked."""
        return True

    @torch.inference_mode()
    def copy(self, source: int, target: int) -> None:
        """Copy the content of a slot to another slot."""
        length = self._columns[target] = self._columns[source]
        for layer in self._cache.layers:
            if layer.is_initialized:
                layer.keys[target, :, :length] = layer.keys[source, :, :length]
                layer.values[target, :, :length] = layer.values[source, :, :length]

    def set_adapter(self, adapter: Adapter | None) -> None:
        """Use an adapter, or none, for the following evaluations. Raises DamagedModelError."""
        self._model.set_adapter(adapter)

    @torch.inference_mode()
    def resized(self, slots: int) -> BatchedKVCache:
        """A cache with more slots and the same content."""
        larger = BatchedKVCache(self._model, slots, self._window)
        larger._columns[: self._slots] = self._columns
        for layer, larger_layer in zip(self._cache.layers, larger._cache.layers, strict=True):
            if layer.is_initialized:
                larger_layer.lazy_initialization(layer.keys, layer.values)
                larger_layer.keys[: self._slots] = layer.keys
                larger_layer.values[: self._slots] = layer.values
        return larger

    def _to_mask(self, allowed: torch.Tensor) -> torch.Tensor:
        if self._model.config._attn_implementation == "sdpa":  # noqa: SLF001  has no public name
            return allowed.to(self._model.device)
        lowest = torch.finfo(self._model.dtype).min
        return torch.zeros(allowed.shape, dtype=self._model.dtype).masked_fill(~allowed, lowest).to(self._model.device)


class _Step:
    """What the current forward pass evaluates: slots, positions, and the length of the longest slot afterwards."""

    def set(self, slots: list[int], positions: torch.Tensor, length: int) -> None:
        adjacent = all(high - low == 1 for low, high in itertools.pairwise(slots))
        self.rows: Any = slice(slots[0], slots[-1] + 1) if adjacent else slots  # a slice needs no copy
        self.slots = torch.tensor(slots)[:, None]
        self.positions, self.length = positions, length


class _CacheLayer(CacheLayerMixin):  # type: ignore[misc, unused-ignore]
    """Keys and values of a layer. *Shape:* (slots, heads, window, head size)."""

    is_sliding = False

    def __init__(self, step: _Step, slots: int, window: int) -> None:
        super().__init__()
        self._step, self._slots, self._window = step, slots, window

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the layer, once the number and size of its heads are known."""
        self.keys, self.values = (
            torch.zeros(
                (self._slots, states.shape[1], self._window, states.shape[3]), dtype=states.dtype, device=states.device
            )
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new keys and values, and return those of all evaluated slots up to the longest one."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        step = self._step
        slots, positions = step.slots.to(key_states.device), step.positions.to(key_states.device)
        self.keys[slots, :, positions] = key_states.transpose(1, 2)
        self.values[slots, :, positions] = value_states.transpose(1, 2)
        return self.keys[step.rows, :, : step.length], self.values[step.rows, :, : step.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of tokens that are attended to, and the offset of the first one."""
        return self._step.length, 0

    def get_seq_length(self) -> int:
        """Number of tokens before those of the current step."""
        return self._step.length - int(self._step.positions.shape[1])

    def get_max_length(self) -> int:
        """The window, in tokens."""
        return self._window


class SingleKVCache:
    """A cache with one slot in the model's own format, which cannot be truncated. Used by one thread."""

    has_pending_copies = False

    def __init__(self, model: TorchModel) -> None:
        self._model = model
        self._cache: Any = None
        self._length = 0

    @torch.inference_mode()
    def evaluate(self, batch: Sequence[BatchToken]) -> list[Logits]:
        """The requested logits, in order."""
        tokens = torch.tensor([[entry.token for entry in batch]])
        if self._cache is None and self._model.virtual_tokens:
            self._cache = DynamicCache()
            for number, (keys, values) in enumerate(self._model.virtual_cache):
                self._cache.update(keys, values, number)
        rows, self._cache = self._model.forward(tokens, self._cache)
        self._length += len(batch)
        return list(rows) if batch[-1].wants_logits else []

    def truncate(self, slot: int, length: int) -> bool:
        """True if the slot already has this length. Otherwise empty it, and return whether `length` is 0."""
        if length == self._length:
            return True
        self._cache, self._length = None, 0
        return length == 0

    def copy(self, source: int, target: int) -> None:
        """Do nothing: there is only one slot."""

    def set_adapter(self, adapter: Adapter | None) -> None:
        """Use an adapter, or none, for the following evaluations. Raises DamagedModelError."""
        self._model.set_adapter(adapter)

    def resized(self, slots: int) -> SingleKVCache:
        """Raise RagfmError: there is only one slot."""
        raise RagfmError(f"The model '{self._model.path}' evaluates one request at a time.")
