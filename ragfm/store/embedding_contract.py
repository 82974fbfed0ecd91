"""The embedding contract: what a collection's vectors depend on, and how their embedder is found again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragfm.core.errors import EmbedderMismatchError

if TYPE_CHECKING:
    from ragfm.core.types import Embedder

_NAMES = {"model", "embedder"}  # by which it is found; the same one may be found by others


def make_contract(embedder: Embedder, asked: str | Embedder) -> dict[str, Any]:
    """What a collection keeps of an embedder: its fingerprint, and by what name it is loaded again."""
    contract = dict(embedder.fingerprint)
    name = asked if isinstance(asked, str) else str(contract["model"])
    # A relative path would mean another folder to who opens the collection from elsewhere.
    path = Path(name).expanduser()
    return {**contract, "embedder": str(path.absolute()) if path.exists() else name}


def same_contract(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two give the same vectors, by whatever names."""
    return {k: v for k, v in one.items() if k not in _NAMES} == {k: v for k, v in other.items() if k not in _NAMES}


def check_contract(stored: Mapping[str, Any], embedder: Embedder) -> None:
    """Raise EmbedderMismatchError where the embedder would give other vectors than the collection has."""
    given = dict(embedder.fingerprint)
    different = [key for key in given if key != "model" and given[key] != stored.get(key)]
    if different:
        names = ", ".join(f"{key} {stored.get(key)!r} there, {given[key]!r} now" for key in different)
        raise EmbedderMismatchError(
            f"The collection was made with the embedder {stored['model']!r}, this is {given['model']!r} ({names}).",
            f"Use the first one, or switch the collection with `ragfm reembed --embedder {given['model']}`.",
        )
