"""The main content of an HTML page: where it is, and which blocks in it are navigation.

Landmarks (`main`, `article`, `nav`, `header`, `footer` and the ARIA roles for them) are used first. Blocks without one
are judged by their link density: the share of their letters that stand in links and other controls. Names of classes
play no part. A run of text outside of links that is long enough to be a sentence is never left out for its density. A
bar or table whose links all lead to the next page or the contents of a manual, by `rel` or `accesskey`, is left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ragfm.parsing.own.web.html_tree import attribute, is_dropped, is_layout, walk

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

_CONTROLS = frozenset({"a", "button", "label"})
_CARDS = frozenset("article blockquote dd figcaption p".split())
"""Elements that are text of the page even in a link: the link is then a card, not a line of a menu."""
_CONTAINERS = frozenset("aside center div fieldset footer form header menu ol section td ul".split())
_LISTS = frozenset({"menu", "ol", "ul"})
_HEADINGS = frozenset({"h2", "h3", "h4", "h5", "h6"})
_NAVIGATION = frozenset("contents first home index last next prev previous start toc top up".split())
"""Values of `rel`, and those that manuals of several pages use next to HTML's own."""
_BARS = frozenset({"div", "li", "ol", "p", "table", "ul"})
"""Elements that are a bar of links to the next and the previous page."""
_BANNERS = frozenset({"center", "div", "section"})
"""Elements that are left out at the top of a page if they have only links."""
_BOOK_CONTENTS = frozenset({"dl", "nav", "ol", "table", "ul"})
_PARTS = frozenset({"article", "main", "section"})  # may have a header and a footer of their own
_DIGIT = re.compile(r"\d")
_MIN_DENSITY = 0.75
_MIN_ASIDE_DENSITY = 0.5
_MIN_LINKS = 3
_MIN_TO_PAGES = 0.5
"""Share of the links of a bar without other text that lead through the pages: others report an error in the page."""
_MIN_FRAGMENTS = 0.9
"""Share of a table of contents' links that lead to places of the same page."""
_SENTENCE_BYTES = 40  # UTF-8 bytes, since a Chinese character says as much as several Latin letters
_MIN_DIGITS = 7  # a telephone number or coordinates are data, with a link or not
_MIN_PROSE_SHARE = 0.3
"""Share of a page's text outside of links that its `main` or `article` must have to count as its content."""
_MIN_TEXT_SHARE = 0.3
"""Share of the content's text that must remain without navigation: the links of an index page are its content."""


@dataclass(slots=True)
class _Counts:
    letters: int = 0
    prose: int = 0  # letters outside of links, controls and headings
    links: int = 0
    to_pages: int = 0  # links that lead through the pages of a manual
    is_kept: bool = False  # has a sentence, the title, code or a table of data
    is_first: bool = False  # the page has no text outside of links before its end
    sentences_before: int = 0  # on the page

    def add(self, other: _Counts) -> None:
        self.letters += other.letters
        self.prose += other.prose
        self.links += other.links
        self.to_pages += other.to_pages
        self.is_kept |= other.is_kept

    def is_bar(self, *, links_only: bool) -> bool:
        """Whether all links lead through the pages, or at least half of them where there are only links."""
        needed = _MIN_TO_PAGES * self.links if links_only else self.links
        return not self.is_kept and 0 < needed <= self.to_pages

    def is_link_list(self, min_density: float) -> bool:
        return not self.is_kept and self.links >= _MIN_LINKS and self.letters - self.prose >= min_density * self.letters


def find_main_content(body: LexborNode) -> tuple[LexborNode, frozenset[int]]:
    """Return the element with the main content, and the `mem_id` of each element in it to leave out.

    Elements that are invisible or navigation by their tag or role are always left out, except where nothing else has
    text. Link lists are left out unless too little text remains.
    """
    counts, left_out, sentences = _count(body)
    content = body
    landmarks = body.css("main, [role=main]")[:1] or body.css("article")
    if len(landmarks) == 1:
        (landmark,) = landmarks
        found = counts.get(landmark.mem_id, _Counts())
        if found.letters and found.prose >= _MIN_PROSE_SHARE * counts[body.mem_id].prose:
            content = landmark
    bars, lists = _link_lists(content, counts, sentences)
    left_out |= bars
    total = counts[content.mem_id].letters - sum(counts[node].letters for node in bars)
    if total - sum(counts[node].letters for node in lists) >= _MIN_TEXT_SHARE * total:
        left_out |= lists
    return content, frozenset(left_out)


def _count(body: LexborNode) -> tuple[dict[int, _Counts], set[int], int]:
    """Count what is in each block, and find the elements that are left out by their tag, role or style."""
    counts = {body.mem_id: _Counts()}
    left_out: set[int] = set()
    path = [counts[body.mem_id]]
    in_control = [False]  # for each element of the path, as are the next two
    in_link = [False]
    sentences = 0
    begun = False  # whether there was text outside of links
    in_part = [False]  # in an element that may have a header and a footer of its own

    def enter(node: LexborNode) -> bool:
        nonlocal sentences, begun
        tag = node.tag
        if tag == "-text":
            text = " ".join((node.text_content or "").split())
            length = len(text) - text.count(" ")
            path[-1].letters += length
            is_prose = not in_control[-1]
            begun |= length > 0 and not in_link[-1]
            path[-1].prose += length * is_prose
            is_sentence = is_prose and len(text.encode()) >= _SENTENCE_BYTES
            sentences += is_sentence
            path[-1].is_kept |= is_sentence or len(_DIGIT.findall(text)) >= _MIN_DIGITS
            return False
        role = attribute(node, "role")
        is_of_the_page = not in_part[-1] and (tag in {"header", "footer"} or role in {"banner", "contentinfo"})
        if is_of_the_page or is_dropped(node):
            left_out.add(node.mem_id)
            return False
        is_control = tag in _CONTROLS and not attribute(node, "href").startswith(("mailto:", "tel:"))
        is_table = tag == "table" and not is_layout(node)
        relations = attribute(node, "rel").lower().split()
        leads_through_pages = "accesskey" in node.attributes or not _NAVIGATION.isdisjoint(relations)
        counts[node.mem_id] = _Counts(
            links=int(tag == "a" and is_control),
            to_pages=int(tag == "a" and is_control and leads_through_pages),
            is_kept=is_table or tag in {"h1", "pre"},
            sentences_before=sentences,
        )
        path.append(counts[node.mem_id])
        in_link.append(in_link[-1] or is_control)
        in_control.append(tag not in _CARDS and (in_control[-1] or is_control or tag in _HEADINGS))
        in_part.append(in_part[-1] or tag in _PARTS or role == "main")
        return True

    def leave(node: LexborNode) -> None:
        count = path.pop()
        count.is_first = not begun
        if node.tag == "table" and count.links and count.to_pages == count.links:
            count.is_kept = False
        path[-1].add(count)
        in_control.pop()
        in_link.pop()
        in_part.pop()

    walk(body, enter, leave)
    return counts, left_out, sentences


