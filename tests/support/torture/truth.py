"""What a collection must hold: what was acknowledged, or what was under way when its writer died."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SOURCES = ("a", "b")
GROUPS = ("staff", "guests")
ALLOWED: list[list[str]] = [[], ["staff"], ["guests"], ["guests", "staff"]]


@dataclass
class Truth:
    """For each document the hashes of the texts that it may have, None for being gone; for each source its groups."""

    documents: dict[str, set[str | None]] = field(default_factory=dict)
    allowed: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)
    generation: int = -1
    acknowledged: int = 0
    """How many commits were acknowledged."""

    def hear(self, lines: list[Any]) -> None:
        """Take in what a writer has said until it died."""
        for line in lines:
            if "plan" in line:
                self._under_way(line["plan"])
            elif "committed" in line:
                for uri, value in line["committed"].items():
                    self.documents[uri] = {value}
                self.generation = max(self.generation, line["generation"])
                self.acknowledged += 1
            elif "allowed" in line:
                for source, groups in line["allowed"].items():
                    self.allowed[source] = {tuple(groups)}
            elif "synced" in line:
                self._done(line["synced"])

    def _under_way(self, plan: Any) -> None:
        for uri in self._uris(plan):
            self.documents.setdefault(uri, {None}).add(plan["documents"].get(uri))
        if plan["allow"] is not None:
            self.allowed.setdefault(plan["source"], {()}).add(tuple(sorted(plan["allow"])))

    def _done(self, plan: Any) -> None:
        for uri in self._uris(plan):
            self.documents[uri] = {plan["documents"].get(uri)}
        if plan["allow"] is not None:
            self.allowed[plan["source"]] = {tuple(sorted(plan["allow"]))}

    def _uris(self, plan: Any) -> set[str]:
        return {uri for uri in self.documents if uri.startswith(f"{plan['source']}/")} | plan["documents"].keys()

    def least(self) -> int:
        """How many documents there must be at the least."""
        return sum(None not in values for values in self.documents.values())

    def against(self, found: Any) -> list[str]:
        """What is wrong with what `jobs.inspect` has found, in words; then that is the truth."""
        if not found["exists"]:
            return ["the collection is gone"] if self.least() or self.acknowledged else []
        problems = list(found["problems"])
        documents, visible = found["documents"], found["visible"]
        if len(documents) < self.least():
            problems.append(f"{len(documents)} documents, but {self.least()} were acknowledged")
        if found["generation"] < self.generation:
            problems.append(f"generation {found['generation']}, but {self.generation} was acknowledged")
        for uri in sorted(documents.keys() | self.documents.keys()):
            may = self.documents.get(uri, {None})
            if documents.get(uri) not in may:
                problems.append(f"{uri} is {documents.get(uri)}, expected one of {may}")
        for source in {uri.split("/")[0] for uri in documents}:
            every = sorted(uri for uri in documents if uri.startswith(f"{source}/"))
            seen = {group: [uri for uri in visible[group] if uri in every] for group in GROUPS}
            may_see = [
                {group: every if not allow or group in allow else [] for group in GROUPS}
                for allow in self.allowed.get(source, {()})
            ]
            if seen not in may_see:
                problems.append(f"{source} is visible to {seen}, expected one of {self.allowed.get(source)}")
            else:
                self.allowed[source] = {
                    allow
                    for allow in self.allowed.get(source, {()})
                    if seen == {group: every if not allow or group in allow else [] for group in GROUPS}
                }
        self.documents = {uri: {value} for uri, value in documents.items()}
        self.generation = found["generation"]
        return problems
