"""Measure one peer in its own process: `python runner.py PEER TASK`, where TASK is a JSON file.

The task has `model`, `documents` (texts by uri) and `queries` (by id); with `reranker`, a cross-encoder, the peer's
best hybrid search with its own reranker is measured, too. Prints one JSON line last.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOP, DEEPER = 10, 40
RERANKED = 20
"""Passages that a reranker reads."""


def main() -> None:
    name, path = sys.argv[1:]
    sys.path[0] = str(
        Path(__file__).parents[1]
    )  # not this folder: its modules have the names of the packages that they import
    task = json.loads(Path(path).read_text(encoding="utf-8"))
    start = time.perf_counter()
    module = importlib.import_module(f"baselines.{name}")
    imported = time.perf_counter()
    peer = module.Peer(task["model"])
    loaded = time.perf_counter()
    if hasattr(peer, "prepare"):
        peer.prepare(task["documents"])
    prepared, cpu = time.perf_counter(), time.process_time()
    peer.fill(task["documents"])
    filled, filled_cpu = time.perf_counter(), time.process_time()
    ways, reranked = peer.searches(), None
    if task.get("reranker"):
        reranked, search = peer.reranked(task["reranker"], RERANKED)
        ways = {**ways, reranked: search}
    # Includes the constructor: some peers load the model there, others on first use.
    seconds = (loaded - imported) + (filled - prepared)
    result = {
        "import_s": round(imported - start, 2),
        "ingest_s": round(seconds, 2),
        "documents_per_s": round(len(task["documents"]) / seconds, 1),
        "documents_per_cpu_s": round(len(task["documents"]) / (filled_cpu - cpu), 1),
        "ways": {way: ask(search, task["queries"]) for way, search in ways.items()},
        "reranked": reranked,
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "versions": {package: importlib.metadata.version(package) for package in module.PACKAGES},
        "installed_mb": installed(module.PACKAGES),
    }
    print(json.dumps(result))


def ask(search: Callable[[str, int], list[str]], queries: dict[str, str]) -> dict[str, Any]:
    """The first ten documents for each query, and the time of a search for ten passages in milliseconds.

    `cpu_ms`, a mean of CPU time, varies less than wall-clock time on a busy machine.
    """
    first = next(iter(queries.values()))
    for k in (TOP, DEEPER):
        search(first, k)
    found, times, cpu = {}, [], 0.0
    for key, query in queries.items():
        start, start_cpu = time.perf_counter(), time.process_time()
        passages = search(query, TOP)
        times.append(1000 * (time.perf_counter() - start))
        cpu += 1000 * (time.process_time() - start_cpu)
        documents = list(dict.fromkeys(passages))
        if len(documents) < TOP:
            documents = list(dict.fromkeys([*documents, *search(query, DEEPER)]))
        found[key] = documents[:TOP]
    times.sort()
    return {
        "p50_ms": round(times[len(times) // 2], 2),
        "p95_ms": round(times[int(len(times) * 0.95)], 2),
        "cpu_ms": round(cpu / len(times), 2),
        "found": found,
    }


def installed(packages: tuple[str, ...]) -> dict[str, float]:
    """Size in MB of each package and all its dependencies, as in a new environment."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    sizes: dict[str, float] = {}
    wanted = [(package, frozenset[str]()) for package in packages]
    seen = set()
    while wanted:
        package, extras = wanted.pop()
        if (package, extras) in seen:
            continue
        seen.add((package, extras))
        try:
            distribution = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        files = [distribution.locate_file(file) for file in distribution.files or ()]
        sizes[package] = sum(os.path.getsize(file) for file in files if os.path.isfile(file)) / 1e6  # noqa: PTH202, PTH113
        for line in distribution.requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras or {""}):
                wanted.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    return sizes


if __name__ == "__main__":
    main()
