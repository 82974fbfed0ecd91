"""Fault injection by strace: a process is killed at, or gets an error from, one of its writing system calls.

https://man7.org/linux/man-pages/man1/strace.1.html, "Tampering": calls are counted per thread and per system call.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragfm.store.tables import text_hash
from ragfm.store.uploads import UPLOADS_SOURCE
from support.torture.expected_state import ExpectedState
from support.torture.fork_server import Child, ForkServer
from support.torture.writer_jobs import UPLOAD, UPLOAD_ID

WRITES = tuple(
    """
    write writev pwrite64 pwritev pwritev2 fsync fdatasync sync_file_range msync
    rename renameat renameat2 unlink unlinkat rmdir truncate ftruncate fallocate
    mkdir mkdirat link linkat symlinkat sendfile copy_file_range openat fchmod
    chmod
    """.split()
)
CHANGES = ("create", "commit", "delete", "access", "compaction", "reembed", "upload", "backup")
_SYNCS = ("fsync", "fdatasync", "msync")
_SYNCED = re.compile(r"sync\(\d+<(.*?)>\) += (.*)")
_CALL = re.compile(r"^(\d+) +(\w+)\((.*)$")


def has_strace() -> bool:
    """Whether processes can be traced here."""
    if shutil.which("strace") is None:
        return False
    return (
        subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], check=False, capture_output=True).returncode == 0
    )


@dataclass(frozen=True)
class Call:
    """The n-th call of a system call in a thread, and its line in the trace."""

    name: str
    number: int
    text: str


@dataclass
class Site:
    """A prepared collection, and its expected content before and after a change."""

    fork_server: ForkServer
    base: Path
    place: Path
    before: dict[str, str]
    after: dict[str, str]

    @classmethod
    def make(cls, fork_server: ForkServer, folder: Path) -> Site:
        """Prepare one in a folder; each trial gets a copy at the same path."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "place").mkdir()
        output = fork_server.run("prepare", folder=folder / "place", seed=1)
        (folder / "place").rename(folder / "base")
        return cls(fork_server, folder / "base", folder / "place", output["before"], output["after"])

    def fresh(self) -> None:
        """Undo the changes of a trial."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.base, self.place, copy_function=shutil.copy2)  # modification times are revisions

    def states(self, change: str) -> tuple[ExpectedState, ExpectedState]:
        """The expected states before and after a change."""
        source = {"commit": "a", "delete": "b"}.get(change)
        after = {
            uri: value
            for content in (self.before, self.after)
            for uri, value in content.items()
            if (uri.split("/")[0] == source) == (content is self.after)
        }
        states = (
            ExpectedState({u: {h} for u, h in self.before.items()}),
            ExpectedState({u: {h} for u, h in after.items()}),
        )
        if change == "access":
            states[1].allowed["later"] = {("staff",)}
        if change == "upload":
            uri = f"{UPLOADS_SOURCE}/{UPLOAD_ID}/note.md"
            states[1].documents[uri] = {text_hash(UPLOAD.decode()).hex()}
            states[1].allowed[UPLOADS_SOURCE] = {("key:a",)}
        if change == "create":
            new = {u: {h} for u, h in self.after.items() if u.startswith("b/")}
            states = ExpectedState(), ExpectedState(new)  # type: ignore[assignment]
        return states

    def inspect(self, change: str) -> Any:
        """The content of the collection, as `jobs.inspect` reports it."""
        return self.fork_server.run("inspect", folder=self.place / ("new" if change == "create" else "c"))

    def judge(self, change: str, *, must_be_done: bool | None = None) -> list[str]:
        """Problems if the collection is neither entirely as before the change nor entirely as after it."""
        try:
            found = self.inspect(change)
        except AssertionError as error:
            return [f"it cannot be opened again: {error}"]
        before, after = self.states(change)
        if change == "backup":
            try:
                restored = self.fork_server.run("restore_backup", folder=self.place)
            except AssertionError as error:
                return [f"the backup cannot be restored: {error}"]
            if restored["documents"] is None and must_be_done:
                return ["there is no backup"]
            if restored["documents"] is not None:
                complete = restored["documents"] == sorted(before.documents)
                found["problems"] += [] if complete else [f"the backup has the documents {restored['documents']}"]
                found["problems"] += restored["findings"]
        if must_be_done is True:
            return [*after.compare(found), *_switched(change, found)]
        if must_be_done is False:
            return before.compare(found)
        if not found["exists"] and change == "create":
            return []
        undone, done = before.compare(found), after.compare(found)
        if change == "create" and not found["documents"]:
            return list(found["problems"])
        return [] if not undone or not done else [*undone, *done]


def _switched(change: str, found: Any) -> list[str]:
    return [f"it still has {found['dim']} dimensions"] if change == "reembed" and found["dim"] != 48 else []


def watch(child: Child, log: Path, *inject: str) -> int:
    """Trace a stopped child, continue it, and return its exit status."""
    command = ["strace", "-f", "-y", "-qq", "-s", "0", "-o", str(log), "-e", f"trace={','.join(WRITES)}"]
    status = Path(f"/proc/{child.pid}/status")
    _wait_for(status, "State:\tT")
    strace = subprocess.Popen([*command, *inject, "-p", str(child.pid)], stderr=subprocess.DEVNULL)
    _wait_for(status, f"TracerPid:\t{strace.pid}\n")
    time.sleep(0.01)
    os.kill(child.pid, signal.SIGCONT)
    try:
        ended = child.wait()
    finally:
        strace.wait(timeout=30)
    return ended


def crash(output: list[Any]) -> str:
    """The end of a process's output: the last lines of the traceback in ragfm, and the error."""
    text = str(output[-1].get("crash", output[-1])) if output else "nothing"
    lines = text.strip().splitlines()
    return " | ".join([*[line.strip() for line in lines if "ragfm" in line and "File" in line][-3:], *lines[-1:]])


