"""Mails (EML and MSG): the subject, what the mail says, and the names of what is attached."""

from __future__ import annotations

import codecs
import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from datetime import UTC
from email import message_from_bytes
from email.header import decode_header, make_header
from email.message import EmailMessage, MIMEPart
from email.policy import EmailPolicy, default
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

from ragfm.core.errors import MissingExtraError, ParseError, SkipDocument
from ragfm.core.types import Scalar
from ragfm.parsing.media_types import decode
from ragfm.parsing.own.web.html import read_html
from ragfm.parsing.rendering import Parsed, Rendering, clean

_QUOTED = re.compile(rb"^>(>*From )", re.MULTILINE)  # how an mbox writes a line that begins with From
_LONG_HEADER = 1_000  # characters
_HEADERS = ("from", "to", "cc", "reply-to", "in-reply-to", "list-id")


def read_eml(data: bytes, name: str) -> Parsed:
    """A mail as it travels. Metadata: its headers, `date`, `attachments`. Raises ParseError, SkipDocument."""
    try:
        message = parse_message(data)
        if not message.keys():
            raise ParseError(f"{name} is no mail: it has no headers.")
        if is_encrypted(message):
            raise SkipDocument(f"{name} is encrypted.")
        text, media_type = body_of(message)
        metadata = headers_of(message)
        names = [shown(part.get_filename() or "") for part in attached(message)]
    except ParseError:
        raise
    except Exception as error:  # the standard library's parser of headers fails in many ways on what is broken
        raise ParseError(f"{name} is a damaged mail: {type(error).__name__}: {error}") from error
    return _rendered(text, media_type == "text/html", metadata, names, name)


def read_msg(data: bytes, name: str) -> Parsed:
    """A mail as Outlook keeps it. Metadata as for EML. Raises ParseError, MissingExtraError."""
    try:
        from oxmsg import Message
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"MSG needs the module {error.name!r}, which is not installed.", "Run `pip install 'ragfm[documents]'`."
        ) from error
    try:
        message = Message.load(io.BytesIO(data))
        if message.message_class.lower().startswith("ipm.note.smime") and not (message.body or message.html_body):
            raise SkipDocument(f"{name} is encrypted.")
        given = {"subject": message.subject, "from": message.sender}
        given["to"] = ", ".join(recipient.email_address or recipient.name for recipient in message.recipients)
        metadata: dict[str, Scalar] = {key: words for key, value in given.items() if (words := shown(value or ""))}
        if message.sent_date is not None:
            metadata["date"] = message.sent_date.astimezone(UTC).isoformat()
        html, text = message.html_body, message.body
        names = [shown(attachment.file_name or "") for attachment in message.attachments]
    except ParseError:
        raise
    except Exception as error:  # oxmsg doesn't say what a damaged file makes it raise
        raise ParseError(f"{name} is a damaged MSG: {type(error).__name__}: {error}") from error
    if text and text.strip():
        return _rendered(text.replace("\r\n", "\n"), False, metadata, names, name)
    return _rendered(html or "", True, metadata, names, name)


def _rendered(text: str, html: bool, metadata: dict[str, Scalar], names: Sequence[str], name: str) -> Parsed:
    rendering = Rendering()
    subject = str(metadata.get("subject", ""))
    if subject:
        rendering.heading(1, subject)
        metadata["title"] = subject
    rendering.append(read_html(text, name)._replace(metadata={}) if html else Parsed(clean(text).strip()))
    if names := [one for one in names if one]:
        metadata["attachments"] = ", ".join(names)
        rendering.block(f"Attachments: {', '.join(names)}")
    return rendering.finish(metadata)


# --- Headers -----------------------------------------------------------------------------------------------------


class _Careful(EmailPolicy):
    """The standard library's parser of headers, which hostile ones take for hours, for those of usual length."""

    def header_fetch_parse(self, name: str, value: str) -> Any:
        if len(value) <= _LONG_HEADER:
            return _header(name, value)
        if name.lower().startswith("content-"):
            raise ValueError(f"its header {name} has {len(value):,} characters, which is absurd")
        return str(make_header(decode_header("".join(value.splitlines()))))


