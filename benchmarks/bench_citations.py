"""Measure citation verification: the share of correct and of manipulated claims that are verified.

    python benchmarks/bench_citations.py [--tune] [--questions 1000]

Claims over the 25 reported articles of SQuAD 2.0 dev (with --tune, the other ten), each with three paragraphs of its
article, including the right one. A claim is made from a question and its right answer in three forms: the answer alone,
the question with the answer in place of the interrogative, and the sentence of the paragraph that contains it. "right"
is the share of claims with a verified citation of the right paragraph, "elsewhere" of those verified by a different
paragraph only. Then the
number or name in the answer is swapped for one of the same kind, preferably from another answer of the article; a claim
that is still verified is a silent error. Quotations have eight or more words of the paragraph. Corrupted quotations
have a word replaced, removed, inserted or moved, or are joined from two places. The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import rendering
from data import DATA
from measure import about, save

from ragfm.answering.decision import ground
from ragfm.answering.judge import load_judge
from ragfm.core.text import sentence_spans
from ragfm.core.types import Hit
from ragfm.evaluation.answer_matching import contains_answer

WH = re.compile(
    r"\b(?:what|who|whom|whose|which|when|where|why|how (?:many|much|long|old|far|often)|how)\b", re.IGNORECASE
)
NUMBER, NAME = re.compile(r"\d[\d.,]*\d|\d"), re.compile(r"\b[A-Z][a-zé]{2,}\b")
TUNING = 10  # number of articles, by title


def articles(*, tune: bool) -> list[dict[str, Any]]:
    data = json.loads(_read("squad-v2.0-dev.json.gz"))["data"]
    data.sort(key=lambda article: article["title"])
    return data[:TUNING] if tune else data[TUNING:]


def _read(name: str) -> str:
    import gzip

    return gzip.decompress((DATA / "squad" / name).read_bytes()).decode()


def cases(found: list[dict[str, Any]], count: int, pick: random.Random) -> Iterator[dict[str, Any]]:
    """Questions with an answer, three passages, and the answers of the same article."""
    every = []
    for article in found:
        contexts = [paragraph["context"] for paragraph in article["paragraphs"]]
        answers = [qa["answers"][0]["text"] for p in article["paragraphs"] for qa in p["qas"] if qa["answers"]]
        for at, paragraph in enumerate(article["paragraphs"]):
            asked = [qa for qa in paragraph["qas"] if qa["answers"]]
            every += [(qa["question"], qa["answers"][0], at, contexts, answers) for qa in asked]
    for question, answer, at, contexts, answers in pick.sample(every, min(count, len(every))):
        others = pick.sample([n for n in range(len(contexts)) if n != at], min(2, len(contexts) - 1))
        numbers = [at, *others]
        pick.shuffle(numbers)
        hits = [
            Hit(f"{n}", contexts[n], 0, len(contexts[n]), n, 0.5, {}, n=place) for place, n in enumerate(numbers, 1)
        ]
        yield {
            "question": question,
            "answer": answer["text"],
            "start": answer["answer_start"],
            "context": contexts[at],
            "hits": hits,
            "n": numbers.index(at) + 1,
            "answers": answers,
        }


def claims(case: dict[str, Any], answer: str) -> dict[str, str]:
    statement = WH.sub(lambda _: answer, case["question"].rstrip("? "), count=1)
    start, end = next((s, e) for s, e in sentence_spans(case["context"]) if e > case["start"])
    sentence = case["context"][start:end]
    at = case["start"] - start
    return {
        "answer": answer,
        "statement": f"{statement[:1].upper()}{statement[1:]}." if answer in statement else f"{statement} {answer}.",
        "sentence": sentence[:at] + answer + sentence[at + len(case["answer"]) :],
    }


def swap_answer(case: dict[str, Any], pick: random.Random) -> str | None:
    """The answer with a number or name swapped; None if it has neither."""
    for kind in (NUMBER, NAME):
        match = kind.search(case["answer"])
        if match is None:
            continue
        pool = [m[0] for answer in case["answers"] for m in kind.finditer(answer)]
        pool = [one for one in dict.fromkeys(pool) if one not in case["answer"] and one not in case["question"]]
        other = pick.choice(pool) if pool else ("1871" if kind is NUMBER else "Quentin")
        changed = case["answer"][: match.start()] + other + case["answer"][match.end() :]
        return None if contains_answer(changed, [case["answer"]]) else changed
    return None


def corruptions(quotation: str, other: str, pick: random.Random) -> dict[str, str]:
    words = quotation.split()
    at = pick.randrange(1, len(words) - 1)
    moved = [*words[: at - 1], words[at], words[at - 1], *words[at + 1 :]]
    return {
        "exchanged": " ".join([*words[:at], "quite", *words[at + 1 :]]),
        "left out": " ".join([*words[:at], *words[at + 1 :]]),
        "put in": " ".join([*words[:at], "not", *words[at:]]),
        "moved": " ".join(moved),
        "joined": " ".join([*words[: len(words) // 2], *other.split()[:6]]),
    }


def table(results: rendering.Results) -> str:
    """Shares of claims and quotations that are verified, as they are and changed."""
    result = results["citations"]

    def share(counts: dict[str, int], kind: str) -> str:
        return f"{100 * counts.get(kind, 0) / sum(counts.values()):.1f} %"

    rows = [
        [form, f"{sum(counts.values()):,}", share(counts, "right"), share(result["swapped"][form], "verified")]
        for form, counts in result["right"].items()
    ]
    verbatim, *changed = result["quotations"].values()
    most = max((share(counts, "verified") for counts in changed), key=lambda text: float(text.removesuffix(" %")))
    rows.append(["quotation", f"{sum(verbatim.values()):,}", share(verbatim, "verified"), f"at most {most}"])
    return rendering.table(("claim", "count", "verified as it is", "verified although changed"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--judge", default="small", help="`small` or a folder")
    parser.add_argument("--show", type=int, default=0, help="number of errors to print")
    args = parser.parse_args()
    judge = load_judge(args.judge)
    pick = random.Random(0)
    found = articles(tune=args.tune)
    right: dict[str, Counter[str]] = {}
    wrong: dict[str, Counter[str]] = {}
    quotes: dict[str, Counter[str]] = {}
    shown = 0
    for case in cases(found, args.questions, pick):
        for form, claim in claims(case, case["answer"]).items():
            verified = {c.n for c in ground(case["question"], claim, case["hits"], "en", judge)[1] if c.verified}
            right.setdefault(form, Counter())[
                "right" if case["n"] in verified else "elsewhere" if verified else "no"
            ] += 1
            if not verified and shown < args.show:
                shown += 1
                around = case["context"][max(0, case["start"] - 120) : case["start"] + 120]
                print(f"NOT {form}: {case['question']} | {claim} | {around}\n")
        quotation = pick.choice([case["context"][s:e] for s, e in sentence_spans(case["context"])])
        if len(quotation.split()) >= 8 and '"' not in quotation:
            other = pick.choice([hit for hit in case["hits"] if hit.n != case["n"]] or case["hits"]).text
            for kind, text in {"verbatim": quotation, **corruptions(quotation, other, pick)}.items():
                if kind != "verbatim" and " ".join(text.split()) in " ".join(case["context"].split()):
                    continue
                said = f'It says: "{text.strip(".")}" [{case["n"]}].'
                citations = ground(case["question"], said, case["hits"], "en", judge)[1]
                outcome = "verified" if any(c.verified for c in citations) else next((c.fault for c in citations), None)
                quotes.setdefault(kind, Counter())[str(outcome)] += 1
    swaps = random.Random(1)
    count = 0
    for case in cases(found, 10 * args.questions, swaps):
        changed = swap_answer(case, swaps)
        if changed is None or count == args.questions:
            continue
        count += 1
        for form, claim in claims(case, changed).items():
            citations = ground(case["question"], claim, case["hits"], "en", judge)[1]
            verified = [citation for citation in citations if citation.verified]
            wrong.setdefault(form, Counter())["verified" if verified else "no"] += 1
            if verified and shown < args.show:
                shown += 1
                print(f"SWAP {form}: {case['question']} | {case['answer']} | {claim} | {verified[0].quote}\n")
    result = {
        **about("citations"),
        "articles": len(found),
        "tuning": args.tune,
        "right": {form: dict(counts) for form, counts in right.items()},
        "swapped": {form: dict(counts) for form, counts in wrong.items()},
        "quotations": {kind: dict(counts) for kind, counts in quotes.items()},
    }
    for what in ("right", "swapped", "quotations"):
        for form, counts in result[what].items():
            total = sum(counts.values())
            shares = "  ".join(f"{name} {100 * n / total:.1f} %" for name, n in sorted(counts.items()))
            print(f"{what:12}{form:12}{total:6}  {shares}")
    if not args.tune:
        save(result, "citations")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
