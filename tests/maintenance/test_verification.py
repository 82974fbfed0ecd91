"""Verify, repair and salvage: all damage is found, and intact documents are saved."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ragfm import Collection, Settings
from ragfm.core.errors import CollectionError, CollectionNotFound, DamagedCollectionError, UnsupportedError
from ragfm.maintenance.salvage import salvage
from ragfm.store.catalog import Catalog
from ragfm.store.sqlite_database import SqliteDatabase
from ragfm.store.sqlite_file import CATALOG_FILE, HEAD_FILE, PAGE_BYTES, damaged_page, open_connection, open_engine
from ragfm.testing import HashingEmbedder

WORDS = "leave office hours room desk parent holiday salary garden kitchen river stone paper cloud".split()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    source = random.Random(7)
    for name, count in (("open", 40), ("board", 10)):
        (folder / name).mkdir()
        for number in range(count):
            lines = [f"{' '.join(source.choices(WORDS, k=40))}." for _ in range(8)]
            (folder / name / f"{number:03}.txt").write_text("\n\n".join(lines))
    with _open(folder) as collection:
        collection.sync(folder / "open", tags={"year": 2026})
        collection.sync(folder / "board", allow=["board"])
        (folder / "open" / "000.txt").write_text("Replaced.")
        collection.sync(folder / "open")
    return folder


@pytest.fixture
def many(tmp_path: Path, template: Path) -> Collection:
    """50 documents with several chunks; some are restricted to a group, one was replaced."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return _open(tmp_path)


def _open(folder: Path) -> Collection:
    return Collection.open(folder / ".ragfm", settings=Settings(), embedder=HashingEmbedder())


