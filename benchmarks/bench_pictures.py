"""Measure image embedders: how fast pages are embedded, what they take, and how long a search needs.

    python benchmarks/bench_pictures.py [--pages 500] [--ocr 10] [--searches 50]
    python benchmarks/bench_pictures.py --model multi-vector:vidore/colpali-v1.3-hf

The pages are drawn: paragraphs and a bar chart, as images of A4 at 100 dpi. The models have random weights and two
small layers, but vectors of the usual shape: CLIP with 512 dimensions, ColPali with 1,024 patches of 128 dimensions. So
speeds of embedding are those of decoding, preparing and storing; a real model takes longer. Searches cost as much as
with a real one, except for the embedding of the question. With `--model`, a real one is measured instead, and also how
often the page with a title, which is only in its image, is the first hit or among the first five. Prints one JSON line
last.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import about, save
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.figures import commit_figures, document_with_figures
from support.tiny_image_models import tiny_clip, tiny_colpali

from ragfm import Collection, Settings
from ragfm.ingestion.image_embedding import embed_figures
from ragfm.parsing import image_preparation
from ragfm.store.image_vectors import has_tokens
from ragfm.store.tables import vectors
from ragfm.testing import HashingEmbedder

SIZE = (827, 1169)
MODELS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "CLIP, 512 dimensions": ("", lambda folder: tiny_clip(folder, dim=512)),
    "ColPali, 1,024 patches of 128 dimensions": (
        "multi-vector:",
        lambda folder: tiny_colpali(folder, side=448, patch=14, dim=128),
    ),
}
WORDS = (
    "revenue of the northern region grew by a third while costs for transport and energy fell in every quarter".split()
)
TOPICS = (
    "Umbrella sales,Bicycle rentals,Bakery opening hours,Ferry delays,Tulip exports,Piano repairs,Honey prices".split(
        ","
    )
)
PLACES = "Lisbon,Oslo,Vienna,Dublin,Riga,Athens,Ghent,Turin,Malmo,Porto".split(",")
YEARS = range(2012, 2024)


def page(number: int, title: str = "") -> bytes:
    """A page with text and a chart, as PNG."""
    chance = random.Random(number)
    image = Image.new("RGB", SIZE, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(18)
    for line in range(30):
        draw.text((60, 60 + 24 * line), " ".join(chance.choices(WORDS, k=9)), fill="black", font=font)
    for bar in range(8):
        height = chance.randint(20, 250)
        draw.rectangle(
            (80 + 85 * bar, 1080 - height, 140 + 85 * bar, 1080), fill=chance.choice(["navy", "teal", "red"])
        )
    draw.text((60, 15), title, fill="black", font=ImageFont.load_default(30))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Seconds of the block: elapsed, and of the processor, the process that decodes images included."""
    found: dict[str, float] = {}
    start, cpu = time.perf_counter(), sum(os.times()[:4])
    yield found
    found["seconds"] = round(time.perf_counter() - start, 2)
    image_preparation._service.close()  # ended processes count
    found["cpu_seconds"] = round(sum(os.times()[:4]) - cpu, 2)


def search_ms(collection: Collection, searches: int) -> dict[str, float]:
    """Median and 95th percentile of hybrid searches, and the median processor time."""
    chance, times, cpu = random.Random(0), [], []
    for _ in range(searches + 3):
        query = " ".join(chance.choices(WORDS, k=8))
        start, before = time.perf_counter(), time.process_time()
        collection.search(query, 5)
        times.append(1000 * (time.perf_counter() - start))
        cpu.append(1000 * (time.process_time() - before))
    times, cpu = sorted(times[3:]), sorted(cpu[3:])  # the first ones load models and vectors
    p95 = times[int(0.95 * len(times))]
    return {
        "p50": round(statistics.median(times), 2),
        "p95": round(p95, 2),
        "cpu_p50": round(statistics.median(cpu), 2),
    }


