"""Permissions that come with the source: files by POSIX rules, rows by a column; identities stand for groups."""

from __future__ import annotations

import grp
import json
import os
import pwd
import random
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from zipfile import ZipFile

import pytest
from ragfm_connectors import posix_access
from ragfm_connectors.access_files import ACCESS_FILE
from ragfm_connectors.files import FilesConnector
from ragfm_connectors.sql import SqlConnector
from support.shell import Shell

from ragfm import Collection, Ref
from ragfm.core.errors import ConfigError, ConnectorError
from ragfm.core.identities import Identities
from ragfm.testing import HashingEmbedder, check_connector

ME = f"user:{pwd.getpwuid(os.getuid()).pw_name}"
OURS = f"group:{grp.getgrgid(os.getgid()).gr_name}"
OTHER_UID, OTHER = 1, f"user:{pwd.getpwuid(1).pw_name}"


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder that everyone may enter, from `/` down: those of pytest are private."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    if "everyone" not in posix_access.FileReaders().of(folder):
        pytest.skip(f"{folder.parent} is not open to everyone")
    yield folder
    shutil.rmtree(folder)


def _mapping(folder: Path, **groups: str | list[str]) -> str:
    names = {"me": ME, "ours": OURS, "other": OTHER, "everyone": "everyone"}
    file = folder / "identities.toml"
    file.write_text(
        "".join(f"{json.dumps(names.get(key, key))} = {json.dumps(value)}\n" for key, value in groups.items())
    )
    return str(file)


def _write(path: Path, text: str, mode: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (1, 1))  # a file of this very moment is read again
    path.chmod(mode)
    return path


def _acl(path: Path, *entries: tuple[int, int, int]) -> None:
    data = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(path, "system.posix_acl_access", data)
    except OSError as error:
        pytest.skip(f"the file system has no ACLs: {error}")


def _readers(path: Path) -> set[str]:
    return set(posix_access.FileReaders().of(path))


def _allow(connector: FilesConnector | SqlConnector) -> dict[str, tuple[str, ...] | None]:
    return {ref.path: ref.allow for ref in connector.refs()}


def _seen(collection: Collection, *groups: str) -> set[str]:
    handle = collection.as_groups(set(groups))
    uris = {info.uri for info in handle.documents()}
    assert {hit.uri for hit in handle.search("the text of all", k=99)} == uris
    return {uri.rpartition("/")[2] for uri in uris}


# --- The mapping -------------------------------------------------------------------------------------------------


def test_identities_stand_for_groups_and_what_is_not_mapped_is_visible_to_nobody(tmp_path: Path) -> None:
    file = tmp_path / "map.toml"
    file.write_text('"group:hr" = "hr"\n"Ann@Example.org" = ["board", "hr"]\n"everyone" = "*"\n')
    identities = Identities(file)
    assert identities.groups(["group:hr", "ann@example.ORG"]) == ("board", "hr")
    assert identities.groups(["group:HR", "user:eve"]) == ()  # names of users and groups have a case
    assert identities.groups(["user:eve", "everyone"]) is None
    assert identities.groups([]) == ()
    assert identities.unmapped == {"group:HR", "user:eve"}


@pytest.mark.parametrize("text", ["a", '"a" = 1', '"a" = ""', '"a" = ["x", 2]', '"a" = "key:ann"', '"a" = "x\\ny"'])
def test_an_invalid_mapping_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "map.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"map\.toml"):
        Identities(file)
    with pytest.raises(ConfigError, match="No such file"):
        Identities(tmp_path / "none.toml")


# --- Files -------------------------------------------------------------------------------------------------------


def test_readers_of_a_file_by_its_mode(root: Path) -> None:
    file = _write(root / "a" / "b.txt", "text", 0o644)
    for mode, expected in [
        (0o644, {ME, OURS, "everyone"}),
        (0o640, {ME, OURS}),
        (0o600, {ME}),
        (0o604, {ME}),  # who is in the group is refused, and we do not know who is
        (0o044, set()),
        (0o000, set()),
    ]:
        file.chmod(mode)
        assert _readers(file) == expected, oct(mode)
    file.chmod(0o644)
    for mode, expected in [(0o750, {ME, OURS}), (0o744, {ME}), (0o711, {ME, OURS, "everyone"})]:
        file.parent.chmod(mode)
        assert _readers(file) == expected, oct(mode)


