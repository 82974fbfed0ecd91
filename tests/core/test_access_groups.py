"""Access groups: a restricted handle behaves like a collection of the permitted documents alone."""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from ragfm_connectors.access_files import ACCESS_FILE, read_access_file
from ragfm_connectors.files import FilesConnector

from ragfm import Blob, Collection, Ref, Settings
from ragfm.chunking import ChunkSettings
from ragfm.core.access_groups import groups_after_listing, intersect_groups
from ragfm.core.errors import CollectionError, ConnectorError, MassDeleteError
from ragfm.ingestion.ingest_report import SyncReport
from ragfm.ingestion.sync import Sync, list_refs
from ragfm.store.catalog import Source
from ragfm.store.catalog_writer import CatalogWriter, Commit
from ragfm.testing import HashingEmbedder, check_connector

WORDS = [f"word{number}" for number in range(80)]
FILTERS = (
    None,
    None,
    "year >= 2020",
    "team in (t0, t1)",
    "not team = t2",
    'uri > "docs/r05"',
    "year < 2015 or team = t3",
)


_times = itertools.count(10**9)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (next(_times),) * 2)  # the revision of a file that has just been written changes once
    return path


def _open(folder: Path, embedder: HashingEmbedder) -> Collection:
    return Collection.open(folder, settings=Settings(), embedder=embedder)


def _seen(collection: Collection, *groups: str) -> set[str]:
    """The documents that a handle restricted to the groups sees, by every way to look for them."""
    handle = collection.as_groups(set(groups))
    uris = {info.uri for info in handle.documents()}
    for mode in ("dense", "keyword", "hybrid"):
        hits = handle.search("the text of all", k=99, mode=mode)
        assert {hit.uri for hit in hits} == uris, mode
    assert handle.status().documents == len(uris)
    return {uri.removeprefix("docs/") for uri in uris}


# --- Equal to a collection of the permitted documents ------------------------------------------------------------


def _corpus(folder: Path, documents: int, groups: int, rng: random.Random) -> dict[str, frozenset[str] | None]:
    """Write documents into folders that are open to all, to some groups, or to nobody; give the groups by URI."""
    rules: list[frozenset[str] | None] = [None, None, frozenset()]
    rules += [frozenset(f"g{n}" for n in rng.sample(range(groups), rng.randint(1, 3))) for _ in range(groups)]
    allow = {}
    for number in range(documents):
        which = rng.randrange(len(rules))
        words = " ".join(rng.choices(WORDS, k=12))
        head = f"---\nyear: {rng.randint(2010, 2026)}\nteam: t{rng.randrange(4)}\n---\n"
        _write(folder / f"r{which:02}" / f"{number:04}.md", f"{head}{words} number{number}")
        allow[f"docs/r{which:02}/{number:04}.md"] = rules[which]
    for which, rule in enumerate(rules):
        if rule is not None:
            _write(folder / f"r{which:02}" / ACCESS_FILE, "\n".join(rule))
    return allow


def _permitted(folder: Path, source: Path, allow: Mapping[str, frozenset[str] | None], groups: set[str]) -> set[str]:
    uris = {uri for uri, rule in allow.items() if rule is None or rule & groups}
    (folder / "docs").mkdir(parents=True)
    for uri in uris:
        path = uri.removeprefix("docs/")
        _write(folder / "docs" / path, (source / path).read_text())
    return uris


