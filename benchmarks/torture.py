"""The long run of the store's torture: kills, failing disks, rotten files, readers beside a writer.

    python benchmarks/torture.py                     everything, with the counts of the store's acceptance
    python benchmarks/torture.py kill damage         some of it
    python benchmarks/torture.py damage --flips 30   with other counts

The trials are those of tests/support/torture; this prints what each has found and keeps it in results/torture.json.
Exits 1 where something was lost, half there, mixed or silently wrong.
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

from support.torture import faults  # noqa: E402
from support.torture.damage import damage  # noqa: E402
from support.torture.kill import kill  # noqa: E402
from support.torture.nursery import Nursery  # noqa: E402
from support.torture.snapshots import snapshots  # noqa: E402

RESULTS = HERE / "results" / "torture.json"


def main() -> None:
    given = _arguments()
    runs: dict[str, Callable[[Nursery, Path], dict[str, Any]]] = {
        "kill": lambda nursery, folder: kill(nursery, folder, given.kills, given.seed),
        "kill-calls": lambda nursery, folder: faults.kill_at_calls(nursery, folder / "site", step=given.step),
        "io": lambda nursery, folder: faults.fail_calls(nursery, folder / "site", step=given.step),
        "damage": lambda nursery, folder: damage(
            nursery, folder, given.flips, given.zeroed, given.cuts, seed=given.seed, only=given.only
        ),
        "snapshot": lambda nursery, folder: snapshots(nursery, folder, given.commits, given.searches),
    }
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results["machine"] = f"{platform.system()} {platform.release()}, {os.cpu_count()} cores"
    bad = 0
    for name in given.trials or runs:
        if name in ("kill-calls", "io") and not faults.has_strace():
            print(f"{name}: skipped, there is no strace")
            continue
        with Nursery() as nursery, tempfile.TemporaryDirectory(dir=given.folder) as folder:
            done = runs[name](nursery, Path(folder))
        for problem in done["problems"]:
            print(f"{name}: {problem}")
        done["problems"] = len(done["problems"])
        bad += done["problems"]
        results[name] = done
        print(f"{name}: {json.dumps(done)}", flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({"benchmark": "torture", "problems": bad, **{name: results[name] for name in results}}))
    sys.exit(bool(bad))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", nargs="*", choices=[[], "kill", "kill-calls", "io", "damage", "snapshot"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--step", type=int, default=1, help="take each so many-th system call")
    parser.add_argument("--flips", type=int, default=300)
    parser.add_argument("--zeroed", type=int, default=60)
    parser.add_argument("--cuts", type=int, default=60)
    parser.add_argument("--only", default="", help="damage only files whose name has this")
    parser.add_argument("--commits", type=int, default=200)
    parser.add_argument("--searches", type=int, default=10_000)
    parser.add_argument("--folder", help="where to work; a file system in memory is fastest")
    return parser.parse_args()


if __name__ == "__main__":
    main()
