"""Compare the speed of embedding 1,000 SQuAD paragraphs with the same model in ragfm and in other frameworks.

    python benchmarks/bench_embed.py [--peers PYTHON] [--rounds 5] [--paragraphs 1000] [--quality]

Each contender is a process with two threads that loads the model, embeds 16 texts and waits for its turn; each round
runs all of them once. `--peers` is the Python of an environment with sentence-transformers, llama-index,
langchain-huggingface, Haystack and txtai. Paragraphs longer than the model's window are skipped, since the others would
truncate them and ragfm refuses them. Wall times are medians; "per core" uses CPU time, which depends less on other
load. The peak is torch's product of two 2048 × 2048 matrices. `--quality` compares nDCG@10 on cranfield (dense, exact)
between the exact and the chosen backends. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rendering

DATA = Path(os.environ.get("RAGFM_DATA", Path(__file__).parents[2] / "shared" / "data"))
THREADS = 2
Embed = Callable[[Sequence[str]], Any]


# --- The contenders, imported in their own processes -----------------------------------------------------------------


def sentence_transformers(path: str) -> Embed:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(path, device="cpu", local_files_only=True)
    return lambda texts: model.encode(list(texts), show_progress_bar=False)


def llamaindex(path: str) -> Embed:
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    return HuggingFaceEmbedding(model_name=path, device="cpu").get_text_embedding_batch


def langchain(path: str) -> Embed:
    from langchain_huggingface import HuggingFaceEmbeddings

    return HuggingFaceEmbeddings(model_name=path).embed_documents


def haystack(path: str) -> Embed:
    from haystack import Document
    from haystack_integrations.components.embedders.sentence_transformers import SentenceTransformersDocumentEmbedder

    embedder = SentenceTransformersDocumentEmbedder(model=path, progress_bar=False)
    embedder.warm_up()
    return lambda texts: [d.embedding for d in embedder.run([Document(content=text) for text in texts])["documents"]]


def txtai(path: str) -> Embed:
    from txtai import Embeddings

    embeddings = Embeddings(path=path)
    return lambda texts: embeddings.batchtransform(list(texts))


def ragfm_numpy(path: str) -> Embed:
    sys.modules["openvino"] = None  # type: ignore[assignment]  # as without the extra
    return ragfm_openvino(path)


def ragfm_openvino(path: str) -> Embed:
    from ragfm.embedders import SentenceTransformerEmbedder

    embedder = SentenceTransformerEmbedder(path)
    network = embedder._network
    chosen = os.environ.get("FORM") or network.fast_backend
    embedder._for_passages = network.load(chosen)
    print(json.dumps({"chosen": chosen}), flush=True)
    return embedder.embed_passages


def gemm(_: str) -> Embed:
    """Not a contender: the machine's peak in GFLOP/s, returned as `vectors` of fp32 and bf16."""
    import torch

    def peak(dtype: Any) -> float:
        one, other = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
        best = 0.0
        for _ in range(6):
            start = time.perf_counter()
            one @ other
            best = max(best, 2 * 2048**3 / (time.perf_counter() - start) / 1e9)
        return best

    return lambda _: [[peak(torch.float32), peak(torch.bfloat16)]]


CONTENDERS: dict[str, Callable[[str], Embed]] = {
    "sentence-transformers": sentence_transformers,
    "LlamaIndex": llamaindex,
    "LangChain": langchain,
    "Haystack": haystack,
    "txtai": txtai,
    "ragfm without OpenVINO": ragfm_numpy,
    "ragfm[openvino]": ragfm_openvino,
    "gemm": gemm,
}
PEERS = list(CONTENDERS)[:5]


def run_contender(name: str, path: str, texts_file: Path) -> None:
    """Process of one contender: each line on standard input is a turn."""
    texts = json.loads(texts_file.read_text())
    embed = CONTENDERS[name](path)
    embed(texts[:16])
    print(json.dumps({"ready": name}), flush=True)
    for turn, _ in enumerate(sys.stdin):
        start, busy = time.perf_counter(), time.process_time()
        vectors = embed(texts)
        took = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - busy}
        if turn == 0:
            np.save(texts_file.with_name(f"{name}.npy"), np.asarray(vectors, dtype=np.float32))
        print(json.dumps(took), flush=True)


