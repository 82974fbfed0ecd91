"""The chunker: cuts a document into passages that fit the embedder's window.

The text is tokenised once, so that the tokens between any two characters are two binary searches away, and the places
where it may be cut are listed by strength:

    heading, page, place        always cut; a heading without a body stays with the next one, rows with their table
    end of a block              paragraph, table, code block
    end of a sentence           in a table a row, in code a line
    before a joined heading     only where headings without a body fill more than a window
    end of a word, a character  where nothing else is in reach

From where the last chunk ended, a chunk reaches to the farthest cut of the strongest kind within the window: so blocks
are packed whole, one that is too long is packed by its sentences, and so on down. At last the exact strings that will
be embedded are tokenised, and the few that turn out too long (half a word may have more tokens than the whole) are cut
again with less room. All this takes time linear in the text's length.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, TypeAlias

from ragfm.core.errors import ConfigError, TooLongError
from ragfm.core.text import sentence_spans
from ragfm.core.types import Chunk, Document, Mark

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ragfm.core.types import Offsets

    Tokenize: TypeAlias = Callable[[Sequence[str]], list[Offsets]]

__all__ = ["CHUNKER", "ChunkSettings", "split"]

CHUNKER = "1"
"""The version of the chunker: documents that another version split count as changed."""

_DEFAULT_SIZE = 256
_CHARS_PER_TOKEN = 16  # at most, on average over a chunk: a word of 1 MB may be one "unknown" token
_SLICE = 10_000  # characters to tokenise at once; tokenizers get slow on megabytes
_BLANK_LINE = re.compile(r"\n\s*\n")
_LINE_BREAK = re.compile(r"\n")
_HASHES = re.compile(r"^#{1,6} | #+$")
_SEPARATOR = " > "


@dataclass(frozen=True)
class ChunkSettings:
    """How long chunks are, in tokens of the embedding model.

    size       most tokens of a chunk with its context, ≥ 16; None means the embedder's window, at most 256
    overlap    most tokens of the previous chunk's end that a chunk repeats, in whole sentences and within one section;
               less than half of the size (of the window, where that is smaller)

    Raises ConfigError.
    """

    size: int | None = None
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 16:
            raise ConfigError(f"The chunk size is {self.size} tokens.", "Set it to 16 or more.")
        if not 0 <= self.overlap < (self.size or _DEFAULT_SIZE) / 2:
            raise ConfigError(
                f"The chunk overlap is {self.overlap} tokens of {self.size or _DEFAULT_SIZE}.",
                "Set it to 0 or more, and to less than half of the chunk size.",
            )


def split(
    document: Document, tokenize: Tokenize, max_tokens: int, settings: ChunkSettings = ChunkSettings()
) -> list[Chunk]:
    """The chunks of a document, in order, each at most `max_tokens` long together with its context.

    `tokenize` and `max_tokens` are the embedder's. For every chunk `document.text[start:end] == text`. Without overlap
    chunks are disjoint; together they cover every character that is not white space. Raises TooLongError where the
    window is smaller than a single character's tokens.
    """
    limit = min(settings.size or _DEFAULT_SIZE, max_tokens)
    return _Splitter(document, tokenize, limit, min(settings.overlap, (limit - 1) // 2)).chunks()


class _Outline:
    """Where a document may be cut, by strength, and what its marks say of a position."""

    def __init__(self, document: Document) -> None:
        text = self._text = document.text
        self._marks = {
            kind: [mark for mark in document.marks if mark.kind == kind]
            for kind in ("page", "place", "heading", "table", "code")
        }
        self._starts = {kind: [mark.start for mark in marks] for kind, marks in self._marks.items()}
        self._paths = list(_heading_paths(self._marks["heading"]))

        headings = [(mark.start, self.skip_space(mark.end, len(text))) for mark in self._marks["heading"]]
        self._joined = [start for (_, body), (start, _) in pairwise(headings) if start == body]
        self._bodies = {body for _, body in headings}
        # A heading is no block of its own: nothing is cut from its second character to the first of its body.
        glued = [(start, body + 1) for start, body in headings]
        untorn = sorted((mark.start, mark.end) for kind in ("table", "code") for mark in self._marks[kind])

        paragraphs = _outside(untorn, (gap.start() for gap in _BLANK_LINE.finditer(text)))
        sentences = _outside(untorn, (end for _, end in sentence_spans(text)))
        lines = (line.start() for span in untorn for line in _LINE_BREAK.finditer(text, *span))
        blocks = {*chain(*untorn), *paragraphs}
        self.sentences = list(_outside(glued, sorted(blocks.union(sentences, lines))))
        self.cuts = (list(_outside(glued, sorted(blocks))), self.sentences, self._joined)

    def regions(self) -> Iterable[tuple[int, int]]:
        """The stretches that no chunk may leave."""
        bounds = {0, len(self._text), *self._starts["heading"]}.difference(self._joined)
        bounds.update(chain.from_iterable((mark.start, mark.end) for mark in self._marks["page"]))
        for mark in self._marks["place"]:
            if self.at("table", mark.start) is None:  # a table's rows know their places, and stay together
                bounds |= {mark.start, mark.end} - self._bodies
        return pairwise(sorted(bounds))

    def path(self, position: int) -> tuple[tuple[int, str], ...]:
        """Start and name of the headings that a position stands under, outermost first; its own heading included."""
        i = bisect_right(self._starts["heading"], position)
        return self._paths[i - 1] if i else ()

    def at(self, kind: str, position: int) -> Mark | None:
        """The mark of a kind that covers a position."""
        i = bisect_right(self._starts[kind], position)
        mark = self._marks[kind][i - 1] if i else None
        return mark if mark and position < mark.end else None

    def table_header(self, position: int) -> str:
        """The header rows of the table that goes on at a position; empty where there is none."""
        table = self.at("table", position)
        return table.value.strip() if table and table.start < position else ""

    def names(self) -> set[str]:
        """All that may become part of a context."""
        names = {name for path in self._paths for _, name in path}
        return names.union(mark.value.strip() for mark in self._marks["table"])

    def skip_space(self, start: int, stop: int) -> int:
        """The first position from `start` on that is not white space, at most `stop`."""
        text = self._text
        return next((i for i in range(start, stop) if not text[i].isspace()), stop)


class _Splitter:
    """Packs a document's text into chunks of at most `limit` tokens."""

    def __init__(self, document: Document, tokenize: Tokenize, limit: int, overlap: int) -> None:
        self._document = document
        self._text = document.text
        self._tokenize = tokenize
        self._limit = limit
        self._overlap = overlap
        self._outline = _Outline(document)
        self._token_starts = self._tokens()
        names = [_SEPARATOR, *sorted(self._outline.names())]
        self._cost = dict(zip(names, map(len, tokenize(names)), strict=True))

    def chunks(self) -> list[Chunk]:
        """Cut, count the tokens of what came out, and cut again what has too many, with so much less room."""
        fitting: list[Chunk] = []
        todo = [(start, stop, self._limit) for start, stop in self._outline.regions()]
        while todo:
            pieces = [piece for start, stop, room in todo for piece in self._cut(start, stop, room)]
            chunks = [self._chunk(start, end) for start, _, end in pieces]
            counts = map(len, self._tokenize([chunk.embedded_text for chunk in chunks]))
            todo = []
            for (start, fresh, end), chunk, tokens in zip(pieces, chunks, counts, strict=True):
                if tokens <= self._limit:
                    fitting.append(chunk)
                elif start + 1 < chunk.end:
                    todo.append((fresh, end, self._size(fresh, end) * self._limit // tokens))
                else:
                    raise TooLongError(
                        f"{self._document.uri}: the character {chunk.text!r} at {start} has {tokens} tokens with its "
                        f"context, and a chunk may have {self._limit}.",
                        "Raise the chunk size, or take an embedder with a longer window.",
                    )
        chosen: list[Chunk] = []
        for chunk in sorted(fitting, key=lambda chunk: (chunk.start, -chunk.end)):
            # What was cut again may have left a piece that the next chunk repeats whole.
            if not chosen or chunk.end > chosen[-1].end:
                chosen.append(chunk)
        return chosen

    def _cut(self, start: int, stop: int, room: int) -> Iterator[tuple[int, int, int]]:
        """Chunks of a region as (start, where new text starts, end); the two differ by the overlap."""
        stop = start + len(self._text[start:stop].rstrip())
        fresh = self._outline.skip_space(start, stop)
        while fresh < stop:
            # Of the strongest cuts in reach, take the one that leaves the longest overlap.
            begins = [*self._overlap_starts(start, fresh), fresh]
            ends = [(*self._end(begin, fresh, stop, room), begin) for begin in begins]
            _, end, start = min(ends, key=lambda cut: cut[0])
            yield start, fresh, end
            fresh = self._outline.skip_space(end, stop)

    def _end(self, begin: int, fresh: int, stop: int, room: int) -> tuple[int, int]:
        """How weak the best cut in reach of `begin` is (0 is the strongest), and where it is."""
        room = min(room, self._limit - self._context(begin, begin + 1)[1])
        after = int(self._token_starts.searchsorted(begin)) + room  # the first token that has no room
        reach = int(self._token_starts[after]) if after < len(self._token_starts) else stop
        reach = min(reach, begin + room * _CHARS_PER_TOKEN, stop)
        if reach == stop:
            return 0, stop
        for weakness, cuts in enumerate(self._outline.cuts):
            i = bisect_right(cuts, reach)
            if i and cuts[i - 1] > fresh:
                return weakness, cuts[i - 1]
        for end in range(reach, fresh, -1):
            if self._text[end].isspace():
                return len(self._outline.cuts), end
        torn = len(self._outline.cuts) + (1 if begin == fresh else 2)  # overlap is not worth tearing a word
        return torn, max(reach, fresh + 1)

    def _overlap_starts(self, previous: int, fresh: int) -> Iterator[int]:
        """Where the sentences start that a chunk may repeat of the one that starts at `previous`, farthest first."""
        if not self._overlap:
            return
        before = int(self._token_starts.searchsorted(fresh)) - self._overlap - 1  # the last token that is not repeated
        earliest = int(self._token_starts[before]) + 1 if before >= 0 else 0
        earliest = max(earliest, fresh - self._overlap * _CHARS_PER_TOKEN, previous + 1)
        sentences = self._outline.sentences
        for i in range(max(0, bisect_left(sentences, earliest) - 1), bisect_left(sentences, fresh)):
            start = self._outline.skip_space(sentences[i], fresh)
            if earliest <= start < fresh:
                yield start

    def _chunk(self, start: int, end: int) -> Chunk:
        text = self._text[start:end].rstrip()
        end = start + len(text)
        page, place = self._outline.at("page", start), self._outline.at("place", start)
        return Chunk(
            text,
            start,
            end,
            context=self._context(start, end)[0],
            page=int(page.value) if page else None,
            place=place.value if place else None,
            headings=tuple(name for _, name in self._outline.path(end - 1)),
        )

    def _context(self, start: int, end: int) -> tuple[str, int]:
        """The context of `text[start:end]` and its tokens: at most a third of the window, outer headings go first."""
        room = self._limit // 3
        header = self._outline.table_header(start)
        if self._cost.get(header, 0) > room:
            header = ""
        room -= self._cost.get(header, 0)
        names: list[str] = []
        for heading, name in reversed(self._outline.path(end - 1)):
            if heading >= start:  # it stands in the chunk
                continue
            cost = self._cost[name] + (self._cost[_SEPARATOR] if names else 0)
            if cost > room:
                break
            room -= cost
            names.insert(0, name)
        return "\n".join(filter(None, (_SEPARATOR.join(names), header))), self._limit // 3 - room

    def _tokens(self) -> NDArray[np.int64]:
        """Where the tokens of the text start. *Shape:* (n_tokens,), ascending."""
        import numpy as np

        bounds = [0]
        for end in self._outline.sentences:
            if end - bounds[-1] >= _SLICE:
                bounds.append(end)
        slices = list(pairwise([*bounds, len(self._text)]))
        offsets = self._tokenize([self._text[start:end] for start, end in slices])
        starts = [start + tokens[:, 0] for (start, _), tokens in zip(slices, offsets, strict=True)]
        return np.sort(np.concatenate(starts))

    def _size(self, start: int, end: int) -> int:
        """The least room that a stretch of text needs."""
        first, last = self._token_starts.searchsorted((start, end))
        return max(int(last - first), -(-(end - start) // _CHARS_PER_TOKEN))


def _heading_paths(headings: Iterable[Mark]) -> Iterator[tuple[tuple[int, str], ...]]:
    path: list[Mark] = []
    for heading in headings:
        while path and path[-1].level >= heading.level:
            path.pop()
        path.append(heading)
        names = (_HASHES.sub("", " ".join(mark.value.split())) for mark in path)
        yield tuple((mark.start, name) for mark, name in zip(path, names, strict=True) if name)


def _outside(spans: Sequence[tuple[int, int]], positions: Iterable[int]) -> Iterator[int]:
    """The positions that are not inside any of the spans; a span's bounds are outside."""
    starts = [start for start, _ in spans]
    for position in positions:
        i = bisect_left(starts, position)
        if not i or position >= spans[i - 1][1]:
            yield position