def _flip(file: Path, at: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << bit
    file.write_bytes(data)


def _execute(folder: Path, *statements: str) -> None:
    """Change rows directly, with valid page checksums."""
    engine = open_engine(folder, writable=True)
    with engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def _pages_of(folder: Path, name: str) -> list[int]:
    """The pages of a table's or index's tree, its root first (https://sqlite.org/fileformat2.html#b_tree_pages)."""
    engine = open_engine(folder, writable=False)
    with engine.connect() as connection:
        root = connection.exec_driver_sql(f"SELECT rootpage FROM sqlite_schema WHERE name = '{name}'").scalar_one()
    engine.dispose()
    data = (folder / CATALOG_FILE).read_bytes()

    def walk(page: int) -> Iterator[int]:
        yield page
        start = (page - 1) * PAGE_BYTES
        if data[start] in (2, 5):  # an inner page
            cells = int.from_bytes(data[start + 3 : start + 5])
            for cell in range(cells):
                at = start + int.from_bytes(data[start + 12 + 2 * cell : start + 14 + 2 * cell])
                yield from walk(int.from_bytes(data[at : at + 4]))
            yield from walk(int.from_bytes(data[start + 8 : start + 12]))

    return list(walk(root))


def _damage_page(folder: Path, page: int) -> None:
    _flip(folder / CATALOG_FILE, (page - 1) * PAGE_BYTES + 2000, 3)


def test_an_intact_collection_has_no_findings(many: Collection) -> None:
    report = many.verify()
    assert report.findings == ()
    assert not report.damaged
    status = many.status()
    assert (report.documents, report.whole, report.chunks) == (50, 50, status.chunks)
    assert (report.generation, report.views) == (status.generation, 1)


@pytest.mark.parametrize("kind", ["faiss-flat", "faiss-hnsw"])
def test_every_kind_of_index_has_no_findings(many: Collection, kind: str) -> None:
    other = Collection.open(many.location, settings=Settings(index=kind), embedder=HashingEmbedder())
    other.sync()
    other.compact()
    report = other.verify()
    assert report.findings == ()
    assert other.status().indexes[0]["kind"] == kind


def test_every_flipped_bit_is_found(many: Collection, tmp_path: Path) -> None:
    source = random.Random(1)
    files = [path for path in many.path.rglob("*") if path.is_file() and path.name not in ("LOCK", "manifest.json")]
    assert {path.name for path in files} >= {CATALOG_FILE, HEAD_FILE}
    for turn, original in enumerate([*files, *source.choices(files, k=5)]):
        copy = tmp_path / f"copy{turn}"
        shutil.copytree(many.path, copy / ".ragfm")
        file = copy / ".ragfm" / original.relative_to(many.path)
        _flip(file, source.randrange(file.stat().st_size), source.randrange(8))
        report = _open(copy).verify()
        assert report.damaged, file
        name = file.relative_to(copy / ".ragfm").as_posix()
        assert any(name.startswith(finding.file) for finding in report.findings), (name, report.findings)
        assert all(finding.what and finding.found != finding.expected for finding in report.findings)
        shutil.rmtree(copy)


def test_every_damaged_page_is_reported(many: Collection) -> None:
    pages = _pages_of(many.path, "vectors")[3:6]
    for page in pages:
        _damage_page(many.path, page)
    found = [finding.what for finding in many.verify().findings if "checksum of page" in finding.what]
    assert found == [f"the checksum of page {page}" for page in sorted(pages)]


ROWS = {
    "a text": ("UPDATE documents SET text = 'Other.' || substr(text, 7) WHERE id = 5", "text of open/"),
    "a chunk less": ("DELETE FROM chunks WHERE id = 12", "the chunks of open/"),
    "a chunk's context": ("UPDATE chunks SET context = 'Sure' WHERE id = 12", "hash of chunk 12"),
    "a vector less": (
        "DELETE FROM vectors WHERE text_hash = (SELECT text_hash FROM chunks WHERE id = 12)",
        "vector of chunk 12",
    ),
    "a vector's bytes": (
        "UPDATE vectors SET vector = zeroblob(256) WHERE text_hash = (SELECT text_hash FROM chunks WHERE id = 12)",
        "checksum of the vector of chunk 12",
    ),
    "a spare vector": (
        "UPDATE vectors SET checksum = 1 WHERE text_hash = (SELECT text_hash FROM chunks WHERE died IS NOT NULL)",
        "the checksum of the vector",
    ),
    "a count": ("UPDATE generations SET chunks = chunks + 1 WHERE id = 2", "the chunks of generation 2"),
    "a generation": ("DELETE FROM generations WHERE id = 2", "the generations"),
    "a lost commit": ("DELETE FROM generations WHERE id = (SELECT max(id) FROM generations)", "the history"),
    "a foreign key": ("UPDATE documents SET source_id = 99 WHERE id = 5", "foreign keys"),
    "the schema": ("UPDATE properties SET value = '9' WHERE key = 'schema'", "the schema's version"),
}


@pytest.mark.parametrize("case", ROWS)
def test_changed_rows_are_found(many: Collection, case: str) -> None:
    statement, what = ROWS[case]
    engine = open_engine(many.path, writable=True)
    with engine.connect() as connection:
        connection.connection.driver_connection.execute("PRAGMA foreign_keys=OFF")  # type: ignore[union-attr]
        connection.exec_driver_sql(statement)
        connection.commit()
    engine.dispose()
    assert damaged_page(many.path) is None
    report = many.verify()
    assert [finding for finding in report.findings if what in finding.what], report.findings
    assert many.verify(repair=True).mended == ()  # committed data cannot be rebuilt


def test_groups_and_tags_are_repaired(many: Collection) -> None:
    secret = [info.uri for info in many.documents() if info.source == "board"]
    _execute(
        many.path,
        "DELETE FROM groups WHERE document_id IN (SELECT id FROM documents WHERE uri = 'board/003.txt')",
        "UPDATE documents SET restricted = 0 WHERE uri = 'board/004.txt'",
        "INSERT INTO groups SELECT id, 'everybody' FROM documents WHERE uri = 'board/005.txt'",
        "UPDATE tags SET number = 1999 WHERE document_id = 9 AND key = 'year'",
    )
    report = many.verify()
    assert [finding.what for finding in report.findings] == [
        "the tags of open/008.txt",
        "the access groups of board/003.txt",
        "the access groups of board/004.txt",
        "the access groups of board/005.txt",
    ]
    assert report.lost == ()
    again = many.verify(repair=True)
    assert again.findings == ()
    assert any("4 documents" in done for done in again.mended)
    assert {info.uri for info in many.as_groups({"everybody"}).documents()}.isdisjoint(secret)
    assert {info.uri for info in many.as_groups({"board"}).documents()} >= set(secret)
    assert "open/008.txt" in {info.uri for info in many.documents("year = 2026")}


def test_damaged_views_are_rebuilt_without_embedding(many: Collection, tmp_path: Path) -> None:
    expected = [hit.uri for hit in many.search("river stone", k=9)]
    many.close()
    (view,) = (many.path / "views").iterdir()
    files = [file for file in sorted(view.rglob("*")) if file.is_file()]
    for damage in ("flip", "remove"):
        for file in files:
            copy = tmp_path / f"{damage}-{file.parent.name}-{file.name}"
            shutil.copytree(many.path, copy / ".ragfm")
            broken = copy / ".ragfm" / file.relative_to(many.path)
            _flip(broken, broken.stat().st_size // 2) if damage == "flip" else broken.unlink()
            (copy / ".ragfm" / "views" / "0000000099.1.new").mkdir()
            embedder = HashingEmbedder()
            repaired = Collection.open(copy / ".ragfm", settings=Settings(), embedder=embedder)
            assert {finding.file for finding in repaired.verify().findings} == {f"views/{view.name}"}
        report = repaired.verify(repair=True)  # the whole view is built again, whatever is damaged
        assert report.findings == ()
        assert [path.name for path in (copy / ".ragfm" / "views").iterdir()] == [view.name]
        assert embedder.embedded == 0
        assert [hit.uri for hit in repaired.search("river stone", k=9)] == expected


def test_a_view_with_a_different_index_is_found(many: Collection) -> None:
    """The files are intact, but hold other vectors."""
    from ragfm.core.durable_files import encode_checksummed, read_checksummed
    from ragfm.core.registry import load_plugin
    from ragfm.store.views import file_entry

    (view,) = (many.path / "views").iterdir()
    catalog = Catalog(SqliteDatabase(many.path))
    ids, vectors = catalog.chunk_vectors(catalog.at())
    catalog.close()
    for wrong_ids, wrong_vectors, what in (
        (ids + 1, vectors, "the chunks"),
        (ids, vectors[::-1].copy(), "the scores of a sample"),
    ):
        shutil.rmtree(view / "vectors")
        (view / "vectors").mkdir()
        load_plugin("indexes", "faiss-flat").build(wrong_ids, wrong_vectors).save(view / "vectors")
        manifest = read_checksummed(view / "manifest.json")
        manifest["files"] = {path.relative_to(view).as_posix(): file_entry(path) for path in view.glob("*/*")}
        (view / "manifest.json").write_bytes(encode_checksummed(manifest))
        assert [finding.what for finding in many.verify().findings] == [what]
    assert many.verify(repair=True).findings == ()


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_damaged_head_is_rewritten_only_by_repair(many: Collection, damage: str) -> None:
    _flip(many.path / HEAD_FILE, 20) if damage == "flip" else (many.path / HEAD_FILE).unlink()
    assert [finding.file for finding in many.verify().findings] == [HEAD_FILE]
    with pytest.raises(DamagedCollectionError):
        _open(many.path.parent).status()
    report = many.verify(repair=True)
    assert report.findings == ()
    assert any("lost" in done and HEAD_FILE in done for done in report.mended)
    assert _open(many.path.parent).status().documents == 50


def test_a_head_is_not_written_for_a_damaged_catalog(many: Collection) -> None:
    (many.path / HEAD_FILE).unlink()
    _damage_page(many.path, _pages_of(many.path, "vectors")[4])
    report = many.verify(repair=True)
    assert report.mended == ()
    assert not (many.path / HEAD_FILE).exists()


def test_a_view_newer_than_the_catalog_is_damage_of_the_catalog(many: Collection) -> None:
    (view,) = (many.path / "views").iterdir()
    _execute(many.path, "DELETE FROM generations WHERE id = (SELECT max(id) FROM generations)")
    (many.path / HEAD_FILE).unlink()
    report = many.verify(repair=True)
    assert [f for f in report.findings if f.file == CATALOG_FILE and view.name in f.expected]
    assert report.mended == ()
    assert view.exists()


def test_verify_during_a_write(many: Collection, tmp_path: Path) -> None:
    with many._store.writing() as catalog:
        source = catalog.sources()[0]
        catalog.commit(source, [], ["001.txt"])
        report = _open(tmp_path).verify()
    assert (report.findings, report.documents) == ((), 49)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.95])
