"""`ragfm sources --check`: sources that can be ingested, and those that cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.shell import Shell

from ragfm import Collection, Settings
from ragfm.core.config import SourceSection
from ragfm.ingestion import source_check
from ragfm.ingestion.source_check import check_source, find_sources


def _write_settings(folder: Path, *tables: str) -> Shell:
    (folder / "ragfm.toml").write_text("".join(f"[[sources]]\n{table}\n" for table in tables))
    return Shell(folder)


def test_a_good_source_is_checked_without_being_ingested(docs: Path, tmp_path: Path) -> None:
    shell = _write_settings(tmp_path, 'location = "docs"')
    found = shell.json("sources", "--check")
    size = len((docs / "hours.txt").read_bytes())
    good = {"name": "docs", "listed": 4, "fetched": "docs/hours.txt", "bytes": size, "unmapped": []}
    assert found == {"ok": True, "sources": [good | {"error": "", "hint": ""}]}
    assert not (tmp_path / ".ragfm").exists()
    text = shell("sources", "docs", "--check").stdout
    assert text == f"ok      docs  4 items listed, docs/hours.txt fetched ({size} bytes)\n"
    by_location = _write_settings(tmp_path, 'location = "docs"\nname = "handbook"')
    assert [one["name"] for one in by_location.json("sources", "docs/", "--check")["sources"]] == ["handbook"]
    error = shell.json("sources", "dosc", "--check", code=1)["error"]
    assert "no source 'dosc'" in error["message"]


@pytest.mark.parametrize("every", ["0s", "1.5h", "soon", "1w", "-1m", ""])
def test_a_schedule_that_cannot_be_read_is_an_error_that_names_it(docs: Path, tmp_path: Path, every: str) -> None:
    shell = _write_settings(tmp_path, f'location = "docs"\nevery = "{every}"')
    assert "`sources.0.every`" in shell("ingest", code=1).stderr


def test_a_missing_folder_fails_alone_and_then_its_last_sync(docs: Path, tmp_path: Path) -> None:
    shell = _write_settings(tmp_path, 'location = "docs"', 'location = "away"')
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "one.md").write_text("One.")
    shell("ingest")
    (tmp_path / "away").rename(tmp_path / "gone")
    good, bad = shell.json("sources", "--check", code=1)["sources"]
    assert (good["name"], good["error"], bad["name"], bad["fetched"]) == ("docs", "", "away", None)
    assert str(tmp_path / "away") in bad["error"]
    assert shell("sources", "docs", "--check").stdout.startswith("ok ")
    assert shell("sources", "--check", code=1).stdout.splitlines()[1].startswith("failed  away  ")

    shell("ingest", code=3)
    assert [failure["uri"] for failure in shell.json("sources", "away")["sources"][0]["failures"]] == ["away"]
    (tmp_path / "gone").rename(tmp_path / "away")
    (bad,) = shell.json("sources", "away", "--check", code=1)["sources"]
    assert bad["listed"] == 1
    assert bad["error"].startswith("The last sync failed: ")
    shell("ingest")
    assert shell.json("sources", "--check")["ok"]


def test_wrong_credentials_fail_without_being_shown(tmp_path: Path) -> None:
    pytest.importorskip("wsgidav", reason="wsgidav is not installed (extra dev)")
    from support.webdav import PASSWORD, serve_share

    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "a.txt").write_text("The text of all.")
    with serve_share(tmp_path / "share") as share:
        written = f"http://ann:wr0ng-passw0rd@127.0.0.1:{share.port}/docs"
        tables = [f'location = "{address}"\nconnector = "webdav"' for address in (share.location, written)]
        shell = _write_settings(tmp_path, tables[0])
        shell.env |= {"DAV_PASSWORD": PASSWORD}
        shell("ingest")
        _write_settings(tmp_path, *tables)
        good, bad = shell.json("sources", "--check", code=1)["sources"]
        assert (good["error"], good["fetched"]) == ("", f"{share.url}/a.txt")
        assert (bad["name"], bad["listed"]) == (share.url, 0)
        assert "contains a secret" in bad["error"]
        shell.env |= {"DAV_PASSWORD": "wr0ng-passw0rd"}
        refused, _ = shell.json("sources", "--check", code=1)["sources"]
        assert "refuses the user name, password or token" in refused["error"]
        shell("ingest", code=3)
        for words in (["sources", "--check"], ["sources", "--check", "--json"], ["status"], ["status", "--json"]):
            done = shell(*words, code="--check" in words)
            assert share.url in done.stdout
            assert "wr0ng" not in done.stdout + done.stderr


def test_identities_without_a_group_are_counted(docs: Path, tmp_path: Path) -> None:
    (tmp_path / "identities.toml").write_text('"nobody-of-these" = "staff"\n')
    (docs / "hours.txt").chmod(0o600)
    shell = _write_settings(tmp_path, 'location = "docs"\noptions = {identities = "identities.toml"}')
    (found,) = shell.json("sources", "--check")["sources"]
    assert found["error"] == ""
    assert f"user:{docs.owner()}" in found["unmapped"]
    text = shell("sources", "--check").stdout
    assert f"; {len(found['unmapped'])} not mapped: " in text
    assert f"user:{docs.owner()}" in text


def test_a_check_lists_a_part_and_goes_past_what_is_skipped(
    docs: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = SourceSection(location=str(docs), name="docs", options={"max_bytes": 60})
    collection.store.settings = Settings(embedder="hashing", sources=[section])
    monkeypatch.setattr(source_check, "MAX_LISTED", 3)
    (entry,) = find_sources(collection.store, "docs")
    found = check_source(collection.store, entry)
    sizes = {file.name: file.stat().st_size for file in docs.iterdir()}
    assert (found.listed, found.error, found.fetched is not None) == (2, "", True)
    assert found.bytes == sizes[Path(found.fetched or "").name] <= 60
