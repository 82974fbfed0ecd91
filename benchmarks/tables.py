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


def languages_weights() -> str:
    entries = _part("languages", "weights")
    shown = ("0.0", "0.05", "0.1", "0.15", "0.2", "0.3", "0.4", "0.6", "1.0")
    rows = [[language, *(f"{entry['tried'][weight]:.3f}" for weight in shown)] for language, entry in entries.items()]
    return _table(("language", *(f"weight {float(weight):g}" for weight in shown)), rows)


def languages_chosen() -> str:
    asked = {f"{language} alone": entry["reported"] for language, entry in _part("languages", "weights").items()}
    for both, entry in _part("languages", "mixed").items():
        asked |= {f"{language}, of {both} together": row for language, row in entry["asked_in"].items()}
    rows = []
    for name, reported in asked.items():
        default = reported["default"]
        told = f"{default['difference']:+.3f} [{default['low']:+.3f}, {default['high']:+.3f}] ({_p(default['p'])})"
        values = (reported[key]["value"] for key in ("keyword", "0.6", "default"))
        rows.append([name, *(f"{value:.3f}" for value in values), told if default["difference"] else "the same"])
    (foreign,) = {key for reported in asked.values() for key in reported} - {"keyword", "0.6", "default"}
    by_language = f"0.6, {foreign} where it is foreign"
    return _table(("questions", "keyword", "weight 0.6", by_language, f"{by_language} − 0.6 [95 %] (p)"), rows)


def embedding() -> str:
    found = _result("embed")["rows"]
    other = max(row["texts_per_s"] for row in found if not row["form"])
    rows = [
        [
            row["contender"],
            row["form"] or "-",
            f"{row['texts_per_s']:.1f}",
            f"{row['texts_per_s'] / other:.2f}",
            f"{row['tokens_per_s']:,}",
            f"{100 * row['of_peak_bf16']:.0f} %",
            f"{row['lowest_cosine']:.6f}",
        ]
        for row in found
    ]
    head = (
        "contender", "form", "paragraphs/s", "× the fastest other", "tokens/s", "of the bf16 GEMM peak",
        "lowest cosine to fp32",
    )  # fmt: skip
    return _table(head, rows)


def server() -> str:
    result = _result("server")
    bare = {row["users"]: row for row in result["llama_cpp.server, no passages"]}
    rows = []
    for row in result["ragfm serve"]:
        refusals = row["refusal_s"]
        refused = f"{row['refused']}, within {1000 * refusals['most']:.0f} ms" if refusals else f"{row['refused']}"
        other = _answered(bare[row["users"]]) if row["users"] in bare else [""] * 4
        rows.append([f"{row['users']}", *_answered(row), refused, *other])
    head = ("answers/s", "tokens/s", "first token, p50 / p95 s", "no answer yet")
    return _table(("users", *head, "refused", *(f"no passages: {name}" for name in head)), rows)


def _answered(row: Any) -> list[str]:
    first, left = row["first_s"], row["unanswered"]
    return [f"{row['answers_per_s']:.2f}", f"{row['tokens_per_s']:.0f}", f"{first['p50']:.1f} / {first['p95']:.1f}",
            f"{left['count'] if left else 0}"]  # fmt: skip


def reader() -> str:
    result = _result("reader")
    found = next(entry for name, entry in result.items() if name.endswith(".gguf"))
    first, cold = found["follow_up"], found["cold"]

    def rates(name: str) -> list[str]:
        sides = ("at once", "llama_cpp.server", "llama-server", "Llama, one by one")
        return [f"{found[name][side]:.3g}" if side in found[name] else "-" for side in sides]

    def waits(name: str) -> list[str]:
        sides = (f"{side}, {name}" for side in ("ours", "llama_cpp.server", "llama-server"))
        return [*(f"{found['gap'][side]:.2f}" if side in found["gap"] else "-" for side in sides), "-"]

    rows = [
        ["eight long answers at once, tokens/s", *rates("talking")],
        ["eight prompts of a passage with short answers at once, tokens/s", *rates("together")],
        ["longest gap in an answer while a prompt of 2,000 tokens comes in, s", *waits("longest")],
        ["until that prompt has its first token, s", *waits("first of the long one")],
        ["first question over five passages, to its first token, s", f"{first['first']:.2f}", "-", "-",
         f"{first['Llama, first']:.2f}; bare evaluation {first['Llama, bare evaluation of the first']:.2f}"],
        ["follow-up over the same passages, s", f"{first['follow-up, the same passages']:.2f}", "-", "-",
         f"{first['Llama, follow-up worded anew']:.2f} worded anew; "
         f"{first['Llama, follow-up as it stands']:.2f} as it stands"],
        ["follow-up with two new passages, s", f"{first['follow-up, two new passages']:.2f}", "-", "-", "-"],
        [f"prompt with examples ({cold['kept']:.0f} of {cold['tokens']:.0f} tokens), first process, then another, s",
         f"{cold['first process']:.2f}, {cold['second process']:.2f}", "-", "-", "-"],
    ]  # fmt: skip
    if soak := found.get("soak"):
        held = soak["megabytes"]
        rows += [
            [f"32 clients for {soak['seconds']:.0f} s: answers, stopped early; mixed, failed",
             f"{soak['answers']:,}, {soak['stopped']:,}; {soak['mixed']}, {soak['failed']}", "-", "-", "-"],
            ["memory meanwhile, MB: after a tenth, at the end", f"{held[0]:,.0f}, {held[-1]:,.0f}", "-", "-", "-"],
        ]  # fmt: skip
    for form, entry in result.get("alike", {}).items():
        if isinstance(entry, dict) and "same_texts" in entry:
            same = f"{entry['same_texts']:.1%} of texts, {entry['same_tokens']:.1%} of tokens"
            rows.append([f"greedy, the same as transformers: {form}", same, "-", "-", "-"])
    sides = ("here", "llama-cpp-python's server", "llama.cpp's server, 8 slots", "llama-cpp-python's `Llama`")
    return _table(("", *sides), rows)


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
         for part in ("reader", "oracle") for name, shares in _part("contradictions", part)["outcomes"].items()],
    )  # fmt: skip


