"""What a collection must hold: acknowledged changes, and for interrupted ones either state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SOURCES = ("a", "b")
GROUPS = ("staff", "guests")
ALLOWED: list[list[str]] = [[], ["staff"], ["guests"], ["guests", "staff"]]


@dataclass
class ExpectedState:
    """Allowed hashes of each document's text (None if it can be missing), and allowed access groups of each source."""

    documents: dict[str, set[str | None]] = field(default_factory=dict)
    allowed: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)
    generation: int = -1
    acknowledged: int = 0
    """Number of acknowledged commits."""

    def process(self, lines: list[Any]) -> None:
        """Process the output of a writer until it died."""
        for line in lines:
            if "plan" in line:
                self._start_sync(line["plan"])
            elif "committed" in line:
                for uri, value in line["committed"].items():
                    self.documents[uri] = {value}
                self.generation = max(self.generation, line["generation"])
                self.acknowledged += 1
            elif "allowed" in line:
                for source, groups in line["allowed"].items():
                    self.allowed[source] = {tuple(groups)}
            elif "synced" in line:
                self._finish_sync(line["synced"])

    def _start_sync(self, plan: Any) -> None:
        for uri in self._uris(plan):
            self.documents.setdefault(uri, {None}).add(plan["documents"].get(uri))
        if plan["allow"] is not None:
            self.allowed.setdefault(plan["source"], {()}).add(tuple(sorted(plan["allow"])))

    def _finish_sync(self, plan: Any) -> None:
        for uri in self._uris(plan):
            self.documents[uri] = {plan["documents"].get(uri)}
        if plan["allow"] is not None:
            self.allowed[plan["source"]] = {tuple(sorted(plan["allow"]))}

    def _uris(self, plan: Any) -> set[str]:
        return {uri for uri in self.documents if uri.startswith(f"{plan['source']}/")} | plan["documents"].keys()

    def min_documents(self) -> int:
        """Minimum number of documents."""
        return sum(None not in values for values in self.documents.values())

    def compare(self, found: Any) -> list[str]:
        """Problems of a collection as reported by `jobs.inspect`. Its state becomes the expected one."""
        if not found["exists"]:
            return ["the collection is gone"] if self.min_documents() or self.acknowledged else []
        problems = list(found["problems"])
        documents, visible = found["documents"], found["visible"]
        if len(documents) < self.min_documents():
            problems.append(f"{len(documents)} documents, but {self.min_documents()} were acknowledged")
        if found["generation"] < self.generation:
            problems.append(f"generation {found['generation']}, but {self.generation} was acknowledged")
        for uri in sorted(documents.keys() | self.documents.keys()):
            allowed_hashes = self.documents.get(uri, {None})
            if documents.get(uri) not in allowed_hashes:
                problems.append(f"{uri} is {documents.get(uri)}, expected one of {allowed_hashes}")
        for source in {uri.split("/")[0] for uri in documents}:
            uris = sorted(uri for uri in documents if uri.startswith(f"{source}/"))
            visible_uris = {group: [uri for uri in visible[group] if uri in uris] for group in GROUPS}
            expected_visible = [
                {group: uris if not allow or group in allow else [] for group in GROUPS}
                for allow in self.allowed.get(source, {()})
            ]
            if visible_uris not in expected_visible:
                problems.append(f"{source} is visible to {visible_uris}, expected one of {self.allowed.get(source)}")
            else:
                self.allowed[source] = {
                    allow
                    for allow in self.allowed.get(source, {()})
                    if visible_uris == {group: uris if not allow or group in allow else [] for group in GROUPS}
                }
        self.documents = {uri: {value} for uri, value in documents.items()}
        self.generation = found["generation"]
        return problems
