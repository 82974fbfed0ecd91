"""Measure the effect of merging, near-duplicate removal and document order on the passages in the prompt.

    python benchmarks/bench_passages.py [--articles 6] [--questions 300] [--answers 120]

SQuAD train articles as documents in chunks of 64 tokens, with their own questions in hybrid mode. Three collections:
the articles; each article twice, the copy with different line breaks
and quotes, like the same text in two formats. "answer" is the share of questions whose answer is in a passage,
"sentence" the share whose whole sentence is; tokens are the bundled reader's, of the passages alone. With --answers,
the bundled reader answers this many of the questions from each arrangement: "gold" is the share of answers that contain
the gold answer. Differences are paired, against "plain". The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from data import DATA
from measure import about, save

from ragfm import Collection, Hit, Settings, load_reader
from ragfm.core.config import ChunkSection
from ragfm.core.text import sentence_spans
from ragfm.core.types import Message, Reader, Sampling
from ragfm.evaluation.run_comparison import paired_differences
from ragfm.generation.prompt import build_prompt
from ragfm.retrieval.passages import arrange, distinct

K = 3
VARIANTS = {
    "plain": {"distinct": False, "merge": False, "order": "rank"},
    "distinct": {"distinct": True, "merge": False, "order": "rank"},
    "merge": {"distinct": False, "merge": True, "order": "rank"},
    "document order": {"distinct": False, "merge": False, "order": "document"},
    "distinct, merge": {"distinct": True, "merge": True, "order": "rank"},
    "all": {"distinct": True, "merge": True, "order": "document"},
}


def load(count: int, asked: int) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Articles by name, and questions, each with its answer and the sentence of the answer."""
    with gzip.open(DATA / "squad" / "squad-v1.0-train.json.gz", "rt", encoding="utf-8") as file:
        articles = random.Random(0).sample(json.load(file)["data"], count)
    texts, questions = {}, []
    for number, article in enumerate(articles):
        texts[f"{number}.txt"] = "\n\n".join(paragraph["context"] for paragraph in article["paragraphs"])
        for paragraph in article["paragraphs"]:
            spans = sentence_spans(paragraph["context"])
            for qa in paragraph["qas"]:
                at, answer = qa["answers"][0]["answer_start"], qa["answers"][0]["text"]
                sentence = next((paragraph["context"][a:b] for a, b in spans if a <= at < b), answer)
                questions.append({"question": qa["question"], "answer": answer, "sentence": sentence})
    return texts, random.Random(1).sample(questions, min(asked, len(questions)))


def reflow(text: str) -> str:
    """The same text as from a different format: lines of 80 characters, curly quotes instead of straight ones."""
    return re.sub(r"(.{60,80}?) ", r"\1\n", text).replace('"', "”").replace("'", "’")


def normalized(text: str) -> str:
    return " ".join(text.replace("”", '"').replace("’", "'").casefold().split())


def passages(collection: Collection, hits: Sequence[Hit], how: dict[str, Any]) -> list[Hit]:
    chosen = distinct(hits, K)[0] if how["distinct"] else list(hits[:K])
    return arrange(chosen, text_of(collection), merge=how["merge"], order=how["order"])


def text_of(collection: Collection) -> Callable[[str], str]:
    return lambda uri: collection.document(uri).text


def measure(collection: Collection, questions: list[dict[str, str]], reader: Reader) -> dict[str, Any]:
    values: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
    for item in questions:
        hits = collection.search(item["question"], 3 * K)
        for name, how in VARIANTS.items():
            shown = passages(collection, hits, how)
            texts = [normalized(hit.text) for hit in shown]
            tokens = reader.count_tokens([Message("user", "\n\n".join(hit.text for hit in shown))])
            values[name].append(
                [
                    *(any(normalized(item[what]) in text for text in texts) for what in ("answer", "sentence")),
                    tokens,
                    len(shown),
                ]
            )
    return table(("answer", "sentence", "tokens", "passages"), {n: np.array(v, dtype=float) for n, v in values.items()})


def answer(collection: Collection, questions: list[dict[str, str]], reader: Reader) -> dict[str, Any]:
    values: dict[str, list[list[float]]] = {name: [] for name in VARIANTS if "distinct" not in name}
    for item in questions:
        hits = collection.search(item["question"], 3 * K)
        for name, found in values.items():
            shown = partial(passages, collection, how=VARIANTS[name])
            prompt = build_prompt(item["question"], hits[:K], reader, arrange=shown)
            with reader.stream(prompt.messages, Sampling(max_tokens=48)) as stream:
                found.append([float(normalized(item["answer"]) in normalized("".join(stream)))])
    return table(("gold",), {name: np.array(of) for name, of in values.items()})


def table(names: Sequence[str], values: dict[str, Any]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for variant, of in values.items():
        rows[variant] = {name: round(float(of[:, at].mean()), 4) for at, name in enumerate(names)}
        differences = [] if variant == "plain" else paired_differences(names, values["plain"], of)
        rows[variant]["p"] = {difference.measure: round(difference.p, 4) for difference in differences}
        print(f"  {variant:18}", {key: value for key, value in rows[variant].items() if key != "p"}, rows[variant]["p"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--articles", type=int, default=6)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--answers", type=int, default=120)
    args = parser.parse_args()
    texts, questions = load(args.articles, args.questions)
    reader = load_reader("bundled")
    twice = {**texts, **{f"copy/{name}": reflow(text) for name, text in texts.items()}}
    result: dict[str, Any] = {}
    for name, files in (("articles", texts), ("twice", twice)):
        with tempfile.TemporaryDirectory() as place:
            for path, text in files.items():
                (Path(place) / "docs" / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(place) / "docs" / path).write_text(text, encoding="utf-8")
            settings = Settings(chunk=ChunkSection(size=64))
            with Collection.open(Path(place) / ".ragfm", settings=settings) as collection:
                chunks = collection.sync(Path(place) / "docs").chunks
                print(f"{name}: {chunks} chunks")
                result[name] = {"chunks": chunks, **measure(collection, questions, reader)}
                if name == "articles" and args.answers:
                    result["answers"] = answer(collection, questions[: args.answers], reader)
    found = {
        **about("passages"),
        "data": f"SQuAD train, {args.articles} articles",
        "chunk_size": 64,
        "k": K,
        "questions": len(questions),
        "answers": args.answers,
        **result,
    }
    save(found, "passages")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
