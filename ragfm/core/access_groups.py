"""Access: which groups may see a document, by what its source says of it.

Groups are a tuple of names, which may be empty: nobody; None: everybody. Two rules for one document both hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from ragfm.core.types import Ref

Groups: TypeAlias = Sequence[str] | None


def both(one: Groups, other: Groups) -> tuple[str, ...] | None:
    """The groups that meet two rules."""
    if one is None or other is None:
        names = one if other is None else other
        return None if names is None else tuple(sorted(set(names)))
    return tuple(sorted(set(one) & set(other)))


def below(path: str) -> str:
    """What the paths begin with of all that lies under one; of all that the source holds where it is empty."""
    return f"{path}/" if path else ""


def narrowed(known: Mapping[str, Groups], refs: Iterable[Ref]) -> dict[str, Groups]:
    """By path, the groups that may see a known document both so far and by what a listing says.

    What a listing says of an entry that it could not look at holds for all that lies under it.
    """
    now = dict(known)
    for ref in refs:
        if ref.allow is not None:
            under = [path for path in known if path.startswith(below(ref.path))] if ref.error is not None else []
            for path in (ref.path, *under):
                if path in known:
                    now[path] = both(now[path], ref.allow)
    return now


def listed(known: Mapping[str, Groups], refs: Iterable[Ref], settled: Mapping[str, str]) -> dict[str, Groups]:
    """The same, and opened where a listing says so of a document that is as it was: of the revision in `settled`.

    An older version that still serves is not opened: it may be just what was closed.
    """
    refs = list(refs)
    now = narrowed(known, refs)
    for ref in refs:
        if ref.path in known and not ref.skip and not ref.error and settled.get(ref.path) == ref.revision:
            now[ref.path] = ref.allow
    return now


def changed(known: Mapping[str, Groups], now: Mapping[str, Groups]) -> dict[str, tuple[str, ...] | None]:
    """Those of the documents that other groups may see from now on."""
    return {path: both(groups, None) for path, groups in now.items() if both(groups, None) != both(known[path], None)}
