"""The connector for records of JSON Lines, CSV and Parquet files."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ragfm_connectors import jsonl
from ragfm_connectors.jsonl import JsonlConnector
from support.killed_sync import sync_killed
from support.shell import Shell

from ragfm import Collection, Ref
from ragfm.core.errors import ConfigError, ConnectorError, MassDeleteError, SourceError
from ragfm.parsing.sandbox.worker_pool import MAX_PLAIN
from ragfm.testing import check_connector

ROWS = [
    {"_id": "a", "title": "Leave", "text": "You get 28 days.", "year": 2024, "tags": ["x", "y"], "by": {"name": "Ann"}},
    {"_id": "b/1", "title": "", "text": "Line one\nline two, “quoted”", "year": 2025, "tags": [], "by": None},
    {"_id": "c", "title": "Pets", "text": "Dogs on Fridays", "year": 2026, "tags": ["z"], "by": {"name": "Bob"}},
]


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def listed(location: Path, **options: Any) -> dict[str, Ref]:
    return {ref.path: ref for ref in JsonlConnector(location, **options).refs()}


def texts(connector: JsonlConnector) -> dict[str, str]:
    return {ref.path: connector.fetch(ref).data.decode() for ref in connector.refs() if not (ref.error or ref.skip)}


def test_records_become_documents(tmp_path: Path) -> None:
    connector = JsonlConnector(lines(tmp_path / "r.jsonl", *ROWS))
    assert texts(connector) == {
        "a": "Leave\n\nYou get 28 days.",
        "b%2F1": "Line one\nline two, “quoted”",
        "c": "Pets\n\nDogs on Fridays",
    }
    blob = connector.fetch(next(connector.refs()))
    assert (blob.media_type, blob.metadata) == ("text/plain", {"title": "Leave", "year": 2024})
    check_connector(connector)


def test_fields_are_mapped(tmp_path: Path) -> None:
    connector = JsonlConnector(
        lines(tmp_path / "r.jsonl", *ROWS[:1]),
        id="year",
        title="by.name",
        text=["title", "text"],
        metadata=["tags", "by", "none"],
        media_type="text/markdown",
    )
    (ref,) = connector.refs()
    blob = connector.fetch(ref)
    assert (ref.path, blob.data, blob.media_type) == ("2024", b"# Ann\n\nLeave\n\nYou get 28 days.", "text/markdown")
    assert blob.metadata == {"title": "Ann", "tags": "x, y", "by": '{"name": "Ann"}'}
    html = JsonlConnector(connector.root, media_type="text/html")
    lines(tmp_path / "r.jsonl", {"id": 1, "title": "a<b", "text": "<p>c"})
    assert texts(html) == {"1": "<h1>a&lt;b</h1>\n<p>c"}


def test_all_formats_give_the_same(tmp_path: Path) -> None:
    rows = [{"id": row["_id"], "title": row["title"], "text": row["text"]} for row in ROWS]
    want = texts(JsonlConnector(lines(tmp_path / "r.jsonl", *rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "r.parquet", row_group_size=2)
    quoted = [[f'"{value}"' for value in row.values()] for row in rows]
    for name, delimiter in (("r.csv", ","), ("r.TSV", "\t")):
        text = "".join(delimiter.join(row) + "\r\n" for row in (["id", "title", "text"], *quoted))
        (tmp_path / name).write_text(text, encoding="utf-8-sig", newline="")
    (tmp_path / "r.json").write_text(f"\ufeff {json.dumps(rows, indent=1)}\n", encoding="utf-8")
    for name in ("r.json", "r.jsonl", "r.csv"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    for name in ("r.json", "r.csv", "r.TSV", "r.parquet", "r.json.gz", "r.jsonl.gz", "r.csv.gz"):
        connector = JsonlConnector(tmp_path / name)
        assert texts(connector) == want, name
        refs = list(connector.refs())
        assert [connector.fetch(ref).data.decode() for ref in reversed(refs)] == [*want.values()][::-1], name
        check_connector(connector)


def test_an_element_of_an_array_that_is_not_a_record_is_named(tmp_path: Path) -> None:
    rows = [{"id": number, "text": "Größe ] , [ \\" * number} for number in range(1, 30)]
    (tmp_path / "r.json").write_text(json.dumps([*rows[:9], 12.5, *rows[9:]]))
    refs = list(JsonlConnector(tmp_path / "r.json").refs())
    assert [ref.path for ref in refs] == [*(str(row["id"]) for row in rows), ""]
    assert refs[-1].error == "not all records can be read: record 10: it is not a JSON object."
    assert not listed(lines(tmp_path / "empty.json", []))
    limited = listed(tmp_path / "r.json", max_bytes=250)
    assert "too long; the limit for an array is 250 bytes. Use JSON Lines." in (limited[""].error or "")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('[{"id": 1, "text": "a"}, {"id": 2, "te', "it is not JSON in utf-8"),
        ('[{"id": 1, "text": "a"} {}]', "it is not JSON in utf-8"),
        ('{"id": 1, "text": "a"}', "it is not an array of records."),
        ("", "it is not an array of records."),
    ],
)
def test_a_damaged_array_is_reported(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "r.json").write_text(text)
    assert error in (listed(tmp_path / "r.json")[""].error or "")


def test_a_json_file_without_an_array_is_skipped_in_a_folder(tmp_path: Path) -> None:
    lines(tmp_path / "package.json", {"id": 1, "text": "a"})
    lines(tmp_path / "r.json", ROWS[:1])
    assert {path: ref.skip for path, ref in listed(tmp_path).items()} == {
        "package.json": "not an array of records",
        "r.json/a": None,
    }


def test_a_folder_of_files(tmp_path: Path) -> None:
    lines(tmp_path / "one.jsonl", ROWS[0])
    (tmp_path / "in").mkdir()
    lines(tmp_path / "in/two.ndjson", ROWS[0])
    (tmp_path / "in/.ragfm-access").write_text("hr\n")
    (tmp_path / "note.md").write_text("no records")
    found = listed(tmp_path)
    assert list(found) == ["in/two.ndjson/a", "note.md", "one.jsonl/a"]
    assert "not a file of records" in (found["note.md"].skip or "")
    assert (found["in/two.ndjson/a"].allow, found["one.jsonl/a"].allow) == (("hr",), None)
    check_connector(JsonlConnector(tmp_path))
    assert list(listed(tmp_path / "*.jsonl")) == ["one.jsonl/a"]
    connector = JsonlConnector(tmp_path)
    ref = next(connector.refs())
    (tmp_path / "in/.ragfm-access").write_text("board\n")
    with pytest.raises(ConnectorError, match="has been closed"):
        connector.fetch(ref)


@pytest.mark.parametrize("size", [1, 2 * MAX_PLAIN])  # read in this process, and in a worker
def test_the_id_of_a_record_is_no_file_name(tmp_path: Path, collection: Collection, size: int) -> None:
    text = f"# A number\n\n* stands first{' and last' * (size // 9)}."
    ids = ["a.pdf", "b.md", "c.org", "d.py", "e.docx"]
    report = collection.sync(
        lines(tmp_path / "r.jsonl", *({"id": name, "text": text} for name in ids)), connector="jsonl"
    )
    assert (report.added, report.failed) == (5, ())
    found = [collection.document(info.uri) for info in collection.documents()]
    assert {(document.text, document.media_type) for document in found} == {(text, "text/plain")}
    assert collection.sync().unchanged == 5


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/out.jsonl").symlink_to(lines(tmp_path / "secret.jsonl", ROWS[0]))
    assert listed(tmp_path / "in")["out.jsonl"].skip == "symbolic link that leaves the folder"


def test_a_record_without_id_is_known_by_its_content(tmp_path: Path) -> None:
    first = listed(lines(tmp_path / "r.jsonl", {"text": "one"}, {"text": "two"}, {"text": "one"}))
    assert [ref.skip for ref in first.values()] == [None, None, "the same record occurs twice"]
    assert len({ref.path for ref in first.values()}) == 3
    again = listed(lines(tmp_path / "r.jsonl", {"text": "new"}, {"text": "two"}))
    assert len(again.keys() & first.keys()) == 1


@pytest.mark.parametrize("identity", ["../x", "/etc", ".", "..", "a//b", "a/", "#1", "%2F", "\n", "http://x", "é", " "])
def test_odd_ids_are_plain_paths(tmp_path: Path, identity: str) -> None:
    connector = JsonlConnector(lines(tmp_path / "r.jsonl", {"id": identity, "text": "x"}, {"id": "x", "text": "y"}))
    check_connector(connector)
    assert len(texts(connector)) == 2
    assert not any("://" in path or "/" in path for path in texts(connector))


def test_a_changed_record_alone_has_another_revision(tmp_path: Path) -> None:
    before = listed(lines(tmp_path / "r.jsonl", *ROWS))
    after = listed(lines(tmp_path / "r.jsonl", *ROWS[:2], {**ROWS[2], "year": 1999}))
    assert [path for path in after if after[path] != before[path]] == ["c"]
    mapped = listed(tmp_path / "r.jsonl", metadata=["year"], title="")
    assert not {ref.revision for ref in mapped.values()} & {after["a"].revision, after["c"].revision}


def test_a_broken_record_is_reported_and_the_others_are_listed(tmp_path: Path) -> None:
    good = json.dumps(ROWS[0]).encode()
    wrong = [b"{torn", b"[1]", b'{"id": 1}', b'{"id":"\\ud800", "text":"x"}', b'{"id":2,"text":"\xff"}', b"[" * 99_999]
    for line in wrong:
        (tmp_path / "r.jsonl").write_bytes(b"\n".join((line, b"", good)))
        found = listed(tmp_path / "r.jsonl")
        assert list(found) == ["a", ""], line
        assert "record 1:" in (found[""].error or ""), line
    (tmp_path / "r.jsonl").write_bytes(b"\n".join((*wrong, good)))
    assert (listed(tmp_path / "r.jsonl")[""].error or "").count("record") < 6
    (tmp_path / "r.jsonl").write_bytes(b'{"id":1,"text":"' + b"x" * 300 + b'"}\n' + good)
    assert "too long; the limit is 200 bytes" in (listed(tmp_path / "r.jsonl", max_bytes=200)[""].error or "")
    assert listed(lines(tmp_path / "r.jsonl", ROWS[0], ROWS[0]))["a#2"].skip == "another record has the same id"
    with pytest.raises(ConfigError):
        JsonlConnector(tmp_path / "r.jsonl", text=[])
    with pytest.raises(ConfigError):
        JsonlConnector(tmp_path / "r.jsonl", encoding="utf-16")
    with pytest.raises(ConfigError):
        JsonlConnector(tmp_path / "r.jsonl", media_type="application/pdf")
    (tmp_path / "r.txt").write_text("x")
    with pytest.raises(SourceError, match="not a file of records"):
        listed(tmp_path / "r.txt")


def test_damaged_files_are_reported(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"id": 1, "text": "x"}]), tmp_path / "r.parquet")
    whole = (tmp_path / "r.parquet").read_bytes()
    (tmp_path / "r.parquet").write_bytes(whole[:-20])
    assert "Parquet" in (listed(tmp_path / "r.parquet")[""].error or "")
    packed = gzip.compress(
        "".join(json.dumps({"id": n, "text": os.urandom(30).hex()}) + "\n" for n in range(99)).encode()
    )
    (tmp_path / "r.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    found = listed(tmp_path / "r.jsonl.gz")
    assert "damaged" in (found[""].error or "")
    assert len(found) > 9
    (tmp_path / "r.csv").write_bytes(b"id,text\n1,one\n2,two,three\n3,\xff\n4,four\n")
    found = listed(tmp_path / "r.csv")
    assert list(found) == ["1", "4", ""]
    assert "record 2: it has 3 fields" in (found[""].error or "")
    assert "record 3: it is not in utf-8" in (found[""].error or "")
    assert len(listed(tmp_path / "r.csv", encoding="latin-1")) == 4


@pytest.mark.parametrize("text", ["\n\n_id,text\n1,Oaks\n", "\r\n_id,text\r\n1,Oaks\r\n"])
def test_empty_lines_above_the_header_of_a_csv_are_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.csv").write_bytes(text.encode())
    assert texts(JsonlConnector(tmp_path / "r.csv")) == {"1": "Oaks"}


@pytest.mark.parametrize("rest", ["3,Pines", '3,"Pines"', '3,Pines "x" y'])
def test_a_quote_that_takes_in_other_records_is_reported(tmp_path: Path, rest: str) -> None:
    (tmp_path / "r.csv").write_text(f'_id,text\n1,"Two\nlines, ""quoted"""\n2,"Elms\n{rest}\n')
    connector = JsonlConnector(tmp_path / "r.csv")
    assert "record 2: it is not CSV" in (listed(tmp_path / "r.csv")[""].error or "")
    assert texts(connector) == {"1": 'Two\nlines, "quoted"'}


