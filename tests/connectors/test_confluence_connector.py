"""The connector for Confluence, against a replay of its documented API over HTTP."""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("urllib3", reason="needs the extra web")

from ragfm_connectors.confluence import ConfluenceConnector
from support.atlassian import TOKEN, AtlassianSite, restricted, serve_atlassian, space_reader
from support.shell import Shell, said_by

from ragfm import Collection
from ragfm.core.errors import ConfigError, ConnectorError, SourceError
from ragfm.testing import check_connector

CONTENT = r"/wiki/rest/api/content/(?!search)\w+\?"


@pytest.fixture(params=["cloud", "data centre"])
def site(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[AtlassianSite]:
    monkeypatch.setenv("ATLASSIAN_TOKEN", TOKEN)
    with serve_atlassian(AtlassianSite(is_cloud=request.param == "cloud")) as site:
        yield site


def _connector(site: AtlassianSite, path: str = "", **options: Any) -> ConfluenceConnector:
    connector = ConfluenceConnector(f"{site.location}/wiki{path}", **options)
    connector._api.client.sleep = lambda seconds: None
    return connector


def _sync(site: AtlassianSite, collection: Collection, **options: Any) -> Any:
    return collection.sync(f"{site.location}/wiki", connector="confluence", name="wiki", options=options)


def _seen(collection: Collection, *groups: str) -> set[str]:
    return {info.uri.removeprefix("wiki/") for info in collection.as_groups(set(groups)).documents()}


def _open_space(site: AtlassianSite) -> None:
    if site.is_cloud:
        site.spaces["HR"] = [space_reader("group", "id-of-staff"), space_reader("user", "5b10-bob")]
        administers = {"key": "administer", "targetType": "space"}
        site.spaces["HR"].append({**space_reader("group", "id-of-writers"), "operation": administers})
    else:
        reads = {"targetType": "space", "operationKey": "read"}
        writes = {"targetType": "space", "operationKey": "administer"}
        site.spaces["HR"] = [
            {"operation": reads, "subject": {"type": "group", "name": "staff"}},
            {"operation": writes, "subject": {"type": "group", "name": "writers"}},
            {"operation": reads, "subject": {"type": "user", "userKey": "key-of-5b10-bob"}},
        ]


# --- Documents ---------------------------------------------------------------------------------------------------


def test_pages_posts_comments_and_attachments(site: AtlassianSite) -> None:
    site.page(1, metadata={"labels": {"results": [{"name": "policy"}, {"name": "leave"}]}})
    site.page(2, type="blogpost", space={"id": 8, "key": "NEWS"})
    site.page(3, type="comment", title="Re: Page 1", container={"id": "1", "title": "Page 1"})
    site.attachment(4, 1, "größe & 100%.txt", b"A text.")
    site.attachment(5, 3, "big.txt", b"x" * 2000)  # of a comment
    connector = _connector(site, max_bytes=1000)
    check_connector(connector)
    refs = {ref.path: ref for ref in connector.refs()}
    assert refs.keys() == {"1", "2", "1/3", "1/4/größe & 100%25.txt", "3/5/big.txt"}
    assert refs["3/5/big.txt"].skip == "2,000 bytes; the limit is 1,000 (`files.max_mb`)"
    connector = _connector(site)  # as in another process, which has not listed the site
    page = connector.fetch(refs["1"])
    assert page.media_type == "text/html"
    assert b"<h1>Page 1</h1>\n<p>The text of all.</p>" in page.data
    assert page.metadata == {
        "title": "Page 1",
        "type": "page",
        "space": "HR",
        "labels": "leave, policy",
        "author": "Ann",
        "modified": "2026-01-02T03:04:05.000Z",
        "url": f"{site.url}/wiki/spaces/HR/pages/1",
    }
    assert connector.fetch(refs["1/3"]).metadata["title"] == "Comment on Page 1"
    file = connector.fetch(refs["1/4/größe & 100%25.txt"])
    assert (file.data, file.media_type) == (b"A text.", "text/plain")

    for narrowed in (_connector(site, "/spaces/NEWS"), _connector(site, spaces=["NEWS"])):
        assert [ref.path for ref in narrowed.refs()] == ["2"]
    narrowed = _connector(site, comments=False, exclude=["*.txt"])
    assert [ref.path for ref in narrowed.refs()] == ["1", "2"]


def test_what_the_storage_format_adds_to_html(site: AtlassianSite, collection: Collection) -> None:
    body = """
        <ac:structured-macro ac:name="toc"><ac:parameter ac:name=""/></ac:structured-macro>
        <p>See <ac:link ac:anchor="x"><ri:page ri:content-title="Travel"/></ac:link> and <ac:link>
        <ri:page ri:content-title="no"/><ac:plain-text-link-body><![CDATA[R&D]]></ac:plain-text-link-body></ac:link>.
        </p>
        <ac:structured-macro ac:name="code"><ac:parameter ac:name="language">python</ac:parameter>
        <ac:plain-text-body><![CDATA[if a < b && <ac:parameter>:]]></ac:plain-text-body></ac:structured-macro>
        <ac:task-list><ac:task><ac:task-id>77</ac:task-id><ac:task-status>incomplete</ac:task-status>
        <ac:task-body>Call Eve</ac:task-body></ac:task></ac:task-list><p>The end.</p>"""
    site.page(1, body)
    _sync(site, collection)
    text = collection.document("wiki/1").text
    assert "See Travel and R&D" in text
    assert "```\nif a < b && <ac:parameter>:\n```" in text
    assert "Call Eve" in text
    assert "The end." in text
    assert not any(word in text for word in ("python", "77", "incomplete", "toc"))


# --- Incremental runs --------------------------------------------------------------------------------------------


def test_a_thousand_pages_are_listed_by_ten_requests(site: AtlassianSite) -> None:
    for number in range(1000):
        site.page(number)
    assert len({ref.path for ref in _connector(site).refs()}) == 1000
    assert len(site.asked("/")) == (10 if site.is_cloud else 11)


def test_only_changes_are_fetched(site: AtlassianSite, collection: Collection) -> None:
    for number in range(8):
        site.page(number, f"<p>The text of all {number}.</p>")
    assert _sync(site, collection).added == 8
    assert len(site.asked(CONTENT)) == 8
    site.page(5, "<p>The new text of all.</p>")
    site.page(20)
    site.contents["6"]["metadata"]["labels"]["results"] = [{"name": "new"}]  # which makes no new version
    site.contents["7"]["ancestors"] = [{"id": "1"}]  # it was moved, and nothing else
    site.contents["3"]["space"] = {"id": 8, "key": "NEWS"}  # it was moved to another space
    del site.contents["4"]
    report = collection.sync()
    assert (report.added, report.updated, report.removed, report.unchanged) == (1, 3, 1, 4)
    assert sorted(path.partition("?")[0].rpartition("/")[2] for path in site.asked(CONTENT)) == ["20", "3", "5", "6"]


def test_a_page_that_changes_after_the_listing_is_read_by_the_next_ingest(site: AtlassianSite) -> None:
    site.page(1)
    connector = _connector(site)
    (ref,) = connector.refs()
    site.page(1, "<p>New.</p>")
    with pytest.raises(ConnectorError, match="has changed since it was listed"):
        connector.fetch(ref)
    del site.contents["1"]
    with pytest.raises(ConnectorError, match=r"status 404: .*No content found"):
        connector.fetch(ref)


def test_a_cloud_that_has_removed_the_request_of_an_item_is_searched_for_it(site: AtlassianSite) -> None:
    site.page(1)
    connector = _connector(site)
    (ref,) = connector.refs()
    expected = connector.fetch(ref)
    site.answer = lambda path: (410, {}) if re.match(CONTENT, path) else None
    assert connector.fetch(ref) == expected


# --- Permissions -------------------------------------------------------------------------------------------------


def test_restrictions_of_space_page_and_ancestors(site: AtlassianSite, collection: Collection, tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text(
        '"group:staff" = ["hr", "board", "all"]\n"group:hr" = "hr"\n"group:board" = "board"\n"user:5b10-ann" = "hr"\n'
    )
    _open_space(site)
    site.page(1)
    site.page(2, restrictions=restricted("group:hr", "group:board"))
    site.page(3, ancestors=[{"id": "2"}])
    site.page(4, ancestors=[{"id": "2"}, {"id": "3"}], restrictions=restricted("user:5b10-ann"))
    site.page(5, type="comment", container={"id": "4", "title": "Page 4"})
    site.attachment(6, 5, "a.txt", b"The text of all.")
    report = _sync(site, collection, identities="map.toml")
    assert [it.identity for it in report.unmapped] == ["user:5b10-bob"]
    assert _seen(collection) == set()
    assert _seen(collection, "all") == {"1"}
    assert _seen(collection, "board") == {"1", "2", "3"}
    assert _seen(collection, "hr") == {"1", "2", "3", "4", "4/5", "5/6/a.txt"}

    site.asked("/")
    site.contents["2"]["restrictions"] = restricted("group:hr")  # which changes no version
    site.contents["1"]["ancestors"] = [{"id": "4"}]  # it was moved
    report = collection.sync()
    assert (report.unchanged, site.asked(CONTENT)) == (6, [])
    assert _seen(collection, "all") == _seen(collection, "board") == set()
    assert len(_seen(collection, "hr")) == 6


def test_unreadable_permissions_keep_what_is_stricter(
    site: AtlassianSite, collection: Collection, tmp_path: Path
) -> None:
    (tmp_path / "map.toml").write_text('"group:staff" = ["hr", "all"]\n"group:hr" = "hr"\n')
    _open_space(site)
    site.page(1)
    site.page(2, ancestors=[{"id": "1"}])
    site.page(3)
    _sync(site, collection, identities="map.toml")
    assert _seen(collection, "all") == {"1", "2", "3"}
    site.contents["2"]["ancestors"] = [{"id": "99"}]  # which nobody sees
    site.contents["2"]["restrictions"] = restricted("group:hr")
    site.page(4, ancestors=[{"id": "99"}])
    site.asked("/")
    report = collection.sync()
    assert [(it.uri, it.stale) for it in report.failed] == [("wiki/2", True), ("wiki/4", False)]
    assert "permissions cannot be read" in report.failed[0].error
    assert _seen(collection, "all") == {"1", "3"}
    assert _seen(collection, "hr") == {"1", "2", "3"}
    assert len(site.asked(".*/content/99/restriction")) == 1
    del site.contents["2"]["ancestors"]
    site.page(4, type="comment", container=None)
    report = collection.sync()
    assert [it.uri for it in report.failed] == ["wiki/2", "wiki/?/4"]
    assert "the site does not name its page" in report.failed[0].error
    assert _seen(collection, "all") == {"1", "3"}

    site.spaces.clear()  # who may view the space cannot be read, so nothing is opened
    report = collection.sync()
    assert {it.uri for it in report.failed} == {"wiki/1", "wiki/2", "wiki/3", "wiki/?/4"}
    assert _seen(collection, "all") == {"1", "3"}
    assert _seen(collection) == set()


# --- Trouble -----------------------------------------------------------------------------------------------------


def test_a_token_that_expires_starts_the_listing_again(site: AtlassianSite, collection: Collection) -> None:
    site.page_size = 10
    for number in range(35):
        site.page(number)
    _sync(site, collection)
    expired = ["once"]
    site.answer = lambda path: (410, {}) if _is_third(path) and expired and expired.pop() else None
    report = collection.sync()
    assert (report.unchanged, report.removed, report.failed) == (35, 0, ())
    site.answer = lambda path: (410, {}) if _is_third(path) else None
    with pytest.raises(SourceError, match="broke off 3 times"):
        collection.sync(f"{site.location}/wiki", connector="confluence", name="wiki")
    assert len(_seen(collection)) == 35


def _is_third(path: str) -> bool:
    return "cursor=at20" in path or "start=18" in path


def test_a_page_that_is_deleted_during_the_listing_hides_no_other(site: AtlassianSite) -> None:
    site.page_size = 10
    for number in range(35):
        site.page(number)

    def answer(path: str) -> None:
        if _is_third(path):
            site.contents.pop("3", None)

    site.answer = answer  # type: ignore[assignment]
    listed = [int(ref.path) for ref in _connector(site).refs()]
    if not site.is_cloud:  # the replay's cursors are numbers, too; those of the site are not
        assert listed == [number for number in range(35) if number != 3]


def test_a_busy_site_is_asked_again_after_the_time_that_it_names(site: AtlassianSite) -> None:
    site.page(1)
    answers = [(503, {"Retry-After": "7"}), (429, {"Retry-After": "9"})]
    site.answer = lambda path: answers.pop() if answers else None
    connector = _connector(site)
    waited: list[float] = []
    connector._api.client.sleep = waited.append
    assert len(list(connector.refs())) == 1
    assert waited == [9.0, 7.0]


def test_wrong_credentials_are_a_clear_error_without_them(site: AtlassianSite, monkeypatch: pytest.MonkeyPatch) -> None:
    site.page(1)
    bearer = ConfluenceConnector(f"{site.url}/wiki", authorization="Bearer ${ATLASSIAN_TOKEN}")
    assert len(list(bearer.refs())) == 1
    monkeypatch.setenv("ATLASSIAN_TOKEN", "exp1red-t0ken")
    for connector in (
        _connector(site),
        ConfluenceConnector(f"{site.url}/wiki", authorization="Bearer ${ATLASSIAN_TOKEN}"),
    ):
        with pytest.raises(SourceError, match="refuses the user name, password or token") as info:
            list(connector.refs())
        assert "exp1red" not in str(info.value)
    for options in ({"authorization": "Bearer secret"}, {"location": "https://ann:secret@host/wiki"}):
        with pytest.raises(ConfigError, match="contains a secret"):
            ConfluenceConnector(**{"location": f"{site.url}/wiki", **options})


def test_other_answers_are_clear_errors(site: AtlassianSite) -> None:
    site.page(1)
    with pytest.raises(SourceError, match=r"/search: the server responded with status 404"):
        list(ConfluenceConnector(site.location).refs())
    for status, headers, message in [
        (302, {"Location": "https://login.example.org/"}, "redirects to https://login.example.org/"),
        (200, {"Content-Type": "text/html"}, "not JSON"),
        (403, {}, "status 403"),
    ]:
        site.answer = lambda path, answer=(status, headers): answer
        with pytest.raises(SourceError, match=message):
            list(_connector(site).refs())
    site.answer = lambda path: None
    site.contents["1"].pop("version")
    with pytest.raises(SourceError, match="expected form: KeyError"):
        list(_connector(site).refs())


def test_files_behind_redirects_without_the_credentials(site: AtlassianSite) -> None:
    with serve_atlassian(AtlassianSite()) as media:
        site.page(1)
        site.attachment(2, 1, "a.txt", b"A text.")
        path = "/wiki/download/attachments/1/a.txt"
        connector = _connector(site, include=["*.txt"])
        (ref,) = connector.refs()
        site.redirects[path] = f"{media.url}/file?signed=x"
        with pytest.raises(SourceError, match="status 401"):
            connector.fetch(ref)
        assert media.authorized == [None]
        site.redirects[path] = "http://127.0.0.1:1/file?signed=s3cret"
        with pytest.raises(ConnectorError, match=r"127\.0\.0\.1:1/file cannot be reached") as caught:
            connector.fetch(ref)
        assert "s3cret" not in str(caught.value)
        site.redirects[path] = "http://localhost:1/internal"  # a private address that nobody has named
        with pytest.raises(ConnectorError, match="not a public address"):
            connector.fetch(ref)
        site.redirects.clear()
        site.files[path] = b"Please log in"
        with pytest.raises(ConnectorError, match="does not lead to a file of 7 bytes"):
            connector.fetch(ref)


def test_interruptions_at_any_point_lose_nothing(site: AtlassianSite, collection: Collection) -> None:
    site.page_size = 5
    for number in range(20):
        site.page(number, f"<p>The text of all {number}.</p>")
    rng = random.Random(7)
    for _ in range(12):
        left = [rng.randint(0, 25)]

        def answer(path: str, left: list[int] = left) -> tuple[int, dict[str, str]] | None:
            left[0] -= 1
            return (500, {}) if left[0] < 0 else None

        site.answer = answer
        try:
            report = collection.sync(
                f"{site.location}/wiki", connector="confluence", name="wiki", options={"retries": 0}, retry=True
            )
        except SourceError:
            continue
        assert report.removed == 0
    site.answer = lambda path: None
    assert _sync(site, collection).failed == ()
    assert len(_seen(collection)) == 20


def test_secrets_are_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLASSIAN_TOKEN", TOKEN)
    with serve_atlassian(AtlassianSite()) as site:
        site.page(1)
        shell = Shell(tmp_path)
        shell.env |= {"ATLASSIAN_TOKEN": TOKEN}
        said = said_by(shell, (f"{site.location}/wiki", "--connector", "confluence", "--name", "wiki", "--debug"))
        caplog.set_level(logging.DEBUG)
        list(_connector(site).refs())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "out.tar" for path in files)
    assert TOKEN not in "".join(said) + caplog.text + json.dumps([str(path) for path in files])
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
