"""Markdown of answers that is safe to render: images, HTML and links from documents stay visible, but do nothing.

A zero-width non-joiner (U+200C, here `·`) separates the characters that would open one. The text looks the same:

    !·[text]·(address)      [text]·(address)      [label]·: address      <·img src=address>

Code in backticks is left as it is, but only while all renderers agree that it is code. They may not after a tilde, a
backslash or a dollar sign (of formulas), nor after backticks that are unbalanced, behind an address, or not at the
beginning of the line of a code block. From there on, code gets the character, too.
"""

from __future__ import annotations

import re
from bisect import bisect_left

_NON_JOINER = "\u200c"
# Where an image, a link or its target, and a tag would begin. Overrides show the text after them in another order.
_ACTIVE = re.compile(r"(?<=!)(?=\[)|(?<=\])(?=[(:])|(?<=<)(?=[A-Za-z/!?])|[\u202d\u202e]")
_UNDECIDED = "!]<"  # the next character decides whether they begin one
_UNCERTAIN_OR_CODE = re.compile(r"[$\\~]|`+")
_BACKTICKS = re.compile(r"`+")
_LINE = re.compile(r"[^\n\r]*[\n\r]?")
_LINE_ENDS = ("\n", "\r")


def inert(text: str) -> str:
    """A text without active Markdown. Code in it is not left as it is."""
    return _ACTIVE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode() or _NON_JOINER


class AnswerMarkdown:
    """The Markdown of one answer, piece by piece. Unless it `is_safe`, nothing changes."""

    def __init__(self, *, is_safe: bool) -> None:
        self._is_safe = is_safe
        self._text = ""
        self._done = 0  # characters of the text that were returned
        self._added: list[int] = []  # for each character that was added, its offset in the text
        self._certain = True  # whether backticks are certain to be code
        self._fence = ""  # the backticks above the code block that is still open

    def feed(self, piece: str, *, last: bool = False) -> str:
        """The next part of the result. What later pieces decide is held back, unless this is the `last` piece."""
        if not self._is_safe:
            return piece
        self._text += piece
        parts = []
        while self._done < len(self._text):
            is_code, end = self._next_part(last)
            if end == self._done:
                break
            part = self._text[self._done : end]
            if not is_code:
                for found in _ACTIVE.finditer(part):
                    self._added += [self._done + found.start()] * (len(_escaped(found)) - len(found[0]))
                part = inert(part)
            parts.append(part)
            self._done = end
        return "".join(parts)

    def offset(self, offset: int) -> int:
        """The offset in the result, for one in the pieces."""
        return offset + bisect_left(self._added, offset)

    def _next_part(self, last: bool) -> tuple[bool, int]:
        """Whether the next part is code, and its end; that is its start while later pieces decide."""
        text, start = self._text, self._done
        line = _LINE.match(text, start)
        assert line
        line_end = line.end()
        whole_line = last or text.endswith(_LINE_ENDS, start, line_end)
        if self._fence:
            if not whole_line:
                return True, start
            if re.fullmatch(rf" {{0,3}}{self._fence}`*[ \t]*[\n\r]?", line[0]):
                self._fence = ""
            elif line[0].lstrip().startswith(self._fence):
                self._fence, self._certain = "", False
            return self._certain, line_end

        found = _UNCERTAIN_OR_CODE.search(text, start) if self._certain else None
        end = found.start() if found else len(text)
        if end > start:
            decided = last or end < len(text)
            return False, end if decided else start + len(text[start:].rstrip(_UNDECIDED))
        assert found
        run, rest = found[0], text[found.end() : line_end]
        if run[0] != "`":
            self._certain = False
            return self._next_part(last)
        before = text[max(text.rfind("\n", 0, start), text.rfind("\r", 0, start)) + 1 : start]
        if len(run) >= 3 and not before and "`" not in rest:
            self._fence = run if whole_line else ""
            return True, line_end if whole_line else start
        closing = next((other for other in _BACKTICKS.finditer(rest) if len(other[0]) == len(run)), None)
        if not whole_line and (closing is None or closing.end() == len(rest)):
            return True, start
        word = before.replace("\t", " ").rpartition(" ")[2]  # an address may contain backticks
        # A table ends a cell at a bar, even in code.
        if closing and len(run) < 3 and "|" not in rest[: closing.start()] and set(".:").isdisjoint(word):
            return True, found.end() + closing.end()
        self._certain = False
        return self._next_part(last)
