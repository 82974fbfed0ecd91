"""The connector for Jira, against a replay of its documented API over HTTP."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("urllib3", reason="needs the extra web")

from ragfm_connectors.jira import JiraConnector
from support.atlassian import TOKEN, AtlassianSite, serve_atlassian

from ragfm import Collection
from ragfm.core.errors import ConfigError, ConnectorError, SourceError
from ragfm.testing import check_connector

ISSUE = r"/rest/api/2/issue/"


@pytest.fixture(params=["cloud", "data centre"])
def site(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[AtlassianSite]:
    monkeypatch.setenv("ATLASSIAN_TOKEN", TOKEN)
    with serve_atlassian(AtlassianSite(is_cloud=request.param == "cloud")) as site:
        yield site


def _connector(site: AtlassianSite, **options: Any) -> JiraConnector:
    connector = JiraConnector(site.location, **{"projects": ["DEMO"], **options})
    connector._api.client.sleep = lambda seconds: None
    return connector


def _sync(site: AtlassianSite, collection: Collection, **options: Any) -> Any:
    options = {"projects": ["DEMO"], **options}
    return collection.sync(site.location, connector="jira", name="jira", options=options)


def _seen(collection: Collection, *groups: str) -> set[str]:
    return {info.uri.removeprefix("jira/") for info in collection.as_groups(set(groups)).documents()}


def _comment(number: int, text: str, **more: Any) -> dict[str, Any]:
    author = {"displayName": "Bob", "accountId": "5b10-bob"}
    created = "2026-01-03T00:00:00.000+0000"
    return {"id": str(number), "author": author, "created": created, "renderedBody": f"<p>{text}</p>", **more}


def _file(site: AtlassianSite, number: int, name: str, data: bytes) -> dict[str, Any]:
    path = f"/rest/api/2/attachment/content/{number}"
    site.files[path] = data
    created = "2026-01-01T00:00:00.000+0000"
    file = {"id": str(number), "filename": name, "size": len(data), "mimeType": "text/plain", "created": created}
    return {**file, "content": f"{site.url}{path}"}


# --- Documents ---------------------------------------------------------------------------------------------------


def test_issues_with_comments_and_attachments(site: AtlassianSite, collection: Collection) -> None:
    site.page_size = 2
    site.issue("DEMO-1", customfield_7={"value": "Severe & rare"}, attachment=[_file(site, 8, "a/b.txt", b"A text.")])
    site.issue("DEMO-2", attachment=[_file(site, 9, "big.txt", b"x" * 2000)])
    site.issue("OPS-3")
    site.comments["DEMO-1"] = [
        _comment(1, "The first comment."),
        _comment(2, "A secret.", visibility={"type": "role", "value": "Administrators"}),
        _comment(3, "The third comment."),
    ]
    connector = _connector(site, attachments=True, fields=["customfield_7"], max_bytes=1000)
    check_connector(connector)
    refs = {ref.path: ref for ref in connector.refs()}
    assert refs.keys() == {"DEMO-1", "DEMO-1/8/a%2Fb.txt", "DEMO-2", "DEMO-2/9/big.txt"}
    assert refs["DEMO-2/9/big.txt"].skip == "2,000 bytes; the limit is 1,000 (`files.max_mb`)"
    connector = _connector(site, fields=["customfield_7"])  # as in another process, which has not listed the site
    file = connector.fetch(refs["DEMO-1/8/a%2Fb.txt"])
    assert (file.data, file.media_type, file.metadata["title"]) == (b"A text.", "text/plain", "a/b.txt")
    issue = connector.fetch(refs["DEMO-1"])
    assert issue.metadata == {
        "title": "DEMO-1: Issue DEMO-1",
        "status": "Open",
        "project": "Demo",
        "labels": "red, blue",
        "reporter": "Ann",
        "created": "2026-01-01T00:00:00.000+0000",
        "updated": "2026-01-02T03:04:05.000+0000",
        "url": f"{site.url}/browse/DEMO-1",
    }

    _sync(site, collection, fields=["customfield_7"])
    text = collection.document("jira/DEMO-1").text
    for part in ("# DEMO-1: Issue DEMO-1", "Status: Open", "Severity: Severe & rare", "The text of all."):
        assert part in text, text
    assert text.index("## Comment by Bob, 2026-01-03") < text.index("first comment") < text.index("third comment")
    assert "secret" not in text

    assert [ref.path for ref in _connector(site, projects=["OPS"]).refs()] == ["OPS-3"]
    assert len(list(_connector(site, projects=[], jql="updated > -5d").refs())) == 3
    with pytest.raises(ConfigError, match="No issues are selected"):
        JiraConnector(site.location)


# --- Incremental runs --------------------------------------------------------------------------------------------


def test_a_thousand_issues_are_listed_by_ten_requests(site: AtlassianSite) -> None:
    for number in range(1000):
        site.issue(f"DEMO-{number}")
    assert len({ref.path for ref in _connector(site).refs()}) == 1000
    assert len(site.asked("/")) in (11, 12)


def test_only_changes_are_fetched(site: AtlassianSite, collection: Collection) -> None:
    for number in range(6):
        site.issue(f"DEMO-{number}")
    assert _sync(site, collection).added == 6
    assert len(site.asked(ISSUE)) == 12
    site.issue("DEMO-1", updated="2026-02-02T00:00:00.000+0000")
    site.issue("DEMO-7")
    del site.issues["DEMO-2"]
    site.issues["OPS-1"] = site.issues.pop("DEMO-3")  # it was moved to another project
    report = collection.sync()
    assert (report.added, report.updated, report.removed, report.unchanged) == (1, 1, 2, 3)
    assert {path.partition("?")[0].split("/")[5] for path in site.asked(ISSUE)} == {"DEMO-1", "DEMO-7"}


def test_an_issue_that_changes_after_the_listing_is_read_by_the_next_ingest(site: AtlassianSite) -> None:
    site.issue("DEMO-1")
    connector = _connector(site)
    (ref,) = connector.refs()
    site.issue("DEMO-1", updated="2026-02-02T00:00:00.000+0000")
    with pytest.raises(ConnectorError, match="has changed since it was listed"):
        connector.fetch(ref)
    del site.issues["DEMO-1"]
    with pytest.raises(ConnectorError, match=r"status 404: .*Issue does not exist"):
        connector.fetch(ref)


# --- Permissions -------------------------------------------------------------------------------------------------


def _may_browse(*holders: dict[str, Any]) -> list[dict[str, Any]]:
    rules = [{"permission": "BROWSE_PROJECTS", "holder": holder} for holder in holders]
    return [*rules, {"permission": "ADMINISTER_PROJECTS", "holder": {"type": "anyone"}}]


def test_permissions_of_projects(site: AtlassianSite, collection: Collection, tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text('"group:developers" = "dev"\n"group:staff" = "staff"\n"anyone" = "*"\n')
    role = {"type": "projectRole", "parameter": "10002"}
    user = {"type": "user", "parameter": "5b10-bob", "user": {"accountId": "5b10-bob"}}
    site.schemes["DEMO"] = _may_browse(role, {"type": "reporter"}, user)
    site.schemes["OPS"] = _may_browse({"type": "group", "parameter": "staff"})
    site.issue("DEMO-1")
    site.issue("OPS-1")
    report = _sync(site, collection, projects=["DEMO", "OPS"], identities="map.toml")
    assert {it.identity for it in report.unmapped} == {"user:5b10-bob", "user:5b10-eve"}
    assert _seen(collection, "dev") == {"DEMO-1"}
    assert _seen(collection, "staff") == {"OPS-1"}

    site.schemes["OPS"] = _may_browse({"type": "anyone"})
    del site.schemes["DEMO"]  # it cannot be read any more
    site.issue("DEMO-2")
    site.asked("/")
    report = collection.sync()
    assert site.asked(ISSUE) == []
    assert [(it.uri, it.stale) for it in report.failed] == [("jira/DEMO-1", True), ("jira/DEMO-2", False)]
    assert _seen(collection, "dev") == {"DEMO-1", "OPS-1"}
    assert _seen(collection) == {"OPS-1"}


def test_security_levels(site: AtlassianSite, collection: Collection, tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text('"group:staff" = ["hr", "all"]\n"group:hr" = "hr"\n')
    site.schemes["DEMO"] = _may_browse({"type": "group", "parameter": "staff"})
    site.levels["100"] = [{"type": "group", "parameter": "hr"}]
    site.issue("DEMO-1")
    site.issue("DEMO-2")
    _sync(site, collection, identities="map.toml")
    assert _seen(collection, "all") == {"DEMO-1", "DEMO-2"}
    site.issue("DEMO-2", security={"id": "100", "name": "HR only"})  # no other time of change
    site.issue("DEMO-3", security={"id": "100", "name": "HR only"})
    report = collection.sync()
    assert _seen(collection, "all") == {"DEMO-1"}
    if site.is_cloud:
        assert report.failed == ()
        assert _seen(collection, "hr") == {"DEMO-1", "DEMO-2", "DEMO-3"}
    else:  # a data centre does not tell who belongs to a level, so nobody sees the issue
        assert [(it.uri, it.stale) for it in report.failed] == [("jira/DEMO-2", True), ("jira/DEMO-3", False)]
        assert "security level: the site does not tell it" in report.failed[0].error
        assert _seen(collection, "all", "hr") == {"DEMO-1"}


# --- Trouble -----------------------------------------------------------------------------------------------------


def test_a_token_that_expires_starts_the_listing_again(site: AtlassianSite) -> None:
    site.page_size = 10
    for number in range(35):
        site.issue(f"DEMO-{number}")
    expired = ["once"]
    third = "nextPageToken=at20" if site.is_cloud else "startAt=18"
    site.answer = lambda path: (400, {}) if third in path and expired and expired.pop() else None
    assert len(list(_connector(site).refs())) == 35
    site.answer = lambda path: (400, {}) if third in path else None
    with pytest.raises(SourceError, match="broke off 3 times"):
        list(_connector(site).refs())


def test_an_issue_that_is_deleted_during_the_listing_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLASSIAN_TOKEN", TOKEN)
    with serve_atlassian(AtlassianSite(is_cloud=False, page_size=10)) as site:
        for number in range(35):
            site.issue(f"DEMO-{number}")

        def answer(path: str) -> None:
            if "startAt=18" in path:
                site.issues.pop("DEMO-3", None)

        site.answer = answer  # type: ignore[assignment]
        assert {ref.path for ref in _connector(site).refs()} == {
            f"DEMO-{number}" for number in range(35) if number != 3
        }


def test_a_busy_site_is_asked_again_after_the_time_that_it_names(site: AtlassianSite) -> None:
    site.issue("DEMO-1")
    answers = [(503, {"Retry-After": "7"}), (429, {"Retry-After": "9"})]
    site.answer = lambda path: answers.pop() if answers else None
    connector = _connector(site)
    waited: list[float] = []
    connector._api.client.sleep = waited.append
    assert len(list(connector.refs())) == 1
    assert waited == [9.0, 7.0]


def test_wrong_credentials_and_queries_are_clear_errors(site: AtlassianSite, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match=r"status 400: .*Field 'oops' does not exist"):
        list(_connector(site, jql="oops = 1").refs())
    monkeypatch.setenv("ATLASSIAN_TOKEN", "exp1red-t0ken")
    with pytest.raises(SourceError, match="refuses the user name, password or token") as info:
        list(_connector(site).refs())
    assert "exp1red" not in str(info.value)


def test_a_file_elsewhere_is_not_fetched(site: AtlassianSite) -> None:
    site.issue("DEMO-1", attachment=[{**_file(site, 8, "a.txt", b"A text."), "content": "http://127.0.0.1:9/a.txt"}])
    connector = _connector(site, attachments=True)
    ref = next(ref for ref in connector.refs() if ref.path.endswith("a.txt"))
    with pytest.raises(ConnectorError, match="names an address of another site"):
        connector.fetch(ref)


def test_interruptions_at_any_point_lose_nothing(site: AtlassianSite, collection: Collection) -> None:
    site.page_size = 5
    for number in range(15):
        site.issue(f"DEMO-{number}")
    rng = random.Random(7)
    for _ in range(8):
        left = [rng.randint(0, 40)]

        def answer(path: str, left: list[int] = left) -> tuple[int, dict[str, str]] | None:
            left[0] -= 1
            return (500, {}) if left[0] < 0 else None

        site.answer = answer
        options = {"projects": ["DEMO"], "retries": 0}
        try:
            report = collection.sync(site.location, connector="jira", name="jira", options=options, retry=True)
        except SourceError:
            continue
        assert report.removed == 0
    site.answer = lambda path: None
    assert _sync(site, collection).failed == ()
    assert len(_seen(collection)) == 15
