"""The answer log: each question with its passages, prompt, answer and times, and the user's rating of the answer.

A file next to the collection or a table of its database, but not part of it. It is off by default. Several processes
may write to it.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from ragfm.core.errors import LogError
from ragfm.core.promise import AnsweredPromise, VerifiedPromise
from ragfm.core.types import Answer
from ragfm.generation.citation_labels import CitationLabel, accepted, to_review, why_lapsed
from ragfm.generation.log_entries import TEXT_COLUMNS, LogEntry, LogFilter, contains, redact
from ragfm.generation.log_storage import LogFile, LogTable
from ragfm.generation.prompt import Prompt
from ragfm.store.tables import answer_log, citation_labels

OVERVIEW = ("id", "at", "question", "status", "thumbs", "seconds", "citations")
"""The columns of `AnswerLog.overview`: those that are small, for many entries at once."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """The request that an answer is for: the name of its API key, and its id in the server's log."""

    key: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerContext:
    """How a question was answered: `start` is its `time.monotonic`, `found` the seconds that retrieval took."""

    reader: str
    adapter: str | None
    groups: frozenset[str] | None
    prompt: Prompt | None
    start: float
    found: float
    origin: Origin = Origin()
    fingerprint: Mapping[str, str] | None = None


class AnswerLog:
    """The log in a file, which its first entry creates, or in another storage. Thread-safe.

    All methods raise LogError if it cannot be read or written.
    """

    def __init__(self, storage: str | Path | LogFile | LogTable) -> None:
        self._storage = LogFile(Path(storage)) if isinstance(storage, (str, Path)) else storage

    @property
    def path(self) -> Path:
        """The file. Raises LogError if the log is in a database."""
        if not isinstance(self._storage, LogFile):
            raise LogError(f"The answer log in '{self._storage.path}' is not a file.")
        return self._storage.path

    @classmethod
    def for_collection(cls, collection: str | Path) -> AnswerLog:
        """The log of a collection's folder: `.ragfm-log.db` for `.ragfm`."""
        folder = Path(os.path.abspath(collection))  # noqa: PTH100  without `..`
        return cls(folder.with_name(f"{folder.name}-log.db"))

    def record_stream(
        self, pieces: Generator[str, None, Answer], context: AnswerContext, unfinished: Answer
    ) -> Generator[str, None, Answer]:
        """Pass an answer's pieces through, and log the answer at the end; it is returned with its `log_id`.

        If the stream is stopped, the text so far is logged in place of that of `unfinished`. An error of the log is a
        warning: it never prevents an answer.
        """
        text: list[str] = []
        first_piece: float | None = None
        try:
            while True:
                try:
                    piece = next(pieces)
                except StopIteration as end:
                    answer: Answer = end.value
                    return replace(answer, log_id=self.record(answer, context, first_piece, finished=True))
                if first_piece is None and piece:
                    first_piece = time.monotonic() - context.start
                text.append(piece)
                yield piece
        except BaseException:  # the consumer stopped, Ctrl-C, or an error of the reader
            pieces.close()
            seconds = round(time.monotonic() - context.start, 3)
            answer = replace(unfinished, text="".join(text).strip(), seconds=seconds)
            self.record(answer, context, first_piece, finished=False)
            raise

    def record(
        self, answer: Answer, context: AnswerContext, first: float | None = None, *, finished: bool = True
    ) -> int | None:
        """Like `add`, but errors of the log become warnings and return None."""
        try:
            return self.add(answer, context, first, finished=finished)
        except KeyboardInterrupt:
            why = "interrupted"
        except Exception as error:  # no error of the log may prevent the answer
            why = error.message if isinstance(error, LogError) else f"{type(error).__name__}: {error}"
        _log.warning("The answer was not logged: %s", why)
        return None

    def add(self, answer: Answer, context: AnswerContext, first: float | None = None, *, finished: bool = True) -> int:
        """Log an answer and return its id. `first` is the time of the first piece of text, in seconds."""
        hit_keys = ("uri", "start", "end", "page", "chunk_id", "n", "score", "scores")
        seconds = {"found": context.found, "first": first, "total": answer.seconds}
        prompt = []
        for message in context.prompt.messages if context.prompt else ():
            # Images, which may be large and access-controlled, are named by their digests.
            images = [image.digest for image in message.images]
            prompt.append({"role": message.role, "content": message.text, **({"images": images} if images else {})})
        row = {
            "at": _timestamp(datetime.now(UTC)),
            "question": answer.question,
            "query": answer.query,
            "answer": answer.text,
            "shown": answer.shown if finished else None,
            "status": answer.status if finished else None,
            "confidence": answer.confidence,
            "abstained": answer.abstained,
            "finished": finished,
            "reader": None if answer.calculation else context.reader,
            "adapter": None if answer.calculation else context.adapter,
            "groups": None if context.groups is None else sorted(context.groups),
            "passages": [{key: getattr(hit, key) for key in hit_keys} for hit in answer.hits],
            "prompt": prompt,
            "citations": [asdict(citation) for citation in answer.citations],
            "contradictions": [asdict(contradiction) for contradiction in answer.contradictions],
            "calculation": asdict(answer.calculation) if answer.calculation else None,
            "usage": asdict(answer.usage),
            "seconds": {key: round(value, 3) for key, value in seconds.items() if value is not None},
            "rating_id": secrets.token_hex(8),
            "key": context.origin.key,
            "request_id": context.origin.request_id,
            "fingerprint": None if context.fingerprint is None else dict(context.fingerprint),
        }
        known = sa.select(answer_log.c.id).where(answer_log.c.rating_id == row["rating_id"])
        new = answer_log.insert().values(_storable(row)).returning(answer_log.c.id)

        def insert(connection: sa.Connection) -> int:
            # If the first attempt lost its connection after the commit, the second one finds the row.
            number = connection.execute(known).scalar()
            return int(connection.execute(new).scalar_one() if number is None else number)

        return self._storage.write(insert, create=True)

    def entries(self, which: LogFilter = LogFilter(), *, limit: int | None = None) -> list[LogEntry]:
        """The entries that match a filter, oldest first; with `limit`, the newest of them."""
        entries = self._storage.read(lambda connection: _select(connection, which), which.groups)
        return entries[-limit:] if limit else entries

    def overview(self, which: LogFilter) -> list[tuple[Any, ...]]:
        """The `OVERVIEW` columns of the entries that match a filter, oldest first. Its `text` is ignored."""
        query = _matching(which, sa.select(*(answer_log.c[name] for name in OVERVIEW)))
        return self._storage.read(lambda connection: [tuple(row) for row in connection.execute(query)], which.groups)

    def find(self, number: int) -> LogEntry | None:
        """The entry with an id, or None."""
        return next(iter(self.entries(LogFilter(ids=[number]))), None)

    def entry(self, number: int) -> LogEntry:
        """The entry with an id. Raises LogError if there is none."""
        if (entry := self.find(number)) is None:
            raise self._no_entry(number)
        return entry

    def rating_id(self, number: int) -> str:
        """The random id by which a user of the server rates the answer. Raises LogError if there is no such entry."""
        return self.entry(number).rating_id

    def entry_of_rating(self, rating_id: str, groups: frozenset[str] | None = None) -> LogEntry | None:
        """The entry with a rating id, or None. With `groups`, a database hides entries for other groups."""
        return next(iter(self.entries(LogFilter(rating_id=rating_id, groups=groups))), None)

    def rate(self, number: int, thumbs: Literal["up", "down"], correction: str | None = None) -> None:
        """Store a user's rating of an answer, and the right answer if given. A later rating replaces an earlier one.

        It labels the answer's citation if there is only one, and that is verified.
        """
        entry = self.entry(number)
        if not self._change(LogFilter(ids=[number]), lambda _: {"thumbs": thumbs, "correction": correction}):
            raise self._no_entry(number)  # deleted meanwhile
        if len(entry.citations) == 1 and accepted(entry, 1):
            self._store_label(entry, 1, right=thumbs == "up", by=entry.key or "", rated=True)

    def label(self, entry: LogEntry, citation: int, *, right: bool, by: str) -> None:
        """Store whether citation number `citation` (from 1) is right. A later label replaces an earlier one.

        Raises LogError for a citation that is not verified: the share of wrong ones is known of the others only.
        """
        if not 1 <= citation <= len(entry.citations):
            raise LogError(
                f"Entry {entry.id} has no citation {citation}: it has {len(entry.citations)}.",
                f"`ragfm log show {entry.id}` lists them; they are numbered from 1.",
            )
        if not accepted(entry, citation):
            raise LogError(
                f"Citation {citation} of entry {entry.id} cannot be labelled: the judge did not verify it.",
                "Label those that `ragfm log review` shows.",
            )
        self._store_label(entry, citation, right=right, by=by, rated=False)

    def _store_label(self, entry: LogEntry, citation: int, *, right: bool, by: str, rated: bool) -> None:
        probability, at = entry.citations[citation - 1]["probability"], _timestamp(datetime.now(UTC))
        fingerprint = dict(entry.fingerprint or {})
        new = asdict(CitationLabel(entry.id, citation, right, by, at, probability, fingerprint, rated))
        same = sa.and_(citation_labels.c.entry == entry.id, citation_labels.c.citation == citation)

        def replace_label(connection: sa.Connection) -> None:
            _select(connection, LogFilter(ids=[entry.id]), lock=True)  # on PostgreSQL, two could insert at once
            if rated and connection.scalar(sa.select(citation_labels.c.rated).where(same)) is False:
                return  # somebody labelled it
            connection.execute(citation_labels.delete().where(same))
            connection.execute(citation_labels.insert().values(_storable(new)))

        self._storage.write(replace_label)

    def labels(self, after: str = "") -> Sequence[CitationLabel]:
        """The labels of citations that were given after a time, by default all of them, oldest first."""
        query = sa.select(citation_labels).where(citation_labels.c.at > after).order_by(citation_labels.c.at)
        rows = self._storage.read(lambda connection: connection.execute(query).mappings().all())
        return [CitationLabel(**row) for row in rows]

    def to_review(self, seed: int = 0) -> list[tuple[LogEntry, int]]:
        """The verified citations that nobody has labelled, in random order, see `citation_labels.to_review`."""
        # What was only rated is asked for, too: without it, the others would be no random sample.
        labelled = {(one.entry, one.citation) for one in self.labels() if not one.rated}
        return to_review(self.entries(), labelled, seed)

    def newest_fingerprint(self) -> Mapping[str, str] | None:
        """The fingerprint of the newest answer that has one."""
        has = answer_log.c.fingerprint.is_not(sa.null())
        query = sa.select(answer_log.c.fingerprint).where(has).order_by(answer_log.c.id.desc()).limit(1)
        found: Mapping[str, str] | None = self._storage.read(lambda connection: connection.execute(query).scalar())
        return found

    def why_lapsed(self, promise: VerifiedPromise, fingerprint: Mapping[str, str] | None = None) -> str | None:
        """Why a promise does not hold for answers with this fingerprint, by default of the newest; None if it does.

        A promise whose labels cannot be read counts as lapsed; one about answers needs no log.
        """
        answered = isinstance(promise, AnsweredPromise)
        try:
            fingerprint = fingerprint or self.newest_fingerprint() or promise.fingerprint
            later = self._ratings(promise.date, fingerprint) if answered else self.labels(after=promise.date)
            return why_lapsed(promise, fingerprint, later)
        except LogError:
            return (
                why_lapsed(promise, fingerprint or promise.fingerprint, []) if answered else "its labels cannot be read"
            )

    def _ratings(self, after: str, fingerprint: Mapping[str, str]) -> list[CitationLabel]:
        """The ratings of later answers that are `answered`, with their confidence. Only those with this fingerprint."""
        names = ("id", "key", "at", "confidence", "thumbs", "fingerprint")
        query = sa.select(*(answer_log.c[name] for name in names)).where(
            answer_log.c.at > after, answer_log.c.status == "answered", answer_log.c.thumbs.is_not(sa.null())
        )
        # Good ones first: when a rating was given is not known, and so only the evidence of all of them counts.
        rows = self._storage.read(
            lambda connection: connection.execute(query.order_by(answer_log.c.thumbs.desc(), answer_log.c.id)).all()
        )
        return [
            CitationLabel(id_, 0, thumbs == "up", key or "", at, 1.0 if sure is None else sure, fingerprint, True)
            for id_, key, at, sure, thumbs, made in rows
            if made and made.items() <= fingerprint.items()
        ]

    def forget(self, which: LogFilter) -> int:
        """Delete entries so that no trace of them is left in the file or table, and return how many."""
        count = self._change(which, lambda _: None)
        self._storage.erase()
        return count

    def redact(self, which: LogFilter) -> int:
        """Replace the filter's text, or all text if it has none, by `[redacted]`, and return how many entries."""
        count = self._change(
            which, lambda entry: {name: redact(getattr(entry, name), which.text) for name in TEXT_COLUMNS}
        )
        self._storage.erase()
        return count

    def _change(self, which: LogFilter, values: Callable[[LogEntry], Mapping[str, Any] | None]) -> int:
        """Change the columns that `values` gives for each entry, or delete the entry. Returns how many."""

        def change(connection: sa.Connection) -> int:
            entries = _select(connection, which, lock=True)
            for entry in entries:
                row, changed = answer_log.c.id == entry.id, values(entry)
                if changed is None:
                    connection.execute(answer_log.delete().where(row))
                else:
                    connection.execute(answer_log.update().where(row).values(_storable(changed)))
            return len(entries)

        return self._storage.write(change)

    def _no_entry(self, number: int) -> LogError:
        return LogError(f"{self._storage.path} has no entry {number}.", "`ragfm log list` shows all entries.")


