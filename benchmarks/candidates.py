"""Candidates of hybrid search, kept per question, so that rankings are compared without searching again.

`pools(NAME, keep)` builds the set's collection in the folder `keep` if it is not there, searches for each question
once, and keeps the scores, and the texts for rerankers. A pool can then be ranked by any score in microseconds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from data import (
    DATA,
    beir,
    every_second,
    hotpotqa,
    musique,
    pubmedqa,
    report_questions,
    squad,
    squad_articles_asked,
    squad_train_part,
)
from numpy.typing import NDArray

from ragfm import Collection, Settings
from ragfm.answering.judge import JudgeReranker
from ragfm.core.errors import TooLongError
from ragfm.core.types import Hit, embedded_text
from ragfm.evaluation import Gold, Question, QuestionSet, corpus_collection
from ragfm.evaluation.metrics import CUTOFF, matches_gold
from ragfm.retrieval.fusion_weight import has_code
from ragfm.retrieval.search import candidate_hits, fuse, match_names

DEPTH = 100
"""Candidates of each index, as in `search.candidates`."""
FOR_RERANKING = 60
"""Candidates by the default score whose texts are kept."""
DEFAULT = 0.6

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pool:
    """The candidates of a question. *Shape:* arrays (n,).

    `gold` is the index of the first gold that a candidate matches, -1 without; `grades` are those of all golds; `right`
    says whether it is of a gold's document; `names` are those of `match_names`. Places are passages if `by_passage`,
    else documents, by the best passage. `texts` has the embedded texts of the best candidates, by their position.
    """

    question: str
    grades: NDArray[np.int64]
    by_passage: bool
    ids: NDArray[np.int64]
    documents: NDArray[np.int64]
    dense: Floats
    keyword: Floats
    names: Floats
    gold: NDArray[np.int64]
    right: NDArray[np.int64]
    code: bool
    texts: dict[int, str]

    def places(self, scores: Floats) -> list[int]:
        """The gold in each of the first ten places of the ranking by these scores, -1 without; NaN is left out."""
        found: list[int] = []
        seen_documents: set[int] = set()
        seen: set[int] = set()
        order = np.lexsort((self.ids, -scores))
        for at in order[~np.isnan(scores[order])].tolist():
            if not self.by_passage:
                if self.documents[at] in seen_documents:
                    continue
                seen_documents.add(int(self.documents[at]))
            gold = int(self.gold[at])
            found.append(-1 if gold in seen else gold)
            seen.add(gold)
            if len(found) == CUTOFF:
                break
        return found

    def measures(self, scores: Floats) -> tuple[float, float, float, float, float]:
        """nDCG@10, MRR@10, and whether a gold is among the first 1, 5 and 10 places."""
        places = self.places(scores)
        gains = np.array([0 if gold < 0 else self.grades[gold] for gold in places], dtype=np.float64)
        ideal = np.sort(self.grades)[::-1][:CUTOFF]
        discounts = 1 / np.log2(np.arange(2, CUTOFF + 2))
        ndcg = float((gains * discounts[: len(gains)]).sum() / (ideal * discounts[: len(ideal)]).sum())
        first = next((rank for rank, gain in enumerate(gains, 1) if gain), 0)
        return ndcg, 1 / first if first else 0.0, first == 1, 0 < first <= 5, first > 0  # type: ignore[return-value]


MEASURES = ("nDCG@10", "MRR@10", "first 1", "first 5", "first 10")

# Name of each set: how it is loaded, and which questions are for tuning. Sets with one corpus share the collection.
SETS: dict[str, Callable[[], QuestionSet]] = {
    "cranfield": lambda: beir("cranfield"),
    "cisi": lambda: beir("cisi"),
    "cacm": lambda: beir("cacm"),
    "HotpotQA even": lambda: every_second(hotpotqa(), even=True),
    "MuSiQue even": lambda: every_second(musique(), even=True),
    "PubMedQA even": lambda: every_second(pubmedqa(), even=True),
    "SQuAD articles, tuning": lambda: squad_articles_asked(tuning=True),
    "financebench even": lambda: every_second(report_questions(), even=True),
    "SQuAD train": squad_train_part,
    "SciFact train": lambda: beir("scifact", "train"),
}
LOOKALIKES = "look-alikes"
REPORTING: dict[str, Callable[[], QuestionSet]] = {
    "HotpotQA odd": lambda: every_second(hotpotqa(), even=False),
    "MuSiQue odd": lambda: every_second(musique(), even=False),
    "PubMedQA odd": lambda: every_second(pubmedqa(), even=False),
    "SQuAD articles": lambda: squad_articles_asked(tuning=False),
    "financebench odd": lambda: every_second(report_questions(), even=False),
    "SciFact test": lambda: beir("scifact", "test"),
    "npl": lambda: beir("npl"),
    "SQuAD dev": squad,
}


def lookalikes() -> QuestionSet:
    """Texts that differ only in a code, of tests/support/lookalike_documents.py."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from support import lookalike_documents

    texts = {f"{number:03}.txt": text for number, (_, _, text) in enumerate(lookalike_documents.texts())}
    asked = [
        Question(str(at), text, (Gold(f"corpus/{number:03}.txt"),))
        for at, (text, number) in enumerate(lookalike_documents.questions())
    ]
    return QuestionSet(LOOKALIKES, tuple(asked), documents=texts)


