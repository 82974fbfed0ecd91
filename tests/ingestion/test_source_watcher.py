"""`ragfm watch` with real folders and a real process."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from support.shell import Shell

from ragfm import Collection
from ragfm.core.errors import SourceError
from ragfm.ingestion.source_watcher import WatchEvent
from ragfm.ingestion.source_watcher import watch as watch_sources

pytestmark = pytest.mark.timing

_COMMAND = [sys.executable, "-c", "from ragfm.cli import main; main()", "watch"]


class _Watch:
    """The command in a process, with its output."""

    def __init__(self, shell: Shell, *words: str) -> None:
        self.process = subprocess.Popen(
            [*_COMMAND, *words],
            cwd=shell.folder,
            env=shell.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.stdout: Queue[str] = Queue()
        self.stderr: Queue[str] = Queue()
        for stream, lines in ((self.process.stdout, self.stdout), (self.process.stderr, self.stderr)):
            threading.Thread(target=lambda stream=stream, lines=lines: [*map(lines.put, stream)], daemon=True).start()

    def until(self, **wanted: Any) -> Any:
        """The next sync with these counts; a change may be seen in two parts."""
        while True:
            event = json.loads(self.stdout.get(timeout=120))
            if all(event[key] == value for key, value in wanted.items()):
                return event

    def end(self, number: int = signal.SIGINT) -> None:
        self.process.send_signal(number)
        assert self.process.wait(60) == 0
        assert self.stderr.empty()


@pytest.fixture
def shell(tmp_path: Path, docs: Path) -> Shell:
    other = tmp_path / "other"
    other.mkdir()
    (other / "one.md").write_text("One.")
    (tmp_path / "ragfm.toml").write_text('[[sources]]\nlocation = "docs"\n[[sources]]\nlocation = "other"\n')
    return Shell(tmp_path)


@pytest.fixture
def watch(shell: Shell) -> Iterator[_Watch]:
    watching = _Watch(shell, "--json")
    yield watching
    watching.process.kill()
    watching.process.wait()


@pytest.mark.slow
def test_a_collection_follows_changes_in_its_folders(shell: Shell, docs: Path, watch: _Watch) -> None:
    assert watch.until(source="docs")["added"] == 4
    assert watch.until(source="other")["added"] == 1
    (docs / "new.md").write_text("# New\n\nThe canteen opens at noon.")
    assert watch.until(added=1)["source"] == "docs"
    (docs / "new.md").unlink()
    assert watch.until(removed=1)["source"] == "docs"
    shutil.move(shell.folder / "other", shell.folder / "away")
    assert watch.until(source="other")["error"]["type"] == "SourceError"
    (docs / "late.md").write_text("Late.")
    assert watch.until(added=1)["source"] == "docs"
    (shell.folder / "away" / "one.md").write_text("Another one.")
    shutil.move(shell.folder / "away", shell.folder / "other")
    assert watch.until(source="other", updated=1)["error"] is None
    watch.end()
    assert shell.json("status")["documents"] == 6


@pytest.mark.slow
def test_it_ends_between_two_commits(shell: Shell, docs: Path) -> None:
    for number in range(1500):
        (docs / f"{number}.md").write_text(f"# {number}\n\n" + f"It is number {number}. " * 40)
    watching = _Watch(shell, "--json")
    while not (shell.folder / ".ragfm" / "HEAD").exists():
        time.sleep(0.05)
    watching.end(signal.SIGTERM)
    assert watching.stdout.empty()  # it was in the middle of the first sync
    assert shell.json("status")["documents"] < 1504
    assert shell.json("verify")["damaged"] is False


@pytest.mark.slow
def test_one_line_for_each_sync(shell: Shell, docs: Path) -> None:
    (docs / "fake.pdf").write_text("No PDF.")
    watching = _Watch(shell, "--interval", "1")
    lines = [watching.stderr.get(timeout=120) for _ in range(5)]
    watching.process.kill()
    assert all(line[8:].startswith((" docs: ", " other: ")) for line in lines)
    assert "4 added, 0 updated, 0 removed, 0 unchanged, 1 failed (fake.pdf is named .pdf but is not a PDF" in lines[0]
    assert any("docs: 0 added" in line for line in lines[2:])


@pytest.mark.both_databases
def test_changes_while_it_syncs_are_not_lost(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    stop, events = threading.Event(), list[WatchEvent]()

    def callback(event: WatchEvent) -> None:
        events.append(event)
        if len(events) == 1:
            (docs / "meanwhile.md").write_text("Meanwhile.")
        elif event.report.added or len(events) > 3:
            stop.set()

    watch_sources(collection.store, callback, 300.0, stop)
    assert events[1].report.added == 1


def test_watching_without_a_source_is_an_error(collection: Collection) -> None:
    with pytest.raises(SourceError, match="no source to watch"):
        watch_sources(collection.store, lambda _: None, 300.0, threading.Event())


def test_changes_in_the_collection_itself_are_ignored(tmp_path: Path, collection: Collection, docs: Path) -> None:
    inside = Collection.open(docs / ".ragfm", settings=collection.settings, embedder=collection._store._embedder_option)
    inside.sync(docs)
    stop, events = threading.Event(), list[WatchEvent]()

    def callback(event: WatchEvent) -> None:
        events.append(event)
        threading.Timer(2.5, stop.set).start()

    watch_sources(inside.store, callback, 300.0, stop)
    assert len(events) == 1
    assert (docs / ".ragfm" / "HEAD").exists()
