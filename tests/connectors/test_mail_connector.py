"""The connector for mails of mbox files, Maildir folders and `.eml` trees."""

from __future__ import annotations

import mailbox
import shutil
import time
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from ragfm_connectors import mail
from ragfm_connectors.mail import MailConnector

from ragfm import Collection, Ref
from ragfm.core.errors import ConnectorError, MassDeleteError, SourceError
from ragfm.testing import check_connector


def message(number: int, body: str = "", *attachments: tuple[str, bytes]) -> EmailMessage:
    made = EmailMessage()
    made["Message-ID"] = f"<{number}@example.org>"
    made["Subject"] = f"Grüße number {number}"
    made["From"], made["To"] = "Ann <ann@example.org>", "bob@example.org"
    made["Date"] = "Tue, 03 Mar 2026 10:00:00 +0200"
    made.set_content(body or f"This is mail number {number}.\n\nFrom here on it is about trees.")
    for name, data in attachments:
        made.add_attachment(data, maintype="application", subtype="octet-stream", filename=name)
    return made


def mbox(path: Path, *messages: EmailMessage) -> Path:
    path.unlink(missing_ok=True)
    box = mailbox.mbox(path)
    for one in messages:
        box.add(one)
    box.close()
    return path


def listed(location: Path, **options: Any) -> dict[str, Ref]:
    return {ref.path: ref for ref in MailConnector(location, **options).refs()}


def test_mails_of_an_mbox(tmp_path: Path) -> None:
    path = mbox(tmp_path / "box", message(1), message(2, "See it.", ("notes.md", b"# Notes"), ("a.bin", b"\0")))
    connector = MailConnector(path)
    refs = {ref.path: ref for ref in connector.refs()}
    assert list(refs) == ["1@example.org", "2@example.org", "2@example.org/notes.md", "2@example.org/a.bin"]
    blob = connector.fetch(refs["1@example.org"])
    assert blob.data.decode() == "Grüße number 1\n\nThis is mail number 1.\n\nFrom here on it is about trees."
    assert blob.media_type == "text/plain"
    assert blob.metadata == {
        "title": "Grüße number 1",
        "subject": "Grüße number 1",
        "from": "Ann <ann@example.org>",
        "to": "bob@example.org",
        "message_id": "<1@example.org>",
        "date": "2026-03-03T08:00:00+00:00",
    }
    notes = connector.fetch(refs["2@example.org/notes.md"])
    assert (notes.data, notes.media_type) == (b"# Notes", None)
    assert (notes.metadata["attachment"], notes.metadata["subject"]) == ("notes.md", "Grüße number 2")
    check_connector(connector)


def test_the_domain_of_a_message_id_is_no_format(tmp_path: Path, collection: Collection) -> None:
    domains = ["example.org", "example.md", "example.rs", "example.sh", "example.doc"]
    mails = [f"Message-ID: <1@{domain}>\n\n# One\n\n* Elms grow.\n" for domain in domains]
    path = tmp_path / "box"
    path.write_text("\n".join(f"From a Thu Jan  1 00:00:00 2026\n{mail}" for mail in mails))
    assert collection.sync(path, connector="mail").failed == ()
    documents = [collection.document(info.uri) for info in collection.documents()]
    assert {(document.text.strip(), document.media_type) for document in documents} == {
        ("# One\n\n* Elms grow.", "text/plain")
    }
    report = collection.sync()
    assert (report.unchanged, report.chunks, collection.status().older) == (5, 0, 0)


def test_what_a_mail_quotes_is_not_part_of_its_text(tmp_path: Path, collection: Collection) -> None:
    first = message(1, "The report is due on 18 May.")
    second = message(
        2, "It is due on 25 May.\n\nOn Tuesday, Ann wrote:\n> The report is due on 18 May.\n>> Until when?\n"
    )
    collection.sync(mbox(tmp_path / "box", first, second), connector="mail")
    dated = {hit.uri.rpartition("/")[2] for hit in collection.search("18 May", mode="keyword") if "18" in hit.text}
    assert dated == {"1@example.org"}
    assert "25 May" in collection.document("box/2@example.org").text


def test_a_maildir_with_its_subfolders(tmp_path: Path) -> None:
    box = mailbox.Maildir(tmp_path / "Mail")
    box.add(message(1))
    box.add_folder("Sent").add(message(2))
    box.add_folder("Sent").add(message(1))  # once more
    (tmp_path / "Mail/cur/x").write_bytes(message(3).as_bytes())
    (tmp_path / "Mail/tmp/y").write_bytes(message(4).as_bytes())
    found = listed(tmp_path / "Mail")
    assert sorted(path for path, ref in found.items() if ref.skip is None) == [f"{n}@example.org" for n in (1, 2, 3)]
    check_connector(MailConnector(tmp_path / "Mail"))


