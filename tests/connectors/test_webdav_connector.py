"""The connector for WebDAV, against wsgidav over HTTP."""

from __future__ import annotations

import json
import logging
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest

pytest.importorskip("wsgidav", reason="wsgidav is not installed (extra dev)")

from ragfm_connectors import webdav
from ragfm_connectors.web_client import Page
from ragfm_connectors.webdav import WebdavConnector
from support.shell import Shell, said_by
from support.webdav import PASSWORD, TOKEN, Share, serve_share
from urllib3 import HTTPHeaderDict

from ragfm import Collection
from ragfm.core.errors import ConfigError, ConnectorError, SourceError
from ragfm.testing import check_connector


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Share]:
    monkeypatch.setenv("DAV_PASSWORD", PASSWORD)
    monkeypatch.setenv("DAV_TOKEN", TOKEN)
    (tmp_path / "share").mkdir()
    with serve_share(tmp_path / "share") as share:
        yield share


def _put(share: Share, path: str, text: str = "The text of all.") -> None:
    file = share.folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _connector(share: Share, path: str = "", **options: Any) -> WebdavConnector:
    connector = WebdavConnector(f"{share.location}{path}", **options)
    connector._client.sleep = lambda seconds: None
    return connector


def _paths(connector: WebdavConnector) -> set[str]:
    return {ref.path for ref in connector.refs() if not ref.skip and not ref.error}


def _sync(share: Share, collection: Collection, **options: Any) -> Any:
    return collection.sync(share.location, connector="webdav", name="dav", options=options)


def _seen(collection: Collection, *groups: str) -> set[str]:
    handle = collection.as_groups(set(groups))
    uris = {info.uri for info in handle.documents()}
    assert {hit.uri for hit in handle.search("the text of all", k=99)} == uris
    return {uri.removeprefix("dav/") for uri in uris}


# --- Documents ---------------------------------------------------------------------------------------------------


def test_files_and_folders(share: Share) -> None:
    names = ["a.md", "sub/größe & 100%.txt", "sub/deep/c#d?e.txt", "sub/+x;y=1.txt", ".hidden/x.txt", "big.txt"]
    for name in names:
        _put(share, name)
    _put(share, "big.txt", "x" * 2000)
    connector = _connector(share, max_bytes=1000)
    check_connector(connector)
    assert _paths(connector) == set(names[:4])
    assert {ref.path: ref.skip for ref in connector.refs() if ref.skip} == {
        ".hidden": "hidden",
        "big.txt": "2,000 bytes; the limit is 1,000 (`files.max_mb`)",
    }
    for ref in connector.refs():
        if not ref.skip:
            blob = connector.fetch(ref)
            assert blob.data == b"The text of all."
            assert str(blob.metadata["modified"]).startswith("20")
    assert _paths(_connector(share, "/sub/")) == {"größe & 100%.txt", "deep/c#d?e.txt", "+x;y=1.txt"}
    assert _paths(_connector(share, "/a.md")) == {""}
    assert _paths(_connector(share, include=["deep"])) == {"sub/deep/c#d?e.txt"}
    assert _paths(_connector(share, hidden=True, exclude=["sub"])) == {"a.md", ".hidden/x.txt", "big.txt"}
    with pytest.raises(SourceError, match="no such file or folder"):
        list(_connector(share, "/none").refs())


def test_access_files_apply(share: Share) -> None:
    _put(share, "open.txt")
    _put(share, "hr/pay.txt")
    _put(share, "hr/.ragfm-access", "hr\nboard")
    assert {ref.path: ref.allow for ref in _connector(share).refs()} == {
        "open.txt": None,
        "hr/pay.txt": ("board", "hr"),
    }
    share.answer = lambda method, path: ("403 Forbidden", {}) if path.endswith("access") else None
    refs = {ref.path: ref for ref in _connector(share).refs()}
    assert refs["hr/pay.txt"].allow == ()
    assert "closed to all groups" in (refs["hr/.ragfm-access"].error or "")


# --- Incremental runs --------------------------------------------------------------------------------------------


