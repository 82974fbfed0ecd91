"""Email (EML, MSG and mbox): the subject, the body, and the names of the attachments.

What a message quotes is not part of its text: it is the statement of another message, and may have been superseded.
"""

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
from html import escape
from typing import Any, BinaryIO

from ragfm.core.errors import ParseError, SkipDocument
from ragfm.core.types import Scalar
from ragfm.parsing.media_types import MBOX_LINE
from ragfm.parsing.own.web.html import read_html
from ragfm.parsing.rendering import MarkdownBuilder, ParsedText, clean
from ragfm.parsing.text_encoding import decode

_MBOX_QUOTED = re.compile(rb"^>(>*From )", re.MULTILINE)  # how an mbox escapes a line that begins with From
_QUOTED_LINES = re.compile(r"(?:^>.*\n?)+", re.MULTILINE)
_MAX_HEADER = 1_000  # characters that the standard library's header parser gets
_HEADERS = ("from", "to", "cc", "reply-to", "in-reply-to", "references", "list-id")
_SHOWN_HEADERS = ("from", "to", "cc", "date")  # above each message of an mbox


def read_eml(data: bytes, name: str) -> ParsedText:
    """Parse an RFC 822 message. Metadata: its headers, `date`, `attachments`. Raises ParseError, SkipDocument."""
    builder = MarkdownBuilder()
    return builder.build(_add_eml(builder, data, name))


def read_mbox(data: bytes, name: str) -> ParsedText:
    """Parse the messages of an mbox, each as a section with its sender, recipients and date below the subject.

    Metadata: those of the message if there is only one; `unread_messages`, the number of damaged and encrypted ones.
    Raises the error of the first message if none can be read.
    """
    messages = [message for _, message, _ in split_messages(io.BytesIO(data), len(data))]
    if len(messages) == 1:
        return read_eml(data, name)
    builder, errors = MarkdownBuilder(), list[ParseError]()
    for number, message in enumerate(messages, 1):
        try:
            _add_eml(builder, message, f"message {number} of {name}", shown=_SHOWN_HEADERS)
        except ParseError as error:
            errors.append(error)
    if len(errors) == len(messages):
        raise errors[0]
    return builder.build({"unread_messages": len(errors)} if errors else {})


def split_messages(file: BinaryIO, max_bytes: int, *, single: bool = False) -> Iterator[tuple[int, bytes, int]]:
    """The offset, content and size of each message of an mbox or `single` message; content over the limit is cut."""
    start, offset, kept_bytes = 0, 0, 0
    after_empty_line = True
    lines: list[bytes] = []
    while line := file.readline(1 << 20):
        if after_empty_line and offset > start and not single and MBOX_LINE.match(line):
            yield start, b"".join(lines), offset - start
            start, kept_bytes, lines = offset, 0, []
        if kept_bytes <= max_bytes:
            lines.append(line)
            kept_bytes += len(line)
        offset += len(line)
        after_empty_line = not line.strip()
    if offset > start:
        yield start, b"".join(lines), offset - start


def read_msg(data: bytes, name: str) -> ParsedText:
    """Parse an Outlook message. Metadata as for EML. Raises ParseError, SkipDocument."""
    from oxmsg import Message

    try:
        message = Message.load(io.BytesIO(data))
        if message.message_class.lower().startswith("ipm.note.smime") and not (message.body or message.html_body):
            raise SkipDocument(f"{name} is encrypted.")
        recipients = ", ".join(recipient.email_address or recipient.name for recipient in message.recipients)
        metadata: dict[str, Scalar] = {}
        for key, value in (("subject", message.subject), ("from", message.sender), ("to", recipients)):
            if line := single_line(value or ""):
                metadata[key] = line
        if message.sent_date is not None:
            metadata["date"] = message.sent_date.astimezone(UTC).isoformat()
        html, text = message.html_body, message.body
        attachments = [single_line(attachment.file_name or "") for attachment in message.attachments]
    except ParseError:
        raise
    except Exception as error:  # oxmsg does not document what it raises for a damaged file
        missing = f"its part {error} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise ParseError(f"{name} is a damaged MSG: {missing}.", "Save the message again.") from error
    is_html = not (text and text.strip())
    body = without_quotes((html if is_html else text) or "", is_html=is_html)
    builder = MarkdownBuilder()
    _add_message(builder, body.replace("\r\n", "\n"), is_html, metadata, attachments, name)
    return builder.build(metadata)


