from __future__ import annotations

import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ragfm_connectors.files import FilesConnector, _Listing

from ragfm.core.errors import ConfigError, ConnectorError, SourceError
from ragfm.core.output_folder import OUTPUT, make_output
from ragfm.core.registry import load_plugin, plugins
from ragfm.core.types import Blob, Ref
from ragfm.testing import check_connector

OLD = 1_700_000_000  # 2023-11-14T22:13:20+00:00


def write(path: Path, text: str = "text", *, old: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if old:
        os.utime(path, (OLD, OLD))
    return path


def listed(location: Any, **options: Any) -> dict[str, Ref]:
    refs = list(FilesConnector(location, **options).refs())
    assert [ref.path for ref in refs] == sorted({ref.path for ref in refs})
    return {ref.path: ref for ref in refs}


def taken(location: Any, **options: Any) -> list[str]:
    return [path for path, ref in listed(location, **options).items() if ref.skip is None and ref.error is None]


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    root = tmp_path / "docs"
    for path in ("a.md", "a/b.md", "a/c.txt", "a-b.md", "drafts/x.md", "drafts/deep/y.md", "z.txt"):
        write(root / path, path)
    return root


# --- Listing -----------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_files_in_order_with_size_and_time(docs: Path) -> None:
    connector = FilesConnector(docs)
    assert connector.root == docs
    assert [ref.path for ref in connector.refs()] == [
        "a-b.md",
        "a.md",
        "a/b.md",
        "a/c.txt",
        "drafts/deep/y.md",
        "drafts/x.md",
        "z.txt",
    ]
    assert next(ref for ref in connector.refs() if ref.path == "a/b.md").revision == f"6:{OLD * 10**9}"
    assert connector.fetch(Ref("a/b.md")) == Blob(b"a/b.md", None, {"modified": "2023-11-14T22:13:20+00:00"})


def test_a_single_file_is_a_source_with_an_empty_path(docs: Path) -> None:
    connector = FilesConnector(docs / "a.md", exclude=["*.md"])
    assert list(connector.refs()) == [Ref("", f"4:{OLD * 10**9}")]
    assert connector.fetch(Ref("")).data == b"a.md"
    assert connector.root == docs / "a.md"


def test_relative_locations_and_links_to_them(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(docs / "a")
    assert taken("..", include=["z.txt"]) == ["z.txt"]
    assert FilesConnector("../drafts/").root == docs / "drafts"
    link = docs.parent / "link"
    link.symlink_to(docs)
    connector = FilesConnector(link)
    assert connector.root == link
    assert "a/b.md" in [ref.path for ref in connector.refs()]
    assert connector.fetch(Ref("a/b.md")).data == b"a/b.md"


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("*.txt", ["z.txt"]),
        ("**/*.txt", ["a/c.txt", "z.txt"]),
        ("a/*", ["a/b.md", "a/c.txt"]),
        ("drafts/*", ["drafts/x.md"]),
        ("drafts/**", ["drafts/deep/y.md", "drafts/x.md"]),
        ("*/?.md", ["a/b.md", "drafts/x.md"]),
        ("[!a]*/**/[xy].md", ["drafts/deep/y.md", "drafts/x.md"]),
        ("*.pdf", []),
    ],
)
def test_globs(docs: Path, pattern: str, paths: list[str]) -> None:
    fixed = list(itertools.takewhile(lambda part: not set(part) & set("*?["), pattern.split("/")))
    connector = FilesConnector(docs / pattern)
    assert connector.root == docs.joinpath(*fixed)
    assert ["/".join([*fixed, ref.path]) for ref in connector.refs()] == paths


def test_a_glob_does_not_look_into_folders_that_cannot_match(docs: Path) -> None:
    write(docs / "a/.git/config")
    assert list(listed(docs / "*.txt")) == ["z.txt"]
    assert "a/.git" in listed(docs / "**/*.txt")
    assert "a/.git" not in listed(docs / "*/*")


def test_a_name_with_wildcards_that_exists_is_meant_literally(docs: Path) -> None:
    write(docs / "x[1]" / "only.md")
    write(docs / "x1" / "other.md")
    assert taken(docs / "x[1]") == ["only.md"]


