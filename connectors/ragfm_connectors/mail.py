"""Mails of mbox files, Maildir folders and `.eml` files, and what is attached to them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from email.message import EmailMessage, MIMEPart
from hashlib import blake2b
from io import BufferedReader
from pathlib import PurePosixPath
from typing import NamedTuple

from ragfm.core.errors import ConnectorError
from ragfm.core.types import Blob, Ref
from ragfm.parsing.own.web.mail_message import (
    extract_body,
    extract_headers,
    find_attachments,
    is_encrypted,
    parse_message,
    single_line,
)
from ragfm_connectors.files import FilesConnector
from ragfm_connectors.records import as_path, heading

_FROM_LINE = re.compile(rb"From \S.*\d\d:\d\d")  # what begins a mail in an mbox, after an empty line
_MESSAGE_ID = re.compile(rb"^message-id:\s*<?([^\s<>]+)", re.IGNORECASE | re.MULTILINE)

_MOST_ATTACHED = 1_000


class _Place(NamedTuple):
    file: Ref
    start: int
    size: int
    part: int | None  # of the message's parts, in order; None: the mail itself


class MailConnector:
    """All mails in a folder at any depth, of an mbox file, or of a single `.eml`.

    A mail's path is its Message-ID, whichever file it lies in and however often; without one it is a hash of its bytes.
    Its text is that which it has as plain text, else as HTML, below its subject. What is attached has the path
    `<Message-ID>/<file name>`; pictures that belong to the text are left out. Headers become metadata.

    Mails of more than `max_bytes` and encrypted ones are listed as skipped; one that can't be read fails alone.
    """

    def __init__(
        self,
        location: str | os.PathLike[str],
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        max_bytes: int = 100 * 2**20,
    ) -> None:
        """`include` and `exclude` are patterns for files, not for mails. Raises SourceError, ConfigError."""
        # The subfolders of a Maildir have names that begin with a dot.
        self._files = FilesConnector(location, include=include, exclude=exclude, hidden=True, max_bytes=sys.maxsize)
        self.root = self._files.root
        """The folder, or the file; absolute."""
        self._max_bytes = max_bytes
        self._places: dict[str, _Place] = {}
        self._last: tuple[bytes, EmailMessage] | None = None  # a mail's attachments are fetched after it

    def refs(self) -> Iterator[Ref]:
        """All mails and what is attached to them, with a hash of the mail as revision. Raises SourceError."""
        self._places, wrong = {}, []
        for file in self._files.refs():
            if file.skip is not None:
                yield Ref(_outside(file.path), skip=file.skip)
            elif file.error is not None:
                wrong.append(f"{file.path}: {file.error}")
            else:
                try:
                    yield from self._file(file)
                except ConnectorError as error:
                    wrong.append(error.message)
        if wrong:  # which mails lie there is not known, so none is taken for gone
            yield Ref("", error=f"not all can be read: {'; '.join(wrong[:3])}{' …' if len(wrong) > 3 else ''}")

    def fetch(self, ref: Ref) -> Blob:
        """A mail's text, or the bytes of what is attached. Raises ConnectorError where the mail has changed."""
        if ref.path not in self._places:
            list(self.refs())
        place = self._places.get(ref.path)
        if place is None:
            raise ConnectorError(f"There is no mail {ref.path!r} any more.", "The next ingest removes it.")
        with self._files.open(place.file) as file:
            file.seek(place.start)
            data = file.read(place.size)
        if _revision(data) != ref.revision:
            raise ConnectorError(f"The mail {ref.path!r} has changed since it was listed.", "The next ingest takes it.")
        if self._last is None or self._last[0] != data:
            self._last = (data, parse_message(data))
        try:
            return _mail(self._last[1]) if place.part is None else _attachment(self._last[1], place.part)
        except Exception as error:  # the standard library's parser of headers fails in many ways on what is broken
            raise ConnectorError(f"The mail {ref.path!r} can't be read: {type(error).__name__}: {error}.") from error

    def _file(self, file: Ref) -> Iterator[Ref]:
        with self._files.open(file) as opened:
            alone = _is_one_mail(PurePosixPath(self.root, file.path))
            if not alone and not _is_mbox(opened):
                yield Ref(_outside(file.path), skip="neither a mail nor an mbox file")
                return
            opened.seek(0)
            for start, data, size in _mails(opened, self._max_bytes, alone=alone):
                yield from self._mail(_Place(file, start, size, None), data)

    def _mail(self, place: _Place, data: bytes) -> Iterator[Ref]:
        path, revision, allow = _identity(data), _revision(data), place.file.allow
        if path in self._places or not data.strip():
            return  # the same mail in another folder
        self._places[path] = place
        if place.size > self._max_bytes:
            yield Ref(path, skip=f"{place.size:,} bytes, the limit is {self._max_bytes:,}")
            return
        try:
            message = parse_message(data)
            if not message.keys():
                raise ConnectorError("it has no headers")
            if is_encrypted(message):
                yield Ref(path, skip="it is encrypted")
                return
            parts = find_attachments(message)
            if len(parts) > _MOST_ATTACHED:
                raise ConnectorError(f"it has {len(parts):,} attachments, the limit is {_MOST_ATTACHED:,}")
            names = [_file_name(part, number) for number, part in enumerate(parts)]
        except Exception as error:  # as in fetch
            yield Ref(path, error=f"the mail can't be read: {error}", allow=allow)
            return
        yield Ref(path, revision, allow=allow)
        for number, name in enumerate(names):
            stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix
            name = f"{stem}#{number + 1}{suffix}" if name in names[:number] else name
            self._places[f"{path}/{name}"] = place._replace(part=number)
            yield Ref(f"{path}/{name}", revision, allow=allow)


