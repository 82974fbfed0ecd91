"""Train the verifier, ragfm/models/shipped/minilm-verifier, from the bundled embedding model.

    python benchmarks/train_verifier.py [--out FOLDER]      about 100 minutes on two idle cores; needs the extra `train`
    python benchmarks/train_verifier.py --continue --reports COLLECTION --documents COLLECTION [--minutes 30]

Answer positions come from SQuAD 1.0's training set. Unanswerable questions are: questions with a changed word
(`ragfm.training.unanswerable_questions`), questions over a similar passage, and the human-written ones of the first
seven articles, by title, of SQuAD 2.0 dev. Of the other articles, three are for tuning and 25 for reporting; none is
used in training.

Training continues with `verifier/rewritten.tsv.gz`: 9,600 questions of the same training set, each rewritten by a large
language model in three ways: once with the same meaning, and twice with one change that makes the passage no longer
answer it. All three have the same author, so only the meaning separates them.

With --continue, training starts from the shipped weights, with passages as `ask` reads them: cells of tables (see
`table_questions.py`), passages that hybrid search ranks highly and that lack the answer, and the questions above, half
of them below the title of their article. The result is the mean of the weights before and after (Wortsman et al. 2022).
`--reports` is a collection of financebench's filings, of which only those without a question for reporting are learned
from, and `--documents` one of other documents with tables. Decision 015 has the results.

All weights except the embeddings are trained. The changes are stored as low-rank matrices (Eckart and Young 1936) in
half precision. Texts have no second token type, as in RoBERTa (Liu et al. 2019). The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import DATA
from measure import about, save
from table_questions import Passage, invented_tables, passages, table_questions
from torch.nn import functional
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from ragfm import Collection, Settings
from ragfm.citations.verifier import SHIPPED, WEIGHTS, WINDOW, Verifier
from ragfm.core.types import Hit
from ragfm.evaluation import corpus_collection, load_questions
from ragfm.evaluation.answer_matching import token_f1
from ragfm.evaluation.confidence_calibration import estimate_auc
from ragfm.models.model_lookup import find_model
from ragfm.training.unanswerable_questions import names_in, near_misses
from ragfm.training.verifier_ranker import trainable_verifier, write_verifier

LEARNED, TUNED = 7, 10  # articles of SQuAD 2.0 dev, by title: [0, 7) are for training, [7, 10) for tuning
BATCH = 32
REWRITTEN = Path(__file__).parent / "verifier" / "rewritten.tsv.gz"
NEAR, WITHHELD = 0.40, 0.35
"""Shares of questions that get an added near miss, or an added passage without the answer; see `examples`."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of training: SQuAD questions, repetitions of the human-written ones, a half of the rewritten ones."""

    questions: int
    times: int
    half: int | None
    rate: float


LEARNED_REPORTS = ("BESTBUY_2017_10K", "BLOCK_2016_10K", "AMCOR_2022_8K", "FOOTLOCKER_2022_8K_dated_2022-08-19")
"""The filings of financebench that no question on an odd line is about."""
HELD_OUT_REPORTS = (
    *("3M_2018", "ADOBE_2022", "AMAZON_2019", "BOEING_2018", "COSTCO_2021", "PFIZER_2021"),
    *("MGMRESORTS", "JOHNSON_JOHNSON_2022Q4"),
)
"""Filings whose tables are for testing."""
PARAGRAPHS = 2_400
"""Paragraphs of SQuAD's training set that hard negatives are searched for in."""
STAGES = (Stage(24_000, 2, None, 3e-4), Stage(1_500, 1, 0, 2e-4), Stage(2_000, 1, 1, 2e-4))


@dataclass(frozen=True, slots=True)
class Example:
    """A question and a passage with the character span of the answer; -1 if there is no answer.

    The `context` is read above the passage.
    """

    question: str
    passage: str
    start: int = -1
    end: int = -1
    context: str = ""


def articles(name: str) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = json.loads(gzip.decompress((DATA / "squad" / name).read_bytes()))["data"]
    return data