def test_an_interrupted_checkpoint_is_not_damage(many: Collection, tmp_path: Path, share: float) -> None:
    """SQLite writes the logged pages in order. A kill or a full disk leaves the last of them half written."""
    with open_connection(many.path) as reader:  # while it reads, the log is not written into the file
        reader.exec_driver_sql("SELECT count(*) FROM chunks").all()
        for number in range(25):
            (tmp_path / "open" / f"more {number}.txt").write_text(f"Number {number}. {' '.join(WORDS)}.")
        many.sync(tmp_path / "open")
        left = tmp_path / "left"
        shutil.copytree(many.path, left, ignore=shutil.ignore_patterns("*-shm"))
    many.close()
    with open_connection(many.path, writable=True) as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").all()
    before, after = (left / CATALOG_FILE).read_bytes(), (many.path / CATALOG_FILE).read_bytes()
    written = int(share * len(after) / PAGE_BYTES) * PAGE_BYTES + PAGE_BYTES // 2
    (left / CATALOG_FILE).write_bytes(after[:written] + before[written:])
    without_log = tmp_path / "without log"
    shutil.copytree(left, without_log, ignore=shutil.ignore_patterns("*-wal"))
    for folder, damaged in ((left, False), (without_log, True)):
        report = Collection.open(folder, settings=Settings(), embedder=HashingEmbedder()).verify()
        assert report.damaged == damaged, report.findings
        assert damaged or report.documents == 75