@contextmanager
def set_collection(data: QuestionSet, keep: Path, settings: Settings) -> Iterator[Collection]:
    """The collection of a set; the reports are PDFs, and have no texts of their own. What is parsed stays as it is."""
    if data.documents is not None:
        with corpus_collection(data, settings, keep=keep) as (folder, _), Collection.open(folder) as collection:
            yield collection
    else:
        with Collection.open(keep / data.name / ".ragfm", settings=settings) as collection:
            collection.sync(DATA / "financebench" / "pdfs", name="reports", keep_recipe=True)
            yield collection


def matches(hit: Hit, gold: Gold, data: QuestionSet) -> bool:
    """Whether a hit is what a question asks for."""
    if data.documents is None:
        return hit.page == gold.start and hit.uri.endswith(gold.uri)
    return matches_gold(hit, gold)


def pools(name: str, keep: Path, settings: Settings | None = None, label: str = "") -> list[Pool]:
    """The pools of a set, computed at the first call; questions too long for the embedder are left out."""
    file = keep / "pools" / f"{name}{label}.json"
    if not file.exists():
        data = lookalikes() if name == LOOKALIKES else {**SETS, **REPORTING}[name]()
        with set_collection(data, keep, settings or Settings()) as collection:
            records = list(_search(data, collection))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(records), encoding="utf-8")
    return [_pool(record) for record in json.loads(file.read_text(encoding="utf-8"))]


def _pool(record: dict[str, Any]) -> Pool:
    arrays = {key: np.array(record[key], dtype=np.int64) for key in ("grades", "ids", "documents", "gold", "right")}
    scores = {key: np.array(record[key], dtype=np.float64) for key in ("dense", "keyword", "names")}
    texts = {int(key): text for key, text in record["texts"].items()}
    return Pool(
        question=record["question"],
        by_passage=record["by_passage"],
        code=has_code(record["question"]),
        texts=texts,
        **arrays,
        **scores,
    )


