"""A process is killed at, or gets an error from, each of its system calls that write: by strace, one at a time.

https://man7.org/linux/man-pages/man1/strace.1.html, "Tampering": calls are counted for each thread and call by itself.
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

from support.torture.nursery import Child, Nursery
from support.torture.truth import Truth

WRITES = (
    "write", "writev", "pwrite64", "pwritev", "pwritev2", "fsync", "fdatasync", "sync_file_range", "msync", "rename",
    "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "truncate", "ftruncate", "fallocate", "mkdir", "mkdirat",
    "link", "linkat", "symlinkat", "sendfile", "copy_file_range", "openat", "fchmod", "chmod",
)  # fmt: skip
CHANGES = ("create", "commit", "delete", "access", "compaction", "reembed")
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
    """The n-th call of a system call by a thread, and what it said."""

    name: str
    number: int
    text: str


@dataclass
class Site:
    """A prepared collection, and what it holds before and after a change."""

    nursery: Nursery
    base: Path
    place: Path
    before: dict[str, str]
    after: dict[str, str]

    @classmethod
    def make(cls, nursery: Nursery, folder: Path) -> Site:
        """Prepare one in a folder; each trial gets a copy in the same place."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "place").mkdir()
        said = nursery.run("prepare", folder=folder / "place", seed=1)
        (folder / "place").rename(folder / "base")
        return cls(nursery, folder / "base", folder / "place", said["before"], said["after"])

    def fresh(self) -> None:
        """Undo what a trial has done."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.base, self.place, copy_function=shutil.copy2)  # times of change are revisions

    def states(self, change: str) -> tuple[Truth, Truth]:
        """What the collection holds before a change, and after it."""
        source = {"commit": "a", "delete": "b"}.get(change)
        after = {
            uri: value
            for held in (self.before, self.after)
            for uri, value in held.items()
            if (uri.split("/")[0] == source) == (held is self.after)
        }
        states = Truth({u: {h} for u, h in self.before.items()}), Truth({u: {h} for u, h in after.items()})
        if change == "access":
            states[1].allowed["later"] = {("staff",)}
        if change == "create":
            new = {u: {h} for u, h in self.after.items() if u.startswith("b/")}
            states = Truth(), Truth(new)  # type: ignore[assignment]
        return states

    def inspect(self, change: str) -> Any:
        """What is found there afterwards."""
        return self.nursery.run("inspect", folder=self.place / ("new" if change == "create" else "c"))

    def judge(self, change: str, *, must_be_done: bool | None = None) -> list[str]:
        """Whether the collection is as before the change or as after it, as a whole."""
        try:
            found = self.inspect(change)
        except AssertionError as error:
            return [f"it can't be opened again: {error}"]
        before, after = self.states(change)
        if must_be_done is True:
            return [*after.against(found), *_switched(change, found)]
        if must_be_done is False:
            return before.against(found)
        if not found["exists"] and change == "create":
            return []
        undone, done = before.against(found), after.against(found)
        if change == "create" and not found["documents"]:
            return list(found["problems"])
        return [] if not undone or not done else [*undone, *done]


def _switched(change: str, found: Any) -> list[str]:
    return [f"it still has {found['dim']} dimensions"] if change == "reembed" and found["dim"] != 48 else []


def watch(child: Child, log: Path, *inject: str) -> int:
    """Trace a child that waits, let it go on, and give its exit status once it has ended."""
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


def crash(said: list[Any]) -> str:
    """The end of what a process said, in a few lines: where in ragfm, and what."""
    text = str(said[-1].get("crash", said[-1])) if said else "nothing"
    lines = text.strip().splitlines()
    return " | ".join([*[line.strip() for line in lines if "ragfm" in line and "File" in line][-3:], *lines[-1:]])


def _wait_for(status: Path, line: str) -> None:
    for _ in range(20_000):
        if line in status.read_text():
            return
        time.sleep(0.001)
    raise TimeoutError(f"the process never came to {line!r}")


def calls(log: Path, within: Path) -> list[Call]:
    """The calls of a trace that concern a folder, each once; opening only where it may make a file."""
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
    """The system calls that write during a change, as seen when nothing goes wrong."""
    site.fresh()
    log = site.place / "trace"
    child = site.nursery.start("one_change", folder=site.place, change=change, seed=1, attempts=attempts)
    status = watch(child, log)
    assert status == 0, child.lines()[-1:]
    problems = site.judge(change, must_be_done=True)
    assert not problems, problems
    return calls(log, site.place)


def kill_at_calls(nursery: Nursery, folder: Path, changes: tuple[str, ...] = CHANGES, step: int = 1) -> dict[str, Any]:
    """Kill a process at each `step`-th system call of each change. Gives counts and `problems`."""
    site, start = Site.make(nursery, folder), time.monotonic()
    problems, counts = list[str](), dict[str, int]()
    for change in changes:
        for call in trials(site, change)[::step]:
            site.fresh()
            child = nursery.start("one_change", folder=site.place, change=change, seed=1)
            status = watch(child, folder / "trace", "-e", f"inject={call.name}:signal=SIGKILL:when={call.number}")
            counts[change] = counts.get(change, 0) + (status == -signal.SIGKILL)
            where = f"{change}, killed at {call.name} {call.number} ({call.text[:150]})"
            if status not in (0, -signal.SIGKILL):
                problems.append(f"{where}: ended with {status}: {crash(child.lines())}")
            problems += [f"{where}: {problem}" for problem in site.judge(change, must_be_done=status == 0 or None)]
            problems += [f"{where}: again: {problem}" for problem in _again(site, change)]
    return {"kills": counts, "problems": problems, "seconds": round(time.monotonic() - start, 1)}


def fail_calls(nursery: Nursery, folder: Path, changes: tuple[str, ...] = CHANGES, step: int = 1) -> dict[str, Any]:
    """Let each `step`-th system call of each change fail, for a full disk and for a broken one."""
    site, start = Site.make(nursery, folder), time.monotonic()
    problems, outcomes = list[str](), Counter[str]()
    for change in changes:
        for call, error in list(_failures(trials(site, change)))[::step]:
            site.fresh()
            child = nursery.start("one_change", folder=site.place, change=change, seed=1, attempts=2)
            status = watch(child, folder / "trace", "-e", f"inject={call.name}:error={error}:when={call.number}")
            if not _hit(folder / "trace", site.place):
                continue  # which number a call has is not always the same
            said = child.lines()[-1:]
            where = f"{change}, {error} from {call.name} {call.number} ({call.text[:150]})"
            if status != 0:
                problems.append(f"{where}: ended with {status}: {crash(said)}")
                continue
            first, *second = said[0]["outcomes"]
            outcomes["succeeded" if first is None else first["type"]] += 1
            if first is None and call.name in _SYNCS and not _made_up_for(folder / "trace"):
                problems.append(f"{where}: success, though it was not made durable")
            if any(second):
                problems.append(f"{where}: {first}; the second attempt failed too: {second}")
            problems += [f"{where}: {problem}" for problem in site.judge(change, must_be_done=not any(second) or None)]
            problems += _only_first(site, change, call, error, where) if first is not None else []
    return {"failures": dict(outcomes), "problems": problems, "seconds": round(time.monotonic() - start, 1)}


def _hit(log: Path, within: Path) -> bool:
    """Whether what failed was a call that writes there."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.endswith("(INJECTED)")]
    return bool(lines) and all(str(within) in line and ("openat(" not in line or "O_CREAT" in line) for line in lines)


