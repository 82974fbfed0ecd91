"""Workers in other processes that record the texts they embed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

_RECORD = """
import os, time
from ragfm.ingestion import worker
from ragfm.store import work_queue
from ragfm.testing import HashingEmbedder

log, seconds, work_queue.LEASE_SECONDS, worker.BATCH = {arguments!r}
work_queue.MAX_LEASES = 100
embed = HashingEmbedder.embed_passages

def recorded(self, texts):
    time.sleep(seconds)
    with open(log, "ab", buffering=0) as file:
        file.write(b"".join(repr(text).encode() + b"\\n" for text in texts))
    return embed(self, texts)

HashingEmbedder.embed_passages = recorded
"""
_MAIN = """
from ragfm.cli.main import main
main()
"""
_ONLY_ON_RAY = """
import sys
if any(word.endswith("default_worker.py") for word in sys.orig_argv):
    exec({code!r}, {{}})
"""


def start_worker(
    address: str, log: Path, *, seconds: float = 0.0, lease: float = 1.5, batch: int = 4
) -> subprocess.Popen[bytes]:
    """Start `ragfm worker`: embedding takes so many `seconds` longer, a lease of `batch` documents lasts `lease` s."""
    script = _RECORD.format(arguments=(str(log), seconds, lease, batch)) + _MAIN
    command = [sys.executable, "-c", script, "worker", "-c", address, "--until-eof"]
    return subprocess.Popen(command, env=os.environ, stdin=subprocess.PIPE)


def recording_on_ray(folder: Path, log: Path, *, seconds: float = 0.0, lease: float = 1.5, batch: int = 4) -> str:
    """Code for the processes of Ray's actors that does the same. Returns their PYTHONPATH, which begins in `folder`."""
    return code_on_ray(folder, _RECORD.format(arguments=(str(log), seconds, lease, batch)))


def code_on_ray(folder: Path, code: str) -> str:
    """Let the processes of Ray's actors run `code` at their start. Returns their PYTHONPATH."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_ONLY_ON_RAY.format(code=code))
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def stop_worker(process: subprocess.Popen[bytes]) -> int:
    """Let a worker end by itself. Returns its exit code."""
    assert process.stdin is not None
    process.stdin.close()
    return process.wait(60)


def embedded_texts(log: Path) -> Counter[str]:
    """How often the workers have embedded each text."""
    return Counter(log.read_text().splitlines()) if log.exists() else Counter()