# --- The race --------------------------------------------------------------------------------------------------------


class Contender:
    """A contender's process and its times in seconds."""

    def __init__(self, name: str, python: str, path: str, texts_file: Path) -> None:
        self.name, self.chosen = name, ""
        self.wall: list[float] = []
        self.cpu: list[float] = []
        command = [python, __file__, "--contender", name, "--model", path, "--texts", str(texts_file)]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(THREADS),
            "HF_HUB_OFFLINE": "1",
            "XDG_CACHE_HOME": str(texts_file.parent / name),
            "TOKENIZERS_PARALLELISM": "true",
        }
        environment["FORM"] = {
            "ragfm without OpenVINO": environment.get("FORM_NUMPY", ""),
            "ragfm[openvino]": environment.get("FORM_OPENVINO", ""),
        }.get(name, "")
        log = (texts_file.parent / f"{name}.log").open("w")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        while "ready" not in (said := self._line()):
            self.chosen = said.get("chosen", self.chosen)

    def turn(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        said = self._line()
        self.wall.append(said["seconds"])
        self.cpu.append(said["cpu"])

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries print other lines
                said: dict[str, Any] = json.loads(line)
                return said
        raise SystemExit(f"{self.name} ended before its turn; see its log.")


def paragraphs(count: int, path: str) -> tuple[list[str], list[int]]:
    """Paragraphs from all of SQuAD train that fit into the model's window, and their token counts."""
    from ragfm.embedders import SentenceTransformerEmbedder

    with gzip.open(DATA / "squad" / "squad-v1.0-train.json.gz", "rt", encoding="utf-8") as file:
        every = [p["context"] for article in json.load(file)["data"] for p in article["paragraphs"]]
    embedder = SentenceTransformerEmbedder(path)
    texts = every[:: max(1, len(every) // (2 * count))]
    tokens = [len(offsets) for offsets in embedder.tokenize(texts)]
    fitting = [(text, n + 2) for text, n in zip(texts, tokens, strict=True) if n <= embedder.max_tokens][:count]
    return [text for text, _ in fitting], [n for _, n in fitting]


def flops(tokens: Sequence[int], path: str) -> float:
    """Floating-point operations of the network's matrix products, without padding."""
    config = json.loads((Path(path) / "config.json").read_text())
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    return sum(layers * (2 * n * (4 * width**2 + 2 * width * inner) + 4 * n * n * width) for n in tokens)


def run_rounds(args: argparse.Namespace, path: str) -> dict[str, Any]:
    texts, tokens = paragraphs(args.paragraphs, path)
    work = flops(tokens, path)
    with tempfile.TemporaryDirectory() as folder:
        texts_file = Path(folder) / "texts.json"
        texts_file.write_text(json.dumps(texts))
        names = [name for name in CONTENDERS if args.only is None or name in args.only or name == "gemm"]
        contenders = [
            Contender(name, args.peers if name in PEERS else sys.executable, path, texts_file) for name in names
        ]
        for number in range(args.rounds):
            for contender in contenders[number % len(contenders) :] + contenders[: number % len(contenders)]:
                contender.turn()
                print(f"round {number + 1}: {contender.name} {contender.wall[-1]:.1f} s", file=sys.stderr, flush=True)
        for contender in contenders:
            contender.process.kill()
        vectors = {name: np.load(Path(folder) / f"{name}.npy") for name in names}
    fp32, bf16 = (float(peak) for peak in vectors.pop("gemm")[0])
    reference = unit_rows(vectors["sentence-transformers"])
    rows = []
    for contender in contenders:
        if contender.name == "gemm":
            continue
        seconds, busy = statistics.median(contender.wall), statistics.median(contender.cpu)
        rows.append(
            {
                "contender": contender.name,
                "form": contender.chosen,
                "texts_per_s": round(len(texts) / seconds, 1),
                "tokens_per_s": round(sum(tokens) / seconds),
                "texts_per_busy_s": round(len(texts) / (busy / THREADS), 1),
                "gflops": round(work / seconds / 1e9, 1),
                "of_peak_fp32": round(work / seconds / 1e9 / fp32, 3),
                "of_peak_bf16": round(work / seconds / 1e9 / bf16, 3),
                "lowest_cosine": round(float((unit_rows(vectors[contender.name]) * reference).sum(1).min()), 6),
                "seconds": [round(one, 2) for one in contender.wall],
            }
        )
    return {
        "texts": len(texts),
        "tokens": sum(tokens),
        "rounds": args.rounds,
        "peak_gflops": {"fp32": round(fp32, 1), "bf16": round(bf16, 1)},
        "rows": rows,
    }


def unit_rows(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Ragfm's rates relative to the best peer's, by wall time and by CPU time."""
    found = {}
    for by in ("texts_per_s", "texts_per_busy_s"):
        best = max(row[by] for row in rows if row["contender"] in PEERS)
        found |= {f"{r['contender']} {by}": round(r[by] / best, 2) for r in rows if r["contender"] not in PEERS}
    return found


# --- Quality ---------------------------------------------------------------------------------------------------------


def quality(path: str, forms: Sequence[str]) -> dict[str, float]:
    """nDCG@10 on cranfield with questions in fp32 and documents by each backend."""
    import ir_measures

    from ragfm.embedders import SentenceTransformerEmbedder

    folder = DATA / "beir" / "cranfield"
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        corpus = [json.loads(line) for line in file]
    questions = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    qrels = [
        ir_measures.Qrel(query, document, int(float(grade)))
        for query, document, grade in (line.split("\t") for line in (folder / "qrels.tsv").read_text().splitlines()[1:])
    ]
    embedder = SentenceTransformerEmbedder(path)
    texts = [f"{row.get('title', '')}\n{row['text']}".strip() or "-" for row in corpus]
    ends = [offsets[: embedder.max_tokens][-1][1] for offsets in embedder.tokenize(texts)]
    texts = [text[:end] for text, end in zip(texts, ends, strict=True)]
    asked = embedder.embed_queries([row["text"] for row in questions])
    found = {}
    for form in forms:
        embedder._for_passages = embedder._network.load(form)
        scores = asked @ embedder.embed_passages(texts).T
        run = [
            ir_measures.ScoredDoc(question["_id"], corpus[place]["_id"], float(row[place]))
            for question, row in zip(questions, scores, strict=True)
            for place in np.argsort(-row, kind="stable")[:10]
        ]
        measure = ir_measures.nDCG @ 10
        found[form] = round(float(ir_measures.calc_aggregate([measure], qrels, run)[measure]), 4)
    return found


def table(results: rendering.Results) -> str:
    found = [row for row in results["embed"]["rows"] if row["contender"] in CONTENDERS]
    fastest_peer = max(row["texts_per_s"] for row in found if not row["form"])
    rows = [
        ["paragraphs/s", *(f"{row['texts_per_s']:.1f}" for row in found)],
        ["× fastest peer", *(f"{row['texts_per_s'] / fastest_peer:.2f}" for row in found)],
        ["share of bf16 GEMM peak", *(f"{100 * row['of_peak_bf16']:.0f} %" for row in found)],
        ["minimum cosine to fp32", *(f"{row['lowest_cosine']:.6f}" for row in found)],
    ]
    return rendering.table(("", *(row["contender"] for row in found)), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, help="the Python of the peers' environment")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--paragraphs", type=int, default=1000)
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), help="measure only these contenders")
    parser.add_argument("--contender", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--texts", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        run_contender(args.contender, args.model, args.texts)
        return
    from measure import about, save  # imported late: the peers' environment has no ragfm

    from ragfm.models.model_lookup import find_model

    path = str(find_model("bundled", "embedder"))
    result = run_rounds(args, path)
    result["ratios"] = ratios(result["rows"])
    for row in result["rows"]:
        print(" | ".join(str(value) for key, value in row.items() if key != "seconds"))
    if args.quality:
        forms = ["numpy-fp32", *dict.fromkeys(row["form"] for row in result["rows"] if row["form"])]
        result["ndcg10_cranfield"] = quality(path, forms)
    result = {**about("embed"), **result}
    if args.only is None and args.peers != sys.executable:
        save(result, "embed")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
