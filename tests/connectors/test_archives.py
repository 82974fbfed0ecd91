"""Archives in the connector `files`: their files are documents, and hostile archives do no harm."""

from __future__ import annotations

import io
import os
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest
from ragfm_connectors import archives as archives_module
from ragfm_connectors.archive_service import ConfinedArchive
from ragfm_connectors.files import FilesConnector
from support.decompression_bombs import archives, images_and_pickles

from ragfm import Collection
from ragfm.core.errors import ConnectorError
from ragfm.core.types import Ref
from ragfm.testing import check_connector

KINDS = ("a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz")


def _pack(path: Path, files: dict[str, str | bytes], *, mtime: int = 1_700_000_000) -> Path:
    """An archive of the kind that its name stands for."""
    contents = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in contents.items():
                archive.writestr(zipfile.ZipInfo(name, (2023, 11, 14, 22, 13, 20)), data, zipfile.ZIP_DEFLATED)
        return path
    kind = {".tar": "", ".tgz": "gz"}.get(path.suffix, path.suffix[1:])
    with tarfile.open(path, f"w:{kind}") as tar:  # type: ignore[call-overload]
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime
            tar.addfile(info, io.BytesIO(data))
    return path


def _texts(connector: FilesConnector) -> dict[str, bytes]:
    return {ref.path: connector.fetch(ref).data for ref in connector.refs() if not (ref.skip or ref.error)}