def _outside(path: str) -> str:
    """A path of the file system beside the Message-IDs, none of which has a `#`."""
    return f"#files/{path}" if path else path


def _is_one_mail(path: PurePosixPath) -> bool:
    """Whether a file is a mail by its name, or because it lies where a Maildir has its mails."""
    return path.suffix.lower() == ".eml" or path.parent.name in ("cur", "new")


def _is_mbox(file: BufferedReader) -> bool:
    return _FROM_LINE.match(file.readline(1_000)) is not None


def _mails(file: BufferedReader, limit: int, *, alone: bool) -> Iterator[tuple[int, bytes, int]]:
    """Where each mail of a file begins, its bytes, and how many there are; over the limit the bytes are cut."""
    start, at, empty, lines, kept = 0, 0, True, list[bytes](), 0
    while line := file.readline(1 << 20):
        if empty and at > start and not alone and _FROM_LINE.match(line):
            yield start, b"".join(lines), at - start
            start, lines, kept = at, [], 0
        if kept <= limit:
            lines.append(line)
            kept += len(line)
        at += len(line)
        empty = not line.strip()
    if at > start:
        yield start, b"".join(lines), at - start


def _revision(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def _identity(data: bytes) -> str:
    head = re.split(rb"\r?\n\r?\n", data, maxsplit=1)[0]
    found = _MESSAGE_ID.search(head)
    return as_path(found[1].decode("utf-8", "replace")) if found else _revision(data)


# --- What a mail holds -------------------------------------------------------------------------------------------


def _mail(message: EmailMessage) -> Blob:
    text, media_type = extract_body(message)
    metadata = extract_headers(message)
    subject = str(metadata.get("subject", ""))
    if subject:
        metadata["title"] = subject
    return Blob(f"{heading(subject, media_type)}{text}".encode("utf-8", "replace"), media_type, metadata)


def _attachment(message: EmailMessage, number: int) -> Blob:
    part = find_attachments(message)[number]
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):  # a mail within the mail
        payload = b"\n".join(inner.as_bytes() for inner in part.iter_parts())
    kind = part.get_content_type()
    metadata = extract_headers(message) | {"attachment": single_line(part.get_filename() or "")}
    return Blob(payload, None if kind == "application/octet-stream" else kind, metadata)


def _file_name(part: MIMEPart, number: int) -> str:
    given = PurePosixPath(single_line(part.get_filename() or "").replace("\\", "/")).name
    return as_path(given) if given else f"part {number + 1}"
