"""The long torture run of the store: kills, failing and full disks, damaged files, readers during writes.

    python benchmarks/torture.py                     all trials, with the default counts
    python benchmarks/torture.py kill damage         selected trials
    python benchmarks/torture.py damage --flips 30   with a different count
    python benchmarks/torture.py kill-calls full-disk --changes commit upload backup compaction
    python benchmarks/torture.py kill-postgres --kills 40 --seed 3 --add     a long trial in parts

The trials are in tests/support/torture. Results are printed and saved in results/torture.json. The exit code is 1 if
anything was lost, incomplete, mixed or silently wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from support.postgres_server import postgres_server  # noqa: E402
from support.torture import faults  # noqa: E402
from support.torture.damage import damage  # noqa: E402
from support.torture.fork_server import ForkServer  # noqa: E402
from support.torture.full_disk import full_disk  # noqa: E402
from support.torture.kill import kill  # noqa: E402
from support.torture.servers import servers  # noqa: E402
from support.torture.snapshots import snapshots  # noqa: E402

RESULTS = HERE / "results" / "torture.json"


def main() -> None:
    args = _arguments()
    runs: dict[str, Callable[[ForkServer, Path], dict[str, Any]]] = {
        "kill": lambda fork_server, folder: kill(fork_server, folder, args.kills, args.seed),
        "kill-postgres": lambda fork_server, folder: on_postgres(
            kill, fork_server, folder, kills=args.kills, seed=args.seed
        ),
        "shutdown-postgres": lambda fork_server, folder: on_postgres(
            kill, fork_server, folder, kills=args.shutdowns, seed=args.seed, kill_server=True
        ),
        "kill-calls": lambda fork_server, folder: faults.kill_at_calls(
            fork_server, folder / "site", tuple(args.changes), args.step
        ),
        "io": lambda fork_server, folder: faults.fail_calls(
            fork_server, folder / "site", tuple(args.changes), args.step
        ),
        "full-disk": lambda fork_server, folder: full_disk(fork_server, folder / "site", tuple(args.changes)),
        "damage": lambda fork_server, folder: damage(
            fork_server, folder, args.flips, args.zeroed, args.cuts, seed=args.seed, only=args.only
        ),
        "snapshot": lambda fork_server, folder: snapshots(fork_server, folder, args.commits, args.searches),
        "servers": lambda fork_server, folder: on_postgres(
            servers, fork_server, folder, seconds=args.seconds, chunks=args.chunks, checks=args.checks
        ),
    }
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results["machine"] = f"{platform.system()} {platform.release()}, {os.cpu_count()} cores"
    problem_count = 0
    for name in args.trials or runs:
        if name in ("kill-calls", "io") and not faults.has_strace():
            print(f"{name}: skipped, strace is not available")
            continue
        with ForkServer() as fork_server, tempfile.TemporaryDirectory(dir=args.folder) as folder:
            result = runs[name](fork_server, Path(folder))
        for problem in result["problems"]:
            print(f"{name}: {problem}")
        result["problems"] = len(result["problems"])
        problem_count += result["problems"]
        title = f"{name}, one of {args.step} calls" if name in ("kill-calls", "io") and args.step > 1 else name
        if name in ("kill-calls", "io", "full-disk") and args.changes != list(faults.CHANGES):
            title += f": {', '.join(args.changes)}"
        results[title] = _sum(results[title], result) if args.add and title in results else result
        print(f"{name}: {json.dumps(result)}", flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({"benchmark": "torture", "problems": problem_count, **{name: results[name] for name in results}}))
    sys.exit(bool(problem_count))


def on_postgres(
    trial: Callable[..., dict[str, Any]], fork_server: ForkServer, folder: Path, **options: Any
) -> dict[str, Any]:
    """A trial on a PostgreSQL server of its own."""
    with postgres_server() as server:
        return trial(fork_server, folder, server=server, **options)


def _sum(before: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """Counts and seconds of two parts of a trial, and the slower of their slowest times."""
    return {
        name: max(value, before[name]) if name.startswith("slowest") else round(value + before[name], 1)
        for name, value in result.items()
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "trials",
        nargs="*",
        choices=[
            [],
            "kill",
            "kill-postgres",
            "shutdown-postgres",
            "kill-calls",
            "io",
            "full-disk",
            "damage",
            "snapshot",
            "servers",
        ],
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--add", action="store_true", help="add the counts to those in results/torture.json")
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--shutdowns", type=int, default=50)
    parser.add_argument("--step", type=int, default=1, help="test every Nth system call")
    parser.add_argument(
        "--changes",
        nargs="+",
        choices=faults.CHANGES,
        default=list(faults.CHANGES),
        help="changes that kill-calls, io and full-disk interrupt",
    )
    parser.add_argument("--flips", type=int, default=300)
    parser.add_argument("--zeroed", type=int, default=60)
    parser.add_argument("--cuts", type=int, default=60)
    parser.add_argument("--only", default="", help="damage only files whose name contains this text")
    parser.add_argument("--commits", type=int, default=200)
    parser.add_argument("--searches", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=600, help="how long servers search")
    parser.add_argument("--chunks", type=int, default=100_000, help="size of the collection of servers")
    parser.add_argument("--checks", type=int, default=100_000, help="hits of restricted handles to check")
    parser.add_argument("--folder", help="working folder; a file system in memory is fastest")
    return parser.parse_args()


if __name__ == "__main__":
    main()