def _made_up_for(log: Path) -> bool:
    """Whether an fsync that failed was followed by one of the same file or folder that did not.

    SQLite ignores that of a folder, which HEAD's follows. Its folding of the log into the database needs no success.
    """
    failed = None
    for path, result in _SYNCED.findall(log.read_text(errors="replace")):
        if "INJECTED" in result:
            failed = path
        elif path == failed and result == "0":
            return True
    return failed is None or failed.endswith("catalog.db")


def _only_first(site: Site, change: str, call: Call, error: str, where: str) -> list[str]:
    """The same without a second attempt: the older generation is intact, and another process can do the change."""
    site.fresh()
    child = site.nursery.start("one_change", folder=site.place, change=change, seed=1)
    watch(child, site.place / "trace", "-e", f"inject={call.name}:error={error}:when={call.number}")
    problems = [f"{where}: one attempt: {problem}" for problem in site.judge(change)]
    return problems + [f"{where}: by another process: {problem}" for problem in _again(site, change)]


def _failures(seen: list[Call]) -> Iterator[tuple[Call, str]]:
    for call in seen:
        yield call, "EIO"
        if call.name not in ("unlink", "unlinkat", "rmdir"):  # these need no room
            yield call, "ENOSPC"


def _again(site: Site, change: str) -> list[str]:
    """The change by another process that nothing happens to."""
    child = site.nursery.start("one_change", folder=site.place, change=change, seed=1)
    _wait_for(Path(f"/proc/{child.pid}/status"), "State:\tT")
    os.kill(child.pid, signal.SIGCONT)
    try:
        outcome = child.result()["outcomes"][0]
    except AssertionError as error:
        return [str(error)]
    return [str(outcome)] if outcome is not None else site.judge(change, must_be_done=True)
