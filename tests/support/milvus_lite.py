"""Milvus Lite, which runs in this process: https://github.com/milvus-io/milvus-lite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from milvus_lite.server_manager import server_manager_instance

from ragfm.core.config import MilvusSection, Settings
from ragfm.store import milvus_backend


@contextmanager
def milvus_settings(folder: Path) -> Iterator[Settings]:
    """Settings for a server with its files in a folder. It stops when the block ends."""
    path = str(folder / "milvus.db")
    try:
        yield Settings(backend="milvus", milvus=MilvusSection(uri=path))
    finally:
        milvus_backend._client.cache_clear()
        server_manager_instance.release_server(path)
