"""Emails in mbox files, Maildir folders and `.eml` files, and their attachments."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from email.message import EmailMessage, MIMEPart
from hashlib import blake2b
from pathlib import PurePosixPath

from ragfm.core.errors import ConnectorError
from ragfm.core.types import Blob, Ref
from ragfm.parsing.media_types import is_mbox
from ragfm.parsing.own.web.mail_message import (
    extract_body,
    extract_headers,
    find_attachments,
    is_encrypted,
    parse_message,
    single_line,
    split_messages,
)
from ragfm_connectors.files import FilesConnector
from ragfm_connectors.records import as_path, heading

_MESSAGE_ID = re.compile(  # the value may be in the next line, which then begins with a space
    rb"^message-id:(?:[ \t]|\r?\n[ \t])*(?:<([^<>\r\n]+)>|<?([^\s<>]+))", re.IGNORECASE | re.MULTILINE
)
_MAX_ATTACHMENTS = 1_000
_MAX_EXAMPLES = 3  # of files that cannot be read


class MailConnector:
    """All emails in a folder at any depth, in an mbox file, or in a single `.eml`.

    The path of an email is its Message-ID, so an email stored twice is one document; without a Message-ID it is a
    hash of the email. The text is the subject, then all parts of the body: of alternatives, the plain text if it
    is not empty, or else the HTML. An attachment has the path `<Message-ID>/<file name>`; inline images are left out.
    Headers become metadata.

    Encrypted emails and emails larger than `max_bytes` are skipped. An email that cannot be read does not affect the
    others.
    """

    def __init__(
        self,
        location: str | os.PathLike[str],
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        max_bytes: int = 100 * 2**20,
    ) -> None:
        """`include` and `exclude` are patterns for files, not for mails. Raises SourceError and ConfigError."""
        # The names of Maildir subfolders begin with a dot.
        self._files = FilesConnector(
            location, include=include, exclude=exclude, hidden=True, archives=False, max_bytes=sys.maxsize
        )
        self.root = self._files.root
        """The absolute path of the folder or file."""
        self.covers = self._files.covers
        self._max_bytes = max_bytes
        # By path: file, start, size, and the number of the attachment within the email; None for the email itself.
        self._positions: dict[str, tuple[Ref, int, int, int | None]] = {}
        self._last_mail: tuple[bytes, EmailMessage] | None = None  # attachments are fetched after their mail

    def refs(self) -> Iterator[Ref]:
        """All emails and attachments, with a hash of the email as revision. Raises SourceError."""
        self._positions, problems = {}, []
        for file in self._files.refs():
            if file.skip is not None:
                yield Ref(_file_entry(file.path), skip=file.skip)
            elif file.error is not None:
                problems.append(f"{file.path}: {file.error}")
            else:
                try:
                    yield from self._list_file(file)
                except ConnectorError as error:
                    problems.append(error.message)
        if problems:  # the emails in these files are unknown, so no email counts as removed
            more = " …" if len(problems) > _MAX_EXAMPLES else ""
            yield Ref("", error=f"not all files can be read: {'; '.join(problems[:_MAX_EXAMPLES])}{more}")

    def fetch(self, ref: Ref) -> Blob:
        """The text of an email, or the bytes of an attachment. Raises ConnectorError if it is gone or has changed."""
        if ref.path not in self._positions:
            list(self.refs())
        if ref.path not in self._positions:
            raise ConnectorError(f"The email {ref.path!r} no longer exists.", "The next ingest removes it.")
        listed, start, size, attachment = self._positions[ref.path]
        with self._files.open(listed) as file:
            file.seek(start)
            data = file.read(size)
        if _hash(data) != ref.revision:
            raise ConnectorError(
                f"The email {ref.path!r} has changed since it was listed.", "The next ingest reads it again."
            )
        if self._last_mail is None or self._last_mail[0] != data:
            self._last_mail = (data, parse_message(data))
        return mail_blob(ref.path, self._last_mail[1], attachment)

    def _list_file(self, file: Ref) -> Iterator[Ref]:
        file_path = PurePosixPath(self.root, file.path)
        in_maildir = file_path.parent.name in ("cur", "new")
        single = in_maildir or file_path.suffix.lower() == ".eml"
        with self._files.open(file) as opened:
            if not single and not is_mbox(opened.read(2_000)):
                yield Ref(_file_entry(file.path), skip="neither an email nor an mbox file")
                return
            opened.seek(0)
            for start, data, size in split_messages(opened, self._max_bytes, single=single):
                headers = re.split(rb"\r?\n\r?\n", data, maxsplit=1)[0]
                revision = _hash(data)
                path = message_id(headers) or revision
                if path in self._positions or not data.strip():
                    continue  # the same mail in another folder
                self._positions[path] = file, start, size, None
                if size > self._max_bytes:
                    yield Ref(path, skip=f"{size:,} bytes; the limit is {self._max_bytes:,} (`files.max_mb`)")
                    continue
                try:
                    message = parse_message(data)
                    if not message.keys():
                        raise ConnectorError("it has no headers")
                    if is_encrypted(message):
                        yield Ref(path, skip="it is encrypted")
                        continue
                    names = attachment_names(find_attachments(message))
                except Exception as error:  # as in mail_blob
                    yield Ref(path, error=f"the email cannot be read: {error}", allow=file.allow)
                    continue
                yield Ref(path, revision, allow=file.allow)
                for number, name in enumerate(names):
                    self._positions[f"{path}/{name}"] = file, start, size, number
                    yield Ref(f"{path}/{name}", revision, allow=file.allow)


def message_id(headers: bytes) -> str:
    """The Message-ID of an email as a path; empty if it has none."""
    found = _MESSAGE_ID.search(headers)
    return as_path((found[1] or found[2]).strip().decode("utf-8", "replace")) if found else ""


def attachment_names(parts: Sequence[MIMEPart]) -> list[str]:
    """A distinct name, as a part of a path, for each attachment. Raises ConnectorError if there are too many."""
    if len(parts) > _MAX_ATTACHMENTS:
        raise ConnectorError(f"it has {len(parts):,} attachments; the limit is {_MAX_ATTACHMENTS:,}")
    names: list[str] = []
    for number, part in enumerate(parts, 1):
        name = PurePosixPath(single_line(part.get_filename() or "").replace("\\", "/")).name
        names.append(as_path(name) if name else f"part {number}")
    return [
        f"{PurePosixPath(name).stem}#{number + 1}{PurePosixPath(name).suffix}" if name in names[:number] else name
        for number, name in enumerate(names)
    ]


def mail_blob(path: str, message: EmailMessage, attachment: int | None) -> Blob:
    """The text of an email, or the attachment of that number, with the headers as metadata. Raises ConnectorError."""
    try:
        metadata = extract_headers(message)
        if attachment is None:
            text, media_type = extract_body(message)
            subject = str(metadata.get("subject", ""))
            if subject:
                metadata["title"] = subject
            data = f"{heading(subject, media_type)}{text}".encode("utf-8", "replace")
            return Blob(data, media_type, metadata, written=True)
        part = find_attachments(message)[attachment]
        payload = part.get_payload(decode=True)
        if not isinstance(payload, bytes):  # an email within the email
            payload = b"\n".join(inner.as_bytes() for inner in part.iter_parts())
        part_type = part.get_content_type()
        metadata["attachment"] = single_line(part.get_filename() or "")
        return Blob(payload, None if part_type == "application/octet-stream" else part_type, metadata)
    except Exception as error:  # the standard library raises many kinds of errors for broken headers
        raise ConnectorError(f"The email {path!r} cannot be read: {type(error).__name__}: {error}.") from error


def _file_entry(path: str) -> str:
    """The path for a file that is not an email; no Message-ID contains a `#`."""
    return f"#files/{path}" if path else path


def _hash(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
