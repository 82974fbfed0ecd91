"""Search in manuals made of definitions: whether the definition of a term is among the first hits.

    apt-get download postgresql-doc-17 python3.13-doc git-doc     (and unpack each with `dpkg-deb -x`)
    python benchmarks/bench_definitions.py postgresql FOLDER [--keep FOLDER] [--label NAME]
    python benchmarks/bench_definitions.py python|git FOLDER [--keep FOLDER] [--label NAME]

FOLDER has the HTML pages: of PostgreSQL (`html`) or git (`git-doc`) with 80 of their settings, or of Python
(`html/library`) with 80 of its functions. Three questions for each: what it does, what its default is or what it
returns, how it is set or called. A hit counts if it has a part of the definition itself, which begins after the term
and ends at the next one of the page. Settings of git are also explained on the pages of commands, which do not count.
`search` is the default search, `ask` the search of `ask`, with reranking. Only the gain of identifiers in reranking was
fitted to one of these manuals, PostgreSQL's.

The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from measure import about, save
from selectolax.lexbor import LexborHTMLParser, LexborNode

from ragfm import Collection
from ragfm.evaluation.metrics import estimate_means

RANKS = (1, 3, 5)
COUNT = 80
QUESTIONS = {
    "postgresql": ("What does {} do?", "What is the default of {}?", "How do I set {}?"),
    "python": ("What does {} do?", "What does {} return?", "How do I call {}?"),
}
QUESTIONS["git"] = QUESTIONS["postgresql"]


def term_of(node: LexborNode) -> str:
    """The text of a term, without the links behind it."""
    text = node.text().replace("[source]", "")
    return " ".join(text.rstrip("¶# \n").split())


def name_of(manual: str, node: LexborNode) -> str | None:
    """The name to ask for, None for other terms."""
    if manual == "postgresql":
        name = node.css_first("span.term > code.varname")
        return name.text() if name is not None and (node.id or "").startswith("GUC-") else None
    if manual == "git":
        return term_of(node) if re.fullmatch(r"[a-z]+\.[a-zA-Z]+", term_of(node)) else None
    is_function = node.parent is not None and "function" in (node.parent.attributes.get("class") or "").split()
    return node.id if is_function else None


def definitions(collection: Collection, manual: str, folder: Path) -> Mapping[str, tuple[str, int, int]]:
    """The document of each definition by the term's name, and the characters where it stands."""
    uris = {Path(info.uri).name: info.uri for info in collection.documents()}
    found: dict[str, tuple[str, int, int]] = {}
    for path in sorted(folder.glob("git-config.html" if manual == "git" else "*.html")):
        text = collection.document(uris[path.name]).text
        open_name, start = None, 0
        for node in LexborHTMLParser(path.read_text(encoding="utf-8")).css("dt" if manual == "git" else "dt[id]"):
            term = re.compile(r"\s+".join(map(re.escape, term_of(node).split()))).search(text, start)
            name = name_of(manual, node)
            if term is None:
                if name:
                    raise ValueError(f"{path.name} has lost the term {term_of(node)!r}")
                continue
            if open_name:
                found[open_name] = (uris[path.name], start, term.start())
            open_name, start = name, term.end() + 1
        if open_name:
            found[open_name] = (uris[path.name], start, len(text))
    return found


def measure(manual: str, folder: Path, keep: Path) -> dict[str, Any]:
    """The share of questions whose definition is among the first hits, by way of searching."""
    with Collection.open(keep / ".ragfm") as collection:
        collection.sync(folder)
        known = definitions(collection, manual, folder)
        chosen = random.Random(3).sample(sorted(known), COUNT)
        ways: dict[str, Any] = {}
        for way, options in (("search", {}), ("ask", {"rerank": "auto"})):
            rows = []
            for name in chosen:
                uri, start, end = known[name]
                for question in QUESTIONS[manual]:
                    hits = collection.search(question.format(name), k=max(RANKS), **options)  # type: ignore[arg-type]
                    right = [hit.uri == uri and hit.start < end and start < hit.end for hit in hits]
                    rows.append([float(any(right[:rank])) for rank in RANKS])
            ways[way] = {
                f"@{rank}": [round(value, 3) for value in (one.value, one.low, one.high)]
                for rank, one in zip(RANKS, estimate_means(np.array(rows)), strict=True)
            }
            print(way, ways[way], flush=True)
        status = collection.status()
    return {
        "manual": manual,
        "documents": status.documents,
        "chunks": status.chunks,
        "terms": len(known),
        "questions": len(rows),
        "ways": ways,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manual", choices=list(QUESTIONS))
    parser.add_argument("folder", type=Path, help="the HTML pages")
    parser.add_argument("--keep", type=Path, help="folder that keeps the collection")
    parser.add_argument("--label", help="name of the variant, to save the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = about("definitions") | measure(options.manual, options.folder, options.keep or Path(temporary))
    if options.label:
        save(result, f"definitions-{options.manual}-{options.label}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