def find_titles(collection: Collection, titles: list[str], questions: int = 100) -> dict[str, float]:
    """The share of questions whose page is found by its image alone."""
    ranks = []
    for number, title in enumerate(titles[:questions]):
        uris = [hit.uri for hit in collection.search(f"Which page is about {title}?", 5) if hit.image]
        ranks.append(uris.index(f"page-{number}") if f"page-{number}" in uris else 9)
    return {
        "first": round(sum(rank == 0 for rank in ranks) / len(ranks), 3),
        "first_five": round(sum(rank < 5 for rank in ranks) / len(ranks), 3),
    }


def measure(name: str, pages: list[bytes], searches: int, place: Path, titles: list[str]) -> dict[str, Any]:
    model, search = name, {"image_weight": 1.0} if titles else {}
    if name in MODELS:
        plugin, build = MODELS[name]
        model = f"{plugin}{build(place / 'model')}"
    settings = Settings(parse={"images": True}, image_embedder=model, search=search)  # type: ignore[arg-type]
    with Collection.open(place / ".ragfm", settings=settings, embedder=HashingEmbedder()) as collection:
        documents = [document_with_figures(f"page-{n}", {f"Page {n}": data}) for n, data in enumerate(pages)]
        commit_figures(collection, documents)
        before = search_ms(collection, searches)
        with collection._store.writing() as catalog, measured() as embedding:
            assert embed_figures(collection._store, catalog) == len(pages)
        with collection._store.catalog.read() as connection:
            rows = connection.execute(vectors.select().where(vectors.c.contract_id > 1)).all()
        after = search_ms(collection, searches)
        images = collection._store.image_vectors(collection._store.catalog.at())
        assert images is not None
        dim = int(images.embedder.dim)
        return {
            "embed": {**embedding, "pages_per_second": round(len(pages) / embedding["seconds"], 1)},
            "vectors_per_page": sum(len(row.vector) // (dim + 4) if has_tokens(row.text_hash) else 1 for row in rows)
            / len(pages),
            "vector_bytes_per_page": sum(len(row.vector) for row in rows) / len(pages),
            "memory_bytes_per_page": 4 * dim,
            "search_ms": after,
            "search_ms_without_images": before,
            **({"found_by_title": find_titles(collection, titles)} if titles else {}),
        }


def ingest_with_ocr(pages: list[bytes], place: Path) -> dict[str, Any]:
    """A whole ingest of image files, text recognition included."""
    files = place / "files"
    files.mkdir()
    for number, data in enumerate(pages):
        (files / f"{number}.png").write_bytes(data)
    model = tiny_clip(place / "model", dim=512)
    settings = Settings(parse={"images": True}, image_embedder=str(model))  # type: ignore[arg-type]
    with Collection.open(place / ".ragfm", settings=settings, embedder=HashingEmbedder()) as collection:
        with measured() as found:
            report = collection.sync(files)
        assert report.added == len(pages)
        return {
            "pages": len(pages),
            "seconds": found["seconds"],
            "pages_per_second": round(len(pages) / found["seconds"], 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=500)
    parser.add_argument("--ocr", type=int, default=10, help="pages of an ingest with text recognition")
    parser.add_argument("--searches", type=int, default=50)
    parser.add_argument("--model", help="an image embedder with trained weights, as for the setting `image_embedder`")
    args = parser.parse_args()
    titles = []
    if args.model:
        every = [f"{what} in {where}, {year}" for year in YEARS for where in PLACES for what in TOPICS]
        titles = random.Random(1).sample(every, args.pages)
    pages = [page(number, titles[number] if titles else "") for number in range(args.pages)]
    result: dict[str, Any] = {
        **about("pictures", ("ragfm", "torch", "transformers", "sentence-transformers", "pillow", "numpy")),
        "pages": args.pages,
        "image_bytes_per_page": round(statistics.mean(map(len, pages))),
        "models": {},
    }
    for name in [args.model] if args.model else MODELS:
        with tempfile.TemporaryDirectory() as place:
            result["models"][name] = measure(name, pages, args.searches, Path(place), titles)
        print(name, json.dumps(result["models"][name]), flush=True)
    if not args.model:
        with tempfile.TemporaryDirectory() as place:
            result["ingest_with_ocr"] = ingest_with_ocr(pages[: args.ocr], Path(place))
    save(result, "pictures-model" if args.model else "pictures")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