def test_readers_of_a_file_by_its_acl(root: Path) -> None:
    file, any_id = _write(root / "a.txt", "text", 0o600), 0xFFFFFFFF
    owner, group, mask, others = (1, 6, any_id), (4, 4, any_id), (16, 4, any_id), (32, 4, any_id)
    _acl(file, owner, (2, 4, OTHER_UID), group, mask, (32, 0, any_id))
    assert _readers(file) == {ME, OURS, OTHER}
    _acl(file, owner, (2, 4, OTHER_UID), group, (8, 4, 99_999), (16, 0, any_id), (32, 0, any_id))
    assert _readers(file) == {ME}  # the mask refuses all but the owner
    _acl(file, owner, (2, 0, OTHER_UID), group, mask, others)
    assert _readers(file) == {ME}  # the refused user may be in the group
    _acl(file, owner, group, (8, 4, 99_999), mask, others)
    assert _readers(file) == {ME, OURS, "gid:99999", "everyone"}
    _acl(file, owner, group, (8, 0, 99_999), mask, others)
    assert _readers(file) == {ME, OURS}


def test_links_archives_and_access_files_restrict_further(root: Path, tmp_path: Path) -> None:
    _write(root / "open" / "a.txt", "text", 0o644)
    _write(root / "closed" / "b.txt", "text", 0o644)
    (root / "zlink").symlink_to("closed/b.txt")
    with ZipFile(root / "c.zip", "w") as archive:
        archive.writestr("inner/d.txt", "text")
    (root / "c.zip").chmod(0o640)
    (root / "closed").chmod(0o700)
    _write(root / "open" / ACCESS_FILE, "staff\nboard", 0o644)
    mapping = _mapping(tmp_path, me="me", ours="ours", everyone=["staff", "all"])
    connector = FilesConnector(root, identities=mapping)
    assert _allow(connector) == {
        "open/a.txt": ("staff",),
        "closed/b.txt": ("me",),
        "zlink": None,  # skipped
        "c.zip/inner/d.txt": ("me", "ours"),
    }
    check_connector(connector)
    assert set(_allow(FilesConnector(root)).values()) == {None, ("board", "staff")}  # not unless asked for


