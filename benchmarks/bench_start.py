"""Measure start-up time: imports, the command line and a first search, compared with importing other frameworks.

    python benchmarks/bench_start.py [--python PEERS/bin/python] [--rounds 7]

Each runs in its own process, once without timing to fill the page cache; the median of `rounds`, compared with bare
Python. Frameworks that are not installed are skipped. Prints a table, and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import about, save

CLI = "import sys; from ragfm.cli import main; sys.exit(main())"  # like the installed command
OURS = {
    "python": ("-c", "pass"),
    "import ragfm": ("-c", "import ragfm"),
    "ragfm.Collection, .Rag": ("-c", "from ragfm import Collection, Rag"),
    "ragfm --version": ("-c", CLI, "--version"),
    "ragfm search, keyword": ("-c", CLI, "search", "parental leave", "--mode", "keyword"),
    "ragfm search, hybrid": ("-c", CLI, "search", "parental leave"),
}
PEERS = {
    "LlamaIndex": "from llama_index.core import VectorStoreIndex",
    "Haystack": "from haystack import Document, Pipeline",
    "LangChain": "from langchain_core.vectorstores import InMemoryVectorStore",
    "txtai": "from txtai import Embeddings",
}


def seconds(command: list[str], rounds: int, cwd: str) -> float | None:
    """Median time of a process; None if it fails."""
    times = []
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    for _ in range(rounds + 1):
        start = time.perf_counter()
        done = subprocess.run(command, check=False, capture_output=True, cwd=cwd, env=environment)
        times.append(time.perf_counter() - start)
        if done.returncode:
            print(done.stderr.decode(errors="replace")[-300:], file=sys.stderr)
            return None
    return round(statistics.median(times[1:]), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="Python of an environment with the other frameworks")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    times: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory() as place:
        samples = Path(sys.modules["ragfm"].__file__ or "").parent / "samples" / "handbook"
        ingest = [sys.executable, "-c", CLI, "ingest", str(samples)]
        subprocess.run(ingest, check=True, capture_output=True, cwd=place)
        for name, arguments in OURS.items():
            times[name] = seconds([sys.executable, *arguments], args.rounds, place)
        for name, line in PEERS.items() if args.python else ():
            times[name] = seconds([args.python, "-c", line], args.rounds, place)
    for name, value in times.items():
        print(f"{name:26} {value}")
    result = {**about("start"), "rounds": args.rounds, "seconds": times}
    save(result, "start")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
