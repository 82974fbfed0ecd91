from __future__ import annotations

import sys
from email.message import EmailMessage
from pathlib import Path

import pytest
from support.parsed_documents import document, headings

from ragfm.core.errors import MissingExtraError, ParseError, SkipDocument
from ragfm.core.types import Blob
from ragfm.parsing import parse


def mail(text: str = "Red is port.", **headers: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "Ada <ada@example.org>"
    message["Subject"] = "The rüles"
    message["Date"] = "Fri, 1 May 2026 10:00:00 +0200"
    for name, value in headers.items():
        message[name] = value
    message.set_content(text)
    return message


def test_a_mail_with_attachments() -> None:
    message = mail("Red is port.\n")
    message.add_attachment(b"%PDF-1.4", maintype="application", subtype="pdf", filename="list.pdf")
    parsed = document(message.as_bytes(), "a.eml")
    assert parsed.text == "# The rüles\n\nRed is port.\n\nAttachments: list.pdf"
    assert headings(parsed) == [(1, "The rüles")]
    expected = {"from": "Ada <ada@example.org>", "date": "2026-05-01T08:00:00+00:00", "attachments": "list.pdf"}
    assert expected.items() <= parsed.metadata.items()


def test_html_without_plain_text_becomes_its_visible_text() -> None:
    message = EmailMessage()
    message["Subject"] = "x"
    message.set_content("<h2>Lights</h2><ul><li>Red</ul><script>no</script>", subtype="html")
    assert document(message.as_bytes(), "a.eml").text == "# x\n\n## Lights\n\n- Red"


BLANK = ("text/plain", " \n")
PLAIN = ("text/plain", "Plain <b>.\n\nTwo &\nthree")
HTML = ("text/html", "<h2>Lights</h2><p>Red is <b>port</b>.")
PDF = ("application/pdf; name=a.pdf", "x")


def multipart(subtype: str, *parts: tuple[str, str] | EmailMessage) -> EmailMessage:
    message = EmailMessage()
    message["Content-Type"] = f"multipart/{subtype}"
    for part in parts:
        if isinstance(part, tuple):
            media_type, text = part
            part = EmailMessage()
            part["Content-Type"] = media_type
            part.set_payload(text)
        message.attach(part)
    return message


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (multipart("alternative", BLANK, HTML), "{html}"),
        (multipart("alternative", HTML, PLAIN), "{plain}"),
        (multipart("mixed", HTML, PLAIN), "{html}\n\n{plain}"),  # a list adds its footer
        (multipart("mixed", multipart("alternative", PLAIN, HTML), PLAIN), "{plain}\n\n{plain}"),
        (multipart("mixed", HTML, PDF, HTML), "{html}\n\n{html}\n\nAttachments: a.pdf"),
        (multipart("alternative", BLANK, multipart("mixed", multipart("related", HTML), HTML)), "{html}\n\n{html}"),
        (
            multipart("mixed", ("text/plain; name=a.txt", "Body"), ("text/plain; name=b.txt", "No"), PLAIN),
            "Body\n\n{plain}\n\nAttachments: a.txt, b.txt",
        ),
    ],
)
def test_text_of_several_parts(message: EmailMessage, text: str) -> None:
    message["Subject"] = "x"
    expected = text.format(html="## Lights\n\nRed is port.", plain=PLAIN[1])
    assert document(message.as_bytes(), "a.eml").text == f"# x\n\n{expected}"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8"])
def test_encodings(encoding: str) -> None:
    data = mail().as_bytes().decode().encode(encoding)
    assert "Red is port." in document(data, "a.eml").text


@pytest.mark.parametrize(
    ("charset", "body", "expected"),
    [
        ("iso-8859-1", b"The \x93price\x94 is \x80 50", "The “price” is € 50"),
        ("gb2312", "朱镕基，會議".encode("gbk"), "朱镕基，會議"),
        ("iso-8859-8-i", "שלום".encode("iso-8859-8"), "שלום"),
        ("iso-2022-jp", "日本語".encode("iso-2022-jp"), "日本語"),
        ("utf-8", "Grüße aus Köln".encode() + b" \xff", "Grüße aus Köln \ufffd"),
        ("utf-8", b"a\0b \xff", "a\ufffdb ÿ"),
        ("unknown-8bit", "Grüße".encode("cp1252"), "Grüße"),
    ],
)
def test_the_declared_charset_decodes_the_body(charset: str, body: bytes, expected: str) -> None:
    head = f"Subject: x\r\nContent-Type: text/plain; charset={charset}\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    assert document(head.encode() + body + b"\r\n", "a.eml").text == f"# x\n\n{expected}"


