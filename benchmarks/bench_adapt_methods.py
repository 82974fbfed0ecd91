"""Compare fine-tuning methods for the bundled reader on the same examples: quality, parameters, time and memory.

    python benchmarks/bench_adapt_methods.py [--train 3000] [--test 200] [--methods lora,ia3] [--seed 1]

The examples are made from SQuAD train by `ragfm adapt data` in --keep, or come from --examples. Each method trains in
its own process, on the same examples in the same order and with its default learning rate. It then answers prompts of
other documents by greedy decoding with transformers, which supports every method. Times are CPU seconds including
validation, since they depend less on other load. `none` is the reader without an adapter. qlora requires a base model
in safetensors format (--base). An interrupted run continues at its last checkpoint; each finished method is saved at
once, next to those of earlier runs over the same number of examples. Prints a table, and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import rendering
from data import DATA
from measure import about, read, save

from ragfm.core.abstention import ABSTENTION, is_abstention
from ragfm.evaluation.answer_matching import contains_answer, token_f1
from ragfm.evaluation.metrics import estimate_ratios
from ragfm.evaluation.run_comparison import paired_differences
from ragfm.models.adapters import METHODS
from ragfm.training.examples import CARD, TRAIN, VALID, Example, read_examples

TO_VALIDATE = 24
TOKENS = 48  # maximum per answer


def make_examples(keep: Path, count: int) -> Path:
    """Examples from SQuAD train, made by `ragfm adapt data`; a quarter of the documents are for validation and test."""
    out = keep / "examples"
    if not (out / CARD).exists():
        squad = DATA / "squad"
        command = [
            sys.executable,
            "-c",
            "from ragfm.cli import main; main()",
            "adapt",
            "data",
            str(squad / "squad-v1.0-train.json.gz"),
            "--limit",
            str(2 * count),
            "--valid",
            "0.25",
            "--exclude-data",
            str(squad / "squad-v2.0-dev.json.gz"),
            "--keep",
            str(keep / "squad"),
            "--licence",
            "CC BY-SA 4.0",
            "--out",
            str(out),
        ]
        subprocess.run(command, check=True)
    return out


def one(method: str, given: argparse.Namespace) -> dict[str, Any]:
    """Train with a method and answer the test prompts."""
    import torch

    from ragfm.training.adapter_folder import write_adapter
    from ragfm.training.base_model import Base
    from ragfm.training.train_settings import TrainSettings
    from ragfm.training.trainer import Training

    folder = Path(given.examples)
    train, valid = read_examples(folder / TRAIN)[: given.train], read_examples(folder / VALID)
    test = valid[TO_VALIDATE : TO_VALIDATE + given.test]
    base, row, model = Base(given.base, four_bit=method == "qlora"), dict[str, Any](), None
    if method != "none":
        settings = TrainSettings(method, epochs=given.epochs, seed=given.seed)  # type: ignore[arg-type]
        out = Path(given.keep) / f"{row_name(method, given)}-{given.train}-{given.epochs}"
        training = Training(base, train, out, settings, valid=valid[:TO_VALIDATE])
        before = time.process_time()
        numbers = training.run(lambda step: print(f"{method}: step {step.done} of {step.total}", file=sys.stderr))
        processor = time.process_time() - before
        write_adapter(training, numbers, card=json.loads((folder / CARD).read_bytes()))
        model = training.model
        row = {key: numbers[key] for key in ("learned", "parameters", "seconds", "peak_mb", "loss", "valid", "steps")}
        row["processor_seconds"] = round(processor, 1)
        row["megabytes"] = round(sum(path.stat().st_size for path in out.glob("*.safetensors")) / 2**20, 2)
    start = time.monotonic()
    model = (model or base.model).eval()
    with torch.autocast(base.device.type, torch.bfloat16, enabled=method != "none"):
        answers = [generate(model, base, example) for example in test]
    return {
        **row,
        "measures": answer_measures(test, answers),
        "scores": [round(score(example, answer), 4) for example, answer in zip(test, answers, strict=True)],
        "seconds_an_answer": round((time.monotonic() - start) / len(test), 2),
    }


def generate(model: Any, base: Any, example: Example) -> str:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from support.greedy import generate_greedy

    return generate_greedy(model, base, example.messages, TOKENS)


def row_name(method: str, given: argparse.Namespace) -> str:
    """The method, with the seed if it is not 0."""
    return f"{method}, seed {given.seed}" if given.seed else method


def score(example: Example, answer: str) -> float:
    """The score of an answer as in SQuAD 2.0: token F1, and 1 for an abstention where there is no answer."""
    if not answer or is_abstention(answer):
        return float(example.completion == ABSTENTION)
    return max((token_f1(answer, right) for right in example.meta.get("answers", ())), default=0.0)


def answer_measures(examples: list[Example], answers: list[str]) -> dict[str, Any]:
    """Measures of `ragfm eval answers` for the answers to the examples' prompts."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for example, answer in zip(examples, answers, strict=True):
        answerable, abstained = example.completion != ABSTENTION, not answer or is_abstention(answer)
        right, earned = example.meta.get("answers", ()), score(example, answer)
        cited = f"[{example.completion.rpartition('[')[2].partition(']')[0]}]"
        contained = answerable and not abstained and contains_answer(answer, right)
        for name, value, of in (
            ("score", earned, 1),
            ("f1, answerable", answerable * earned, answerable),
            ("contained, answerable", contained, answerable),
            ("abstention precision", abstained and not answerable, abstained),
            ("abstention recall", abstained and not answerable, not answerable),
            ("right passage cited", contained and cited in answer, contained),
        ):
            pairs.setdefault(name, []).append((float(value), float(of)))
    found = {name: estimate_ratios(values) for name, values in pairs.items()}
    return {name: [round(value, 4) for value in asdict(one).values()] for name, one in found.items() if one}