def test_only_changes_are_fetched(share: Share, collection: Collection) -> None:
    for number in range(6):
        _put(share, f"f{number % 2}/{number}.txt", f"The text of all {number}.")
    assert _sync(share, collection).added == 6
    assert len(share.asked("GET")) == 6
    assert collection.sync().unchanged == 6
    assert share.asked("GET") == []

    _put(share, "f0/0.txt", "The new text of all.")
    _put(share, "f2/new.txt")
    (share.folder / "f1/1.txt").unlink()
    (share.folder / "f1/3.txt").rename(share.folder / "f2/moved.txt")
    report = collection.sync()
    assert (report.added, report.updated, report.removed, report.unchanged) == (2, 1, 2, 3)
    assert sorted(share.asked("GET")) == ["f0/0.txt", "f2/moved.txt", "f2/new.txt"]
    assert _seen(collection) == {"f0/0.txt", "f0/2.txt", "f0/4.txt", "f1/5.txt", "f2/moved.txt", "f2/new.txt"}


def test_a_file_that_changes_after_the_listing_is_read_by_the_next_ingest(share: Share) -> None:
    _put(share, "a.txt")
    connector = _connector(share)
    (ref,) = connector.refs()
    _put(share, "a.txt", "Something longer than it was.")
    with pytest.raises(ConnectorError, match="has changed since it was listed"):
        connector.fetch(ref)
    (share.folder / "a.txt").unlink()
    with pytest.raises(ConnectorError, match="no such file"):
        connector.fetch(ref)


def _listing(count: int) -> bytes:
    entry = (
        "<D:response><D:href>/docs/{0}</D:href><D:propstat><D:prop><D:getetag>{0}</D:getetag></D:prop>"
        "<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
    )
    return f'<D:multistatus xmlns:D="DAV:">{"".join(map(entry.format, range(count)))}</D:multistatus>'.encode()


def test_memory_beyond_the_answer_does_not_grow_with_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P", "x")
    connector = WebdavConnector("https://a:${P}@dav.example.org/docs")
    peaks = []
    for count in (1_000, 10_000):
        page = Page("", 207, HTTPHeaderDict(), _listing(count))
        monkeypatch.setattr(connector._client, "send", lambda *words, page=page: page)
        tracemalloc.start()
        assert sum(1 for _ in connector._list("")) == count
        peaks.append(tracemalloc.get_traced_memory()[1] - len(page.data))
        tracemalloc.stop()
    assert peaks[1] < 4 * peaks[0] + 2**20


@pytest.mark.slow
def test_ten_thousand_files(share: Share) -> None:
    for number in range(10_000):
        _put(share, f"d{number % 20}/{number}.txt")
    assert len(_paths(_connector(share))) == 10_000
    assert len(share.asked("PROPFIND")) == 21


# --- Permissions -------------------------------------------------------------------------------------------------


def test_access_lists_decide_who_sees_a_file(share: Share, collection: Collection, tmp_path: Path) -> None:
    (tmp_path / "identities.toml").write_text(
        '"/principals/groups/hr" = "hr"\n"/principals/users/ann" = "ann"\n"all" = "*"\n'
    )
    for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
        _put(share, name)
    share.allow("a.txt", "+all")
    share.allow("b.txt", "+/principals/groups/hr/", "+/principals/users/eve")
    share.allow("c.txt", "+/principals/users/ann", "-/principals/users/eve", "+all")  # the refusal comes first
    share.allow("d.txt")
    report = _sync(share, collection, identities="identities.toml")
    assert [it.identity for it in report.unmapped] == ["/principals/users/eve"]
    assert _seen(collection) == {"a.txt"}
    assert _seen(collection, "hr") == {"a.txt", "b.txt"}
    assert _seen(collection, "ann") == {"a.txt", "c.txt"}

    share.asked("GET")
    share.allow("a.txt", "+/principals/users/ann")
    share.allow("d.txt", "+/principals/groups/hr")
    report = collection.sync()
    assert (report.unchanged, share.asked("GET")) == (4, [])
    assert _seen(collection) == set()
    assert _seen(collection, "hr") == {"b.txt", "d.txt"}
    assert _seen(collection, "ann") == {"a.txt", "c.txt"}

    del share.acls["b.txt"]  # it cannot be read any more
    report = collection.sync()
    assert [(it.uri, it.stale) for it in report.failed] == [("dav/b.txt", True)]
    assert "DAV:acl" in report.failed[0].error
    assert _seen(collection, "hr") == {"b.txt", "d.txt"}


