"""Ingest on a Ray cluster whose nodes are killed, and compare the collection with that of a single process.

    python benchmarks/bench_workers.py [--documents 20000]

Both use PostgreSQL and the embedder `hashing`. Of a head and two nodes of one CPU each, a node is killed three times
and replaced, at equal steps of the work. The contents are compared document by document, chunk by chunk and vector by
vector.

`embedded_twice` counts texts that were embedded again because a node was killed before it had stored them; `allowed`
is what the batches of the killed nodes hold at most. Prints one JSON line, kept in benchmarks/results/workers-ray.json.
The exit code is 1 for a difference.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

from measure import about, save

from ragfm import Collection, Settings
from ragfm.ingestion.ray_executor import BATCH

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.postgres_server import postgres_server
from support.ray_cluster import embedded_texts, ray_cluster, recording_on_ray

MOST_CHUNKS = 8  # of a document below


def write(folder: Path, count: int) -> None:
    """Documents of one to about eight chunks, changed an hour ago."""
    chance = random.Random(0)
    for number in range(count):
        lines = [f"Rule {line} of {number}: {chance.randrange(10**6)} days." for line in range(chance.randrange(1, 40))]
        path = folder / f"{number % 100:02}" / f"{number}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# Document {number}\n\n" + "\n".join(lines) + "\n")
        os.utime(path, (time.time() - 3600,) * 2)


def digest(server: Any, schema: str) -> dict[str, str]:
    """Digests of all live documents, chunks and vectors, without ids and generations."""
    queries = {
        "documents": f"SELECT path, uri, digest, recipe, media_type, metadata, marks, text FROM {schema}.documents "
        "WHERE died IS NULL ORDER BY uri",
        "chunks": "SELECT d.uri, c.start, c.end, c.page, c.headings, c.context, encode(c.text_hash, 'hex') "
        f"FROM {schema}.chunks c JOIN {schema}.documents d ON d.id = c.document_id WHERE c.died IS NULL "
        "ORDER BY d.uri, c.start, c.end",
        "vectors": f"SELECT encode(text_hash, 'hex'), encode(vector, 'hex') FROM {schema}.vectors ORDER BY 1",
    }
    return {name: blake2b(server.sql(query).encode(), digest_size=16).hexdigest() for name, query in queries.items()}


def sync(address: str, folder: Path, **options: Any) -> Any:
    with Collection.open(address, settings=Settings(), embedder="hashing") as collection:
        return collection.sync(folder, name="docs", **options)


def sync_on_ray(address: str, folder: Path, log: Path, texts: int) -> tuple[Any, int]:
    """Returns the report and the number of nodes that were killed. The collection will have so many `texts`."""
    path = recording_on_ray(folder.parent / "code", log, seconds=0.5)
    with ray_cluster(1, 1, 1, PYTHONPATH=path) as (cluster, (_, *nodes)):
        done = threading.Event()
        kills = 0

        def kill_nodes() -> None:
            nonlocal kills
            for step in range(1, 4):
                while len(embedded_texts(log)) < texts * step / 4:
                    if done.wait(0.2):
                        return
                cluster.kill(nodes.pop(0))
                nodes.append(cluster.start(1))
                kills += 1

        killer = threading.Thread(target=kill_nodes)
        killer.start()
        os.environ["RAY_ADDRESS"] = cluster.address
        try:
            report = sync(address, folder, executor="ray")
        finally:
            done.set()
            killer.join()
    return report, kills


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    args = parser.parse_args()
    with postgres_server() as server, tempfile.TemporaryDirectory() as name:
        folder, log = Path(name, "docs"), Path(name, "embedded")
        folder.mkdir()
        os.environ["XDG_CACHE_HOME"] = str(Path(name, "cache"))
        write(folder, args.documents)
        addresses = {schema: server.address(schema) for schema in ("alone", "shared")}
        start = time.monotonic()
        alone = sync(addresses["alone"], folder)
        alone_seconds = time.monotonic() - start
        expected = int(server.sql("SELECT count(*) FROM alone.vectors"))
        start = time.monotonic()
        shared, kills = sync_on_ray(addresses["shared"], folder, log, expected)
        shared_seconds = time.monotonic() - start
        versions = server.sql("SELECT count(*) FROM shared.documents")
        equal = digest(server, "alone") == digest(server, "shared")
        texts = embedded_texts(log)
    again, allowed = texts.total() - len(texts), kills * BATCH * MOST_CHUNKS
    result = {
        **about("workers"),
        "executor": "ray",
        "documents": args.documents,
        "kills": kills,
        "added": [alone.added, shared.added],
        "document_versions": int(versions),
        "failed": [len(alone.failed), len(shared.failed)],
        "equal": equal,
        "texts": len(texts),
        "embedded_twice": again,
        "embedded_twice_share": round(again / max(1, len(texts)), 5),
        "allowed": allowed,
        "seconds": [round(alone_seconds, 1), round(shared_seconds, 1)],
    }
    save(result, "workers-ray")
    print(json.dumps(result))
    sound = equal and texts and again <= allowed and int(versions) == alone.added == shared.added
    sys.exit(not sound)


if __name__ == "__main__":
    main()
