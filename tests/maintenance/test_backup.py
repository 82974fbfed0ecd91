"""Backup and restore: one file, written during commits; damaged and hostile archives are refused."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from ragfm import Collection, Settings
from ragfm.core.durable_files import encode_checksummed
from ragfm.core.errors import CollectionError, CollectionNotFound, DamagedCollectionError, UnsupportedError
from ragfm.core.progress import Progress
from ragfm.maintenance.backup import FORMAT, MANIFEST
from ragfm.maintenance.salvage import salvage
from ragfm.store.sqlite_file import CATALOG_FILE, PAGE_BYTES, damaged_page, open_connection
from ragfm.store.uploads import UploadFolder
from ragfm.testing import HashingEmbedder


@pytest.fixture
def filled(collection: Collection, docs: Path) -> Collection:
    collection.sync(docs, tags={"year": 2026}, allow=["staff"])
    return collection


def _at(folder: Path) -> Collection:
    return Collection.open(folder, settings=Settings(), embedder=HashingEmbedder())


def _seen(collection: Collection) -> object:
    hits = [(hit.uri, hit.text, hit.score, hit.chunk_id) for hit in collection.search("28 days of leave", k=9)]
    groups = [info.uri for info in collection.as_groups({"staff"}).documents()]
    status = collection.status()
    return hits, groups, collection.documents("year = 2026"), status.generation, status.embedder


def test_restore_returns_the_same_collection(filled: Collection, tmp_path: Path) -> None:
    report = filled.backup(tmp_path / "b.tar")
    assert (report.documents, report.chunks, report.generation) == (4, filled.status().chunks, 1)
    assert report.bytes == (tmp_path / "b.tar").stat().st_size
    with tarfile.open(tmp_path / "b.tar") as tar:
        assert tar.getnames() == [MANIFEST, CATALOG_FILE]
    embedder = HashingEmbedder()
    there = Collection.open(tmp_path / "far" / "away", settings=Settings(), embedder=embedder)
    restored = there.restore(tmp_path / "b.tar")
    assert (restored.documents, restored.chunks, restored.absent) == (4, report.chunks, ("docs",))
    assert _seen(there) == _seen(filled)
    assert there.status().indexes[0]["saved"]
    assert there.verify().findings == ()
    assert embedder.embedded == 0
    assert not list(tmp_path.rglob("*.new"))


def test_a_restored_collection_finds_sources_next_to_it(filled: Collection, docs: Path, tmp_path: Path) -> None:
    filled.backup(tmp_path / "b.tar")
    shutil.copytree(docs, tmp_path / "elsewhere" / "docs", copy_function=shutil.copy2)
    there = _at(tmp_path / "elsewhere" / ".ragfm")
    assert there.restore(tmp_path / "b.tar").absent == ()
    (tmp_path / "elsewhere" / "docs" / "new.txt").write_text("New.")
    report = there.sync()
    assert (report.added, report.unchanged, report.chunks) == (1, 4, 1)


def test_backup_during_commits(filled: Collection, tmp_path: Path) -> None:
    """Another process commits repeatedly; each backup is exactly one of its generations."""
    script = (
        "from pathlib import Path\nfrom ragfm import Collection, Settings\nfrom ragfm.testing import HashingEmbedder\n"
        "c = Collection.open('.ragfm', settings=Settings(), embedder=HashingEmbedder())\n"
        "for n in range(400):\n"
        "    Path('docs', f'{n % 9}.txt').write_text(f'Version {n} of it. ' * 30)\n"
        "    c.sync('docs')\n"
        "    print(n, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    generations = []
    try:
        for turn in range(6):
            writer.stdout.readline()
            writer.stdout.readline()
            report = filled.backup(tmp_path / f"{turn}.tar")
            generations.append(report.generation)
            there = _at(tmp_path / f"there{turn}")
            restored = there.restore(tmp_path / f"{turn}.tar")
            assert restored.generation == report.generation
            assert there.verify().findings == ()
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
    assert len(set(generations)) > 3


def test_a_commit_during_the_copy_is_not_included(filled: Collection, docs: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("ragfm.maintenance.backup._PAGES_PER_STEP", 3)
    other, reports = _at(filled.path), []

    def progress(report: Progress) -> None:
        reports.append(report)
        if len(reports) == 1:
            (docs / "late.txt").write_text("Too late.")
            other.sync(docs)

    report = filled.backup(tmp_path / "b.tar", progress=progress)
    assert report.generation == 1
    assert filled.status().generation == 2
    assert len(reports) > 3
    done = [report.done for report in reports]
    assert done == sorted(set(done))
    there = _at(tmp_path / "there")
    there.restore(tmp_path / "b.tar")
    assert "docs/late.txt" not in {info.uri for info in there.documents()}


def test_nothing_is_overwritten_without_force(filled: Collection, tmp_path: Path) -> None:
    out = tmp_path / "b.tar"
    out.write_text("precious")
    with pytest.raises(CollectionError, match="already exists"):
        filled.backup(out)
    assert out.read_text() == "precious"
    filled.backup(out, force=True)
    with pytest.raises(CollectionError, match="already exists"):
        filled.restore(out)
    os.mkfifo(tmp_path / "pipe")
    for name in ("docs", "pipe"):
        with pytest.raises(CollectionError, match=r"already exists\. Choose a file"):
            filled.backup(tmp_path / name, force=True)
    with pytest.raises(CollectionError, match=r"cannot be written: No such file"):
        filled.backup(tmp_path / "nowhere" / "b.tar")
    (tmp_path / "all.jsonl").write_text('{"uri": "a"}\n' * 99)
    with pytest.raises(DamagedCollectionError, match=r"as written by `ragfm backup`"):
        _at(tmp_path / "elsewhere" / ".ragfm").restore(tmp_path / "all.jsonl")
    with pytest.raises(CollectionNotFound):
        _at(tmp_path / "nothing").backup(tmp_path / "c.tar")
    with pytest.raises(UnsupportedError):
        filled.as_groups({"staff"}).backup(tmp_path / "c.tar")
    assert not (tmp_path / "c.tar").exists()
    assert not list(tmp_path.glob("*.new"))


def test_a_damaged_collection_is_not_backed_up(filled: Collection, tmp_path: Path) -> None:
    filled.close()
    data = bytearray((filled.path / CATALOG_FILE).read_bytes())
    data[-3000] ^= 1
    (filled.path / CATALOG_FILE).write_bytes(data)
    assert damaged_page(filled.path)
    with pytest.raises(DamagedCollectionError):
        filled.backup(tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()


def test_a_flipped_bit_is_refused_or_harmless(filled: Collection, tmp_path: Path) -> None:
    filled.backup(tmp_path / "b.tar")
    whole, expected = (tmp_path / "b.tar").read_bytes(), _seen(filled)
    with tarfile.open(tmp_path / "b.tar") as tar:
        members = tar.getmembers()
    source = random.Random(3)
    for at in [*range(0, 512, 37), *(source.randrange(len(whole)) for _ in range(150))]:
        data = bytearray(whole)
        data[at] ^= 1 << source.randrange(8)
        (tmp_path / "flipped.tar").write_bytes(data)
        there = _at(tmp_path / "there")
        # A header's checksum of itself may be written in several ways; what is between members means nothing.
        if any(m.offset <= at < m.offset_data + m.size and not 148 <= at - m.offset < 156 for m in members):
            with pytest.raises(DamagedCollectionError, match=r"flipped\.tar' is damaged: .*expected .*found"):
                there.restore(tmp_path / "flipped.tar")
            assert not (tmp_path / "there").exists()
        elif not any(148 <= at - m.offset < 156 for m in members):
            there.restore(tmp_path / "flipped.tar")
            assert _seen(there) == expected
            there.close()
            shutil.rmtree(tmp_path / "there")
    assert not list(tmp_path.glob("*.new"))


def test_swapped_pages_are_refused(filled: Collection, tmp_path: Path) -> None:
    """Each page has a valid checksum of its own."""
    filled.backup(tmp_path / "b.tar")
    data = bytearray((tmp_path / "b.tar").read_bytes())
    with tarfile.open(tmp_path / "b.tar") as tar:
        first = tar.getmember(CATALOG_FILE).offset_data + 5 * PAGE_BYTES
    data[first : first + 2 * PAGE_BYTES] = (
        data[first + PAGE_BYTES : first + 2 * PAGE_BYTES] + data[first : first + PAGE_BYTES]
    )
    (tmp_path / "b.tar").write_bytes(data)
    with pytest.raises(DamagedCollectionError, match="checksum of block 0"):
        _at(tmp_path / "there").restore(tmp_path / "b.tar")


def test_a_truncated_backup_is_refused(filled: Collection, tmp_path: Path) -> None:
    filled.backup(tmp_path / "b.tar")
    whole = (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "b.tar") as tar:
        end = tar.getmember(CATALOG_FILE).offset_data + tar.getmember(CATALOG_FILE).size
    for size in (0, 1, 511, 512, 600, 1024, 1536, 1537, len(whole) // 2, end - 1, end, end + 600):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        with pytest.raises(DamagedCollectionError, match="expected"):
            _at(tmp_path / "there").restore(tmp_path / "cut.tar")
    assert not (tmp_path / "there").exists()


def _tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            member.size = member.size or len(data)
            tar.addfile(member, io.BytesIO(data.ljust(member.size, b"\0")) if data else None)
    return path


def _link(kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(MANIFEST)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


HOSTILE = {
    "a path upwards": (tarfile.TarInfo("../evil"), b"x"),
    "an absolute path": (tarfile.TarInfo("/tmp/ragfm-evil"), b"x"),
    "a symbolic link": (_link(tarfile.SYMTYPE), b""),
    "a hard link": (_link(tarfile.LNKTYPE), b""),
    "a device": (_link(tarfile.CHRTYPE), b""),
    "a folder": (_link(tarfile.DIRTYPE), b""),
    "no JSON": (tarfile.TarInfo(MANIFEST), b"no"),
    "JSON of another kind": (tarfile.TarInfo(MANIFEST), b"[1, 2]"),
    "a long name": (tarfile.TarInfo("a" * 5000), b"x"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_do_no_harm(tmp_path: Path, case: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    archive = _tar(tmp_path / "evil.tar", HOSTILE[case])
    with pytest.raises(DamagedCollectionError, match=r"manifest\.json is damaged" if "JSON" in case else "a member"):
        _at(home / "there").restore(archive)
    assert list(home.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.tar", "home"]
    assert not Path("/tmp/ragfm-evil").exists()


def test_huge_sizes_take_no_memory(filled: Collection, tmp_path: Path) -> None:
    """A header or a manifest claims a huge size, and a sparse file has it."""
    from ragfm.core.durable_files import encode_checksummed

    claimed = tarfile.TarInfo(MANIFEST)
    claimed.size = 1 << 60
    archive = tmp_path / "huge.tar"
    archive.write_bytes(claimed.tobuf(tarfile.GNU_FORMAT))
    os.truncate(archive, 1 << 40)
    with pytest.raises(DamagedCollectionError, match="at most"):
        _at(tmp_path / "there").restore(archive)
    lie = encode_checksummed({"format": FORMAT, "catalog": {"size": 1 << 60, "blocks": []}})
    manifest, catalog = tarfile.TarInfo(MANIFEST), tarfile.TarInfo(CATALOG_FILE)
    manifest.size, catalog.size = len(lie), 1 << 60
    body = manifest.tobuf(tarfile.GNU_FORMAT) + lie.ljust(-(-len(lie) // 512) * 512, b"\0")
    archive.write_bytes(body + catalog.tobuf(tarfile.GNU_FORMAT))
    os.truncate(archive, 1 << 40)
    with pytest.raises(DamagedCollectionError, match="number of checksums"):
        _at(tmp_path / "there").restore(archive)
    assert not (tmp_path / "there").exists()


# --- Uploads -----------------------------------------------------------------------------------------------------


def _upload(collection: Collection, name: str, groups: list[str]) -> str:
    """Upload and index a file as the server does."""
    uploads = UploadFolder(collection.path)
    uri = uploads.store(io.BytesIO(f"What {name} says.".encode()), name, groups).uri
    collection.sync(uploads.folder, name=".uploads", allow_mass_delete=True)
    return uri


@pytest.mark.parametrize("how", ["backup", "salvage", "move"])
def test_uploads_move_with_their_collection(filled: Collection, tmp_path: Path, how: str) -> None:
    before = [_upload(filled, "long " * 25 + ".txt", ["key:ann", "staff"]), _upload(filled, "b.txt", ["key:bob"])]
    there = _at(tmp_path / "elsewhere" / "other")
    if how == "backup":
        assert filled.backup(tmp_path / "b.tar").uploads == 2
        restored = there.restore(tmp_path / "b.tar")
        assert (restored.uploads, restored.absent) == (2, ("docs",))
    elif how == "salvage":
        salvage(filled.store, there.path)
    else:
        there.path.parent.mkdir()
        filled.path.rename(there.path)
    after = _upload(there, "c.txt", ["key:ann"])
    assert {info.uri for info in there.documents() if info.source == ".uploads"} == {*before, after}
    assert [info.uri for info in there.as_groups({"key:ann"}).documents()] == sorted([before[0], after])
    owners = {upload.uri: upload.owner for upload in UploadFolder(there.path).all()}
    assert owners == {before[0]: "key:ann", before[1]: "key:bob", after: "key:ann"}
    there.remove("docs")  # its folder isn't there
    assert (there.sync().unchanged, there.verify().findings) == (3, ())


def test_an_upload_during_a_backup_stays_with_its_owner(filled: Collection, tmp_path: Path) -> None:
    stored: list[str] = []

    def store_one(_: object) -> None:
        if not stored:
            stored.append(_upload(filled, "late.txt", ["key:ann"]))

    _upload(filled, "early.txt", ["key:ann"])
    filled.backup(tmp_path / "b.tar", progress=store_one)
    there = _at(tmp_path / "there")
    there.restore(tmp_path / "b.tar")
    assert stored[0] in {upload.uri for upload in UploadFolder(there.path).owned_by("key:ann")}
    assert there.verify().findings == ()


def test_damaged_uploads_and_outside_paths_are_refused(filled: Collection, tmp_path: Path) -> None:
    _upload(filled, "a.txt", ["key:ann"])
    filled.backup(tmp_path / "b.tar")
    before, _, after = (tmp_path / "b.tar").read_bytes().rpartition(b"a.txt says.")
    (tmp_path / "damaged.tar").write_bytes(before + b"a.txt sayS." + after)
    with tarfile.open(tmp_path / "b.tar") as tar:
        members = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    manifest = json.loads(members[MANIFEST])
    del manifest["checksum"]
    for number, path in enumerate(["../../evil", "a/../../evil", f"{'0' * 16}/..", f"{'0' * 16}/.evil", "/evil"]):
        manifest["uploads"][0]["path"] = path
        with tarfile.open(tmp_path / f"evil{number}.tar", "w", format=tarfile.GNU_FORMAT) as tar:
            for name, data in (members | {MANIFEST: encode_checksummed(manifest)}).items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    archives = [tmp_path / "damaged.tar", *tmp_path.glob("evil*.tar")]
    assert len(archives) == 6
    for archive in archives:
        with pytest.raises(DamagedCollectionError, match=r"checksum of block 0 of uploads/0|uploads/0: expected"):
            _at(tmp_path / "there").restore(archive)
        assert not (tmp_path / "there").exists()
    assert not list(tmp_path.rglob("*evil")) + list(tmp_path.parent.glob("*evil"))


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_other_users_can_read_nothing(docs: Path, tmp_path: Path, umask: int) -> None:
    """A collection, its uploads, a backup and what is restored from it; group and others have no permission."""
    before = os.umask(umask)
    try:
        with _at(tmp_path / "c") as collection:
            collection.sync(docs)
            UploadFolder(collection.path).store(io.BytesIO(b"text"), "a.txt", ["key:a"])
            with open_connection(collection.path) as connection:  # with its log and its shared memory
                connection.exec_driver_sql("SELECT count(*) FROM chunks").all()
                _sync_more(collection, docs)
                names = {path.name for path in collection.path.iterdir()}
                assert {"catalog.db", "catalog.db-wal", "catalog.db-shm", "HEAD", "LOCK", "views", "uploads"} <= names
                _assert_private(collection.path)
            collection.backup(tmp_path / "backup")
            _assert_private(tmp_path / "backup")
        with _at(tmp_path / "restored") as restored:
            restored.restore(tmp_path / "backup")
        _assert_private(tmp_path / "restored")
    finally:
        os.umask(before)


def test_new_files_have_the_permissions_of_an_opened_folder(docs: Path, tmp_path: Path) -> None:
    with _at(tmp_path / "c") as collection:
        collection.sync(docs)
        collection.path.chmod(0o750)
        _sync_more(collection, docs)
    (view,) = (collection.path / "views").iterdir()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (view, view / "manifest.json")] == [0o750, 0o640]
    assert stat.S_IMODE((collection.path / "HEAD").stat().st_mode) == 0o640


def _sync_more(collection: Collection, docs: Path) -> None:
    (docs / "more.txt").write_text("Night watchmen sleep by day.")
    collection.sync(docs)


def _assert_private(path: Path) -> None:
    for each in (path, *path.rglob("*")):
        mode = stat.S_IMODE(each.stat().st_mode)
        assert mode == (0o700 if each.is_dir() else 0o600), f"{each} has the mode {mode:o}"


def _named(folder: Path, *times: str) -> list[str]:
    return [f"{folder.parent.name}-{time}.tar" for time in times]


def test_keep_deletes_older_backups_of_the_collection_only(filled: Collection, docs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    first = Path(filled.backup(folder, keep=3).path)
    old = _named(folder, "20200101T000000Z", "20210101T000000Z", "20220101T000000Z", "20230101T000000Z")
    for name in old:
        shutil.copy(first, folder / name)
    first.unlink()

    other = _at(tmp_path / "other" / tmp_path.name / ".ragfm")  # has the same default name
    other.sync(docs)
    (other_backup,) = _named(folder, "20190101T000000Z")
    other.backup(folder / other_backup)
    (cut,) = _named(folder, "20190201T000000Z")
    (folder / cut).write_bytes((folder / old[0]).read_bytes()[:-20_000])
    (foreign,) = _named(folder, "20190301T000000Z")
    (folder / foreign).write_bytes(b"not of ragfm")
    (linked,) = _named(folder, "20190401T000000Z")
    (folder / linked).symlink_to(folder / old[3])
    shutil.copy(folder / old[0], folder / "kept-by-hand.tar")
    untouched = {other_backup, cut, foreign, linked, "kept-by-hand.tar"}

    (docs / "new.txt").write_text("New.")
    filled.sync()
    report = filled.backup(folder, keep=3)
    assert {Path(path).name for path in report.deleted} == set(old[:2])
    assert {path.name for path in folder.iterdir()} == {*old[2:], Path(report.path).name, *untouched}
    there = _at(tmp_path / "there")
    assert there.restore(report.path).generation == report.generation == 2
    assert _seen(there) == _seen(filled)
    assert there.verify().findings == ()


def test_keep_deletes_nothing_if_the_new_backup_fails(filled: Collection, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    first = Path(filled.backup(folder, keep=1).path)
    first = first.rename(folder / _named(folder, "20200101T000000Z")[0])
    filled.close()
    data = bytearray((filled.path / CATALOG_FILE).read_bytes())
    data[-3000] ^= 1
    (filled.path / CATALOG_FILE).write_bytes(data)
    with pytest.raises(DamagedCollectionError):
        _at(filled.path).backup(folder, keep=1)
    assert list(folder.iterdir()) == [first]
