"""What a parser may not do, tried in a worker against files and processes of the test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.timing,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux confines processes"),
]

_OTHER_USER = ("unshare", "--user", "--map-user=65534", "--map-group=65534")
_ALL = ("namespaces", "landlock", "seccomp")

# Submits the document `code` to a worker whose parser executes it, without the protections in `missing`.
_SCRIPT = """
import json, sys
from ragfm.core.errors import ParseError
from ragfm.core.types import Blob
from ragfm.parsing.sandbox import worker_process
from ragfm.parsing.sandbox.worker_pool import WorkerPool
from ragfm.parsing.sandbox.worker_process import Limits

code, missing = json.loads(sys.argv[1])
worker_process.BOOT = worker_process.BOOT.replace("main(*arguments)", f'''
import json, os, time
import ragfm.parsing.sandbox.worker_main as worker
from ragfm.core.types import Document
from ragfm.parsing import heartbeat
from ragfm.parsing.sandbox import confinement

def unavailable(*arguments):
    raise OSError

steps = dict(namespaces="_leave_namespaces", landlock="_restrict_files", seccomp="_filter_system_calls")
for name in {missing!r}:
    setattr(confinement, steps[name], unavailable)

def parse(blob, uri, choice):
    names = dict(globals(), output="")
    exec(blob.data.decode().partition("DO:")[2], names)
    return Document(uri, str(names["output"]), "text/html")

worker.parse = parse
main(*arguments)
''')
pool = WorkerPool(Limits(memory=300 << 20, model_memory=600 << 20), 1)
document = pool.submit(Blob(f"<html>DO:{code}".encode()), "a.html")
try:
    result = {"text": document.result().text, "active": next(iter(pool._processes)).protections}
except ParseError as error:
    result = {"error": str(error)}
