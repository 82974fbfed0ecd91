"""Group items that share a name, so that training, validation and test share no document."""

from __future__ import annotations

from collections.abc import Sequence


def connected_groups(names: Sequence[Sequence[str]]) -> list[list[int]]:
    """The connected components of items that share a name: lists of indices (union-find).

    `names` has the names of each item, at least one.
    """
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while (parent := parents.setdefault(name, name)) != name:
            parents[name] = name = parents[parent]
        return name

    for first, *rest in names:
        for name in rest:
            parents[root(name)] = root(first)
    groups: dict[str, list[int]] = {}
    for index, (first, *_) in enumerate(names):
        groups.setdefault(root(first), []).append(index)
    return list(groups.values())
