"""Questions how to do something, over manuals that nothing was tuned on: what a user of the bundled reader is shown.

    apt-get download borgbackup-doc debian-handbook gimp-help-en gnucash-docs     (and unpack each with `dpkg-deb -x`)
    python benchmarks/bench_instructions.py borg=FOLDER gimp=FOLDER gnucash=FOLDER debian=FOLDER [--label NAME]

The folders hold the HTML pages: `borgbackup/html`, `gimp/3.0/help/en`, `gnucash-guide-en` and
`debian-handbook/html/en-US`. The questions were written before any answer was seen. What is shown counts as useful if
it says how to do it, or names the section, tool or command that does (`labels/instructions.jsonl`, judged by hand);
what is in no list counts as `unjudged`, and is printed.

The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from measure import about, save

from ragfm import Collection, Rag

LABELS = Path(__file__).parent / "labels" / "instructions.jsonl"
COMPARED = 160  # characters of what is shown


def measured(manual: str, folder: str, labels: list[dict[str, Any]]) -> Counter[str]:
    """How many answers have each status, and how many are useful."""
    known = {(label["question"], label["shown"]): label["useful"] for label in labels}
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as kept, Collection.open(Path(kept) / "collection") as collection:
        collection.sync(folder, name=manual, include=["*.html"])
        rag = Rag(collection)
        for question in dict.fromkeys(label["question"] for label in labels if label["manual"] == manual):
            answer = rag.ask(question)
            shown = " ".join(answer.shown.split())[:COMPARED]
            useful = known.get((question, shown))
            counts.update([answer.status, "unjudged" if useful is None else "useful" if useful else "not useful"])
            if answer.status == "answered" and useful is False:
                counts["answered, not useful"] += 1
            if useful is None:
                print(
                    json.dumps({"manual": manual, "question": question, "shown": shown}, ensure_ascii=False), flush=True
                )
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", metavar="MANUAL=FOLDER", nargs="+")
    parser.add_argument("--label", default="now")
    args = parser.parse_args()
    labels = [json.loads(line) for line in LABELS.read_text(encoding="utf-8").splitlines()]
    result: dict[str, Any] = {**about("instructions"), "manuals": {}}
    for manual, _, folder in (one.partition("=") for one in args.folders):
        result["manuals"][manual] = dict(sorted(measured(manual, folder, labels).items()))
        print(manual, result["manuals"][manual], flush=True)
        save(result, f"instructions-{args.label}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
