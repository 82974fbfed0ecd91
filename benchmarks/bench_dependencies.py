"""Count the distributions that a RAG set-up installs: ragfm, Haystack, LlamaIndex and LangChain, in one resolver run.

    python benchmarks/bench_dependencies.py

Each set-up has a local embedder, FAISS, PDF and llama.cpp, as the framework's documentation names the packages. pip
resolves them against the configured index for an empty environment and installs nothing. The framework's own packages
are counted. ragfm's reader is one more file (`ragfm models pull bundled`), not a distribution. The last line is
the result in JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import measure

ROOT = Path(__file__).parents[1]
SETUPS = {
    "ragfm": [f"{ROOT}[bundled,documents]"],
    "haystack": [
        "haystack-ai",
        "sentence-transformers-haystack",
        "faiss-haystack",
        "llama-cpp-haystack",
        "pypdf",
    ],
    "llama-index": [
        "llama-index-core",
        "llama-index-embeddings-huggingface",
        "llama-index-vector-stores-faiss",
        "llama-index-llms-llama-cpp",
        "llama-index-readers-file",
        "faiss-cpu",
    ],
    "langchain": [
        "langchain",
        "langchain-community",
        "langchain-huggingface",
        "sentence-transformers",
        "faiss-cpu",
        "pypdf",
        "llama-cpp-python",
    ],
}


def resolve(requirements: list[str]) -> dict[str, str]:
    """Versions by distribution that pip would install into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = ["-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(report)]
        subprocess.run([sys.executable, *command, *requirements], check=True)
        packages = [entry["metadata"] for entry in json.loads(report.read_text(encoding="utf-8"))["install"]]
    return {package["name"].lower(): package["version"] for package in packages}


def main() -> None:
    result = measure.about("dependencies", ("ragfm", "pip"))
    result["setups"] = {}
    for name, requirements in SETUPS.items():
        try:
            found = resolve(requirements)
        except subprocess.CalledProcessError as error:
            print(f"{name}: pip exited with {error.returncode}", flush=True)
            continue
        shown = [requirement.replace(str(ROOT), "ragfm") for requirement in requirements]
        result["setups"][name] = {
            "requirements": shown,
            "distributions": len(found),
            "versions": dict(sorted(found.items())),
        }
        print(f"{name:12} {len(found)} distributions", flush=True)
    measure.save(result, "dependencies")
    print(json.dumps({name: setup["distributions"] for name, setup in result["setups"].items()}))


if __name__ == "__main__":
    main()