def test_no_collection(tmp_path: Path, many: Collection) -> None:
    with pytest.raises(CollectionNotFound):
        Collection.open(tmp_path / "nowhere").verify()
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(UnsupportedError):
        many.as_groups({"board"}).verify()


# --- Salvage -----------------------------------------------------------------------------------------------------


def _texts(collection: Collection) -> dict[str, str]:
    return {info.uri: collection.document(info.uri).text for info in collection.documents()}


def _salvaged(many: Collection, tmp_path: Path) -> tuple[Collection, object]:
    report = salvage(Collection.open(many.location, settings=Settings()).store, tmp_path / "saved")
    embedder = HashingEmbedder()
    return Collection.open(tmp_path / "saved", settings=Settings(), embedder=embedder), report


TABLES = {  # damaged pages: whether documents are lost with them
    "documents": True,
    "chunks": True,
    "vectors": True,
    "groups": True,
    "tags": True,
    "documents_alive": False,
    "documents_path": False,
    "ix_chunks_document_id": False,
    "ix_chunks_text_hash": False,
    "sqlite_autoindex_vectors_1": False,
    "ix_chunks_died": False,
}


Intact = tuple[dict[str, str], set[str], dict[tuple[str, int], float | None]]


@pytest.fixture(scope="module")
def intact(template: Path) -> Intact:
    """All texts, the documents that are open to all, and the scores of a search."""
    with _open(template) as collection:
        allowed = {info.uri for info in collection.as_groups(set()).documents()}
        return _texts(collection), allowed, _scores(collection)