def _compare(tmp_path: Path, documents: int, groups: int, handles: int, searches: int) -> None:
    rng, embedder = random.Random(documents), HashingEmbedder()
    allow = _corpus(tmp_path / "docs", documents, groups, rng)
    collection = _open(tmp_path / "all", embedder)
    assert collection.sync(tmp_path / "docs").added == documents
    found = 0
    for number in range(handles):
        held = {f"g{n}" for n in rng.sample(range(groups), rng.randint(0, 5) if number else 0)}
        uris = _permitted(tmp_path / str(number), tmp_path / "docs", allow, held)
        assert 0 < len(uris) < documents
        alone = _open(tmp_path / str(number) / ".ragfm", embedder)
        alone.sync(tmp_path / str(number) / "docs")
        handle = collection.as_groups(held)
        assert [info.uri for info in handle.documents()] == sorted(uris)
        assert (handle.status().documents, handle.status().chunks) == (alone.status().documents, alone.status().chunks)
        for _ in range(searches // handles):
            query = " ".join(rng.choices([*WORDS, f"number{rng.randrange(documents)}"], k=rng.randint(1, 6)))
            k, where = documents if rng.random() < 0.03 else rng.choice((1, 5, 20)), rng.choice(FILTERS)
            mode = rng.choice(("dense", "dense", "keyword", "hybrid"))
            hits = handle.search(query, k=k, mode=mode, filter=where)
            expected = alone.search(query, k=k, mode=mode, filter=where)
            assert len(hits) == len(expected)
            assert {hit.uri for hit in hits} <= uris
            if mode == "dense":
                assert [(hit.uri, hit.text, hit.score) for hit in hits] == [
                    (hit.uri, hit.text, hit.score) for hit in expected
                ]
            elif k == documents:  # the ranks may differ by the words' statistics, what matches may not
                assert {hit.uri for hit in hits} == {hit.uri for hit in expected}
            found += len(hits)
    assert found > searches


@pytest.mark.slow
def test_a_restricted_handle_equals_a_collection_of_the_permitted_documents(tmp_path: Path) -> None:
    _compare(tmp_path, documents=200, groups=8, handles=10, searches=500)


@pytest.mark.slow
def test_the_same_for_a_thousand_documents_and_four_thousand_searches(tmp_path: Path) -> None:
    _compare(tmp_path, documents=1000, groups=20, handles=10, searches=4_000)


def test_filters_and_uris_reveal_nothing_about_closed_documents(tmp_path: Path, collection: Collection) -> None:
    docs = tmp_path / "docs"
    _write(docs / "open.md", "---\nkind: plain\n---\nThe text that all see.")
    _write(docs / "closed" / "secret.md", "---\nkind: merger\n---\nThe text of the merger.")
    _write(docs / "closed" / ACCESS_FILE, "board")
    collection.sync(docs)
    handle = collection.as_groups(set())
    for probe in (
        "kind = merger",
        "kind != plain",
        "not kind = plain",
        "uri = docs/closed/secret.md",
        'uri > "docs/c"',
        "source = docs",
        "kind = plain or kind = merger",
        "not (kind = plain and kind = x)",
    ):
        assert {info.uri for info in handle.documents(probe)} <= {"docs/open.md"}
        for mode in ("dense", "keyword", "hybrid"):
            assert {hit.uri for hit in handle.search("text merger", mode=mode, filter=probe)} <= {"docs/open.md"}
    messages = []
    for uri in ("docs/closed/secret.md", "docs/closed/nothing.md"):
        with pytest.raises(CollectionError) as raised:
            handle.document(uri)
        messages.append(str(raised.value).replace(uri, "…"))
    assert messages[0] == messages[1]  # closed or not there: the same answer
    assert handle.document("docs/open.md").text
    assert (handle.status().failed, handle.status().sources) == ((), ())
    assert _seen(collection, "board") == {"open.md", "closed/secret.md"}


# --- Changes take effect at once -----------------------------------------------------------------------------------


def test_a_change_of_access_reaches_handles_that_are_open(
    tmp_path: Path, collection: Collection, embedder: HashingEmbedder
) -> None:
    docs = tmp_path / "docs"
    _write(docs / "a" / "x.txt", "The text of x.")
    _write(docs / "b" / "y.txt", "The text of y.")
    collection.sync(docs)
    other = _open(collection.path, embedder)  # as another process has it
    handle = other.as_groups({"hr"})
    everything, only = {"docs/a/x.txt", "docs/b/y.txt"}, {"docs/b/y.txt"}
    for text, expected in ((None, everything), ("board", only), ("hr", everything), ("", only), (None, everything)):
        if text is None:
            (docs / "a" / ACCESS_FILE).unlink(missing_ok=True)
        else:
            _write(docs / "a" / ACCESS_FILE, text)
        assert collection.sync(docs).unchanged == 2
        for _ in range(2):
            for mode in ("dense", "keyword", "hybrid"):
                for where in (None, 'uri > "docs"'):
                    hits = handle.search("the text", k=9, mode=mode, filter=where)
                    assert {hit.uri for hit in hits} == expected, (text, mode)
        assert {info.uri for info in handle.documents()} == expected
        assert handle.status().documents == len(expected)


def test_a_handle_that_cannot_follow_to_another_embedder_still_closes(
    tmp_path: Path, collection: Collection, embedder: HashingEmbedder
) -> None:
    docs = tmp_path / "docs"
    _write(docs / "a.txt", "The text of a.")
    collection.sync(docs)
    handle = collection.as_groups({"hr"})
    assert len(handle.search("text")) == 1
    other = HashingEmbedder("other", dim=32)
    _open(collection.path, embedder).reembed(other)
    assert len(handle.search("text")) == 1  # the older generation serves, the new embedder being another one
    _open(collection.path, other).sync(docs, allow=["board"])
    collection._store.settle()
    assert handle.search("text") == handle.search("text", filter="source = docs") == []


class _Watching(FilesConnector):
    """Searches the collection at each fetch."""

    def __init__(self, root: Path, collection: Collection, *groups: str) -> None:
        super().__init__(root)
        self.collection, self.groups = collection, groups
        self.seen: list[set[str]] = []
        self.breaks = False

    def fetch(self, ref: Ref) -> Blob:
        self.seen.append(_seen(self.collection, *self.groups))
        if self.breaks:
            raise ConnectorError("It breaks.")
        return super().fetch(ref)


def _run(collection: Collection, connector: FilesConnector, embedder: HashingEmbedder) -> SyncReport:
    with collection._store.writing() as catalog:
        source = catalog.save_source(Source("docs", "files", "docs", "docs"))
        return Sync(catalog, source, lambda: embedder, ChunkSettings()).run(connector, list_refs(connector))


def test_documents_are_closed_before_anything_is_fetched(
    tmp_path: Path, collection: Collection, embedder: HashingEmbedder
) -> None:
    docs = tmp_path / "docs"
    for name in ("a", "b", "c"):
        _write(docs / "in" / name, f"The text of {name}.")
    watching = _Watching(docs, collection)
    _run(collection, FilesConnector(docs), embedder)
    assert len(_seen(collection)) == 3
    _write(docs / "in" / ACCESS_FILE, "hr")
    _write(docs / "in" / "a", "Changed text.")  # and what is there of it is closed as well
    watching.breaks = True
    report = _run(collection, watching, embedder)
    assert watching.seen == [set()]
    assert [failure.stale for failure in report.failed] == [True]
    assert _seen(collection) == set()
    assert _seen(collection, "hr") == {"in/a", "in/b", "in/c"}


def test_an_older_version_is_not_opened(tmp_path: Path, collection: Collection, embedder: HashingEmbedder) -> None:
    docs = tmp_path / "docs"
    for name in ("a", "b", "c"):
        _write(docs / "in" / name, f"The secret text of {name}.")
    _write(docs / "in" / ACCESS_FILE, "hr")
    _run(collection, FilesConnector(docs), embedder)
    (docs / "in" / ACCESS_FILE).unlink()
    _write(docs / "in" / "a", "The text of a, for all.")
    os.utime(docs / "in" / "b", (1, 1))  # as it was
    watching = _Watching(docs, collection)
    watching.breaks = True
    _run(collection, watching, embedder)
    assert watching.seen == [{"in/c"}] * 2
    assert _seen(collection) == {"in/c"}
    watching.breaks = False
    _run(collection, watching, embedder)
    assert _seen(collection) == {"in/a", "in/b", "in/c"}
    assert "secret" not in collection.as_groups(set()).document("docs/in/a").text


def test_a_document_that_leaves_the_source_is_not_opened(
    tmp_path: Path, collection: Collection, embedder: HashingEmbedder
) -> None:
    docs = tmp_path / "docs"
    for name in ("a", "b", "c"):
        _write(docs / "in" / name, f"The text of {name}.")
    _write(docs / "in" / ACCESS_FILE, "hr")
    collection.sync(docs)
    for name in ("a", "b"):
        (docs / "in" / name).unlink()
        (docs / "in" / name).symlink_to("nothing")  # skipped, of which the source says nothing
    with pytest.raises(MassDeleteError):
        collection.sync(docs)
    assert len(collection.documents()) == 3
    assert _seen(collection) == set()


def test_another_allow_and_another_file_open_nothing_between_them(
    tmp_path: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = tmp_path / "docs"
    _write(docs / "a", "The text of a.")
    collection.sync(docs, allow=["hr"])
    states: list[set[str]] = []
    new_generation = CatalogWriter.new_generation

    @contextmanager
    def watched(self: CatalogWriter) -> Iterator[Commit]:
        with new_generation(self) as commit:
            yield commit
        states.append(_seen(collection))

    monkeypatch.setattr(CatalogWriter, "new_generation", watched)
    _write(docs / ACCESS_FILE, "board")
    collection.sync(docs, allow=[])  # the file is to say it from now on
    assert _seen(collection, "board") == {"a"}
    (docs / ACCESS_FILE).unlink()
    collection.sync(docs, allow=["hr"])  # and back
    assert _seen(collection, "hr") == {"a"}
    assert len(states) >= 4
    assert not any(states)


def test_an_unlisted_folder_keeps_its_groups_and_those_above_it(
    tmp_path: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = tmp_path / "docs"
    _write(docs / "in" / "a", "The text of a.")
    _write(docs / "in" / ACCESS_FILE, "hr\nboard")
    _write(docs / "b", "The text of b.")
    collection.sync(docs)
    real = os.scandir

    def failing(path: str) -> object:
        if os.fspath(path).endswith("/in"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", failing)
    (docs / "in" / ACCESS_FILE).unlink()
    collection.sync(docs)
    assert (_seen(collection), _seen(collection, "hr")) == ({"b"}, {"b", "in/a"})
    _write(docs / ACCESS_FILE, "board\nchair")
    collection.sync(docs)
    assert (_seen(collection), _seen(collection, "hr")) == (set(), set())
    assert (_seen(collection, "board"), _seen(collection, "chair")) == ({"b", "in/a"}, {"b"})


def test_searches_while_access_changes_see_before_or_after(tmp_path: Path, collection: Collection) -> None:
    docs = tmp_path / "docs"
    for number in range(20):
        _write(docs / f"{number}.txt", f"The text of {number}.")
    collection.sync(docs)
    handle, wrong, stop = collection.as_groups({"hr"}), list[object](), threading.Event()

    def read() -> None:
        while not stop.is_set():
            found = len(handle.search("the text", k=50))
            wrong.extend([found] if found not in (0, 20) else [])

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(10):
        collection.sync(docs, allow=["board"] if number % 2 else ["hr"])
        assert len(handle.search("the text", k=50)) == (0 if number % 2 else 20)  # at once, for who asks afterwards
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []


# --- Access files -------------------------------------------------------------------------------------------------


def _allowed(location: Path | str, **options: object) -> dict[str, tuple[str, ...] | None]:
    refs = FilesConnector(location, **options).refs()  # type: ignore[arg-type]
    return {ref.path: ref.allow for ref in refs if ref.skip is None and ref.error is None}


def test_each_access_file_on_the_path_restricts_further(tmp_path: Path) -> None:
    for path in ("a", "in/b", "in/deep/c", "in/deep/er/d", "other/e"):
        _write(tmp_path / path, path)
    _write(tmp_path / "in" / ACCESS_FILE, "# people\n\n  hr  \r\nboard # all of it\nteam#1\nteam two\n")
    _write(tmp_path / "in/deep" / ACCESS_FILE, "board\nguests\n")
    _write(tmp_path / "in/deep/er" / ACCESS_FILE, "guests\n")
    expected = {
        "a": None,
        "in/b": ("board", "hr", "team two", "team#1"),
        "in/deep/c": ("board",),
        "in/deep/er/d": (),
        "other/e": None,
    }
    assert _allowed(tmp_path) == expected
    assert _allowed(tmp_path / "in/**/*") == {path[3:]: expected[path] for path in expected if path.startswith("in/")}
    assert _allowed(tmp_path / "in", include=["c"]) == {"deep/c": ("board",)}
    assert _allowed(tmp_path / "in/deep") == {"c": ("board", "guests"), "er/d": ("guests",)}  # from the root down
    assert _allowed(tmp_path / "in/deep/c") == {"": ("board", "guests")}
    for location in (tmp_path, tmp_path / "in/deep/c", tmp_path / "in/**/*"):
        check_connector(FilesConnector(location))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "names no group"),
        (b"# nobody\n\n", "names no group"),
        (b"hr\n\xff\xfe", "not UTF-8"),
        ("hr\n".encode("utf-16"), "not UTF-8"),
        (b"hr\nbo\0ard\n", "not a valid group name"),
        (b"hr\n" * 400_000, "more than"),
        ("symlink", "symbolic link"),
        ("dangling", "symbolic link"),
        ("folder", "not a regular file"),
        ("pipe", "not a regular file"),
        ("unreadable", "Permission denied"),
    ],
)
def test_a_file_that_is_not_sound_closes_its_folder(
    tmp_path: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch, content: bytes | str, said: str
) -> None:
    docs = tmp_path / "docs"
    for path in ("in/a", "in/deep/b", "c"):
        _write(docs / path, f"The text of {path}.")
    assert collection.sync(docs).added == 3
    file = docs / "in" / ACCESS_FILE
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "folder":
        file.mkdir()
    elif content == "pipe":
        os.mkfifo(file)
    elif content == "unreadable":
        _write(file, "hr")
        real = os.open

        def failing(path: object, *arguments: object, **more: object) -> int:
            if str(path).endswith(ACCESS_FILE):  # it may be opened from its folder
                raise PermissionError(13, "Permission denied")
            return real(path, *arguments, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", failing)
    else:
        file.symlink_to(_write(tmp_path / "groups", "hr") if content == "symlink" else "nothing")
    report = collection.sync(docs)
    assert _seen(collection, "hr", "board", "") == {"c"}
    assert len(collection.documents()) == 3  # the owner sees them
    told = [f"{failure.uri}: {failure.error}" for failure in report.failed]
    told += [f"{skip.uri}: {skip.why}" for skip in report.skipped]
    assert len(told) == 1
    assert told[0].startswith(f"docs/in/{ACCESS_FILE}: ")
    assert said in told[0]
    assert bool(report.failed) == (said != "names no group")
    monkeypatch.undo()
    if content == "folder":
        file.rmdir()
    else:
        file.unlink()
    assert collection.sync(docs).failed == ()
    assert len(_seen(collection)) == 3


def test_a_byte_order_mark_is_not_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / ACCESS_FILE).write_bytes(b"\xef\xbb\xbfhr\r\n")
    assert read_access_file(str(tmp_path)).groups == ("hr",)


def test_the_file_itself_is_never_indexed(tmp_path: Path, collection: Collection) -> None:
    docs = tmp_path / "docs"
    _write(docs / ACCESS_FILE, "hr\nboard")
    _write(docs / "a.txt", "The text of a.")
    (docs / "b.txt").symlink_to(ACCESS_FILE)
    report = collection.sync(docs)
    assert [(skip.uri, "access file" in skip.why) for skip in report.skipped] == [("docs/b.txt", True)]
    assert [info.uri for info in collection.documents()] == ["docs/a.txt"]
    for location in (docs / ACCESS_FILE, docs / "b.txt"):
        (ref,) = FilesConnector(location).refs()
        assert ref.skip is not None


def test_a_single_file_obeys_the_access_file_of_its_folder(
    tmp_path: Path, collection: Collection, caplog: pytest.LogCaptureFixture
) -> None:
    _write(tmp_path / "in" / "docs", "The text of it.")
    _write(tmp_path / "in" / ACCESS_FILE, "hr")
    collection.sync(tmp_path / "in" / "docs", name="docs")
    assert (_seen(collection), _seen(collection, "hr")) == (set(), {"docs"})
    (tmp_path / "in" / ACCESS_FILE).write_bytes(b"\xff")
    collection.sync(tmp_path / "in" / "docs", name="docs")
    assert _seen(collection, "hr") == set()
    assert "not UTF-8" in caplog.text
    (tmp_path / "link").symlink_to("in/docs")
    assert _allowed(tmp_path / "link") == {"": ()}


def test_a_symbolic_link_grants_no_access(tmp_path: Path) -> None:
    _write(tmp_path / "secret" / "a.md", "a")
    _write(tmp_path / "secret" / "deep" / "b.md", "b")
    _write(tmp_path / "secret" / ACCESS_FILE, "hr\nboard")
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "a.md").symlink_to("../secret/a.md")
    (tmp_path / "open" / "deep").symlink_to("../secret/deep")
    assert _allowed(tmp_path, exclude=["/secret"]) == {"open/a.md": ("board", "hr"), "open/deep/b.md": ("board", "hr")}
    _write(tmp_path / "open" / ACCESS_FILE, "board\nguests")
    connector = FilesConnector(tmp_path, exclude=["/secret"])
    refs = {ref.path: ref for ref in connector.refs() if ref.skip is None}
    assert {path: ref.allow for path, ref in refs.items()} == {"open/a.md": ("board",), "open/deep/b.md": ("board",)}
    for ref in refs.values():
        assert connector.fetch(ref).data
        with pytest.raises(ConnectorError, match="has been closed"):
            connector.fetch(Ref(ref.path))
    check_connector(connector)
    _write(tmp_path / "secret" / ACCESS_FILE, "hr")
    for ref in refs.values():
        with pytest.raises(ConnectorError, match="has been closed"):
            connector.fetch(ref)


