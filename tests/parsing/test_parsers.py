"""The seam of parsers: registration, choice, fallback, recipes, and the contract test."""

from __future__ import annotations

import io
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from support.shell import Shell

from ragfm import Collection
from ragfm.core.config import Settings
from ragfm.core.errors import ConfigError, MissingExtraError, ParseError, UnknownPluginError
from ragfm.core.registry import plugins
from ragfm.core.types import Blob, Mark
from ragfm.parsing import Format, ParsedText, ParserChoice, formats, heartbeat, parse
from ragfm.parsing.own.own_parser import OwnParser
from ragfm.parsing.parsers import installed_parsers, known_formats
from ragfm.parsing.sandbox.worker_pool import WorkerPool
from ragfm.parsing.sandbox.worker_process import Limits
from ragfm.testing import HashingEmbedder, check_parser

DOCS = Path(__file__).parents[2] / "docs" / "parsers.md"

# Parsers of an installed package. `toys` looks around when it is imported.
_PACKAGE = """
import os
import time
from ragfm.core.errors import ParseError
from ragfm.parsing import Format, ParsedText, formats, heartbeat

try:
    os.listdir(os.path.dirname(os.getcwd()) or "/")
    SEEN = "everything"
except OSError:
    SEEN = "nothing"


class ToyParser:
    formats = (Format("text/x-toy", "toy", (".toy",)), Format("application/x-box", "box", (".box",), binary=True),
               formats.FORMATS[formats.HTML], formats.FORMATS[formats.CSV])
    heavy = False

    def version(self, media_type):
        return "1"

    def parse(self, data, name, media_type):
        if b"BROKEN" in data:
            raise LookupError("no toy in it")
        return ParsedText(f"toy of {len(data)} bytes, seen: {SEEN}\\0")


class HeavyParser(ToyParser):
    formats = (Format("text/x-heavy", "heavy", (".heavy",)),)
    heavy = True

    def parse(self, data, name, media_type):
        if data.startswith(b"slow"):
            time.sleep(1.5)
        if data.startswith(b"stuck"):
            time.sleep(99)
        size = int(data.split()[1])
        block = bytearray(size << 20)
        block[::4096] = b"x" * len(block[::4096])
        time.sleep(0.3)
        return ParsedText(f"{len(block) >> 20} MiB")
"""


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A package with the parsers `toys` and `heavy`; gives a function that sets its version."""
    site = tmp_path / "site"
    info = site / "toys-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    points = "toys = toy_parsers:ToyParser\nheavy = toy_parsers:HeavyParser\nmissing = toy_missing:ToyParser\n"
    (info / "entry_points.txt").write_text(f"[ragfm.parsers]\n{points}")
    (site / "toy_missing.py").write_text("import a_library_that_is_not_there\n")

    def set_version(version: str) -> None:
        (site / "toy_parsers.py").write_text(_PACKAGE.replace('return "1"', f'return "{version}"'))
        sys.modules.pop("toy_parsers", None)
        forget()

    def forget() -> None:
        installed_parsers.cache_clear()
        known_formats.cache_clear()

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(site)
    # Idle workers of earlier tests do not know the package.
    pool = WorkerPool()
    monkeypatch.setattr("ragfm.parsing.sandbox.worker_pool._shared", pool)
    set_version("1")
    yield set_version
    monkeypatch.undo()
    pool.close()
    sys.modules.pop("toy_parsers", None)
    forget()


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    limits = Limits(stall_seconds=1, seconds=4, seconds_per_mib=0, memory=200 << 20, model_memory=500 << 20)
    pool = WorkerPool(limits, 1)
    yield pool
    pool.close()


# --- Choice ------------------------------------------------------------------------------------------------------


def test_own_parsers_are_a_plugin_that_reads_every_known_format() -> None:
    assert isinstance(plugins("parsers")["ragfm"], EntryPoint)
    assert {entry.media_type for entry in OwnParser.formats} == set(formats.FORMATS)
    for kind in formats.FORMATS:
        assert ParserChoice().parsers_for(kind) == ["ragfm"]


def test_the_own_parser_is_the_default_and_others_read_what_only_they_read(toys: Callable[[str], None]) -> None:
    assert ParserChoice().parsers_for("text/html") == ["ragfm"]
    assert ParserChoice().parsers_for("text/x-toy") == ["toys"]
    assert ParserChoice({"HTM": "toys"}).parsers_for("text/html") == ["toys"]  # by any suffix of the format
    assert ParserChoice(fallback="toys").parsers_for("text/html") == ["ragfm", "toys"]
    assert ParserChoice(fallback="toys").parsers_for("application/pdf") == ["ragfm"]
    assert "missing" not in installed_parsers()


def test_a_choice_that_cannot_be_met_is_an_error(toys: Callable[[str], None]) -> None:
    ParserChoice({"html": "toys", ".toy": "toys"}, "toys").check()
    with pytest.raises(
        ConfigError, match=r"`parse.parsers.pdf`: the parser 'toys' does not read .pdf files. It reads: "
    ):
        ParserChoice({"pdf": "toys"}).check()
    with pytest.raises(UnknownPluginError, match="no plugin 'nobody' among the parsers"):
        ParserChoice({"pdf": "nobody"}).check()
    with pytest.raises(MissingExtraError, match="a_library_that_is_not_there"):
        ParserChoice(fallback="missing").check()


def test_the_name_tells_formats_that_ragfm_does_not_know(toys: Callable[[str], None]) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("content", "x")
    for name, data in (("a.toy", b"plain"), ("a.box", b"\0\1\2"), ("a.box", archive.getvalue()), ("a.box", b"text")):
        parsed = parse(Blob(data), name)
        assert parsed.metadata == {"parsed_by": "toys"}
        assert parsed.text.startswith(f"toy of {len(data)} bytes")
    assert parse(Blob("Grüße".encode("utf-16")), "a.toy").text.startswith("toy of 7 bytes")  # decoded, and then UTF-8
    assert parse(Blob(b"<!doctype html><p>page"), "a.toy").media_type == "text/html"
    assert parse(Blob(b"x", "text/x-toy"), "a").metadata["parsed_by"] == "toys"


def test_a_fallback_reads_what_the_first_parser_cannot(toys: Callable[[str], None]) -> None:
    deep = Blob(b"<html>" + b"<div>" * 20_000)
    with pytest.raises(ParseError, match="nests elements more than"):
        parse(deep, "a.html")
    parsed = parse(deep, "a.html", ParserChoice(fallback="toys"))
    assert parsed.metadata["parsed_by"] == "toys"
    assert "parsed_by" not in parse(Blob(b"<html><p>x"), "a.html", ParserChoice(fallback="toys")).metadata
    with pytest.raises(ParseError, match="nests elements more than"):  # the first error, if both fail
        parse(Blob(deep.data + b"BROKEN"), "a.html", ParserChoice(fallback="toys"))


# --- Workers -----------------------------------------------------------------------------------------------------


def test_a_worker_loads_a_parser_after_it_was_confined(toys: Callable[[str], None], pool: WorkerPool) -> None:
    document = pool.submit(Blob(b"a,b\n1,2"), "a.csv", ParserChoice({"csv": "toys"})).result()
    if "landlock" not in next(iter(pool._processes)).protections:
        pytest.skip("this kernel has no Landlock")
    assert document.text == "toy of 7 bytes, seen: nothing\ufffd"  # a small text, but not in this process


@pytest.mark.slow
def test_a_heavy_parser_has_the_memory_of_a_model_and_only_the_total_time(
    toys: Callable[[str], None], pool: WorkerPool
) -> None:
    assert pool.submit(Blob(b"quick 300"), "a.heavy").result().text == "300 MiB"
    assert pool.submit(Blob(b"slow 1"), "a.heavy").result().text == "1 MiB"  # no sign of life within `stall_seconds`
    with pytest.raises(ParseError, match=r"needs over 0\.48\d* GiB of memory"):
        pool.submit(Blob(b"quick 900"), "a.heavy").result()
    with pytest.raises(ParseError, match="did not finish within 4 s"):
        pool.submit(Blob(b"stuck 1"), "a.heavy").result()


# --- Recipes -----------------------------------------------------------------------------------------------------


def _collection(path: Path, **parse_section: object) -> Collection:
    return Collection.open(path, settings=Settings(parse=parse_section), embedder=HashingEmbedder())


def test_a_change_of_parsers_concerns_the_documents_of_one_format(
    tmp_path: Path, docs: Path, toys: Callable[[str], None]
) -> None:
    (docs / "deep.html").write_bytes(b"<html>" + b"<div>" * 20_000)
    (docs / "pets.markdown").unlink()
    (docs / "pets.html").write_text("<html><body><h1>Pets</h1><p>Dogs are welcome on Fridays.</p></body></html>")
    path = tmp_path / ".ragfm"

    def sync(**section: object) -> tuple[int, int, int]:
        with _collection(path, **section) as collection:
            report = collection.sync(docs)
            assert collection.status().older == 0
            return report.added + report.updated, report.unchanged, len(report.failed)

    def parsers() -> dict[str, object]:
        with _collection(path) as collection:
            return {info.uri: info.metadata.get("parsed_by") for info in collection.documents()}

    assert sync() == (4, 0, 1)
    assert sync(parsers={"html": "toys"}) == (2, 3, 0)  # pets.html, and the one that had failed
    toys("2")
    assert sync(parsers={"html": "toys"}) == (2, 3, 0)
    assert sync(parsers={"csv": "toys", "html": "toys"}) == (1, 4, 0)
    assert parsers() == {
        **dict.fromkeys(("docs/deep.html", "docs/pets.html", "docs/rooms.csv"), "toys"),
        **dict.fromkeys(("docs/hours.txt", "docs/leave.md")),
    }
    assert sync(fallback="toys") == (3, 2, 0)
    assert [uri for uri, name in parsers().items() if name] == ["docs/deep.html"]
    assert sync(fallback="toys") == (0, 5, 0)
    toys("3")  # a new version of the fallback concerns what it read
    assert sync(fallback="toys") == (1, 4, 0)


def test_a_parser_that_is_installed_later_reads_again_what_was_read_as_plain_text(
    tmp_path: Path, docs: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    (docs / "a.toy").write_text("A toy.")
    with _collection(tmp_path / ".ragfm") as collection:
        assert collection.sync(docs).added == 5
        request.getfixturevalue("toys")
        report = collection.sync(docs)
        assert (report.updated, report.unchanged) == (1, 4)
        assert collection.document("docs/a.toy").metadata["parsed_by"] == "toys"
        assert collection.sync(docs).unchanged == 5
        read = {entry["format"]: entry["parsers"] for entry in collection.status().parsers}
        assert read == {name: ["toys" if name == "toy" else "ragfm"] for name in ("CSV", "Markdown", "text", "toy")}


def test_an_extra_concerns_its_formats_only(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"ocr": False, "code": False}
    monkeypatch.setattr("ragfm.parsing.own.own_parser._INSTALLED", installed)
    before = {kind: OwnParser().version(kind) for kind in formats.FORMATS}
    assert not any("+" in version for version in before.values())
    installed["ocr"] = True
    changed = {kind for kind in before if OwnParser().version(kind) != before[kind]}
    assert changed == {formats.PDF, formats.PPTX, formats.PPT, formats.IMAGE}
    installed |= {"ocr": False, "code": True}
    assert {kind for kind in before if OwnParser().version(kind) != before[kind]} == {formats.CODE}


# --- The command line --------------------------------------------------------------------------------------------


def test_plugins_and_status_show_what_reads_what(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    known = shell.json("plugins")
    assert known["parsers"]["ragfm"] == "ragfm.parsing.own.own_parser:OwnParser"
    assert known["formats"]["DOCX"]["parsers"][0] == "ragfm"
    assert ".docx" in known["formats"]["DOCX"]["suffixes"]
    assert ".docx .docm .dotx" in shell("plugins").stdout
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "boat.md").write_text("The boat leaves at nine.")
    shell("ingest", "docs")
    assert re.search(r"parser\s+ragfm: Markdown", shell("status").stdout)
    (tmp_path / "ragfm.toml").write_text('[parse]\nparsers = {md = "nobody"}\n')
    assert "There is no plugin 'nobody' among the parsers" in shell("ingest", "docs", code=1).stderr


# --- The contract test -------------------------------------------------------------------------------------------


def test_the_parser_of_the_documentation_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example, check = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.M | re.S)
    assert len(example.splitlines()) <= 60
    (tmp_path / "subtitles.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    import subtitles  # type: ignore[import-not-found]

    exec(check, {"SubtitleParser": subtitles.SubtitleParser})
    parser = subtitles.SubtitleParser()
    parsed = parser.parse(
        b"1\n00:00:01,000 --> 00:00:02,000\nHello.\n\n2\n00:01:00,500 --> 00:02:00,000\nBye.", "a.srt", ""
    )
    assert parsed.text == "Hello.\n\nBye."
    assert parsed.marks == (Mark("place", 0, 6, "00:00:01"), Mark("place", 8, 12, "00:01:00"))
    with pytest.raises(ParseError, match="not a subtitle file"):
        parser.parse(b"Something else", "a.srt", "")


def test_own_parsers_pass() -> None:
    check_parser(
        OwnParser(),
        {
            "a.md": b"---\ntitle: A\n---\n# One\n\ntext\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n",
            "a.html": b"<html><h1>A</h1><pre>code</pre><table><tr><th>a<tr><td>1</table>",
            "a.csv": "Grüße,b\n1,2".encode("utf-16"),
            "a.json": b'{"a": [1, 2]}',
            "a.eml": b"Subject: A\n\nbody",
        },
    )


class _Faulty:
    """A parser that violates the contract in one way; the others are checks of this class."""

    formats = (Format("text/x-faulty", "faulty", (".faulty",)),)
    heavy = False
    parsed: list[ParsedText] = []  # noqa: RUF012

    def version(self, media_type: str) -> str:
        return "1"

    def parse(self, data: bytes, name: str, media_type: str) -> ParsedText:
        heartbeat.beat()
        return self.parsed[0] if len(self.parsed) == 1 else self.parsed.pop(0)


@pytest.mark.parametrize(
    ("parsed", "violation"),
    [
        ([ParsedText("a\0b")], "NUL or lone surrogates"),
        ([ParsedText("a\ud800b")], "NUL or lone surrogates"),
        ([ParsedText(" ")], "is empty: raise SkipDocument"),
        ([ParsedText("ab", (Mark("code", 0, 3),))], "not inside the text"),
        ([ParsedText("ab", (Mark("code", 1, 1),))], "is empty or not inside"),
        ([ParsedText("ab", (Mark("code", 1, 2), Mark("code", 0, 1)))], "not in the order"),
        ([ParsedText("ab", (Mark("heading", 0, 2, "ab"),))], "needs a level"),
        ([ParsedText("ab", (Mark("page", 0, 2, "ii"),))], "needs a page number"),
        ([ParsedText("ab", metadata={"a": []})], "must be strings, numbers"),  # type: ignore[dict-item]
        ([ParsedText("ab"), ParsedText("abc"), ParsedText("ab")], "when it is parsed again"),
    ],
)
def test_violations_are_named(parsed: list[ParsedText], violation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Faulty, "parsed", list(parsed))
    with pytest.raises(AssertionError, match=violation):
        check_parser(_Faulty(), {"a.faulty": b"x"})


def test_a_parser_that_needs_the_network_or_other_files_does_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "secret").write_text("x")
    source = f"""
from ragfm.parsing import Format, ParsedText

class Curious:
    formats = (Format("text/x-curious", "curious", (".curious",)),)
    heavy = False
    def version(self, media_type):
        return "1"
    def parse(self, data, name, media_type):
        return ParsedText(open({str(tmp_path / "secret")!r}).read())
"""
    (tmp_path / "site" / "curious_parser.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path / "site")
    import curious_parser  # type: ignore[import-not-found]

    with pytest.raises(ParseError, match="PermissionError"):
        check_parser(curious_parser.Curious(), {"a.curious": b"x"})