def test_a_header_that_is_not_csv_is_reported(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes(b"_id,text\r1,Oaks\r")
    assert "its header is not CSV" in (listed(tmp_path / "r.csv")[""].error or "")


@pytest.mark.parametrize(("value", "zone"), [(1, "No/Where"), (10**18, None)])
def test_times_of_parquet_that_python_cannot_represent_are_reported(
    tmp_path: Path, value: int, zone: str | None
) -> None:
    times = pa.array([value], pa.timestamp("us", zone))
    pq.write_table(pa.table({"_id": ["1"], "text": ["Oaks"], "at": times}), tmp_path / "r.parquet")
    assert "is damaged or not supported" in (listed(tmp_path / "r.parquet")[""].error or "")


def test_text_in_binary_columns_of_parquet(tmp_path: Path) -> None:
    rows = {"_id": [b"1", b"2"], "title": [b"Trees", None], "text": ["Bäume".encode(), b"\xff\xfe\0"]}
    pq.write_table(pa.table(rows), tmp_path / "r.parquet")
    assert texts(JsonlConnector(tmp_path / "r.parquet")) == {"1": "Trees\n\nBäume", "2": ""}


def test_archives_next_to_files_of_records_are_skipped(tmp_path: Path) -> None:
    lines(tmp_path / "r.jsonl", ROWS[0])
    with ZipFile(tmp_path / "backup.zip", "w") as archive:
        archive.write(tmp_path / "r.jsonl", "r.jsonl")
    found = listed(tmp_path)
    assert list(found) == ["backup.zip", "r.jsonl/a"]
    assert found["backup.zip"].skip
    assert not found["backup.zip"].error


def test_files_that_unpack_to_absurd_sizes_are_refused(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "r.jsonl.gz", "wb") as file:
        file.write(json.dumps({"id": "first", "text": "x"}).encode())
        for _ in range(70):
            file.write(b"\n".rjust(1 << 20))
    found = listed(tmp_path / "r.jsonl.gz")
    assert list(found) == ["first", ""]  # and nothing of the file is taken for gone
    assert "gzip file would be over 64 MiB unpacked" in (found[""].error or "")
    rows = pa.table({"text": ["x" * 1000] * 80_000})
    pq.write_table(rows, tmp_path / "r.parquet", use_dictionary=False, compression="zstd")
    assert "would be over" in (listed(tmp_path / "r.parquet")[""].error or "")


def test_a_text_shared_by_all_records_is_stored_once(tmp_path: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array(["x" * (4 << 20)]))
    table = pa.table({"id": list(range(100)), "text": texts})
    pq.write_table(table, tmp_path / "r.parquet", compression="zstd", dictionary_pagesize_limit=1 << 30)
    assert (tmp_path / "r.parquet").stat().st_size < 10_000
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        assert len(listed(tmp_path / "r.parquet")) == 100
        assert tracemalloc.get_traced_memory()[1] < 50 << 20  # and not 400
    finally:
        tracemalloc.stop()
    assert pa.default_memory_pool().max_memory() - before < 200 << 20


def test_fetch_returns_the_listed_version_or_fails(tmp_path: Path) -> None:
    connector = JsonlConnector(lines(tmp_path / "r.jsonl", *ROWS))
    refs = list(connector.refs())
    lines(tmp_path / "r.jsonl", *ROWS[1:])
    for ref in refs:
        with pytest.raises(ConnectorError, match="changed"):
            connector.fetch(ref)
    with pytest.raises(ConnectorError, match="record 'none' no longer exists"):
        connector.fetch(Ref("none"))
    assert JsonlConnector(connector.root).fetch(refs[2]).data == b"Pets\n\nDogs on Fridays"  # not listed by this one


def test_sync_adds_changes_and_deletes(tmp_path: Path, collection: Collection) -> None:
    source = lines(tmp_path / "r.jsonl", *ROWS)
    assert collection.sync(source, connector="jsonl").added == 3
    assert collection.sync(source).unchanged == 3  # the connector is remembered
    lines(source, {**ROWS[0], "text": "You get 30 days."}, ROWS[1], {"_id": "d", "text": "new"})
    report = collection.sync()
    assert (report.added, report.updated, report.removed, report.unchanged) == (1, 1, 1, 1)
    assert collection.search("thirty days", filter="year = 2024")[0].uri == "r.jsonl/a"
    report = collection.sync(source, options={"title": "year"})
    assert report.updated == 2  # of the one without year nothing changed
    assert collection.document("r.jsonl/a").text.startswith("2024\n\n")
    assert collection.sync(source).unchanged == 3  # options are remembered too


def test_nothing_is_removed_while_a_record_cannot_be_read(tmp_path: Path, collection: Collection) -> None:
    source = lines(tmp_path / "r.jsonl", *ROWS)
    collection.sync(source, connector="jsonl")
    source.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1])[:20])  # the writer died within a line
    report = collection.sync(source)
    assert (report.removed, report.unchanged, len(report.failed)) == (0, 1, 1)
    assert len(collection.documents()) == 3
    source.unlink()
    with pytest.raises(SourceError):
        collection.sync(source)
    assert len(collection.documents()) == 3
    lines(source, ROWS[0])
    with pytest.raises(MassDeleteError):
        collection.sync(source)
    report = collection.sync(source, allow_mass_delete=True)
    assert (report.removed, report.failed, collection.status().failed) == (2, (), ())