def test_a_change_of_permissions_reaches_searches_without_reading_the_document(
    root: Path, tmp_path: Path, collection: Collection, embedder: HashingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _write(root / "a.txt", "The text of all.", 0o640)
    _write(root / "b.txt", "The text of all, too.", 0o600)
    options = {"identities": _mapping(tmp_path, ours="us", everyone="*")}
    report = collection.sync(root, name="docs", options=options)
    assert [(it.source, it.identity) for it in report.unmapped] == [("docs", ME)]
    assert collection.status().sources[0]["unmapped"] == [ME]
    assert (_seen(collection), _seen(collection, "us")) == (set(), {"a.txt"})

    def fetch(self: FilesConnector, ref: Ref) -> None:
        raise AssertionError(f"{ref.path} is read")

    monkeypatch.setattr(FilesConnector, "fetch", fetch)
    embedded = embedder.embedded
    for mode, expected in [(0o644, ({"a.txt"}, {"a.txt"})), (0o600, (set(), set())), (0o640, (set(), {"a.txt"}))]:
        file.chmod(mode)
        report = collection.sync()
        assert (report.unchanged, report.failed) == (2, ())
        assert (_seen(collection), _seen(collection, "us")) == expected, oct(mode)
    _mapping(tmp_path, me="ann")  # the mapping can change, too
    assert collection.sync().unmapped[0].identity == OURS
    assert _seen(collection, "ann") == {"a.txt", "b.txt"}
    assert _seen(collection, "us") == set()
    _mapping(tmp_path, me="ann", ours="us")
    assert collection.sync().unmapped == ()
    assert collection.status().sources[0]["unmapped"] == []
    assert embedder.embedded == embedded


def test_an_error_while_permissions_are_read_keeps_the_stricter_ones(
    root: Path, tmp_path: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _write(root / "a.txt", "The text of all.", 0o640)
    mapping = _mapping(tmp_path, ours="us", everyone="*")
    collection.sync(root, name="docs", options={"identities": mapping})
    allowed = posix_access._allowed

    def broken(path: Path, right: int) -> frozenset[str]:
        if path.suffix == ".txt":
            raise OSError(5, "Input/output error")
        return allowed(path, right)

    file.chmod(0o644)  # opened
    _write(root / "new.txt", "The text of all.", 0o644)
    with monkeypatch.context() as patch:
        patch.setattr(posix_access, "_allowed", broken)
        report = collection.sync()
    assert [(it.uri, it.stage, it.stale) for it in report.failed] == [
        ("docs/a.txt", "list", True),
        ("docs/new.txt", "list", False),
    ]
    assert "its permissions cannot be read" in report.failed[0].error
    assert (_seen(collection), _seen(collection, "us")) == (set(), {"a.txt"})
    assert collection.sync(retry=True).added == 1
    assert _seen(collection) == {"a.txt", "new.txt"}


def test_a_file_that_is_closed_after_the_listing_is_not_read(root: Path, tmp_path: Path) -> None:
    file = _write(root / "a.txt", "text", 0o644)
    connector = FilesConnector(root, identities=_mapping(tmp_path, ours="us", everyone="*"))
    (ref,) = connector.refs()
    assert connector.fetch(ref).data == b"text"
    file.chmod(0o640)
    with pytest.raises(ConnectorError, match="closed to a group"):
        connector.fetch(ref)


def test_nobody_sees_what_they_may_not_after_any_change(root: Path, tmp_path: Path, collection: Collection) -> None:
    rng = random.Random(5)
    files = [
        _write(root / f"r{number % 5}" / f"{number}.txt", f"The text of all {number}.", 0o644) for number in range(20)
    ]
    collection.sync(root, name="docs", options={"identities": _mapping(tmp_path, me="me", ours="us", everyone="*")})
    for _ in range(6):
        for file in rng.sample(files, 8):
            file.chmod(rng.choice([0o644, 0o640, 0o600, 0o000]))
        for folder in rng.sample(sorted({file.parent for file in files}), 2):
            folder.chmod(rng.choice([0o755, 0o750, 0o700, 0o500]))
        collection.sync()
        for groups, shift in [((), 0), (("us",), 3), (("me",), 6)]:
            rights = {file: (file.stat().st_mode, file.parent.stat().st_mode) for file in files}
            assert _seen(collection, *groups) == {
                file.name
                for file, (mode, folder) in rights.items()
                if any(mode >> digits & 4 and folder >> digits & 1 for digits in {0, shift})
            }


def test_unmapped_identities_are_shown(root: Path, tmp_path: Path) -> None:
    _write(root / "a.txt", "The text of all.", 0o640)
    _mapping(tmp_path, ours="us")
    shell = Shell(tmp_path)
    done = shell("ingest", root, "--name", "docs", "--option", "identities=identities.toml")
    sentence = f"{ME}; what only these may see is visible to nobody"
    assert f"unmapped in docs: {sentence}" in done.stderr
    assert sentence in shell("status").stdout
    assert sentence in shell("sources").stdout
    assert shell.json("ingest")["unmapped"] == [{"source": "docs", "identity": ME}]


# --- Rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [None, "changed"])
def test_a_column_names_the_readers_of_a_row(tmp_path: Path, collection: Collection, changed: str | None) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db")) as database:
        database.execute("CREATE TABLE notes (id INTEGER, text TEXT, changed INTEGER, readers TEXT)")
        rows = [(1, "group:hr, ann@example.org"), (2, '["everyone"]'), (3, None), (4, "group:none"), (5, "group:hr")]
        database.executemany("INSERT INTO notes VALUES (?, 'The text of all.', ?, ?)", [(n, n, who) for n, who in rows])
        database.commit()
        mapping = _mapping(tmp_path, **{"group:hr": "hr", "Ann@example.org": "ann", "everyone": "*"})
        options = {"readers": "readers", "identities": mapping} | ({"changed": changed} if changed else {})
        location = f"sqlite:///{tmp_path}/a.db#notes"
        connector = SqlConnector(location, **options)
        assert list(_allow(connector).values()) == [("ann", "hr"), None, (), (), ("hr",)] or changed
        check_connector(connector)
        report = collection.sync(location, connector="sql", name="notes", options=options)
        assert [it.identity for it in report.unmapped] == ["group:none"]
        assert _seen(collection) == {"2"}
        assert _seen(collection, "hr") == {"1", "2", "5"}
        assert _seen(collection, "ann") == {"1", "2"}
        assert "readers" not in collection.document("notes/1").metadata

        refs = {ref.path: ref for ref in connector.refs()}
        database.execute("UPDATE notes SET readers = 'ann@example.org' WHERE id IN (1, 2)")
        database.commit()
        with pytest.raises(ConnectorError, match="closed to a group"):
            SqlConnector(location, **options).fetch(refs["2"])
        report = collection.sync()
        assert (report.unchanged, report.updated, report.chunks) == (5, 0, 0)
        assert _seen(collection) == set()
        assert _seen(collection, "hr") == {"5"}
        assert _seen(collection, "ann") == {"1", "2"}


def test_readers_of_rows_need_a_mapping(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one is missing"):
        SqlConnector(f"sqlite:///{tmp_path}/a.db#notes", readers="readers")
