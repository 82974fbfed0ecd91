"""What a sync did, and how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Skipped:
    """An entry of the source that holds nothing to index, and why."""

    uri: str
    why: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A document that failed at a stage (list, fetch, parse), or a source (list, remove), and how often in a row.

    `stale`: an older version still serves.
    """

    uri: str
    stage: str
    error: str
    attempts: int
    stale: bool


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a sync did: counts of documents, of chunks embedded, and what was left out."""

    added: int = 0
    updated: int = 0
    removed: int = 0
    unchanged: int = 0
    chunks: int = 0
    seconds: float = 0.0
    skipped: tuple[Skipped, ...] = ()
    failed: tuple[Failed, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a sync is: documents done with, of how many; chunks embedded so far, and known to wait for it."""

    documents: int
    total: int
    chunks: int
    waiting: int


def merge_reports(reports: Sequence[SyncReport]) -> SyncReport:
    """The sums of several syncs' reports."""
    counts = ("added", "updated", "removed", "unchanged", "chunks")
    return SyncReport(
        **{count: sum(getattr(report, count) for report in reports) for count in counts},
        seconds=round(sum(report.seconds for report in reports), 3),
        skipped=tuple(skip for report in reports for skip in report.skipped),
        failed=tuple(failure for report in reports for failure in report.failed),
    )