def test_a_file_that_goes_away_in_the_middle(
    tmp_path: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = lines(tmp_path / "r.jsonl", *ROWS)
    collection.sync(source, connector="jsonl")
    read = jsonl._read_lines

    def breaking(*given: Any) -> Iterator[tuple[int, bytes]]:
        yield next(read(*given))
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(jsonl, "_read_lines", breaking)
    report = collection.sync(source)
    assert (report.removed, len(report.failed)) == (0, 1)
    assert "Input/output error" in report.failed[0].error


def test_a_killed_sync_continues(tmp_path: Path, collection: Collection) -> None:
    source = lines(tmp_path / "r.jsonl", *({"id": n, "text": f"record number {n}"} for n in range(12)))
    sync_killed(collection.path, source, documents=5, connector="jsonl")
    assert len(collection.documents()) == 5
    report = collection.sync(source)
    assert (report.added, report.unchanged) == (7, 5)


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    source = lines(tmp_path / "r.jsonl", *({"id": n, "text": "x" * 100_000} for n in range(300)))
    connector = JsonlConnector(source)
    tracemalloc.start()
    for ref in list(connector.refs()):
        connector.fetch(ref)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000  # of 30 MB


@pytest.mark.slow
def test_options_on_the_command_line_and_in_the_settings(tmp_path: Path) -> None:
    lines(tmp_path / "r.jsonl", {"key": "k", "head": "Oak", "body": "Trees.", "more": "Leaves.", "year": 7})
    shell = Shell(tmp_path)
    given = ["--option", "id=key", "--option", "title=head", "--option", "text=body", "--option", "text=more"]
    shell("ingest", "r.jsonl", "--connector", "jsonl", *given)
    (hit,) = shell.json("search", "trees")["hits"]
    assert (hit["uri"], hit["text"]) == ("r.jsonl/k", "Oak\n\nTrees.\n\nLeaves.")
    assert shell.json("status")["sources"][0]["options"]["text"] == ["body", "more"]
    done = shell("ingest", "r.jsonl", "--option", "bodies=x", code=1)
    assert "no option 'bodies'" in done.stderr
    assert "Traceback" not in shell("ingest", "r.jsonl", "--option", "max_bytes=many", code=1).stderr
    shell("ingest", "r.jsonl", "--option", "oops", code=2)
    (tmp_path / "ragfm.toml").write_text(
        "[[sources]]\nlocation = 'r.jsonl'\nconnector = 'jsonl'\noptions = { id = 'year', text = ['more'] }\n"
    )
    assert shell.json("ingest", "--allow-mass-delete")["removed"] == 1
    assert shell.json("search", "leaves")["hits"][0]["uri"] == "r.jsonl/7"


@pytest.mark.data
def test_a_corpus_of_beir(data: Path, tmp_path: Path, collection: Collection) -> None:
    corpus = data / "beir/scifact/corpus.jsonl.gz"
    refs = listed(corpus)
    assert len(refs) == 5183
    assert not any(ref.error or ref.skip for ref in refs.values())
    with gzip.open(corpus, "rt") as file:
        rows = [json.loads(next(file)) for _ in range(50)]
    report = collection.sync(lines(tmp_path / "corpus.jsonl", *rows), connector="jsonl", name="scifact")
    assert (report.added, report.failed) == (50, ())
    assert collection.search(rows[7]["title"])[0].uri == f"scifact/{rows[7]['_id']}"
