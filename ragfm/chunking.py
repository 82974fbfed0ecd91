"""The chunker: splits a document into chunks that fit the embedder's window.

The text is tokenized once, so that two binary searches count the tokens between any two characters. Possible boundaries
have a strength:

    heading, page, place,       always a boundary; a heading without body stays with the next, rows with their table
    figure
    end of a block              paragraph, table, code block
    end of a sentence           a row in a table, a line in code
    before a joined heading     only if headings without body exceed the window
    end of a word, a character  if there is no other boundary within the window

A chunk ends at the last boundary of the strongest kind within the window: blocks are packed whole, a block that is too
long is packed by sentences, and so on. Finally the exact strings that will be embedded are tokenized; the few that are
too long (half a word may have more tokens than the whole) are split again with less room. Takes linear time.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, TypeAlias

from ragfm.core.document_name import SEPARATOR, document_names
from ragfm.core.errors import ConfigError, TooLongError
from ragfm.core.table_rows import TABLE_RULE, row_cells, row_line
from ragfm.core.text import sentence_spans
from ragfm.core.types import Chunk, Document, Mark

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ragfm.core.types import Offsets

    Tokenize: TypeAlias = Callable[[Sequence[str]], list[Offsets]]

__all__ = ["CHUNKER_VERSION", "ChunkSettings", "chunk_document"]

CHUNKER_VERSION = "3"
"""Version of the chunker, part of the recipe: a new version parses and chunks all documents again.

