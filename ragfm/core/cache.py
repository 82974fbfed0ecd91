"""Where ragfm keeps what it worked out about this machine and its models. Everything there can be worked out again."""

from __future__ import annotations

import json
import os
import tempfile
from hashlib import blake2b
from pathlib import Path
from typing import Any

__all__ = ["cache_folder", "file_identity", "read_json", "replace_file"]


def cache_folder() -> Path:
    """The user's cache folder for ragfm; it need not be there."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path("~/.cache").expanduser()) / "ragfm"  # noqa: PTH117


def file_identity(path: Path, *more: str) -> str:
    """A name for a file as it is now: of its place, size and time of change. To hash what is in it takes too long."""
    found = path.resolve()
    about = found.stat()
    return blake2b(repr((str(found), about.st_size, about.st_mtime_ns, *more)).encode(), digest_size=16).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file's content at once, whoever else does so, another thread of this process too. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.close()
            Path(file.name).replace(path)
        except OSError:
            Path(file.name).unlink(missing_ok=True)
            raise