def test_a_file_that_is_closed_after_the_listing_is_not_read(share: Share, tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text('"/hr" = "hr"\n"/ann" = "ann"\n')
    _put(share, "a.txt")
    share.allow("a.txt", "+/hr", "+/ann")
    connector = _connector(share, identities=str(tmp_path / "map.toml"))
    (ref,) = connector.refs()
    assert connector.fetch(ref).data
    share.allow("a.txt", "+/ann")
    with pytest.raises(ConnectorError, match="has changed"):
        connector.fetch(ref)


@pytest.mark.parametrize(
    ("who", "right", "expected"),
    [
        ("<principal><href>http://h/u/b%C3%B6b/</href></principal>", "all", ("/u/böb",)),
        ("<principal><all/></principal>", "write", ()),
        ("<principal><property><owner/></property></principal>", "read", ("/o",)),
        ("<principal><property><group/></property></principal>", "read", ()),
        ("<principal><self/></principal>", "read", ()),
        ("<invert><principal><href>/eve</href></principal></invert>", "read", ()),
        ("<principal><authenticated/></principal>", "read", ("authenticated",)),
    ],
)
def test_rules_of_an_access_list(who: str, right: str, expected: tuple[str, ...]) -> None:
    grant = f"<grant><privilege><{right}/></privilege></grant>"
    acl = fromstring(f'<acl xmlns="DAV:"><ace>{who}{grant}</ace></acl>')
    assert webdav._readers(acl, fromstring('<owner xmlns="DAV:"><href>/o</href></owner>')) == expected


# --- Trouble -----------------------------------------------------------------------------------------------------


def test_wrong_credentials_are_a_clear_error_without_them(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    _put(share, "a.txt")
    assert _paths(WebdavConnector(share.url, authorization="Bearer ${DAV_TOKEN}")) == {"a.txt"}
    monkeypatch.setenv("DAV_TOKEN", "exp1red-t0ken")
    monkeypatch.setenv("DAV_PASSWORD", "wr0ng-passw0rd")
    for connector in (WebdavConnector(share.url, authorization="Bearer ${DAV_TOKEN}"), _connector(share)):
        with pytest.raises(SourceError, match="refuses the user name, password or token") as info:
            list(connector.refs())
        assert not any(secret in str(info.value) for secret in ("exp1red", "wr0ng"))
    monkeypatch.delenv("DAV_PASSWORD")
    with pytest.raises(ConfigError, match="DAV_PASSWORD"):
        list(_connector(share).refs())


@pytest.mark.parametrize(
    ("location", "options"),
    [
        ("https://ann:secret@host/x", {}),
        ("https://host/x", {"authorization": "Bearer secret"}),
        ("ftp://ann:${P}@host/x", {}),
    ],
)
def test_addresses_that_are_refused(location: str, options: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as info:
        WebdavConnector(location, **options)
    assert "secret@" not in str(info.value)


def test_a_busy_server_is_asked_again_after_the_time_that_it_names(share: Share) -> None:
    _put(share, "a.txt")
    answers = [("503 Unavailable", {"Retry-After": "7"}), ("429 Too Many Requests", {"Retry-After": "9"})]
    share.answer = lambda method, path: answers.pop() if answers else None
    connector = _connector(share)
    waited: list[float] = []
    connector._client.sleep = waited.append
    assert _paths(connector) == {"a.txt"}
    assert waited == [9.0, 7.0]


def test_other_servers_are_clear_errors(share: Share) -> None:
    for status, headers, message in [
        ("200 OK", {}, "does not speak WebDAV"),
        ("405 Method Not Allowed", {}, "does not speak WebDAV"),
        ("301 Moved", {"Location": "https://other.example.org/"}, "redirects to https://other.example.org/"),
        ("403 Forbidden", {}, "status 403"),
        ("207 Multi-Status", {}, "not valid XML"),
    ]:
        share.answer = lambda method, path, answer=(status, headers): answer
        with pytest.raises(SourceError, match=message):
            list(_connector(share).refs())


def test_a_folder_that_cannot_be_listed_keeps_its_documents(share: Share, collection: Collection) -> None:
    _put(share, "a.txt")
    _put(share, "locked/b.txt")
    _sync(share, collection)
    share.answer = lambda method, path: ("403 Forbidden", {}) if path == "locked" else None
    (share.folder / "a.txt").unlink()
    report = collection.sync(allow_mass_delete=True)
    assert (report.removed, [it.uri for it in report.failed]) == (1, ["dav/locked"])
    assert _seen(collection) == {"locked/b.txt"}


def test_a_hostile_listing_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P", "x")
    connector = WebdavConnector("https://a:${P}@dav.example.org/docs")
    outside = ["/etc/passwd", "/docs/a/b.txt", "/docs/../up.txt", "/docs/..", "/docs/%2e%2e", "//x/y"]
    status = "<D:status>HTTP/1.1 200 OK</D:status>"
    body = f"<D:prop><D:resourcetype><D:collection/></D:resourcetype></D:prop>{status}"
    body = f"<D:response><D:href>/docs/</D:href><D:propstat>{body}</D:propstat></D:response>"
    for href in ("/docs/ok.txt", *outside):
        found = f"<D:propstat><D:prop><D:getetag>1</D:getetag></D:prop>{status}</D:propstat>"
        body += f"<D:response><D:href>{href}</D:href>{found}</D:response>"
    page = Page("", 207, HTTPHeaderDict(), f'<D:multistatus xmlns:D="DAV:">{body}</D:multistatus>'.encode())
    monkeypatch.setattr(connector._client, "send", lambda *words: page)
    assert _paths(connector) == {"ok.txt"}
    bomb = b'<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><a>&c;</a>'
    monkeypatch.setattr(connector._client, "send", lambda *words: Page("", 207, HTTPHeaderDict(), bomb))
    with pytest.raises(SourceError, match="not valid XML"):
        list(connector.refs())


@pytest.mark.slow
def test_interruptions_at_any_point_lose_nothing(share: Share, collection: Collection) -> None:
    for number in range(20):
        _put(share, f"f{number % 4}/{number}.txt", f"The text of all {number}.")
    rng = random.Random(7)
    clean = 0
    for _ in range(30):
        left = [rng.randint(0, 30)]

        def answer(method: str, path: str, left: list[int] = left) -> tuple[str, dict[str, str]] | None:
            left[0] -= 1
            return ("500 Broken", {}) if left[0] < 0 else None

        share.answer = answer
        try:
            report = collection.sync(share.location, connector="webdav", name="dav", options={"retries": 0}, retry=True)
        except SourceError:
            continue
        clean += not report.failed
        assert report.removed == 0
    share.answer = lambda method, path: None
    assert _sync(share, collection).failed == ()
    assert len(_seen(collection)) == 20
    assert clean < 30


@pytest.mark.slow
def test_nobody_sees_what_they_may_not_after_any_change(share: Share, collection: Collection, tmp_path: Path) -> None:
    rng, groups = random.Random(2), ["g0", "g1", "g2"]
    (tmp_path / "identities.toml").write_text("".join(f'"/{group}" = "{group}"\n' for group in groups))
    for number in range(12):
        _put(share, f"{number}.txt", f"The text of all {number}.")
        share.allow(f"{number}.txt")
    for _ in range(8):
        expected: dict[str, set[str]] = {group: set() for group in groups}
        for number in range(12):
            held = rng.sample(groups, rng.randint(0, 2))
            share.allow(f"{number}.txt", *(f"+/{group}" for group in held))
            if rng.random() < 0.2:
                _put(share, f"{number}.txt", f"The text of all {rng.random()}.")
            for group in held:
                expected[group].add(f"{number}.txt")
        _sync(share, collection, identities="identities.toml")
        for group in groups:
            assert _seen(collection, group) == expected[group]
        assert _seen(collection) == set()


@pytest.mark.parametrize("from_file", [False, True])
def test_secrets_are_nowhere(
    share: Share, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, from_file: bool
) -> None:
    _put(share, "a.txt")
    if from_file:
        (tmp_path / "password").write_text(f"{PASSWORD}\n")
        monkeypatch.delenv("DAV_PASSWORD")
        monkeypatch.setenv("DAV_PASSWORD_FILE", str(tmp_path / "password"))
    place = tmp_path / "place"
    place.mkdir()
    shell = Shell(place)
    options = ("--connector", "webdav", "--debug")
    token = "authorization=Bearer ${DAV_TOKEN}"
    said = said_by(
        shell,
        (share.url, "--name", "dav", "--option", token, *options),
        (f"{share.location}/a.txt", "-c", "b", *options),
    )
    shell.env |= {"DAV_TOKEN": f"{TOKEN}x"}
    done = shell("ingest", "--debug", code=3)
    said.append(done.stdout + done.stderr)
    caplog.set_level(logging.DEBUG)
    list(_connector(share).refs())
    files = [path for path in place.rglob("*") if path.is_file()]
    assert any(path.name == "out.tar" for path in files)
    for secret in (PASSWORD, TOKEN):
        assert secret not in "".join(said) + caplog.text + json.dumps([str(path) for path in files])
        for path in files:
            assert secret.encode() not in path.read_bytes(), path