def _wait_for(status: Path, line: str) -> None:
    for _ in range(20_000):
        if line in status.read_text():
            return
        time.sleep(0.001)
    raise TimeoutError(f"the process never came to {line!r}")


def calls(log: Path, within: Path) -> list[Call]:
    """The distinct calls of a trace that concern a folder; of `openat` only those that may create a file."""
    counts: Counter[tuple[str, str]] = Counter()
    found: dict[tuple[str, int], Call] = {}
    for line in log.read_text(errors="replace").splitlines():
        match = _CALL.match(line)
        if match is None:
            continue
        thread, name, rest = match.groups()
        counts[thread, name] += 1
        if str(within) in rest and (name != "openat" or "O_CREAT" in rest):
            number = counts[thread, name]
            found.setdefault((name, number), Call(name, number, rest))
    return sorted(found.values(), key=lambda call: (call.name, call.number))


def trials(site: Site, change: str, attempts: int = 1) -> list[Call]:
    """The writing system calls of an undisturbed change."""
    site.fresh()
    log = site.place / "trace"
    child = site.fork_server.start("one_change", folder=site.place, change=change, seed=1, attempts=attempts)
    status = watch(child, log)
    assert status == 0, child.lines()[-1:]
    problems = site.judge(change, must_be_done=True)
    assert not problems, problems
    return calls(log, site.place)


def kill_at_calls(
    fork_server: ForkServer, folder: Path, changes: tuple[str, ...] = CHANGES, step: int = 1
) -> dict[str, Any]:
    """Kill a process at every `step`-th system call of each change. Returns counts and `problems`."""
    site, start = Site.make(fork_server, folder), time.monotonic()
    problems, counts = list[str](), dict[str, int]()
    for change in changes:
        for call in trials(site, change)[::step]:
            site.fresh()
            child = fork_server.start("one_change", folder=site.place, change=change, seed=1)
            status = watch(child, folder / "trace", "-e", f"inject={call.name}:signal=SIGKILL:when={call.number}")
            counts[change] = counts.get(change, 0) + (status == -signal.SIGKILL)
            where = f"{change}, killed at {call.name} {call.number} ({call.text[:150]})"
            if status not in (0, -signal.SIGKILL):
                problems.append(f"{where}: ended with {status}: {crash(child.lines())}")
            problems += [f"{where}: {problem}" for problem in site.judge(change, must_be_done=status == 0 or None)]
            problems += [f"{where}: again: {problem}" for problem in _again(site, change)]
    return {"kills": counts, "problems": problems, "seconds": round(time.monotonic() - start, 1)}


