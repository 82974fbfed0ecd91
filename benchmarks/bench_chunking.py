"""Compare sizes and kinds of chunks on sets that may be tuned on: how well hybrid search finds the evidence.

    python benchmarks/bench_chunking.py --keep FOLDER [--only NAME…] [--variants NAME…]
    python benchmarks/bench_chunking.py --keep FOLDER --contexts READER [--only NAME…] [--minutes N]

Each set is chunked, embedded and indexed in memory, once per variant, with the documents that its collection in FOLDER
holds. "sentences" embeds every sentence, and a chunk has the best cosine of its sentences. "late" embeds tokens in
windows of 510, and a chunk is the mean of its tokens (Günther et al. 2024). Small chunks fill a prompt less than large
ones, so the share of questions whose evidence is found is given for an equal number of tokens, too. "differences" are
paired, with 95 % intervals, to the first variant, whose values are kept in FOLDER. Results are kept after each variant,
and a second run continues there. The last line is the result in JSON.

With `--contexts`, a reader writes a sentence for each chunk (Anthropic 2024), from the part of the document around it,
which comes first in the prompt and is evaluated once for all chunks in it. The sentence becomes part of the chunk's
context. Only some documents: an article of SQuAD, or the pages of the reports that the questions are about. The
sentences are kept in FOLDER, and a second run continues there.
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
from data import squad_whole_articles
from measure import about, read, save
from numpy.typing import NDArray

from ragfm import Collection, Message, Sampling, Settings, load_reader
from ragfm.chunking import ChunkSettings, chunk_document
from ragfm.core.document_name import document_names
from ragfm.core.registry import load_plugin
from ragfm.core.text import sentence_spans
from ragfm.core.types import Chunk, Document, Embedder, Hit, embedded_text
from ragfm.embedders import load_embedder
from ragfm.embedders.bert import read_weights
from ragfm.embedders.model_folder import read_bert_folder
from ragfm.embedders.networks import BertNetwork
from ragfm.evaluation.metrics import rank_hits, ranking_measures
from ragfm.evaluation.question_sets import QuestionSet
from ragfm.evaluation.run_comparison import paired_differences
from ragfm.models.model_lookup import find_model
from ragfm.retrieval.fusion_weight import DEFAULT_WEIGHT
from ragfm.retrieval.search import fuse
from ragfm.store.views import KEYWORD_PLUGIN

DEFAULT = "256 (default)"
VARIANTS: dict[str, tuple[ChunkSettings, str]] = {
    DEFAULT: (ChunkSettings(), "chunk"),
    "200": (ChunkSettings(200), "chunk"),
    "128": (ChunkSettings(128), "chunk"),
    "256, sentences": (ChunkSettings(), "sentences"),
    "128, late": (ChunkSettings(128), "late"),
    "256, late": (ChunkSettings(), "late"),
}
NAMES = ("SQuAD articles, tuning", "financebench even", "PubMedQA even", "cranfield", "MuSiQue even")
CONTEXT_NAMES = ("SQuAD articles, tuning", "financebench even")
ARTICLES = 1
WITH_SENTENCE = 208  # tokens of a chunk that leaves room for a sentence in the window
PART = 4000  # characters of a document that the reader sees with a chunk
CONTEXT_PROMPT = (
    Message(
        "system",
        "You read a part of a document, then a passage from it. You write one short sentence that says what the "
        "passage is about, with the names, dates and subjects that the passage itself leaves out.",
    ),
    Message(
        "user",
        "Harbour Museum\n\nThe museum was founded by Ada Lund in 1921, in a warehouse. It owns 400 models of ships."
        " It opens at ten.\n\nPassage:\nIt owns 400 models of ships. It opens at ten.\n\nWhat is this passage about?",
    ),
    Message("assistant", "The collection and the opening hours of the Harbour Museum, which Ada Lund founded in 1921."),
)
BUDGET = 1280
"""Tokens of the passages that are read: five of the default size."""
MEASURES = ("nDCG@10", "first 1", "first 5", "first 10", f"within {BUDGET} tokens")
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


def split(document: Document, embedder: Embedder, settings: ChunkSettings) -> list[Chunk]:
    path = Path(document.uri).name
    return chunk_document(document, embedder.tokenize, embedder.max_tokens, settings, path=path)


def late_vectors(chunks: Sequence[Sequence[Chunk]]) -> NDArray[np.float32]:
    """The mean of the token states of each chunk, which have seen the text around it and the chunk's context."""
    folder = read_bert_folder(find_model("bundled", "embedder"))
    assert folder is not None
    weights = read_weights(folder.path)
    network = BertNetwork(folder, replace(weights, pooled=False))
    backend = network.load_bert(network.fast_backend)
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
        states = backend.token_states([[*ids, end] for ids, _ in windows])
        for (_, bounds), tokens in zip(windows, states, strict=True):
            found += [tokens[a:b].mean(axis=0) for a, b in pairwise(bounds)]
    vectors = np.array(found, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def measure(
    data: QuestionSet, documents: Sequence[Document], embedder: Embedder, settings: ChunkSettings, kind: str
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Chunk, embed and index the documents, and rank the chunks for each question.

    *Returns:* the figures, and the measures of each question. *Shape:* (n_questions, n_measures); NaN if not measured.
    """
    begin = time.process_time()
    by_document = [split(document, embedder, settings) for document in documents]
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
        order = rankings(question.text, cosines, keywords, flat)["hybrid"]
        hits = [_hit(*flat[at], at) for at in order]
        within = int(np.searchsorted(np.cumsum(lengths[order]), BUDGET, side="right"))
        good = [any(matches(hit, gold, data) for gold in question.gold) for hit in hits[: max(within, 10)]]
        places, grades = rank_hits(question, hits, 10) if data.documents is not None else ([], {})
        ndcg = ranking_measures(places, grades, 10)["nDCG@10"] if places else np.nan
        rows.append((ndcg, any(good[:1]), any(good[:5]), any(good[:10]), any(good[:within])))
    values = np.array(rows, dtype=np.float64)
    means = zip(MEASURES, values.mean(axis=0), strict=True)
    return {
        "chunks": len(flat),
        "tokens": round(float(lengths.mean()), 1),
        "cpu_seconds": round(seconds, 1),
        **{name: round(float(value), 4) for name, value in means if not np.isnan(value)},
    }, values


def rankings(
    question: str, cosines: NDArray[np.float32], keywords: Any, flat: Sequence[tuple[Document, Chunk]]
) -> dict[str, list[int]]:
    """The best chunks of each mode."""
    scores, found = keywords.search([question], len(flat))
    bm25 = np.zeros(len(flat), dtype=np.float32)
    bm25[found[0][found[0] >= 0]] = scores[0][found[0] >= 0]
    chosen = np.union1d(np.argsort(-cosines)[:DEPTH], np.argsort(-bm25)[:DEPTH])
    _, documents_of = np.unique([flat[at][0].uri for at in chosen], return_inverse=True)
    fused = fuse(cosines[chosen], bm25[chosen], documents_of, weight=DEFAULT_WEIGHT)
    by_mode = {"dense": cosines[chosen], "keyword": bm25[chosen], "hybrid": fused}
    return {mode: chosen[np.lexsort((chosen, -values))].tolist() for mode, values in by_mode.items()}


# --- A reader's sentence for each chunk --------------------------------------------------------------------------


def load_part(name: str, keep: Path) -> tuple[QuestionSet, list[Document]]:
    """Some documents of a set, and the questions about them. A page of a report is a document here."""
    data = SETS[name]()
    if data.documents is not None:
        uris = sorted({question.gold[0].uri for question in data.questions})[:ARTICLES]
        asked = tuple(question for question in squad_whole_articles().questions if question.gold[0].uri in uris)
        texts = [(uri, data.documents[uri.partition("/")[2]]) for uri in uris]
        return replace(data, questions=asked), [Document(uri, text, "text/plain") for uri, text in texts]
    golds = {(gold.uri, gold.start) for question in data.questions for gold in question.gold}
    pages = []
    with Collection.open(keep / data.name / ".ragfm") as collection:
        for listed in collection.documents():
            wanted = sorted(number or 0 for uri, number in golds if listed.uri.endswith(uri))
            document = collection.document(listed.uri) if wanted else None
            for page in document.marks if document else ():
                if document and page.kind == "page" and int(page.value) in wanted:
                    inside = [mark for mark in document.marks if page.start <= mark.start and mark.end <= page.end]
                    moved = [replace(m, start=m.start - page.start, end=m.end - page.start) for m in inside]
                    text = document.text[page.start : page.end]
                    pages.append(replace(document, text=text, marks=tuple(moved)))
    return data, pages


def write_sentences(
    flat: Sequence[tuple[Document, Chunk]], reader_name: str, file: Path, minutes: float
) -> tuple[list[str], dict[str, Any]]:
    """A sentence for each chunk, and what they cost. Those that are not written after these minutes are left out."""
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"rows": []}
    rows, until = kept["rows"], time.monotonic() + 60 * minutes
    reader = load_reader(reader_name, context_tokens=4096, threads=1) if len(rows) < len(flat) else None
    part = (0, 0)
    for number, (document, chunk) in enumerate(flat):
        if number == 0 or document is not flat[number - 1][0] or chunk.end > part[1]:
            last = max(c.end for d, c in flat[number:] if d is document and c.end - chunk.start <= PART)
            part = (chunk.start, last)
        if number < len(rows) or not reader or time.monotonic() > until:
            continue
        text = document.text[part[0] : part[1]]
        title = " > ".join(document_names(document, Path(document.uri).name))
        prompt = f"{title}\n\n{text}\n\nPassage:\n{chunk.text}\n\nWhat is this passage about?"
        sampling = Sampling(max_tokens=48, grammar='root ::= [A-Z] [^\\n.]* "."')
        start = time.process_time()
        with reader.stream([*CONTEXT_PROMPT, Message("user", prompt)], sampling) as stream:
            sentence = "".join(stream).strip()
        seconds, usage = time.process_time() - start, stream.usage
        rows.append([sentence, seconds, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    medians = np.median([row[1:] for row in rows], axis=0).round(2).tolist()
    names = ("cpu_seconds", "prompt_tokens", "cached_tokens", "output_tokens")
    return [row[0] for row in rows], dict(zip(names, medians, strict=True))


def measure_contexts(name: str, keep: Path, reader: str, embedder: Embedder, minutes: float) -> dict[str, Any] | None:
    """Each mode with the context as it is, with the document's first sentence, and with the reader's.

    The difference of each measure to the context as it is has an interval and p. None while sentences are missing.
    """
    data, documents = load_part(name, keep)
    settings = ChunkSettings(WITH_SENTENCE)
    flat = [(document, chunk) for document in documents for chunk in split(document, embedder, settings)]
    file = keep / "contexts" / f"{name}.{Path(reader).stem}.json"
    sentences, cost = write_sentences(flat, reader, file, minutes)
    if len(sentences) < len(flat):
        print(name, len(sentences), "of", len(flat), "sentences", flush=True)
        return None
    firsts = [document.text[slice(*next(iter(sentence_spans(document.text))))] for document, _ in flat]
    variants = {"title and headings": [""] * len(flat), "first sentence of the document": firsts, "reader": sentences}
    values: dict[str, dict[str, Any]] = {}
    queries = embedder.embed_queries([question.text for question in data.questions])
    for variant, added in variants.items():
        contexts = ["\n".join(filter(None, (c.context, more))) for (_, c), more in zip(flat, added, strict=True)]
        texts = [embedded_text(context, c.text) for context, (_, c) in zip(contexts, flat, strict=True)]
        vectors = embedder.embed_passages(texts)
        keywords = load_plugin("keyword_indexes", KEYWORD_PLUGIN).build(np.arange(len(flat)), texts, language="en")
        for question, query in zip(data.questions, queries, strict=True):
            for mode, order in rankings(question.text, vectors @ query, keywords, flat).items():
                hits = [_hit(*flat[at], at) for at in order[:10]]
                good = [any(matches(hit, gold, data) for gold in question.gold) for hit in hits]
                ndcg = next((1 / np.log2(rank + 1) for rank, right in enumerate(good, 1) if right), 0.0)
                if data.documents is not None:  # of a report, only the first chunk of a right page counts
                    ndcg = ranking_measures(*rank_hits(question, hits, 10), 10)["nDCG@10"]
                values.setdefault(variant, {}).setdefault(mode, []).append((ndcg, any(good[:1]), any(good[:5])))
    plain = {mode: np.array(rows, dtype=np.float64) for mode, rows in values["title and headings"].items()}
    return {
        "questions": len(data.questions),
        "chunks": len(flat),
        "cost per chunk": cost,
        **{
            variant: {
                mode: {
                    row.measure: [round(value, 4) for value in (row.b, row.difference, row.low, row.high, row.p)]
                    for row in paired_differences(
                        ["nDCG@10", "first 1", "first 5"], plain[mode], np.array(rows, dtype=np.float64)
                    )
                }
                for mode, rows in by_mode.items()
            }
            for variant, by_mode in values.items()
        },
    }


def _hit(document: Document, chunk: Chunk, number: int) -> Hit:
    return Hit(document.uri, chunk.text, chunk.start, chunk.end, number, None, {}, page=chunk.page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", metavar="FOLDER", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--contexts", metavar="READER")
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    embedder = load_embedder("bundled")
    if args.contexts:
        result: dict[str, Any] = {**about("contexts"), "readers": read("contexts").get("readers", {})}
        of_reader = result["readers"].setdefault(Path(args.contexts).stem, {})
        for name in set(args.only).intersection(CONTEXT_NAMES):
            if found := measure_contexts(name, args.keep, args.contexts, embedder, args.minutes):
                of_reader[name] = found
                save(result, "contexts")
        print(json.dumps(result))
        return
    result = {**about("chunking"), "sets": read("chunking").get("sets", {})}
    for name in args.only:
        data, documents = load(name, args.keep)
        rows = result["sets"].setdefault(name, {"questions": len(data.questions), "documents": len(documents)})
        kept = args.keep / "chunking" / f"{name}.npy"
        for variant in args.variants:
            if variant not in rows or (variant == DEFAULT and not kept.exists()):
                rows[variant], values = measure(data, documents, embedder, *VARIANTS[variant])
                if variant == DEFAULT:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    np.save(kept, values)
                elif kept.exists():
                    rows[variant]["differences"] = {
                        row.measure: [round(value, 4) for value in (row.difference, row.low, row.high)]
                        for row in paired_differences(MEASURES, np.load(kept), values)
                        if not np.isnan(row.difference)
                    }
                save(result, "chunking")
                print(name, variant, rows[variant], flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