A fix that leaves the chunks of older versions valid needs no new version: each document gets it when it changes.
"""

_DEFAULT_SIZE = 256
_CHARS_PER_TOKEN = 16  # upper limit of the average over a chunk: a word of 1 MB may be one "unknown" token
_SLICE = 10_000  # characters to tokenize at once; tokenizers are slow on megabytes
_BLANK_LINE = re.compile(r"\n\s*\n")
_LINE_BREAK = re.compile(r"\n")
_HASHES = re.compile(r"^#{1,6} | #+$")


@dataclass(frozen=True)
class ChunkSettings:
    """The maximum size of a chunk with its context, in tokens of the embedding model, at least 16.

    None means the embedder's window, up to 256. Chunks do not overlap: it found nothing more (decision 037). Raises
    ConfigError.
    """

    size: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 16:
            raise ConfigError(
                f"The chunk size is {self.size} tokens, less than the minimum of 16.", "Set it to 16 or more."
            )


def chunk_document(
    document: Document,
    tokenize: Tokenize,
    max_tokens: int,
    settings: ChunkSettings = ChunkSettings(),
    *,
    path: str = "",
) -> list[Chunk]:
    """Split a document into chunks, in order; each has up to `max_tokens` with its context.

    `tokenize` and `max_tokens` are the embedder's. `path` is that of the document below its source, whose last folder
    and file name are part of the context. For every chunk `document.text[start:end] == text`. Chunks are disjoint;
    together they cover all characters that are not white space. Raises TooLongError if a single character has more
    tokens than the window.
    """
    limit = min(settings.size or _DEFAULT_SIZE, max_tokens)
    names = document_names(document, path)
    return _Splitter(document, names, tokenize, limit).chunks()


class _Outline:
    """The possible boundaries of a document by strength, and the marks at a position."""

    def __init__(self, document: Document) -> None:
        text = self._text = document.text
        self._marks = {
            kind: [mark for mark in document.marks if mark.kind == kind]
            for kind in ("page", "place", "heading", "table", "code", "figure")
        }
        self._starts = {kind: [mark.start for mark in marks] for kind, marks in self._marks.items()}
        self._paths: list[tuple[tuple[int, str], ...]] = []
        open_headings: list[Mark] = []
        for heading in self._marks["heading"]:
            while open_headings and open_headings[-1].level >= heading.level:
                open_headings.pop()
            open_headings.append(heading)
            named = ((mark.start, _HASHES.sub("", " ".join(mark.value.split()))) for mark in open_headings)
            self._paths.append(tuple((start, name) for start, name in named if name))

        headings = [(mark.start, self.skip_space(mark.end, len(text))) for mark in self._marks["heading"]]
        self._captions = [self._table_forms(table) for table in self._marks["table"]]
        self._joined = [start for (_, body), (start, _) in pairwise(headings) if start == body]
        self._bodies = {body for _, body in headings}
        # A heading is not a block: there is no boundary from its second character to the first of its body.
        heading_spans = [(start, body + 1) for start, body in headings]
        unbroken = sorted((mark.start, mark.end) for kind in ("table", "code") for mark in self._marks[kind])

        paragraphs = _outside(unbroken, (gap.start() for gap in _BLANK_LINE.finditer(text)))
        sentences = _outside(unbroken, (end for _, end in sentence_spans(text)))
        lines = (line.start() for span in unbroken for line in _LINE_BREAK.finditer(text, *span))
        blocks = {*chain(*unbroken), *paragraphs}
        self.sentences = list(_outside(heading_spans, sorted(blocks.union(sentences, lines))))
        self.cuts = (list(_outside(heading_spans, sorted(blocks))), self.sentences, self._joined)

    def regions(self) -> Iterable[tuple[int, int]]:
        """The spans that no chunk may cross."""
        bounds = {0, len(self._text), *self._starts["heading"]}.difference(self._joined)
        bounds.update(chain.from_iterable((mark.start, mark.end) for mark in self._marks["page"]))
        for mark in self._marks["figure"]:
            bounds |= {mark.start, mark.end} - self._bodies
        for mark in self._marks["place"]:
            if self.at("table", mark.start) is None:  # the rows of a table have places of their own, and stay together
                bounds |= {mark.start, mark.end} - self._bodies
        return pairwise(sorted(bounds))

    def path(self, position: int) -> tuple[tuple[int, str], ...]:
        """Start and name of the headings above a position, outermost first, including a heading at the position."""
        i = bisect_right(self._starts["heading"], position)
        return self._paths[i - 1] if i else ()

    def at(self, kind: str, position: int) -> Mark | None:
        """The mark of a kind that covers a position."""
        i = bisect_right(self._starts[kind], position)
        mark = self._marks[kind][i - 1] if i else None
        return mark if mark and position < mark.end else None

    def table_contexts(self, position: int) -> Sequence[str]:
        """Caption and header for a chunk that begins inside a table; the fullest form comes first.

        For a chunk that begins inside a figure, after its caption, the caption.
        """
        figure = self.at("figure", position)
        if figure and position > figure.start and figure.value:
            return (figure.value,)
        i = bisect_right(self._starts["table"], position)
        table = self._marks["table"][i - 1] if i else None
        if table is None or position >= table.end:
            return ()
        caption, torn = self._captions[i - 1]
        return caption if position == table.start else torn

    def names(self) -> set[str]:
        """All strings that may be part of a context."""
        names = {name for path in self._paths for _, name in path}
        names.update(mark.value for mark in self._marks["figure"] if mark.value)
        return names.union(chain.from_iterable(chain(*forms) for forms in self._captions))

    def _table_forms(self, table: Mark) -> tuple[list[str], list[str]]:
        """Forms of a table's caption, and of its caption with its header, from the fullest to the shortest.

        Lines that are headings above the table are left out: they are part of the context already.
        """
        headings = {name for _, name in self.path(table.start)}
        lines = [line.strip() for line in table.value.strip().splitlines()]
        first = next((at for at, line in enumerate(lines) if line.startswith("|")), 0)
        caption, header = [line for line in lines[:first] if line not in headings], lines[first:]
        captions = ["\n".join(caption[i:]) for i in range(len(caption))]
        rows = [line for line in header if not TABLE_RULE.fullmatch(line)]
        headers = ["\n".join(rows), "\n".join(map(_without_repetition, rows))] if rows else []
        torn = ["\n".join([*caption, *header])]
        torn += ["\n".join([*caption[i:], text]) for i in range(len(caption) + 1) for text in headers]
        return captions, [*torn, *captions]

    def skip_space(self, start: int, stop: int) -> int:
        """The first position from `start` that is not white space, up to `stop`."""
        text = self._text
        return next((i for i in range(start, stop) if not text[i].isspace()), stop)


class _Splitter:
    """Packs a document's text into chunks of up to `limit` tokens."""

    def __init__(self, document: Document, labels: Sequence[str], tokenize: Tokenize, limit: int) -> None:
        import numpy as np

        self._document = document
        self._text = document.text
        self._tokenize = tokenize
        self._limit = limit
        self._outline = _Outline(document)
        bounds = [0]
        for end in self._outline.sentences:
            if end - bounds[-1] >= _SLICE:
                bounds.append(end)
        slices = list(pairwise([*bounds, len(self._text)]))
        offsets = tokenize([self._text[start:end] for start, end in slices])
        starts = [start + tokens[:, 0] for (start, _), tokens in zip(slices, offsets, strict=True)]
        self._token_starts: NDArray[np.int64] = np.sort(np.concatenate(starts))  # ascending
        names = [SEPARATOR, "\n", *sorted(self._outline.names())]
        self._cost = dict(zip(names, map(len, tokenize(names)), strict=True))
        self._labels = [label for name in labels if (label := self._shorten(name, limit // 8))]

    def chunks(self) -> list[Chunk]:
        """Split, count the exact tokens of the chunks, and split those again that have too many, with less room."""
        fitting: list[Chunk] = []
        todo = [(start, stop, self._limit) for start, stop in self._outline.regions()]
        while todo:
            pieces = [piece for region in todo for piece in self._cut(*region)]
            chunks = [self._chunk(start, end) for start, end in pieces]
            counts = map(len, self._tokenize([chunk.embedded_text for chunk in chunks]))
            todo = []
            for (start, end), chunk, tokens in zip(pieces, chunks, counts, strict=True):
                if tokens <= self._limit:
                    fitting.append(chunk)
                elif start + 1 < chunk.end:
                    first, last = map(int, self._token_starts.searchsorted((start, end)))
                    least = max(last - first, -(-(end - start) // _CHARS_PER_TOKEN))  # tokens of the text
                    todo.append((start, end, least * self._limit // tokens))
                else:
                    raise TooLongError(
                        f"{self._document.uri}: the character {chunk.text!r} at {start} has {tokens} tokens with its "
                        f"context, more than the chunk size of {self._limit}.",
                        "Raise the chunk size, or use an embedder with a longer window.",
                    )
        return sorted(fitting, key=lambda chunk: chunk.start)

    def _cut(self, start: int, stop: int, room: int) -> Iterator[tuple[int, int]]:
        """Start and end of the chunks of a region: each ends at the strongest boundary within reach."""
        text, outline = self._text, self._outline
        stop = start + len(text[start:stop].rstrip())
        start = outline.skip_space(start, stop)
        while start < stop:
            # The context of a chunk that ends in the body: headings above may end at a joined heading before it.
            tokens = min(room, self._limit - self._context(start, stop)[1])
            after = int(self._token_starts.searchsorted(start)) + tokens  # the first token without room
            reach = int(self._token_starts[after]) if after < len(self._token_starts) else stop
            end = reach = min(reach, start + tokens * _CHARS_PER_TOKEN, stop)
            if reach < stop:
                ends = (cuts[bisect_right(cuts, reach) - 1] for cuts in outline.cuts if cuts and cuts[0] <= reach)
                spaces = (at for at in range(reach, start, -1) if text[at].isspace())
                end = next((at for at in chain(ends, spaces) if at > start), max(reach, start + 1))
            yield start, end
            start = outline.skip_space(end, stop)

    def _chunk(self, start: int, end: int) -> Chunk:
        text = self._text[start:end].rstrip()
        end = start + len(text)
        page, place = self._outline.at("page", start), self._outline.at("place", start)
        figure = self._outline.at("figure", end - 1)  # it may begin with the heading above the figure
        return Chunk(
            text,
            start,
            end,
            context=self._context(start, end)[0],
            page=int(page.value) if page else None,
            place=place.value if place else None,
            headings=tuple(name for _, name in self._outline.path(end - 1)),
            image=figure.image if figure else None,
            box=figure.box if figure else None,
        )

    def _context(self, start: int, end: int) -> tuple[str, int]:
        """The context of `text[start:end]` and its tokens: up to a third of the window.

        The name of the document comes first, since it distinguishes the chunk from those of similar documents, then
        caption and header of a table, then headings, the inner ones first.
        """
        path = self._outline.path(end - 1)
        headings = {name for _, name in path}
        names = [label for label in self._labels if label not in headings]
        room = self._limit // 3 - sum(self._cost[name] + self._cost[SEPARATOR] for name in names)
        forms = self._outline.table_contexts(start)
        table = next((form for form in forms if self._cost[form] <= room), "")
        if table:
            room -= self._cost[table] + self._cost["\n"]
        labels = len(names)
        for heading, name in reversed(path):
            if heading >= start:  # it is part of the chunk
                continue
            cost = self._cost[name] + (self._cost[SEPARATOR] if names else 0)
            if cost > room:
                break
            room -= cost
            names.insert(labels, name)
        return "\n".join(filter(None, (SEPARATOR.join(names), table))), self._limit // 3 - room

    def _shorten(self, name: str, room: int) -> str:
        """The first words of a name that have at most `room` tokens. Its tokens are then in `_cost`."""
        offsets = self._tokenize([name])[0]
        while len(offsets) > room:
            cut = name[: int(offsets[room][0])].rstrip()
            name = cut[: cut.rindex(" ")] if " " in cut and not name[len(cut) :].startswith(" ") else cut
            offsets = self._tokenize([name])[0]
        self._cost[name] = len(offsets)
        return name


def _without_repetition(row: str) -> str:
    """A header row in which no cell repeats the words with which the cell before begins."""
    before: list[str] = []
    cells = []
    for cell in row_cells(row):
        words = cell.split()
        same = next((i for i, pair in enumerate(zip(words, before, strict=False)) if pair[0] != pair[1]), len(words))
        cells.append(" ".join(words[same:] or words))
        before = words
    return row_line(cells)


def _outside(spans: Sequence[tuple[int, int]], positions: Iterable[int]) -> Iterator[int]:
    """The positions that are not inside any span; a span's bounds are outside."""
    starts = [start for start, _ in spans]
    for position in positions:
        i = bisect_left(starts, position)
        if not i or position >= spans[i - 1][1]:
            yield position
