"""The facade: opening, searching, seeing, sources."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragfm import Collection, Settings
from ragfm.core.errors import (
    CollectionBusyError,
    CollectionError,
    CollectionNotFound,
    ConfigError,
    DamagedCollectionError,
    LostCommitError,
    RagfmError,
    SourceError,
    UnsupportedError,
)
from ragfm.store.catalog import Catalog
from ragfm.store.collection_store import Store
from ragfm.store.sqlite_file import CATALOG_FILE
from ragfm.testing import HashingEmbedder


def test_open_touches_no_disk_and_all_but_sync_need_a_collection(collection: Collection) -> None:
    assert list(collection.path.parent.iterdir()) == []
    for use in (
        lambda: collection.search("x"),
        collection.documents,
        collection.status,
        lambda: collection.document("x"),
    ):
        with pytest.raises(CollectionNotFound, match="ragfm ingest"):
            use()
    assert list(collection.path.parent.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"index": "faiss-hsnw"}, {"backend": "pgvektor"}, {"language": "xx"}])
def test_wrong_settings_of_indexes_are_refused_before_anything_is_embedded(
    docs: Path, collection: Collection, embedder: HashingEmbedder, wrong: dict[str, str]
) -> None:
    with pytest.raises(RagfmError, match="|".join(wrong.values())):
        Collection.open(collection.path, settings=Settings(**wrong), embedder=embedder).sync(docs)  # type: ignore[arg-type]
    assert not collection.path.exists()


def test_without_a_view_a_wrong_language_is_an_error(docs: Path, collection: Collection) -> None:
    collection.sync(docs)
    shutil.rmtree(collection.path / "views")
    late = Collection.open(collection.path, settings=Settings(language="xx"), embedder=HashingEmbedder())
    with pytest.raises(ConfigError, match="`language` is not valid: expected a language among ar, ca"):
        late.search("leave")


def test_the_folder_around_a_collection_is_not_one(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    with pytest.raises(CollectionNotFound, match=f"There is one at '{collection.path}'"):
        Collection.open(collection.path.parent).status()


@pytest.mark.both_databases
def test_a_commit_is_there_or_awaited_or_lost(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    commit = collection.commit
    (docs / "more.txt").write_text("More.")
    collection.sync(docs)
    number, _, digest = collection.commit.partition("-")
    assert collection.wait_for(commit, 0)
    assert collection.as_groups(set()).wait_for(collection.commit)
    later = f"{int(number) + 1}-{digest}"
    assert not collection.wait_for(later, 0)
    with pytest.raises(LostCommitError, match="commits were lost"):
        collection.wait_for(f"{number}-0f")
    collection.compact()
    assert collection.wait_for(commit, 0)  # compaction has deleted it
    for wrong in ("", "7", "1-x", "x-0f", "-1-0f", "²-0f", "1-0f\n", f"{'9' * 30}-0f"):
        with pytest.raises(ValueError, match="is not a commit"):
            collection.wait_for(wrong)


def test_hits_come_in_order_with_cosines(collection: Collection, docs: Path, embedder: HashingEmbedder) -> None:
    collection.sync(docs)
    query = "you get 28 days of leave"
    hits = collection.search(query, k=9, mode="dense")
    assert hits[0].uri == "docs/leave.md"
    texts = [f"{hit.context}\n{hit.text}" if hit.context else hit.text for hit in hits]
    cosines = embedder.embed_queries(texts) @ embedder.embed_queries([query])[0]
    assert [hit.score for hit in hits] == pytest.approx(cosines.tolist(), abs=1e-6)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all(hit.scores == {"dense": hit.score, "keyword": None, "fused": None} for hit in hits)


def test_a_hit_is_a_slice_of_its_document(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    for hit in collection.search("leave", k=9):
        assert collection.document(hit.uri).text[hit.start : hit.end] == hit.text


def test_k_hits_where_k_meet_the_filter(tmp_path: Path, collection: Collection) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(200):
        (folder / f"{number:03}.txt").write_text(f"A common text, number {number}.")
    (tmp_path / "rare").mkdir()
    for number in range(3):
        (tmp_path / "rare" / f"{number}.txt").write_text("Entirely different words.")
    collection.sync(folder)
    collection.sync(tmp_path / "rare")
    hits = collection.search("a common text", k=3, filter="source = rare")
    assert sorted(hit.uri for hit in hits) == ["rare/0.txt", "rare/1.txt", "rare/2.txt"]


def test_modes(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    assert collection.search("leave") == collection.search("leave", mode="hybrid")
    with pytest.raises(UnsupportedError, match="no search mode 'fuzzy'"):
        collection.search("leave", mode="fuzzy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        collection.search("leave", k=0)


def test_groups_see_what_is_open_and_what_is_theirs(tmp_path: Path, collection: Collection) -> None:
    for name, allow in (("open", []), ("staff", ["staff"]), ("board", ["board", "chair"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(f"The plan of the {name}.")
        collection.sync(tmp_path / name, allow=allow)
    for groups, expected in (
        (set(), {"open"}),
        ({"staff"}, {"open", "staff"}),
        ({"chair"}, {"open", "board"}),
        ({"staff", "board", "x"}, {"open", "staff", "board"}),
        ({"'; --"}, {"open"}),
    ):
        seen = collection.as_groups(groups)
        assert {info.source for info in seen.documents()} == expected
        assert {hit.uri.split("/")[0] for hit in seen.search("the plan", k=9)} == expected
        assert {hit.uri.split("/")[0] for hit in seen.search("the plan", k=9, filter="uri != x")} == expected
        assert seen.status().documents == seen.status().chunks == len(expected)
        with pytest.raises(UnsupportedError):
            seen.sync(tmp_path / "open")
    with pytest.raises(CollectionError, match="no document"):
        collection.as_groups({"staff"}).document("board/a.txt")
    assert len(collection.documents()) == 3


def test_addresses_begin_with_the_source(tmp_path: Path, collection: Collection, docs: Path) -> None:
    collection.sync(docs, name="handbook")
    assert {info.uri for info in collection.documents()} == {
        "handbook/hours.txt",
        "handbook/leave.md",
        "handbook/pets.markdown",
        "handbook/rooms.csv",
    }
    assert collection.sync(docs).unchanged == 4  # the same folder is the same source
    single = tmp_path / "single.txt"
    single.write_text("One file.")
    collection.sync(single)
    assert collection.document("single.txt").text == "One file."


def test_a_folder_elsewhere_is_named_by_its_path(tmp_path: Path, docs: Path, embedder: HashingEmbedder) -> None:
    collection = Collection.open(tmp_path / "deep" / "er" / "c", settings=Settings(), embedder=embedder)
    collection.sync(docs)
    assert f"{docs}/leave.md" in {info.uri for info in collection.documents()}


def test_the_folder_that_the_collection_lies_in(tmp_path: Path, docs: Path, collection: Collection) -> None:
    collection.sync(tmp_path)
    assert "docs/leave.md" in {info.uri for info in collection.documents()}
    assert collection.sync(tmp_path).unchanged == 4


def test_a_glob_is_a_source_of_its_folder(docs: Path, collection: Collection) -> None:
    collection.sync(f"{docs}/*.txt")
    assert [info.uri for info in collection.documents()] == ["docs/hours.txt"]
    assert collection.sync().unchanged == 1


def test_sources_do_not_touch_each_other_and_overlaps_are_refused(
    tmp_path: Path, docs: Path, collection: Collection
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("Another source.")
    collection.sync(docs)
    collection.sync(other)
    assert len(collection.documents()) == 5
    for overlapping in (docs / "leave.md", tmp_path):
        with pytest.raises(SourceError, match="overlaps the source 'docs'"):
            collection.sync(overlapping)
    with pytest.raises(SourceError, match="overlaps"):
        collection.sync(docs, name="again")
    assert len(collection.documents()) == 5


def test_what_a_source_leaves_out_may_be_another_source(docs: Path, collection: Collection) -> None:
    (docs / "hr").mkdir()
    (docs / "hr/pay.txt").write_text("The salary is paid on the last day.")
    assert collection.sync(docs).added == 5
    assert collection.sync(docs, exclude=["leave.md", "hr/"]).removed == 2
    assert collection.sync(docs / "leave.md", tags={"kind": "rule"}).added == 1
    assert collection.sync(docs / "hr").added == 1
    with pytest.raises(SourceError, match="overlaps the source 'docs'"):
        collection.sync(docs / "hours.txt")
    with pytest.raises(SourceError, match=r"overlaps the source 'docs/leave\.md'"):
        collection.sync(docs, exclude=["hr/"])
    assert collection.sync().unchanged == 5
    assert [info.uri for info in collection.documents("kind = rule")] == ["docs/leave.md"]


def test_include_and_exclude_are_kept_with_the_source(docs: Path, collection: Collection) -> None:
    collection.sync(docs, include=["*.md", "*.txt"], exclude=["hours*"])
    assert [info.uri for info in collection.documents()] == ["docs/leave.md"]
    assert collection.sync(docs).unchanged == 1
    report = collection.sync(docs, exclude=[])
    assert (report.added, report.unchanged) == (1, 1)


def test_sources_of_the_settings_are_synced_without_naming_them(
    tmp_path: Path, docs: Path, embedder: HashingEmbedder
) -> None:
    (tmp_path / "ragfm.toml").write_text('[[sources]]\nlocation = "docs"\nname = "d"\ntags = { year = 2026 }\n')
    collection = Collection.open(tmp_path / ".ragfm", embedder=embedder)
    assert collection.sync().added == 4
    assert len(collection.documents("year = 2026")) == 4
    assert collection.sync().unchanged == 4
    (tmp_path / "b.txt").write_text("By hand.")
    collection.sync(tmp_path / "b.txt")
    assert collection.sync().unchanged == 5


def test_no_collection_is_created_for_a_missing_source(tmp_path: Path, collection: Collection) -> None:
    for missing in ([tmp_path / "missing"], []):
        with pytest.raises(SourceError):
            collection.sync(*missing)
    assert not collection.path.exists()


def test_an_empty_folder_is_not_an_error(
    tmp_path: Path, collection: Collection, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    report = collection.sync(tmp_path / "empty")
    assert (report.added, report.failed) == (0, ())
    assert "contains no document" in caplog.text
    assert collection.search("anything") == []


def test_a_folder_of_something_else_is_not_taken_over(tmp_path: Path, docs: Path) -> None:
    collection = Collection.open(docs, settings=Settings(), embedder=HashingEmbedder())
    with pytest.raises(CollectionError, match="is not empty"):
        collection.sync(tmp_path)
    assert len(list(docs.iterdir())) == 4


def test_half_a_collection_is_damage(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    collection.close()
    (collection.path / "HEAD").unlink()
    with pytest.raises(DamagedCollectionError, match=r"HEAD is missing.*verify --repair"):
        collection.status()
    assert not collection.verify(repair=True).damaged
    assert collection.status().documents == 4


def test_a_disk_that_fails_is_one_error(collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection.sync(docs)
    (collection.path / CATALOG_FILE).rename(collection.path / "aside")
    (collection.path / CATALOG_FILE).mkdir()  # neither SQLite nor Python can read it
    with pytest.raises(CollectionError, match="cannot be opened"):
        Collection.open(collection.location, settings=Settings(), embedder=HashingEmbedder()).status()


@pytest.mark.parametrize("key", ["uri", "source", "media_type"])
def test_a_tag_that_no_filter_would_find_is_refused(docs: Path, collection: Collection, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        collection.sync(docs, tags={key: "x"})
    assert not collection.path.exists()


def test_a_second_writer_is_told_who_writes(
    collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.sync(docs)
    monkeypatch.setattr("ragfm.store.sqlite_database.LOCK_SECONDS", 0.1)
    other = Collection.open(collection.location, settings=Settings(), embedder=HashingEmbedder())
    with collection._store.writing():
        assert len(other.search("leave", k=9)) >= 4  # readers go on
        with pytest.raises(CollectionBusyError, match=f"Process {os.getpid()}"):
            other.sync(docs)
    assert other.sync(docs).unchanged == 4


def test_a_dead_writer_holds_nothing_up(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    script = f"""
import os
from ragfm import Collection, Settings
from ragfm.testing import HashingEmbedder
collection = Collection.open({str(collection.path)!r}, settings=Settings(), embedder=HashingEmbedder())
with collection._store.writing() as catalog:
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert collection.sync(docs).unchanged == 4


