"""Compare wordings of the answer prompt, or strategies, with the bundled reader on SQuAD train.

    python benchmarks/bench_prompt.py [--questions 60] [--k 1 3] [--wordings shipped plain … | --strategies …]

One question per article; the passages are the article's paragraphs nearest to it by the bundled embedder. "foreign"
asks the same questions with paragraphs of a different article, where the right answer is to abstain. Greedy decoding.
Strategies are run as `Rag` runs them, without an adapter, and their result is kept.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import string
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from data import DATA

from ragfm import Collection, Rag, Reader, Settings, load_reader
from ragfm.core.abstention import is_abstention
from ragfm.core.config import AskSection
from ragfm.core.types import Hit, Message
from ragfm.generation.prompt import build_prompt
from ragfm.models.model_lookup import find_model
from ragfm.testing import ScriptedReader

IDK = 'If the passages do not have the answer, say "I don\'t know."'


@dataclass(frozen=True)
class Item:
    """A question, its gold answers, the nearest paragraphs of its article, and those of a different article."""

    question: str
    gold: tuple[str, ...]
    passages: tuple[str, ...]
    foreign: tuple[str, ...]


def numbered(passages: Sequence[str]) -> str:
    return "\n\n".join(f"[{n}] {passage}" for n, passage in enumerate(passages, 1))


def shipped(question: str, passages: Sequence[str]) -> list[Message]:
    hits = [Hit("", text, 0, len(text), n, None, {}) for n, text in enumerate(passages)]
    return list(build_prompt(question, hits, ScriptedReader(context_tokens=10**6)).messages)


def after_passages(instruction: str, system: str | None = None) -> Callable[[str, Sequence[str]], list[Message]]:
    """A wording whose user message is the passages followed by `instruction`, with the question at `{q}`."""

    def messages(question: str, passages: Sequence[str]) -> list[Message]:
        user = Message("user", f"{numbered(passages)}\n\n{instruction.replace('{q}', question)}")
        return [user] if system is None else [Message("system", system), user]

    return messages


WORDINGS: dict[str, Callable[[str, Sequence[str]], list[Message]]] = {
    "shipped": shipped,
    "plain": after_passages("Question: {q}"),
    "short": after_passages("Using only the text above, answer in one short sentence: {q}"),
    "short+cite": after_passages("Using only the text above, answer in one short sentence and cite it like [1]: {q}"),
    "short+idk": after_passages('Using only the text above, answer in a short sentence or with "I don\'t know.": {q}'),
    "phrase": after_passages("Answer with a few words copied from the text above.\nQuestion: {q}\nAnswer:"),
    "all": after_passages(
        "Using only the passages above, answer in one short sentence, citing the passage like [1]. "
        + IDK
        + "\n\nQuestion: {q}"
    ),
    "short, system": after_passages(
        "Using only the passages above, answer in one short sentence: {q}",
        system="You answer from the passages, citing them like [1]. " + IDK,
    ),
    "all, system": after_passages(
        "Question: {q}",
        system="Answer the question using only the passages below. Cite the passages you use like [1]. " + IDK,
    ),
}


def load_items(count: int) -> list[Item]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(find_model("bundled", "embedder")), device="cpu")
    rng = random.Random(0)
    with gzip.open(DATA / "squad" / "squad-v1.0-train.json.gz") as file:
        articles = rng.sample(json.load(file)["data"], count)
    asked = []
    for article in articles:
        paragraphs = article["paragraphs"][:40]
        qa = rng.choice(rng.choice(paragraphs)["qas"])
        texts = [paragraph["context"] for paragraph in paragraphs]
        scores = model.encode(texts, normalize_embeddings=True) @ model.encode(
            qa["question"], normalize_embeddings=True
        )
        asked.append((qa, tuple(texts[i] for i in scores.argsort()[::-1][:5])))
    return [
        Item(qa["question"], tuple(a["text"].strip() for a in qa["answers"]), passages, asked[i - 1][1])
        for i, (qa, passages) in enumerate(asked)
    ]


def tokens(text: str) -> list[str]:
    """SQuAD's normalization: lowercase, no punctuation, no articles."""
    plain = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def token_f1(answer: str, gold: str) -> float:
    common = sum((Counter(tokens(answer)) & Counter(tokens(gold))).values())
    return 2 * common / (len(tokens(answer)) + len(tokens(gold))) if common else 0.0


def contains(answer: str, gold: str) -> bool:
    return f" {' '.join(tokens(gold))} " in f" {' '.join(tokens(answer))} "


