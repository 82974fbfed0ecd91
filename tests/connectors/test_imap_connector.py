"""The connector for IMAP, against a Dovecot server."""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
import socket
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("imapclient")

from imapclient import IMAPClient
from ragfm_connectors.imap import ImapConnector
from ragfm_connectors.mail import MailConnector
from support import dovecot
from support.dovecot import PASSWORD, TOKEN, USER, Mailbox
from support.shell import Shell, said_by

from ragfm import Collection, Ref
from ragfm.core.errors import ConfigError, ConnectorError, SourceError
from ragfm.testing import check_connector

pytestmark = pytest.mark.skipif(bool(dovecot.why_not()), reason=dovecot.why_not() or "")


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mailbox]:
    monkeypatch.setenv("MAIL_PASSWORD", PASSWORD)
    monkeypatch.setenv("MAIL_TOKEN", TOKEN)
    with dovecot.serve_mailbox() as mailbox:
        yield mailbox


def _mail(number: int | str, text: str = "The text of all.", *files: str, **headers: str) -> bytes:
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = f"Mail {number}", "Bob <bob@example.org>", USER
    message["Message-ID"], message["Date"] = f"<{number}@example.org>", "Mon, 2 Nov 2026 10:00:00 +0100"
    for key, value in headers.items():
        del message[key]
        message[key] = value
    message.set_content(text)
    for name in files:
        message.add_attachment(f"The attachment {name} of {number}.".encode(), "text", "plain", filename=name)
    return message.as_bytes()


def _put(mailbox: Mailbox, *mails: bytes, folder: str = "INBOX") -> None:
    with mailbox.client() as client:
        if not client.folder_exists(folder):
            client.create_folder(folder)
        for mail in mails:
            client.append(folder, mail)
    mailbox.asked()


def _connector(mailbox: Mailbox, path: str = "", **options: Any) -> ImapConnector:
    return ImapConnector(f"{mailbox.location}{path}", **options)


def _paths(connector: ImapConnector) -> set[str]:
    return {ref.path for ref in connector.refs() if not ref.skip}


def _bodies(mailbox: Mailbox) -> int:
    """How many emails were fetched since the last call."""
    return sum("BODY.PEEK[]" in line for line in mailbox.asked())


def _seen(collection: Collection, *groups: str) -> set[str]:
    handle = collection.as_groups(set(groups))
    uris = {info.uri for info in handle.documents()}
    assert {hit.uri for hit in handle.search("the text of all", k=99)} == uris
    return {uri.partition("mail/")[2] for uri in uris}


# --- Documents ---------------------------------------------------------------------------------------------------


