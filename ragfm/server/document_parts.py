"""Parts of a document, for programs that read it piece by piece: its outline, a page or section, places of a text."""

from __future__ import annotations

import re
from bisect import bisect_right

from ragfm.core.errors import CollectionError
from ragfm.core.types import Document, Mark
from ragfm.server.api_errors import ApiError, not_found
from ragfm.server.api_keys import Key
from ragfm.server.api_models import DocumentSection, Outline, TextPlace, TextPlaces
from ragfm.server.served_models import Model

_MAX_SECTIONS = 200
_MAX_PLACES = 20
_CONTEXT_CHARACTERS = 150  # characters on each side of a place


def read_document(model: Model, key: Key, uri: str) -> Document:
    """A document, as far as the key may see it. Raises ApiError if there is none."""
    try:
        document = model.handle(key).document(uri)
    except CollectionError as error:
        if type(error) is CollectionError:  # not one that the collection itself has
            raise not_found("document", uri) from error
        raise
    model.handles.saw_newest(key)
    return document


def part_span(document: Document, page: int | None, section: str | None) -> tuple[int, int]:
    """The characters of a page, of a section, or of what both have in common; by default the whole text.

    A section is given by its heading, or by several as `Leave > Parents`. Raises ApiError if there is none.
    """
    start, end = 0, len(document.text)
    if page is not None:
        mark = next((mark for mark in _pages(document) if mark.value == str(page)), None)
        if mark is None:
            raise not_found("page", str(page))
        start, end = mark.start, mark.end
    if section is not None:
        wanted = " ".join(section.split()).casefold()
        paths = ((" > ".join(known.headings).casefold(), known) for known in _sections(document))
        found = next((known for path, known in paths if path == wanted or path.endswith(f" > {wanted}")), None)
        if found is None:
            raise not_found("section", section)
        start, end = max(start, found.start), min(end, found.end)
    return start, max(start, end)


def outline(document: Document, start: int) -> Outline:
    """The sections that begin at a character or later, in order."""
    sections = [section for section in _sections(document) if section.start >= start]
    return Outline(
        uri=document.uri,
        characters=len(document.text),
        pages=len(_pages(document)),
        sections=sections[:_MAX_SECTIONS],
        next=sections[_MAX_SECTIONS].start if len(sections) > _MAX_SECTIONS else None,
    )


def find_text(document: Document, text: str, start: int) -> TextPlaces:
    """Where a text occurs at a character or later, in any case and with any white space between its words.

    Raises ApiError for a text without words.
    """
    words = text.split()
    if not words:
        raise ApiError(400, "The text is empty.", code="invalid_request", param="text")
    sections, pages = _sections(document), _pages(document)
    places: list[TextPlace] = []
    for match in re.compile(r"\s+".join(map(re.escape, words)), re.IGNORECASE).finditer(document.text, start):
        first, last = match.span()
        if len(places) == _MAX_PLACES:
            return TextPlaces(uri=document.uri, places=places, next=first)
        above = [section for section in sections if section.start <= first < section.end]
        places.append(
            TextPlace(
                start=first,
                end=last,
                text=document.text[max(0, first - _CONTEXT_CHARACTERS) : last + _CONTEXT_CHARACTERS],
                headings=above[-1].headings if above else (),
                page=_page_at(pages, first),
            )
        )
    return TextPlaces(uri=document.uri, places=places, next=None)


def _sections(document: Document) -> list[DocumentSection]:
    """The sections: each ends before the next heading of its level or of one further out."""
    marks, pages = [mark for mark in document.marks if mark.kind == "heading"], _pages(document)
    sections: list[DocumentSection] = []
    path: list[tuple[int, str]] = []
    for at, mark in enumerate(marks):
        path = [(level, title) for level, title in path if level < mark.level]
        title = " ".join(mark.value.split())
        if not title:  # it only ends the sections before it
            continue
        path.append((mark.level, title))
        end = next((other.start for other in marks[at + 1 :] if other.level <= mark.level), len(document.text))
        page = _page_at(pages, mark.start)
        headings = tuple(title for _, title in path)
        sections.append(DocumentSection(headings=headings, level=mark.level, start=mark.start, end=end, page=page))
    return sections


def _pages(document: Document) -> list[Mark]:
    return [mark for mark in document.marks if mark.kind == "page"]


def _page_at(pages: list[Mark], position: int) -> int | None:
    at = bisect_right(pages, position, key=lambda mark: mark.start)
    return int(pages[at - 1].value) if at and position < pages[at - 1].end else None
