"""Jobs that change a collection, and report which changes are acknowledged."""

from __future__ import annotations

import io
import os
import random
import secrets
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from ragfm import Collection, Settings
from ragfm.core.errors import DiskFullError, RagfmError
from ragfm.store.catalog_writer import CatalogWriter
from ragfm.store.tables import text_hash
from ragfm.store.uploads import UPLOADS_SOURCE, UploadFolder
from support.torture.expected_state import ALLOWED, SOURCES
from support.torture.helpers import CachedHashingEmbedder, Report, open_collection, prose

UPLOAD, UPLOAD_ID = b"# Note\n\nThe uploaded text.\n", "0123456789abcdef"
BACKUP = "collection.backup"


class Author:
    """Changes the files of two sources, ingests them, and reports what was acknowledged."""

    def __init__(self, report: Report, folder: Path, place: str | Path, rng: random.Random) -> None:
        self.report = report
        self.folder = folder
        self.rng = rng
        self.collection = open_collection(place)
        committed, restricted = CatalogWriter.commit, CatalogWriter.save_source

        def commit(catalog: CatalogWriter, source: Any, added: Any, removed: Any) -> int:
            generation = committed(catalog, source, added, removed)
            now = {new.document.uri: text_hash(new.document.text).hex() for new in added}
            gone = dict.fromkeys(f"{source.name}/{path}" for path in removed)
            report({"committed": now | gone, "generation": generation})
            return generation

        def save_source(catalog: CatalogWriter, source: Any) -> Any:
            saved = restricted(catalog, source)
            report({"allowed": {source.name: sorted(source.allow)}})
            return saved

        CatalogWriter.commit, CatalogWriter.save_source = commit, save_source  # type: ignore[method-assign]

    def mutate(self, source: str, changes: int) -> None:
        """Add, change, rename and remove files."""
        place = self.folder / source
        place.mkdir(exist_ok=True)
        for _ in range(changes):
            files = sorted(place.iterdir())
            what = self.rng.random()
            if files and (what < 0.2 or len(files) > 20):
                self.rng.choice(files).unlink()
            elif files and what < 0.3:
                self.rng.choice(files).replace(place / f"renamed-{self.rng.randrange(30)}.txt")
            else:
                file = place / f"{self.rng.randrange(30)}.{self.rng.choice(('txt', 'md'))}"
                text = prose(self.rng, f"# {file.stem}", self.rng.choice((1, 3, 12, 40)))
                temporary = self.folder / "half-written"  # a sync must see only complete files
                temporary.write_text(text)
                temporary.replace(file)

    def sync(self, source: str, allow: list[str] | None = None) -> None:
        """Ingest a source; report the plan before, and its completion after."""
        place = self.folder / source
        files = {f"{source}/{file.name}": text_hash(file.read_text()).hex() for file in sorted(place.iterdir())}
        plan = {"source": source, "documents": files, "allow": allow}
        self.report({"plan": plan})
        result = self.collection.sync(place, name=source, allow=allow, allow_mass_delete=True)
        if result.failed or result.skipped:
            raise AssertionError(f"the sync left something out: {result}")
        self.report({"synced": plan})

    def look(self) -> None:
        """Check that this process finds what it has committed."""
        source = self.rng.choice(SOURCES)
        files = sorted((self.folder / source).glob("*"))
        if files:
            file = self.rng.choice(files)
            line = file.read_text().splitlines()[0].removeprefix("# ")
            found = {hit.uri for hit in self.collection.search(line, k=50) if line in f"{hit.text} {hit.context}"}
            if f"{source}/{file.name}" not in found:
                raise AssertionError(f"{source}/{file.name} is not found by {line!r}, but {found}")


def ingest(report: Report, folder: str, place: str, seed: int) -> None:
    """Change files in a folder and ingest them, compact, and switch the embedder, until the process is killed."""
    from ragfm.ingestion import sync

    rng = random.Random(seed)
    sync.MAX_COMMIT_DOCUMENTS = rng.choice((1, 3, 500))  # one sync makes several commits
    author = Author(report, Path(folder), place, rng)
    while True:
        what = rng.random()
        source = rng.choice(SOURCES)
        if what < 0.08 and author.collection._store.exists:
            author.collection.compact()
        elif what < 0.14 and author.collection._store.exists:
            dim = rng.choice((32, 48, 64))
            author.collection.reembed(CachedHashingEmbedder(dim))
        elif what < 0.24:
            author.mutate(source, 0)
            author.sync(source, rng.choice(ALLOWED))
        else:
            author.mutate(source, rng.randint(1, 6))
            author.sync(source)
        if rng.random() < 0.3 and all((Path(folder) / source).is_dir() for source in SOURCES):
            for source in SOURCES:
                author.sync(source)
            author.look()


