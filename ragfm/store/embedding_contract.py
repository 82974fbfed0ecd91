"""The embedding contract: everything the vectors of a collection depend on, and how to load their embedder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ragfm.core.errors import EmbedderMismatchError
from ragfm.core.types import Embedder

_NAME_KEYS = {"model", "embedder"}  # names to load it by; one embedder may have several


def make_contract(embedder: Embedder, name: str | Embedder) -> dict[str, Any]:
    """The contract of an embedder: its fingerprint, and the name to load it by.

    `name` is the name that the user chose, or the embedder itself.
    """
    contract = dict(embedder.fingerprint)
    if not isinstance(name, str):
        name = str(contract["model"])
    path = Path(name).expanduser()  # absolute, since the collection may be opened from another folder
    return {**contract, "embedder": str(path.absolute()) if path.exists() else name}


def same_contract(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two contracts give the same vectors, whatever the names."""
    first = {key: value for key, value in first.items() if key not in _NAME_KEYS}
    second = {key: value for key, value in second.items() if key not in _NAME_KEYS}
    return first == second


def check_contract(stored: Mapping[str, Any], embedder: Embedder) -> None:
    """Raise EmbedderMismatchError if the embedder's vectors would differ from those of the collection."""
    current = dict(embedder.fingerprint)
    different = [key for key in current if key != "model" and current[key] != stored.get(key)]
    if different:
        details = ", ".join(f"{key}: {stored.get(key)!r} instead of {current[key]!r}" for key in different)
        raise EmbedderMismatchError(
            f"The collection was created with the embedder {stored['model']!r}, not with {current['model']!r} "
            f"({details}).",
            f"Use the first one, or switch the collection with `ragfm reembed --embedder {current['model']}`.",
        )