@lru_cache(256)  # a part's type is asked for again and again
def _header(name: str, value: str) -> Any:
    return default.header_fetch_parse(name, value)


# --- Parts of a message ------------------------------------------------------------------------------------------


def parse_message(data: bytes) -> EmailMessage:
    """The message, also one that was saved in UTF-16 or out of an mbox."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:4]:
        data = (decode(data) or "").encode() or data
    if data.startswith(b"From "):
        data = _QUOTED.sub(rb"\1", data.partition(b"\n")[2])
    message = message_from_bytes(data, policy=_Careful())
    assert isinstance(message, EmailMessage)
    return message


def is_encrypted(message: EmailMessage) -> bool:
    """Whether nobody but its recipient can read it."""
    kind = message.get_content_type()
    signed = str(message.get_param("smime-type", "")).lower() == "signed-data"
    return kind == "multipart/encrypted" or (kind.endswith("pkcs7-mime") and not signed)


def body_of(message: EmailMessage) -> tuple[str, str]:
    """What the mail says, and whether that is text/plain or text/html; all plain parts where it has some."""
    body = message.get_body(("plain", "html"))
    media_type = body.get_content_type() if body is not None else "text/plain"
    text = _text(body) if body is not None else ""
    if media_type == "text/plain":
        more = [_text(part) for part in _leaves(message) if part is not body and _is_text(part, "text/plain")]
        text = "\n\n".join(part for part in (text.strip("\n"), *more) if part.strip())
    return text, media_type


def attached(message: EmailMessage) -> list[MIMEPart]:
    """What is attached; pictures that belong to the text are not."""
    return [part for part in _leaves(message) if _is_attached(part)]


def headers_of(message: EmailMessage) -> dict[str, Scalar]:
    """The headers that tell what a mail is, each in one line, and `date` in ISO 8601, UTC."""
    found: dict[str, Scalar] = {}
    for name in ("subject", *_HEADERS, "message-id"):
        with contextlib.suppress(Exception):  # a header that can't be read is none
            value = shown(str(message[name] or ""))
            if value:
                found[name.replace("-", "_")] = value
    with contextlib.suppress(Exception):
        date = parsedate_to_datetime(str(message["date"]))
        found["date"] = (date if date.tzinfo else date.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    return found


def shown(text: str) -> str:
    """A header's or a file's name in one line, without what no stored text can hold."""
    return " ".join(text.encode("utf-8", "replace").decode().replace("\0", "").split())


def _leaves(part: MIMEPart) -> Iterator[MIMEPart]:
    """The parts of a mail that have content; a mail within it is one of them."""
    if part.is_multipart() and part.get_content_maintype() != "message":
        for inner in part.iter_parts():
            if isinstance(inner, MIMEPart):
                yield from _leaves(inner)
    else:
        yield part


def _is_attached(part: MIMEPart) -> bool:
    disposition = part.get_content_disposition()
    if disposition == "attachment" or part.get_content_maintype() == "message":
        return True
    if part.get_content_maintype() == "image" and (disposition == "inline" or part["content-id"]):
        return False  # it is shown within the text
    if part.get_content_subtype() in ("pgp-signature", "pkcs7-signature", "x-pkcs7-signature"):
        return False
    return part.get_filename() is not None or part.get_content_maintype() not in ("text", "multipart")


def _is_text(part: MIMEPart, kind: str) -> bool:
    return part.get_content_type() == kind and not _is_attached(part)


def _text(part: MIMEPart) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    for charset in (part.get_content_charset(), "utf-8"):
        with contextlib.suppress(LookupError, UnicodeDecodeError):
            return payload.decode(charset or "utf-8").replace("\r\n", "\n")
    return payload.decode("cp1252", "replace").replace("\r\n", "\n")