def _select(connection: sa.Connection, which: LogFilter, *, lock: bool = False) -> list[LogEntry]:
    """The entries that match a filter, oldest first."""
    query = _matching(which, sa.select(answer_log))
    rows = connection.execute(query.with_for_update() if lock else query).mappings()
    entries = [LogEntry(**row) for row in rows]
    return entries if which.text is None else [entry for entry in entries if contains(entry, which.text)]


def _matching(which: LogFilter, query: sa.Select[Any]) -> sa.Select[Any]:
    """The query for the rows that match a filter, except by their text, oldest first."""
    if which.ids:
        query = query.where(answer_log.c.id.in_(which.ids))
    if which.older_than is not None:
        query = query.where(answer_log.c.at < _timestamp(datetime.now(UTC) - which.older_than))
    if which.newer_than is not None:
        query = query.where(answer_log.c.at >= _timestamp(datetime.now(UTC) - which.newer_than))
    if which.thumbs is not None:
        query = query.where(answer_log.c.thumbs == which.thumbs)
    if which.rated:
        query = query.where(answer_log.c.thumbs.is_not(sa.null()))
    if which.rating_id is not None:
        query = query.where(answer_log.c.rating_id == which.rating_id)
    if which.key is not None:
        query = query.where(answer_log.c.key == which.key)
    return query.order_by(answer_log.c.id)


def _storable(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without characters that databases refuse: lone surrogates and, in text, NUL."""
    clean = json.loads(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
    return {name: value.replace("\0", "?") if isinstance(value, str) else value for name, value in clean.items()}


def _timestamp(when: datetime) -> str:
    return when.isoformat(timespec="milliseconds")
