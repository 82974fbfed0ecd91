"""Train a cross-encoder from the bundled embedding model, to compare it with the verifier as a reranker.

    python benchmarks/train_cross_encoder.py --keep FOLDER --out FOLDER [--base verifier|bundled] [--squad N --claims N]

Questions about every sixth article of SQuAD 1.0's training set, and claims of SciFact's, each with a passage and hard
negatives: the other passages that hybrid search ranks first and that lack the answer. `--keep` is the folder of
`bench_ranking.py`, whose collections are searched; the questions of its set "SQuAD train" are left out. The loss is a
softmax over the passage and two of the negatives (`CrossEncoderRanker`).

`--base verifier` starts from the verifier's layers, which have learned to read a question and a passage together; the
head is new. About 15 minutes on one idle core; Ctrl-C saves a checkpoint, and the next run continues. The model is not
part of ragfm: decision 056 has the results. The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch
from data import DATA, beir, squad_train_part
from measure import about, save
from train_verifier import SHIPPED, Learner
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ragfm import Collection, Settings
from ragfm.core.progress import Progress
from ragfm.evaluation import Question, QuestionSet, corpus_collection, load_questions
from ragfm.models.model_lookup import find_model
from ragfm.training.hard_negatives import RankingExample, load_or_mine
from ragfm.training.ranker_models import CrossEncoderRanker
from ragfm.training.ranker_trainer import train_ranker

NEGATIVES, BATCH, HELD_OUT = 2, 8, 40
WINDOW = 256
"""Tokens of question and passage; the chunks of both sets are shorter, with few exceptions."""


def mined(name: str, corpus: QuestionSet, questions: list[Question], keep: Path, out: Path) -> list[RankingExample]:
    """Examples with hard negatives from the kept collection of a corpus."""
    with corpus_collection(corpus, Settings(), keep=keep) as (folder, _), Collection.open(folder) as collection:
        found = load_or_mine(collection, questions, out / f"{name}.json")
    return [example for example in found if len(example.negatives) >= NEGATIVES]


def from_verifier(folder: Path) -> Path:
    """A sequence classifier of the verifier's layers, without a second token type, which the verifier has not seen."""
    base = find_model("bundled", "embedder")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.bert.load_state_dict(Learner(SHIPPED).model.bert.state_dict(), strict=False)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", metavar="FOLDER", type=Path, required=True)
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True)
    parser.add_argument("--base", choices=["verifier", "bundled"], default="verifier")
    parser.add_argument("--squad", type=int, default=1000, help="questions of SQuAD")
    parser.add_argument("--claims", type=int, default=400, help="claims of SciFact, of 809")
    parser.add_argument("--rate", type=float, default=1e-4, help="peak learning rate")
    args = parser.parse_args()
    (args.out / ".training").mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    chance, begin = random.Random(0), time.monotonic()

    corpus = squad_train_part()
    titles, known = {path.partition("/")[0] for path in corpus.documents or {}}, {q.text for q in corpus.questions}
    squad = [
        question
        for question in load_questions(DATA / "squad" / "squad-v1.0-train.json.gz", answers=True).questions
        if question.gold[0].uri.split("/")[1] in titles and question.text not in known
    ]
    paragraphs = mined("squad", corpus, chance.sample(squad, args.squad), args.keep, args.out)
    claims_asked = chance.sample(beir("scifact", "train").questions, args.claims)
    claims = mined("scifact", beir("scifact", "test"), claims_asked, args.keep, args.out)
    examples = chance.sample(paragraphs + claims, len(paragraphs) + len(claims))
    print(f"{len(paragraphs)} + {len(claims)} examples, {time.monotonic() - begin:.0f} s", file=sys.stderr)

    base = str(from_verifier(args.out / "base")) if args.base == "verifier" else "bundled"
    ranker = CrossEncoderRanker(base, NEGATIVES)
    ranker.model.max_length = WINDOW
    ranker.model.model.bert.embeddings.requires_grad_(requires_grad=False)

    def show(progress: Progress) -> None:
        if progress.done % 20 == 0:
            losses.append(progress.figures["loss"])
            print(f"step {progress.done} of {progress.total}, {time.monotonic() - begin:.0f} s", file=sys.stderr)

    losses: list[float] = []
    figures = train_ranker(
        ranker,
        examples[HELD_OUT:],
        examples[:HELD_OUT],
        args.out / ".training",
        epochs=1,
        batch=BATCH,
        rate=args.rate,
        facts={"base": args.base},
        progress=show,
    )
    ranker.save(args.out / "model")
    result = {
        **about("cross_encoder", ["ragfm", "torch", "sentence-transformers"]),
        "base": args.base,
        "examples": {"SQuAD": len(paragraphs), "SciFact": len(claims)},
        **figures,
    }
    save(result, "cross_encoder")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
