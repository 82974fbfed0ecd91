"""The cache folder: measurements of this machine and its models. Everything in it can be computed again."""

from __future__ import annotations

import json
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """The user's cache folder for ragfm; it may not exist yet."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path("~/.cache").expanduser()) / "ragfm"  # noqa: PTH117


def file_identity(path: Path, *more: str) -> str:
    """A key for a file's present content: a hash of its path, size and modification time."""
    resolved = path.resolve()
    stat = resolved.stat()
    return blake2b(repr((str(resolved), stat.st_size, stat.st_mtime_ns, *more)).encode(), digest_size=16).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file does not exist or is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
