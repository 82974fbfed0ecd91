"""The connector for SharePoint, against a replay of Microsoft Graph over HTTP."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ragfm_connectors import sharepoint
from ragfm_connectors.sharepoint import SharepointConnector
from support.graph_server import DOWNLOAD_SECRET, SECRET, SITE, Answer, Site, error, grant, link, serve_site

from ragfm import Collection
from ragfm.core.errors import ConfigError, ConnectorError, SourceError
from ragfm.testing import check_connector

DOCS = "Shared Documents"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("GRAPH_SECRET", SECRET)
    with serve_site() as site:
        yield site


def _options(site: Site, **more: Any) -> dict[str, Any]:
    ids = {"tenant": "contoso.com", "client_id": "6731de76", "client_secret": "${GRAPH_SECRET}"}
    return {**ids, "graph": site.url, "login": site.url, **more}


def _connector(site: Site, path: str = "", **options: Any) -> SharepointConnector:
    connector = SharepointConnector(f"{SITE}{path}", **_options(site, **options))
    connector._client.sleep = lambda seconds: None
    return connector


def _paths(connector: SharepointConnector) -> set[str]:
    return {ref.path for ref in connector.refs() if not ref.skip and not ref.error}


def _sync(site: Site, collection: Collection, path: str = "", **options: Any) -> Any:
    return collection.sync(f"{SITE}{path}", connector="sharepoint", name="hb", options=_options(site, **options))


def _seen(collection: Collection, *groups: str) -> set[str]:
    handle = collection.as_groups(set(groups))
    uris = {info.uri for info in handle.documents()}
    assert {hit.uri for hit in handle.search("the text of all", k=99)} == uris
    return {uri.removeprefix("hb/").removeprefix(f"{DOCS}/") for uri in uris}


@pytest.fixture
def identities(tmp_path: Path) -> str:
    file = tmp_path / "identities.toml"
    names = {"HR@contoso.com": "hr", "everyone@contoso.com": "all", "ann@contoso.com": "ann", "link:organization": "*"}
    file.write_text("".join(f'"{identity}" = "{group}"\n' for identity, group in names.items()))
    return str(file)


# --- Documents ---------------------------------------------------------------------------------------------------


def test_libraries_folders_and_files(site: Site) -> None:
    names = [f"{DOCS}/a.md", f"{DOCS}/sub/größe & 100%.txt", f"{DOCS}/sub/deep/c#d.txt", "Wiki/x.md"]
    for name in [*names, f"{DOCS}/.hidden/x.txt"]:
        site.put(name)
    site.put(f"{DOCS}/big.txt", "x" * 2000)
    connector = _connector(site, max_bytes=1000)
    check_connector(connector)
    assert _paths(connector) == set(names)
    assert {ref.path: ref.skip for ref in connector.refs() if ref.skip} == {
        f"{DOCS}/.hidden": "hidden",
        f"{DOCS}/big.txt": "2,000 bytes; the limit is 1,000 (`files.max_mb`)",
    }
    for ref in connector.refs():
        if not ref.skip:
            blob = connector.fetch(ref)
            assert (blob.data, blob.media_type) == (b"The text of all.", "text/plain")
            assert blob.metadata == {"modified": "2026-01-02T03:04:05+00:00"}
    assert _paths(_connector(site, "/Shared%20Documents/sub/")) == {"größe & 100%.txt", "deep/c#d.txt"}
    assert _paths(_connector(site, "/Shared%20Documents/a.md")) == {""}
    assert _paths(_connector(site, include=["deep"])) == {f"{DOCS}/sub/deep/c#d.txt"}
    for ref in _connector(site, "/Wiki").refs():  # as on another machine, which has not listed
        assert _connector(site, "/Wiki").fetch(ref).data
    with pytest.raises(SourceError, match="no such file or folder"):
        list(_connector(site, "/Wiki/none").refs())
    with pytest.raises(SourceError, match="no library 'None'") as caught:
        list(_connector(site, "/None").refs())
    assert DOCS in caught.value.hint


def test_access_files_apply(site: Site) -> None:
    site.put("Wiki/open.txt")
    site.put("Wiki/hr/pay.txt")
    site.put("Wiki/hr/.ragfm-access", "hr\nboard")
    assert {ref.path: ref.allow for ref in _connector(site).refs()} == {
        "Wiki/open.txt": None,
        "Wiki/hr/pay.txt": ("board", "hr"),
    }
    site.answer = lambda kind, path: (403, {}, error("accessDenied")) if kind == "content" else None
    refs = {ref.path: ref for ref in _connector(site).refs()}
    assert refs["Wiki/hr/pay.txt"].allow == ()
    assert "closed to all groups" in (refs["Wiki/hr/.ragfm-access"].error or "")


# --- Listings ----------------------------------------------------------------------------------------------------


def test_only_changes_are_downloaded(site: Site, collection: Collection) -> None:
    for number in range(6):
        site.put(f"{DOCS}/f{number % 2}/{number}.txt", f"The text of all {number}.")
    assert _sync(site, collection).added == 6
    assert len(site.asked("download")) == 6
    assert collection.sync().unchanged == 6
    assert site.asked("download") == []

    site.put(f"{DOCS}/f0/0.txt", "The new text of all.")
    site.put(f"{DOCS}/f2/new.txt")
    del site.items[f"{DOCS}/f1/1.txt"]
    site.move(f"{DOCS}/f1/3.txt", f"{DOCS}/f2/moved.txt")
    report = collection.sync()
    assert (report.added, report.updated, report.removed, report.unchanged) == (2, 1, 2, 3)
    assert sorted(site.asked("download")) == [f"{DOCS}/{name}" for name in ("f0/0.txt", "f2/moved.txt", "f2/new.txt")]
    assert _seen(collection) == {"f0/0.txt", "f0/2.txt", "f0/4.txt", "f1/5.txt", "f2/moved.txt", "f2/new.txt"}


def test_a_thousand_files_in_pages_with_a_token_that_expires(site: Site) -> None:
    for number in range(1000):
        site.put(f"{DOCS}/d{number % 20}/{number}.txt")
    site.uses_of_a_token = 3
    assert len(_paths(_connector(site))) == 1000
    kinds = [kind for kind, _, _ in site.log]
    assert (kinds.count("token"), kinds.count("delta")) == (3, 6 + 2)  # two requests were refused, and repeated


def test_a_token_is_renewed_a_minute_before_it_expires(site: Site) -> None:
    site.put("Wiki/a.txt")
    assert _paths(_connector(site)) == {"Wiki/a.txt"}
    assert [kind for kind, _, _ in site.log] == ["token", "site", "drives", "delta"]
    site.log.clear()
    site.expires_in = 60
    assert _paths(_connector(site)) == {"Wiki/a.txt"}
    assert [kind for kind, _, _ in site.log] == ["token", "site", "token", "drives", "token", "delta"]


def test_an_item_that_changes_during_the_listing_is_listed_as_it_has_become(site: Site) -> None:
    for name in ("a.txt", "b.txt", "gone.txt", "c.txt"):
        site.put(f"Wiki/{name}")
    site.page_size, pages = 3, []

    def answer(kind: str, path: str) -> Answer | None:
        pages.append(kind)
        if pages.count("delta") != 2 or kind != "delta":
            return None
        renamed = {**site.describe("Wiki/a.txt"), "name": "z.txt"}
        gone = {"id": site.items["Wiki/gone.txt"].id, "deleted": {"state": "deleted"}}
        rest = [site.describe("Wiki/c.txt"), renamed, gone]
        return 200, {}, {"value": rest, "@odata.deltaLink": f"{site.url}/v1.0/x"}

    site.answer = answer
    assert _paths(_connector(site, "/Wiki")) == {"b.txt", "c.txt", "z.txt"}


def test_an_expired_page_token_starts_the_listing_again(site: Site) -> None:
    for number in range(5):
        site.put(f"Wiki/{number}.txt")
    site.page_size = 2
    answers: list[Answer | None] = [None, (410, {"Location": site.url}, error("resyncChangesApplyDifferences"))]
    site.answer = lambda kind, path: answers.pop(0) if kind == "delta" and answers else None
    assert len(_paths(_connector(site))) == 5
    assert len(site.asked("delta")) == 2 + 3
    site.answer = lambda kind, path: (410, {}, error("resyncRequired")) if kind == "delta" else None
    with pytest.raises(SourceError, match="expired 3 times"):
        list(_connector(site, "/Wiki").refs())


@pytest.mark.parametrize(
    "what", ["no delta link", "no root", "not JSON", "no page", "no id", "another host", "lost folder"]
)
def test_an_incomplete_listing_removes_nothing(site: Site, collection: Collection, what: str) -> None:
    for number in range(4):
        site.put(f"Wiki/sub/{number}.txt")
    _sync(site, collection, "/Wiki")
    root, folder, *files = [site.describe(path) for path in site.items]
    bodies: dict[str, Any] = {
        "no delta link": {"value": [root, folder]},
        "no root": {"value": [folder, *files[:3]], "@odata.deltaLink": "x"},
        "not JSON": b"<html>",
        "no page": {},
        "no id": {"value": [root, {"name": "x"}], "@odata.deltaLink": "x"},
        "another host": {"value": [root], "@odata.nextLink": f"{site.downloads}/{root['id']}"},
        "lost folder": {"value": [root, *files[:1]], "@odata.deltaLink": "x"},
    }
    site.answer = lambda kind, path: (200, {}, bodies[what]) if kind == "delta" else None
    report = collection.sync(allow_mass_delete=True)
    assert (report.removed, len(report.failed)) == (0, 1)
    messages = (
        r"incomplete|not a JSON object|not a page|continues its listing on|1 files and folders without their folder"
    )
    assert re.search(messages, report.failed[0].error)
    assert {authorization for kind, _, authorization in site.log if kind == "download"} == {""}
    assert len(_seen(collection)) == 4


def test_a_library_that_cannot_be_listed_keeps_its_documents(site: Site, collection: Collection) -> None:
    site.put("Wiki/a.txt")
    site.put("Locked/b.txt")
    _sync(site, collection)
    site.answer = lambda kind, path: (403, {}, error("accessDenied")) if path == "Locked" else None
    del site.items["Wiki/a.txt"]
    report = collection.sync(allow_mass_delete=True)
    assert (report.removed, [it.uri for it in report.failed]) == (1, ["hb/Locked"])
    assert _seen(collection) == {"Locked/b.txt"}


def test_names_that_are_not_paths_are_skipped(site: Site) -> None:
    site.put("Wiki/a.txt")
    root, file = (site.describe(path) for path in site.items)
    names = ["..", "x/y.txt", "/etc/passwd", "\ud800", "ok.txt"]
    value = [root, *({**file, "id": str(number), "name": name} for number, name in enumerate(names))]
    body = {"value": value, "@odata.deltaLink": "x"}
    site.answer = lambda kind, path: (200, {}, body) if kind == "delta" else None
    connector = _connector(site)
    assert _paths(connector) == {"Wiki/ok.txt"}
    assert len([ref for ref in connector.refs() if ref.skip == "its name is not a valid path"]) == 4


# --- Permissions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hierarchical", [True, False])
def test_permissions_decide_who_sees_a_file(
    site: Site, collection: Collection, identities: str, hierarchical: bool
) -> None:
    site.hierarchical = hierarchical
    for name in ("a.txt", "b.txt", "c.txt", "d.txt", "hr/e.txt", "hr/open.txt"):
        site.put(f"{DOCS}/{name}")
    site.permit(f"{DOCS}/b.txt", grant("ann@contoso.com"), grant("eve@contoso.com", role="write"))
    site.permit(f"{DOCS}/c.txt", link("organization"))
    site.permit(f"{DOCS}/d.txt", link("users", "ANN@contoso.com"), link("existingAccess"), link("anonymous"))
    site.permit(f"{DOCS}/hr", grant("hr@contoso.com", kind="group"))
    site.permit(f"{DOCS}/hr/open.txt", grant("hr@contoso.com", kind="group"), grant("ann@contoso.com"))
    report = _sync(site, collection, identities=identities)
    assert {it.identity for it in report.unmapped} == {"eve@contoso.com", "link:anonymous"}
    assert _seen(collection) == {"c.txt"}
    assert _seen(collection, "all") == {"a.txt", "c.txt"}
    assert _seen(collection, "ann") == {"b.txt", "c.txt", "d.txt", "hr/open.txt"}
    assert _seen(collection, "hr") == {"c.txt", "hr/e.txt", "hr/open.txt"}

    site.log.clear()
    assert collection.sync().unchanged == 6
    own = ["", "/b.txt", "/c.txt", "/d.txt", "/hr", "/hr/open.txt"]
    files = ["", "/a.txt", "/b.txt", "/c.txt", "/d.txt", "/hr/e.txt", "/hr/open.txt"]
    assert sorted(site.asked("permissions")) == [f"{DOCS}{path}" for path in (own if hierarchical else files)]

    site.permit(f"{DOCS}/hr", grant("ann@contoso.com"))
    site.permit(f"{DOCS}/c.txt")
    site.items[f"{DOCS}/c.txt"].version += 1  # of the metadata
    report = collection.sync()
    assert (report.unchanged, site.asked("download")) == (6, [])
    assert _seen(collection) == set()
    assert _seen(collection, "ann") == {"b.txt", "d.txt", "hr/e.txt", "hr/open.txt"}


def test_permissions_that_cannot_be_read_keep_the_groups(site: Site, collection: Collection, identities: str) -> None:
    for name in ("a.txt", "hr/b.txt"):
        site.put(f"{DOCS}/{name}")
    site.permit(f"{DOCS}/hr", grant("hr@contoso.com"))
    _sync(site, collection, identities=identities)
    site.put(f"{DOCS}/hr/b.txt", "The text of all, and more.")
    site.permit(f"{DOCS}/hr", grant("everyone@contoso.com"))
    site.answer = lambda kind, path: (
        (403, {}, error("accessDenied")) if (kind, path) == ("permissions", f"{DOCS}/hr") else None
    )
    report = collection.sync()
    assert [it.uri for it in report.failed] == [f"hb/{DOCS}/hr"]
    assert "Sites.FullControl.All" in report.failed[0].error
    assert (_seen(collection, "all"), _seen(collection, "hr")) == ({"a.txt"}, {"hr/b.txt"})
    site.answer = lambda kind, path: (403, {}, error("accessDenied")) if kind == "permissions" else None
    with pytest.raises(SourceError, match="accessDenied"):
        list(_connector(site, "/Shared%20Documents", identities=identities).refs())


def test_a_folder_below_the_library_has_its_permissions(site: Site, identities: str) -> None:
    site.put(f"{DOCS}/hr/sub/a.txt")
    assert [ref.allow for ref in _connector(site, f"/{DOCS}/hr/sub", identities=identities).refs()] == [("all",)]
    site.permit(f"{DOCS}/hr", grant("hr@contoso.com"))
    assert [ref.allow for ref in _connector(site, f"/{DOCS}/hr/sub", identities=identities).refs()] == [("hr",)]


def test_a_file_that_changes_or_is_closed_after_the_listing_is_not_read(site: Site, identities: str) -> None:
    site.put("Wiki/a.txt")
    connector = _connector(site, identities=identities)
    (ref,) = connector.refs()
    assert connector.fetch(ref).data
    site.permit("Wiki/a.txt", grant("ann@contoso.com"))
    with pytest.raises(ConnectorError, match="has changed since it was listed"):
        connector.fetch(ref)
    (ref,) = connector.refs()
    site.put("Wiki/a.txt", "Another text.")
    with pytest.raises(ConnectorError, match="has changed since it was listed"):
        connector.fetch(ref)
    del site.items["Wiki/a.txt"]
    with pytest.raises(ConnectorError, match="itemNotFound"):
        connector.fetch(ref)


@pytest.mark.parametrize(
    ("permission", "expected"),
    [
        ({"roles": ["read"], "grantedToV2": {"user": {"id": "8f5a", "email": None}}}, ["8f5a"]),
        (
            {"roles": ["owner"], "grantedToV2": {"siteGroup": {"id": "3", "displayName": "HR Owners"}}},
            ["site:HR Owners"],
        ),
        ({"roles": ["read"], "grantedToV2": {"siteUser": {"id": "4", "loginName": "c:0(.s|true"}}}, ["c:0(.s|true"]),
        ({"roles": ["read"], "grantedToV2": {"group": {"id": "94da_o", "email": "hr@contoso.com"}}}, ["94da_o"]),
        (
            {
                "roles": ["read"],
                "grantedToV2": {
                    "group": {"id": "94da", "email": "hr@contoso.com"},
                    "siteUser": {"id": "4", "loginName": "c:0o.c|federateddirectoryclaimprovider|94da_o"},
                },
            },
            ["94da_o"],
        ),
        ({"roles": ["read"], "grantedToV2": {"application": {"id": "1"}}}, []),
        ({"roles": ["none"], "grantedToV2": {"user": {"id": "1"}}}, []),
        ({"roles": ["read"], "link": {"scope": "anonymous"}}, ["link:anonymous"]),
        ({"roles": ["read"], "link": {"scope": "anonymous"}, "hasPassword": True}, []),
        ({"roles": ["read"], "link": {"scope": "organization"}, "expirationDateTime": "2020-01-01T00:00:00Z"}, []),
        (
            {"roles": ["read"], "link": {"scope": "organization"}, "expirationDateTime": "0001-01-01T00:00:00Z"},
            ["link:organization"],
        ),
        ({}, []),
    ],
)
def test_identities_of_a_permission(permission: dict[str, Any], expected: list[str]) -> None:
    assert list(sharepoint._grantees(permission)) == expected


# --- Requests ----------------------------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again_after_the_time_that_it_names(site: Site) -> None:
    site.put("Wiki/a.txt")
    answers: list[Answer] = [(503, {"Retry-After": "7"}, {}), (429, {"Retry-After": "9"}, {})]
    site.answer = lambda kind, path: answers.pop() if answers else None
    connector = _connector(site)
    waited: list[float] = []
    connector._client.sleep = waited.append
    assert _paths(connector) == {"Wiki/a.txt"}
    assert waited == [9.0, 7.0]


def test_secrets_reach_their_own_host_only(
    site: Site, collection: Collection, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG, logger="ragfm_connectors")
    site.put("Wiki/a.txt")
    _sync(site, collection)
    assert {authorization for kind, _, authorization in site.log if kind in ("token", "download")} == {""}
    assert {authorization for kind, _, authorization in site.log if kind == "content"} == {"Bearer token0"}
    site.put("Wiki/a.txt", "Another text.")
    site.answer = lambda kind, path: (503, {}, {}) if kind == "download" else None
    options = _options(site, retries=1)
    report = collection.sync(SITE, connector="sharepoint", name="hb", options=options)
    assert "503" in report.failed[0].error
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "retry in" in caplog.text
    for secret in (SECRET, DOWNLOAD_SECRET, "token0"):
        assert secret not in caplog.text + str(report)
        assert secret.encode() not in stored
    connector = _connector(site, retries=0)
    (ref,) = connector.refs()
    for host, message in [("169.254.169.254", "not a public address"), ("127.0.0.1:1", "cannot be reached")]:
        site.downloads = f"http://{host}"
        with pytest.raises(ConnectorError, match=message) as caught:
            connector.fetch(ref)
        assert DOWNLOAD_SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "message", "hint"),
    [
        (401, "InvalidAuthenticationToken", "status 401", "Check the application"),
        (403, "accessDenied", r"status 403 \(accessDenied\)", "Grant the application Sites.Read.All"),
        (404, "itemNotFound", r"\(itemNotFound\) for /sites/contoso.sharepoint.com:/sites/handbook", "The next ingest"),
    ],
)
def test_refusals_are_clear_errors(site: Site, status: int, code: str, message: str, hint: str) -> None:
    site.answer = lambda kind, path: (status, {}, error(code))
    with pytest.raises(SourceError, match=message) as caught:
        list(_connector(site).refs())
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        ("drives", {"id": "x", "webUrl": 7}),
        ("delta", {"id": "x", "root": {}, "file": "a.txt"}),
        ("delta", {"id": "x", "root": {}, "size": "many"}),
        ("delta", {"id": "x", "parentReference": ["y"]}),
        ("permissions", {"id": "x", "roles": ["read"], "grantedToV2": "ann"}),
        ("permissions", {"id": "x", "roles": ["read"], "grantedToV2": {"user": {"id": 7}}}),
    ],
)
def test_answers_of_another_form_are_clear_errors(
    site: Site, identities: str, kind: str, entry: dict[str, Any]
) -> None:
    site.put("Wiki/a.txt")
    site.answer = lambda asked, path: (200, {}, {"value": [entry]}) if asked == kind else None
    with pytest.raises(SourceError, match="does not have the expected form"):
        list(_connector(site, "/Wiki", identities=identities).refs())


def test_a_wrong_secret_is_a_clear_error_without_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPH_SECRET", "wr0ng-secret")
    with pytest.raises(SourceError, match="AADSTS7000215: Invalid client secret") as caught:
        list(_connector(site).refs())
    assert "wr0ng" not in str(caught.value)
    monkeypatch.delenv("GRAPH_SECRET")
    with pytest.raises(ConfigError, match="GRAPH_SECRET"):
        list(_connector(site).refs())


@pytest.mark.parametrize(
    ("location", "options", "message"),
    [
        (SITE, {"client_id": ""}, "needs the options"),
        (SITE, {"client_secret": "s3cret"}, "contains a secret"),
        ("https://ann:s3cret@contoso.sharepoint.com/sites/x", {}, "contains a secret"),
        ("https://contoso.sharepoint.com/Wiki", {}, "not the address of a SharePoint site"),
        (f"{SITE}/Forms/AllItems.aspx?id=7", {}, "not the address of a SharePoint site"),
        (SITE, {"graph": "graph.microsoft.us"}, "not a web address"),
    ],
)
def test_settings_that_are_refused(location: str, options: dict[str, Any], message: str) -> None:
    ids: dict[str, Any] = {"tenant": "contoso.com", "client_id": "6731de76", "client_secret": "${GRAPH_SECRET}"}
    with pytest.raises(ConfigError, match=message) as caught:
        SharepointConnector(location, **{**ids, **options})
    assert "s3cret" not in str(caught.value)


def test_interruptions_at_any_point_lose_nothing(site: Site, collection: Collection) -> None:
    for number in range(10):
        site.put(f"{DOCS}/f{number % 4}/{number}.txt", f"The text of all {number}.")
    site.page_size, rng, clean = 4, random.Random(7), 0
    for _ in range(12):
        left = [rng.randint(0, 30)]

        def answer(kind: str, path: str, left: list[int] = left) -> Answer | None:
            left[0] -= 1
            return (500, {}, error("generalException")) if left[0] < 0 else None

        site.answer = answer
        try:
            report = _sync(site, collection, retries=0)
        except SourceError:
            continue
        clean += not report.failed
        assert report.removed == 0
    site.answer = lambda kind, path: None
    assert collection.sync(retry=True).failed == ()
    assert len(_seen(collection)) == 10
    assert clean < 12
