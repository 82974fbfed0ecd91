"""Keys and values of a transformers model: a row for each slot, written in place, read by all slots at once.

Each slot's tokens stand at its row's beginning, so that one token of many requests is evaluated in one go however long
their texts are; a mask leaves out what is not a request's own. Models with another kind of memory (recurrent ones,
those that share layers) have one request at a time, with transformers' own cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from ragfm.core.errors import RagfmError
from ragfm.generation.readers.engine import Adapter, Row

if TYPE_CHECKING:
    from ragfm.generation.readers.engine import Logits
    from ragfm.generation.readers.torch_model import TorchModel

__all__ = ["OneMemory", "RowMemory", "can_have_rows"]

_KINDS = {"full_attention", "sliding_attention"}


def can_have_rows(config: Any) -> bool:
    """Whether all of a model's layers are attention, each with keys and values of its own."""
    kinds = set(getattr(config, "layer_types", None) or ())
    shared = getattr(config, "num_kv_shared_layers", 0)
    return kinds <= _KINDS and not shared and config._attn_implementation in ("sdpa", "eager")  # noqa: SLF001


class RowMemory:
    """A window for each of `slots`. Used by one thread."""

    def __init__(self, model: TorchModel, slots: int, window: int) -> None:
        self.settled = True
        self._model, self._slots, self._window = model, slots, window
        self._now = _Now()
        self._cache = Cache(layers=[_Layer(self._now, slots, window) for _ in range(model.config.num_hidden_layers)])
        self._held = [0] * slots

    @torch.inference_mode()
    def evaluate(self, rows: Sequence[Row]) -> list[Logits]:
        """The logits of the rows in which they are wanted, in order. All slots have as many rows."""
        slots = list(dict.fromkeys(row.slot for row in rows))
        each = len(rows) // len(slots)
        places = torch.tensor([row.place for row in rows]).view(len(slots), each)
        length = int(places.max()) + 1
        self._now.set(slots, places, length)
        for row in rows:
            self._held[row.slot] = row.place + 1
        tokens = torch.tensor([row.token for row in rows]).view(len(slots), each)
        keep = each if sum(row.wanted for row in rows) > len(slots) else 1
        logits = self._model.forward(
            tokens, self._cache, keep, position_ids=places, attention_mask=self._masks(places, length)
        )
        last = [rows[at : at + each][-keep:] for at in range(0, len(rows), each)]
        return [logits[n, at] for n, of in enumerate(last) for at, row in enumerate(of) if row.wanted]

    def cut(self, slot: int, length: int) -> bool:
        """Forget all but the first `length` tokens of a slot."""
        self._held[slot] = min(length, self._held[slot])
        return True

    @torch.inference_mode()
    def copy(self, source: int, target: int) -> None:
        """Let a slot hold what another one does."""
        length = self._held[target] = self._held[source]
        for layer in self._cache.layers:
            if layer.is_initialized:
                layer.keys[target, :, :length] = layer.keys[source, :, :length]
                layer.values[target, :, :length] = layer.values[source, :, :length]

    def use(self, adapter: Adapter | None) -> None:
        """Evaluate with an adapter from now on, or with none. Raises DamagedModelError for one that is none."""
        self._model.switch(adapter)

    @torch.inference_mode()
    def grown(self, slots: int) -> RowMemory:
        """One of more slots, which hold what these do."""
        new = RowMemory(self._model, slots, self._window)
        new._held[: self._slots] = self._held
        for layer, larger in zip(self._cache.layers, new._cache.layers, strict=True):
            if layer.is_initialized:
                larger.lazy_initialization(layer.keys, layer.values)
                larger.keys[: self._slots], larger.values[: self._slots] = layer.keys, layer.values
        return new

    def _masks(self, places: torch.Tensor, length: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """Which of a slot's tokens each row may see, for each kind of layer. *Shape:* (slots, 1, rows, length)."""
        config = self._model.config
        seen = torch.arange(length)
        full = seen <= places[:, None, :, None]
        window = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or ())
        near = full & (seen > places[:, None, :, None] - window) if window else full
        if "sliding_attention" in kinds:
            return {"full_attention": self._mask(full), "sliding_attention": self._mask(near)}
        return self._mask(full if kinds else near)

    def _mask(self, allowed: torch.Tensor) -> torch.Tensor:
        if self._model.config._attn_implementation == "sdpa":  # noqa: SLF001
            return allowed.to(self._model.device)
        lowest = torch.finfo(self._model.dtype).min
        return torch.zeros(allowed.shape, dtype=self._model.dtype).masked_fill(~allowed, lowest).to(self._model.device)


class _Now:
    """What is being evaluated: which slots, at which places, and how long the longest is then."""

    def set(self, slots: list[int], places: torch.Tensor, length: int) -> None:
        neighbours = all(high - low == 1 for low, high in itertools.pairwise(slots))
        self.rows: Any = slice(slots[0], slots[-1] + 1) if neighbours else slots  # a slice costs no copy
        self.slots = torch.tensor(slots)[:, None]
        self.places, self.length = places, length


class _Layer(CacheLayerMixin):  # type: ignore[misc, unused-ignore]
    """Keys and values of a layer. *Shape:* (slots, heads, window, size of a head)."""

    is_sliding = False

    def __init__(self, now: _Now, slots: int, window: int) -> None:
        super().__init__()
        self._now, self._slots, self._window = now, slots, window

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make room, once it is known of what size."""
        self.keys, self.values = (
            torch.zeros((self._slots, of.shape[1], self._window, of.shape[3]), dtype=of.dtype, device=of.device)
            for of in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the new ones, and give all up to the longest."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        now = self._now
        slots, places = now.slots.to(key_states.device), now.places.to(key_states.device)
        self.keys[slots, :, places] = key_states.transpose(1, 2)
        self.values[slots, :, places] = value_states.transpose(1, 2)
        return self.keys[now.rows, :, : now.length], self.values[now.rows, :, : now.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many tokens are attended to, and where they begin."""
        return self._now.length, 0

    def get_seq_length(self) -> int:
        """Tokens before those that are being evaluated."""
        return self._now.length - int(self._now.places.shape[1])

    def get_max_length(self) -> int:
        """The window."""
        return self._window


class OneMemory:
    """One slot, with the model's own cache, of which nothing can be taken back."""

    def __init__(self, model: TorchModel) -> None:
        self.settled = True
        self._model = model
        self._cache: Any = None
        self._held = 0

    @torch.inference_mode()
    def evaluate(self, rows: Sequence[Row]) -> list[Logits]:
        """The logits of the rows in which they are wanted, in order."""
        keep = len(rows) if sum(row.wanted for row in rows) > 1 else 1
        logits = self._model.forward(torch.tensor([[row.token for row in rows]]), self._cache, keep)
        self._cache = self._model.cache
        self._held += len(rows)
        return [logits[0, at] for at, row in enumerate(rows[-keep:]) if row.wanted]

    def cut(self, slot: int, length: int) -> bool:
        """Whether nothing has to be forgotten; else all is."""
        if length == self._held:
            return True
        self._cache, self._held = None, 0
        return length == 0

    def copy(self, source: int, target: int) -> None:
        """There is one slot."""

    def use(self, adapter: Adapter | None) -> None:
        """Evaluate with an adapter from now on, or with none. Raises DamagedModelError for one that is none."""
        self._model.switch(adapter)

    def grown(self, slots: int) -> OneMemory:
        """There is one slot."""
        raise RagfmError(f"The model {self._model.path} has one request at a time.")
