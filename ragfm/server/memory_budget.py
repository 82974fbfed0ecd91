"""What all that is served will take of memory, reckoned before any of it is loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ragfm.core.errors import ConfigError, RagfmError
from ragfm.core.registry import plugin_and_model
from ragfm.models.hardware import cgroup_limits
from ragfm.models.model_lookup import find_model
from ragfm.store.views import FOLDER as VIEWS

if TYPE_CHECKING:
    from ragfm.collection import Collection
    from ragfm.server.served_models import Served

__all__ = ["Part", "check_memory", "free_memory", "planned"]

_PROCESS = 250_000_000  # bytes that the process takes with all libraries and no model
_WEIGHTS = (".safetensors", ".gguf")
_LOCAL = {"sentence-transformers", "llama-cpp", "model2vec"}  # embedders: of others no hub is asked
_HINT = (
    "Serve fewer models or collections, or give the reader fewer slots or a smaller window: `slots` in "
    "[reader_options.llama-cpp], `context_tokens` in [ask] of ragfm.toml."
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """Something that takes memory: how many bytes at least, and when all slots are in use."""

    name: str
    least: int
    most: int


def check_memory(served: Served) -> None:
    """Log what will be taken, and warn where it may be more than is free.

    Raises ConfigError where it is too little even for one answer at a time.
    """
    parts, free = planned(served), free_memory()
    least, most = sum(part.least for part in parts), sum(part.most for part in parts)
    megabytes = {part.name: round(part.most / 1e6) for part in parts}
    _log.info("memory", extra={"fields": {"planned_mb": megabytes, "together_mb": round(most / 1e6),
                                          "free_mb": None if free is None else round(free / 1e6)}})  # fmt: skip
    if free is None or most <= free:
        return
    of = ", ".join(f"{part.name} {part.most / 1e6:,.0f} MB" for part in parts)
    if least > free:
        raise ConfigError(
            f"There are {free / 1e6:,.0f} MB of memory free, and what is to be served takes {least / 1e6:,.0f} MB or "
            f"more ({of}).", _HINT,
        )  # fmt: skip
    _log.warning(
        "With all slots in use, %.0f MB of memory are needed, and %.0f MB are free: %s. %s", most / 1e6, free / 1e6, of,
        _HINT,
    )  # fmt: skip


def planned(served: Served) -> list[Part]:
    """What each reader, embedder and collection takes; those that don't say how much are left out."""
    readers = {id(model.rag.base_reader): model.rag for model in served.models.values()}
    parts = [
        Part("the process", _PROCESS, _PROCESS),
        *(Part(f"the reader {rag.reader_name}", *takes) for rag in readers.values()
          if (takes := getattr(rag.base_reader, "memory_bytes", None))),
    ]  # fmt: skip
    collections = {model.collection: model.rag.collection for model in served.models.values()}
    for embedder in sorted({str(collection.contract["embedder"]) for collection in collections.values()}):
        parts += [Part(f"the embedder {embedder}", size, size) for size in _weights(embedder)]
    for name, collection in collections.items():
        size = _view(collection)
        parts.append(Part(f"the collection {name}", size, size))
    return parts


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: of the machine, and of the control groups that it is in."""
    found = list(_left(root))
    return min(found) if found else None


def _left(root: Path) -> Iterator[int]:
    """What is left; the pages of files that are not in use count as free."""
    try:
        meminfo = (root / "proc/meminfo").read_text(encoding="utf-8")
    except OSError:  # not on Linux
        return
    if available := re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.M):
        yield 1024 * int(available[1])
    for limit in cgroup_limits(root):
        second = limit.name == "memory.max"
        used = limit.with_name("memory.current" if second else "memory.usage_in_bytes")
        idle = re.search(rf"^{'' if second else 'total_'}inactive_file (\d+)",
                         limit.with_name("memory.stat").read_text(encoding="utf-8"), re.M)  # fmt: skip
        taken = int(used.read_text(encoding="utf-8")) - (int(idle[1]) if idle else 0)
        yield max(0, int(limit.read_text(encoding="utf-8")) - taken)


def _weights(embedder: str) -> Iterator[int]:
    plugin, model = plugin_and_model("embedders", embedder)
    if model is None or plugin not in _LOCAL:
        return
    try:
        path = find_model(model, "embedder")
    except RagfmError:  # it isn't here: who searches is told
        return
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.suffix in _WEIGHTS]
    yield sum(file.stat().st_size for file in files)


def _view(collection: Collection) -> int:
    """The newest view's files, which are mapped."""
    views = sorted((collection.path / VIEWS).glob("*"), key=lambda folder: folder.stat().st_mtime)
    return sum(file.stat().st_size for file in views[-1].rglob("*") if file.is_file()) if views else 0