def table(results: rendering.Results) -> str:
    names = ("score", "f1, answerable", "abstention recall", "right passage cited")
    rows = []
    for method, row in sorted(results["adapt_methods-3000"]["rows"].items(), key=lambda one: one[0] != "none"):
        costs = ["-"] * 4
        if "learned" in row:  # `none` trains nothing
            minutes = f"{row['processor_seconds'] / 60:.0f}"
            costs = [f"{row['learned']:,}", minutes, f"{row['peak_mb']:,}", f"{row['megabytes']:.1f}"]
        rows.append([method, *costs, *(rendering.interval(row["measures"].get(name)) for name in names)])
    return rendering.table(("method", "trainable parameters", "CPU minutes", "peak MB", "MB on disk", *names), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", metavar="DIR")
    parser.add_argument("--keep", metavar="DIR", default="adapt-methods")
    parser.add_argument("--base", default="bundled")
    parser.add_argument("--train", type=int, default=3000)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", default=",".join(("none", *(method for method in METHODS if method != "qlora"))))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    Path(given.keep).mkdir(parents=True, exist_ok=True)
    given.examples = given.examples or str(make_examples(Path(given.keep), given.train))
    if given.one:
        print(json.dumps(one(given.one, given)))
        return
    facts = {"base": given.base, "examples": given.train, "epochs": given.epochs, "asked": given.test}
    result = f"adapt_methods-{given.train}"
    rows: dict[str, Any] = {}
    for method in given.methods.split(","):
        command = [sys.executable, __file__, "--one", method, *sys.argv[1:], "--examples", given.examples]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        before = read(result)  # another run may have saved its rows meanwhile
        if all(before.get(key) == value for key, value in facts.items()):
            rows = before["rows"]
        name = row_name(method, given)
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        for other in rows.keys() - {"none"} if "none" in rows else ():
            untuned, tuned = (np.array(rows[key]["scores"])[:, None] for key in ("none", other))
            rows[other]["gain"] = asdict(paired_differences(["score"], untuned, tuned)[0])
        show(name, rows[name])
        if given.train >= 300:
            save({**about("adapt_methods", ("ragfm", "torch", "peft", "transformers")), **facts, "rows": rows}, result)
    print(json.dumps({**facts, "rows": rows}))


def show(method: str, row: dict[str, Any]) -> None:
    values = "  ".join(f"{name} {value[0]:.3f}" for name, value in row["measures"].items())
    learned, seconds, peak = (row.get(name, 0) for name in ("learned", "processor_seconds", "peak_mb"))
    print(f"{method:16}{learned:>12,} learn {seconds:>6.0f} s {peak:>6} MB  {values}", flush=True)


if __name__ == "__main__":
    main()
