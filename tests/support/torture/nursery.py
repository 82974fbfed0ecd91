"""A process that has everything imported and forks others, each of which does one job.

A fresh Python needs most of a second to import the store and what it stands on; a fork needs milliseconds. One thread
for OpenMP and BLAS, since their pools don't survive a fork.
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
    """A process that does a job. What it says is in `lines`, even if it was killed."""

    def __init__(self, nursery: Nursery, pid: int, out: Path) -> None:
        self.pid = pid
        self._nursery = nursery
        self._out = out
        self.status: int | None = None
        """Its exit status, negative for a signal; None while it has not been waited for."""

    def kill(self) -> None:
        """SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit status; negative for the signal that ended it."""
        if self.status is None:
            self.status = int(self._nursery.ask({"wait": self.pid}))
        return self.status

    def lines(self) -> list[Any]:
        """What it has said so far; a line that it was killed in doesn't count."""
        whole = self._out.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in whole]

    def result(self) -> Any:
        """The last thing that it said, once it has ended. Raises AssertionError where it crashed."""
        status = self.wait()
        lines = self.lines()
        assert status == 0, f"the job ended with {status}: {lines[-1:]}"
        self._out.unlink()
        return lines[-1]


class Nursery:
    """Starts jobs of `torture.jobs`, each in a process of its own. A context manager."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="torture-")
        self._numbers = itertools.count()
        path = os.pathsep.join([str(_HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {key: value for key, value in os.environ.items() if not key.startswith("RAGFM_")}
        env |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.torture.nursery"],
            cwd=self._folder.name,  # `-m` looks there first
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            text=True,
        )

    def start(self, job: str, **given: Any) -> Child:
        """Start a job; paths among what is given travel as texts."""
        out = Path(self._folder.name, f"{next(self._numbers)}.jsonl")
        out.touch()
        pid = self.ask({"job": job, "given": given, "out": out})
        return Child(self, pid, out)

    def run(self, job: str, **given: Any) -> Any:
        """Do a job to its end, and give the last thing that it said."""
        return self.start(job, **given).result()

    def ask(self, request: Any) -> Any:
        """One question to the nursery, one answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request, default=str) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # it ends, and its children with it
        self._process.wait()
        self._folder.cleanup()


def _fork(request: Any) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never outlive the nursery
        if os.getppid() != parent:
            os._exit(1)
        out = os.open(request["out"], os.O_WRONLY | os.O_APPEND)

        def tell(what: Any) -> None:
            os.write(out, json.dumps(what).encode() + b"\n")  # one call: said whole or not at all

        try:
            from support.torture import jobs

            getattr(jobs, request["job"])(tell, **request["given"])
            status = 0
        except BaseException:
            tell({"crash": traceback.format_exc()})
    finally:
        os._exit(status)


def _serve() -> None:
    from support.torture import jobs

    jobs.warm_up()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing that a job prints may pass for an answer
    for line in sys.stdin:
        request = json.loads(line)
        waited = "wait" in request
        answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]) if waited else _fork(request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