def examples(count: int, chance: random.Random) -> list[Example]:
    """`count` questions of SQuAD 1.0's training set, and unanswerable ones made from them."""
    data = articles("squad-v1.0-train.json.gz")
    names = [
        list(
            dict.fromkeys(
                name
                for paragraph in article["paragraphs"]
                for qa in paragraph["qas"]
                for name in names_in(qa["question"])
            )
        )
        for article in data
    ]
    every = sorted({name for some in names for name in some})
    asked = [
        (number, at, qa)
        for number, article in enumerate(data)
        for at, paragraph in enumerate(article["paragraphs"])
        for qa in paragraph["qas"]
    ]
    found = list[Example]()
    for number, at, qa in chance.sample(asked, count):
        question, answer, paragraphs = qa["question"], qa["answers"][0], data[number]["paragraphs"]
        passage, start = paragraphs[at]["context"], answer["answer_start"]
        found.append(Example(question, passage, start, start + len(answer["text"])))
        which = chance.random()
        if which < NEAR:
            alike = names[number] if chance.random() < 0.6 else chance.sample(every, 400)
            found += [Example(miss.text, passage) for miss in list(near_misses(question, alike, chance))[:1]]
        elif which < NEAR + WITHHELD:
            words = _words(question)
            others = [p["context"] for p in paragraphs if answer["text"].lower() not in p["context"].lower()]
            others.sort(key=lambda text: -len(words & _words(text)))
            if others:
                found.append(Example(question, others[0] if chance.random() < 0.7 else chance.choice(others[:8])))
    return found


def written(first: int, last: int) -> list[Example]:
    """Questions of a range of articles of SQuAD 2.0 dev; half of them have no answer."""
    some = sorted(articles("squad-v2.0-dev.json.gz"), key=lambda article: str(article["title"]))[first:last]
    return [
        Example(qa["question"], paragraph["context"], *(_span(qa["answers"][0]) if qa["answers"] else (-1, -1)))
        for article in some
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


def rewritten(half: int) -> list[Example]:
    """Questions of SQuAD 1.0's training set with their rewritten forms: the first or second half of them."""
    asked = {
        (qa["question"].strip(), answer["text"]): (paragraph["context"], *_span(answer))
        for article in articles("squad-v1.0-train.json.gz")
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
        for answer in qa["answers"][:1]
    }
    lines = [line.split("\t") for line in gzip.decompress(REWRITTEN.read_bytes()).decode().splitlines()]
    found = dict[tuple[str, str], list[Example]]()
    for question, answer, kind, text in lines:
        passage, start, end = asked[question, answer]
        some = found.setdefault((question, answer), [Example(question, passage, start, end)])
        some.append(Example(text, passage, start, end) if kind == "same" else Example(text, passage))
    every = list(found.values())
    middle = len(every) // 2
    return [example for some in (every[middle:] if half else every[:middle]) for example in some]


def below_titles(some: Sequence[Example], share: float, chance: random.Random) -> list[Example]:
    """The examples, a share of them with the title of their article as context."""
    titles = {
        paragraph["context"]: article["title"].replace("_", " ")
        for name in ("squad-v1.0-train.json.gz", "squad-v2.0-dev.json.gz")
        for article in articles(name)
        for paragraph in article["paragraphs"]
    }
    return [replace(one, context=titles[one.passage]) if chance.random() < share else one for one in some]


def retrieved(count: int, chance: random.Random) -> list[Example]:
    """Questions of SQuAD 1.0's training set with passages that hybrid search ranks highly: up to three for each.

    One has the answer, if it was found, and two lack it.
    """
    data, found = load_questions(DATA / "squad" / "squad-v1.0-train.json.gz", answers=True), list[Example]()
    assert data.documents
    documents = {uri: data.documents[uri] for uri in chance.sample(sorted(data.documents), PARAGRAPHS)}
    data = replace(data, documents=documents)
    with corpus_collection(data, Settings()) as (folder, _), Collection.open(folder) as collection:
        known = {document.uri for document in collection.documents()}
        for question in chance.sample([one for one in data.questions if one.gold[0].uri in known], count):
            answer = question.answers[0].strip()
            hits = collection.search(question.text, 8)
            for hit in [hit for hit in hits if hit.uri == question.gold[0].uri and answer in hit.text][:1]:
                start = hit.text.find(answer)
                found.append(Example(question.text, hit.text, start, start + len(answer), hit.context))
            without = [hit for hit in hits if answer.lower() not in hit.text.lower()][:3]
            found += [
                Example(question.text, hit.text, context=hit.context)
                for hit in chance.sample(without, min(2, len(without)))
            ]
    return found


def cells_of(some: Sequence[Passage], count: int, changed: float, chance: random.Random) -> list[Example]:
    """Questions about cells of tables; see `table_questions.py`."""
    return [
        Example(question, passage.text, start, end, passage.context)
        for question, passage, start, end in table_questions(some, count, chance, changed=changed)
    ]


def continued(reports: Path, documents: Path, chance: random.Random) -> list[Example]:
    """What the shipped verifier learns in addition, with a replay of what it has learned."""
    filings = [one for one in passages(reports) if any(name in one.document for name in LEARNED_REPORTS)]
    return [
        *cells_of(filings, 2_080, 0.6, chance),
        *cells_of([one for one in passages(documents) if not is_held_out(one)], 400, 0.4, chance),
        *cells_of(invented_tables(560, chance), 1_120, 0.0, chance),
        *below_titles(examples(2_400, chance), 0.5, chance),
        *below_titles(written(0, LEARNED), 0.3, chance),
        *below_titles(chance.sample(rewritten(0) + rewritten(1), 4_800), 0.3, chance),
        *retrieved(1_600, chance),
    ]


def is_held_out(passage: Passage) -> bool:
    """Whether a document is for testing; a file and its text as Markdown go together."""
    stem = Path(passage.document).name.partition(".")[0]
    return blake2b(stem.encode()).digest()[-1] % 4 == 0


def _span(answer: dict[str, Any]) -> tuple[int, int]:
    return answer["answer_start"], answer["answer_start"] + len(answer["text"])


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]{3,}", text.lower()))