@pytest.mark.parametrize(
    ("include", "exclude", "paths"),
    [
        (["*.md"], [], ["a-b.md", "a.md", "a/b.md", "drafts/deep/y.md", "drafts/x.md"]),
        (["*.md"], ["drafts/**"], ["a-b.md", "a.md", "a/b.md"]),
        (["*.md"], ["drafts"], ["a-b.md", "a.md", "a/b.md"]),
        (["**/b.md", "z.*"], [], ["a/b.md", "z.txt"]),
        (["deep"], [], ["drafts/deep/y.md"]),
        (["/deep", "/z.txt"], [], ["z.txt"]),
        (["./a/"], ["c.txt"], ["a/b.md"]),
        ([], ["a*", "deep/"], ["drafts/x.md", "z.txt"]),
        ("z.txt", "a", ["z.txt"]),
    ],
)
def test_include_and_exclude(docs: Path, include: list[str], exclude: list[str], paths: list[str]) -> None:
    assert list(listed(docs, include=include, exclude=exclude)) == paths


def test_a_name_that_begins_with_an_exclamation_mark(docs: Path) -> None:
    write(docs / "a" / "!b.md")
    assert list(listed(docs, include=["**/!b.md"])) == ["a/!b.md"]
    with pytest.raises(ConfigError, match=r"'!b\.md' is not supported"):  # it would not mean what it means to git
        FilesConnector(docs, exclude=["*.md", "!b.md"])


@pytest.mark.parametrize("pattern", ["", "/", "./"])
def test_an_empty_pattern_is_refused(docs: Path, pattern: str) -> None:
    with pytest.raises(ConfigError, match="not a pattern"):
        FilesConnector(docs, include=[pattern])


def test_include_names_apply_to_skipped_ones_too(docs: Path) -> None:
    write(docs / "big.png", "x" * 50)
    write(docs / ".hidden.png")
    assert list(listed(docs, include=["a.md"], max_bytes=20)) == ["a.md"]
    assert listed(docs, max_bytes=20)["big.png"].skip == "50 bytes; the limit is 20 (`files.max_mb`)"


# --- Skipped entries ---------------------------------------------------------------------------------------------


def test_hidden_entries_are_listed_once_and_not_entered(docs: Path) -> None:
    write(docs / ".git/objects/aa/bb")
    write(docs / "a/.env")
    found = listed(docs)
    assert found[".git"] == Ref(".git", skip="hidden")
    assert found["a/.env"] == Ref("a/.env", skip="hidden")
    assert not [path for path in found if path.startswith(".git/")]
    assert ".git" not in listed(docs, exclude=[".git"])
    assert taken(docs / ".git") == ["objects/aa/bb"]  # named by the user


def test_too_large_files_are_skipped(docs: Path) -> None:
    write(docs / "big.txt", "x" * 1001)
    write(docs / "fits.txt", "x" * 1000)
    found = listed(docs, max_bytes=1000)
    assert found["big.txt"] == Ref("big.txt", skip="1,001 bytes; the limit is 1,000 (`files.max_mb`)")
    assert found["fits.txt"].skip is None
    assert listed(docs / "big.txt", max_bytes=1000)[""].skip is not None


