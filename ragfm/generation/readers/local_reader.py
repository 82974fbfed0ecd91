"""Base class of the readers that evaluate a model in this process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from ragfm.core.cache import file_identity
from ragfm.core.fork import reset_in_children
from ragfm.core.types import Message, Sampling, Stream
from ragfm.generation.readers import ScopedReader, bool_option, check_images, completion_limit, int_option
from ragfm.generation.readers.chat_template import opens_thinking
from ragfm.generation.readers.continuous_batching import Batcher, CacheFactory
from ragfm.generation.readers.engine import Adapter
from ragfm.generation.readers.generation_request import GenerationRequest, TokenSampler
from ragfm.generation.readers.prompt_lookup import PromptLookup
from ragfm.models.model_lookup import is_pinned, weights_sha256

if TYPE_CHECKING:
    from ragfm.generation.readers.llama_model import LlamaModel
    from ragfm.generation.readers.torch_model import TorchModel

M = TypeVar("M", bound="LlamaModel | TorchModel")


class _Engine(NamedTuple):
    """A loaded model and the thread that serves it."""

    model: Any
    batcher: Batcher
    window: int


class LocalReader(Generic[M]):
    """A model with its own chat template; its subclasses describe the parameters.

    A forked process loads the model again. Streams belong to the process that began them.
    """

    def __init__(
        self,
        path: Path,
        context_tokens: int,
        slots: int,
        waiting: int,
        *,
        thinking: bool | str,
        virtual_tokens: int = 0,
    ) -> None:
        self._path, self.slots = path, int_option("slots", slots, 1)
        self._thinking = bool_option("thinking", thinking)
        self._max_context_tokens = int_option("context_tokens", context_tokens, 1)
        self._waiting = int_option("waiting", waiting, 0)
        self._virtual_tokens = int_option("virtual_tokens", virtual_tokens, 0)
        self._loading = threading.Lock()
        self._loaded: _Engine | None = None
        reset_in_children(self)

    # --- Implemented by subclasses -------------------------------------------------------------------------------

    def _load_model(self) -> M:
        raise NotImplementedError

    def _cache_factory(self, model: M, context_tokens: int) -> CacheFactory:
        """Makes the KV cache. Must not refer to the reader, see Batcher."""
        raise NotImplementedError

    def _new_sampler(self, model: M, sampling: Sampling) -> TokenSampler:
        raise NotImplementedError

    def _prepare_sampling(self, sampling: Sampling) -> Sampling:
        """The sampling parameters in the form that `_new_sampler` takes. Raises ConfigError or UnsupportedError."""
        return sampling

    def _drafts(self, model: M) -> bool:
        """Whether a greedy request may draft tokens, so that its logits depend on whether others run."""
        return False

    def _check_adapter(self, path: Path) -> None:
        """Raise ModelNotFoundError or DamagedModelError if the path is not a usable adapter."""

    # --- The Reader protocol -------------------------------------------------------------------------------------

    def scoped(self, scope: str) -> ScopedReader:
        """The same reader for users who may see the same documents: it reuses no prompts of other scopes."""
        return ScopedReader(self, scope)

    @property
    def identity(self) -> str:
        """A key for the present content of the model's file or folder; for a bundled model its SHA-256."""
        return weights_sha256(self._path) if is_pinned(self._path) else file_identity(self._path)

    @property
    def context_tokens(self) -> int:
        """Number of tokens for the prompt and the completion of a request."""
        return self._engine.window - self._virtual_tokens

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Number of tokens in the prompt, with the model's own chat template."""
        return len(self._prompt(messages))

    def opens_thinking(self, messages: Sequence[Message]) -> bool:
        """Whether the output starts within the reasoning, without the tag that opens it."""
        return self._thinking and opens_thinking(self._engine.model.render(messages))

    def stream(self, messages: Sequence[Message], sampling: Sampling = Sampling(), *, scope: str = "") -> Stream:
        """Generate the next assistant message. Generation starts now, and continues whether or not the text is read.

        Requests with another `scope` do not reuse this prompt, so their latency does not reveal it.

        Raises ContextOverflowError, ReaderBusyError, ConfigError for an invalid grammar or schema, UnsupportedError for
        one that the reader cannot use and for messages that the chat template rejects, and ModelNotFoundError or
        DamagedModelError for an adapter.
        """
        sampling = self._prepare_sampling(sampling)
        engine = self._engine
        prompt, adapter = self._prompt(messages), self._adapter(sampling.adapter)
        window = engine.window - (adapter.virtual_tokens if adapter else 0)
        max_tokens = completion_limit(len(prompt), window, sampling.max_tokens)
        sampler = self._new_sampler(engine.model, sampling)
        request = GenerationRequest(prompt, adapter, sampler=sampler, max_tokens=max_tokens, scope=scope)
        request.logprobs = [] if sampling.logprobs else None
        if not sampling.temperature and self._drafts(engine.model):
            request.lookup = PromptLookup(prompt)
        return engine.batcher.stream(request, sampling.stop)

    def charge(self, scope: str, seconds: float) -> None:
        """Count other work of a scope, which takes the same cores, like time of the reader; scopes get equal shares."""
        if self._loaded:
            self._loaded.batcher.charge(scope, seconds)

    def _prompt(self, messages: Sequence[Message]) -> list[int]:
        check_images(messages, vision=False, reader=f"'{self._path}'")
        tokens: list[int] = self._engine.model.prompt_tokens(messages)
        return tokens

    def _adapter(self, adapter: str | None) -> Adapter | None:
        if not adapter:
            return None
        path = Path(adapter).expanduser()
        self._check_adapter(path)
        return Adapter.from_path(path)

    @property
    def _engine(self) -> _Engine:
        with self._loading:
            if self._loaded is None:
                model = self._load_model()
                window = min(self._max_context_tokens, model.trained_tokens or self._max_context_tokens)
                slots = self.slots if model.supports_batching else 1
                batcher = Batcher(
                    model,
                    self._cache_factory(model, window),
                    slots=slots,
                    waiting=self._waiting + self.slots - slots,
                )
                self._loaded = _Engine(model, batcher, window)
            return self._loaded

    def reset_after_fork(self) -> None:
        """Forget the model: in a forked process, its thread does not exist, and a lock may be held forever."""
        self._loading, self._loaded = threading.Lock(), None
