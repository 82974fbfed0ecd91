"""A process with everything imported that forks other processes, each of which runs one job.

A new Python takes most of a second to import the store; a fork takes milliseconds. OpenMP and BLAS use one thread,
because their thread pools do not survive a fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parents[2]


class Child:
    """A process that runs a job. `lines` returns its output, even if it was killed."""

    def __init__(self, server: ForkServer, pid: int, out: Path) -> None:
        self.pid = pid
        self._server = server
        self._out = out
        self.status: int | None = None
        """Exit status, negative for a signal; None before `wait`."""

    def kill(self) -> None:
        """Send SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for its end. Returns the exit status, negative for a signal."""
        if self.status is None:
            self.status = int(self._server.ask({"wait": self.pid}))
        return self.status

    def lines(self) -> list[Any]:
        """Its output so far, without an incomplete last line."""
        whole = self._out.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in whole]

    def result(self) -> Any:
        """Wait for its end. Returns the last value of its output. Raises AssertionError if it crashed."""
        status = self.wait()
        lines = self.lines()
        assert status == 0, f"the job ended with {status}: {lines[-1:]}"
        self._out.unlink()
        return lines[-1]


class ForkServer:
    """Starts jobs of `torture.jobs`, each in its own process. A context manager."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="torture-")
        self._numbers = itertools.count()
        path = os.pathsep.join([str(_HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {key: value for key, value in os.environ.items() if not key.startswith("RAGFM_")}
        env |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        env["XDG_CACHE_HOME"] = self._folder.name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.torture.fork_server"],
            cwd=self._folder.name,  # `-m` looks there first
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            text=True,
        )

    def start(self, job: str, **arguments: Any) -> Child:
        """Start a job. Its arguments are sent as JSON, paths as strings."""
        out = Path(self._folder.name, f"{next(self._numbers)}.jsonl")
        out.touch()
        pid = self.ask({"job": job, "arguments": arguments, "out": out})
        return Child(self, pid, out)

    def run(self, job: str, **arguments: Any) -> Any:
        """Run a job to its end. Returns the last value of its output."""
        return self.start(job, **arguments).result()

    def ask(self, request: Any) -> Any:
        """Send a request to the process. Returns its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request, default=str) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # the process and its children end
        self._process.wait()
        self._folder.cleanup()


def _fork(request: Any) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the parent
        if os.getppid() != parent:
            os._exit(1)
        out = os.open(request["out"], os.O_WRONLY | os.O_APPEND)

        def report(value: Any) -> None:
            os.write(out, json.dumps(value).encode() + b"\n")  # one call: written completely or not at all

        try:
            from support.torture import jobs

            getattr(jobs, request["job"])(report, **request["arguments"])
            status = 0
        except BaseException:
            report({"crash": traceback.format_exc()})
    finally:
        os._exit(status)


def _serve() -> None:
    from support.torture import jobs

    jobs.warm_up()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of a job must not be read as an answer
    for line in sys.stdin:
        request = json.loads(line)
        waited = "wait" in request
        answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]) if waited else _fork(request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
