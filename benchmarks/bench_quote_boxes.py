"""How often the place of a quote on a PDF page is found, and whether the box holds the quote.

    python benchmarks/bench_quote_boxes.py [--pages N]

The quotes are all sentences and table rows of N pages, drawn at random, of each PDF: the 25 filings of FinanceBench,
and those of `documents`, tests of other parsers: papers in columns, forms, slides, many scripts. OCR is off, and
rotated pages are left out. The text that PDFium extracts from a quote's boxes, which has no part in finding them, is
compared by letters and digits.

    found     share of the quotes that have boxes
    exact     share of those whose boxes hold the quote and nothing else
    contains  share of those whose boxes hold the quote, and up to a fifth more: boxes of lines may overlap
    repeated  quotes that the page's text has more than once; `distinct`: share of those found whose boxes differ from
              the boxes of the same words elsewhere

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import measure
import pypdfium2
from data import DATA

from ragfm.core.errors import RagfmError
from ragfm.core.text import sentence_spans
from ragfm.core.types import Blob
from ragfm.parsing import parse
from ragfm.parsing.own.media import ocr
from ragfm.parsing.own.pdf.pdf_page import read_page
from ragfm.parsing.quote_boxes import find_quote, letters_of


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=6, help="pages of each filing")
    pages = parser.parse_args().pages
    ocr.find_spec = lambda _: None  # type: ignore[assignment]
    result: dict[str, Any] = measure.about("quote_boxes", ("ragfm", "pypdfium2"))
    for name, folder in (("financebench", DATA / "financebench"), ("documents", DATA / "documents")):
        result[name] = measure_folder(folder, pages)
    measure.save(result, "quote_boxes")
    print(json.dumps(result))


def measure_folder(folder: Path, pages: int) -> dict[str, Any]:
    """The figures of all PDF files below a folder."""
    counts, seconds = {"text": Counter[str](), "rows": Counter[str]()}, 0.0
    for path in sorted(folder.rglob("*.pdf")):
        data = path.read_bytes()
        try:
            parsed = parse(Blob(data), path.name)
        except RagfmError:  # damaged, protected or without text, on purpose
            continue
        marks = [mark for mark in parsed.marks if mark.kind == "page"]
        with pypdfium2.PdfDocument(data) as document:
            for mark in random.Random(path.name).sample(marks, min(pages, len(marks))):
                content = read_page(document, int(mark.value) - 1)  # which makes form fields part of the page
                page = document[int(mark.value) - 1]
                if page.get_rotation():
                    continue
                shown = page.get_textpage()
                left, _, _, top = page.get_bbox()
                text, place_of = parsed.text[mark.start : mark.end], dict[str, tuple[Any, ...]]()
                for start, end in sentence_spans(text):
                    quote = text[start:end]
                    wanted = letters_of(re.sub(r"\]\([^()\s]*\)", "", quote))
                    if not wanted:
                        continue
                    count = counts["rows" if quote.startswith("|") else "text"]
                    count["quotes"] += 1
                    began = time.process_time()
                    boxes = find_quote(content.words, text, start, end)
                    seconds += time.process_time() - began
                    count["repeated"] += text.count(quote) > 1
                    if not boxes:
                        print("  no box for", quote[:100], flush=True)
                        continue
                    inside = letters_of(
                        " ".join(
                            shown.get_text_bounded(left + box.x0, top - box.bottom, left + box.x1, top - box.top)
                            for box in boxes
                        )
                    )
                    count["found"] += 1
                    count["exact"] += inside == wanted
                    contains = not Counter(wanted) - Counter(inside) and len(inside) <= 1.2 * len(wanted)
                    count["contains"] += contains
                    if not contains:
                        print("  box of", wanted[:100], "has", inside[:200], flush=True)
                    if text.count(quote) > 1:
                        count["repeated_found"] += 1
                        count["distinct"] += place_of.get(quote) != tuple(boxes)
                        place_of[quote] = tuple(boxes)
        print(path.name, {kind: dict(count) for kind, count in counts.items()}, flush=True)
    result: dict[str, Any] = {}
    for kind, count in counts.items():
        shares = {name: round(count[name] / max(count["found"], 1), 4) for name in ("exact", "contains")}
        repeated = {name: count[name] for name in ("repeated", "repeated_found", "distinct")}
        found = round(count["found"] / max(count["quotes"], 1), 4)
        result[kind] = {"quotes": count["quotes"], "found": found, **shares, **repeated}
    result["cpu_ms_per_quote"] = round(1000 * seconds / sum(count["quotes"] for count in counts.values()), 2)
    return result


if __name__ == "__main__":
    main()
