"""Writes the tables of docs/benchmarks.md, between their markers, from `results/`.

python benchmarks/tables.py [--check]
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.S)


def render(page: str) -> str:
    """The page with all its tables made anew. A name without a table is a KeyError."""
    return _MARKED.sub(lambda found: f"{found[1]}{_made(TABLES[found[2]])}\n{found[3]}", page)


def main() -> None:
    old = PAGE.read_text(encoding="utf-8")
    new = render(old)
    if "--check" in sys.argv[1:]:
        sys.exit("docs/benchmarks.md is not what results/ say: run python benchmarks/tables.py" if new != old else 0)
    PAGE.write_text(new, encoding="utf-8")


# --- Tables ------------------------------------------------------------------------------------------------------


def retrieval() -> str:
    rows = []
    for name, entry in _result("retrieval")["sets"].items():
        counts, modes, row = entry["measure"], entry["modes"], entry["hybrid_beside_better"][entry["measure"]]
        value, low, high = modes["hybrid"]["measures"][counts]
        rows.append(
            [
                name if entry["role"] == "reported" else f"{name} (tuning)",
                f"{entry['questions']:,} / {entry['documents']:,}",
                counts,
                *(f"{modes[mode]['measures'][counts][0]:.3f}" for mode in ("dense", "keyword")),
                f"**{value:.3f}** [{low:.3f}, {high:.3f}]",
                f"{row['difference'][0]:+.3f} ({_p(row['p'])})",
            ]
        )
    return _table(
        ("set", "questions / documents", "measure", "dense", "keyword", "hybrid [95 %]", "hybrid − better (p)"), rows
    )


def retrieval_more() -> str:
    rows = []
    for name, entry in _result("retrieval")["sets"].items():
        for mode, figures in entry["modes"].items() if entry["role"] == "reported" else ():
            measures = (f"{figures['measures'][key][0]:.3f}" for key in _MEASURES)
            times = (f"{figures['search_ms'][key]:.1f}" for key in ("p50", "p95"))
            rows.append([name, mode, *measures, *times, f"{figures['embed_ms'].get('p50', 0):.1f}"])
    return _table(("set", "mode", *_MEASURES, "p50 ms", "p95 ms", "of it embedding"), rows)


def goals() -> str:
    return _table(
        ("goal", "hybrid", ""),
        [
            [goal["goal"], f"{goal['value']:.4f}", "reached" if goal["reached"] else "**missed**"]
            for goal in _result("retrieval")["goals"]
        ],
    )


def peers_quality() -> str:
    rows = []
    for name, entry in _result("peers")["sets"].items():
        for peer, figures in entry["peers"].items():
            for way, asked in figures["ways"].items():
                values = (asked["measures"][key] for key in ("nDCG@10", "MRR@10", "recall@5"))
                minus = asked.get("ragfm_minus_this", {}).get("nDCG@10")
                told = f"{minus[0]:+.3f} ({_p(minus[3])})" if minus else ""
                rows.append([name, peer, way, *(f"{value[0]:.3f}" for value in values), told])
    return _table(("set", "framework", "search", "nDCG@10", "MRR@10", "recall@5", "ragfm − this, nDCG@10 (p)"), rows)


def peers_cost() -> str:
    result, rows = _result("peers"), []
    for peer, figures in result["sets"]["SQuAD dev"]["peers"].items():
        sizes = result["installed"][peer]["mb"]
        plain, *others = figures["ways"].values()
        rows.append(
            [
                peer,
                f"{figures['documents_per_s']:.1f}",
                f"{plain['p50_ms']:.1f} / {plain['p95_ms']:.1f}",
                ", ".join(f"{other['p50_ms']:.1f} / {other['p95_ms']:.1f}" for other in others),
                f"{figures['peak_mb']:,}",
                f"{sum(sizes.values()) - sizes.get('torch', 0):,.0f}",
                f"{figures['import_s']:.1f}",
            ]
        )
    return _table(
        (
            "framework",
            "paragraphs/s",
            "default search, p50 / p95 ms",
            "its other searches",
            "peak MB",
            "installed MB without torch",
            "import s",
        ),
        rows,
    )


def peers_versions() -> str:
    rows = [
        [peer, ", ".join(f"{package} {version}" for package, version in entry["versions"].items())]
        for peer, entry in _result("peers")["installed"].items()
    ]
    return _table(("framework", "packages"), rows)


def multihop() -> str:
    rows = [
        [name, mode, _interval(figures["measures"]["recall@5"]), f"{figures['all@5']:.2f}"]
        for name, entry in _result("multihop")["sets"].items()
        for mode, figures in entry["modes"].items()
    ]
    return _table(("set", "mode", "recall@5 [95 %]", "all of them in the first 5"), rows)


def languages() -> str:
    rows = []
    for language, entry in _result("languages")["sets"].items():
        modes = entry["modes"]
        values = [modes[mode]["measures"][key][0] for key in ("MRR@10", "recall@5") for mode in modes]
        rows.append([language, *(f"{value:.3f}" for value in values)])
    ways = ("dense", "keyword", "hybrid")
    return _table(("language", *(f"MRR@10 {way}" for way in ways), *(f"recall@5 {way}" for way in ways)), rows)


def start() -> str:
    return _table(
        ("what", "seconds"),
        [[name, f"{value:.2f}"] for name, value in _result("start")["seconds"].items() if value is not None],
    )


def collection() -> str:
    rows = []
    for size, entry in _result("collection")["results"].items():
        for way in (f"{mode}, {share}" for mode in ("dense", "keyword", "hybrid") for share in ("all", "50 %", "1 %")):
            first, *times = (entry[way][key] for key in ("first_ms", "p50_ms", "p95_ms"))
            rows.append([f"{int(size):,}", way, f"{first:.0f}", *(f"{value:.1f}" for value in times)])
    return _table(("chunks", "mode, documents allowed", "first ms", "p50 ms", "p95 ms"), rows)


def collection_more() -> str:
    rows = []
    for size, entry in _result("collection")["results"].items():
        added = entry["add 1,000"]
        first = f"{entry['first from disk_ms'] / 1000:.1f} / {entry['first from memory_ms'] / 1000:.1f}"
        added = " / ".join(f"{added[key]}" for key in ("commit_ms", "view_ms", "next_search_ms"))
        built = f"{entry['commit_s']:.0f} / {entry['view_s']:.0f}"
        rows.append([f"{int(size):,}", entry["index"]["kind"], f"{entry['recall@10']:.3f}", built, first, added])
    return _table(
        (
            "chunks", "index", "recall@10", "committing / building views, s", "first search, from disk / memory, s",
            "1,000 more: commit / views / next search, ms",
        ),
        rows,
    )  # fmt: skip


def citations() -> str:
    result = _result("citations")
    rows = []
    for form, counts in result["right"].items():
        swapped = result["swapped"][form]
        right, wrong = sum(counts.values()), sum(swapped.values())
        shares = [
            counts.get("right", 0) / right,
            counts.get("elsewhere", 0) / right,
            swapped.get("verified", 0) / wrong,
        ]
        rows.append([form, f"{right:,}", *(f"{100 * share:.1f} %" for share in shares)])
    return _table(
        ("claim", "questions", "right paragraph verified", "another one only", "verified, though swapped"), rows
    )


def quotations() -> str:
    kinds = ("verified", "fabricated", "stitched", "misattributed")
    rows = []
    for how, counts in _result("citations")["quotations"].items():
        total = sum(counts.values())
        rows.append([how, f"{total:,}", *(f"{100 * counts.get(kind, 0) / total:.1f} %" for kind in kinds)])
    return _table(("quotation", "number", *kinds), rows)


def contradictions() -> str:
    return _table(
        ("answers", "right", "misled", "noticed"),
        [[name, *(f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in shares.values())]
         for name, shares in _result("contradictions")["outcomes"].items()],
    )  # fmt: skip


def index() -> str:
    rows = []
    for kind, entry in _result("index")["kinds"].items():
        seam = entry["allowed 100%"]["seam"]
        rows.append(
            [
                kind,
                f"{entry['build_s']:.0f}",
                f"{entry['file_mb']}",
                f"{seam['recall_rescored']:.3f}",
                f"{seam['p50_ms']:.1f} / {seam['p95_ms']:.1f}",
                f"{entry['allowed 100%']['ratio']:.2f}",
            ]
        )
    return _table(("kind", "build s", "file MB", "recall@10", "p50 / p95 ms", "time beside raw FAISS"), rows)


def parse() -> str:
    rows = []
    for kind, tools in _result("parse")["formats"].items():
        for tool, entry in tools.items():
            kept = (entry["quality"].get(name, {}).get("median") for name in ("words", "headings", "cells"))
            rows.append(
                [
                    kind,
                    tool,
                    f"{entry['read']}/{entry['files']}",
                    *(f"{value:.3f}" if value is not None and entry["read"] else "" for value in kept),
                    entry["mb_per_s"] or "",
                    entry["pages_per_s"] or "",
                    "" if tool == "ragfm" else entry["ragfm_times_faster"] or "",
                ]
            )
    return _table(("format", "tool", "read", "words", "headings", "cells", "MB/s", "pages/s", "ragfm faster ×"), rows)


def bm25() -> str:
    result = _result("bm25")
    names = ("ragfm", "bm25s", "tantivy")
    keys = [key for key in result["ragfm"] if key != "version"]
    rows = [[key, *(f"{result[name][key]}" for name in names)] for key in keys]
    return _table(("", *(f"{name} {result[name]['version']}" for name in names)), rows)


TABLES: dict[str, Callable[[], str]] = {
    table.__name__: table
    for table in (
        retrieval, retrieval_more, goals, peers_quality, peers_cost, peers_versions, multihop, languages, start,
        collection, collection_more, index, bm25, parse, citations, quotations, contradictions,
    )
}  # fmt: skip

# --- Inside ------------------------------------------------------------------------------------------------------

_MEASURES = ("nDCG@10", "MRR@10", "recall@5", "recall@10", "recall@100")


def _made(table: Callable[[], str]) -> str:
    try:
        return table()
    except FileNotFoundError:
        return "Not measured yet."


def _result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _interval(values: list[float]) -> str:
    value, low, high = values
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


if __name__ == "__main__":
    main()
