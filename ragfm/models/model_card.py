"""The licence of a model."""

from __future__ import annotations

import re
from pathlib import Path

from ragfm.models.gguf_header import read_header

_FREE_LICENCES = re.compile(
    r"apache-?2\.0|mit\b|bsd|isc\b|cc0|cc-by(?:-sa)?-\d|unlicense|wtfpl|zlib|(?:l|a)?gpl|mpl|postgresql", re.I
)


def read_licence(path: Path) -> str | None:
    """The licence named in a GGUF header, or in the README.md of a folder."""
    if path.is_file():
        licence = read_header(path).get("general.license")
        return None if licence is None else str(licence)
    readme = path / "README.md"
    if not readme.is_file():
        return None
    match = re.search(r"^license: *[\"']?([^\s\"']+)", readme.read_text("utf-8", "replace"), re.MULTILINE)
    return match[1] if match else None


def licence_warning(licence: str) -> str | None:
    """A warning, unless the licence is a well-known free one."""
    if _FREE_LICENCES.match(licence):
        return None
    return f"its licence ({licence}) may restrict what it is used for, or by whom: read it"