def test_a_file_closed_after_the_listing_is_not_read(tmp_path: Path) -> None:
    _write(tmp_path / "in" / "deep" / "a.md", "a")
    connector = FilesConnector(tmp_path)
    (ref,) = connector.refs()
    _write(tmp_path / "in" / ACCESS_FILE, "hr")  # and then perhaps something secret into a.md
    with pytest.raises(ConnectorError, match=r"a\.md.*has been closed.* next ingest"):
        connector.fetch(ref)
    (ref,) = connector.refs()
    (tmp_path / "in" / ACCESS_FILE).unlink()
    assert connector.fetch(ref).data == b"a"  # opened: no harm in keeping it closed until the next ingest
    alone = FilesConnector(tmp_path / "in" / "deep" / "a.md")
    (ref,) = alone.refs()
    _write(tmp_path / "in" / "deep" / ACCESS_FILE, "hr")
    with pytest.raises(ConnectorError, match="has been closed"):
        alone.fetch(ref)


def test_a_file_added_to_a_folder_that_was_just_closed_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def slow(path: str) -> object:
        if not (tmp_path / ACCESS_FILE).exists():  # the folder is closed, then filled, then listed
            _write(tmp_path / ACCESS_FILE, "hr")
            _write(tmp_path / "secret.md", "secret")
        return real(path)

    monkeypatch.setattr(os, "scandir", slow)
    assert _allowed(tmp_path) == {"secret.md": ("hr",)}