def test_quoted_text_is_left_out() -> None:
    text = "Agreed:\n> 18 May.\n\n25 May.\n >> is no quote\n> Bye\n"
    assert document(mail(text).as_bytes(), "a.eml").text == "# The rüles\n\nAgreed:\n\n25 May.\n >> is no quote"
    message = EmailMessage()
    message["Subject"] = "x"
    quote = "<BLOCKQUOTE type=cite>18 <b>May</b><blockquote>1 May</blockquote></BLOCKQUOTE>"
    message.set_content(f"<p>25 May.{quote}<p>Ada", subtype="html")
    assert document(message.as_bytes(), "a.eml").text == "# x\n\n25 May.\n\nAda"


def mbox(*messages: EmailMessage) -> bytes:
    start = b"From ada@example.org Fri May  1 10:00:00 2026\n"
    return b"".join(start + message.as_bytes() + b"\n" for message in messages)


@pytest.mark.parametrize("name", ["inbox", "inbox.txt", "inbox.mbox"])
def test_the_messages_of_an_mbox_are_sections(name: str) -> None:
    second = mail("Grün ist Steuerbord: République.", To="bob@example.org")
    del second["Subject"]
    encrypted = EmailMessage()
    encrypted["Content-Type"] = "multipart/encrypted; boundary=b"
    parsed = document(mbox(mail(), second, encrypted), name)
    assert parsed.media_type == "application/mbox"
    assert parsed.text == (
        "# The rüles\n\nFrom: Ada <ada@example.org>\nDate: 2026-05-01T08:00:00+00:00\n\nRed is port.\n\n"
        "# Ada <ada@example.org>\n\nFrom: Ada <ada@example.org>\nTo: bob@example.org\n"
        "Date: 2026-05-01T08:00:00+00:00\n\nGrün ist Steuerbord: République."
    )
    assert parsed.metadata["unread_messages"] == 1
    assert headings(parsed) == [(1, "The rüles"), (1, "Ada <ada@example.org>")]


def test_an_mbox_with_one_message_is_that_message() -> None:
    parsed = document(mbox(mail()), "inbox")
    assert (parsed.text, parsed.metadata["title"]) == ("# The rüles\n\nRed is port.", "The rüles")


def test_text_that_begins_like_an_mbox_is_text() -> None:
    text = "From May 2026 on, the room is closed until 10:30.\nBring your own key."
    assert document(text.encode(), "a.txt").text == text


@pytest.mark.data
def test_an_msg_without_one_of_its_parts_is_damaged(data: Path) -> None:
    pytest.importorskip("oxmsg")
    outlook = (data / "documents/docling/email/sources/msg_with_attachment.msg").read_bytes()
    name = "__substg1.0_1000001F".encode("utf-16-le")  # the body
    assert name in outlook
    damaged = outlook.replace(name, "__substg1.0_1000FFFF".encode("utf-16-le"))
    expected = r"^a\.msg is a damaged MSG: its part '__substg1\.0_1000001F' is missing\. Save the message again\.$"
    with pytest.raises(ParseError, match=expected):
        parse(Blob(damaged), "a.msg")


def test_messages_that_cannot_be_read() -> None:
    with pytest.raises(ParseError, match="no headers"):
        parse(Blob(b"\n\nHello"), "a.eml")
    with pytest.raises(SkipDocument, match="encrypted"):
        parse(Blob(b"Subject: x\nContent-Type: multipart/encrypted; boundary=b\n\n--b\n\nx\n--b--\n"), "a.eml")


@pytest.mark.data
def test_msg(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("oxmsg")
    outlook = (data / "documents/docling/email/sources/msg_with_attachment.msg").read_bytes()
    parsed = document(outlook, "a.msg")
    assert headings(parsed)
    assert parsed.metadata["attachments"]
    assert {"subject", "from", "to"} <= parsed.metadata.keys()
    with pytest.raises(ParseError, match=r"a\.msg is (a damaged MSG|named \.msg)"):
        parse(Blob(outlook[:5_000]), "a.msg")
    monkeypatch.setitem(sys.modules, "oxmsg", None)
    with pytest.raises(MissingExtraError, match=r"\.\[documents\]"):
        parse(Blob(outlook), "a.msg")
