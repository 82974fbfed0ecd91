"""Reports of a sync: counts, skipped entries and failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

SKIP_STAGE = "skip"
"""The stage, in the table `failures`, of a document that was fetched and skipped: it is not read again at each sync."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """An entry of the source with nothing to index, and the reason."""

    uri: str
    why: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A document that failed at a stage (list, fetch, parse), or a source that failed (list, remove).

    `attempts` counts consecutive failures. `stale`: an older version is still in the collection. `known`: it had failed
    at an earlier sync, and neither it nor its settings or parsers have changed since.
    """

    uri: str
    stage: str
    error: str
    attempts: int
    stale: bool
    known: bool = False


@dataclass(frozen=True, slots=True)
class Unmapped:
    """An identity of a source that stands for no group: what only that one may see is visible to nobody."""

    source: str
    identity: str


@dataclass(frozen=True, slots=True)
class SyncReport:
    """The result of a sync: numbers of documents, chunks embedded, seconds, skipped entries and failures.

    `unmapped` are the identities without a group, of sources whose permissions are read.
    """

    added: int = 0
    updated: int = 0
    removed: int = 0
    unchanged: int = 0
    chunks: int = 0
    seconds: float = 0.0
    skipped: tuple[Skipped, ...] = ()
    failed: tuple[Failed, ...] = ()
    unmapped: tuple[Unmapped, ...] = ()


def merge_reports(reports: Sequence[SyncReport]) -> SyncReport:
    """One report with the sums of several."""
    counts = ("added", "updated", "removed", "unchanged", "chunks")
    return SyncReport(
        **{count: sum(getattr(report, count) for report in reports) for count in counts},
        seconds=round(sum(report.seconds for report in reports), 3),
        skipped=tuple(skipped for report in reports for skipped in report.skipped),
        failed=tuple(failed for report in reports for failed in report.failed),
        unmapped=tuple(unmapped for report in reports for unmapped in report.unmapped),
    )


def document_uri(source: str, path: str) -> str:
    """The URI of a document, unique in the collection: `<source>/<path>`, or the path itself if it is a URL."""
    if source == "." or "://" in path:
        return path
    return f"{source.rstrip('/')}/{path}" if path else source


def path_below(root: str | Path, path: str) -> str:
    """The path of a document below the root of its source, with the file's name; that name alone if it is the source.

    Format and context depend on it, not on the URI: that depends on where a command is run, and on the source's name.
    """
    return path or PurePath(root).name
