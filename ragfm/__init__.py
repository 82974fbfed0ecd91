"""Cited answers over your own documents, with foundation models that you run yourself.

from ragfm import Collection, Rag
handbook = Collection.open("handbook")
handbook.sync("docs/")
print(Rag(handbook).ask("How many days of leave do I get?").shown)
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if find_spec("fcntl") is None or find_spec("resource") is None:
    raise ImportError(
        "Cannot run ragfm: it needs POSIX, and this system does not have it. On Windows, install ragfm in WSL 2."
    )

if TYPE_CHECKING:
    from ragfm.async_rag import AsyncCollection, AsyncRag
    from ragfm.collection import Collection, DocumentInfo, Status
    from ragfm.core.config import Settings, load_settings
    from ragfm.core.errors import RagfmError
    from ragfm.core.types import (
        Answer,
        Blob,
        Chunk,
        Citation,
        Connector,
        Document,
        Embedder,
        Hit,
        ImagePart,
        Message,
        Reader,
        Ref,
        Reranker,
        Sampling,
        Stream,
        Usage,
        VectorIndex,
    )
    from ragfm.embedders import load_embedder
    from ragfm.generation.answer_log import AnswerLog
    from ragfm.generation.answer_stream import AnswerStream
    from ragfm.generation.readers import load_reader
    from ragfm.generation.structured_output import Extraction
    from ragfm.ingestion.ingest_report import SyncReport
    from ragfm.integrations.answer_check import CheckedSentence, check
    from ragfm.rag import Rag
    from ragfm.retrieval.rerank import load_reranker

__version__ = "0.2.0"

_HOMES = {
    "ragfm.async_rag": ("AsyncCollection", "AsyncRag"),
    "ragfm.collection": ("Collection", "DocumentInfo", "Status"),
    "ragfm.core.config": ("Settings", "load_settings"),
    "ragfm.core.errors": ("RagfmError",),
    "ragfm.core.types": (
        *("Answer", "Blob", "Chunk", "Citation", "Connector", "Document", "Embedder", "Hit", "ImagePart"),
        *("Message", "Reader", "Ref", "Reranker", "Sampling", "Stream", "Usage", "VectorIndex"),
    ),
    "ragfm.embedders": ("load_embedder",),
    "ragfm.generation.answer_log": ("AnswerLog",),
    "ragfm.generation.answer_stream": ("AnswerStream",),
    "ragfm.generation.readers": ("load_reader",),
    "ragfm.generation.structured_output": ("Extraction",),
    "ragfm.ingestion.ingest_report": ("SyncReport",),
    "ragfm.integrations.answer_check": ("CheckedSentence", "check"),
    "ragfm.rag": ("Rag",),
    "ragfm.retrieval.rerank": ("load_reranker",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Answer",
    "AnswerLog",
    "AnswerStream",
    "AsyncCollection",
    "AsyncRag",
    "Blob",
    "CheckedSentence",
    "Chunk",
    "Citation",
    "Collection",
    "Connector",
    "Document",
    "DocumentInfo",
    "Embedder",
    "Extraction",
    "Hit",
    "ImagePart",
    "Message",
    "Rag",
    "RagfmError",
    "Reader",
    "Ref",
    "Reranker",
    "Sampling",
    "Settings",
    "Status",
    "Stream",
    "SyncReport",
    "Usage",
    "VectorIndex",
    "__version__",
    "check",
    "load_embedder",
    "load_reader",
    "load_reranker",
    "load_settings",
]


def __getattr__(name: str) -> Any:
    # Names are imported on first use, so that `import ragfm` is fast.
    if name not in _HOME:
        raise AttributeError(f"module 'ragfm' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