@pytest.mark.parametrize(
    ("table", "damaged"),
    [(table, "first middle last") for table in TABLES if not TABLES[table]]
    + [(table, damaged) for table in TABLES if TABLES[table] for damaged in ("first", "middle last")],
)
def test_all_intact_documents_are_saved(
    many: Collection, tmp_path: Path, intact: Intact, table: str, damaged: str
) -> None:
    before, allowed, hits = intact
    many.close()
    pages = _pages_of(many.path, table)
    for page in {
        {"first": pages[0], "middle": pages[len(pages) // 2], "last": pages[-1]}[which] for which in damaged.split()
    }:
        _damage_page(many.path, page)
    verified = _open(tmp_path).verify()
    assert verified.damaged
    saved, report = _salvaged(many, tmp_path)
    assert report.documents == len(saved.documents())  # type: ignore[attr-defined]
    assert (report.documents == 50) == (verified.whole == 50)  # type: ignore[attr-defined]
    left = {left.uri for left in report.left}  # type: ignore[attr-defined]
    after = _texts(saved)
    assert all(before[uri] == text for uri, text in after.items())
    assert None in left or before.keys() - after.keys() == left
    if not TABLES[table]:
        assert after == before
    elif damaged != "first" and len(pages) > 3:
        assert 25 <= len(after) < 50, (len(after), len(pages))
    assert {info.uri for info in saved.as_groups(set()).documents()} <= allowed
    assert saved.verify().findings == ()
    assert _scores(saved) == {key: score for key, score in hits.items() if key[0] in after}


def _scores(collection: Collection) -> dict[tuple[str, int], float | None]:
    found = collection.search("river stone", k=10_000, mode="dense")
    return {(hit.uri, hit.start): hit.score for hit in found}


def test_unreadable_documents_without_uri_are_counted(many: Collection, tmp_path: Path) -> None:
    """Their page and the index of uris are damaged."""
    _damage_page(many.path, _pages_of(many.path, "documents")[-2])
    _damage_page(many.path, _pages_of(many.path, "documents_alive")[-1])
    report = salvage(many.store, tmp_path / "saved")
    assert report.documents < 50
    assert None in {left.uri for left in report.left}
    assert report.documents + len(report.left) >= 50


def test_documents_with_wrong_tags_are_saved(many: Collection, tmp_path: Path) -> None:
    many.close()
    _execute(many.path, "UPDATE tags SET text = 'wrong'")
    saved, report = _salvaged(many, tmp_path)
    assert report.documents == len(many.documents())  # type: ignore[attr-defined]
    assert saved.verify().findings == ()


def test_a_salvaged_collection_syncs(many: Collection, tmp_path: Path) -> None:
    """The next ingest finds the sources, and adds and embeds only the documents that were not saved."""
    _damage_page(many.path, _pages_of(many.path, "documents")[-2])
    report = salvage(many.store, tmp_path / "deeper" / "saved")
    assert 0 < len(report.left) < 25
    embedder = HashingEmbedder()
    saved = Collection.open(tmp_path / "deeper" / "saved", settings=Settings(), embedder=embedder)
    synced = saved.sync()
    assert (synced.added, synced.failed) == (len(report.left), ())
    assert synced.unchanged == 50 - len(report.left)
    assert _texts(saved).keys() == {
        f"{folder}/{n:03}.txt" for folder, m in (("open", 40), ("board", 10)) for n in range(m)
    }
    assert {info.uri for info in saved.as_groups(set()).documents()} == {f"open/{n:03}.txt" for n in range(40)}
    assert saved.documents()[-1].metadata["year"] == 2026


def test_a_document_with_wrong_groups_is_not_saved(many: Collection, tmp_path: Path) -> None:
    _execute(many.path, "UPDATE documents SET restricted = 0 WHERE uri = 'board/004.txt'")
    report = salvage(many.store, tmp_path / "saved")
    assert [left.uri for left in report.left] == ["board/004.txt"]
    assert "the access groups of" in report.left[0].why


def test_failures_and_sources_are_saved(many: Collection, tmp_path: Path) -> None:
    (tmp_path / "open" / "broken.pdf").write_bytes(b"no pdf")
    _open(tmp_path).sync(tmp_path / "open")
    salvage(many.store, tmp_path / "saved")
    saved = Collection.open(tmp_path / "saved", settings=Settings(), embedder=HashingEmbedder()).status()
    assert [failure.uri for failure in saved.failed] == ["open/broken.pdf"]
    assert [source["location"] for source in saved.sources] == ["open", "board"]


@pytest.mark.parametrize("page", [1, 2, 3])
def test_nothing_can_be_saved_without_the_schema(many: Collection, tmp_path: Path, page: int) -> None:
    _damage_page(many.path, page)
    if page == 1:
        assert many.verify().damaged
        with pytest.raises(DamagedCollectionError, match="Nothing can be saved"):
            salvage(many.store, tmp_path / "saved")
        assert not (tmp_path / "saved").exists()
        assert not list(tmp_path.glob("*.new"))
    else:
        assert many.verify().damaged


def test_salvage_does_not_overwrite(many: Collection, tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match="already exists"):
        salvage(many.store, tmp_path / "open")
    assert len(list((tmp_path / "open").iterdir())) == 40


def test_a_truncated_catalog(many: Collection, tmp_path: Path) -> None:
    file = many.path / CATALOG_FILE
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 4 + 100])
    report = many.verify()
    assert any("length" in finding.what for finding in report.findings)
    try:
        saved, done = _salvaged(many, tmp_path)
    except DamagedCollectionError:
        return  # the cut took what names the contract
    assert len(_texts(saved)) == done.documents  # type: ignore[attr-defined]


def test_zeros_in_overflow_pages_are_detected(tmp_path: Path, collection: Collection) -> None:
    """SQLite's checksum accepts a page of zeros; a zeroed B-tree page is noticed, an overflow page is not."""
    docs = tmp_path / "long"
    docs.mkdir()
    words = " ".join(f"word{number}" for number in range(2500))
    (docs / "a.md").write_text(f"---\nabout: {words}\n---\nThe text of a.\n")
    collection.sync(docs)
    whole = collection.status()
    collection.close()
    file = collection.path / "catalog.db"
    content = file.read_bytes()
    pages = [at for at in range(0, len(content), PAGE_BYTES) if b" word2499" in content[at : at + PAGE_BYTES]]
    assert pages
    for at in pages:
        file.write_bytes(content[:at] + bytes(PAGE_BYTES) + content[at + PAGE_BYTES :])
        with Collection.open(collection.location, settings=Settings(), embedder=HashingEmbedder()) as damaged:
            assert damaged.status() == whole
            with pytest.raises(DamagedCollectionError):
                [damaged.document(info.uri) for info in damaged.documents()]
