"""How people call a document: by its file name and its title. Both are context of all its chunks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from ragfm.core.types import Document

_WORD = re.compile(r"[^\W_]+")
_EXTENSION = re.compile(r"\.[^\W_]{1,8}$")
# 2022Q4 → 2022 Q4, AnnualReport → Annual Report
_BREAK = re.compile(r"(?<=(?:19|20)\d\d)(?=[^\W\d_])|(?<=[a-z])(?=[A-Z])")
_GENERATED = re.compile(r"(?=.*\d)[\da-f-]{16,}|\d+|index|readme|untitled|document", re.IGNORECASE)
"""Names that say nothing to people: numbers, hashes, UUIDs, defaults."""


def document_names(document: Document) -> tuple[str, ...]:
    """What tells a document apart, most general first: its folder and file name in readable form, and its title.

    `reports/best-buy/FY2023_10K.pdf` with the title "Best Buy Annual Report" gives `FY2023 10K` and the title: words of
    the name that the title has are left out, as are names that say nothing (a number, a hash, `index`). The title is
    that of the metadata; a document without one has only a name. The first part of a path is the source.
    """
    title = " ".join(str(document.metadata.get("title", "")).split())
    path = document.uri
    if "://" in path:
        path = unquote(urlsplit(path).path)
    parts = [part for part in path.split("/") if part]
    # The folder tells documents apart only below the source.
    parts = [*(parts[-2:-1] if len(parts) > 2 else ()), _EXTENSION.sub("", parts[-1])] if parts else []
    known = {word.casefold() for word in _WORD.findall(title)}
    words: list[str] = []
    for part in parts:
        if not _GENERATED.fullmatch(part):
            words += [word for word in _WORD.findall(_BREAK.sub(" ", part)) if word.casefold() not in known]
    return tuple(filter(None, (" ".join(words), title)))
