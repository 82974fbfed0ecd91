"""Preference tuning on 200 simulated ratings: whether the preference is learned, and what it does to the answers.

    python benchmarks/bench_preference.py [--keep DIR] [--rated 200] [--held-out 60]

Questions of SQuAD train (CC BY-SA 4.0) whose answer is a number with its unit. The simulated user prefers the answer
alone (`28 days [1].`) to the sentence that it is from, with an introduction. 200 questions are rated; 60 questions of
other articles are asked before and after: the log-probability margin of the better answer, and the served answer's
length and token F1. The reader is the bundled model without an adapter; llama.cpp serves the exported adapter. Stop
it with Ctrl-C and run it again to continue; each method is measured and saved when it is done. Prints a table, and one
JSON line last.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from data import DATA
from measure import about, read, save

from ragfm.core.types import Hit, Sampling
from ragfm.evaluation import load_questions
from ragfm.evaluation.answer_matching import token_f1
from ragfm.evaluation.metrics import estimate_means
from ragfm.evaluation.run_comparison import paired_differences
from ragfm.generation.prompt import build_prompt
from ragfm.generation.readers import load_reader
from ragfm.training.examples import Example

TOKENS = 64
_QUANTITY = re.compile(r"[\d.,]*\d [a-z]+( [a-z]+)?")
_SENTENCE = re.compile(r"[^.!?]*[^.!?\s][^.!?]*[.!?]")


def examples(count: int, held_out_count: int) -> tuple[list[Example], list[Example]]:
    """Rated answers, and held-out ones of other articles: one for each paragraph, in the order of a hash."""
    data = load_questions(DATA / "squad" / "squad-v1.0-train.json.gz", answers=True)
    texts = {f"corpus/{path}": text for path, text in (data.documents or {}).items()}
    reader = load_reader("bundled")
    rated: list[Example] = []
    held_out: list[Example] = []
    seen = set[str]()
    for question in sorted(data.questions, key=lambda one: blake2b(one.text.encode()).digest()):
        gold, answer = question.gold[0], question.answers[0]
        if gold.uri in seen or not _QUANTITY.fullmatch(answer):
            continue
        spans = [match.span() for match in _SENTENCE.finditer(texts[gold.uri])]
        inside = [at for at, (start, end) in enumerate(spans) if answer in texts[gold.uri][start:end]]
        if len(inside) != 1:
            continue
        first, last = spans[max(0, inside[0] - 1)], spans[min(len(spans) - 1, inside[0] + 1)]
        passage = texts[gold.uri][first[0] : last[1]].strip()
        sentence = texts[gold.uri][slice(*spans[inside[0]])].strip().rstrip(".")
        if not 15 <= len(passage.split()) <= 90 or not 8 <= len(sentence.split()) <= 35:
            continue
        seen.add(gold.uri)
        hit = Hit(gold.uri, passage, 0, len(passage), len(seen), 0.5, {}, name="article")
        prompt = build_prompt(question.text, [hit], reader, answer_tokens=TOKENS)
        meta = {"question": question.text, "answers": [answer]}
        worse = f"According to the passage that was provided, {sentence} [1]."
        article = gold.uri.split("/")[1]
        target = held_out if blake2b(article.encode()).digest()[0] < 64 else rated
        target.append(Example(tuple(prompt.messages), f"{answer} [1].", meta, worse))
        if len(rated) >= count and len(held_out) >= held_out_count:
            break
    return rated[:count], held_out[:held_out_count]


def serve(held_out: list[Example], adapter: Path | None, kept: Path) -> dict[str, list[float]]:
    """Words and token F1 of each served answer. The answers are kept in a file, and a second call continues."""
    texts: list[str] = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    reader = load_reader("bundled")
    sampling = Sampling(max_tokens=TOKENS, adapter=str(adapter) if adapter else None)
    with kept.open("a") as file:
        for example in held_out[len(texts) :]:
            texts.append("".join(reader.stream(example.messages, sampling)))
            file.write(json.dumps(texts[-1]) + "\n")
            file.flush()
    found: dict[str, list[float]] = {"words": [], "f1": []}
    for example, said in zip(held_out, texts, strict=False):
        text = re.sub(r"\[\d+\]", "", said).strip()
        found["words"].append(len(text.split()))
        found["f1"].append(max(token_f1(text, answer) for answer in example.meta["answers"]))
    return found


def margins(model: Any, base: Any, held_out: list[Example]) -> list[float]:
    """Log-probability of the better answer minus that of the worse one, in nats."""
    import torch

    from ragfm.training.base_model import in_bfloat16
    from ragfm.training.training_batches import completion_logprobs

    sides = [(example, replace(example, completion=str(example.rejected))) for example in held_out]
    encoded = [base.encode(side) for pair in sides for side in pair]
    found: list[float] = []
    with torch.no_grad(), torch.autocast(base.device.type, torch.bfloat16, enabled=in_bfloat16(base.device)):
        for start in range(0, len(encoded), 8):
            rows = [[encoded[at], encoded[at + 1]] for at in range(start, min(start + 8, len(encoded)), 2)]
            logprobs, _ = completion_logprobs(model, rows, base.pad, base.device)
            found += (logprobs[0::2] - logprobs[1::2]).tolist()
    return found


def one(method: str, rated: list[Example], held_out: list[Example], keep: Path) -> dict[str, Any]:
    """Train with a method, or not at all (`none`), and ask the held-out questions."""
    from ragfm.models.adapters import RECORD, read_record
    from ragfm.training import MethodSettings, TrainSettings, train
    from ragfm.training.adapter_export import export_adapter, load_adapter
    from ragfm.training.base_model import Base

    row: dict[str, Any] = {}
    base, out = Base("bundled"), keep / method
    model = base.model
    if method != "none":
        settings = TrainSettings(MethodSettings("lora"), objective=method, batch=8)  # type: ignore[arg-type]
        spent = keep / f"{method}-cpu.json"  # of all parts of an interrupted training
        earlier = json.loads(spent.read_text()) if spent.exists() else 0.0
        if not (out / RECORD).exists():
            before = time.process_time()
            try:
                train(
                    rated, "bundled", out, settings=settings, progress=lambda now: print(method, now, file=sys.stderr)
                )
            finally:
                earlier += time.process_time() - before
                spent.write_text(json.dumps(earlier))
        numbers = read_record(out).numbers
        row = {key: numbers[key] for key in ("steps", "loss", "seconds", "learned", "peak_mb")}
        row["processor_seconds"] = round(earlier, 1)
        adapter = export_adapter(out, "gguf")
        model = load_adapter(base, out)
    known = keep / f"{method}-margins.json"
    if not known.exists():
        known.write_text(json.dumps(margins(model.eval(), base, held_out)))
    served = serve(held_out, adapter if row else None, keep / f"{method}-served.jsonl")
    return {**row, "margin": json.loads(known.read_text()), **served}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", metavar="DIR", default="preference")
    parser.add_argument("--methods", default="kto")
    parser.add_argument("--rated", type=int, default=200)
    parser.add_argument("--held-out", type=int, default=60)
    given = parser.parse_args()
    keep = Path(given.keep) / f"{given.rated}-{given.held_out}"
    keep.mkdir(parents=True, exist_ok=True)
    rated, held_out = examples(given.rated, given.held_out)
    rows: dict[str, Any] = {}
    for method in ("none", *given.methods.split(",")):
        saved = keep / f"{method}.json"
        if not saved.exists():
            saved.write_text(json.dumps(one(method, rated, held_out, keep)))
        rows[method] = json.loads(saved.read_text())
    summary = {method: summarise(row, rows["none"]) for method, row in rows.items()}
    facts: dict[str, Any] = {"rated": len(rated), "held_out": len(held_out), "base": "bundled"}
    before = read("preference")
    kept = before.get("rows", {}) if all(before.get(key) == value for key, value in facts.items()) else {}
    facts["rows"] = {**kept, **summary}
    for method, row in summary.items():
        print(f"{method:5}", "  ".join(f"{name} {mean:.3f}" for name, (mean, *_) in row["measures"].items()))
    save({**about("preference", ("ragfm", "torch", "peft", "transformers", "llama-cpp-python")), **facts}, "preference")
    print(json.dumps(facts))


def summarise(row: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Means with 95 % intervals, and paired differences from the reader before training."""
    names = ("margin", "words", "f1")
    values, earlier = (np.array([one[name] for name in names]).T for one in (row, before))
    means = [[round(one, 3) for one in asdict(found).values()] for found in estimate_means(values)]
    changes = [
        [round(found.difference, 3), round(found.low, 3), round(found.high, 3), round(found.p, 4)]
        for found in paired_differences(names, earlier, values)
    ]
    kept = {key: value for key, value in row.items() if key not in names}
    return {**kept, "measures": dict(zip(names, means, strict=True)), "change": dict(zip(names, changes, strict=True))}


if __name__ == "__main__":
    main()