def fail_calls(
    fork_server: ForkServer, folder: Path, changes: tuple[str, ...] = CHANGES, step: int = 1
) -> dict[str, Any]:
    """Let every `step`-th system call of each change fail, with a full disk and with an I/O error."""
    site, start = Site.make(fork_server, folder), time.monotonic()
    problems, outcomes = list[str](), Counter[str]()
    for change in changes:
        for call, error in list(_injections(trials(site, change)))[::step]:
            site.fresh()
            child = fork_server.start("one_change", folder=site.place, change=change, seed=1, attempts=2)
            status = watch(child, folder / "trace", "-e", f"inject={call.name}:error={error}:when={call.number}")
            if not _injected(folder / "trace", site.place):
                continue  # the numbers of calls vary
            output = child.lines()[-1:]
            where = f"{change}, {error} from {call.name} {call.number} ({call.text[:150]})"
            if status != 0:
                problems.append(f"{where}: ended with {status}: {crash(output)}")
                continue
            first, *second = output[0]["outcomes"]
            outcomes["succeeded" if first is None else first["type"]] += 1
            if first is None and call.name in _SYNCS and not _synced_again(folder / "trace"):
                problems.append(f"{where}: success, though it was not made durable")
            if any(second):
                problems.append(f"{where}: {first}; the second attempt failed too: {second}")
            problems += [f"{where}: {problem}" for problem in site.judge(change, must_be_done=not any(second) or None)]
            problems += _only_first(site, change, call, error, where) if first is not None else []
    return {"failures": dict(outcomes), "problems": problems, "seconds": round(time.monotonic() - start, 1)}


def _injected(log: Path, within: Path) -> bool:
    """Whether the failed call writes to the folder."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.endswith("(INJECTED)")]
    return bool(lines) and all(str(within) in line and ("openat(" not in line or "O_CREAT" in line) for line in lines)


def _synced_again(log: Path) -> bool:
    """Whether a failed fsync was followed by a successful one of the same file or folder.

    SQLite ignores a failed fsync of a folder, but writing HEAD repeats it. A checkpoint need not succeed.
    """
    failed = None
    for path, result in _SYNCED.findall(log.read_text(errors="replace")):
        if "INJECTED" in result:
            failed = path
        elif path == failed and result == "0":
            return True
    return failed is None or failed.endswith("catalog.db")


def _only_first(site: Site, change: str, call: Call, error: str, where: str) -> list[str]:
    """The same with one attempt: the older generation is intact, and another process can make the change."""
    site.fresh()
    child = site.fork_server.start("one_change", folder=site.place, change=change, seed=1)
    watch(child, site.place / "trace", "-e", f"inject={call.name}:error={error}:when={call.number}")
    problems = [f"{where}: one attempt: {problem}" for problem in site.judge(change)]
    return problems + [f"{where}: by another process: {problem}" for problem in _again(site, change)]


def _injections(seen: list[Call]) -> Iterator[tuple[Call, str]]:
    for call in seen:
        yield call, "EIO"
        if call.name not in ("unlink", "unlinkat", "rmdir"):  # these need no space
            yield call, "ENOSPC"


def _again(site: Site, change: str) -> list[str]:
    """Make the change in another process, undisturbed."""
    child = site.fork_server.start("one_change", folder=site.place, change=change, seed=1)
    _wait_for(Path(f"/proc/{child.pid}/status"), "State:\tT")
    os.kill(child.pid, signal.SIGCONT)
    try:
        outcome = child.result()["outcomes"][0]
    except AssertionError as error:
        return [str(error)]
    return [str(outcome)] if outcome is not None else site.judge(change, must_be_done=True)