def _search(data: QuestionSet, collection: Collection) -> Iterator[dict[str, Any]]:
    for question in data.questions:
        if not question.gold:
            continue
        try:
            hits = candidate_hits(collection.store, question.text, DEPTH)
        except TooLongError:
            continue
        uris = {uri: at for at, uri in enumerate(dict.fromkeys(hit.uri for hit in hits))}
        documents = [uris[hit.uri] for hit in hits]
        names = match_names(question.text, np.array(documents, dtype=np.int64), [hit.context for hit in hits])
        dense = [hit.scores["dense"] for hit in hits]
        keyword = [hit.scores["keyword"] for hit in hits]
        fused = fuse(np.array(dense, dtype=np.float32), np.array(keyword, dtype=np.float32), weight=DEFAULT)
        best = np.argsort(-fused)[:FOR_RERANKING].tolist()
        yield {
            "question": question.text,
            "grades": [gold.grade for gold in question.gold],
            "by_passage": question.by_passage,
            "ids": [hit.chunk_id for hit in hits],
            "documents": documents,
            "dense": dense,
            "keyword": keyword,
            "names": names.tolist(),
            "gold": [
                next((number for number, gold in enumerate(question.gold) if matches(hit, gold, data)), -1)
                for hit in hits
            ],
            "right": [any(hit.uri.endswith(gold.uri) for gold in question.gold) for hit in hits],
            "texts": {at: embedded_text(hits[at].context, hits[at].text) for at in best},
        }


Score: TypeAlias = Callable[[str, Sequence[str]], Any]
"""Scores of texts for a question, as `Reranker.rerank` gives them."""


def reread(
    name: str,
    keep: Path,
    label: str,
    score: Score,
    *,
    most: int = 40,
    only: Iterable[int] | None = None,
    depth: int = 40,
    seconds: float = 300,
) -> dict[int, Floats]:
    """A reranker's scores of up to `depth` candidates of up to `most` questions, by number of the question.

    `only` are the numbers of questions to read instead. NaN for candidates that were not read. Stops after `seconds`,
    and continues at the next call.
    """
    file = keep / "pools" / f"{name}.{label}.json"
    found: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    asked, begin = pools(name, keep), time.monotonic()
    for number in range(0, len(asked), -(-len(asked) // most)) if only is None else only:
        if str(number) in found or time.monotonic() - begin > seconds:
            continue
        positions = list(asked[number].texts)[:depth]
        scores = score(asked[number].question, [asked[number].texts[at] for at in positions])
        found[str(number)] = {str(at): float(score) for at, score in zip(positions, scores, strict=True)}
    file.write_text(json.dumps(found), encoding="utf-8")
    results = {}
    for number, of_question in found.items():
        scores = np.full(len(asked[int(number)].ids), np.nan)
        scores[[int(at) for at in of_question]] = list(of_question.values())
        results[int(number)] = scores
    return results


def likelihoods(name: str, keep: Path, *, seconds: float = 300) -> dict[int, Floats]:
    """What the judge reads, see `reread`."""
    return reread(name, keep, "judge", JudgeReranker().rerank, seconds=seconds)


def splade(folder: Path) -> Score:
    """Dot products of sparse vectors (SPLADE, Formal et al. 2021) by a masked language model in a folder."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder).eval()

    def states(texts: Sequence[str]) -> tuple[Any, Any]:
        batch = tokenizer(list(texts), padding=True, truncation=True, max_length=256, return_tensors="pt")
        return model.cls.predictions.transform(model.bert(**batch).last_hidden_state), batch["attention_mask"]

    def weights(states: Any, mask: Any, words: Any) -> Any:
        head = model.cls.predictions.decoder
        logits = states @ head.weight[words].T + head.bias[words]
        return (torch.log1p(torch.relu(logits)) * mask.unsqueeze(-1)).max(dim=1).values

    @torch.inference_mode()
    def score(question: str, texts: Sequence[str]) -> Floats:
        asked = weights(*states([question]), torch.arange(model.config.vocab_size))[0]
        words = asked.nonzero()[:, 0]  # the others do not count
        parts = [weights(*states(texts[at : at + 10]), words) @ asked[words] for at in range(0, len(texts), 10)]
        return np.asarray(torch.cat(parts).numpy(), dtype=np.float64)

    return score
