"""What belongs together, so that what is learned and what is tested share no document."""

from __future__ import annotations

from collections.abc import Sequence


def linked(names: Sequence[Sequence[str]]) -> list[list[int]]:
    """Numbers of those that share a name, also by way of others; each has one name at least."""
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while (parent := parents.setdefault(name, name)) != name:
            parents[name] = name = parents[parent]
        return name

    for first, *others in names:
        for other in others:
            parents[root(other)] = root(first)
    groups: dict[str, list[int]] = {}
    for at, (first, *_) in enumerate(names):
        groups.setdefault(root(first), []).append(at)
    return list(groups.values())