def prepare(report: Report, folder: str, seed: int) -> None:
    """Create a small closed collection with dead rows, and changed files for `CHANGES` to ingest."""
    rng, place = random.Random(seed), Path(folder)
    collection = open_collection(place / "c")
    for source in (*SOURCES, "later"):
        (place / source).mkdir()
        for number in range(4):
            (place / source / f"{number}.md").write_text(prose(rng, f"# {source} {number}", 6))
        collection.sync(place / source)
    for number in range(3):
        (place / "later" / "0.md").write_text(prose(rng, f"# again {number}", 6))
        collection.sync(place / "later")
    collection.close()
    before = files(place)
    (place / "a" / "0.md").write_text(prose(rng, "# a 0, changed", 6))
    (place / "a" / "1.md").unlink()
    (place / "a" / "new.md").write_text(prose(rng, "# a new", 6))
    (place / "b" / "2.md").unlink()
    report({"before": before, "after": files(place)})


def files(place: Path) -> dict[str, str]:
    """Expected hash of each document's text."""
    return {
        f"{file.parent.name}/{file.name}": text_hash(file.read_text()).hex()
        for source in (*SOURCES, "later")
        for file in sorted((place / source).iterdir())
    }


def one_change(report: Report, folder: str, change: str, seed: int, attempts: int = 1) -> None:
    """Wait for a tracer, then change a prepared collection, and report the outcomes."""
    place = Path(folder)
    try:
        collection = open_collection(place / "c")
        collection.search("anything")
    except DiskFullError as error:  # SQLite needs some space to read
        report({"outcomes": [{"type": type(error).__name__, "message": str(error)}]})
        return
    os.kill(os.getpid(), signal.SIGSTOP)
    outcomes: list[Any] = []
    while len(outcomes) < attempts and (not outcomes or outcomes[-1] is not None):
        try:
            CHANGES[change](collection, place)
            outcomes.append(None)
        except RagfmError as error:
            outcomes.append({"type": type(error).__name__, "message": str(error)})
    report({"outcomes": outcomes})


def _upload(collection: Collection, place: Path) -> None:
    """Store a file as the server does, and index it."""
    uploads = UploadFolder(collection.path)
    uploads.remove_leftovers()
    if not uploads.folder.exists() or not list(uploads.all()):
        with mock.patch.object(secrets, "token_hex", return_value=UPLOAD_ID):
            uploads.store(io.BytesIO(UPLOAD), "note.md", ["key:a"])
    collection.sync(uploads.folder, name=UPLOADS_SOURCE, allow_mass_delete=True)


def _backup(collection: Collection, place: Path) -> None:
    collection.backup(place / BACKUP, force=True)


def restore_backup(report: Report, folder: str) -> None:
    """Restore the backup of `CHANGES`, if it exists, and report its documents and what `verify` finds."""
    place = Path(folder)
    if not (place / BACKUP).exists():
        report({"documents": None})
        return
    with open_collection(place / "restored") as collection:
        collection.restore(place / BACKUP)
        findings = [str(finding) for finding in collection.verify().findings]
        report({"documents": [info.uri for info in collection.documents()], "findings": findings})
    shutil.rmtree(place / "restored")


def _reembed(collection: Collection, place: Path) -> None:
    collection.reembed(CachedHashingEmbedder(48))


CHANGES: dict[str, Callable[[Collection, Path], object]] = {
    "create": lambda collection, place: Collection.open(
        place / "new", settings=Settings(), embedder=CachedHashingEmbedder(32)
    ).sync(place / "b"),
    "commit": lambda collection, place: collection.sync(place / "a"),
    "delete": lambda collection, place: collection.sync(place / "b"),
    "access": lambda collection, place: collection.sync(place / "later", allow=["staff"]),
    "compaction": lambda collection, place: collection.compact(),
    "reembed": _reembed,
    "upload": _upload,
    "backup": _backup,
}
"""Changes of the collection that `prepare` creates."""
