"""What the default embedding model, which is an English one, can and cannot do in six languages.

    python benchmarks/bench_languages.py [--embedder intfloat/multilingual-e5-small] [--keep DIR]

XQuAD: the same 240 paragraphs and 1,190 questions in each, asked in the language that the paragraphs are in. Prints a
table, and one JSON line last; with another embedder, nothing is kept in `results/`.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from data import xquad
from measure import about, ask, save

LANGUAGES = ("en", "de", "es", "ru", "zh", "ar")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedder", default="bundled")
    parser.add_argument("--keep", metavar="DIR")
    args = parser.parse_args()
    sets: dict[str, Any] = {}
    for language in LANGUAGES:
        entry = sets[language] = ask(xquad(language), embedder=args.embedder, keep=args.keep)
        print(f"\n{language}: {entry['chunks']} chunks, words of {entry['language']}")
        for mode, figures in entry["modes"].items():
            measures = "  ".join(f"{key} {figures['measures'][key][0]:.3f}" for key in ("MRR@10", "recall@5"))
            print(f"  {mode:8} {measures}", flush=True)
    result = {**about("languages"), "embedder": args.embedder, "sets": sets}
    if args.embedder == "bundled":
        save(result, "languages")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
