"""How well a reader with vision answers from pages: charts, tables and pictures with known answers.

    python benchmarks/bench_vision.py --model openai:gpt-large --option vision=true --pages 200

The pages are drawn with a fixed seed, in the manner of ViDoRe (https://arxiv.org/abs/2407.01449): below a few
lines of text a bar chart without numbers, a table, or shapes in place of a photograph. A question has one answer, a
word or a number. An answer is right if it has this word or number, and no other one of the page's.
`blind` is the share of right answers without the page: what can be guessed.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from measure import about, save
from PIL import Image, ImageDraw, ImageFont

from ragfm.core.types import ImagePart, Message, Reader, Sampling
from ragfm.generation.readers import load_reader

KINDS = ("chart", "table", "picture")
WIDTH, HEIGHT = 800, 1000
REGIONS = ("Alba", "Borna", "Corvo", "Delmas", "Esk", "Falun", "Gorm", "Hvar")
COLOURS = ("red", "green", "blue", "orange", "purple", "black")
SHAPES = ("circle", "square", "triangle")
_PROSE = (
    "This report was prepared for the annual meeting.",
    "All amounts are as of the end of the year, and have been audited.",
    "The notes are part of this report.",
)
_ASK = "Look at the page and answer with one word or number only. {question}"
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class PageQuestion:
    """A page with a question and its answer; `others` are the wrong answers that the page offers."""

    kind: str
    page: ImagePart
    question: str
    answer: str
    others: tuple[str, ...]


def draw_pages(count: int, seed: int = 0) -> Iterator[PageQuestion]:
    """Pages with a question each, of all kinds in turn."""
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        kind = KINDS[number % len(KINDS)]
        image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        draw = ImageDraw.Draw(image)
        _write(draw, (60, 50), f"{number + 1}. Annual report", 34)
        for line, text in enumerate(_PROSE):
            _write(draw, (60, 110 + 26 * line), text, 18)
        question, answer, others = {"chart": _chart, "table": _table, "picture": _picture}[kind](draw, rng)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        yield PageQuestion(kind, ImagePart(buffer.getvalue(), "image/png"), question, answer, others)


def _chart(draw: ImageDraw.ImageDraw, rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    names = rng.sample(REGIONS, 5)
    heights = [40 * height for height in rng.sample(range(3, 12), 5)]
    _write(draw, (60, 230), "Figure 1: Sales by region", 22)
    for index, (name, height) in enumerate(zip(names, heights, strict=True)):
        left = 90 + 130 * index
        draw.rectangle((left, 800 - height, left + 80, 800), fill="steelblue")
        _write(draw, (left, 815), name, 22)
    draw.line((60, 800, 760, 800), fill="black", width=3)
    highest = rng.random() < 0.5
    answer = names[heights.index(max(heights) if highest else min(heights))]
    word = "highest" if highest else "lowest"
    return f"Which region has the {word} sales?", answer, tuple(name for name in names if name != answer)


def _table(draw: ImageDraw.ImageDraw, rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    names, years = rng.sample(REGIONS, 4), ("2021", "2022", "2023")
    numbers = iter(rng.sample(range(100, 1000), 12))
    cells = {(name, year): str(next(numbers)) for name in names for year in years}
    _write(draw, (60, 230), "Table 1: Employees", 22)
    for column, year in enumerate(("", *years)):
        _write(draw, (80 + 170 * column, 290), year, 24)
    for row, name in enumerate(names):
        top = 350 + 70 * row
        draw.line((60, top - 15, 760, top - 15), fill="grey")
        for column, text in enumerate((name, *(cells[name, year] for year in years))):
            _write(draw, (80 + 170 * column, top), text, 24)
    asked = rng.choice(list(cells))
    others = tuple(cell for key, cell in cells.items() if key != asked)
    return f"How many employees did {asked[0]} have in {asked[1]}?", cells[asked], others


def _picture(draw: ImageDraw.ImageDraw, rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    colours = rng.sample(COLOURS, 3)
    draw.rectangle((60, 230, 740, 830), outline="black", width=2)
    for shape, colour, left in zip(rng.sample(SHAPES, 3), colours, rng.sample((90, 310, 530), 3), strict=True):
        top = rng.randrange(280, 620)
        box = (left, top, left + 170, top + 170)
        if shape == "circle":
            draw.ellipse(box, fill=colour)
        elif shape == "square":
            draw.rectangle(box, fill=colour)
        else:
            draw.polygon([(left, top + 170), (left + 170, top + 170), (left + 85, top)], fill=colour)
        asked, answer = shape, colour
    _write(draw, (60, 845), "Figure 1: The new logo", 22)
    return f"Which colour has the {asked}?", answer, tuple(colour for colour in COLOURS if colour != answer)


def _write(draw: ImageDraw.ImageDraw, position: tuple[int, int], text: str, size: int) -> None:
    draw.text(position, text, fill="black", font=ImageFont.load_default(size))


def is_right(said: str, question: PageQuestion) -> bool:
    """Whether a text has the answer, and no other one of the page's."""
    words = {word.casefold() for word in _WORD.findall(said)}
    return question.answer.casefold() in words and not any(other.casefold() in words for other in question.others)


def evaluate(reader: Reader, questions: Sequence[PageQuestion]) -> dict[str, Any]:
    """Shares of right answers by kind, with and without the page, tokens of a page, and seconds of an answer."""
    rows: dict[str, dict[str, float]] = {}
    tokens, seconds = [], []
    for kind in KINDS:
        asked = [one for one in questions if one.kind == kind]
        right = blind = 0
        for one in asked:
            ask = _ASK.format(question=one.question)
            start = time.monotonic()
            stream = reader.stream([Message("user", (one.page, ask))], Sampling(max_tokens=24))
            right += is_right("".join(stream), one)
            seconds.append(time.monotonic() - start)
            plain = reader.stream([Message("user", ask)], Sampling(max_tokens=24))
            blind += is_right("".join(plain), one)
            tokens.append(stream.usage.prompt_tokens - plain.usage.prompt_tokens)
        if asked:
            rows[kind] = {
                "questions": len(asked),
                "right": round(right / len(asked), 3),
                "blind": round(blind / len(asked), 3),
            }
    middle = len(tokens) // 2
    return {"kinds": rows, "page_tokens": sorted(tokens)[middle], "answer_seconds": round(sorted(seconds)[middle], 2)}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a reader with vision, as `load_reader` takes it")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the reader")
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--save", metavar="NAME", help="keep the result as benchmarks/results/NAME.json")
    given = parser.parse_args(arguments)
    reader = load_reader(given.model, **dict(option.split("=", 1) for option in given.option))
    if not getattr(reader, "vision", False):
        parser.error(f"{given.model} cannot see images: use a server, with `--option vision=true`")
    result = {
        **about("vision", ("ragfm", "openai")),
        "model": given.model,
        "pages": given.pages,
        **evaluate(reader, list(draw_pages(given.pages))),
    }
    print(json.dumps(result))
    if given.save:
        save(result, given.save)
    return result


if __name__ == "__main__":
    main()