def _reasons(connector: FilesConnector) -> dict[str, str]:
    return {ref.path: ref.skip or ref.error or "" for ref in connector.refs() if ref.skip or ref.error}


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_an_archive_are_documents_and_their_changes_are_seen(
    tmp_path: Path, collection: Collection, kind: str
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    files: dict[str, str | bytes] = {
        f"inner/{number}.md": f"# Number {number}\n\nIt is {number}.\n" for number in range(4)
    }
    _pack(docs / kind, {**files, "./top.txt": "Top."})
    (docs / "plain.md").write_text("Plain.")
    assert collection.sync(docs).added == 6
    assert collection.document(f"docs/{kind}/inner/2.md").text == files["inner/2.md"]
    assert collection.documents("modified = '2023-11-14T22:13:20+00:00'")
    assert collection.sync(docs).unchanged == 6
    del files["inner/3.md"]
    _pack(docs / kind, {**files, "./top.txt": "Tip.", "new.md": "New."})
    report = collection.sync(docs)
    assert (report.added, report.updated, report.removed, report.unchanged) == (1, 1, 1, 4)
    assert collection.document(f"docs/{kind}/top.txt").text == "Tip."
    assert sorted(path.name for path in docs.iterdir()) == [kind, "plain.md"]


@pytest.mark.parametrize("kind", ["a.zip", "a.tar"])
def test_names_in_archives_may_have_any_spaces_and_joiners(tmp_path: Path, kind: str) -> None:
    names = ["Shot 10.00\u202fAM.txt", "東京\u3000案内.txt", "no\u00a0break.txt", "\U0001f468\u200d\U0001f469.txt"]
    _pack(tmp_path / kind, dict.fromkeys([*names, "line\nbreak.txt"], "Oaks"))
    connector = FilesConnector(tmp_path)
    assert set(_texts(connector)) == {f"{kind}/{name}" for name in names}
    assert _reasons(connector) == {f"{kind}/line\ufffdbreak.txt": "its name is not printable"}


def test_names_of_zips_in_utf_8_without_the_flag_for_it(tmp_path: Path) -> None:
    path = _pack(tmp_path / "a.zip", {"cafXX.txt": "Oaks", "grYYn.txt": "Elms", "a.txt": "Pines"})
    # In UTF-8, and in cp437, as which names without the flag are defined.
    path.write_bytes(path.read_bytes().replace(b"cafXX", "café".encode()).replace(b"grYYn", b"gr\x81\x81n"))
    assert _texts(FilesConnector(tmp_path)) == {
        "a.zip/café.txt": b"Oaks",
        "a.zip/grüün.txt": b"Elms",
        "a.zip/a.txt": b"Pines",
    }


def test_the_contract(tmp_path: Path) -> None:
    for kind in KINDS:
        _pack(tmp_path / kind, {"b/x.md": "X.", "a.md": "A."})
    check_connector(FilesConnector(tmp_path))
    check_connector(FilesConnector(tmp_path / "a.tar.gz"))
    assert _texts(FilesConnector(tmp_path / "a.tgz")) == {"a.md": b"A.", "b/x.md": b"X."}
    assert _texts(FilesConnector(tmp_path, archives=False)).keys() == {*KINDS}


class _CountingFile(io.FileIO):
    """A file that counts how often it is read from its start."""

    begun = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.begun += offset == whence == 0
        return super().seek(offset, whence)


def test_a_packed_tar_is_gone_through_once_to_read_it(tmp_path: Path) -> None:
    path = _pack(tmp_path / "a.tar.gz", {f"{number}.md": os.urandom(5000).hex() for number in range(99, 0, -1)})
    with _CountingFile(path) as file:
        archive = archives_module.open_archive(file, path.name, path.stat().st_size, "")
        members = list(archive.members())
        listed = file.begun
        assert all(len(archive.read(member.name, 10_000)) == 10_000 for member in members)
        assert file.begun - listed <= 1
    connector = FilesConnector(tmp_path)
    refs = list(connector.refs())
    assert all(len(connector.fetch(ref).data) == 10_000 for ref in (*refs, refs[0]))  # backwards, too


@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_an_archive_is_opened_again_from_a_file_that_was_read(tmp_path: Path, kind: str) -> None:
    path = _pack(tmp_path / f"a{kind}", {"a.txt": "Alpha.", "b.txt": "Beta."})
    with path.open("rb") as file:
        for _ in range(2):  # another process has the same open file, and so its position
            archive = archives_module.open_archive(file, path.name, path.stat().st_size, "")
            assert [archive.read(member.name, 100) for member in archive.members()] == [b"Alpha.", b"Beta."]


def test_archives_are_unpacked_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in KINDS:
        _pack(tmp_path / kind, {"a.md": "A."})

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("unpacked in this process")

    for module, name in ((zipfile, "ZipFile"), (tarfile, "open"), (archives_module, "open_archive")):
        monkeypatch.setattr(module, name, fail)
    assert _texts(FilesConnector(tmp_path)) == {f"{kind}/a.md": b"A." for kind in KINDS}


@pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tar.gz"])
def test_an_archive_with_more_files_than_allowed_is_skipped(tmp_path: Path, kind: str) -> None:
    _pack(tmp_path / kind, {f"{number}.md": "x" for number in range(11)})
    assert "has 11 entries or more; the limit is 10" in _reasons(FilesConnector(tmp_path, archive_files=10))[kind]
    assert len(_texts(FilesConnector(tmp_path, archive_files=11))) == 11


def test_an_archive_is_listed_again_only_if_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _pack(tmp_path / "a.zip", {"a.md": "A."})
    os.utime(path, (10**9, 10**9))
    listings = []
    members = ConfinedArchive.members
    monkeypatch.setattr(ConfinedArchive, "members", lambda self: (listings.append(1), members(self))[1])
    connector = FilesConnector(tmp_path)
    for _ in range(3):
        assert [ref.path for ref in connector.refs()] == ["a.zip/a.md"]
    assert len(listings) == 1
    _pack(path, {"a.md": "A.", "b.md": "B."})
    assert [ref.path for ref in connector.refs()] == ["a.zip/a.md", "a.zip/b.md"]
    assert len(listings) == 2


def test_patterns_apply_within_archives(tmp_path: Path) -> None:
    inner = _pack(tmp_path / "in.zip", {"c.md": "C.", "c.txt": "C."}).read_bytes()
    (tmp_path / "in.zip").unlink()
    _pack(tmp_path / "a.zip", {"a.md": "A.", "a.txt": "A.", "drafts/b.md": "B.", "in.zip": inner, ".git/x.md": "H."})
    _pack(tmp_path / "old.tar", {"o.md": "O."})
    connector = FilesConnector(tmp_path, include=["*.md"], exclude=["drafts", "old.tar"])
    assert _texts(connector).keys() == {"a.zip/a.md"}
    assert _reasons(connector) == {"a.zip/.git/x.md": "hidden"}
    assert _reasons(FilesConnector(tmp_path, include=["*.zip"]))["a.zip/in.zip"] == (
        "an archive within an archive is not opened"
    )
    assert _texts(FilesConnector(f"{tmp_path}/*.zip/*.md")).keys() == {"a.zip/a.md"}


def test_access_files_apply_within_archives(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "a.md": "A.",
        "hr/.ragfm-access": "hr\nboard\n",
        "hr/b.md": "B.",
        "hr/x/c.md": "C.",
        "hr/x/.ragfm-access": "hr\n",
        "no/.ragfm-access": b"\xff",
        "no/d.md": "D.",
    }
    (tmp_path / ".ragfm-access").write_text("hr\nstaff\n")
    for kind in ("a.zip", "a.tar.gz"):
        _pack(tmp_path / kind, files)
        allow = {
            ref.path.removeprefix(f"{kind}/"): ref.allow for ref in FilesConnector(tmp_path).refs() if not ref.error
        }
        assert allow["a.md"] == ("hr", "staff")
        assert allow["hr/b.md"] == allow["hr/x/c.md"] == ("hr",)
        assert allow["no/d.md"] == ()
        assert f"{kind}/no/.ragfm-access" in _reasons(FilesConnector(tmp_path))
        connector = FilesConnector(tmp_path)
        refs = [ref for ref in connector.refs() if not ref.error]
        assert all(connector.fetch(ref) for ref in refs)
        (tmp_path / ".ragfm-access").write_text("staff\n")
        with pytest.raises(ConnectorError, match="closed to a group"):
            connector.fetch(next(ref for ref in refs if ref.path.endswith("hr/b.md")))
        (tmp_path / ".ragfm-access").write_text("hr\nstaff\n")
        (tmp_path / kind).unlink()


@pytest.mark.slow
def test_bombs_are_refused_before_they_use_time_or_memory(tmp_path: Path) -> None:
    for name, data in {**archives(), **images_and_pickles()}.items():
        if not name.endswith(".docx"):
            (tmp_path / name).write_bytes(data)
    (tmp_path / "long.tar").write_bytes(_tar_with_long_name())
    began = time.process_time()
    tracemalloc.start()
    connector = FilesConnector(tmp_path)
    why, texts = _reasons(connector), {}
    for ref in connector.refs():
        if not (ref.skip or ref.error):
            try:
                texts[ref.path] = connector.fetch(ref).data
            except ConnectorError as error:
                why[ref.path] = str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - began < 12
    assert peak < 100 << 20
    assert "entries that overlap" in why["small-overlap.zip"]
    assert "times its size" in why["zeros.tar.gz"]
    assert "times its size" in why["overlap.zip"]
    assert "an archive within an archive" in next(
        reason for path, reason in why.items() if path.startswith("nested.zip/")
    )
    assert sum(path.startswith("many.zip/") for path in texts) == 4000
    assert {why[path].partition(":")[0] for path in why if path.startswith("escape.")} == {
        "its path leads out of the archive",
        "not a regular file but a link",
        "not a regular file",
    }
    assert not any(path.startswith("escape.") for path in texts)
    assert "lying.zip" in next(reason for path, reason in why.items() if path.startswith("lying.zip"))
    assert "cannot be read" in why["cut.zip"]
    assert "directory of" in why["long.tar"]
    assert all(".." not in path.split("/") for path in (*why, *texts))


def _tar_with_long_name() -> bytes:
    """A tar whose first entry claims a name of 300 MB."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 300 << 20
    return info.tobuf() + bytes(1024)


def test_a_decoder_that_wants_gigabytes_is_refused(tmp_path: Path) -> None:
    path = _pack(tmp_path / "a.tar.xz", {"a.md": "A."})
    data = bytearray(path.read_bytes())
    header = slice(12, 12 + 4 * (data[12] + 1))  # of the first block, with its checksum in the last four bytes
    data[data.index(b"\x21\x01", header.start) + 2] = 40  # a dictionary of 4 GiB
    data[header.stop - 4 : header.stop] = zlib.crc32(data[header.start : header.stop - 4]).to_bytes(4, "little")
    path.write_bytes(data)
    assert _reasons(FilesConnector(tmp_path)) == {
        "a.tar.xz": "the archive cannot be read: unpacking it takes too much memory"
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive_keeps_its_documents(tmp_path: Path, collection: Collection, kind: str) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    _pack(docs / kind, {f"{number}.md": os.urandom(9000).hex() for number in range(3)})
    assert collection.sync(docs).added == 3
    whole = (docs / kind).read_bytes()
    (docs / kind).write_bytes(whole[: len(whole) // 2])
    report = collection.sync(docs)
    assert report.removed == 0
    assert [(failed.uri, failed.stage) for failed in report.failed] == [(f"docs/{kind}", "list")]
    assert len(collection.documents()) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_any_damage_is_named(tmp_path: Path, kind: str) -> None:
    texts = {f"{number}.md": f"Number {number}. " * 99 for number in range(3)}
    whole = _pack(tmp_path / kind, texts).read_bytes()
    named, changed = 0, 0
    for at in range(0, len(whole), max(1, len(whole) // 60)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x55
        (tmp_path / kind).write_bytes(damaged)
        connector = FilesConnector(tmp_path)
        for ref in connector.refs():
            if ref.skip or ref.error:
                named += 1
                continue
            try:
                changed += connector.fetch(ref).data.decode("latin-1") not in texts.values()
            except ConnectorError:
                named += 1
    assert named
    assert not changed or kind == "a.tar", "a text changed, and no error says so"


def test_a_file_removed_from_an_archive_is_an_error(tmp_path: Path) -> None:
    _pack(tmp_path / "a.zip", {"a.md": "A."})
    connector = FilesConnector(tmp_path)
    assert connector.fetch(Ref("a.zip/a.md")).data == b"A."
    _pack(tmp_path / "a.zip", {"b.md": "B. And more."})
    with pytest.raises(ConnectorError, match=r"no longer in the archive 'a\.zip'"):
        connector.fetch(Ref("a.zip/a.md"))
    with pytest.raises(ConnectorError):
        connector.fetch(Ref("a.zip/../a.md"))
