"""Jobs that change a collection, and say what they believe durable."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ragfm import Collection, Settings
from ragfm.core.errors import RagfmError
from ragfm.store.catalog import text_hash
from ragfm.store.catalog_writer import CatalogWriter
from support.torture.light import Light, Tell, open_collection, prose
from support.torture.truth import ALLOWED, SOURCES


class Author:
    """Changes the files of two sources and brings them in, and says what it believes durable."""

    def __init__(self, tell: Tell, folder: Path, rng: random.Random) -> None:
        self.tell = tell
        self.folder = folder
        self.rng = rng
        self.collection = open_collection(folder / "c")
        committed, restricted = CatalogWriter.commit, CatalogWriter.save_source

        def commit(catalog: CatalogWriter, source: Any, added: Any, removed: Any) -> int:
            generation = committed(catalog, source, added, removed)
            now = {new.document.uri: text_hash(new.document.text).hex() for new in added}
            gone = dict.fromkeys(f"{source.name}/{path}" for path in removed)
            tell({"committed": now | gone, "generation": generation})
            return generation

        def save_source(catalog: CatalogWriter, source: Any) -> Any:
            saved = restricted(catalog, source)
            tell({"allowed": {source.name: sorted(source.allow)}})
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
                temporary = self.folder / "half-written"  # what a sync may find must be what is planned
                temporary.write_text(text)
                temporary.replace(file)

    def sync(self, source: str, allow: list[str] | None = None) -> None:
        """Bring a source in; before and after, say so."""
        place = self.folder / source
        files = {f"{source}/{file.name}": text_hash(file.read_text()).hex() for file in sorted(place.iterdir())}
        plan = {"source": source, "documents": files, "allow": allow}
        self.tell({"plan": plan})
        report = self.collection.sync(place, allow=allow, allow_mass_delete=True)
        if report.failed or report.skipped:
            raise AssertionError(f"the sync left something out: {report}")
        self.tell({"synced": plan})

    def look(self) -> None:
        """What this process has committed it finds itself."""
        source = self.rng.choice(SOURCES)
        files = sorted((self.folder / source).glob("*"))
        if files:
            file = self.rng.choice(files)
            line = file.read_text().splitlines()[0].removeprefix("# ")
            found = {hit.uri for hit in self.collection.search(line, k=50) if line in f"{hit.text} {hit.context}"}
            if f"{source}/{file.name}" not in found:
                raise AssertionError(f"{source}/{file.name} is not found by {line!r}, but {found}")


def ingest(tell: Tell, folder: str, seed: int) -> None:
    """Change and bring in, compact, switch the embedder, over and over: until it is killed."""
    from ragfm.ingestion import sync

    rng = random.Random(seed)
    sync.DOCUMENTS = rng.choice((1, 3, 500))  # one sync makes several commits
    author = Author(tell, Path(folder), rng)
    while True:
        what = rng.random()
        source = rng.choice(SOURCES)
        if what < 0.08 and author.collection.path.exists():
            author.collection.compact()
        elif what < 0.14 and author.collection.path.exists():
            dim = rng.choice((32, 48, 64))
            author.collection.reembed(Light(dim))
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


def prepare(tell: Tell, folder: str, seed: int) -> None:
    """A small collection with dead rows, closed; and files that have changed since, for `CHANGES` to bring in."""
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
    tell({"before": before, "after": files(place)})


def files(place: Path) -> dict[str, str]:
    """The hashes of what a collection of these files must hold."""
    return {
        f"{file.parent.name}/{file.name}": text_hash(file.read_text()).hex()
        for source in (*SOURCES, "later")
        for file in sorted((place / source).iterdir())
    }


def one_change(tell: Tell, folder: str, change: str, seed: int, attempts: int = 1) -> None:
    """One change of a prepared collection, once somebody watches; then what came of it."""
    place = Path(folder)
    collection = open_collection(place / "c")
    collection.search("anything")
    os.kill(os.getpid(), signal.SIGSTOP)
    outcomes: list[Any] = []
    while len(outcomes) < attempts and (not outcomes or outcomes[-1] is not None):
        try:
            CHANGES[change](collection, place)
            outcomes.append(None)
        except RagfmError as error:
            outcomes.append({"type": type(error).__name__, "message": str(error)})
    tell({"outcomes": outcomes})


def _reembed(collection: Collection, place: Path) -> None:
    collection.reembed(Light(48))


CHANGES: dict[str, Callable[[Collection, Path], object]] = {
    "create": lambda collection, place: Collection.open(place / "new", settings=Settings(), embedder=Light(32)).sync(
        place / "b"
    ),
    "commit": lambda collection, place: collection.sync(place / "a"),
    "delete": lambda collection, place: collection.sync(place / "b"),
    "access": lambda collection, place: collection.sync(place / "later", allow=["staff"]),
    "compaction": lambda collection, place: collection.compact(),
    "reembed": _reembed,
}
"""What a change does to the collection that `prepare` makes."""
