"""The served models: collections, each with one or more readers, and a queue per reader.

Requests get a handle that is restricted to the groups of their key. Nothing here keeps the owner's handle.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from ragfm.answering.judge import load_judge
from ragfm.async_rag import run_to_end
from ragfm.collection import Collection
from ragfm.core.config import load_settings, reload_settings
from ragfm.core.errors import ConfigError, ModelNotFoundError, RagfmError
from ragfm.core.registry import plugin_and_model
from ragfm.core.types import Message, Reader, Sampling
from ragfm.generation.readers import reader_options
from ragfm.generation.readers.local_reader import LocalReader
from ragfm.models.hardware import cpu_count
from ragfm.rag import Rag, prompt_scope
from ragfm.server.api_keys import Key
from ragfm.server.fair_queue import FairQueue
from ragfm.store.collection_store import UploadStore

T = TypeVar("T")
_NO_GROUPS: frozenset[str] = frozenset()
_COMPUTE_SLOTS = min(8, max(2, cpu_count()))  # with more than cores, each request would only take longer
_EMBEDDING_SLOTS = 2
_DOCUMENT_SLOTS = 4
_UPLOAD_SLOTS = 8
_SPARE_THREADS = 8
_MAX_WAIT_SECONDS = 60.0  # in a queue


class Handles:
    """Restricted handles of one collection.

    While its uploads are indexed, each slice is a commit, after which a search has to update its indexes. Then searches
    use the generation that `refresh` has prepared, but none that is older than what the key has seen in a list.
    """

    def __init__(self, owner: Collection) -> None:
        self.as_groups = owner.as_groups
        self.store = owner.store
        self.refresh = owner.store.refresh
        """Prepare the newest generation for searches."""
        self.indexing = False
        self._seen: dict[str, int] = {}  # by key, the generation of its last list or document

    def of(self, key: Key, groups: Set[str] | None = None) -> Collection:
        """The collection as a key sees it, or only these groups of the key."""
        oldest = self._seen.get(key.name, 0) if self.indexing else None
        return self.as_groups(key.visible_groups if groups is None else groups, oldest=oldest)

    def saw_newest(self, key: Key) -> None:
        """Remember that the key knows the newest generation."""
        self._seen[key.name] = self.newest()

    def newest(self) -> int:
        """The newest generation. Raises CollectionError."""
        return self.store.read_catalog(lambda catalog: catalog.generation())


@dataclass(frozen=True, slots=True)
class Model:
    """A collection with a reader: `handbook` with the default reader, `handbook:small` with another one.

    `rag` sees what is open to all; `make_rag` makes it of the present settings, except for the shared reader.
    """

    name: str
    collection: str
    handles: Handles = field(repr=False)
    rag: Rag
    queue: FairQueue
    make_rag: Callable[[], Rag] = field(repr=False)

    def handle(self, key: Key, groups: Set[str] | None = None) -> Collection:
        """The collection as a key sees it, or only these groups of the key."""
        return self.handles.of(key, groups)


class ServedModels:
    """All models, and the thread pool for their work.

    `collections` are pairs of name and folder; `readers` are pairs of name and model, as `load_reader` takes it, or a
    reader object. The first reader answers for a collection named alone; by default it is the collection's own.
    `waiting` is the maximum number of requests in each queue.
    """

    def __init__(
        self,
        collections: Sequence[tuple[str, str | Path]],
        readers: Sequence[tuple[str, str | Reader | None]] = (("", None),),
        *,
        adapter: str | None = None,
        waiting: int = 64,
    ) -> None:
        def shared_queue(slots: int) -> FairQueue:
            """A queue in which half of the slots are always there for other keys."""
            return FairQueue(slots, waiting, _MAX_WAIT_SECONDS, per_key=max(1, slots // 2))

        self.since = int(time.time())
        self.answer_steps = 0
        """Number of running computations for answers, each of which has a slot of its reader, too."""
        # By model and options: collections with the same reader share it.
        self._readers: dict[str, tuple[Reader, FairQueue]] = {}
        self.models: dict[str, Model] = {}
        self.on_server: set[str] = set()  # the collections on PostgreSQL
        self.locations: dict[str, str] = {}  # folders and addresses, with their passwords
        self.uploads: dict[str, UploadStore] = {}
        self.handles: dict[str, Handles] = {}  # by collection
        for name, folder in collections:
            if name in self.locations:
                raise ConfigError(f"Two collections are named {name!r}.", "Rename one with `-c NAME=DIR`.")
            owner = Collection.open(folder)
            owner.as_groups(_NO_GROUPS).status()  # raises if there is no collection
            if owner.store.database.shared:
                self.on_server.add(name)
            self.locations[name] = str(folder) if name in self.on_server else owner.location
            self.uploads[name] = owner.store.open_uploads()
            self.handles[name] = Handles(owner)
            for i, (label, reader) in enumerate(readers):
                make_rag = partial(Rag, owner.as_groups(_NO_GROUPS), reader=reader, adapter=adapter)
                rag = make_rag()
                reader = reader or rag.reader_name
                if isinstance(reader, str):
                    plugin, model = plugin_and_model("readers", reader)
                    path = os.path.realpath(model) if Path(model).exists() else model
                    identity = repr((plugin, path, reader_options(reader, rag.collection.settings)))
                else:
                    identity = f"object {id(reader)}"
                if identity not in self._readers:
                    queue = shared_queue(getattr(rag.base_reader, "slots", 1))
                    self._readers[identity] = (rag.base_reader, queue)
                shared, queue = self._readers[identity]
                rag = rag.with_options(reader=shared)
                names = [name] if i == 0 else []
                if label:
                    names.append(f"{name}:{label}")
                    if names[-1] in self.models:
                        raise ConfigError(f"Two readers are named {label!r}.", "Rename one with `--reader NAME=MODEL`.")
                for alias in names or [name]:
                    self.models[alias] = Model(alias, name, self.handles[name], rag, queue, make_rag)
        self.compute_queue = shared_queue(_COMPUTE_SLOTS)
        """For what needs a core: searches, lists, retrieval and check of an answer, each batch of embeddings."""
        self.embedding_queue = shared_queue(_EMBEDDING_SLOTS)
        self.document_queue = shared_queue(_DOCUMENT_SLOTS)
        """For what reads and writes files: uploads, deletions, single documents."""
        self.upload_queue = shared_queue(_UPLOAD_SLOTS)
        """For receiving the bodies of uploads, which take space on the disk."""
        threads = sum(queue.slots for queue in self.queues) + _SPARE_THREADS
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="ragfm-serve")
        self._low_priority = ThreadPoolExecutor(_COMPUTE_SLOTS, "ragfm-serve-low", partial(_lower_priority, 5))

    def reload(self, collection: str) -> tuple[list[str], list[str]]:
        """Apply changes of a collection's settings to later requests. Returns those applied, and those that cannot be.

        Raises RagfmError, and changes nothing, for settings that are not valid.
        """
        store = self.handles[collection].store
        before = store.settings
        store.settings, changed, kept = reload_settings(before, load_settings(store.database.settings_file))
        try:
            for model in [model for model in self.models.values() if changed and model.collection == collection]:
                rag = model.make_rag().with_options(reader=model.rag.base_reader)
                self.models[model.name] = replace(model, rag=rag)
        except RagfmError:
            store.settings = before
            raise
        return changed, kept

    def for_key(self, key: Key) -> Iterator[Model]:
        """The models that a key may use."""
        yield from (model for model in self.models.values() if key.may_use(model.collection))

    def find(self, key: Key, name: str | None) -> Model | None:
        """The key's model of that name, by default its first one."""
        return next((model for model in self.for_key(key) if name in (None, model.name)), None)

    @property
    def queues(self) -> list[FairQueue]:
        """The queues for computing, embeddings, documents and uploads, then one for each reader."""
        own = (self.compute_queue, self.embedding_queue, self.document_queue, self.upload_queue)
        return [*own, *(queue for _, queue in self._readers.values())]

    def check_readers(self) -> None:
        """Let the readers that are servers find out which of them answer."""
        for reader, _ in self._readers.values():
            if check := getattr(reader, "check_servers", None):
                check()

    def reader_servers(self) -> dict[str, bool]:
        """The servers of all readers by host, and whether they answer."""
        servers: dict[str, bool] = {}
        for reader, _ in self._readers.values():
            servers |= getattr(reader, "servers", {})
        return servers

    @property
    def readers_available(self) -> bool:
        """Whether a reader can answer: a local one, or one with a server that answers."""
        servers = [getattr(reader, "servers", {"": True}) for reader, _ in self._readers.values()]
        return any(any(up.values()) for up in servers)

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Call a blocking function in a thread, in the context of the request."""
        call = partial(copy_context().run, function, *args)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def compute(
        self, key: Key, function: Callable[..., T], *args: object, refusable: bool = True, of_answer: bool = False
    ) -> T:
        """Call a function that needs a core, when it is the key's turn. Raises QueueFullError if it is `refusable`.

        If the key has more requests waiting, the thread has a lower priority than those of other keys. The time counts
        for the key's share of the readers, which use the same cores.
        """
        async with self.compute_queue.slot(key.name, refusable=refusable) as has_more:
            start = time.monotonic()
            self.answer_steps += of_answer
            try:
                return await self.run_to_end(function, *args, low_priority=has_more)
            finally:
                self.answer_steps -= of_answer
                seconds, scope = time.monotonic() - start, prompt_scope(key.visible_groups, key.name)
                for reader, _ in self._readers.values():
                    if isinstance(reader, LocalReader):
                        reader.charge(scope, seconds)

    async def run_to_end(self, function: Callable[..., T], *args: object, low_priority: bool = False) -> T:
        """Like `run`, but on cancellation wait for the function to return: until then, its slot must not be freed."""
        threads = self._low_priority if low_priority else self._threads
        return await run_to_end(threads, partial(function, *args))

    def warm_up(self) -> None:
        """Load all readers and embedders, and the judge, so that the first request does not wait for them.

        Their threads inherit the priority of the thread that uses them first: answers, batches and rankings get a lower
        one than searches, which take milliseconds and would otherwise wait for all others.
        """
        collections = {model.collection: model.rag.collection for model in self.models.values()}
        embedders = [collection.embedder for collection in collections.values()]
        ranking = {collection.settings.ask.ranking_judge for collection in collections.values()}
        judges = {model.rag.judge for model in self.models.values() if model.rag.judge}

        def load_readers() -> None:
            for reader, _ in self._readers.values():
                reader.count_tokens([Message("user", "warm")])
                if isinstance(reader, LocalReader):
                    for _ in reader.stream([Message("user", "warm")], Sampling(max_tokens=1)):
                        pass

        def load_networks() -> None:
            for embedder in embedders:
                if load := getattr(embedder, "warm_up", None):
                    load()
                embedder.embed_passages(["warm"])
            for name in ranking:
                with suppress(ModelNotFoundError):
                    judges.add(load_judge(name))
            for judge in judges:
                judge.warm_up()
                judge.likelihoods("warm", ["warm"])

        for load_models, lower in ((load_readers, 1), (load_networks, 5)):
            with ThreadPoolExecutor(1, initializer=partial(_lower_priority, lower)) as background:
                background.submit(load_models).result()
        for embedder in embedders:
            embedder.embed_queries(["warm"])

    def close(self) -> None:
        """Stop the threads after their current work."""
        for threads in (self._threads, self._low_priority):
            threads.shutdown(wait=False, cancel_futures=True)


def _lower_priority(by: int) -> None:
    if sys.platform == "linux":  # elsewhere, it would apply to the whole process
        os.nice(by)
