"""Access groups: which groups may see a document, according to its source.

Groups are a sequence of names. None means everybody, an empty sequence nobody. Where two rules apply to one document,
a group needs both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from ragfm.core.types import Ref

Groups: TypeAlias = Sequence[str] | None
OWN_GROUP_PREFIX = "key:"
"""Prefix of the group that each key of a server has for itself. The key sees its own uploads through it."""


def intersect_groups(first: Groups, second: Groups) -> tuple[str, ...] | None:
    """The sorted groups that both rules allow."""
    if first is None or second is None:
        groups = second if first is None else first
        return None if groups is None else tuple(sorted(set(groups)))
    return tuple(sorted(set(first) & set(second)))


def still_allows(now: Groups, listed: Groups) -> bool:
    """Whether a document is still open to all groups that a listing found it open to."""
    return intersect_groups(now, listed) == intersect_groups(listed, None)


def path_prefix(folder: str) -> str:
    """The prefix of all paths below a folder; empty for the root of the source."""
    return f"{folder}/" if folder else ""


def restrict_groups(known: Mapping[str, Groups], refs: Iterable[Ref]) -> dict[str, Groups]:
    """The groups of each known path, restricted by what a listing allows; nothing is opened.

    The rule of an entry that could not be listed applies to every path below it.
    """
    groups = dict(known)
    for ref in refs:
        if ref.allow is None:
            continue
        paths = [ref.path]
        if ref.error is not None:
            paths += [path for path in known if path.startswith(path_prefix(ref.path))]
        for path in paths:
            if path in known:
                groups[path] = intersect_groups(groups[path], ref.allow)
    return groups


def groups_after_listing(
    known: Mapping[str, Groups], refs: Iterable[Ref], revisions: Mapping[str, str]
) -> dict[str, Groups]:
    """Like `restrict_groups`, but also opens documents whose listed revision equals that in `revisions`.

    A document with a different revision is not opened: the source may have closed its older version.
    """
    refs = list(refs)
    groups = restrict_groups(known, refs)
    for ref in refs:
        if ref.path in known and not ref.skip and not ref.error and revisions.get(ref.path) == ref.revision:
            groups[ref.path] = ref.allow
    return groups


def changed_groups(before: Mapping[str, Groups], after: Mapping[str, Groups]) -> dict[str, tuple[str, ...] | None]:
    """The new groups of the paths whose groups differ."""
    changed = {}
    for path, groups in after.items():
        normalized = intersect_groups(groups, None)
        if normalized != intersect_groups(before[path], None):
            changed[path] = normalized
    return changed
