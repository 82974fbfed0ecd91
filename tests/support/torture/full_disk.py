"""The full-disk trial: each change runs on file systems with little space, and says that the disk is full."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.torture.faults import CHANGES, Site
from support.torture.fork_server import ForkServer

SIZES = (0, 4_096, 16_384, 49_152, 98_304, 196_608, 393_216, 786_432)
"""Bytes that are free when a change begins."""
_DISK_BYTES = 24 << 20


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """Mount a file system in memory on an empty folder. Raises OSError if that is not permitted."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(place)]
    mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    if mounted.returncode:
        raise OSError(mounted.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fill a disk except for `leave` bytes. Returns the file that takes the space."""
    filler, status = disk / "filler", os.statvfs(disk)
    filler.write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - leave)))
    return filler


def full_disk(
    fork_server: ForkServer, folder: Path, changes: tuple[str, ...] = CHANGES, sizes: tuple[int, ...] = SIZES
) -> dict[str, Any]:
    """Run each change with each size of free space. Returns counts of outcomes by change, and `problems`.

    A change succeeds or raises DiskFullError. `verify` finds nothing on the full disk and afterwards, the collection is
    as before the change or as after it, and the change succeeds once there is space.
    """
    start, problems = time.monotonic(), list[str]()
    outcomes: dict[str, Counter[str]] = {change: Counter() for change in changes}
    site = Site.make(fork_server, folder)
    site.place.mkdir()
    for change in changes:
        for size in sizes:
            where = f"{change} with {size:,} bytes"
            with small_disk(site.place):
                shutil.copytree(site.base, site.place, copy_function=shutil.copy2, dirs_exist_ok=True)
                filler = fill(site.place, size)
                outcome = _change(fork_server, site.place, change)
                outcomes[change]["succeeded" if outcome is None else outcome["type"]] += 1
                if outcome is not None and outcome["type"] != "DiskFullError":
                    problems.append(f"{where}: {outcome}")
                verified = fork_server.run("verify", folder=site.place / ("new" if change == "create" else "c"))
                if verified["findings"] or verified["error"] not in (None, "CollectionNotFound", "DiskFullError"):
                    problems.append(f"{where}: verify on the full disk: {verified}")
                filler.unlink()
                problems += [f"{where}: {each}" for each in site.judge(change, must_be_done=outcome is None or None)]
                outcome = _change(fork_server, site.place, change)
                if outcome is not None:
                    problems.append(f"{where}: again: {outcome}")
                problems += [f"{where}: again: {each}" for each in site.judge(change, must_be_done=True)]
    return {"outcomes": outcomes, "problems": problems, "seconds": round(time.monotonic() - start, 1)}


def _change(fork_server: ForkServer, place: Path, change: str) -> Any:
    """Make a change in a process of its own. Returns None or its error."""
    child = fork_server.start("one_change", folder=place, change=change, seed=1)
    status = Path(f"/proc/{child.pid}/status")
    while not any(state in status.read_text() for state in ("State:\tT", "State:\tZ")):  # stopped, or crashed
        time.sleep(0.001)
    os.kill(child.pid, signal.SIGCONT)
    try:
        return child.result()["outcomes"][0]
    except AssertionError as error:
        return {"type": "crash", "message": str(error)}