def _add_eml(builder: MarkdownBuilder, data: bytes, name: str, shown: Sequence[str] = ()) -> dict[str, Scalar]:
    """Add a message with the `shown` headers. Returns its metadata."""
    try:
        message = parse_message(data)
        if not message.keys():
            raise ParseError(f"{name} is not an email: it has no headers.")
        if is_encrypted(message):
            raise SkipDocument(f"{name} is encrypted.")
        text, media_type = extract_body(message)
        metadata = extract_headers(message)
        attachments = [single_line(part.get_filename() or "") for part in find_attachments(message)]
    except ParseError:
        raise
    except Exception as error:  # the standard library's header parser fails in many ways on damaged headers
        raise ParseError(f"{name} is a damaged email: {type(error).__name__}: {error}") from error
    _add_message(builder, text, media_type == "text/html", metadata, attachments, name, shown)
    return metadata


def _add_message(
    builder: MarkdownBuilder,
    text: str,
    is_html: bool,
    metadata: dict[str, Scalar],
    attachments: Sequence[str],
    name: str,
    shown: Sequence[str] = (),
) -> None:
    """Add the text of a message; complete its metadata."""
    if subject := str(metadata.get("subject", "")):
        builder.add_heading(1, subject)
        metadata["title"] = subject
    elif shown:  # what follows does not belong to the message before
        builder.add_heading(1, str(metadata.get("from", name)))
    if headers := "\n".join(f"{key.title()}: {metadata[key]}" for key in shown if key in metadata):
        builder.add_block(headers)
    builder.add_parsed(read_html(text, name) if is_html else ParsedText(clean(text).strip()))
    if names := ", ".join(filter(None, attachments)):
        metadata["attachments"] = names
        builder.add_block(f"Attachments: {names}")


def without_quotes(text: str, *, is_html: bool) -> str:
    """The text of a message without the lines, or in HTML the elements, that it quotes from other messages."""
    if not is_html:
        return _QUOTED_LINES.sub("", text)
    if "<blockquote" not in text.lower():
        return text
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(text)
    tree.strip_tags(["blockquote"], recursive=True)
    return tree.html or ""


_parse_header = lru_cache(256)(default.header_fetch_parse)  # the type of a part is requested again and again


class _SafePolicy(EmailPolicy):
    """Parses long headers without the standard library's parser, which takes hours over hostile ones."""

    def header_fetch_parse(self, name: str, value: str) -> Any:
        if len(value) <= _MAX_HEADER:
            return _parse_header(name, value)
        if name.lower().startswith("content-"):
            raise ValueError(f"its header {name} has {len(value):,} characters; the limit is {_MAX_HEADER:,}")
        return str(make_header(decode_header("".join(value.splitlines()))))