def test_groups_of_the_source_and_of_access_files_both_apply(tmp_path: Path, collection: Collection) -> None:
    docs = tmp_path / "docs"
    _write(docs / "in" / "a", "The text of a.")
    _write(docs / "b", "The text of b.")
    _write(docs / "in" / ACCESS_FILE, "hr\nguests")
    collection.sync(docs, allow=["hr", "board"])
    seen = [_seen(collection, group) for group in ("hr", "board", "guests")]
    assert seen == [{"in/a", "b"}, {"b"}, set()]


def test_rules_only_ever_narrow() -> None:
    assert intersect_groups(None, None) is None
    assert intersect_groups(None, ("b", "a")) == intersect_groups(["a", "b"], None) == ("a", "b")
    assert intersect_groups(("a",), ()) == intersect_groups((), None) == ()
    assert intersect_groups(("a", "b"), ("b", "c")) == ("b",)
    known = {"a": ("hr",), "a/b": None, "c": ("hr", "board")}
    for silent in (Ref("a", skip="empty"), Ref("a", error="unknown"), Ref("x", allow=())):
        assert groups_after_listing(known, [silent], dict.fromkeys(known, "")) == known  # of no revision, as before
    assert groups_after_listing(known, [Ref("a", error="unknown", allow=("it",))], {}) == known | {
        "a": (),
        "a/b": ("it",),
    }
    assert groups_after_listing(known, [Ref("a")], {"a": ""}) == known | {"a": None}
