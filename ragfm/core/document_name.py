"""What people call a document: its file name and its title. Both are context of all its chunks."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from ragfm.core.types import Document

SEPARATOR = " > "
"""Between names and headings, which are the first line of a chunk's context."""
_WORD = re.compile(r"[^\W_]+")
_EXTENSION = re.compile(r"\.(?=[^\W\d_])[^\W_]{1,8}$")
_DOCUMENT_EXTENSION = re.compile(r"\.(?:docx?|pptx?|xlsx?|pdf|od[tps]|rtf|txt|html?|md)$", re.IGNORECASE)
# 2022Q4 → 2022 Q4, AnnualReport → Annual Report
_BREAK = re.compile(r"(?<=(?:19|20)\d\d)(?=[^\W\d_])|(?<=[a-z])(?=[A-Z])")
# Names that mean nothing to people: numbers, hashes, UUIDs, Message-IDs, defaults.
_GENERATED = re.compile(r"(?=.*\d)[\da-f-]{16,}|[\d\W_]+|\S+@\S+|index|readme|untitled|document", re.IGNORECASE)
# Titles that programs write where people gave none; a file's name is given.
_PLACEHOLDER = re.compile(r"\(?(?:untitled|anonymous|unspecified|unknown)\)?", re.IGNORECASE)
_PROGRAM = re.compile(r"^Microsoft \w+ - ")  # before the title, in PDFs printed from Office
_MIN_JOINED = 6  # letters of a word in a file name that may be several words
_BEGINNING = 100_000  # characters in which the spelling of such a word is looked for


def context_names(context: str) -> list[str]:
    """The names of the document and the headings in a chunk's context, most general first."""
    return context.partition("\n")[0].split(SEPARATOR)


def document_names(document: Document, path: str) -> tuple[str, ...]:
    """The names of a document, most general first: its folder and file name in readable form, and its title.

    The `path` below the source `best-buy/FY2023_10K.pdf` and the title "Annual Report" give `best buy FY2023 10K` and
    the title. A name is left out if the title has all its words, or if it is uninformative (a number, a hash, `index`).
    The title is that of the metadata; a document without one has only a name. Words that are run together are split as
    in the text: `BESTBUY` becomes `Best Buy`. The URI does not count: neither the name of a source nor the place where
    a command is run may change what is embedded.
    """
    title = _DOCUMENT_EXTENSION.sub("", _PROGRAM.sub("", " ".join(str(document.metadata.get("title", "")).split())))
    if _GENERATED.fullmatch(title) or _PLACEHOLDER.fullmatch(title):
        title = ""
    if path.startswith(("http://", "https://")):
        address = urlsplit(path)
        path = unquote(address.path).strip("/") or address.netloc
    parts = [part for part in path.split("/") if part][-2:]
    parts[-1:] = [_EXTENSION.sub("", part) for part in parts[-1:]]
    known = {word.casefold() for word in _WORD.findall(title)}
    words: list[str] = []
    for part in parts:
        if not _GENERATED.fullmatch(part):
            words += [_as_in_text(word, document.text) for word in _WORD.findall(_BREAK.sub(" ", part))]
    name = " ".join(words)
    if known.issuperset(_WORD.findall(name.casefold())):
        name = ""
    return tuple(filter(None, (name, title)))


def _as_in_text(word: str, text: str) -> str:
    """A word of a file name as the text spells it most often, if that is as several words: BESTBUY as Best Buy."""
    if len(word) < _MIN_JOINED or not word.isalpha():
        return word
    spelling = re.compile(r"\b" + r"[ .&'-]?".join(word) + r"\b", re.IGNORECASE)
    found = Counter(match[0] for match in spelling.finditer(text, 0, _BEGINNING))
    return found.most_common(1)[0][0] if found else word