@pytest.mark.slow
def test_threads_search_while_one_syncs(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    wrong: list[object] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                hits = collection.search("office opens", k=3)
                wrong.extend(hit for hit in hits if collection._store.catalog.chunk_rows([hit.chunk_id]) == {})
            except RagfmError as error:
                wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(15):
        (docs / "hours.txt").write_text(f"The office opens at {number}.\n")
        collection.sync(docs)
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert "opens at 14" in collection.search("office opens", k=1)[0].text


def test_scores_do_not_depend_on_the_order_of_ingest(tmp_path: Path, docs: Path, embedder: HashingEmbedder) -> None:
    one = Collection.open(tmp_path / "one", settings=Settings(), embedder=embedder)
    two = Collection.open(tmp_path / "two", settings=Settings(), embedder=embedder)
    one.sync(docs)
    for file in sorted(docs.iterdir(), reverse=True):
        two.sync(file)
    scores = [[hit.score for hit in found.search("leave", k=9)] for found in (one, two)]
    assert np.allclose(scores[0], scores[1], atol=1e-6)


def test_access_is_tightened_before_anything_is_looked_at(
    collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.sync(docs)
    nobody = collection.as_groups(set())
    assert len(nobody.documents()) == 4
    (docs / "hours.txt").write_bytes(b"%PDF-1.7 which is broken")  # its older version serves, and is closed too
    assert collection.sync(docs, allow=["hr"]).unchanged == 3
    assert nobody.documents() == []
    assert nobody.search("office opens", k=9) == []
    assert len(collection.as_groups({"hr"}).documents()) == 4

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ragfm.ingestion.sync.Sync.run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collection.sync(docs, allow=["board"])
    assert collection.as_groups({"hr"}).documents() == []
    with pytest.raises(KeyboardInterrupt):
        collection.sync(docs, allow=[])
    assert len(nobody.documents()) == 4


def test_a_waiting_sync_does_not_undo_what_it_waited_for(
    collection: Collection, docs: Path, embedder: HashingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.sync(docs)
    writing, other = Store.writing, Collection.open(collection.location, settings=Settings(), embedder=embedder)

    def late(store: Store) -> object:
        monkeypatch.setattr(Store, "writing", writing)
        other.sync(docs, allow=["hr"])  # while the first one waits for the lock
        return writing(store)

    monkeypatch.setattr(Store, "writing", late)
    collection.sync(docs)
    assert collection.as_groups(set()).documents() == []


def test_a_restricted_handle_stays_restricted(collection: Collection, docs: Path) -> None:
    collection.sync(docs, allow=["hr"])
    assert collection.as_groups(set()).as_groups({"hr"}).documents() == []
    assert len(collection.as_groups({"hr", "x"}).as_groups({"hr"}).documents()) == 4
    with pytest.raises(TypeError, match="groups"):
        collection.as_groups("hr")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="allow"):
        collection.sync(docs, allow="hr")
    with pytest.raises(TypeError, match="tag"):
        collection.sync(docs, tags={"a": [1]})  # type: ignore[dict-item]
    collection.as_groups({"hr"}).close()
    assert collection._store._catalog is not None


def test_one_folder_reached_in_two_ways_is_one_source(tmp_path: Path, docs: Path, embedder: HashingEmbedder) -> None:
    for way in (tmp_path / "docs" / ".." / "c", tmp_path / "c"):
        Collection.open(way, settings=Settings(), embedder=embedder).sync(docs)
    (tmp_path / "link").symlink_to(tmp_path)
    linked = Collection.open(tmp_path / "link" / "c", settings=Settings(), embedder=embedder)
    assert linked.sync(docs).unchanged == 4
    assert len(linked.documents()) == 4
    with pytest.raises(SourceError, match="overlaps"):
        linked.sync(tmp_path.parent)


def test_two_globs_of_one_folder_do_not_remove_each_other(docs: Path, collection: Collection) -> None:
    collection.sync(f"{docs}/*.txt")
    with pytest.raises(SourceError, match="would remove the rest"):
        collection.sync(f"{docs}/*.md")
    assert collection.sync(docs).added == 3


def test_overlapping_sources_of_the_settings_are_refused(tmp_path: Path, docs: Path, embedder: HashingEmbedder) -> None:
    (docs / "sub").mkdir()
    (docs / "sub" / "a.txt").write_text("Below.")
    (tmp_path / "ragfm.toml").write_text('[[sources]]\nlocation = "docs"\n[[sources]]\nlocation = "docs/sub"\n')
    report = Collection.open(tmp_path / ".ragfm", embedder=embedder).sync()
    assert report.added == 5
    assert [(failure.uri, failure.stage) for failure in report.failed] == [("docs/sub", "list")]


def test_a_source_of_the_settings_keeps_its_options_when_named(
    tmp_path: Path, docs: Path, embedder: HashingEmbedder
) -> None:
    (tmp_path / "ragfm.toml").write_text('[[sources]]\nlocation = "docs"\nexclude = ["pets*"]\nallow = ["hr"]\n')
    collection = Collection.open(tmp_path / ".ragfm", embedder=embedder)
    assert collection.sync(docs).added == 3
    assert collection.as_groups(set()).documents() == []


def test_one_source_that_is_gone_keeps_the_others_going(tmp_path: Path, docs: Path, collection: Collection) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("Another source.")
    collection.sync(other, docs)
    shutil.rmtree(other)
    (docs / "hours.txt").write_text("Always open.")
    report = collection.sync()
    assert (report.updated, report.removed) == (1, 0)
    assert [(failure.uri, failure.stage, failure.stale) for failure in report.failed] == [("other", "list", True)]
    assert len(collection.documents()) == 5


def test_a_source_that_cannot_be_listed_is_not_kept(docs: Path, collection: Collection) -> None:
    collection.sync(docs)
    with pytest.raises(SourceError):
        collection.sync(collection.path)
    assert [source["name"] for source in collection.status().sources] == ["docs"]


@pytest.mark.parametrize("name", ["50%25 #?", os.fsdecode(b"B\xfcro")])
def test_a_collection_is_in_a_folder_of_any_name(docs: Path, tmp_path: Path, name: str) -> None:
    collection = Collection.open(tmp_path / name / "c", settings=Settings(), embedder=HashingEmbedder())
    collection.sync(docs)
    collection.backup(tmp_path / name / "backup")
    restored = Collection.open(tmp_path / name / "r", settings=Settings(), embedder=HashingEmbedder())
    restored.restore(tmp_path / name / "backup")
    assert restored.search("leave") == collection.search("leave")
    assert not restored.verify().damaged


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_a_larger_disk_may_stand_for_the_folder(docs: Path, tmp_path: Path, exists: bool) -> None:
    for name in ("c", "r"):
        if exists:
            (tmp_path / f"large-{name}").mkdir()
        (tmp_path / name).symlink_to(tmp_path / f"large-{name}")
    collection = Collection.open(tmp_path / "c", settings=Settings(), embedder=HashingEmbedder())
    collection.sync(docs)
    collection.backup(tmp_path / "backup")
    restored = Collection.open(tmp_path / "r", settings=Settings(), embedder=HashingEmbedder())
    restored.restore(tmp_path / "backup")
    for name in ("c", "r"):
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / f"large-{name}" / CATALOG_FILE).exists()
    assert restored.search("leave") == collection.search("leave")


def test_a_file_is_not_a_collection(docs: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "file", tmp_path / "file" / "inside"):
        (tmp_path / "file").write_text("Text.")
        collection = Collection.open(place, settings=Settings(), embedder=HashingEmbedder())
        with pytest.raises(CollectionNotFound):
            collection.search("leave")
        with pytest.raises(CollectionError, match="cannot be created"):
            collection.sync(docs)


@pytest.mark.both_databases
def test_names_that_are_not_valid_text_are_refused(docs: Path, tmp_path: Path, collection: Collection) -> None:
    collection.sync(docs)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("Text.")
    name = os.fsdecode(b"B\xfcro")
    for use in (
        lambda: collection.document(name),
        lambda: collection.documents(below=name),
        lambda: collection.image(name),
        lambda: collection.remove(name),
        lambda: collection.as_groups({name}).search("leave"),
        lambda: collection.sync(docs, tags={name: "x"}),
        lambda: collection.sync(docs, tags={"room": name}),
        lambda: collection.sync(docs, allow=[name]),
        lambda: collection.sync(tmp_path / "other", name=name),
    ):
        with pytest.raises(UnsupportedError, match="is not valid text"):
            use()
    assert collection.sync().unchanged == 4  # no source has kept one of them


def test_documents_below_a_folder(docs: Path, collection: Collection) -> None:
    (docs / "sub").mkdir()
    (docs / "sub" / "a.txt").write_text("Text.")
    (docs / "sub.txt").write_text("Text.")
    collection.sync(docs)
    for below in ("docs/sub", "docs/sub/"):
        assert [info.uri for info in collection.documents(below=below)] == ["docs/sub/a.txt"]


def test_a_collection_created_again_is_noticed(docs: Path, collection: Collection, embedder: HashingEmbedder) -> None:
    collection.sync(docs)
    reader = Collection.open(collection.location, settings=Settings(), embedder=HashingEmbedder())
    assert reader.search("leave")
    shutil.rmtree(collection.path)
    (docs / "leave.md").write_text("All new words.")
    Collection.open(collection.location, settings=Settings(), embedder=embedder).sync(docs)
    assert reader.search("all new words", k=1)[0].text == "All new words."


def test_a_sync_does_not_take_settings_of_sources_from_a_collection_that_was_replaced(
    docs: Path, collection: Collection, embedder: HashingEmbedder
) -> None:
    collection.sync(docs, tags={"year": 2025})
    shutil.rmtree(collection.path)
    created_again = Collection.open(collection.location, settings=Settings(), embedder=embedder)
    created_again.sync(docs, allow=["hr"])
    collection.sync()  # as `ragfm watch` does, which was running all the time
    assert created_again.as_groups(set()).documents() == []
    assert created_again.status().sources[0]["tags"] == {}


FORK = """
import os, sys
from pathlib import Path
from ragfm import Collection, Settings
from ragfm.testing import HashingEmbedder

place, docs = sys.argv[1], Path(sys.argv[2])
with Collection.open(place, settings=Settings(), embedder=HashingEmbedder()) as collection:
    collection.search("leave")
    reading, writing = os.pipe()
    child = os.fork()
    for _ in range(20):  # both at the same time
        assert collection.search("leave", k=1)[0].uri.endswith("leave.md")
    if not child:
        os.read(reading, 1)
        found, damaged = collection.search("watchmen", k=1)[0].uri, collection.verify().damaged
        os._exit(0 if found.endswith("more.txt") and not damaged else 3)
(docs / "more.txt").write_text("Night watchmen sleep by day.")
with Collection.open(place, settings=Settings(), embedder=HashingEmbedder()) as collection:
    collection.sync(docs)
os.write(writing, b"go")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.both_databases
def test_a_forked_process_opens_connections_of_its_own(collection: Collection, docs: Path) -> None:
    collection.sync(docs)
    collection.close()  # on SQLite, the last connection removes the write-ahead log
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, collection.location, str(docs)]
    subprocess.run(command, check=True, timeout=300)  # Python 3.12 warns of forks


def test_a_search_is_never_of_two_collections(
    tmp_path: Path, collection: Collection, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Collection.open(tmp_path / "other", settings=Settings(), embedder=HashingEmbedder())
    (tmp_path / "secret").mkdir()
    for number in range(9):
        (tmp_path / "secret" / f"{number}.txt").write_text(f"The secret of leave is {number}.")
    other.sync(tmp_path / "secret", allow=["board"])
    other.close()
    collection.sync(docs)
    nobody, rows = collection.as_groups(set()), Catalog.chunk_rows

    def exchanged(catalog: Catalog, ids: Sequence[int]) -> dict[int, tuple[Any, str, str]]:
        monkeypatch.undo()
        collection.path.rename(tmp_path / "before")
        other.path.rename(collection.path)
        assert nobody.search("leave") == []  # another thread of the same server
        return rows(catalog, ids)

    monkeypatch.setattr(Catalog, "chunk_rows", exchanged)
    assert nobody.search("leave", mode="dense") == []


def test_threads_may_make_one_collection_at_once(tmp_path: Path, docs: Path, embedder: HashingEmbedder) -> None:
    for number in range(5):
        handles = [Collection.open(tmp_path / f"{number}", settings=Settings(), embedder=embedder) for _ in range(4)]
        with ThreadPoolExecutor(4) as threads:
            reports = list(threads.map(lambda handle: handle.sync(docs), handles))
        assert sum(report.added for report in reports) == 4
        assert len(handles[0].search("leave", k=9)) >= 4
    assert not list(tmp_path.glob("*.new"))


def test_a_full_disk_leaves_no_half_made_collection(
    docs: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ragfm.store.sqlite_database.write_durably", full)
    with pytest.raises(CollectionError, match="No space left"):
        collection.sync(docs)
    assert [path.name for path in collection.path.parent.iterdir()] == ["docs"]


def test_k_may_be_any_number(docs: Path, collection: Collection) -> None:
    collection.sync(docs)
    assert len(collection.search("leave", k=10**30)) == collection.status().chunks


def test_a_relative_path_of_a_model_holds_from_elsewhere(
    tmp_path: Path, docs: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ragfm.store.collection_store.load_embedder", lambda name: HashingEmbedder(name))
    Collection.open(tmp_path / "c", settings=Settings(), embedder="model").sync(docs)
    assert Collection.open(tmp_path / "c").status().embedder["embedder"] == str(tmp_path / "model")
