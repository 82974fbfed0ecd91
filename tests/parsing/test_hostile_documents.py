"""Hostile and damaged files: each is ingested or reported, and all good files next to them are ingested."""

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
from support.parser_plugins import PLUGINS, plugin

from ragfm import Collection
from ragfm.core.config import Settings
from ragfm.core.errors import ConnectorError
from ragfm.core.types import Ref
from ragfm.ingestion.ingest_report import document_uri
from ragfm.parsing.sandbox.worker_pool import WorkerPool
from ragfm.parsing.sandbox.worker_process import Limits, WorkerProcess
from ragfm.testing import HashingEmbedder

_CANARY = "canary-7b1f0a"
_MEMORY = 1 << 30
_HEAVY_MEMORY = 3 << 30


@pytest.fixture(params=["ragfm", *PLUGINS])
def parser_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def workers(parser_name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPool]:
    # A heavy parser has only the total limit, which would take minutes for each bomb.
    pool = WorkerPool(Limits(stall_seconds=10) if parser_name == "ragfm" else Limits(seconds=20, seconds_per_mib=0))
    monkeypatch.setattr("ragfm.parsing.sandbox.worker_pool._shared", pool)
    yield pool
    pool.close()


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every measurement of a worker's resident memory."""
    measurements: list[int] = []
    measure = WorkerProcess._resident_memory

    def record(self: WorkerProcess) -> int:
        measurements.append(measure(self))
        return measurements[-1]

    monkeypatch.setattr(WorkerProcess, "_resident_memory", record)
    return measurements


def _good(folder: Path) -> None:
    (folder / "0-first.md").write_text("# First\n\nThe first good one.\n")
    (folder / "k-middle.html").write_text("<html><body><h1>Middle</h1><p>The middle good one.</p></body></html>")
    (folder / "z-last.csv").write_text("good,one\nlast,1\n")


def _keep_own_formats(folder: Path, parser_name: str) -> None:
    """Remove the files that another library does not read: ragfm's parsers read them, as in the first row."""
    own = {suffix for entry in plugin(parser_name).formats for suffix in entry.suffixes}
    for path in filter(Path.is_file, [*folder.rglob("*")]):
        if parser_name != "ragfm" and path.suffix.lower() not in own:
            path.unlink()


def _sync_and_check(collection: Collection, folder: Path) -> set[str]:
    """Ingest a folder, check that each file is ingested or reported, and return the URIs of the documents."""
    report = collection.sync(folder)
    reported = {skip.uri: skip.why for skip in report.skipped} | {failed.uri: failed.error for failed in report.failed}
    ingested = {info.uri for info in collection.documents()}
    for path in folder.rglob("*"):
        if path.is_file():
            uri = document_uri(folder.name, path.relative_to(folder).as_posix())
            known = {*ingested, *reported}
            assert uri in known or any(entry.startswith(f"{uri}/") for entry in known), uri
    assert all(reported.values())
    return ingested


@pytest.fixture
def collection(parser_name: str, tmp_path: Path, embedder: HashingEmbedder) -> Collection:
    """A collection whose documents are read by this parser, where it reads their format."""
    parsers = {entry.suffixes[0]: parser_name for entry in plugin(parser_name).formats}
    settings = Settings(parse={"parsers": parsers})
    return Collection.open(tmp_path / ".ragfm", settings=settings, embedder=embedder)


@pytest.mark.slow
def test_bombs(tmp_path: Path, parser_name: str, collection: Collection, workers: WorkerPool, peaks: list[int]) -> None:
    (tmp_path / "canary.txt").write_text(_CANARY)
    folder = tmp_path / "docs"
    folder.mkdir()
    write_bombs(folder, tmp_path / "canary.txt")
    _keep_own_formats(folder, parser_name)
    _good(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ingested = _sync_and_check(collection, folder)
    assert {"docs/0-first.md", "docs/k-middle.html", "docs/z-last.csv"} <= ingested
    assert not any(_CANARY in collection.document(uri).text for uri in ingested)
    assert max(peaks) < 1.2 * (_MEMORY if parser_name == "ragfm" else _HEAVY_MEMORY)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB
    assert not Path("unpickled").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"docs", "canary.txt", ".ragfm"}


@pytest.mark.slow
@pytest.mark.data
def test_malformed_files(
    tmp_path: Path, parser_name: str, collection: Collection, data: Path, workers: WorkerPool
) -> None:
    folder = tmp_path / "docs"
    shutil.copytree(data / "documents" / "malformed", folder)
    _keep_own_formats(folder, parser_name)
    _good(folder)
    ingested = _sync_and_check(collection, folder)
    assert {"docs/0-first.md", "docs/k-middle.html", "docs/z-last.csv"} <= ingested


_SWAP = """
import sys
from pathlib import Path
target, real, link = map(Path, sys.argv[1:])
while True:
    real.rename(target), target.rename(real), link.rename(target), target.rename(link)
"""


@pytest.mark.parametrize("kind", ["file", "folder", "archive"])
def test_swapping_links_never_leads_out_of_the_folder(tmp_path: Path, kind: str) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "docs"
    for place, text in ((outside, _CANARY), (folder / "real", "good"), (tmp_path, _CANARY)):
        place.mkdir(exist_ok=True, parents=True)
        (place / "a.md").write_text(text)
        with zipfile.ZipFile(place / "b.zip", "w") as archive:
            archive.writestr("a.md", text)
    if kind == "folder":
        (folder / "link").symlink_to(outside)
        names = "sub", "real", "link"
    else:
        name = "a.md" if kind == "file" else "b.zip"
        (folder / name).write_bytes((folder / "real" / name).read_bytes())
        (folder / f".{name}").symlink_to(outside / name)
        names = f"sub{name}", name, f".{name}"
    swapping = subprocess.Popen([sys.executable, "-c", _SWAP, *(folder / name for name in names)])
    read, connector, began = [], FilesConnector(folder), time.monotonic()
    while time.monotonic() - began < (2 if b"good" in read else 60):  # the other process has to start first
        with suppress(ConnectorError):
            read.append(
                connector.fetch(Ref(f"sub{'/a.md' if kind == 'folder' else name}{'/a.md' * (kind == 'archive')}")).data
            )
    swapping.kill()
    swapping.wait()
    assert b"good" in read
    assert _CANARY.encode() not in read
