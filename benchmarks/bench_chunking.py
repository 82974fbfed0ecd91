"""Compare sizes, overlap and kinds of chunks on sets that may be tuned on: how well hybrid search finds the evidence.

    python benchmarks/bench_chunking.py --keep FOLDER [--only NAME…] [--variants NAME…]

Each set is chunked, embedded and indexed in memory, once per variant, with the documents that its collection in FOLDER
holds. "sentences" embeds every sentence, and a chunk has the best cosine of its sentences. "late" embeds tokens in
windows of 510, and a chunk is the mean of its tokens (Günther et al. 2024). Small chunks fill a prompt less than large
ones, so the share of questions whose evidence is found is given for an equal number of tokens, too. Results are kept
after each variant, and a second run continues there. The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from candidates import DEPTH, SETS, matches, set_collection
from measure import about, read, save
from numpy.typing import NDArray

from ragfm import Settings
from ragfm.chunking import ChunkSettings, chunk_document
from ragfm.core.registry import load_plugin
from ragfm.core.text import sentence_spans
from ragfm.core.types import Chunk, Document, Embedder, Hit, embedded_text
from ragfm.embedders import load_embedder
from ragfm.embedders.bert import Linear, read_weights
from ragfm.embedders.model_folder import read_bert_folder
from ragfm.embedders.networks import BertNetwork
from ragfm.evaluation.metrics import rank_hits, ranking_measures
from ragfm.evaluation.question_sets import QuestionSet
from ragfm.models.model_lookup import find_model
from ragfm.retrieval.fusion_weight import DEFAULT_WEIGHT
from ragfm.retrieval.search import fuse
from ragfm.store.views import KEYWORD_PLUGIN

VARIANTS: dict[str, tuple[ChunkSettings, str]] = {
    "256 (default)": (ChunkSettings(), "chunk"),
    "200": (ChunkSettings(200), "chunk"),
    "128": (ChunkSettings(128), "chunk"),
    "128, overlap 32": (ChunkSettings(128, 32), "chunk"),
    "256, overlap 64": (ChunkSettings(256, 64), "chunk"),
    "256, sentences": (ChunkSettings(), "sentences"),
    "128, late": (ChunkSettings(128), "late"),
    "256, late": (ChunkSettings(), "late"),
}
NAMES = ("SQuAD articles, tuning", "financebench even", "PubMedQA even", "cranfield", "MuSiQue even")
BUDGET = 1280
"""Tokens of the passages that are read: five of the default size."""
WINDOW = 510


def load(name: str, keep: Path) -> tuple[QuestionSet, list[Document]]:
    """The questions of a set and its documents; of the reports, those that the questions are about."""
    data = SETS[name]()
    with set_collection(data, keep, Settings()) as collection:
        uris = [document.uri for document in collection.documents()]
        if data.documents is None:
            asked = {gold.uri for question in data.questions for gold in question.gold}
            uris = [uri for uri in uris if Path(uri).name in asked]
        return data, [collection.document(uri) for uri in uris]


def late_vectors(chunks: Sequence[Sequence[Chunk]]) -> NDArray[np.float32]:
    """The mean of the token states of each chunk, which have seen the text around it and the chunk's context."""
    folder = read_bert_folder(find_model("bundled", "embedder"))
    assert folder is not None
    weights = read_weights(folder.path)
    same = Linear(np.eye(folder.dim, dtype=np.float32), np.zeros(folder.dim, dtype=np.float32))
    network = BertNetwork(folder, replace(weights, head=same))
    backend = network.load_bert("openvino" if "openvino" in network.backends() else "numpy-fp32")
    start, end = map(network.tokenizer.token_to_id, ("[CLS]", "[SEP]"))
    found: list[NDArray[np.float32]] = []
    for of_document in chunks:
        # As many chunks as fit form a window, below the context of the first.
        encodings = network.tokenizer.encode_batch([c.text for c in of_document], add_special_tokens=False)
        contexts = network.tokenizer.encode_batch([c.context for c in of_document], add_special_tokens=False)
        windows: list[tuple[list[int], list[int]]] = []  # tokens, and the bounds of the chunks
        for encoding, context in zip(encodings, contexts, strict=True):
            if windows and len(windows[-1][0]) + len(encoding.ids) <= WINDOW:
                windows[-1][0].extend(encoding.ids)
            else:
                room = WINDOW - len(encoding.ids)
                head = [start, *context.ids[: max(room - 1, 0)]]
                windows.append(([*head, *encoding.ids], [len(head)]))
            windows[-1][1].append(len(windows[-1][0]))
        states = backend.token_scores([[*ids, end] for ids, _ in windows])
        for (_, bounds), tokens in zip(windows, states, strict=True):
            found += [tokens[a:b].mean(axis=0) for a, b in pairwise(bounds)]
    vectors = np.array(found, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def measure(
    data: QuestionSet, documents: Sequence[Document], embedder: Embedder, settings: ChunkSettings, kind: str
) -> dict[str, Any]:
    """Chunk, embed and index the documents, and rank the chunks for each question."""
    begin = time.process_time()
    by_document = [chunk_document(d, embedder.tokenize, embedder.max_tokens, settings) for d in documents]
    flat = [(document, chunk) for document, chunks in zip(documents, by_document, strict=True) for chunk in chunks]
    texts = [chunk.embedded_text for _, chunk in flat]
    owner = np.arange(len(flat))
    if kind == "sentences":
        pieces = [
            (number, embedded_text(chunk.context, chunk.text[a:b]))
            for number, (_, chunk) in enumerate(flat)
            for a, b in sentence_spans(chunk.text)
            if re.search(r"\w", chunk.text[a:b])
        ]
        owner = np.array([number for number, _ in pieces])
        vectors = embedder.embed_passages([text for _, text in pieces])
    elif kind == "late":
        vectors = late_vectors(by_document)
    else:
        vectors = embedder.embed_passages(texts)
    seconds = time.process_time() - begin
    ids = np.arange(len(flat), dtype=np.int64)
    keywords = load_plugin("keyword_indexes", KEYWORD_PLUGIN).build(ids, texts, language="en")
    lengths = np.array([len(tokens) for tokens in embedder.tokenize([chunk.text for _, chunk in flat])])

    rows = []
    for question in data.questions:
        cosines = np.full(len(flat), -1, dtype=np.float32)
        np.maximum.at(cosines, owner, vectors @ embedder.embed_queries([question.text])[0])
        scores, found = keywords.search([question.text], len(flat))
        bm25 = np.zeros(len(flat), dtype=np.float32)
        bm25[found[0][found[0] >= 0]] = scores[0][found[0] >= 0]
        chosen = np.union1d(np.argsort(-cosines)[:DEPTH], np.argsort(-bm25)[:DEPTH])
        _, documents_of = np.unique([flat[at][0].uri for at in chosen], return_inverse=True)
        fused = fuse(cosines[chosen], bm25[chosen], documents_of, weight=DEFAULT_WEIGHT)
        order = chosen[np.lexsort((chosen, -fused))].tolist()
        hits = [_hit(*flat[at], at) for at in order]
        within = int(np.searchsorted(np.cumsum(lengths[order]), BUDGET, side="right"))
        good = [any(matches(hit, gold, data) for gold in question.gold) for hit in hits[: max(within, 10)]]
        places, grades = rank_hits(question, hits, 10) if data.documents is not None else ([], {})
        ndcg = ranking_measures(places, grades, 10)["nDCG@10"] if places else np.nan
        rows.append((ndcg, any(good[:1]), any(good[:5]), any(good[:10]), any(good[:within])))
    values = np.array(rows, dtype=np.float64).mean(axis=0)
    names = ("nDCG@10", "first 1", "first 5", "first 10", f"within {BUDGET} tokens")
    return {
        "chunks": len(flat),
        "tokens": round(float(lengths.mean()), 1),
        "cpu_seconds": round(seconds, 1),
        **{name: round(float(value), 4) for name, value in zip(names, values, strict=True) if not np.isnan(value)},
    }


def _hit(document: Document, chunk: Chunk, number: int) -> Hit:
    return Hit(document.uri, chunk.text, chunk.start, chunk.end, number, None, {}, page=chunk.page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", metavar="FOLDER", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    args = parser.parse_args()
    result: dict[str, Any] = {**about("chunking"), "sets": read("chunking").get("sets", {})}
    embedder = load_embedder("bundled")
    for name in args.only:
        data, documents = load(name, args.keep)
        rows = result["sets"].setdefault(name, {"questions": len(data.questions), "documents": len(documents)})
        for variant in args.variants:
            if variant not in rows:
                rows[variant] = measure(data, documents, embedder, *VARIANTS[variant])
                save(result, "chunking")
                print(name, variant, rows[variant], flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
