"""Measure search in source code: docstrings of installed packages as questions, the code without them as documents.

    python benchmarks/bench_code.py [--fit] [--keyword]

As in CodeSearchNet (Husain et al. 2019), the first sentence of a function's docstring is the question, and the function
in its file, from which all docstrings were removed, is the gold span. Three ways to index the files, each with vectors,
keywords and both:

    plain         chunks of plain text, and identifiers as single words
    definitions   a chunk per definition, with its path as context
    default       the same, and identifiers are split in the keyword index

`--fit` uses the standard library, on which settings may be tuned, instead of the packages that are reported;
`--keyword` measures keyword search alone, without a model. Neither keeps the result. Prints a table and one JSON line
last.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from measure import MODES, about, save

from ragfm.chunking import chunk_document
from ragfm.core.config import SearchSection
from ragfm.core.registry import load_plugin
from ragfm.core.types import Chunk, Document, Embedder
from ragfm.embedders import load_embedder
from ragfm.evaluation import Gold, Question, QuestionSet
from ragfm.evaluation.run_comparison import paired_differences
from ragfm.parsing.formats import CODE
from ragfm.parsing.own.source_code import read_code
from ragfm.retrieval.fusion_weight import weight_for
from ragfm.retrieval.search import fuse

FIT = ("logging", "unittest", "xml", "email", "concurrent", "http", "asyncio", "zipfile", "threading", "ssl")
REPORTED = ("click", "jinja2", "networkx", "pydantic", "rich", "sqlalchemy", "pyparsing")
MAX_FILES = 8  # per package, evenly spread
MAX_QUESTIONS = 60  # per package
MAX_CHARACTERS = 60_000  # of a file
WAYS = ("plain", "definitions", "default")
MEASURES = ("MRR@10", "recall@5")


def package_files(package: str) -> list[Path]:
    """Some Python files of a package, evenly spread."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin:
        return []
    origin = Path(spec.origin)
    files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
    files = [file for file in files if 2_000 < file.stat().st_size < MAX_CHARACTERS and "test" not in file.parts]
    return files[:: max(1, -(-len(files) // MAX_FILES))]


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """All functions and methods with their qualified names."""
    stack: list[tuple[str, ast.AST]] = [("", tree)]
    while stack:
        prefix, node = stack.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{prefix}{child.name}", child
            if isinstance(child, ast.ClassDef):
                stack.append((f"{prefix}{child.name}.", child))


def without_docstrings(text: str) -> tuple[str, dict[str, str]]:
    """The source without docstrings, and the docstrings of its functions by qualified name."""
    tree, lines = ast.parse(text), text.splitlines(keepends=True)
    docstrings = {name: ast.get_docstring(node) or "" for name, node in functions(tree)}
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not body:
            continue
        first = body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            indent = lines[first.lineno - 1][: first.col_offset]
            for number in range(first.lineno - 1, first.end_lineno or first.lineno):
                lines[number] = ""
            if len(body) == 1 and not isinstance(node, ast.Module):
                lines[first.lineno - 1] = f"{indent}...\n"
    return "".join(lines), docstrings


def code_questions(name: str, packages: tuple[str, ...]) -> QuestionSet:
    """Files of packages without docstrings, and questions made of these."""
    documents: dict[str, str] = {}
    questions: list[Question] = []
    for package in packages:
        of_package: list[Question] = []
        for file in package_files(package):
            text, docstrings = without_docstrings(file.read_text(encoding="utf-8", errors="replace"))
            path = f"{package}/{file.parent.name}-{file.name}"
            documents[path] = text
            starts = np.cumsum([0, *(len(line) for line in text.splitlines(keepends=True))])
            for function, node in functions(ast.parse(text)):
                sentence = re.split(r"(?<=[.!?])\s|\n\s*\n", docstrings.get(function, ""), maxsplit=1)[0]
                sentence = " ".join(sentence.split())
                if not 4 <= len(sentence.split()) <= 40 or (node.end_lineno or 0) - node.lineno < 2:
                    continue
                span = int(starts[node.lineno - 1]), int(starts[node.end_lineno or node.lineno])
                of_package.append(Question(f"{path} {function}", sentence, (Gold(f"corpus/{path}", *span),)))
        questions += of_package[:: max(1, -(-len(of_package) // MAX_QUESTIONS))]
    unique = {question.text: question for question in questions}
    return QuestionSet(name, tuple(unique.values()), documents=documents)


def chunks_of(data: QuestionSet, embedder: Embedder, *, definitions: bool) -> list[tuple[str, Chunk]]:
    """The uri and the chunk of all chunks, in order."""
    found: list[tuple[str, Chunk]] = []
    for path, text in (data.documents or {}).items():
        marks = read_code(text, path).marks if definitions else ()
        document = Document(f"corpus/{path}", text, CODE if definitions else "text/plain", marks=marks)
        chunks = chunk_document(document, embedder.tokenize, embedder.max_tokens, path=path)
        found += [(document.uri, chunk) for chunk in chunks]
    return found


def measured(
    data: QuestionSet, way: str, embedder: Embedder, modes: Sequence[str], vectors: dict[str, Any]
) -> dict[str, Any]:
    """The measures of each question, by mode. *Shape:* (n, measures). `vectors` are those of known texts."""
    chunks = chunks_of(data, embedder, definitions=way != "plain")
    print(f"{way}: {len(chunks)} chunks", flush=True)
    texts = [chunk.embedded_text for _, chunk in chunks]
    ids, asked = np.arange(len(texts)), [question.text for question in data.questions]
    with nullcontext() if way == "default" else patch("ragfm_indexes.text_analysis.CAMEL_CASE", re.compile(r"(?!)")):
        scores, found = load_plugin("keyword_indexes", "bm25").build(ids, texts).search(asked, len(texts))
    bm25 = np.zeros((len(asked), len(texts)), dtype=np.float32)
    rows, columns = np.nonzero(found >= 0)
    bm25[rows, found[rows, columns]] = scores[rows, columns]
    cosines = np.zeros_like(bm25)
    if modes != ("keyword",):
        new = [text for text in dict.fromkeys(texts) if text not in vectors]
        vectors.update(zip(new, embedder.embed_passages(new), strict=True))
        cosines = embedder.embed_queries(asked) @ np.stack([vectors[text] for text in texts]).T
    values: dict[str, list[list[float]]] = {mode: [] for mode in modes}
    for question, dense, keyword in zip(data.questions, cosines, bm25, strict=True):
        candidates = np.union1d(np.argsort(-dense, kind="stable")[:100], np.argsort(-keyword, kind="stable")[:100])
        fused = np.full(len(texts), -1, dtype=np.float32)
        weight = weight_for(question.text, SearchSection(), language="en")
        fused[candidates] = fuse(dense[candidates], keyword[candidates], weight=weight)
        (gold,) = question.gold
        for mode in modes:
            ranking = np.argsort(-{"dense": dense, "keyword": keyword, "hybrid": fused}[mode], kind="stable")[:10]
            right = [
                chunks[at][0] == gold.uri and chunks[at][1].start < gold.end and gold.start < chunks[at][1].end
                for at in ranking
            ]
            first = right.index(True) + 1 if any(right) else 0
            values[mode].append([1 / first if first else 0.0, float(0 < first <= 5)])
    return {mode: np.array(rows) for mode, rows in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--keyword", action="store_true")
    args = parser.parse_args()
    data = code_questions("code", FIT if args.fit else REPORTED)
    packages = sorted({path.partition("/")[0] for path in data.documents or ()})
    print(f"{len(data.questions)} questions about {len(data.documents or ())} files of {', '.join(packages)}")
    modes = ("keyword",) if args.keyword else MODES
    embedder = load_embedder()
    vectors: dict[str, Any] = {}
    values = {way: measured(data, way, embedder, modes, vectors) for way in WAYS}
    table: dict[str, Any] = {}
    for way in WAYS:
        for mode in modes:
            rows = paired_differences(list(MEASURES), values["plain"][mode], values[way][mode])
            table.setdefault(way, {})[mode] = {
                row.measure: {
                    "value": round(row.b, 4),
                    "difference": [round(value, 4) for value in (row.difference, row.low, row.high)],
                    "p": round(row.p, 4),
                }
                for row in rows
            }
            shown = "  ".join(f"{row.measure} {row.b:.3f} ({row.difference:+.3f}, p {row.p:.3f})" for row in rows)
            print(f"{way:12} {mode:8} {shown}", flush=True)
    result = {
        **about("code"),
        "packages": packages,
        "files": len(data.documents or ()),
        "questions": len(data.questions),
        "ways": table,
    }
    if not args.fit and not args.keyword:
        save(result, "code")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
