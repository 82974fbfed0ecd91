"""Measure questions whose answer requires several passages: how many of these passages are among the first five.

    python benchmarks/bench_multihop.py [--keep DIR] [--only SET]
    python benchmarks/bench_multihop.py --keep DIR --reader GGUF [--lines even|odd] [--count N] [--minutes N]

HotpotQA and MuSiQue, 100 questions each over the passages that belong to them. `all@5` is the share of questions with
all of their passages among the first five. Then hybrid search in several hops: on the odd lines of these sets, since
the even ones were used to fit it, and on SQuAD, whose questions need one passage. Milliseconds are CPU time of a
search, embedding included. `--only` measures the hops of one set, and keeps the other results. Prints tables, and one
JSON line last.

With `--reader`, the reader writes up to two sub-questions per question, under a grammar: from the question alone, and
with the first passages, where each begins with a name in them. Their hits are merged with those of one hop and of two,
by reciprocal rank; the weight is chosen on the even lines. The third way takes MuSiQue's own sub-questions, with the
right answers inserted: what a perfect reader could write. Sub-questions are kept in DIR, and the next run continues
there.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from data import DATA, _json, every_second, hotpotqa, musique
from measure import about, ask, read, save

from ragfm import Collection, Message, Sampling, Settings, load_reader
from ragfm.core.types import Hit, Reader, SearchStep
from ragfm.evaluation import QuestionSet, corpus_collection, load_questions
from ragfm.evaluation.run_comparison import paired_differences
from ragfm.retrieval.multi_hop import _NAME

HOPS = (1, 2)
SETS = {"MuSiQue": musique, "HotpotQA": hotpotqa}
WAYS = ("question", "passages", "right")
WEIGHTS = (0.25, 0.35, 0.5, 0.7, 1.0)
FEWEST = 10  # questions of which figures are given
SHOWN = 3  # passages in the prompt
CHARACTERS = 300  # of each
EXAMPLES = (  # question, passages, and the sub-questions from the question alone and with the passages
    (
        "Which river flows through the town where the founder of Ortwin Press was born?",
        "Ortwin Press: Ortwin Press is a publisher of maps. It was founded in 1931 by Clara Fenn.\n"
        "Clara Fenn: Clara Fenn (1899-1971) was a cartographer. She was born in Marlow Bridge.",
        "Who founded Ortwin Press?\nWhere was the founder of Ortwin Press born?",
        "Marlow Bridge: which river flows through it?",
    ),
    (
        "When did the band that recorded Paper Moons, produced by the brother of Ida Holt, break up?",
        "Ida Holt: Ida Holt is a singer. Her brother Sam Holt is a producer of The Gables and Nine Pins.\n"
        "Sam Holt: Sam Holt has produced records since 1980.",
        "Who is the brother of Ida Holt?\nWhich band recorded Paper Moons?",
        "The Gables: when did they break up?\nNine Pins: when did they break up?",
    ),
    (
        "Are the Lindner Tower and the Hall of Echoes in the same country?",
        "Lindner Tower: The Lindner Tower is a radio tower near Graz in Austria.\nHall of Echoes: The Hall of Echoes "
        "was built in 1890 by the architect Emil Varga.",
        "In which country is the Lindner Tower?\nIn which country is the Hall of Echoes?",
        "Emil Varga: in which country did he build the Hall of Echoes?",
    ),
)


def hop_sets() -> list[QuestionSet]:
    """The odd lines of the sets that need several passages, and questions of SQuAD, which need one."""
    several = [replace(data, questions=data.questions[::2]) for data in (hotpotqa(), musique())]  # lines 1, 3, …
    squad = load_questions(DATA / "squad" / "squad-v1.1-dev.json.gz")
    return [*several, replace(squad, name="SQuAD 1.1 dev", questions=squad.questions[::100])]


def several_hops(data: QuestionSet, keep: str | None) -> dict[str, Any]:
    """For each number of hops: recall@5, all@5 and MRR@10, the difference to one hop, and the cost."""
    questions, found = data.questions, dict[str, Any]()
    values: dict[str, Any] = {}
    with corpus_collection(data, Settings(), keep=keep) as (folder, _), Collection.open(folder) as collection:
        collection.search(questions[0].text, hops=2)  # load the model and the indexes
        for hops in HOPS:
            rows, rounds, searches = [], [], []
            start = time.process_time()
            for question in questions:
                steps: list[SearchStep] = []
                hits = collection.search(question.text, 10, hops=hops, record=steps.append)
                of_gold = [[gold.overlaps(hit) for hit in hits] for gold in question.gold]
                recall = np.mean([any(of_one[:5]) for of_one in of_gold])
                first = next((rank for rank, of_hit in enumerate(zip(*of_gold, strict=True), 1) if any(of_hit)), None)
                rows.append([recall, recall == 1, 1 / first if first else 0])
                rounds.append(max(step.round for step in steps))
                searches.append(len(steps))
            seconds = time.process_time() - start
            values[str(hops)] = np.array(rows, dtype=np.float64)
            found[str(hops)] = {
                "cpu_ms": round(1000 * seconds / len(questions), 1),
                "second_round": round(float(np.mean([number > 1 for number in rounds])), 3),
                "searches": round(float(np.mean(searches)), 1),
                **{
                    row.measure: {
                        "value": round(row.b, 4),
                        "difference": [round(value, 4) for value in (row.difference, row.low, row.high)],
                        "p": round(row.p, 4),
                    }
                    for row in paired_differences(["recall@5", "all@5", "MRR@10"], values["1"], values[str(hops)])
                },
            }
    return {"questions": len(questions), "hops": found}


def sub_questions(question: str, hits: Sequence[Hit], way: str, reader: Reader) -> tuple[str, list[int]]:
    """One or two lines with a sub-question each, and the tokens of prompt, cache and output."""
    line = 'line ::= [^ \\n?] [^\\n?]* "?"'
    system = "You split a question that needs several facts into at most two short questions. Each asks for one fact."
    shown = ""
    if way == "passages":
        system = (
            "You read passages that were found for a question. Write at most two short questions to search for the "
            "facts that are still missing. Each begins with the name in the passages that it is about."
        )
        passages = [(hit.headings[-1] if hit.headings else "", re.sub(r"^#.*", "", hit.text)) for hit in hits[:SHOWN]]
        shown = "\n".join(f"{title}: {' '.join(text.split())[:CHARACTERS]}" for title, text in passages)
        names = sorted({" ".join(match[0].split()) for match in _NAME.finditer(shown)})
        asked = set(re.findall(r"\w+", question.casefold()))
        names = [name for name in names if len(name) > 3 and not asked.issuperset(re.findall(r"\w+", name.casefold()))]
        if names:
            line = f'line ::= name ": " [^\\n?]+ "?"\nname ::= {" | ".join(map(json.dumps, names))}'
    messages = [Message("system", system)]
    for asked_before, before, alone, named in EXAMPLES:
        head = f"{before}\n" if way == "passages" else ""
        messages.append(Message("user", f"{head}Question: {asked_before}"))
        messages.append(Message("assistant", named if way == "passages" else alone))
    messages.append(Message("user", f"{shown}\nQuestion: {question}".strip()))
    sampling = Sampling(max_tokens=64, grammar=f'root ::= line ("\\n" line)?\n{line}')
    with reader.stream(messages, sampling) as stream:
        text = "".join(stream)
    usage = stream.usage
    return text, [usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens]


def right_sub_questions() -> dict[str, list[str]]:
    """MuSiQue's own sub-questions by question, with the answers of earlier ones inserted."""
    found = {}
    for entry in _json("musique_train"):
        steps, lines = entry["question_decomposition"], []
        for step in steps:
            text = step["question"].replace(" >>", "")
            for number, earlier in enumerate(steps, 1):
                text = text.replace(f"#{number}", earlier["answer"])
            lines.append(text)
        found[entry["question"]] = lines
    return found