print(json.dumps(result), flush=True)
sys.stdin.read()
pool.close()
"""


@pytest.fixture(params=["this user", "another user"])
def user(request: pytest.FixtureRequest) -> Sequence[str]:
    """The start of a command that runs as a user."""
    if request.param == "this user":
        return ()
    if not shutil.which("unshare") or subprocess.run([*_OTHER_USER, "true"], check=False).returncode:
        pytest.skip("user namespaces are not allowed here")
    return _OTHER_USER


def _start(user: Sequence[str], code: str, missing: Sequence[str] = (), path: str = "") -> subprocess.Popen[str]:
    """Start a process whose worker executes the code."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), path]))
    return subprocess.Popen(
        [*user, sys.executable, "-c", _SCRIPT, json.dumps([code, missing])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
    )


def _run(*arguments: Any) -> dict[str, Any]:
    output, _ = _start(*arguments).communicate()
    result: dict[str, Any] = json.loads(output)
    return result


_ATTEMPTS = """
import ctypes, fcntl, json, os, resource, socket, struct

def attempt(file, other, address):
    libc, message = ctypes.CDLL(None, use_errno=True), [b"x"]
    read_only = os.open(file, os.O_RDONLY)

    def call(function, *arguments):
        if function(*arguments) < 0:
            raise OSError(ctypes.get_errno(), "refused")

    def send(sender):
        with sender:
            sender.sendto(b"x", address)

    def send_message(sender):
        with sender:
            sender.sendmsg(message, [], 0, address)

    attempts = {
        "chmod": lambda: os.chmod(file, 0o600),
        "fchmod": lambda: os.fchmod(read_only, 0o600),
        "chown": lambda: os.chown(file, os.getuid(), os.getgid()),
        "fchown": lambda: os.fchown(read_only, os.getuid(), os.getgid()),
        "utime": lambda: os.utime(file, (1, 1)),
        "futimens": lambda: os.utime(read_only, (1, 1)),
        "setxattr": lambda: os.setxattr(file, "user.ragfm", b"1"),
        "fsetxattr": lambda: os.setxattr(read_only, "user.ragfm", b"1"),
        "fremovexattr": lambda: os.removexattr(read_only, "user.ragfm"),
        "chattr": lambda: fcntl.ioctl(read_only, 0x40086602, struct.pack("l", 0x80)),  # FS_IOC_SETFLAGS, noatime
        "prlimit": lambda: resource.prlimit(other, resource.RLIMIT_CORE, (0, 0)),
        "renice": lambda: os.setpriority(os.PRIO_PROCESS, other, 10),
        "affinity": lambda: os.sched_setaffinity(other, os.sched_getaffinity(0)),
        "scheduler": lambda: os.sched_setscheduler(other, os.SCHED_BATCH, os.sched_param(0)),
        "datagram": lambda: send(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)),
        "raw datagram": lambda: send(socket.socket(socket.AF_UNIX, socket.SOCK_RAW)),
        "datagram of a pair": lambda: send(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0]),
        "message of a pair": lambda: send_message(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0]),
        "memory file": lambda: os.close(os.memfd_create("x")),
        "shared memory": lambda: call(libc.shmget, 0, 4096, 0o600),
        "command line": lambda: open(f"/proc/{other}/cmdline").read(),
        "signal": lambda: os.kill(other, 0),
    }
    outcomes = {}
    for name, act in attempts.items():
        try:
            act()
            outcomes[name] = "done"
        except OSError as error:
            outcomes[name] = f"refused: {error}"
    return outcomes
"""


@pytest.mark.parametrize("active", [_ALL, ("landlock", "seccomp"), ("seccomp",)], ids="+".join)
def test_files_and_processes_of_the_user_cannot_be_changed(
    user: Sequence[str], active: Sequence[str], tmp_path: Path
) -> None:
    file, address = tmp_path / "file", tmp_path / "socket"
    file.write_text("x")
    here = "import socket, subprocess, sys; receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    here += f"receiver.bind({str(address)!r}); sleeper = subprocess.Popen(['sleep', '1000'])\n{_ATTEMPTS}\n"
    here += f"print(json.dumps([sleeper.pid, attempt({str(file)!r}, sleeper.pid, {str(address)!r})]), flush=True)\n"
    here += "sys.stdin.read(); sleeper.kill(); sleeper.wait()"
    outside = subprocess.Popen(
        [*user, sys.executable, "-c", here], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert outside.stdout is not None
    other, possible = json.loads(outside.stdout.readline())
    code = f"{_ATTEMPTS}\noutput = json.dumps(attempt({str(file)!r}, {other}, {str(address)!r}))"
    result = _run(user, code, [name for name in _ALL if name not in active], str(tmp_path))
    outside.communicate()
    assert "error" not in result, result["error"]
    if not {*active} <= {*result["active"]}:
        pytest.skip(f"only {result['active']} are available here")
    outcomes = json.loads(result["text"])
    if "landlock" not in active:
        del outcomes["command line"], outcomes["signal"]
    assert [name for name, outcome in outcomes.items() if outcome == possible[name] == "done"] == []
    assert sum(outcome == "done" for outcome in possible.values()) > 15  # and the test tries what is possible


_STARTS_SLEEPERS = """
import subprocess, sys
for _ in range(3):  # in sessions of their own, and as orphans
    subprocess.run([sys.executable, "-c", {start!r}], check=True)
output = "started"
"""


def _sleepers(marker: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if command[0] == b"sleep" and marker.encode() in command:
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize("missing", [(), ("namespaces",)], ids=["all", "no namespaces"])
@pytest.mark.parametrize("end", ["close", "kill the parent", "crash of the worker"])
def test_nothing_that_a_worker_starts_outlives_it(user: Sequence[str], missing: Sequence[str], end: str) -> None:
    marker = f"{uuid.uuid4().int % 10**9 + 10**9}.5"
    start = f"import subprocess; subprocess.Popen(['sleep', {marker!r}], start_new_session=True)"
    code = _STARTS_SLEEPERS.format(start=start)
    if end == "crash of the worker":
        code += "\nos.abort()"
    process = _start(user, code, missing)
    assert process.stdout is not None
    try:
        result = json.loads(process.stdout.readline())
        deadline = time.monotonic() + 10
        while len(left := _sleepers(marker)) < 3 and end != "crash of the worker" and time.monotonic() < deadline:
            time.sleep(0.05)  # a process that was just started has no command line yet
        if end == "kill the parent":
            process.kill()
    finally:
        process.communicate()
    if end == "crash of the worker":
        assert "crashed (SIGABRT)" in result["error"]
        assert left == []
    else:
        assert len(left) == 3
    while end == "kill the parent" and _sleepers(marker):
        time.sleep(0.05)
    assert _sleepers(marker) == []


@pytest.mark.parametrize("missing", [(), ("namespaces",)], ids=["all", "no namespaces"])
def test_the_memory_of_all_processes_counts(user: Sequence[str], missing: Sequence[str]) -> None:
    code = """
for _ in range(3):
    if not os.fork():
        memory = bytearray(b"x") * (150 << 20)
        time.sleep(1000)
while True:
    heartbeat.beat()
    time.sleep(0.1)
"""
    assert "its parser needs over 0.29" in _run(user, code, missing)["error"]


@pytest.mark.parametrize("missing", [(), ("namespaces",)], ids=["all", "no namespaces"])
def test_a_worker_cannot_start_any_number_of_processes(user: Sequence[str], missing: Sequence[str]) -> None:
    code = """
import subprocess
sleepers = [subprocess.Popen(["sleep", "1000"], start_new_session=True) for _ in range(60)]
while True:
    heartbeat.beat()
    time.sleep(0.1)
"""
    assert "its parser started over 32 processes" in _run(user, code, missing)["error"]