def measure(model: Any, items: Sequence[Item], wording: str, k: int, max_tokens: int) -> dict[str, Any]:
    """Means over the items; shares are in percent."""

    def answer(question: str, passages: Sequence[str]) -> str:
        messages = [{"role": m.role, "content": m.content} for m in WORDINGS[wording](question, passages[:k])]
        reply = model.create_chat_completion(messages, temperature=0, max_tokens=max_tokens, repeat_penalty=1.0)
        return str(reply["choices"][0]["message"]["content"]).strip()

    return {"wording": wording, "k": k} | _figures(items, answer)


def measure_strategy(reader: Reader, items: Sequence[Item], strategy: str, k: int, max_tokens: int) -> dict[str, Any]:
    """The same for a strategy; `tokens` are those of the completion, including reasoning."""
    settings = Settings(ask=AskSection(strategy=strategy, answer_tokens=max_tokens))
    rag = Rag(Collection.open("/nowhere", settings=settings), reader=reader)
    given = []

    def answer(question: str, passages: Sequence[str]) -> str:
        given.append(rag.ask(question, hits=[Hit("", p, 0, len(p), n, None, {}) for n, p in enumerate(passages[:k])]))
        return given[-1].text

    figures = {"strategy": strategy, "k": k} | _figures(items, answer)
    tokens = [said.usage.completion_tokens for said in given]
    return figures | {"tokens": round(sum(tokens) / len(tokens), 1), "thought": sum(bool(s.reasoning) for s in given)}


def _figures(items: Sequence[Item], answer: Callable[[str, Sequence[str]], str]) -> dict[str, Any]:
    start = time.monotonic()
    answers = [answer(item.question, item.passages) for item in items]
    seconds = time.monotonic() - start
    foreign = [answer(item.question, item.foreign) for item in items]
    marked = [re.sub(r"\[\d+\]", "", text) for text in answers]
    pairs, n = list(zip(marked, items, strict=True)), len(items)
    return {
        "contained": round(100 * sum(any(contains(a, g) for g in i.gold) for a, i in pairs) / n, 1),
        "f1": round(sum(max(token_f1(a, g) for g in i.gold) for a, i in pairs) / n, 3),
        "words": round(sum(len(a.split()) for a in answers) / n, 1),
        "cited": round(100 * sum(a != b for a, b in zip(answers, marked, strict=True)) / n),
        "abstained": round(100 * sum(map(is_abstention, answers)) / n),
        "abstained_foreign": round(100 * sum(map(is_abstention, foreign)) / n),
        "seconds_each": round(seconds / n, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--wordings", nargs="+", default=list(WORDINGS), choices=list(WORDINGS), metavar="WORDING")
    parser.add_argument("--strategies", nargs="+", metavar="zero-shot|FILE")
    parser.add_argument("--max-tokens", type=int, default=48, help="maximum tokens of an answer")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    items = load_items(args.questions)
    if args.strategies is None:
        compare_wordings(args, items)
    else:
        compare_strategies(args, items)


def compare_strategies(args: argparse.Namespace, items: Sequence[Item]) -> None:
    import measure as kept

    reader = load_reader("bundled", threads=args.threads)
    rows = []
    for strategy in args.strategies:
        for k in args.k:
            rows.append(measure_strategy(reader, items, strategy, k, args.max_tokens))
            print(rows[-1], flush=True)
    head = kept.about("prompt", ("ragfm", "llama-cpp-python"))
    head |= {"questions": len(items), "data": "SQuAD 1.0 train", "load": os.getloadavg()[0]}
    kept.save(kept.read("prompt") | {"strategies": head | {"max_tokens": args.max_tokens, "rows": rows}}, "prompt")


def compare_wordings(args: argparse.Namespace, items: Sequence[Item]) -> None:
    import llama_cpp

    path = find_model("bundled", "reader")
    model = llama_cpp.Llama(str(path), n_ctx=4096, n_threads=args.threads, n_threads_batch=args.threads, verbose=False)
    rows = []
    for wording in args.wordings:
        for k in args.k:
            rows.append(measure(model, items, wording, k, args.max_tokens))
            if len(rows) == 1:
                print(" | ".join(rows[0]))
            print(" | ".join(map(str, rows[-1].values())), flush=True)
    settings = {"questions": len(items), "data": "SQuAD 1.0 train", "reader": path.name, "max_tokens": args.max_tokens}
    print(json.dumps({"benchmark": "prompt", **settings, "rows": rows}))


if __name__ == "__main__":
    main()
