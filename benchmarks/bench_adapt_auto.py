"""Adapt the bundled reader to collections by one command, `ragfm adapt auto`, and keep what it decides.

    python benchmarks/bench_adapt_auto.py COLLECTION… --writer GGUF [--hours 0.3]

A collection that has a decision is not adapted again; one with too few questions is asked for more, up to three times.
F1 is that of the answers that users get, on questions that were not trained on. The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from measure import about, save

from ragfm.training.refresh import DECISION

ATTEMPTS = 3


def adapt(folder: Path, writer: str, hours: float) -> dict[str, Any]:
    """Run the command until it decides; the numbers of written questions and examples, and the decision."""
    adapters = folder.parent / ".ragfm-adapters"
    command = [sys.executable, "-m", "ragfm", "adapt", "auto", "-c", str(folder), "--hours", str(hours)]
    for _ in range(ATTEMPTS):
        if list(adapters.glob(f"*/{DECISION}")):
            break
        subprocess.run([*command, "--writer", writer], check=False)
    decisions = sorted(adapters.glob(f"*/{DECISION}"))
    if not decisions:
        sys.exit(f"{folder} has no decision: too few questions were written. Use more --hours.")
    decision = json.loads(decisions[-1].read_bytes())
    numbers = decision["numbers"]
    return {
        "written": len((adapters / "written.jsonl").read_text(encoding="utf-8").splitlines()),
        "examples": decision["examples"],
        "training_seconds": numbers["seconds"],
        "validation_loss": list(numbers["valid"].values()),
        "new": decision["new"],
        "adopted": decision["adopted"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="+", type=Path)
    parser.add_argument("--writer", required=True, help="GGUF file of the reader that writes the questions")
    parser.add_argument("--hours", type=float, default=0.3)
    args = parser.parse_args()
    rows = {}
    for folder in args.collections:
        rows[folder.parent.name] = adapt(folder, args.writer, args.hours)
        print(f"{folder.parent.name}: {json.dumps(rows[folder.parent.name])}", flush=True)
    result = {**about("adapt_auto", ["ragfm", "torch", "peft"]), "writer": Path(args.writer).stem, "rows": rows}
    save(result, "adapt_auto")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