def parse_message(data: bytes) -> EmailMessage:
    """Parse a message, including one that was saved in UTF-16 or copied from an mbox file."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:4]:
        data = (decode(data) or "").encode() or data
    if data.startswith(b"From "):
        data = _MBOX_QUOTED.sub(rb"\1", data.partition(b"\n")[2])
    message = message_from_bytes(data, policy=_SafePolicy())
    assert isinstance(message, EmailMessage)
    return message


def is_encrypted(message: EmailMessage) -> bool:
    """Whether only the recipient can read the message."""
    media_type = message.get_content_type()
    is_signed = str(message.get_param("smime-type", "")).lower() == "signed-data"
    return media_type == "multipart/encrypted" or (media_type.endswith("pkcs7-mime") and not is_signed)


def extract_body(message: EmailMessage) -> tuple[str, str]:
    """Return the text of a message and its media type: text/plain, or text/html if HTML has no plain alternative."""
    texts = _body_texts(message, message.get_body(("plain", "html")))
    if not any(is_html for _, is_html in texts):
        return "\n\n".join(text.strip("\n") for text, _ in texts), "text/plain"
    pages = []
    for text, is_html in texts:
        paragraphs = escape(text.strip("\n")).replace("\n\n", "<p>").replace("\n", "<br>")
        pages.append(text if is_html else f"<p>{paragraphs}</p>")
    return "<hr>".join(pages), "text/html"


def _body_texts(part: MIMEPart, body: MIMEPart | None) -> list[tuple[str, bool]]:
    """The texts of a part, and whether each is HTML; `body` is one even if it has a file name.

    Of alternatives, those in plain text are taken, or else the first that has text.
    """
    if not part.is_multipart():
        media_type = part.get_content_type()
        if media_type not in ("text/plain", "text/html") or (part is not body and _is_attachment(part)):
            return []
        is_html = media_type == "text/html"
        payload = part.get_payload(decode=True)
        payload = payload if isinstance(payload, bytes) else b""
        text = decode(payload, part.get_content_charset())
        if text is None:
            text = payload.decode("cp1252", "replace").replace("\r\n", "\n")
        text = without_quotes(text, is_html=is_html)
        return [(text, is_html)] if text.strip() else []
    if part.get_content_maintype() == "message":
        return []
    found = [
        texts for inner in part.iter_parts() if isinstance(inner, MIMEPart) and (texts := _body_texts(inner, body))
    ]
    if part.get_content_type() == "multipart/alternative":
        found = [texts for texts in found if not any(is_html for _, is_html in texts)] or found[:1]
    return [text for texts in found for text in texts]


def find_attachments(message: EmailMessage) -> list[MIMEPart]:
    """Return the attachments of a message; images that are shown within its text are not included."""
    return [part for part in _leaf_parts(message) if _is_attachment(part)]


def extract_headers(message: EmailMessage) -> dict[str, Scalar]:
    """Return the descriptive headers, each in one line, and `date` in ISO 8601, UTC."""
    headers: dict[str, Scalar] = {}
    for name in ("subject", *_HEADERS, "message-id"):
        with contextlib.suppress(Exception):  # skip a header that cannot be parsed
            if value := single_line(str(message[name] or "")):
                headers[name.replace("-", "_")] = value
    with contextlib.suppress(Exception):
        date = parsedate_to_datetime(str(message["date"]))
        headers["date"] = (date if date.tzinfo else date.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    return headers


def single_line(text: str) -> str:
    """Return a header or a file name in one line, without characters that cannot be stored."""
    return " ".join(text.encode("utf-8", "replace").decode().replace("\0", "").split())


def _leaf_parts(part: MIMEPart) -> Iterator[MIMEPart]:
    """The parts of a message that have content; an attached message is one part."""
    if part.is_multipart() and part.get_content_maintype() != "message":
        for inner in part.iter_parts():
            if isinstance(inner, MIMEPart):
                yield from _leaf_parts(inner)
    else:
        yield part


def _is_attachment(part: MIMEPart) -> bool:
    disposition = part.get_content_disposition()
    if disposition == "attachment" or part.get_content_maintype() == "message":
        return True
    if part.get_content_maintype() == "image" and (disposition == "inline" or part["content-id"]):
        return False  # shown within the text
    if part.get_content_subtype() in ("pgp-signature", "pkcs7-signature", "x-pkcs7-signature"):
        return False
    return part.get_filename() is not None or part.get_content_maintype() not in ("text", "multipart")