def test_a_tree_of_single_mails_and_who_may_see_them(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "one.eml").write_bytes(message(1).as_bytes())
    (tmp_path / "in/two.EML").write_bytes(message(2).as_bytes())
    (tmp_path / "in/.ragfm-access").write_text("hr\n")
    (tmp_path / "in/readme.txt").write_text("no mail")
    found = listed(tmp_path)
    assert found["1@example.org"].allow is None
    assert found["2@example.org"].allow == ("hr",)
    assert found["#files/in/readme.txt"].skip == "neither an email nor an mbox file"
    assert list(listed(tmp_path / "one.eml")) == ["1@example.org"]
    shutil.copy(tmp_path / "in/two.EML", tmp_path / "copy.eml")
    assert len([path for path in listed(tmp_path) if path == "2@example.org"]) == 1


@pytest.mark.parametrize(
    ("headers", "identity"),
    [
        ("Message-ID:\nFrom: ann@example.org", None),
        ("Message-ID: \r\nFrom: ann@example.org", None),
        ("Message-ID: <>\nFrom: ann@example.org", None),
        ("Message-ID:\r\n <1@example.org>\r\nFrom: ann@example.org", "1@example.org"),
        ("Message-ID: 1@example.org", "1@example.org"),
        ("Message-ID: <no 1 of 2@example.org>", "no 1 of 2@example.org"),
    ],
)
def test_message_ids(tmp_path: Path, headers: str, identity: str | None) -> None:
    (tmp_path / "1.eml").write_bytes(f"{headers}\nSubject: Oaks\n\nOaks grow slowly.\n".encode())
    (ref,) = MailConnector(tmp_path).refs()
    assert ref.path == (identity or ref.revision)


def test_a_paragraph_that_begins_with_from_and_a_time_is_text(tmp_path: Path) -> None:
    text = b"Hello.\n\nFrom 10:30 to 12:00 the room is closed.\n"
    headers = b"Message-ID: <%d@example.org>\nSubject: Room\n\n"
    start = b"From ann@example.org Mon Mar  2 10:00:00 2026\n"
    (tmp_path / "box").write_bytes(b"".join(start + headers % number + text + b"\n" for number in (1, 2)))
    connector = MailConnector(tmp_path / "box")
    refs = list(connector.refs())
    assert [ref.path for ref in refs] == ["1@example.org", "2@example.org"]
    assert b"the room is closed" in connector.fetch(refs[0]).data


def test_archives_next_to_mails_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "1.eml").write_bytes(bytes(message(1)))
    with ZipFile(tmp_path / "old.zip", "w") as archive:
        archive.write(tmp_path / "1.eml", "1.eml")
    found = listed(tmp_path)
    assert list(found) == ["1@example.org", "#files/old.zip"]
    assert not any(ref.error for ref in found.values())


def test_html_and_pictures_and_other_parts(tmp_path: Path) -> None:
    made = message(1)
    made.clear_content()
    made.set_content("<p>Only <b>HTML</b></p>", subtype="html")
    made.add_related(b"\x89PNG", "image", "png", cid="<logo>")
    (tmp_path / "x.eml").write_bytes(made.as_bytes())
    connector = MailConnector(tmp_path / "x.eml")
    (ref,) = connector.refs()
    assert connector.fetch(ref).data.decode() == "<h1>Grüße number 1</h1>\n<p>Only <b>HTML</b></p>\n"
    inner = message(3)
    outer = message(2)
    outer.add_attachment(inner)
    outer.add_attachment("more", filename="../../../etc/passwd")
    outer.add_attachment("most", filename="passwd")
    (tmp_path / "x.eml").write_bytes(outer.as_bytes())
    paths = [ref.path for ref in connector.refs()]
    assert paths == [f"2@example.org{rest}" for rest in ("", "/part 1", "/passwd", "/passwd#3")]
    assert b"mail number 3" in connector.fetch(list(connector.refs())[1]).data
    check_connector(connector)


def test_broken_mails_fail_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "binary.eml").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "empty.eml").write_bytes(b"")
    (tmp_path / "big.eml").write_bytes(message(9, "x" * 9_000).as_bytes())
    (tmp_path / "good.eml").write_bytes(message(1).as_bytes())
    found = listed(tmp_path, max_bytes=5_000)
    assert len(found) == 3
    assert "the limit is 5,000" in (found["9@example.org"].skip or "")
    assert [ref.error for ref in found.values() if ref.error] == ["the email cannot be read: it has no headers"]
    monkeypatch.setattr(mail, "find_attachments", lambda _: [].pop())
    assert "cannot be read" in (listed(tmp_path)["1@example.org"].error or "")
    (tmp_path / "good.eml").write_bytes(b"Message-ID: <1@x>\nContent-Type: text/plain; charset=nonsense\n\ncaf\xe9")
    monkeypatch.undo()
    assert (
        MailConnector(tmp_path / "good.eml").fetch(next(MailConnector(tmp_path / "good.eml").refs())).data
        == "café".encode()
    )


