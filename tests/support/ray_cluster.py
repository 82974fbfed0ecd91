"""A Ray cluster of a head and nodes, each of which can be killed. Processes of one machine stand for machines."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from support.free_port import free_port


class RayCluster:
    """The parts of a cluster, which all have `variables` in their environment."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self._folder = folder
        self.port = free_port()
        self._own = {"RAY_DISABLE_IMPORT_WARNING": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAGFM_RAY_TEST": str(folder)}
        # A raylet without its head ends after this many seconds, and a node counts as dead after three missed checks.
        self._own |= {
            "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
            "RAY_health_check_failure_threshold": "3",
            "RAY_health_check_period_ms": "1000",
        }
        self._variables = variables

    @property
    def address(self) -> str:
        """The value of RAY_ADDRESS."""
        return f"127.0.0.1:{self.port}"

    def start(self, cpus: int, *, head: bool = False, gpus: int = 0) -> subprocess.Popen[bytes]:
        """Start the head or a node, and wait until it has joined."""
        where = ["--head", f"--port={self.port}"] if head else [f"--address={self.address}"]
        if head:
            where += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={self._folder}"]
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            *where,
            "--block",
            "--node-ip-address=127.0.0.1",
        ]
        command += [f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--object-store-memory=80000000"]
        log = (self._folder.parent / f"{self._folder.name}.log").open("ab")
        process = subprocess.Popen(
            command,
            env=os.environ | self._own | self._variables,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        assert process.stdout is not None
        for line in process.stdout:
            if b"Ray runtime started" in line:
                return process
        raise AssertionError(f"Ray did not start, code {process.wait()}")

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End a head or a node with everything that it has started, as a machine that loses its power."""
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for member in family:
            try:
                member.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        process.wait()

    def processes(self) -> list[psutil.Process]:
        """All processes of the cluster."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("RAGFM_RAY_TEST") == str(self._folder):
                    found.append(process)
            except psutil.Error:
                continue
        return found


@contextmanager
def ray_cluster(
    *cpus: int, gpus: int = 0, **variables: str
) -> Iterator[tuple[RayCluster, list[subprocess.Popen[bytes]]]]:
    """A head with the first number of CPUs, and a node with each of the others. Nothing of it is left at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # paths of sockets must be short
    cluster = RayCluster(folder, variables)
    try:
        yield cluster, [cluster.start(number, head=not place, gpus=gpus) for place, number in enumerate(cpus)]
    finally:
        deadline = time.monotonic() + 30
        while (left := cluster.processes()) and time.monotonic() < deadline:
            for process in left:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.2)
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_name(f"{folder.name}.log").unlink(missing_ok=True)


_RECORD = """
import sys
if any(word.endswith("default_worker.py") for word in sys.orig_argv):
    import os, time
    from ragfm.testing import HashingEmbedder

    log, seconds = {arguments!r}
    embed = HashingEmbedder.embed_passages

    def recorded(self, texts):
        time.sleep(seconds)
        with open(log, "ab", buffering=0) as file:
            file.write(b"".join(repr(text).encode() + b"\\n" for text in texts))
        return embed(self, texts)

    HashingEmbedder.embed_passages = recorded
"""


def recording_on_ray(folder: Path, log: Path, seconds: float) -> str:
    """Let Ray's processes record the texts that they embed, and take `seconds` longer per call.

    Returns their PYTHONPATH, which begins with `folder`.
    """
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_RECORD.format(arguments=(str(log), seconds)))
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def embedded_texts(log: Path) -> Counter[str]:
    """How often Ray's processes have embedded each text."""
    return Counter(log.read_text().splitlines()) if log.exists() else Counter()
