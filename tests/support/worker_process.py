"""A worker in its own process that records the texts it embeds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

_SCRIPT = """
import os, sys, time
from ragfm.ingestion import worker
from ragfm.store import work_queue
from ragfm.testing import HashingEmbedder

log, *numbers = [sys.argv.pop(1) for _ in range(4)]
seconds, work_queue.LEASE_SECONDS = map(float, numbers[:2])
worker.BATCH, work_queue.MAX_LEASES = int(numbers[2]), 100
embed = HashingEmbedder.embed_passages

def recorded(self, texts):
    time.sleep(seconds)
    with open(log, "ab", buffering=0) as file:
        file.write(b"".join(repr(text).encode() + b"\\n" for text in texts))
    return embed(self, texts)

HashingEmbedder.embed_passages = recorded
from ragfm.cli.main import main
main()
"""


def start_worker(
    address: str, log: Path, *, seconds: float = 0.0, lease: float = 1.5, batch: int = 4
) -> subprocess.Popen[bytes]:
    """Start `ragfm worker`: embedding takes so many `seconds` longer, a lease of `batch` documents lasts `lease` s."""
    numbers = map(str, (seconds, lease, batch))
    command = [sys.executable, "-c", _SCRIPT, str(log), *numbers, "worker", "-c", address, "--until-eof"]
    return subprocess.Popen(command, env=os.environ, stdin=subprocess.PIPE)


def stop_worker(process: subprocess.Popen[bytes]) -> int:
    """Let a worker end by itself. Returns its exit code."""
    assert process.stdin is not None
    process.stdin.close()
    return process.wait(60)


def embedded_texts(log: Path) -> Counter[str]:
    """How often the workers have embedded each text."""
    return Counter(log.read_text().splitlines()) if log.exists() else Counter()
