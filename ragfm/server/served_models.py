"""What is served: collections, each with one or several readers, and the turns at each reader.

Whoever asks gets a handle restricted to the groups of its key; the owner's is nowhere but in the function that makes
these.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ragfm.collection import Collection
from ragfm.core.errors import ConfigError
from ragfm.core.registry import plugin_and_model
from ragfm.core.types import Message
from ragfm.generation.readers import reader_options
from ragfm.rag import Rag
from ragfm.server.fair_queue import Turns

if TYPE_CHECKING:
    from ragfm.core.config import Settings
    from ragfm.core.types import Reader
    from ragfm.server.api_keys import Key

__all__ = ["Model", "Served", "collection_name"]

T = TypeVar("T")
NOBODY: frozenset[str] = frozenset()
_SEARCHES = 4  # at once: they share the processor with the readers
_SPARE_THREADS = 8  # beside one for each turn


@dataclass(frozen=True, slots=True)
class Model:
    """A collection and a reader, as clients name it: `handbook` for the default reader, `handbook:small` for another.

    `rag` sees what is open to all; `for_key` gives the one that a key gets.
    """

    name: str
    collection: str
    as_groups: Callable[[Set[str]], Collection] = field(repr=False)
    rag: Rag
    turns: Turns

    def handle(self, key: Key) -> Collection:
        """The collection as a key sees it."""
        return self.as_groups(key.sees)

    def for_key(self, key: Key) -> Rag:
        """The same reader over what a key sees."""
        return self.rag.with_options(collection=self.handle(key))


class Served:
    """All models, and the threads in which they work.

    `collections` are names and folders, `readers` names and what `load_reader` takes, or readers themselves; the first
    one is that of a model that names none, by default the collection's own. `waiting` is how many requests may wait for
    each reader, as long as none has to for much more than `seconds`.
    """

    def __init__(
        self,
        collections: Sequence[tuple[str, str | Path]],
        readers: Sequence[tuple[str, str | Reader | None]] = (("", None),),
        *,
        adapter: str | None = None,
        waiting: int = 64,
        seconds: float = 60.0,
    ) -> None:
        self.since = int(time.time())
        self._queue = waiting, seconds
        self._readers: dict[str, tuple[Reader, Turns]] = {}
        """By what they are made of: a model that several collections use is loaded once."""
        self.models: dict[str, Model] = {}
        self.folders: dict[str, Path] = {}
        for name, folder in collections:
            if name in self.folders:
                raise ConfigError(f"Two collections are called {name!r}.", "Name one otherwise: -c NAME=DIR.")
            as_groups = Collection.open(folder).as_groups
            as_groups(NOBODY).status()  # raises where there is none, before anybody asks
            self.folders[name] = as_groups(NOBODY).path
            for at, (label, reader) in enumerate(readers):
                model = self._model(name, as_groups, reader, adapter)
                names = [name] if not label else [f"{name}:{label}"] if at else [name, f"{name}:{label}"]
                self.models |= {called: replace(model, name=called) for called in names}
        self.searches = Turns(_SEARCHES, *self._queue)
        slots = sum(turns.most_running for _, turns in self._readers.values())
        self._threads = ThreadPoolExecutor(slots + _SEARCHES + _SPARE_THREADS, thread_name_prefix="ragfm-serve")

    def for_key(self, key: Key) -> Iterator[Model]:
        """The models that a key may ask, those of default readers first."""
        yield from (model for model in self.models.values() if key.may_ask(model.collection))

    def find(self, key: Key, name: str | None) -> Model | None:
        """A key's model of that name; its first one where none is named."""
        return next((model for model in self.for_key(key) if name in (None, model.name)), None)

    @property
    def turns(self) -> list[Turns]:
        """Those at each reader, and those at searching."""
        return [self.searches, *(turns for _, turns in self._readers.values())]

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """What a function gives that takes its time, run in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *arguments))

    def warm_up(self) -> None:
        """Load every reader and embedder, so that the first question doesn't wait for them."""
        for reader, _ in self._readers.values():
            reader.count_tokens([Message("user", "warm")])
        for model in {model.collection: model for model in self.models.values()}.values():
            model.rag.collection.embedder.embed_queries(["warm"])

    def close(self) -> None:
        """End the threads, once they have done what they are at."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _model(
        self, name: str, as_groups: Callable[[Set[str]], Collection], reader: str | Reader | None, adapter: str | None
    ) -> Model:
        rag = Rag(as_groups(NOBODY), reader=reader, adapter=adapter)
        made_of = _made_of(reader or rag.reader_name, rag.collection.settings)
        if made_of not in self._readers:
            self._readers[made_of] = (rag.base_reader, Turns(getattr(rag.base_reader, "slots", 1), *self._queue))
        shared, turns = self._readers[made_of]
        rag = rag.with_options(reader=shared)
        return Model(name, name, as_groups, rag, turns)


def _made_of(reader: str | Reader, settings: Settings) -> str:
    """What readers that are the same have in common: the model and all options."""
    if not isinstance(reader, str):
        return f"object {id(reader)}"
    plugin, model = plugin_and_model("readers", reader)
    return repr((plugin, os.path.realpath(model) if Path(model).exists() else model, reader_options(reader, settings)))


def collection_name(folder: str | Path) -> str:
    """What a collection is called that nobody has named: as its folder, or where that is hidden, as the one above."""
    path = Path(folder).resolve()
    return path.parent.name if path.name.startswith(".") else path.name