def answers() -> str:
    part, beside = _part("answers", "squad"), _result("answers").get("beside", {"measures": {}})
    bare = _part("answers", "squad without adapter")
    columns = {
        f"bare ({bare['questions']})": bare["measures"]["retrieved"],
        "every answer": part["measures"]["retrieved"],
        "as shipped": part["at the threshold"],
        **{
            f"every answer, {said} ({beside['questions']})": beside["measures"][name]
            for name, said in (("gold", "right passage given"), ("none", "no passage"))
            if name in beside["measures"]
        },
    }
    names = ("f1, answerable", "contained, answerable", "f1, all", "abstention recall", "abstention precision",
             "citation precision", "citation recall", "faithfulness")  # fmt: skip
    rows = [[name, *(_interval(found[name]) if name in found else "-" for found in columns.values())] for name in names]
    return _table((f"measure ({part['questions']} questions)", *columns), rows)


def sizes() -> str:
    part = _part("answers", "sizes")
    rows = [
        [name, *(_interval(row[key]) for key in ("f1, answerable", "f1, all")),
         *(f"{row['latency_ms'][key][0] / 1000:.2f}" for key in ("p50", "p95")), f"{row['peak_mb']:,}",
         *(f"{row[key]:.3f}" for key in ("f1 per second", "f1 per GB"))]
        for name, row in part["rows"].items()
    ]  # fmt: skip
    return _table((f"reader ({part['questions']} questions)", "f1, answerable", "f1, all", "p50, s", "p95, s",
                   "memory at most, MB", "f1 of all per second", "per GB"), rows)  # fmt: skip


def confidence() -> str:
    rows = []
    tuned, part = _part("answers", "tune"), _part("answers", "squad")
    rows.append(["3 articles, cross-fitted", f"{tuned['questions']}", _interval(list(tuned["auc"].values())), "-",
                 f"{tuned['error']:.3f}", *(f"{100 * tuned['given'][kind]:.0f} %" for kind in
                                            ("right", "wrong", "unanswerable"))])  # fmt: skip
    found = part["confidence"]
    rows.append(["25 articles", f"{part['questions']}", *(_interval(list(found[key].values()))
                                                          for key in ("auc", "auc_of_cosine")),
                 f"{found['error']:.3f}", *(f"{100 * found['still given'][kind]['value']:.0f} %" for kind in
                                            ("right", "wrong", "to unanswerable questions"))])  # fmt: skip
    return _table(("SQuAD 2.0 dev", "questions", "AUC", "of the cosine alone", "off by", "right answers still given",
                   "wrong ones", "to unanswerable questions"), rows)  # fmt: skip


def injection() -> str:
    result = _result("injection")
    rows = []
    for reader, runs in result["runs"].items():
        for kind in (*result["texts"], "all"):
            without, having = (runs[name][kind] for name in ("without", "with"))
            rows.append([reader, kind, f"{having['trials']}",
                         *(f"{100 * one['reached']:.0f} %" for one in (without, having)),
                         *(f"{100 * share:.0f} %" for share in (without["said"], having["said"],
                                                                having["said, strict"])),
                         f"{100 * having['credited to others']:.0f} %"])  # fmt: skip
    return _table(("reader", "kind", "trials", "reaches the prompt, without", "with", "said, without", "with",
                   "with, strict", "with, credited to an honest document"), rows)  # fmt: skip