def search_sub_questions(
    name: str, lines: str, way: str, args: argparse.Namespace, reader: Reader, until: float
) -> list[dict[str, Any]]:
    """For each question, the ranked documents of one hop, of two hops, and of each sub-question. Kept in a file."""
    data = every_second(SETS[name](), even=lines == "even")
    model = "" if way == "right" else f".{Path(args.reader).stem}"
    file = Path(args.keep) / "sub-questions" / f"{name}.{lines}.{way}{model}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    count = len(data.questions) if way == "right" else args.count
    if len(rows) >= count:
        return rows[:count]
    right = right_sub_questions() if way == "right" else {}
    with corpus_collection(data, Settings(), keep=args.keep) as (folder, _), Collection.open(folder) as collection:

        def ranked(query: str, hops: int = 1) -> list[str]:
            return list(dict.fromkeys(hit.uri for hit in collection.search(query, 20, hops=hops)))

        for question in data.questions[len(rows) : count]:
            if time.monotonic() > until:
                break
            hits = collection.search(question.text, SHOWN)
            start = time.process_time()
            text, tokens = "\n".join(right.get(question.text, ())), [0, 0, 0]
            if way != "right":
                text, tokens = sub_questions(question.text, hits, way, reader)
            seconds = time.process_time() - start
            rows.append(
                {
                    "question": question.text,
                    "sub_questions": text,
                    "tokens": tokens,
                    "cpu_seconds": round(seconds, 3),
                    "gold": [gold.uri for gold in question.gold],
                    "one": ranked(question.text),
                    "two": ranked(question.text, 2),
                    "sub": [ranked(line) for line in text.splitlines() if line.strip()],
                }
            )
            file.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return rows