def test_emails_and_attachments_are_those_of_the_mail_connector(mailbox: Mailbox, tmp_path: Path) -> None:
    nested = EmailMessage()
    nested["Subject"], nested["Message-ID"] = "Outer", "<outer@example.org>"
    nested.set_content("Outer text.")
    nested.add_alternative("<p>Outer <b>text</b>.<img src='cid:pic'></p>", subtype="html")
    nested.get_payload()[1].add_related(b"\x89PNG", "image", "png", cid="<pic>")  # type: ignore[union-attr, index]
    nested.add_attachment(b"%PDF-1.4", "application", "pdf", filename='größe, "q" und\\x.pdf')
    nested.add_attachment(_message(_mail("inner", "Inner.", "deep.txt")))
    nested.add_attachment(b"a;b", "text", "csv", filename="a.csv")
    nested.add_attachment(b"c;d", "text", "csv", filename="a.csv")
    nested.add_attachment(b"none", "application", "octet-stream")
    mails = [
        _mail(1, "Plain.", "notes.txt"),
        nested.as_bytes(),
        b"Subject: none\n\nNo identity.\n",
        b"Message-ID: <pdf@x>\nContent-Type: application/pdf; name=only.pdf\n\n%PDF\n",
        b"Message-ID: <enc@x>\nContent-Type: multipart/encrypted; boundary=b\n\n--b\n\nx\n--b--\n",
        _mail(2, "Umlaut: ä.", Subject="=?utf-8?q?Gr=C3=BC=C3=9Fe?="),
    ]
    mails = [mail.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") for mail in mails]
    _put(mailbox, *mails)
    folder = tmp_path / "cur"
    folder.mkdir()
    for number, mail in enumerate(mails):
        (folder / str(number)).write_bytes(mail)
    connector, local = _connector(mailbox), MailConnector(tmp_path)
    check_connector(connector)
    refs = {_known(ref): ref for ref in connector.refs()}
    expected = {_known(ref): ref for ref in local.refs()}
    assert refs.keys() == expected.keys() | {"#folders/Trash"}
    assert 'outer@example.org/größe, "q" und%2Fx.pdf' in refs or "outer@example.org/x.pdf" in refs
    for path, ref in expected.items():
        assert refs[path].skip == ref.skip
        if not ref.skip:
            assert connector.fetch(refs[path]) == local.fetch(ref), path


def _message(data: bytes) -> EmailMessage:
    from email import message_from_bytes, policy

    message = message_from_bytes(data, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


def _known(ref: Ref) -> str:
    return "hash" if re.fullmatch("[0-9a-f]{32}", ref.path) else ref.path


def test_folders_are_selected_by_location_and_patterns(mailbox: Mailbox) -> None:
    for number, folder in enumerate(["INBOX", "Projects/Größe", "Projects/b", "Other", "Trash"]):
        _put(mailbox, _mail(number), folder=folder)
    assert _paths(_connector(mailbox)) == {f"{number}@example.org" for number in range(4)}
    assert _paths(_connector(mailbox, "/Projects")) == {"1@example.org", "2@example.org"}
    assert _paths(_connector(mailbox, "/Projects/Gr%C3%B6%C3%9Fe")) == {"1@example.org"}
    assert _paths(_connector(mailbox, exclude=["Projects", "INBOX"])) == {"3@example.org"}
    assert _paths(_connector(mailbox, include=["Trash"])) == {"4@example.org"}
    with pytest.raises(SourceError, match="no folder 'None'"):
        list(_connector(mailbox, "/None").refs())


def test_a_larger_email_is_skipped(mailbox: Mailbox) -> None:
    _put(mailbox, _mail(1, "x" * 5000), _mail(2))
    refs = {ref.path: ref for ref in _connector(mailbox, max_bytes=3000).refs()}
    assert "the limit is 3,000" in (refs["1@example.org"].skip or "")
    assert refs["2@example.org"].skip is None


# --- Incremental runs --------------------------------------------------------------------------------------------


def test_only_what_is_new_is_fetched(mailbox: Mailbox, collection: Collection) -> None:
    _put(mailbox, *(_mail(number, "The text of all.", "a.txt") for number in range(6)))
    _put(mailbox, _mail(6), folder="Quiet")
    location = mailbox.location
    assert collection.sync(location, connector="imap", name="mail").added == 13
    assert _bodies(mailbox) == 7  # an attachment comes with its email

    report = collection.sync()
    asked = mailbox.asked()
    assert report.unchanged == 13
    assert [line.partition(" ")[0] for line in asked if line != "LOGOUT"] == ["LIST", "STATUS", "STATUS"]

    _put(mailbox, _mail(7))
    assert collection.sync().added == 1
    asked = mailbox.asked()
    assert sum("BODYSTRUCTURE" in line for line in asked) == 1
    assert sum("BODY.PEEK[]" in line for line in asked) == 1
    assert 'EXAMINE "Quiet"' not in asked

    with mailbox.client() as client:  # moved: a document is not where it lies
        client.select_folder("INBOX")
        client.move([1], "Quiet")
    mailbox.asked()
    report = collection.sync()
    assert (report.added, report.removed, report.unchanged, _bodies(mailbox)) == (0, 0, 14, 0)

    with mailbox.client() as client:
        client.select_folder("INBOX")
        client.delete_messages([2])  # marked only
        client.select_folder("Quiet")
        client.delete_messages([1])
        client.expunge()
    report = collection.sync()
    assert (report.removed, _seen(collection) & {"1@example.org", "1@example.org/a.txt", "6@example.org"}) == (3, set())
    shutil.rmtree(collection._store.folder / "listings")
    assert collection.sync().unchanged == 11  # what was remembered may be lost
    assert _bodies(mailbox) == 0


def test_a_listing_that_breaks_off_goes_on_where_it_was(
    mailbox: Mailbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _put(mailbox, *map(_mail, range(7)))
    monkeypatch.setattr("ragfm_connectors.imap._BATCH", 2)
    fetch, left = IMAPClient.fetch, [2]

    def breaking(self: IMAPClient, *words: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise IMAPClient.Error("broken")
        return fetch(self, *words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(IMAPClient, "fetch", breaking)
        refs = [ref for ref in _connector(mailbox, cache=str(tmp_path)).refs() if not ref.skip]
    assert [(ref.path, "broken" in (ref.error or "")) for ref in refs] == [("", True)]
    mailbox.asked()
    assert len(_paths(_connector(mailbox, cache=str(tmp_path)))) == 7
    assert [line.split()[2] for line in mailbox.asked() if line.startswith("UID FETCH")] == ["5,6", "7"]


def test_a_folder_that_was_created_again_is_listed_again(mailbox: Mailbox, tmp_path: Path) -> None:
    _put(mailbox, _mail(1), folder="Work")
    cache = str(tmp_path / "cache")
    assert _paths(_connector(mailbox, cache=cache)) == {"1@example.org"}
    with mailbox.client() as client:
        client.delete_folder("Work")
    _put(mailbox, _mail(2), folder="Work")  # the same UID
    connector = _connector(mailbox, cache=cache)
    assert _paths(connector) == {"2@example.org"}
    for file in (tmp_path / "cache").iterdir():
        file.write_text("[1, 2]\n{")
    assert _paths(_connector(mailbox, cache=cache)) == {"2@example.org"}
    ref = next(ref for ref in connector.refs() if not ref.skip)
    with mailbox.client() as client:
        client.select_folder("Work")
        client.delete_messages([1])
        client.expunge()
    with pytest.raises(ConnectorError, match="moved or removed"):
        connector.fetch(ref)


@pytest.mark.slow
def test_ten_thousand_emails(mailbox: Mailbox, tmp_path: Path) -> None:
    _put(mailbox, _mail("first"))
    folder = next((mailbox.folder / "mail").rglob("Maildir")) / "cur"
    for number in range(10_000):
        (folder / f"{number}.M{number}P1.host:2,S").write_bytes(_mail(number).replace(b"\n", b"\r\n"))
        shutil.chown(folder / f"{number}.M{number}P1.host:2,S", folder.owner(), folder.group())
    mailbox.asked()
    connector = _connector(mailbox, cache=str(tmp_path))
    assert len(_paths(connector)) == 10_001
    assert sum("BODYSTRUCTURE" in line for line in mailbox.asked()) == 21  # 500 at a time
    assert len(_paths(_connector(mailbox, cache=str(tmp_path)))) == 10_001
    assert not any("FETCH" in line for line in mailbox.asked())


# --- Permissions -------------------------------------------------------------------------------------------------


def test_access_lists_of_folders_decide_who_sees_an_email(
    mailbox: Mailbox, collection: Collection, tmp_path: Path
) -> None:
    _put(mailbox, _mail(1))
    _put(mailbox, _mail(2, "The text of all, too."), _mail(3), folder="Team")
    (tmp_path / "identities.toml").write_text(f'"{USER.upper()}" = "ann"\n"bob@example.org" = "bob"\n')

    def grant(folder: str, who: str, rights: str) -> None:
        with mailbox.client() as client:
            client.setacl(folder, who, rights)
        mailbox.asked()

    grant("Team", "bob@example.org", "lr")
    options = {"identities": "identities.toml"}
    collection.sync(mailbox.location, connector="imap", name="mail", options=options)
    assert _seen(collection, "ann") == {"1@example.org", "2@example.org", "3@example.org"}
    assert (_seen(collection, "bob"), _seen(collection)) == ({"2@example.org", "3@example.org"}, set())

    mailbox.asked()
    grant("Team", "bob@example.org", "l")
    grant("INBOX", "eve@example.org", "lr")
    report = collection.sync()
    assert [it.identity for it in report.unmapped] == ["eve@example.org"]
    assert (report.unchanged, _bodies(mailbox)) == (3, 0)
    assert _seen(collection, "bob") == set()
    grant("INBOX", "bob@example.org", "lr")
    with mailbox.client() as client:
        client.select_folder("Team")
        client.copy([2], "INBOX")  # in two folders
    collection.sync()
    assert _seen(collection, "bob") == {"1@example.org", "3@example.org"}

    grant("Team", "$staff", "lr")
    grant("Team", "-eve@example.org", "r")  # refused, so nobody is known to be allowed
    collection.sync()
    assert _seen(collection, "ann") == {"1@example.org", "3@example.org"}
    with mailbox.client() as client:
        client._imap.deleteacl("Team", "-eve@example.org")

    # An email with the same Message-ID opens nothing.
    _put(mailbox, _mail(2, "The forged text of all."))
    collection.sync()
    assert "2@example.org" in _seen(collection, "bob")
    assert "forged" in collection.document("mail/2@example.org").text
    texts = {hit.text for hit in collection.as_groups({"bob"}).search("the text of all", k=99)}
    assert not any("too" in text for text in texts)
    assert any("too" in hit.text for hit in collection.as_groups({"ann"}).search("the text of all", k=99))


def test_a_mailbox_is_checked_without_being_ingested(mailbox: Mailbox, tmp_path: Path) -> None:
    _put(mailbox, _mail(1), _mail(2))
    (tmp_path / "identities.toml").write_text(f'"{USER}" = "ann"\n')
    with mailbox.client() as client:
        client.setacl("INBOX", "eve@example.org", "lr")
    (tmp_path / "ragfm.toml").write_text(
        f'[[sources]]\nname = "mail"\nlocation = "{mailbox.location}"\nconnector = "imap"\n'
        'options.identities = "identities.toml"\n'
    )
    shell = Shell(tmp_path)
    shell.env |= {"MAIL_PASSWORD": PASSWORD}
    mailbox.asked()
    (found,) = shell.json("sources", "--check")["sources"]
    assert (found["listed"], found["error"], found["unmapped"]) == (2, "", ["eve@example.org"])
    assert _bodies(mailbox) == 1
    shell.env |= {"MAIL_PASSWORD": "c4nary-wrong"}
    (found,) = shell.json("sources", "--check", code=1)["sources"]
    assert "refuses the user name, password or token" in found["error"]
    assert "c4nary" not in str(found)
    assert not (tmp_path / ".ragfm").exists()


def test_an_access_list_that_cannot_be_read_keeps_what_was(
    mailbox: Mailbox, collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _put(mailbox, _mail(1))
    (tmp_path / "identities.toml").write_text(f'"{USER}" = "ann"\n')
    collection.sync(mailbox.location, connector="imap", name="mail", options={"identities": "identities.toml"})
    _put(mailbox, _mail(2))
    with monkeypatch.context() as patch:
        patch.setattr(IMAPClient, "getacl", lambda self, folder: self._command_and_check("getacl", "nowhere"))
        report = collection.sync()
    assert {(it.uri, it.stage) for it in report.failed} == {
        ("mail/1@example.org", "list"),
        ("mail/2@example.org", "list"),
    }
    assert "permissions of its folder 'INBOX' cannot be read" in report.failed[0].error
    assert _seen(collection, "ann") == {"1@example.org"}
    assert collection.sync(retry=True).failed == ()


# --- Trouble -----------------------------------------------------------------------------------------------------


def test_wrong_credentials_are_a_clear_error_without_them(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAIL_PASSWORD", "wr0ng-passw0rd")
    with pytest.raises(SourceError, match="refuses the user name, password or token") as info:
        list(_connector(mailbox).refs())
    assert "wr0ng" not in str(info.value)
    assert "may have expired" in (info.value.hint or "")
    monkeypatch.delenv("MAIL_PASSWORD")
    with pytest.raises(ConfigError, match="MAIL_PASSWORD"):
        list(_connector(mailbox).refs())


def test_a_token_opens_the_mailbox_until_it_expires(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    _put(mailbox, _mail(1))
    location = mailbox.location.replace(":${MAIL_PASSWORD}", "")
    connector = ImapConnector(location, token="${MAIL_TOKEN}")
    assert [ref.path for ref in connector.refs() if not ref.skip] == ["1@example.org"]
    capability = IMAPClient.has_capability
    monkeypatch.setattr(IMAPClient, "has_capability", lambda *words: "OAUTH" not in words[1] and capability(*words))
    assert len(list(ImapConnector(location, token="${MAIL_TOKEN}").refs())) == 2  # XOAUTH2, for older servers
    monkeypatch.undo()
    monkeypatch.setenv("MAIL_TOKEN", "exp1red-t0ken")
    for _ in range(2):
        with pytest.raises(SourceError, match="refuses the user name, password or token") as info:
            list(ImapConnector(location, token="${MAIL_TOKEN}").refs())
        assert "exp1red" not in str(info.value)
        monkeypatch.setattr(IMAPClient, "has_capability", lambda *words: "OAUTH" not in words[1] and capability(*words))


@pytest.mark.parametrize(
    ("location", "options"),
    [
        ("imaps://ann:secret@host", {}),
        ("imaps://ann@host", {}),
        ("imaps://ann@host", {"token": "secret"}),
        ("https://ann:${P}@host", {}),
        ("imaps://host", {"token": "${T}"}),
    ],
)
def test_addresses_that_are_refused(location: str, options: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as info:
        ImapConnector(location, **options)
    assert "secret@" not in str(info.value)
    assert "'secret'" not in str(info.value)


def test_a_server_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P", "passw0rd")
    with pytest.raises(SourceError, match="refused"):
        list(ImapConnector("imap://ann:${P}@127.0.0.1:9").refs())


@pytest.mark.slow
def test_interruptions_at_any_point_lose_nothing(mailbox: Mailbox, collection: Collection) -> None:
    """Connections that break at random: the connector goes on, or reports, and the next sync is complete."""
    _put(mailbox, *(_mail(number, "The text of all.", "a.txt") for number in range(8)))
    _put(mailbox, *(_mail(number) for number in range(8, 12)), folder="More")
    rng = random.Random(3)
    fetch = IMAPClient.fetch
    left = 0  # until the connection breaks
    clean = 0

    def breaking(self: IMAPClient, *words: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            left = rng.randint(0, 9)
            self.socket().shutdown(socket.SHUT_RDWR)
        return fetch(self, *words, **options)

    for _ in range(30):
        shutil.rmtree(collection._store.folder / "listings", ignore_errors=True)
        left = rng.randint(0, 9)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(IMAPClient, "fetch", breaking)
            patch.setattr("ragfm_connectors.imap._RETRIES", rng.choice([0, 3]))
            try:
                report = collection.sync(mailbox.location, connector="imap", name="mail", retry=True)
            except SourceError:
                continue
        clean += not report.failed
        assert report.removed == 0
    report = collection.sync(mailbox.location, connector="imap", name="mail", retry=True)
    assert report.failed == ()
    assert len(_seen(collection)) == 20
    assert 5 < clean < 30


def test_a_server_that_asks_to_wait_is_asked_again(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    _put(mailbox, _mail(1))
    answers = ["[LIMIT] Too many simultaneous connections", "[UNAVAILABLE] Try later"]
    status = IMAPClient.folder_status

    def busy(self: IMAPClient, *words: Any) -> Any:
        if answers:
            raise IMAPClient.Error(f"status failed: {answers.pop()}")
        return status(self, *words)

    monkeypatch.setattr(IMAPClient, "folder_status", busy)
    connector = _connector(mailbox)
    waited: list[float] = []
    connector.sleep = waited.append
    assert _paths(connector) == {"1@example.org"}
    assert waited == [1.0, 2.0]


def test_a_folder_that_cannot_be_read_removes_nothing(
    mailbox: Mailbox, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    _put(mailbox, _mail(1))
    _put(mailbox, _mail(2), folder="Locked")
    collection.sync(mailbox.location, connector="imap", name="mail")
    status = IMAPClient.folder_status

    def closed(self: IMAPClient, folder: str, *words: Any) -> Any:
        return status(self, "Nowhere" if folder == "Locked" else folder, *words)

    monkeypatch.setattr(IMAPClient, "folder_status", closed)
    report = collection.sync()
    assert (report.removed, report.unchanged) == (0, 1)
    assert "Locked" in report.failed[0].error
    assert _seen(collection) == {"1@example.org", "2@example.org"}


def test_secrets_are_nowhere(
    mailbox: Mailbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _put(mailbox, _mail(1))
    with_token = mailbox.location.replace(":${MAIL_PASSWORD}", "")
    shell = Shell(tmp_path)
    shell.env |= {"MAIL_PASSWORD": PASSWORD, "MAIL_TOKEN": TOKEN}
    options = ("--connector", "imap", "--name", "mail", "--debug")
    said = said_by(
        shell,
        (mailbox.location, *options),
        (with_token, "--option", "token=${MAIL_TOKEN}", *options),
    )
    shell.env |= {"MAIL_PASSWORD": f"{PASSWORD}x", "MAIL_TOKEN": f"{TOKEN}x"}
    done = shell("ingest", "--debug", code=3)
    said.append(done.stdout + done.stderr)
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MAIL_TOKEN", f"{TOKEN}x")
    with pytest.raises(SourceError):
        list(ImapConnector(with_token, token="${MAIL_TOKEN}").refs())
    list(_connector(mailbox).refs())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "out.tar" for path in files)
    import base64

    for secret in (PASSWORD, TOKEN, base64.b64encode(TOKEN.encode())[2:-4].decode()):
        assert secret not in "".join(said) + caplog.text + json.dumps([str(path) for path in files])
        for path in files:
            assert secret.encode() not in path.read_bytes(), path