def _link_lists(content: LexborNode, counts: dict[int, _Counts], sentences: int) -> tuple[set[int], set[int]]:
    """The outermost bars that lead through the pages, and other blocks of links that are not part of the text.

    A list that follows text in the same element belongs to this text, as does a block of links below a heading: "See
    also", the children of a page. Without landmarks, a block with its own heading may also be a sidebar: it belongs to
    the text only where text follows. The table of contents of the page repeats its headings, and never belongs to it.
    """
    bars, found = set[int](), set[int]()
    places = {attribute(node, name) for name in ("id", "name") for node in content.css(f"[{name}]")}
    # Links next to the only article of `main` are not part of it, whatever their heading.
    articles = content.css("article") if content.tag != "article" else []
    inner = articles[0] if len(articles) == 1 else content
    if counts.get(inner.mem_id, _Counts()).prose < 0.5 * counts[content.mem_id].prose:
        inner = content
    inside = int(inner is content and content.tag != "body")

    def enter(node: LexborNode) -> bool:
        nonlocal inside
        tag = node.tag
        count = counts.get(node.mem_id)
        if count is None or (count.links < _MIN_LINKS and not count.to_pages and not count.is_first):
            return False
        links_only = not count.prose and node.css_first("h1, h2, h3, h4, h5, h6") is None
        if tag in _BARS and count.is_bar(links_only=links_only):
            bars.add(node.mem_id)
            return False
        if links_only and count.is_first and count.letters and tag in _BANNERS and not count.is_kept:
            found.add(node.mem_id)
            return False
        inside += node.mem_id == inner.mem_id
        is_aside = tag == "aside" or attribute(node, "role") == "complementary"
        if is_aside and count.is_link_list(_MIN_ASIDE_DENSITY):
            found.add(node.mem_id)
            return False
        if (tag in _CONTAINERS or tag == "dl") and count.letters - count.prose >= _MIN_DENSITY * count.letters:
            targets = [attribute(link, "href").rpartition("#")[2] for link in node.css("a[href*='#']")]
            is_contents = sum(target in places for target in targets) >= _MIN_FRAGMENTS * count.links
            if is_contents and node.css_first("h1, pre, table") is None:
                found.add(node.mem_id)
                return False
        if tag in _CONTAINERS and count.is_link_list(_MIN_DENSITY):
            is_between_text = content.tag == "body" and 0 < count.sentences_before < sentences
            if not _belongs_to_text(node, counts, with_own_heading=inside > 0 or is_between_text):
                found.add(node.mem_id)
            return False
        return tag != "table" or is_layout(node)

    def leave(node: LexborNode) -> None:
        nonlocal inside
        inside -= node.mem_id == inner.mem_id

    walk(content, enter, leave)
    return bars, found


def contents_of_book(content: LexborNode, is_chapter: Callable[[str], bool]) -> set[int]:
    """The outermost blocks that are lists of links to chapters; everything below `content` if that is one."""
    found: set[int] = set()

    def is_contents(node: LexborNode) -> bool:
        links = node.css("a[href]")
        chapters = sum(is_chapter(attribute(link, "href")) for link in links)
        if len(links) < _MIN_LINKS or chapters < _MIN_FRAGMENTS * len(links):
            return False
        return sum(map(_letters, links)) >= _MIN_DENSITY * _letters(node)

    def enter(node: LexborNode) -> bool:
        if node.tag in _BOOK_CONTENTS and is_contents(node):
            found.add(node.mem_id)
            return False
        return True

    if is_contents(content):
        return {node.mem_id for node in content.iter()}
    walk(content, enter, lambda _: None)
    return found


def _letters(node: LexborNode) -> int:
    return sum(map(str.isalnum, node.text()))


def _belongs_to_text(block: LexborNode, counts: dict[int, _Counts], *, with_own_heading: bool) -> bool:
    if with_own_heading and block.css_first("h2, h3, h4, h5, h6") is not None:
        return True
    before = block.prev
    while before is not None and not counts.get(before.mem_id, _Counts()).letters:
        if before.tag == "-text" and (before.text_content or "").strip():
            return block.tag in _LISTS
        before = before.prev
    if before is None:
        return False
    letters = counts[before.mem_id].letters
    headings = [before] if before.tag in _HEADINGS else before.css("h2, h3, h4, h5, h6")
    if any(counts.get(heading.mem_id, _Counts()).letters == letters for heading in headings):
        return True
    return block.tag in _LISTS and counts[before.mem_id].prose > 0 and before.tag != "h1"