def merged_measures(rows: Sequence[dict[str, Any]], base: str, weight: float) -> Any:
    """recall@5 and all@5 of each question, if sub-questions add `weight` times the best reciprocal rank. (n, 2)."""
    found = []
    for row in rows:
        scores = {uri: 1 / (rank + 2) for rank, uri in enumerate(row[base])}
        best: dict[str, float] = {}
        for ranking in row["sub"]:
            for rank, uri in enumerate(ranking):
                best[uri] = max(best.get(uri, 0.0), weight / (rank + 2))
        for uri, score in best.items() if weight else ():
            scores[uri] = scores.get(uri, 0.0) + score
        top = sorted(scores, key=lambda uri: -scores[uri])[:5]
        recall = np.mean([uri in top for uri in row["gold"]])
        found.append([recall, recall == 1])
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def compare_sub_questions(args: argparse.Namespace) -> dict[str, Any]:
    """all@5 of each way of writing sub-questions on the sets, with the weight that is best on the even lines."""
    until, result = time.monotonic() + 60 * args.minutes, dict[str, Any]()
    reader = load_reader(args.reader, threads=1)
    for lines in dict.fromkeys(("even", args.lines)):
        for name in SETS:
            for way in WAYS[: 3 if name == "MuSiQue" else 2]:
                rows = search_sub_questions(name, lines, way, args, reader, until)
                if len(rows) >= FEWEST:
                    result.setdefault(way, {}).setdefault(lines, {})[name] = rows
    compared: dict[str, Any] = {}
    for way, by_lines in result.items():
        entry = compared[way] = dict[str, Any]()
        for base in ("one", "two"):
            tuning = by_lines["even"].values()

            def total(weight: float, base: str = base, tuning: Any = tuning) -> float:
                return float(sum(merged_measures(rows, base, weight)[:, 1].mean() for rows in tuning))

            weight = max(WEIGHTS, key=total)
            for lines, by_name in by_lines.items():
                for name, rows in by_name.items():
                    without, merged = (merged_measures(rows, base, w) for w in (0, weight))
                    row = paired_differences(["recall@5", "all@5"], without, merged)[1]
                    of_set = entry.setdefault(f"{name} {lines}", {"questions": len(rows)})
                    of_set["reader_cpu_seconds"] = round(float(np.median([one["cpu_seconds"] for one in rows])), 2)
                    of_set["tokens"] = np.mean([one["tokens"] for one in rows], axis=0).round(1).tolist()
                    of_set["repeats the question"] = round(
                        float(np.mean([one["question"] in one["sub_questions"] for one in rows])), 3
                    )
                    of_set[f"{base} hop{'s' * (base == 'two')}"] = {
                        "weight": weight,
                        "without": round(row.a, 4),
                        "with": round(row.b, 4),
                        "difference": [round(value, 4) for value in (row.difference, row.low, row.high)],
                        "p": round(row.p, 4),
                    }
    return compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", metavar="DIR")
    parser.add_argument("--only", metavar="SET")
    parser.add_argument("--reader", metavar="GGUF")
    parser.add_argument("--lines", choices=("even", "odd"), default="odd")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    if args.reader:
        by_reader = read("multihop").get("sub_questions", {})
        by_reader[Path(args.reader).stem] = compare_sub_questions(args)
        result = {**read("multihop"), "sub_questions": by_reader}
        save(result, "multihop")
        print(json.dumps(by_reader, indent=1))
        return
    before = read("multihop") if args.only else {}
    sets: dict[str, Any] = before.get("sets", {})
    for data in () if args.only else (hotpotqa(), musique()):
        entry = sets[data.name] = ask(data, keep=args.keep)
        print(f"\n{data.name}: {entry['documents']} passages, {entry['questions']} questions")
        for mode, figures in entry["modes"].items():
            recall = figures["measures"]["recall@5"]
            print(
                f"  {mode:8} recall@5 {recall[0]:.3f} [{recall[1]:.3f}, {recall[2]:.3f}]  all@5 {figures['all@5']:.2f}"
            )
    several: dict[str, Any] = before.get("several_hops", {})
    for data in hop_sets():
        if args.only not in (None, data.name):
            continue
        entry = several[data.name] = several_hops(data, args.keep)
        print(f"\n{data.name}: {entry['questions']} questions")
        for hops, figures in entry["hops"].items():
            shown = "  ".join(f"{name} {figures[name]['value']:.3f}" for name in ("recall@5", "all@5", "MRR@10"))
            print(f"  hops {hops:4}  {shown}  {figures['cpu_ms']} ms", flush=True)
    result = {**about("multihop"), "embedder": "all-MiniLM-L6-v2", "sets": sets, "several_hops": several}
    result |= {"sub_questions": read("multihop").get("sub_questions", {})}
    save(result, "multihop")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
