"""Hostile and damaged files: every file is in or named, and the good ones beside them are all in."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ragfm_connectors.files import FilesConnector
from support.decompression_bombs import write_bombs

from ragfm import Collection
from ragfm.core.errors import ConnectorError
from ragfm.core.types import Ref
from ragfm.ingestion.sources import document_uri
from ragfm.parsing.sandbox.worker_pool import Workers
from ragfm.parsing.sandbox.worker_process import Limits, Process

_CANARY = "canary-7b1f0a"
_MEMORY = 1 << 30


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    made = Workers(Limits(silence=10))
    monkeypatch.setattr("ragfm.parsing.sandbox.worker_pool._shared", made)
    yield made
    made.close()


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The resident memory of workers, as often as it is looked at."""
    seen: list[int] = []
    resident = Process._resident
    monkeypatch.setattr(Process, "_resident", lambda self: (seen.append(resident(self)), seen[-1])[1])
    return seen


def _good(folder: Path) -> None:
    (folder / "0-first.md").write_text("# First\n\nThe first good one.\n")
    (folder / "k-middle.html").write_text("<html><body><h1>Middle</h1><p>The middle good one.</p></body></html>")
    (folder / "z-last.csv").write_text("good,one\nlast,1\n")


def _in_or_named(collection: Collection, folder: Path, **given: object) -> tuple[set[str], dict[str, str]]:
    report = collection.sync(folder, **given)
    named = {skip.uri: skip.why for skip in report.skipped} | {failed.uri: failed.error for failed in report.failed}
    held = {info.uri for info in collection.documents()}
    for path in folder.rglob("*"):
        if path.is_file():
            uri = document_uri(folder.name, path.relative_to(folder).as_posix())
            assert uri in held or uri in named or any(entry.startswith(f"{uri}/") for entry in (*held, *named)), uri
    assert all(named.values())
    return held, named


@pytest.mark.slow
def test_bombs(tmp_path: Path, collection: Collection, workers: Workers, peaks: list[int]) -> None:
    (tmp_path / "canary.txt").write_text(_CANARY)
    folder = tmp_path / "docs"
    folder.mkdir()
    write_bombs(folder, tmp_path / "canary.txt")
    _good(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held, _ = _in_or_named(collection, folder)
    assert {"docs/0-first.md", "docs/k-middle.html", "docs/z-last.csv"} <= held
    assert not any(_CANARY in collection.document(uri).text for uri in held)
    assert max(peaks) < 1.2 * _MEMORY
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB
    assert not Path("unpickled").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"docs", "canary.txt", ".ragfm"}


@pytest.mark.slow
@pytest.mark.data
def test_malformed_files(tmp_path: Path, collection: Collection, data: Path, workers: Workers) -> None:
    folder = tmp_path / "docs"
    shutil.copytree(data / "documents" / "malformed", folder)
    _good(folder)
    held, _ = _in_or_named(collection, folder)
    assert {"docs/0-first.md", "docs/k-middle.html", "docs/z-last.csv"} <= held


_SWAP = """
import sys
from pathlib import Path
place, one, other = map(Path, sys.argv[1:])
while True:
    one.rename(place), place.rename(one), other.rename(place), place.rename(other)
"""


@pytest.mark.parametrize("what", ["file", "folder", "archive"])
def test_a_race_of_links_never_leads_out(tmp_path: Path, what: str) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "docs"
    for place, text in ((outside, _CANARY), (folder / "real", "good"), (tmp_path, _CANARY)):
        place.mkdir(exist_ok=True, parents=True)
        (place / "a.md").write_text(text)
        with zipfile.ZipFile(place / "b.zip", "w") as archive:
            archive.writestr("a.md", text)
    if what == "folder":
        (folder / "link").symlink_to(outside)
        names = "sub", "real", "link"
    else:
        name = "a.md" if what == "file" else "b.zip"
        (folder / name).write_bytes((folder / "real" / name).read_bytes())
        (folder / f".{name}").symlink_to(outside / name)
        names = f"sub{name}", name, f".{name}"
    swapping = subprocess.Popen([sys.executable, "-c", _SWAP, *(folder / name for name in names)])
    read, connector, began = [], FilesConnector(folder), time.monotonic()
    while time.monotonic() - began < 2:
        with suppress(ConnectorError):
            read.append(
                connector.fetch(Ref(f"sub{'/a.md' if what == 'folder' else name}{'/a.md' * (what == 'archive')}")).data
            )
    swapping.kill()
    swapping.wait()
    assert b"good" in read
    assert _CANARY.encode() not in read
