"""Write the tables of docs/benchmarks.md, between their markers, from the files in `results/`.

python benchmarks/tables.py [--check]
python benchmarks/tables.py --readme

With --check, the page is only compared, and a difference is an error. --readme writes the table of benchmarks/README.md
from catalog.toml, the results and the history of the code instead.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import catalog

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
README = Path(__file__).parent / "README.md"
_MILLIONS = (1, 10, 100, 500)
_MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.S)


def render(page: str) -> str:
    """The page with all tables rendered from the results. Raises KeyError for an unknown table name."""

    def replacement(match: re.Match[str]) -> str:
        try:
            table = TABLES[match[2]]()
        except FileNotFoundError:
            table = "Not measured yet."
        return f"{match[1]}{table}\n{match[3]}"

    return _MARKED.sub(replacement, page)


def main() -> None:
    if "--readme" in sys.argv[1:]:
        above, _, _ = README.read_text(encoding="utf-8").partition("\n## ")
        README.write_text(f"{above}\n{catalog.readme()}\n", encoding="utf-8")
        return
    old = PAGE.read_text(encoding="utf-8")
    new = render(old)
    if "--check" in sys.argv[1:]:
        sys.exit("docs/benchmarks.md differs from the results. Run python benchmarks/tables.py." if new != old else 0)
    PAGE.write_text(new, encoding="utf-8")


# --- Tables ------------------------------------------------------------------------------------------------------


def retrieval() -> str:
    rows = []
    for name, entry in _result("retrieval")["sets"].items():
        measure, modes = entry["measure"], entry["modes"]
        row = entry["hybrid_beside_better"][measure]
        value, low, high = modes["hybrid"]["measures"][measure]
        rows.append(
            [
                name if entry["role"] == "reported" else f"{name} (tuning)",
                f"{entry['questions']:,} / {entry['documents']:,}",
                measure,
                *(f"{modes[mode]['measures'][measure][0]:.3f}" for mode in ("dense", "keyword")),
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
    return _table(("set", "mode", *_MEASURES, "p50 ms", "p95 ms", "embedding p50 ms"), rows)


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
            for search, run in figures["ways"].items():
                values = (run["measures"][key] for key in ("nDCG@10", "MRR@10", "recall@5"))
                minus = run.get("ragfm_minus_this", {}).get("nDCG@10")
                difference = f"{minus[0]:+.3f} ({_p(minus[3])})" if minus else ""
                rows.append([name, peer, search, *(f"{value[0]:.3f}" for value in values), difference])
    return _table(("set", "framework", "search", "nDCG@10", "MRR@10", "recall@5", "ragfm − this, nDCG@10 (p)"), rows)


def peers_reranked() -> str:
    rows = []
    for name, entry in _result("peers_reranked")["sets"].items():
        for peer, figures in entry["peers"].items():
            for search, run in figures["ways"].items():
                minus = run.get("ragfm_minus_this", {}).get("nDCG@10")
                difference = f"{_difference(minus[:3])} ({_p(minus[3])})" if minus else ""
                values = _interval(run["measures"]["nDCG@10"]), f"{run['measures']['MRR@10'][0]:.3f}"
                label = f"**{search}**" if search == figures["reranked"] else search
                rows.append([f"{name}, {entry['questions']}", peer, label, *values, difference, f"{run['cpu_ms']:.0f}"])
    columns = ("nDCG@10 [95 %]", "MRR@10", "ragfm − this, nDCG@10 [95 %] (p)", "CPU ms")
    return _table(("set, questions", "framework", "search", *columns), rows)


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
            "other searches, p50 / p95 ms",
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
    return _table(("set", "mode", "recall@5 [95 %]", "all gold passages in top 5"), rows)


def several_hops() -> str:
    rows = [
        [
            name,
            hops,
            *(f"{figures[measure]['value']:.3f}" for measure in ("recall@5", "all@5", "MRR@10")),
            "" if hops == "1" else f"{figures['all@5']['p']:.3f}",
            f"{figures['second_round']:.0%}",
            f"{figures['cpu_ms']:.0f}",
        ]
        for name, entry in _result("multihop")["several_hops"].items()
        for hops, figures in entry["hops"].items()
    ]
    columns = ("set", "hops", "recall@5", "all gold passages in top 5", "MRR@10", "p", "second hop", "CPU ms")
    return _table(columns, rows)


def sub_questions() -> str:
    ways = {
        "question": "from the question alone",
        "passages": "with the first passages",
        "right": "MuSiQue's own, with the right answers",
    }
    rows = []
    for reader, by_way in _result("multihop")["sub_questions"].items():
        for way, by_set in by_way.items():
            for name, values in by_set.items():
                cells = []
                for base in ("one hop", "two hops"):
                    merged = values[base]
                    cells += [f"{merged['without']:.3f}", f"{merged['with']:.3f} ({_p(merged['p'])})"]
                by_hand = way == "right"
                seconds = "-" if by_hand else f"{values['reader_cpu_seconds']:.1f}"
                row = [name, ways[way], "-" if by_hand else reader, str(values["questions"]), *cells, seconds]
                if row not in rows:
                    rows.append(row)
    head = ("set", "sub-questions", "reader", "questions", "one hop", "with them", "two hops", "with them", "CPU s")
    return _table(head, rows)


def code() -> str:
    rows = [
        [way, *(f"{by_mode[mode][name]['value']:.3f}" for name in ("MRR@10", "recall@5") for mode in _MODES)]
        for way, by_mode in _result("code")["ways"].items()
    ]
    return _table(("files as", *(f"{name} {mode}" for name in ("MRR@10", "recall@5") for mode in _MODES)), rows)


def multilingual() -> str:
    rows = []
    for embedder, entries in _result("multilingual")["embedders"].items():
        for language, entry in entries.items():
            for asked in dict.fromkeys((language, "en")):
                figures = entry[f"asked in {asked}"]
                rows.append([embedder, language, asked, *(f"{figures[mode]:.3f}" for mode in _MODES)])
    return _table(("embedder", "documents", "questions", *(f"MRR@10 {mode}" for mode in _MODES)), rows)


def languages() -> str:
    rows = []
    for language, entry in _result("languages")["sets"].items():
        values = [figures["measures"][key][0] for key in ("MRR@10", "recall@5") for figures in entry["modes"].values()]
        rows.append([language, *(f"{value:.3f}" for value in values)])
    modes = ("dense", "keyword", "hybrid")
    return _table(("language", *(f"MRR@10 {mode}" for mode in modes), *(f"recall@5 {mode}" for mode in modes)), rows)


def languages_weights() -> str:
    entries = _part("languages", "weights")
    shown = ("0.0", "0.05", "0.1", "0.15", "0.2", "0.3", "0.4", "0.6", "1.0")
    rows = [[language, *(f"{entry['tried'][weight]:.3f}" for weight in shown)] for language, entry in entries.items()]
    return _table(("language", *(f"weight {float(weight):g}" for weight in shown)), rows)


def languages_chosen() -> str:
    questions = {f"{language} only": entry["reported"] for language, entry in _part("languages", "weights").items()}
    for both, entry in _part("languages", "mixed").items():
        questions |= {f"{language}, collection of {both}": row for language, row in entry["asked_in"].items()}
    rows = []
    for name, reported in questions.items():
        default = reported["default"]
        difference = (
            f"{default['difference']:+.3f} [{default['low']:+.3f}, {default['high']:+.3f}] ({_p(default['p'])})"
        )
        values = (reported[key]["value"] for key in ("keyword", "0.6", "default"))
        rows.append([name, *(f"{value:.3f}" for value in values), difference if default["difference"] else "equal"])
    (foreign,) = {key for reported in questions.values() for key in reported} - {"keyword", "0.6", "default"}
    by_language = f"{foreign} in foreign languages"
    return _table(("questions", "keyword", "weight 0.6", by_language, f"{by_language} − 0.6 [95 %] (p)"), rows)


def embedding() -> str:
    results = _result("embed")["rows"]
    fastest_peer = max(row["texts_per_s"] for row in results if not row["form"])
    rows = [
        [
            row["contender"],
            row["form"] or "-",
            f"{row['texts_per_s']:.1f}",
            f"{row['texts_per_s'] / fastest_peer:.2f}",
            f"{row['tokens_per_s']:,}",
            f"{100 * row['of_peak_bf16']:.0f} %",
            f"{row['lowest_cosine']:.6f}",
        ]
        for row in results
    ]
    head = (
        "framework",
        "form",
        "paragraphs/s",
        "× fastest peer",
        "tokens/s",
        "share of bf16 GEMM peak",
        "minimum cosine to fp32",
    )
    return _table(head, rows)


def server() -> str:
    result = _result("server")
    peer = {row["users"]: row for row in result["llama_cpp.server, no passages"]}

    def figures(row: Any) -> list[str]:
        first, unanswered = row["first_s"], row["unanswered"]
        return [
            f"{row['answers_per_s']:.2f}",
            f"{row['tokens_per_s']:.0f}",
            f"{first['p50']:.1f} / {first['p95']:.1f}",
            f"{unanswered['count'] if unanswered else 0}",
        ]

    rows = []
    for row in result["ragfm serve"]:
        refusals = row["refusal_s"]
        refused = f"{row['refused']}, within {1000 * refusals['most']:.0f} ms" if refusals else f"{row['refused']}"
        peer_figures = figures(peer[row["users"]]) if row["users"] in peer else [""] * 4
        rows.append([f"{row['users']}", *figures(row), refused, *peer_figures])
    head = ("answers/s", "tokens/s", "first token, p50 / p95 s", "unanswered")
    return _table(("users", *head, "refused", *(f"peer: {name}" for name in head)), rows)


def fair() -> str:
    parts = _result("fair")["parts"]
    rows = [
        [
            name,
            *(f"{part[side]['p50']:.3g} / {part[side]['p95']:.3g}" for side in ("idle_s", "busy_s")),
            f"{part['ratio_p95']:.1f}",
        ]
        for name, part in parts.items()
    ]
    return _table(("request of the light key", "idle, p50 / p95 s", "next to the heavy key", "ratio of p95"), rows)


def reader() -> str:
    results = _result("reader")
    alike = results.pop("alike")
    result = next(entry for entry in results.values() if "soak" in entry)

    def rates(label: str, name: str) -> list[list[str]]:
        """A row for each processor and weight format that was measured."""
        sides = ("at once", "llama_cpp.server", "llama-server", "Llama, one by one")
        return [
            [
                f"{label}; {machine}",
                *(f"{entry[name][side]:.3g}" if side in entry[name] else "-" for side in sides),
            ]
            for machine, entry in results.items()
        ]

    def waits(name: str) -> list[str]:
        keys = [f"{side}, {name}" for side in ("ours", "llama_cpp.server", "llama-server")]
        return [*(f"{result['gap'][key]:.2f}" if key in result["gap"] else "-" for key in keys), "-"]

    def row(label: str, ours: str, high_level: str = "-") -> list[str]:
        return [label, ours, "-", "-", high_level]

    times, cold = result["follow_up"], result["cold"]
    rows = [
        *rates("8 long answers at once, tokens/s", "talking"),
        *rates("8 prompts with a passage and short answers at once, tokens/s", "together"),
        ["longest pause of a stream while a prompt of 2,000 tokens is evaluated, s", *waits("longest")],
        ["time to first token of that prompt, s", *waits("first of the long one")],
        row(
            "time to first token: first question, five passages, s",
            f"{times['first']:.2f}",
            f"{times['Llama, first']:.2f}; evaluation alone {times['Llama, bare evaluation of the first']:.2f}",
        ),
        row(
            "follow-up, same passages, s",
            f"{times['follow-up, the same passages']:.2f}",
            f"{times['Llama, follow-up rewritten']:.2f} rewritten; "
            f"{times['Llama, follow-up as it stands']:.2f} as asked",
        ),
        row("follow-up, two new passages, s", f"{times['follow-up, two new passages']:.2f}"),
        row(
            f"prompt with examples ({cold['kept']:.0f} of {cold['tokens']:.0f} tokens): first, second process, s",
            f"{cold['first process']:.2f}, {cold['second process']:.2f}",
        ),
    ]
    soak = result["soak"]
    first_mb, *_, last_mb = soak["megabytes"]
    rows += [
        row(
            f"32 clients for {soak['seconds']:.0f} s: answers, cancelled; mixed up, failed",
            f"{soak['answers']:,}, {soak['stopped']:,}; {soak['mixed']}, {soak['failed']}",
        ),
        row("memory in that run, MB: after a tenth, at the end", f"{first_mb:,.0f}, {last_mb:,.0f}"),
    ]
    for form, entry in alike.items():
        if isinstance(entry, dict) and "same_texts" in entry:
            shares = f"{entry['same_texts']:.1%} of texts, {entry['same_tokens']:.1%} of tokens"
            rows.append(row(f"greedy output equal to transformers': {form}", shares))
    sides = ("ragfm", "llama-cpp-python's server", "llama.cpp's server, 8 slots", "llama-cpp-python's `Llama`")
    return _table(("", *sides), rows)


def start() -> str:
    seconds = _result("start")["seconds"]
    return _table(
        ("process", "seconds"), [[name, f"{value:.2f}"] for name, value in seconds.items() if value is not None]
    )


def machines() -> str:
    """Tokens per second of one answer and of eight, for each load of the machine."""
    rows = []
    for processor, entry in _result("machine").items():
        loads = entry["reader"]
        sides = {side: None for rates in loads.values() for side in rates}
        for side in sides:
            rates = [loads[load].get(side, {}) for load in loads]
            pairs = [" / ".join(f"{value:.0f}" for value in rate.values()) or "-" for rate in rates]
            rows.append([f"{processor}, {entry['threads']} cores", side, *pairs])
    loads = next(iter(_result("machine").values()))["reader"]
    return _table(("processor", "one answer / eight, tokens/s", *loads), rows)


def collection() -> str:
    rows = []
    for size, entry in _result("collection")["results"].items():
        for mode in ("dense", "keyword", "hybrid"):
            for share in ("all", "50 %", "1 %"):
                first, *times = (entry[f"{mode}, {share}"][key] for key in ("first_ms", "p50_ms", "p95_ms"))
                values = [f"{first:.0f}", *(f"{value:.1f}" for value in times)]
                rows.append([f"{int(size):,}", f"{mode}, {share}", *values])
    return _table(("chunks", "mode, documents allowed", "first ms", "p50 ms", "p95 ms"), rows)


def collection_more() -> str:
    rows = []
    for size, entry in _result("collection")["results"].items():
        built = f"{entry['commit_s']:.0f} / {entry['view_s']:.0f}"
        first = f"{entry['first from disk_ms'] / 1000:.1f} / {entry['first from memory_ms'] / 1000:.1f}"
        added = " / ".join(f"{entry['add 1,000'][key]}" for key in ("commit_ms", "view_ms", "next_search_ms"))
        rows.append([f"{int(size):,}", entry["index"]["kind"], f"{entry['recall@10']:.3f}", built, first, added])
    head = (
        "chunks",
        "index",
        "recall@10",
        "commit / build views, s",
        "first search, from disk / memory, s",
        "add 1,000: commit / views / next search, ms",
    )
    return _table(head, rows)


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
    head = ("claim", "questions", "right paragraph verified", "only another paragraph", "swapped claim verified")
    return _table(head, rows)


def quotations() -> str:
    kinds = ("verified", "fabricated", "stitched", "misattributed")
    rows = []
    for change, counts in _result("citations")["quotations"].items():
        total = sum(counts.values())
        rows.append([change, f"{total:,}", *(f"{100 * counts.get(kind, 0) / total:.1f} %" for kind in kinds)])
    return _table(("quotation", "count", *kinds), rows)


def contradictions() -> str:
    rows = []
    for part in ("reader", "oracle"):
        for name, shares in _part("contradictions", part)["outcomes"].items():
            rows.append([name, *(f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in shares.values())])
    return _table(("answers", "right", "misled", "noticed"), rows)


def answers() -> str:
    part, given = _part("answers", "squad"), _result("answers").get("beside", {"measures": {}})
    bare = _part("answers", "squad without adapter")
    columns = {
        f"bare ({bare['questions']})": bare["measures"]["retrieved"],
        "nothing withheld": part["measures"]["retrieved"],
        "as shipped": part["at the threshold"],
    }
    for context, label in (("gold", "right passage"), ("none", "no passage")):
        if context in given["measures"]:
            columns[f"nothing withheld, {label} ({given['questions']})"] = given["measures"][context]
    names = (
        "f1, answerable",
        "contained, answerable",
        "f1, all",
        "abstention recall",
        "abstention precision",
        "citation precision",
        "citation recall",
        "faithfulness",
    )
    rows = [
        [name, *(_interval(measures[name]) if name in measures else "-" for measures in columns.values())]
        for name in names
    ]
    return _table((f"measure ({part['questions']} questions)", *columns), rows)


def sizes() -> str:
    part = _part("answers", "sizes")
    rows = [
        [
            name,
            *(_interval(row[key]) for key in ("f1, answerable", "f1, all")),
            *(f"{row['latency_ms'][key][0] / 1000:.2f}" for key in ("p50", "p95")),
            f"{row['peak_mb']:,}",
            *(f"{row[key]:.3f}" for key in ("f1 per second", "f1 per GB")),
        ]
        for name, row in part["rows"].items()
    ]
    head = ("f1, answerable", "f1, all", "p50, s", "p95, s", "peak MB", "f1, all, per second", "f1, all, per GB")
    return _table((f"reader ({part['questions']} questions)", *head), rows)


def readers_confidence() -> str:
    rows = [
        [
            row["reader"],
            row["set"],
            f"{row['right']} of {row['answerable']}",
            f"{row['right, answered']} of {row['right']}",
            f"{row['right quote shown']} of {row['answerable']}",
            f"{row['no answer, noticed']} of {row['no answer']}",
            f"{row['verified, right']} of {row['verified']}",
            *("-" if row[key] is None else f"{row[key]:.2f}" for key in ("auc", "refit")),
        ]
        for row in _part("confidence", "rows")
    ]
    head = ("reader", "set", "right", "of these answered", "right quote shown", "noticed", "verified and right")
    return _table((*head, "AUC", "refit"), rows)


def verified_citations() -> str:
    rows = [
        [
            row["reader"],
            row["set"],
            f"{row['right']} of {row['answerable']}",
            f"{row['right, answered']} of {row['right']}",
            f"{row['wrong, answered']} of {row['questions'] - row['right']}",
            f"{row['verified, right']} of {row['verified']}",
            "-" if row["auc"] is None else f"{row['auc']:.2f}",
            f"{row['citations that state it']} of {row['citations labelled']}",
            f"{row['citations verified that state it']} of {row['citations verified']}",
        ]
        for row in _part("verified", "rows")
    ]
    head = ("reader", "set", "right", "of these answered", "wrong, answered", "verified and right", "AUC")
    return _table((*head, "quotes that state it", "of the verified ones"), rows)


def answer_languages() -> str:
    rows = []
    for row in (*_part("answer_languages", "rows"), *_held_out("answer_languages")):
        value, low, high = row["utility"]
        verified = (f"{row[f'{key}, right']} of {row[key]}" for key in ("verified before", "verified"))
        rows.append(
            [
                row["reader"],
                row["language"],
                f"{row['right before']}, {row['right']} of {row['answerable']}",
                f"{row['right, answered']}, {row['right, shown']}",
                f"{row['right quote shown']}",
                f"{row['wrong, answered before']}, {row['wrong, answered']}",
                f"{row['noticed before']}, {row['noticed']} of {row['no answer']}",
                ", ".join(verified),
                "-" if row["auc"] is None else f"{row['auc']:.2f}",
                f"{value:+.2f} [{low:+.2f}, {high:+.2f}]",
            ]
        )
    head = (
        "reader",
        "language",
        "right before, now",
        "right: answered, shown",
        "right quote shown",
        "wrong and answered before, now",
        "noticed before, now",
        "verified and right before, now",
        "AUC",
        "utility",
    )
    return _table(head, rows)


def answer_languages_fit() -> str:
    rows = [
        [
            row["left out"],
            f"{row['right']} of {row['answers']}",
            f"{row['auc']:.2f}",
            f"{row['right, answered']}",
            f"{row['wrong, answered']}",
        ]
        for row in _part("answer_languages_fit", "left out")
    ]
    return _table(("left out", "right", "AUC", "right, answered", "wrong, answered"), rows)


def _held_out(name: str) -> list[dict[str, Any]]:
    entries = _part(name, "languages that were not fitted to")
    return [{"reader": reader, "language": "ru, zh and ar", **row} for reader, row in entries.items()]


def confidence() -> str:
    tuned, part = _part("answers", "tune"), _part("answers", "squad")
    result = part["confidence"]
    rows = [
        [
            "3 articles, cross-fitted",
            f"{tuned['questions']}",
            _interval(list(tuned["auc"].values())),
            "-",
            f"{tuned['error']:.3f}",
            *(f"{100 * tuned['given'][kind]:.0f} %" for kind in ("right", "wrong", "unanswerable")),
        ],
        [
            "25 articles",
            f"{part['questions']}",
            *(_interval(list(result[key].values())) for key in ("auc", "auc_of_cosine")),
            f"{result['error']:.3f}",
            *(
                f"{100 * result['still given'][kind]['value']:.0f} %"
                for kind in ("right", "wrong", "to unanswerable questions")
            ),
        ],
    ]
    head = (
        "SQuAD 2.0 dev",
        "questions",
        "AUC",
        "AUC of the cosine alone",
        "calibration error",
        "right answers given",
        "wrong answers given",
        "unanswerable questions answered",
    )
    return _table(head, rows)


def injection() -> str:
    result = _result("injection")
    rows = []
    for name, runs in result["runs"].items():
        for kind in (*result["texts"], "all"):
            without, protected = (runs[defence][kind] for defence in ("without", "with"))
            shares = (
                without["reached"],
                protected["reached"],
                without["said"],
                protected["said"],
                protected["said, strict"],
                protected["credited to others"],
            )
            rows.append([name, kind, f"{protected['trials']}", *(f"{100 * share:.0f} %" for share in shares)])
    head = (
        "reader",
        "kind",
        "trials",
        "in the prompt, without",
        "with",
        "in the answer, without",
        "with",
        "with, strict",
        "with, credited to an honest document",
    )
    return _table(head, rows)


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
    return _table(("kind", "build s", "file MB", "recall@10", "p50 / p95 ms", "time ÷ raw FAISS"), rows)


def backends() -> str:
    return _table(("side", *_BACKEND_COLUMNS), _backends(_result("backends")))


def backends_more() -> str:
    results = sorted((_result(path.stem) for path in RESULTS.glob("backends_*.json")), key=lambda each: each["vectors"])
    rows = [[f"{result['vectors']:,}", *row] for result in results for row in _backends(result)]
    return _table(("chunks", "side", *_BACKEND_COLUMNS), rows)


_BACKEND_COLUMNS = (
    "rows ingested per CPU second",
    "recall@10",
    "least share of the hits",
    "CPU ms per search",
    "p50 ms",
    "p95 ms",
)


def _backends(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for side, entry in result["sides"].items():
        shares = [figures for figures in entry.values() if isinstance(figures, dict)]
        columns = (("recall@10", 3), ("hits", 2), ("cpu_ms", 1), ("p50_ms", 1), ("p95_ms", 1))
        figures = (" / ".join(f"{share[name]:.{digits}f}" for share in shares) for name, digits in columns)
        rows.append([side, f"{entry['rows_per_cpu_s']}" if "rows_per_cpu_s" in entry else "", *figures])
    return rows


def processes() -> str:
    columns = (
        ("searches_per_s", 0),
        ("p50_ms", 0),
        ("p95_ms", 0),
        ("server_cpu_ms", 1),
        ("database_and_users_cpu_ms", 1),
    )
    rows = [
        [count, *(f"{entry[name]:.{digits}f}" for name, digits in columns)]
        for count, entry in _result("processes")["servers"].items()
    ]
    head = ("searches/s", "p50 ms", "p95 ms", "CPU ms per search: server", "database and users")
    return _table(("servers", *head), rows)


def pictures() -> str:
    result = _result("pictures")
    return _table(
        ("vectors", "stored per page", "in memory", "CPU per page", "CPU per search", "… without images"),
        [
            [
                name,
                f"{model['vector_bytes_per_page'] / 1000:,.1f} kB",
                f"{model['memory_bytes_per_page'] / 1000:,.1f} kB",
                f"{1000 * model['embed']['cpu_seconds'] / result['pages']:.0f} ms",
                f"{model['search_ms']['cpu_p50']:.1f} ms",
                f"{model['search_ms_without_images']['cpu_p50']:.1f} ms",
            ]
            for name, model in result["models"].items()
        ],
    )


def capacity() -> str:
    """Measured bytes and seconds per chunk, times the number of chunks; articles / reports where they differ."""
    kinds = _result("capacity")["kinds"].values()
    million = _result("collection")["results"]["1000000"]
    committed = _result("backends")["sides"]["PostgreSQL, local"]["rows_per_cpu_s"]

    def row(name: str, unit: str, per_million: Sequence[float], source: str) -> list[str]:
        return [name, *(f"{' / '.join(amount(one * n) for one in per_million)} {unit}" for n in _MILLIONS), source]

    def amount(value: float) -> str:
        return f"{value:,.0f}" if value >= 20 else f"{value:.1f}" if value >= 2 else f"{value:.2f}"

    def of_kinds(key: str, divisor: float) -> list[float]:
        return [kind[key] * 1e6 / divisor for kind in kinds]

    return _table(
        ("", *(f"{n:,} M chunks" for n in _MILLIONS), "measured by"),
        [
            row("folder: catalog", "GB", of_kinds("folder_bytes", 1e9), "bench_capacity.py"),
            row("PostgreSQL: tables and their indexes", "GB", of_kinds("database_bytes", 1e9), "bench_capacity.py"),
            row("PostgreSQL: WAL of the ingest", "GB", of_kinds("wal_bytes", 1e9), "bench_capacity.py"),
            row("pgvector: table and index", "GB", of_kinds("pgvector_bytes", 1e9), "bench_capacity.py"),
            row("each searching machine: keyword view", "GB", of_kinds("keyword_view_bytes", 1e9), "bench_capacity.py"),
            row("… and vector view", "GB", [million["size_mb"]["vectors/*"] / 1e3], "bench_collection.py"),
            row("… hours to build both, on two cores", "h", [million["view_s"] / 3600], "bench_collection.py"),
            row("ingest: hours of one core", "h", of_kinds("ingest_cpu_ms", 3.6e6), "bench_capacity.py"),
            row("… of these, commits and views, by one process", "h", [1e6 / committed / 3600], "bench_backends.py"),
        ],
    )


def parse() -> str:
    rows = []
    for kind, tools in _result("parse")["formats"].items():
        for tool, entry in tools.items():
            recall = (entry["quality"].get(name, {}).get("median") for name in ("words", "headings", "cells"))
            rows.append(
                [
                    kind,
                    tool,
                    f"{entry['read']}/{entry['files']}",
                    *(f"{value:.3f}" if value is not None and entry["read"] else "" for value in recall),
                    *(str(entry[key] or "") for key in ("mb_per_s", "pages_per_s")),
                    "" if tool == "ragfm" else str(entry["ragfm_times_faster"] or ""),
                ]
            )
    return _table(
        ("format", "tool", "read", "words", "headings", "cells", "MB/s", "pages/s", "ragfm faster by ×"), rows
    )


def parser_sizes() -> str:
    rows = [
        [tool, str(entry["distributions"]), str(entry["mb"])] for tool, entry in _result("parse")["installed"].items()
    ]
    return _table(("tool", "distributions", "MB"), rows)


def table_questions() -> str:
    tools = _result("parse")["retrieval"]["tools"]
    rows = [
        [tool, *(f"{entry[key]:.3f}" if entry[key] else "" for key in ("docx", "xlsx", "pdf", "recall@5"))]
        for tool, entry in sorted(tools.items(), key=lambda item: -item[1]["recall@5"])
    ]
    return _table(("tool", "DOCX (15)", "XLSX (29)", "PDF (16)", "all"), rows)


def parsed() -> str:
    entry = _result("parse")["coverage"]
    rows = [[f"**{entry['in']} of {entry['files']}** ({entry['share']:.1%}) are indexed", ""]]
    rows += [
        [path, reason.replace("|", "\\|")] for path, reason in sorted((entry["failed"] | entry["skipped"]).items())
    ]
    return _table(("file", "reason"), rows)


def reports() -> str:
    keys = ("document@1", "document@5", "page@1", "page@5", "page@10")
    rows = []
    for label, name in (("before", "reports-retrieval-before"), ("now", "reports-retrieval-now")):
        result = _result(name)
        for mode in ("dense", "keyword", "hybrid", "ask"):
            if mode in result:
                found = result[mode]
                cells = [f"{found[key]:.2f} ({found['reporting'][key]:.2f})" for key in keys]
                rows.append([label, mode, *cells])
    return _table(["", "mode", *keys], rows)


def definitions() -> str:
    rows = []
    for manual in ("postgresql", "python", "git"):
        for label in ("before", "now"):
            result = _result(f"definitions-{manual}-{label}")
            for way, shares in result["ways"].items():
                rows.append([manual, label, way, f"{result['chunks']:,}", *map(_interval, shares.values())])
    return _table(("manual", "", "", "chunks", "first", "among three", "among five"), rows)


def instructions() -> str:
    keys = ("answered", "unsure", "not_found", "useful", "not useful", "answered, not useful")
    rows = []
    for label in ("before", "now"):
        manuals = _result(f"instructions-{label}")["manuals"]
        every = {key: sum(counts.get(key, 0) for counts in manuals.values()) for key in keys}
        for manual, counts in {**manuals, "all": every}.items():
            rows.append([manual, label, *(str(counts.get(key, 0)) for key in keys)])
    return _table(
        ("manual", "", "answered", "unsure", "not found", "useful", "not useful", "answered, not useful"), rows
    )


def _with_role(name: str, entry: dict[str, Any]) -> str:
    return f"{name.removesuffix(', tuning')} (tuning)" if entry["role"] == "tuning" else name


def ranking() -> str:
    keys = ("nDCG@10", "first 1", "first 5", "first 10")
    rows = []
    for name, entry in _part("ranking", "report").items():
        for ranking_, values in entry["ranked"].items():
            cells = [_interval(values["nDCG@10"]), *(f"{values[key][0]:.3f}" for key in keys[1:])]
            rows.append([_with_role(name, entry), ranking_, str(values["questions"]), *cells])
    return _table(("set", "ranked by", "questions", "nDCG@10 [95 %]", *keys[1:]), rows)


def ranking_differences() -> str:
    """Hybrid search now and with a fixed weight, next to the better of both indexes, and reranking."""
    rows = []
    for name, entry in _part("ranking", "report").items():
        by_ranking, cells = entry["ranked"], []
        for measure in ("first 5", "first 10"):
            hybrid, better = (
                max(by_ranking[ranking_][measure][0] for ranking_ in rankings)
                for rankings in (["hybrid"], ["dense", "keyword"])
            )
            cells.append(f"{hybrid:.3f} / {better:.3f}" + ("" if hybrid >= better else " **below**"))
        rows.append(
            [
                _with_role(name, entry),
                _difference(entry["differences"]["hybrid - fixed weight"]["nDCG@10"]),
                *cells,
                _difference(entry["differences"].get("reranked - hybrid, those that were reranked", {}).get("nDCG@10")),
            ]
        )
    head = ("set", "now − fixed weight, nDCG@10", "first 5: hybrid / better of both", "first 10", "reranked − hybrid")
    return _table(head, rows)


def ranking_weights() -> str:
    result = _part("ranking", "weights")
    rows = []
    for rule, entry in result["rules"].items():
        gains = {name: value["nDCG@10"] for name, value in entry["left out"].items()}
        lowest = min((name for name in gains if name != "mean"), key=lambda name: gains[name])
        rows.append(
            [
                rule,
                f"{entry['gains']['mean']['nDCG@10']:+.4f}",
                f"{gains['mean']:+.4f}",
                f"{gains[lowest]:+.4f} ({lowest})",
                f"{entry['left out']['mean']['first 1']:+.4f}",
            ]
        )
    rows.append(["best fixed weight of each set", f"{result['oracle']:+.4f}", "-", "-", "-"])
    return _table(
        ("weight depends on", "fitted on all", "fitted on the others: mean", "the worst set", "first hit, mean"), rows
    )


def ranking_documents() -> str:
    result = _part("ranking", "documents")
    keys = ("nDCG@10", "first 1", "first 5", "first 10")
    rows = [
        [name, result["left out"][name]["choice"], *(f"{gain[key]:+.3f}" for key in keys)]
        for name, gain in result["adopted"].items()
    ]
    return _table(("set", "chosen on the other sets", *(f"{key}" for key in keys)), rows)


def rerankers() -> str:
    result = _part("ranking", "rerank")
    sets = [name for name in result["search"] if name != "mean"]
    rows = []
    for name, values in result.items():
        if name not in ("questions", "chosen", "cpu_ms_of_20") and (name in result["shown"] or "SPLADE" in name):
            found = (values.get(one) for one in (*sets, "mean" if set(sets) <= set(values) else ""))
            cells = (f"{one['nDCG@10']:.3f} / {one['first 1']:.2f}" if one else "-" for one in found)
            rows.append([name, *cells])
    return _table(("nDCG@10 / first hit", *sets, "mean"), rows)


def other_rerankers() -> str:
    """Rerankers at the share that was best on the tuning sets, and the verifier, with their differences to search."""

    def cell(row: dict[str, Any]) -> str:
        difference, low, high = row["difference"]
        return f"{row['nDCG@10']:.3f} ({difference:+.3f} [{low:+.3f}, {high:+.3f}])"

    rows = []
    for label, entry in _part("ranking", "rerankers").items():
        for name, row in entry["sets"].items():
            shares = [key for key in row if key.startswith("share ")]
            cells = (cell(row[key]) for key in ("verifier", *(key for key in shares if key != "share 0.7")))
            rows.append([label, name, str(row["questions"]), f"{row['search']['nDCG@10']:.3f}", *cells])
    shown = ("verifier", "share 0.3", "share 0.5", "share 1.0")
    return _table(("reranker", "set", "questions", "search", *shown), rows)


def learned_sparse() -> str:
    variants = ("sparse", "sparse for BM25", "third term, 0.2", "third list, 0.2")
    rows = []
    for name, entry in _result("sparse").items():
        if not isinstance(entry, dict) or "ranked" not in entry:
            continue
        cells = [f"{entry['ranked']['hybrid']['nDCG@10']:.3f}"]
        for variant in variants:
            difference, low, high = entry["ranked"][variant]["difference"]
            cells.append(f"{entry['ranked'][variant]['nDCG@10']:.3f} ({difference:+.3f} [{low:+.3f}, {high:+.3f}])")
        found = " / ".join(f"{value:.3f}" for value in entry["golds found"].values())
        rows.append([name, str(entry["questions"]), *cells, found])
    return _table(("set", "questions", "hybrid", *variants, "golds among the candidates, without / with"), rows)


def neighbours() -> str:
    rows = []
    for name, entry in _part("ranking", "neighbours").items():
        shares = [values for values in entry.values() if isinstance(values, dict)]
        cells = (" / ".join(f"{one[key]:.2f}" for key in ("first 1", "first 5", "first 10")) for one in shares)
        value, low, high = (f"{value:+.3f}" for value in entry["0.1"]["difference"])
        rows.append([name, str(entry["questions"]), *cells, f"{value} [{low}, {high}]"])
    head = ("first 1 / 5 / 10 by share", "questions", "0", "0.05", "0.1", "0.2", "0.3", "nDCG@10 with 0.1")
    return _table(head, rows)


def chunking() -> str:
    keys = ("nDCG@10", "first 1", "first 5", "first 10", "within 1280 tokens")
    rows = []
    for name, entry in _result("chunking")["sets"].items():
        for variant, values in entry.items():
            if isinstance(values, dict):
                differences = values.get("differences", {})
                cells = (f"{values[key]:.3f}" if key in values else "-" for key in keys)
                to_default = (_difference(differences.get(key)) for key in ("nDCG@10", "within 1280 tokens"))
                rows.append([name, variant, f"{values['chunks']:,}", *cells, *to_default])
    columns = ("nDCG@10", "first 1", "first 5", "first 10", "within 1,280 tokens")
    return _table(("set", "chunks of", "chunks", *columns, "− default, nDCG@10", "within 1,280 tokens"), rows)


def contexts() -> str:
    rows = []
    for reader, by_set in _result("contexts")["readers"].items():
        for name, entry in by_set.items():
            for variant in ("title and headings", "first sentence of the document", "reader"):
                row = [name, f"sentence by {reader}" if variant == "reader" else variant]
                row.append(f"{entry['questions']} / {entry['chunks']}")
                for measures in entry[variant].values():
                    for measure in ("nDCG@10", "first 5"):
                        value, difference, _, _, p = measures[measure]
                        change = "" if variant == "title and headings" else f" ({difference:+.3f}, {_p(p)})"
                        row.append(f"{value:.3f}{change}")
                if row not in rows:
                    rows.append(row)
    columns = (f"{mode} {measure}" for mode in _MODES for measure in ("nDCG@10", "first 5"))
    return _table(("set", "context", "questions / chunks", *columns), rows)


def report_answers() -> str:
    kinds = ["right", "unsure, right", "wrong", "unsure, wrong", "not found", "evidence read"]
    rows = []
    for path in sorted(RESULTS.glob("reports-answers-*.json")):
        result = _result(path.stem)
        counts = result["counts"]["all"]
        name = path.stem.removeprefix("reports-answers-")
        label = name.replace("-evidence", ", pages of the evidence").replace("-", " ")
        cells = [str(counts.get(kind, 0)) for kind in kinds]
        for verified in ("right and verified", "wrong and verified"):
            cells += [str(counts.get(verified, 0) + counts.get(f"unsure, {verified}", 0))]
        rows.append([label, *cells, f"{result['median_seconds']:.1f}"])
    return _table(["reader", *kinds, "right and verified", "wrong and verified", "seconds"], rows)


def report_prompts() -> str:
    rows = []
    for path in sorted(RESULTS.glob("reports-prompts-*.json")):
        result = _result(path.stem)
        for way, found in result["ways"].items():
            cells = (_interval(found["share"]), f"{found['tokens']:,}", f"{found['most tokens']:,}")
            rows.append([result["reader"].removesuffix(".gguf"), way, *cells])
    return _table(["reader", "passages from", "numbers shown [95 %]", "tokens", "most"], rows)


def report_tables() -> str:
    result = _result("tables")
    own = result["ragfm"]
    rows = [
        ["numeric tables with a label in every row with a number", f"{own['labelled_tables']:.1%}"],
        ["the same, without sums that have no label on the page", f"{own['labelled_or_bare_tables']:.1%}"],
        ["rows with a number that have a label", f"{own['labelled_rows']:.1%}"],
        ["numbers of the pages that are a cell of a table", f"{own['coverage']:.1%}"],
        ["rows of the evidence that are whole", f"{own['questions']['rows_whole']:.1%}"],
        ["pages per second, one core", f"{own['pages_per_s']:.0f}"],
    ]
    return _table([f"{own['tables']:,} tables on {result['pages']:,} pages", ""], rows)


def report_peers() -> str:
    keys = ("document@1", "document@5", "page@1", "page@5", "page@10")
    rows = []
    for framework, entry in _result("reports-peers")["frameworks"].items():
        for way, found in entry["ways"].items():
            cells = (f"{found[key]:.2f} ({found['reporting'][key]:.2f})" for key in keys)
            answered = way == entry.get("answers from") and entry.get("answers")
            right = f"{entry['counts'].get('right', 0)} of {len(entry['answers'])}" if answered else "-"
            rows.append([framework, way, *cells, right])
    return _table(("framework", "search", *keys, "right answers"), rows)


def table_tools() -> str:
    result = _result("table_tools")
    rows = []
    for tool in ("ragfm", "pdfplumber"):
        found = result[tool]
        shares = (found["labelled_tables"], found["labelled_rows"], found["coverage"], found["questions"]["rows_whole"])
        rows.append(
            [tool, f"{found['tables']:,}", *(f"{share:.1%}" for share in shares), f"{found['pages_per_s']:.0f}"]
        )
    head = ("tool", "numeric tables", "all rows labelled", "rows labelled", "numbers in cells", "evidence rows whole")
    return _table((*head, "pages/s"), rows)


def bm25() -> str:
    result = _result("bm25")
    names = ("ragfm", "bm25s", "tantivy")
    keys = [key for key in result["ragfm"] if key != "version"]
    rows = [[key, *(f"{result[name][key]}" for name in names)] for key in keys]
    return _table(("", *(f"{name} {result[name]['version']}" for name in names)), rows)


def transfer() -> str:
    columns = {
        "before": "no adapter [95 %]",
        "adapter": "shipped adapter (p)",
        "own": "adapter of its own (p)",
        "after": "as shipped (p)",
        "every answer": "nothing withheld",
    }
    rows = []
    for name, entry in _result("transfer").items():
        for measure in ("exact, answerable",) if "macro_f1" in entry["before"] else _TRANSFER_MEASURES:
            row = [f"{name} ({entry['questions']})", measure]
            for run in columns:
                value = entry[run]["measures"]["retrieved"].get(measure) if run in entry else None
                difference = entry["differences"].get(run, {}).get(measure) if run != "every answer" else None
                row.append(_interval(value) + (f" ({_p(difference[3])})" if difference else ""))
            rows.append(row)
    return _table(("set (questions)", "measure", *columns.values()), rows)


def adapted_retriever() -> str:
    rows = []
    for part, entry in _result("adapt_retriever")["parts"].items():
        for mode, row in entry["ndcg"].items():
            difference, low, high = row["difference"]
            rows.append(
                [
                    part,
                    mode,
                    *(_interval(row[key]) for key in ("before", "after")),
                    f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]",
                    _p(row["p"]),
                    f"{entry['processor_seconds'] / 60:.0f}",
                ]
            )
    return _table(("trained model", "search", "before [95 %]", "after", "difference", "p", "CPU minutes"), rows)


def adapted_verifier() -> str:
    claims, reports = _result("adapt_retriever")["parts"]["verifier"], _result("adapt_reports")
    rows = []
    for name, count, found in (
        ("claims of SciFact", claims["questions"]["test"], claims["detection"]),
        ("cells of filings", reports["questions"]["test"], reports["cells"]),
    ):
        change, low, high = found["difference"]
        difference = f"{change:+.3f} [{low:+.3f}, {high:+.3f}]"
        rows.append([f"{name} ({count})", "AUC", *(_interval(found[key]) for key in ("before", "after")), difference])
    sides = [reports["before"], reports["after"]]
    rows.append(["people's questions over filings (55)", "AUC", *(_interval(one["AUC"]) for one in sides), "-"])
    for name, part in (("the same", None), ("odd lines only (28)", "reporting")):
        pages = [one if part is None else one[part] for one in sides]
        shares = [" / ".join(f"{one[f'page@{rank}']:.2f}" for rank in (1, 5, 10)) for one in pages]
        rows.append([name, "page first / among 5 / 10", *shares, "-"])
    return _table(("questions", "measure", "before [95 %]", "after", "difference"), rows)


def adapted_methods() -> str:
    return _methods("adapt_methods-3000", "score")


def adapted_methods_few() -> str:
    return _methods("adapt_methods-300")


def _methods(result: str, *names: str) -> str:
    names = (*names, "f1, answerable", "abstention precision", "abstention recall", "right passage cited")
    found = _result(result)["rows"]
    gains = ["gain in score"] if any("gain" in row for row in found.values()) else []
    rows = []
    for method, row in sorted(found.items(), key=lambda one: one[0] != "none"):
        costs = ["-"] * 5
        if "learned" in row:  # `none` trains nothing
            costs = [
                f"{row['learned']:,}",
                f"{row['processor_seconds'] / 60:.1f}",
                f"{row['peak_mb']:,}",
                f"{row['megabytes']:.1f}",
                f"{row['loss']['first']:.2f} → {row['loss']['last_5']:.2f}",
            ]
        values = [_interval(row["measures"][name]) if name in row["measures"] else "-" for name in names]
        if gains:
            gain = row.get("gain")
            values.append(f"{gain['difference']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" if gain else "-")
        rows.append([method, *costs, *values])
    head = ("method", "trainable parameters", "CPU minutes", "peak MB", "MB on disk", "loss per token, first → last")
    return _table((*head, *names, *gains), rows)


def adapted_automatically() -> str:
    rows = []
    for name, row in _result("adapt_auto")["rows"].items():
        new = row["new"]
        change = f"{new['difference']:+.3f} [{new['low']:+.3f}, {new['high']:+.3f}]"
        tested = new["wins"] + new["losses"] + new["ties"]
        written = f"{row['written']} ({row['examples']['train'] + row['examples']['valid']}, {tested})"
        figures = [f"{new['a']:.3f}", f"{new['b']:.3f}", change, _p(new["p"]), "yes" if row["adopted"] else "no"]
        rows.append([name, written, f"{row['training_seconds']:.0f}", *figures])
    head = ("collection", "questions written (learned, tested)", "training seconds", "F1 before", "after", "difference")
    return _table((*head, "p", "adopted"), rows)


def preferences() -> str:
    rows = []
    for method, row in _result("preference")["rows"].items():
        is_tuned = "processor_seconds" in row
        cells = [method, f"{row['processor_seconds'] / 60:.1f}" if is_tuned else "-"]
        for name in ("margin", "words", "f1"):
            change, low, high, p = row["change"][name]
            cells.append(_interval(row["measures"][name]))
            cells.append(f"{change:+.2f} [{low:+.2f}, {high:+.2f}], {_p(p)}" if is_tuned else "-")
        rows.append(cells)
    head = ("method", "CPU minutes", "margin [95 %]", "change", "words", "change", "F1", "change")
    return _table(head, rows)


def reader_sizes() -> str:
    rows = []
    for row in _result("reader_sizes")["rows"]:
        found, timed = row["outcomes"], row["timed"] > 0
        right, wrong = (f"{found[key]} + {found[f'{key}, unsure']}" for key in ("right", "wrong"))
        nothing = f"{found['not found'] + found['not found, rightly']} ({found['not found, rightly']})"
        rows.append(
            [
                f"{row['set']} ({row['questions']}), {row['measure']}",
                row["reader"],
                _interval(row["quality"]),
                _p(row["difference"][3]) if any(row["difference"][:3]) else "-",
                _difference(row.get("gain", [])[:3] or None),
                *(right, wrong, nothing),
                f"{row['p50 cpu seconds'][0]:.1f} ({row['timed']})" if timed else "-",
                f"{row['peak_mb']:,}" if timed else "-",
                f"{row['cost of 1,000']:.3f}" if timed else "-",
            ]
        )
    head = ("set (questions), measure", "reader", "quality [95 %]", "p", "gain by its adapter", "right + unsure")
    return _table(
        (*head, "wrong + unsure", "not found (rightly)", "p50 CPU s (timed)", "peak MB", "cost of 1,000"), rows
    )


TABLES: dict[str, Callable[[], str]] = {
    table.__name__: table
    for table in [
        *(
            reports,
            definitions,
            instructions,
            report_answers,
            report_tables,
            report_prompts,
            report_peers,
            table_tools,
            ranking,
            ranking_differences,
            ranking_weights,
            ranking_documents,
            rerankers,
            other_rerankers,
            learned_sparse,
            neighbours,
            chunking,
            contexts,
            retrieval,
            retrieval_more,
            goals,
            peers_quality,
            peers_reranked,
            peers_cost,
            peers_versions,
            multihop,
            several_hops,
            sub_questions,
            code,
            multilingual,
        ),
        *(languages, languages_weights, languages_chosen, embedding, reader, machines, server, fair, start),
        *(
            collection,
            collection_more,
            index,
            backends,
            backends_more,
            processes,
            pictures,
            capacity,
            bm25,
            parse,
            parser_sizes,
            table_questions,
            parsed,
        ),
        *(citations, quotations, contradictions, answers, sizes, confidence, readers_confidence, verified_citations),
        *(answer_languages, answer_languages_fit),
        injection,
        *(adapted_retriever, adapted_verifier, adapted_methods, adapted_methods_few, adapted_automatically),
        *(reader_sizes, preferences, transfer),
    ]
}

# --- Inside ------------------------------------------------------------------------------------------------------

_MODES = ("dense", "keyword", "hybrid")
_MEASURES = ("nDCG@10", "MRR@10", "recall@5", "recall@10", "recall@100")
_TRANSFER_MEASURES = (
    "f1, answerable",
    "contained, answerable",
    "f1, all",
    "abstention recall",
    "abstention precision",
    "citation precision",
)


def _result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _part(name: str, part: str) -> Any:
    try:
        return _result(name)[part]
    except KeyError:
        raise FileNotFoundError(part) from None


def _difference(estimate: Sequence[float] | None) -> str:
    if estimate is None:
        return "-"
    value, low, high = estimate
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _interval(estimate: list[float] | None) -> str:
    if estimate is None:
        return "-"
    value, low, high = estimate
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


if __name__ == "__main__":
    main()