def test_pipes_and_sockets_are_never_opened(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(docs / "pipe.md")
    monkeypatch.chdir(docs)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.md")
        done: list[dict[str, Ref]] = []
        thread = threading.Thread(target=lambda: done.extend([listed(docs), listed(docs / "pipe.md")]), daemon=True)
        thread.start()
        thread.join(60)
    assert done, "the listing hangs"
    assert done[0]["pipe.md"].skip == done[1][""].skip == "not a regular file but a named pipe"
    assert done[0]["socket.md"].skip == "not a regular file but a socket"
    with pytest.raises(ConnectorError, match="not a regular file"):
        FilesConnector(docs).fetch(Ref("pipe.md"))


def test_collections_and_settings_are_not_listed(docs: Path) -> None:
    for folder in (".ragfm", "store"):
        write(docs / folder / "catalog.db")
        write(docs / folder / "HEAD")
        write(docs / folder / "views/readme.md")
    write(docs / "ragfm.toml")
    write(docs / "a/ragfm.toml")
    assert not [path for path in listed(docs) if "ragfm" in path or "store" in path]
    with pytest.raises(SourceError, match="is a collection"):
        list(FilesConnector(docs / "store").refs())


def test_output_of_ragfm_is_not_listed(docs: Path) -> None:
    before = taken(docs)
    out = make_output(docs / "drafts" / "ragfm-examples")
    write(out / "train.jsonl")
    write(out / "deeper" / "card.json")
    for name in ("confidence", "tune"):
        write(docs / f"ragfm-{name}.json")
    (docs / "link").symlink_to(out)
    for hidden in (False, True):
        assert taken(docs, hidden=hidden) == before
    assert taken(out / "train.jsonl") == [""]  # whoever names a file wants it
    with pytest.raises(SourceError, match=rf"contains output of ragfm.*{OUTPUT}"):
        list(FilesConnector(out).refs())


def test_a_folder_with_documents_is_not_marked_as_output(docs: Path) -> None:
    before = taken(docs)
    write(make_output(docs) / "card.json")
    assert taken(docs) == sorted([*before, "card.json"])


# --- Symbolic links ----------------------------------------------------------------------------------------------


def test_links_to_listed_entries_are_skipped(docs: Path) -> None:
    (docs / "0-folder").symlink_to("drafts")
    (docs / "0-file.md").symlink_to("a/b.md")
    (docs / "a/loop").symlink_to("..")
    (docs / "a/self").symlink_to(".")
    before = [path for path in taken(docs) if path[0] != "0"]
    found = listed(docs)
    for path in ("0-folder", "a/loop", "a/self"):
        assert found[path].skip == "symbolic link to a folder already listed"
    assert found["0-file.md"].skip == "symbolic link to a file already listed"
    assert taken(docs) == before


def test_links_within_the_folder_are_followed_once(docs: Path) -> None:
    """A folder like a Kubernetes ConfigMap: links to files in a hidden folder, through a hidden link."""
    write(docs / "map/..2024/one.md", "one")
    (docs / "map/..data").symlink_to("..2024")
    (docs / "map/one.md").symlink_to("..data/one.md")
    (docs / "map/two.md").symlink_to("..data/one.md")
    write(docs / ".versions/3/new.md", "new")
    (docs / ".versions/3/back").symlink_to("../..")
    (docs / "current").symlink_to(".versions/3")
    (docs / "latest").symlink_to(".versions/3")
    found = listed(docs)
    assert found["map/one.md"].revision == f"3:{OLD * 10**9}"
    assert found["map/two.md"].skip == "symbolic link to a file already listed"
    assert found["current/new.md"].skip is None
    assert found["current/back"].skip == found["latest"].skip == "symbolic link to a folder already listed"
    assert FilesConnector(docs).fetch(Ref("current/new.md")).data == b"new"
    assert FilesConnector(docs).fetch(Ref("map/one.md")).data == b"one"


def test_links_that_leave_the_folder_or_lead_nowhere(docs: Path) -> None:
    outside = write(docs.parent / "docs-private/secret.md", "secret")  # its path begins as the root's does
    (docs / "out.md").symlink_to(outside)
    (docs / "out").symlink_to(outside.parent)
    (docs / "gone.md").symlink_to("no-such-file")
    (docs / "round.md").symlink_to("round.md")
    (docs / "under.md").symlink_to("a.md/x")
    found = listed(docs)
    assert found["out.md"].skip == found["out"].skip == "symbolic link that leaves the folder"
    for path in ("gone.md", "round.md", "under.md"):
        assert found[path].skip == "symbolic link that leads nowhere"
    assert "out.md" not in listed(docs, include=["*.txt"])


def test_fetch_does_not_leave_the_folder(docs: Path) -> None:
    secret = write(docs.parent / "docs-private/secret.md", "secret")
    connector = FilesConnector(docs)
    (docs / "a.md").unlink()
    (docs / "a.md").symlink_to(secret)  # after it was listed
    (docs / "out").symlink_to(secret.parent)
    for path in ("a.md", "out/secret.md", "../docs-private/secret.md", str(secret)):
        with pytest.raises(ConnectorError, match="points outside of"):
            connector.fetch(Ref(path))
    with pytest.raises(ConnectorError, match="cannot be read"):
        connector.fetch(Ref("a\0b"))


# --- Names -------------------------------------------------------------------------------------------------------


def test_odd_names(docs: Path) -> None:
    names = ["two\nlines.md", "bell\a.md", "ünï ☃ 𝔘.md", "back\\slash.md", "a:b.md", "-r", "*.md", " "]
    for name in names:
        write(docs / name, name)
    connector = FilesConnector(docs)
    paths = [ref.path for ref in connector.refs() if ref.skip is None]
    for name in names:
        assert name in paths
        assert connector.fetch(Ref(name)).data == name.encode()


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system takes no such name")
def test_names_that_are_not_utf8_are_skipped(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (b"caf\xe9.md", b"caf\xe9/x.md", b"ol\xe9/catalog.md", b"a/\xff"):
        write(docs / os.fsdecode(path))
    write(docs / r"caf\xe9.md", "a real file that reads the same")
    found = listed(docs)
    assert found[r"caf\xe9"].skip == found[r"a/\xff"].skip == "its name is not UTF-8"
    walk = _Listing.folder
    monkeypatch.setattr(_Listing, "folder", lambda *arguments: reversed(list(walk(*arguments))))
    assert listed(docs) == found  # in whichever order the system gives the names
    assert found[r"caf\xe9.md"].skip is None
    assert not [path for path in found if path.startswith(("caf", "ol")) and "/" in path]
    for ref in found.values():
        ref.path.encode()
    with pytest.raises(SourceError, match=r"caf\\xe9 is not UTF-8"):
        FilesConnector(os.fsdecode(os.fsencode(docs) + b"/caf\xe9"))


# --- Revisions ---------------------------------------------------------------------------------------------------


def test_a_change_within_the_same_tick_is_seen(docs: Path) -> None:
    now = time.time_ns()
    revisions = []
    for text in ("one", "two", "two"):
        write(docs / "fresh.md", text, old=False)
        os.utime(docs / "fresh.md", ns=(now, now))
        revisions.append((listed(docs)["fresh.md"].revision, listed(docs / "fresh.md")[""].revision))
    assert revisions[0][0] == revisions[0][1]
    assert revisions[0] != revisions[1] == revisions[2]
    assert revisions[0][0].startswith(f"3:{now}:")
    ahead = now + 10**12  # a clock that is ahead
    os.utime(docs / "fresh.md", ns=(ahead, ahead))
    assert listed(docs)["fresh.md"].revision.count(":") == 2
    settled = now - 3 * 10**9
    os.utime(docs / "fresh.md", ns=(settled, settled))
    assert listed(docs)["fresh.md"].revision == f"3:{settled}"


def test_size_and_time_change_the_revision(docs: Path) -> None:
    before = listed(docs)
    write(docs / "a.md", "longer than it was")
    os.utime(docs / "z.txt", ns=(OLD * 10**9, OLD * 10**9 + 1))
    after = listed(docs)
    assert {path for path in after if after[path] != before[path]} == {"a.md", "z.txt"}


# --- Errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["", "none", "none/*.md", "docs/a.md/*", "docs/a.md/x", "no\0thing", "docs/none"])
def test_a_missing_path_is_an_error_at_once(docs: Path, monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    monkeypatch.chdir(docs.parent)
    with pytest.raises(SourceError) as caught:
        FilesConnector(location)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.hint


def test_a_root_that_has_gone_is_an_error_not_an_empty_source(docs: Path) -> None:
    folder, file = FilesConnector(docs / "drafts/deep"), FilesConnector(docs / "a.md")
    (docs / "drafts/deep/y.md").unlink()
    assert list(folder.refs()) == []
    (docs / "drafts/deep").rmdir()
    (docs / "a.md").unlink()
    for connector in (folder, file):
        with pytest.raises(SourceError, match="no longer exists"):
            list(connector.refs())


def fail_for(monkeypatch: pytest.MonkeyPatch, name: str, path: Path, error: OSError) -> None:
    """Make a function of `os` fail for one path: permissions do not stop root."""
    real = getattr(os, name)

    def failing(target: Any, *arguments: Any, **options: Any) -> Any:
        if os.fspath(target) == os.fspath(path):
            raise error
        return real(target, *arguments, **options)

    monkeypatch.setattr(os, name, failing)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_unlisted_entries_are_kept(docs: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    whole = listed(docs)
    fail_for(monkeypatch, "scandir", docs / "drafts", error)
    found = listed(docs)
    assert found["drafts"] == Ref("drafts", error=f"the folder cannot be listed: {error.strerror}")
    assert {path: ref for path, ref in found.items() if path != "drafts"} == {
        path: ref for path, ref in whole.items() if not path.startswith("drafts/")
    }
    assert "drafts" not in listed(docs, exclude=["drafts"])
    with pytest.raises(SourceError, match=error.strerror):
        list(FilesConnector(docs / "drafts").refs())


def test_a_listing_that_breaks_off_counts_as_not_listed(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    class Breaking:
        def __init__(self, path: str) -> None:
            self.entries, self.breaks = real(path), path == str(docs / "a")

        def __enter__(self) -> Breaking:
            return self

        def __exit__(self, *_: object) -> None:
            self.entries.close()

        def __iter__(self) -> Iterator[os.DirEntry[str]]:
            yield next(self.entries)
            if self.breaks:
                raise OSError(5, "Input/output error")
            yield from self.entries

    monkeypatch.setattr(os, "scandir", Breaking)
    found = listed(docs)
    assert found["a"].error == "the folder cannot be listed: Input/output error"
    assert not [path for path in found if path.startswith("a/")]
    assert "drafts/deep/y.md" in found


def test_an_inaccessible_file_has_an_error(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_for(monkeypatch, "lstat", docs / "a/b.md", PermissionError(13, "Permission denied"))
    fail_for(monkeypatch, "lstat", docs / "z.txt", FileNotFoundError(2, "No such file or directory"))
    found = listed(docs)
    assert found["a/b.md"].error == "Permission denied"
    assert "z.txt" not in found  # removed since the folder was read


def test_errors_name_unreadable_and_vanished_files(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connector = FilesConnector(docs)
    (docs / "z.txt").unlink()
    with pytest.raises(ConnectorError, match=r"z\.txt.*No such file or directory"):
        connector.fetch(Ref("z.txt"))
    with pytest.raises(ConnectorError, match="not a regular file"):
        connector.fetch(Ref("a"))
    fail_for(monkeypatch, "open", Path("a.md"), PermissionError(13, "Permission denied"))
    os.utime(docs / "a.md")
    assert "a.md" in [ref.path for ref in connector.refs()]  # it is there, though its content cannot be hashed
    with pytest.raises(ConnectorError, match=r"a\.md.*Permission denied"):
        connector.fetch(Ref("a.md"))


def test_a_file_that_has_grown_over_the_limit_is_not_read(docs: Path) -> None:
    connector = FilesConnector(docs, max_bytes=10)
    assert connector.fetch(Ref("a.md")).data == b"a.md"
    write(docs / "a.md", "x" * 11)
    with pytest.raises(ConnectorError, match="11 bytes; the limit is 10"):
        connector.fetch(Ref("a.md"))


def test_a_time_stamp_beyond_all_calendars_is_left_out(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fstat  # few file systems keep such a time stamp
    monkeypatch.setattr(os, "fstat", lambda file: os.stat_result((*real(file)[:8], 2**39, 2**39)))
    assert FilesConnector(docs).fetch(Ref("a.md")) == Blob(b"a.md")


def test_deep_folders(tmp_path: Path) -> None:
    depth = 1100  # more than Python recurses, while the system still takes the path
    folder = tmp_path
    for _ in range(depth):
        folder = folder / "d"
        folder.mkdir()
    (folder / "x.md").touch()
    assert taken(tmp_path, include=["*.md"]) == ["d/" * depth + "x.md"]
    (folder / "x.md").unlink()
    for _ in range(depth):  # shutil.rmtree, by which pytest cleans up, recurses
        folder.rmdir()
        folder = folder.parent


# --- The contract ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", plugins("connectors"))
def test_every_connector_keeps_the_contract(docs: Path, name: str) -> None:
    if name != "files":
        pytest.skip(f"the connector {name} takes no folder")
    write(docs / "fresh.md", old=False)
    write(docs / ".hidden/x")
    (docs / "loop").symlink_to(".")
    connector_class = load_plugin("connectors", name)
    for location in (docs, docs / "a.md", docs / "**/*.md"):
        check_connector(connector_class(location))


class Broken(FilesConnector):
    def __init__(self, root: Path, how: str) -> None:
        super().__init__(root)
        self.how, self.listings = how, 0

    def refs(self) -> Iterator[Ref]:
        self.listings += 1
        for ref in super().refs():
            if self.how == "revisions":
                yield Ref(ref.path, f"{ref.revision}:{self.listings}")
            elif self.how == "absolute":
                yield Ref(f"{self.root}/{ref.path}", ref.revision)
            elif self.how == "dots":
                yield Ref(f"../docs/{ref.path}", ref.revision)
            else:
                yield ref
                if self.how == "twice":
                    yield ref
                if self.how == "exhausted" and self.listings > 1:
                    return

    def fetch(self, ref: Ref) -> Blob:
        if self.how == "raises":
            raise KeyError(ref.path)
        return Blob("text") if self.how == "text" else super().fetch(ref)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("revisions", AssertionError),
        ("absolute", AssertionError),
        ("dots", AssertionError),
        ("twice", AssertionError),
        ("exhausted", AssertionError),
        ("text", AssertionError),
        ("raises", KeyError),
    ],
)
def test_the_contract_catches_a_broken_connector(docs: Path, how: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_connector(Broken(docs, how))


def test_the_contract_allows_one_change_of_revision(docs: Path) -> None:
    class Settling(FilesConnector):
        settled = False

        def refs(self) -> Iterator[Ref]:
            for ref in super().refs():
                yield ref if self.settled else Ref(ref.path, f"{ref.revision}:hash")
            self.settled = True

    check_connector(Settling(docs))