def batches(some: Sequence[Example], chance: random.Random) -> list[list[Example]]:
    """Batches of examples of similar length, in random order."""
    mixed, found = chance.sample(some, len(some)), list[list[Example]]()
    for at in range(0, len(mixed), 40 * BATCH):
        part = sorted(
            mixed[at : at + 40 * BATCH], key=lambda one: len(one.question) + len(one.context) + len(one.passage)
        )
        found += [part[i : i + BATCH] for i in range(0, len(part), BATCH)]
    return chance.sample(found, len(found))


def _above(example: Example) -> str:
    return f"{example.context}\n" if example.context else ""


class Learner:
    """The embedding model with a question-answering head."""

    def __init__(self, trained: Path | None = None) -> None:
        """`trained`: the verifier's weights to start from."""
        base = str(find_model("bundled", "embedder"))
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self.model = trainable_verifier(trained) if trained else AutoModelForQuestionAnswering.from_pretrained(base)
        self.model.bert.embeddings.requires_grad_(requires_grad=False)
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Dropout) and name.endswith("attention.self.dropout"):
                module.p = 0.0  # dropout in attention disables the fused kernel

    def average(self, before: dict[str, torch.Tensor], share: float) -> None:
        """Give the weights `before` this share in the weights."""
        after = self.model.state_dict()
        self.model.load_state_dict({name: torch.lerp(after[name], before[name], share) for name in after})

    def learn(
        self, steps: Sequence[Sequence[Example]], highest: float, seconds: float = math.inf
    ) -> Iterator[tuple[float, int]]:
        """Train on the batches with this peak learning rate; yields the loss and the number of tokens of each step.

        The rate falls to its end within `seconds`, and the rest of the batches is left out.
        """
        head = list(self.model.qa_outputs.parameters())
        body = [weight for weight in self.model.bert.encoder.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(
            [{"params": body, "lr": highest}, {"params": head, "lr": 3 * highest}], weight_decay=0.01
        )
        begin, warm_up = time.monotonic(), 0.06 * len(steps)
        peaks = [group["lr"] for group in optimizer.param_groups]
        self.model.train()
        for at, step in enumerate(steps):
            done = max(at / len(steps), (time.monotonic() - begin) / seconds)
            if done >= 1:
                break
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * min(1.0, (at + 1) / warm_up) * max(0.02, 1 - done)
            loss, tokens = self._loss(step)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            yield loss.item(), tokens

    def _loss(self, batch: Sequence[Example]) -> tuple[torch.Tensor, int]:
        """Cross-entropy of the answer's first and last token; both are the first token if there is no answer."""
        encoded = self._tokenizer(
            [one.question for one in batch],
            [_above(one) + one.passage for one in batch],
            truncation="only_second",
            max_length=WINDOW,
            padding=True,
            return_tensors="pt",
            return_offsets_mapping=True,
        )
        mask = encoded["attention_mask"]
        wanted = torch.tensor([self._tokens(encoded, at, one) for at, one in enumerate(batch)])
        with torch.autocast("cpu", torch.bfloat16):
            output = self.model(input_ids=encoded["input_ids"], attention_mask=mask)
        scores = (output.start_logits, output.end_logits)
        losses = [
            functional.cross_entropy(one.float().masked_fill(mask == 0, -1e4), wanted[:, at])
            for at, one in enumerate(scores)
        ]
        return sum(losses, torch.zeros(())) / 2, int(mask.sum())

    @staticmethod
    def _tokens(encoded: Any, at: int, example: Example) -> tuple[int, int]:
        first = last = 0
        above = len(_above(example))
        tokens = zip(encoded.sequence_ids(at), encoded["offset_mapping"][at].tolist(), strict=True)
        for token, (kind, (start, end)) in enumerate(tokens):
            if kind == 1 and start - above <= example.start < end - above:
                first = token
            if kind == 1 and start - above < example.end <= end - above:
                last = token
        return (first, last) if first and last else (0, 0)


def judged(verifier: Verifier, some: Sequence[Example]) -> dict[str, Any]:
    """Token F1 of the best span, and AUC of "has an answer", on the paragraphs of the questions."""
    f1, there = list[float](), list[float]()
    for one in some:
        reading = verifier.read(
            one.question, [Hit("", one.passage, 0, len(one.passage), 1, None, {}, context=one.context)]
        )[0]
        there.append(reading.anywhere)
        if one.start >= 0:
            _, start, end = reading.best
            f1.append(token_f1(one.passage[start:end], one.passage[one.start : one.end]))
    area = estimate_auc(np.array(there), np.array([float(one.start >= 0) for one in some]), 0)
    return {
        "questions": len(some),
        "f1, answerable": round(float(np.mean(f1)), 4),
        "auc, has an answer": [round(value, 4) for value in (area.value, area.low, area.high)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="Folder for the verifier's weights")
    parser.add_argument(
        "--trained", type=Path, default=Path("/tmp/ragfm-verifier"), help="Folder for the whole trained model"
    )
    parser.add_argument("--continue", dest="more", action="store_true", help="Continue from the shipped weights")
    parser.add_argument("--reports", type=Path, help="Collection of the filings of financebench; for --continue")
    parser.add_argument("--documents", type=Path, help="Collection of documents with tables; for --continue")
    parser.add_argument("--minutes", type=float, default=1e9, help="Maximum duration of a stage of training")
    args = parser.parse_args()
    if args.more and not (args.reports and args.documents):
        parser.error("--continue requires --reports and --documents")
    torch.manual_seed(0)
    chance, begin, tokens, losses = random.Random(0), time.monotonic(), 0, list[float]()
    learner = Learner(SHIPPED if args.more else None)
    before = {name: weight.clone() for name, weight in learner.model.state_dict().items()}
    if args.more:
        stages = [(batches(continued(args.reports, args.documents, chance), chance), 2e-4)]
    else:
        stages = [
            (
                batches(
                    [
                        *examples(stage.questions, chance),
                        *stage.times * written(0, LEARNED),
                        *(rewritten(stage.half) if stage.half is not None else []),
                    ],
                    chance,
                ),
                stage.rate,
            )
            for stage in STAGES
        ]
    for steps, rate in stages:
        for loss, count in learner.learn(steps, rate, 60 * args.minutes):
            losses.append(loss)
            tokens += count
            if len(losses) % 25 == 0:
                took = time.monotonic() - begin
                print(
                    f"step {len(losses)} of {sum(len(some) for some, _ in stages)}: loss {np.mean(losses[-25:]):.3f}, "
                    f"{tokens / took:.0f} tokens/s",
                    file=sys.stderr,
                )
    if args.more:
        learner.model.save_pretrained(args.trained / "before-averaging")
        learner.average(before, 0.5)
    learner.model.save_pretrained(args.trained)
    args.out.mkdir(parents=True, exist_ok=True)
    write_verifier(learner.model, args.out)
    result = {
        **about("verifier", ["ragfm", "torch", "transformers"]),
        "steps": len(losses),
        "tokens": tokens,
        "seconds": round(time.monotonic() - begin),
        "loss": round(float(np.mean(losses[-50:])), 4),
        "bytes": (args.out / WEIGHTS).stat().st_size,
        "tuning articles": judged(Verifier(args.out), random.Random(0).sample(written(LEARNED, TUNED), 600)),
        "report articles": judged(Verifier(args.out), random.Random(0).sample(written(TUNED, 35), 1000)),
    }
    if args.more:
        filings = [one for one in passages(args.reports) if any(name in one.document for name in HELD_OUT_REPORTS)]
        others = [one for one in passages(args.documents) if is_held_out(one)]
        for name, some, count in (("tables of filings", filings, 260), ("other tables", others, 170)):
            result[name] = judged(Verifier(args.out), cells_of(some, count, 0.0, random.Random(0)))
    save(result, "verifier-continued" if args.more else "verifier")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
