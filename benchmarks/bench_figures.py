"""Measure ingest and search of figures: pages of reports with a chart each, and scanned pages.

    python benchmarks/bench_figures.py [--charts 500] [--scans 40]

Charts are in PDF files of 50 pages, drawn as paths; their words are text. Scans are PNG files of 1,240 by 1,754 pixels,
whose text OCR recognizes. Each is ingested into a collection of its own with the bundled embedder, with `parse.images`;
the charts also with whole pages as pictures, and without any. Then each page is asked for by its caption: "found" is
the share whose figure is the first hit. Bytes are those of the images and of the whole catalog. Prints one JSON line,
kept in benchmarks/results/figures.json.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from measure import about, save
from PIL import Image, ImageDraw, ImageFont

from ragfm import Collection, Settings
from ragfm.parsing.sandbox import worker_pool

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.written_pdf import lines, pdf

PAGES_PER_FILE = 50
NOUNS = "harbour lighthouse vineyard orchard quarry glacier bakery foundry archive observatory".split()
MEASURES = "visitors revenue rainfall exports staff accidents energy water waste repairs".split()
PROSE = [
    f"Paragraph {number} of the report describes how the year went, month by month, for all who need the whole story."
    for number in range(12)
]


def caption(page: int) -> str:
    """The caption of a page, which no other page has."""
    return f"Figure {page + 1}: {MEASURES[page // 10 % 10]} of the {NOUNS[page % 10]} in {1900 + page // 100}"


def write_charts(folder: Path, count: int) -> None:
    """Write PDF files with a chart on each page."""
    for start in range(0, count, PAGES_PER_FILE):
        streams = []
        for page in range(start, min(start + PAGES_PER_FILE, count)):
            greys = "".join(map(chr, random.Random(page).choices(range(0x40, 0x7F), k=60)))
            chart = f"q 320 0 0 150 140 400 cm BI /W 60 /H 1 /CS /G /BPC 8 ID {greys} EI Q "
            text = lines(*PROSE[:6]) + chart + lines(caption(page), x=140, y=385, size=9)
            streams.append(text + lines(*PROSE[6:], y=300))
        (folder / f"report-{start:05}.pdf").write_bytes(pdf(*streams))


def write_scans(folder: Path, count: int) -> None:
    """Write an image of a page for each number."""
    font = ImageFont.load_default(26)
    for page in range(count):
        image = Image.new("RGB", (1240, 1754), "white")
        draw = ImageDraw.Draw(image)
        for at, line in enumerate(PROSE[:8]):
            draw.text((120, 140 + 40 * at), line[:80], fill="black", font=font)
        for at, height in enumerate(random.Random(page).choices(range(60, 500), k=6)):
            draw.rectangle((200 + 140 * at, 1200 - height, 290 + 140 * at, 1200), fill="navy")
        draw.text((200, 1240), caption(page), fill="black", font=font)
        image.save(folder / f"scan-{page:05}.png")


def measure(write: Callable[[Path, int], None], count: int, *, images: bool | Literal["pages"]) -> dict[str, Any]:
    """Pages per second of wall and CPU time, bytes per page, and searches for each caption."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "docs").mkdir()
        write(folder / "docs", count)
        settings = Settings(parse={"images": images})
        with Collection.open(folder / ".ragfm", settings=settings) as collection:
            start, cpu = time.perf_counter(), _cpu_seconds()
            collection.sync(folder / "docs")
            collection.close()
            seconds = time.perf_counter() - start
            worker_pool.shared_worker_pool().close()  # so that the CPU time of its processes counts
            worker_pool._shared = None
            cpu = _cpu_seconds() - cpu
            status = collection.status()
            times, found = [], 0
            for page in range(count):
                begin = time.perf_counter()
                (hit, *_) = collection.search(caption(page), 1)
                times.append(time.perf_counter() - begin)
                found += (hit.image is not None or not images) and caption(page).partition(": ")[2] in hit.text
        catalog = sum(file.stat().st_size for file in (folder / ".ragfm").glob("catalog.db*"))
        return {
            "pages": count,
            "chunks": status.chunks,
            "images": status.images,
            "pages_per_s": round(count / seconds, 2),
            "cpu_ms_per_page": round(1000 * cpu / count, 1),
            "image_bytes_per_page": round(status.image_bytes / count),
            "catalog_bytes_per_page": round(catalog / count),
            "search_p50_ms": round(1000 * statistics.median(times), 2),
            "found": round(found / count, 3),
        }


def _cpu_seconds() -> float:
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    """Run the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--charts", type=int, default=500, help="Number of pages with charts.")
    parser.add_argument("--scans", type=int, default=40, help="Number of scanned pages.")
    options = parser.parse_args()
    result = {
        **about("figures"),
        "charts": measure(write_charts, options.charts, images=True),
        "charts_as_pages": measure(write_charts, options.charts, images="pages"),
        "charts_as_text": measure(write_charts, options.charts, images=False),
        "scans": measure(write_scans, options.scans, images=True),
    }
    save(result, "figures")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