def bias() -> str:
    return _table(
        ("swapped", "pairs", "answer changed", "right in one, not in the other", "first right", "second right"),
        [[name, f"{values['pairs']}", *(_interval(list(values[key].values())) for key in
                                        ("changed", "verdict changed", "first right", "second right"))]
         for name, values in _result("bias")["swapped"].items()],
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
                    *(str(entry[key] or "") for key in ("mb_per_s", "pages_per_s")),
                    "" if tool == "ragfm" else str(entry["ragfm_times_faster"] or ""),
                ]
            )
    return _table(("format", "tool", "read", "words", "headings", "cells", "MB/s", "pages/s", "ragfm faster ×"), rows)


def parsed() -> str:
    entry = _result("parse")["coverage"]
    rows = [[f"**{entry['in']} of {entry['files']}** ({entry['share']:.1%}) are in", ""]]
    rows += [[path, why.replace("|", "\\|")] for path, why in sorted((entry["failed"] | entry["skipped"]).items())]
    return _table(("file", "why not"), rows)


def bm25() -> str:
    result = _result("bm25")
    names = ("ragfm", "bm25s", "tantivy")
    keys = [key for key in result["ragfm"] if key != "version"]
    rows = [[key, *(f"{result[name][key]}" for name in names)] for key in keys]
    return _table(("", *(f"{name} {result[name]['version']}" for name in names)), rows)


def transfer() -> str:
    columns = {"before": "before [95 %]", "adapter": "the adapter alone (p)", "own": "an adapter of its own (p)",
               "after": "as it comes (p)", "every answer": "every answer"}  # fmt: skip

    def told(entry: Any, measure: str, how: str) -> str:
        value = entry[how]["measures"]["retrieved"].get(measure) if how in entry else None
        beside = entry["differences"].get(how, {}).get(measure) if how != "every answer" else None
        return _interval(value) + (f" ({_p(beside[3])})" if beside else "")

    rows = [
        [f"{name} ({entry['questions']})", measure, *(told(entry, measure, how) for how in columns)]
        for name, entry in _result("transfer").items()
        for measure in (("exact, answerable",) if "macro_f1" in entry["before"] else _TRANSFERRED)
    ]
    return _table(("set (questions)", "measure", *columns.values()), rows)


def adapted_retriever() -> str:
    rows = []
    for part, entry in _result("adapt_retriever")["parts"].items():
        for mode, row in entry["ndcg"].items():
            rows.append([part, mode, *(_interval(row[key]) for key in ("before", "after")),
                         f"{row['difference'][0]:+.3f} [{row['difference'][1]:+.3f}, {row['difference'][2]:+.3f}]",
                         _p(row["p"]), f"{entry['processor_seconds'] / 60:.0f}"])  # fmt: skip
    return _table(("what learned", "search", "before [95 %]", "after", "difference", "p", "processor minutes"), rows)


def adapted_methods() -> str:
    result, rows = _result("adapt_methods"), []
    names = ("f1, answerable", "abstention precision", "abstention recall", "right passage cited")
    for method, row in result["rows"].items():
        values = [_interval(row["measures"][name]) if name in row["measures"] else "-" for name in names]
        numbers = ["-"] * 4
        if "learned" in row:  # the reader as it is has learned nothing
            numbers = [f"{row['learned']:,}", f"{row['processor_seconds'] / 60:.1f}", f"{row['peak_mb']:,}",
                       f"{row['loss']['first']:.2f} → {row['loss']['last_5']:.2f}"]  # fmt: skip
        rows.append([method, *numbers, *values])
    head = ("method", "numbers that learn", "processor minutes", "peak MB", "loss of a token, first and last steps")
    return _table((*head, *names), rows)


TABLES: dict[str, Callable[[], str]] = {
    table.__name__: table
    for table in (
        retrieval, retrieval_more, goals, peers_quality, peers_cost, peers_versions, multihop, languages,
        languages_weights, languages_chosen, embedding, reader, server, start, collection, collection_more, index, bm25,
        parse, parsed, citations, quotations, contradictions, answers, sizes, confidence, injection, bias,
        adapted_retriever, adapted_methods, transfer,
    )
}  # fmt: skip

# --- Inside ------------------------------------------------------------------------------------------------------

_MEASURES = ("nDCG@10", "MRR@10", "recall@5", "recall@10", "recall@100")
_TRANSFERRED = ("f1, answerable", "contained, answerable", "f1, all", "abstention recall", "abstention precision",
                "citation precision")  # fmt: skip


def _made(table: Callable[[], str]) -> str:
    try:
        return table()
    except FileNotFoundError:
        return "Not measured yet."


def _result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _part(name: str, part: str) -> Any:
    try:
        return _result(name)[part]
    except KeyError:
        raise FileNotFoundError(part) from None


def _interval(found: list[float] | None) -> str:
    if found is None:
        return "-"
    value, low, high = found
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


if __name__ == "__main__":
    main()