def test_hostile_mails_cost_little(tmp_path: Path) -> None:
    begin = b"From: a@b.c\nMessage-ID: <%d@x>\n"
    part = b"--b\nContent-Type: image/x; name=a\n\nx\n"
    hostile = [
        b"Content-Type: text/plain; " + b"a=b; " * 40_000 + b"\n\nhi",
        b"Content-Type: multipart/mixed; boundary=b\n\n" + part * 1_001 + b"--b--\n",
        b"To: " + b'"' * 200_000 + b"\n\nhi",
        b"Subject: =?utf-8?q?caf=C3=A9?= " + b"(" * 200_000 + b"\n\nhi",
    ]
    for number, mail_of in enumerate(hostile):
        (tmp_path / f"{number}.eml").write_bytes(begin % number + mail_of)
    began = time.process_time()
    connector = MailConnector(tmp_path)
    found = {ref.path: ref for ref in connector.refs()}
    assert "Content-Type has 200,012 characters" in (found["0@x"].error or "")
    assert "1,001 attachments" in (found["1@x"].error or "")
    assert connector.fetch(found["2@x"]).data == b"hi"
    assert str(connector.fetch(found["3@x"]).metadata["subject"]).startswith("café ((((")
    assert time.process_time() - began < 5


def test_fetching_a_changed_mail_fails(tmp_path: Path) -> None:
    connector = MailConnector(mbox(tmp_path / "box", message(1), message(2)))
    refs = list(connector.refs())
    mbox(tmp_path / "box", message(2))
    for ref in refs:
        with pytest.raises(ConnectorError, match="changed"):
            connector.fetch(ref)
    with pytest.raises(ConnectorError, match="mail 'none' no longer exists"):
        connector.fetch(Ref("none"))


def test_sync_adds_changes_and_deletes(tmp_path: Path, collection: Collection) -> None:
    path = mbox(tmp_path / "box", message(1), message(2), message(3, "See it.", ("n.md", b"Elm trees")))
    assert collection.sync(path, connector="mail").added == 4
    assert collection.search("elm", mode="keyword")[0].uri == "box/3@example.org/n.md"
    mbox(path, message(4), message(2, "Now about oaks."), message(3, "See it.", ("n.md", b"Elm trees")))
    report = collection.sync()
    assert (report.added, report.updated, report.removed, report.unchanged) == (1, 1, 1, 2)
    mbox(path, message(3, "See it.", ("n.md", b"Elm trees")), message(4), message(2, "Now about oaks."))
    assert collection.sync().unchanged == 4  # in another order, at other places
    path.unlink()
    with pytest.raises(SourceError):
        collection.sync(path)
    mbox(path, message(4))
    with pytest.raises(MassDeleteError):
        collection.sync(path)
    assert len(collection.documents()) == 4


def test_an_mbox_that_goes_away_in_the_middle(
    tmp_path: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mails").mkdir()
    for name in ("one", "two"):
        mbox(tmp_path / "mails" / name, *(message(n + 10 * (name == "two")) for n in range(3)))
    collection.sync(tmp_path / "mails", connector="mail")
    read = mail.split_messages

    def breaking(*given: Any, **options: Any) -> Iterator[Any]:
        yield next(read(*given, **options))
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(mail, "split_messages", breaking)
    report = collection.sync(tmp_path / "mails")
    assert (report.removed, report.unchanged, len(report.failed)) == (0, 2, 1)
    assert report.failed[0].error.count("Input/output error") == 2
    assert len(collection.documents()) == 6
    monkeypatch.undo()
    report = collection.sync(tmp_path / "mails")
    assert (report.unchanged, report.failed) == (6, ())


@pytest.mark.data
def test_real_mails(data: Path, collection: Collection, tmp_path: Path) -> None:
    shutil.copytree(data / "documents/unstructured/eml", tmp_path / "eml")
    connector = MailConnector(tmp_path / "eml")
    check_connector(connector)
    refs = list(connector.refs())
    errors = {connector._positions[ref.path][0].path for ref in refs if ref.error}
    assert errors == set()  # two are in UTF-16 without the mark that says so
    assert [ref.path for ref in refs if ref.skip == "it is encrypted"]
    mails = [ref for ref in refs if not ref.error and not ref.skip]
    assert len(mails) > 40
    assert all(connector.fetch(ref).data for ref in mails)
    box = mailbox.mbox(tmp_path / "box")
    for path in sorted((tmp_path / "eml").glob("*.eml")):
        box.add(path.read_bytes())
    box.close()
    again = {ref.path for ref in MailConnector(tmp_path / "box").refs() if not ref.error and "@" in ref.path}
    assert {ref.path for ref in mails if "@" in ref.path} <= again
    media = ["*image*", "*mp3*", "mime-no-body.eml", "*2014-03-17*"]  # to hear and to read pictures takes 20 seconds
    report = collection.sync(tmp_path / "eml", connector="mail", exclude=media)
    assert report.added > 30
    found = collection.search("family day picnic", mode="keyword")
    assert found[0].uri.endswith("@mail.gmail.com")
