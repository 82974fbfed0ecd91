"""The items that an answer lists, and ordinals that refer to them: "the second one", "number 3", "the last"."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ragfm.core.text import MARKER, sentence_spans

_ORDINAL_WORDS = (
    *("first 1st former", "second 2nd", "third 3rd", "fourth 4th", "fifth 5th"),
    *("sixth 6th", "seventh 7th", "eighth 8th", "ninth 9th", "tenth 10th"),
)
_ORDINALS = {word: number for number, words in enumerate(_ORDINAL_WORDS, 1) for word in words.split()}
_ORDINALS |= {"last": -1, "latter": -1}
_ORDINAL = re.compile(
    rf"\b(?:(?:the|your|that)\s+(?P<word>{'|'.join(_ORDINALS)})"
    r"(?:\s+(?P<noun>ones?|items?|points?|options?|entry|case|answer|sentence|step|source|citation|document|passage)\b"
    r"|\s+of\s+(?:them|these|those)\b|(?=\s*(?:[?.!,]|$))|(?=\s+(?:is|does|did|was|has|have|can|may|must|should|will)\b))"
    r"|(?:number|no\.|item|point|option)\s*(?P<number>\d{1,2})\b)",
    re.IGNORECASE,
)
_CITED = ("source", "citation", "document", "passage")
_LINE = re.compile(r"^[^\S\n]*(?:[-*•–]|\(?\d{1,2}[.)])\s+(?P<item>.+)$", re.MULTILINE)
_BEFORE = re.compile(
    r".*(?::|\b(?:is|are|was|were|has|have|includes?|include|offers?|lends?|sells?|mean|and also)\b)\s+"
)
_SPLIT = re.compile(r"(?<!\s)(?:\s*,\s*(?:and\s+|or\s+)?|\s+(?:and|or)\s+)")
_MAX_ITEM_WORDS = 8  # words of an item within a sentence
_ARTICLE = re.compile(r"^(?:an?|one)\s+(?=\w)", re.IGNORECASE)


def nth_item(text: str, answers: Sequence[str]) -> tuple[str, bool | None]:
    """Replace an ordinal by the item that it refers to.

    Returns the text and True; the unchanged text and False if there is no such item; None if there is no ordinal.
    `answers` are those given so far; the last one with enough items counts.
    """
    match = _ORDINAL.search(text)
    if not match:
        return text, None
    number = int(match["number"]) if match["number"] else _ORDINALS[match["word"].lower()]
    cited = (match["noun"] or "").lower() in _CITED
    for answer in reversed(answers):
        items = _cited(answer) if cited else list_items(answer)
        if len(items) >= max(2, number):
            item = items[number - 1 if number > 0 else number]
            return text[: match.start()] + _ARTICLE.sub("the ", item) + text[match.end() :], True
    return text, False


def list_items(answer: str) -> list[str]:
    """The items of an answer: lines with a bullet or number, parts of a sentence joined by "and", or its sentences."""
    lines = [_plain(match["item"]) for match in _LINE.finditer(answer)]
    if len(lines) > 1:
        return lines
    text = MARKER.sub("", answer)
    sentences = [text[start:end] for start, end in sentence_spans(text)]
    for sentence in reversed(sentences):
        body = sentence.rstrip(".!? ")
        if introduced := _BEFORE.match(body):  # "There are two rooms: Cirrus and Stratus"
            items = [item for item in _SPLIT.split(body[introduced.end() :]) if item.strip()]
            if len(items) > 1 and all(len(item.split()) <= _MAX_ITEM_WORDS for item in items):
                return [_plain(item) for item in items]
    return [_plain(sentence) for sentence in sentences] if len(sentences) > 1 else []


def _cited(answer: str) -> list[str]:
    """For each cited passage, in order of citation, the first sentence that cites it."""
    first: dict[str, str] = {}
    for start, end in sentence_spans(answer):
        for numbers in MARKER.findall(answer[start:end]):
            for number in re.findall(r"\d+", numbers):
                first.setdefault(number, _plain(answer[start:end]))
    return list(first.values())


def _plain(item: str) -> str:
    return MARKER.sub("", item).strip().rstrip(".;,!? ")
