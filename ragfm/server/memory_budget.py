"""Estimates the memory of all served models before they are loaded."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from ragfm.core.errors import ConfigError, RagfmError
from ragfm.core.registry import plugin_and_model
from ragfm.models.hardware import cgroup_memory_limits
from ragfm.models.model_lookup import find_model
from ragfm.server.json_logging import log_event
from ragfm.server.served_models import ServedModels
from ragfm.store.views import view_bytes

_PROCESS_BYTES = 250_000_000  # of the process with all libraries and no model
_HINT = (
    "Serve fewer models or collections, or give the reader fewer slots or a smaller context window: `slots` in "
    "[reader_options.llama-cpp], `context_tokens` in [ask] of ragfm.toml."
)
_log = logging.getLogger(__name__)


def check_memory(served: ServedModels) -> None:
    """Log the estimate, and warn if it is more than the free memory.

    Raises ConfigError if the memory does not suffice for one answer at a time.
    """
    parts, free = estimate_memory(served), free_memory()
    minimum, maximum = map(sum, zip(*parts.values(), strict=True))
    fields: dict[str, Any] = {
        "planned_mb": {name: round(most / 1e6) for name, (_, most) in parts.items()},
        "together_mb": round(maximum / 1e6),
        "free_mb": None if free is None else round(free / 1e6),
    }
    log_event(_log, logging.INFO, "memory", **fields)
    if free is None or maximum <= free:
        return
    details = ", ".join(f"{name} {most / 1e6:,.0f} MB" for name, (_, most) in parts.items())
    if minimum > free:
        message = (
            f"The memory does not suffice: {free / 1e6:,.0f} MB are free, and the served models need at least "
            f"{minimum / 1e6:,.0f} MB ({details})."
        )
        raise ConfigError(message, _HINT)
    warning = f"With all slots in use, {maximum / 1e6:.0f} MB of memory are needed, and {free / 1e6:.0f} MB are free: "
    log_event(_log, logging.WARNING, "memory_low", f"{warning}{details}. {_HINT}")


def estimate_memory(served: ServedModels) -> dict[str, tuple[int, int]]:
    """The bytes of the process, each reader, embedder and collection: with one answer at a time, and with all slots.

    Readers of unknown size are left out.
    """
    parts = {"the process": (_PROCESS_BYTES, _PROCESS_BYTES)}
    for rag in {id(model.rag.base_reader): model.rag for model in served.models.values()}.values():
        reader_bytes = getattr(rag.base_reader, "memory_bytes", None)
        if reader_bytes:
            name = f"the reader {rag.reader_name}"  # of several, if their options differ
            least, most = parts.get(name, (0, 0))
            parts[name] = least + reader_bytes[0], most + reader_bytes[1]
    collections = {model.collection: model.rag.collection for model in served.models.values()}
    for embedder in sorted({str(collection.contract["embedder"]) for collection in collections.values()}):
        plugin, embedder_model = plugin_and_model("embedders", embedder)
        if embedder_model is None or plugin != "sentence-transformers":
            continue
        try:
            path = find_model(embedder_model, "embedder")
        except RagfmError:  # not installed: a search will report it
            continue
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        parts[f"the embedder {embedder}"] = size, size
    for name, collection in collections.items():
        size = view_bytes(collection.path)
        parts[f"the collection {name}"] = size, size
    return parts


def free_memory(root: Path = Path("/")) -> int | None:
    """Memory in bytes that this process may still use: the machine's and its control groups'. None if unknown."""
    try:
        meminfo = (root / "proc/meminfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return None
    free = []
    if available := re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.M):
        free.append(1024 * int(available[1]))
    for limit in cgroup_memory_limits(root):
        version2 = limit.name == "memory.max"
        used_file = limit.with_name("memory.current" if version2 else "memory.usage_in_bytes")
        statistics = limit.with_name("memory.stat").read_text(encoding="utf-8")
        # Cached pages of inactive files count as free.
        inactive = re.search(rf"^{'' if version2 else 'total_'}inactive_file (\d+)", statistics, re.M)
        used = int(used_file.read_text(encoding="utf-8")) - (int(inactive[1]) if inactive else 0)
        free.append(max(0, int(limit.read_text(encoding="utf-8")) - used))
    return min(free, default=None)
