"""Servers that sync sources on a schedule, each in a process of its own."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.running_server import Running, eventually, serve

from ragfm import Collection
from ragfm.testing import ScriptedReader

READER = ScriptedReader("Yes.")


def _schedule(folder: Path, every: str) -> None:
    (folder / "ragfm.toml").write_text(f'embedder = "hashing"\n[[sources]]\nlocation = "docs"\nevery = "{every}"\n')


def _events(caplog: pytest.LogCaptureFixture, name: str) -> list[dict[str, Any]]:
    return [record.fields for record in caplog.records if getattr(record, "event", "") == name]  # type: ignore[attr-defined]


def _shows(running: Running, failing: int) -> bool:
    text = running.client().get("/metrics").text
    return f'ragfm_sources_failing{{collection="handbook"}} {failing}.0\n' in text


@pytest.mark.both_databases
def test_of_two_servers_one_syncs_a_source_that_is_due(
    collection: Collection, docs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ragfm.server")
    collection.sync(docs)
    (docs / "new.md").write_text("The canteen opens at noon.\n")
    _schedule(tmp_path, "1h")
    with (
        serve(tmp_path, READER, collection=collection.location),
        serve(tmp_path, READER, collection=collection.location),
    ):
        eventually(lambda: collection.status().documents == 5, 60)
        eventually(lambda: _events(caplog, "source_synced"), 60)
        time.sleep(3)  # in which the other one has looked, too
    synced = _events(caplog, "source_synced")
    assert (sum(event["added"] for event in synced), sum(event["unchanged"] for event in synced)) == (1, 4)
    assert _events(caplog, "source_failed") == []


def test_a_source_that_fails_is_in_the_metrics_and_the_status_until_a_sync_succeeds(
    collection: Collection, docs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    collection.sync(docs)
    _schedule(tmp_path, "1s")
    with serve(tmp_path, READER, collection=collection.location) as running:
        assert _shows(running, 0)
        docs.rename(tmp_path / "away")
        eventually(lambda: _shows(running, 1), 60)
        (failure,) = collection.status().failed
        assert (failure.uri, failure.stage) == ("docs", "list")
        eventually(lambda: _events(caplog, "source_failed"))
        assert _events(caplog, "source_failed")[0]["source"] == "docs"
        (tmp_path / "away").rename(docs)
        (docs / "new.md").write_text("The canteen opens at noon.\n")
        eventually(lambda: _shows(running, 0), 60)
    assert (collection.status().documents, collection.status().failed) == (5, ())


def test_a_process_that_crashes_counts_as_a_failure(
    collection: Collection, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.sync(docs)
    _schedule(tmp_path, "1h")
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", "/bin/false")
        with serve(tmp_path, READER, collection=collection.location) as running:
            eventually(lambda: _shows(running, 1), 60)
            broken.undo()
            eventually(lambda: _shows(running, 0), 60)
    assert collection.status().failed == ()
