"""Display names of documents: short forms of their uris, derived from the names of the sources whenever they are shown.

    /home/ann/reports/2023.pdf      reports/2023.pdf, from the source /home/ann/reports
    s3://archive/mails/17.eml       mails/17.eml, from the source s3://archive/mails
    docs/leave.md                   docs/leave.md: a relative uri stays as it is, and so does a web address

The name of a source keeps as many levels as distinguish it from all other sources.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from pathlib import PurePath


class DisplayNames:
    """Translates uris to display names and back. `sources` are the names of all sources of the collection."""

    def __init__(self, sources: Iterable[str]) -> None:
        names = sorted({name.rstrip("/") or name for name in sources})
        levels = {}
        for name in names:
            is_web_address = name.startswith(("http://", "https://"))
            if name != "/" and not is_web_address and ("://" in name or PurePath(name).is_absolute()):
                levels[name] = 1
        while True:
            shown = {name: "/".join(name.split("/")[-levels[name] :]) if name in levels else name for name in names}
            growing = set[str]()
            for pair in combinations(names, 2):
                first, second = (shown[name] for name in pair)
                if "." in (first, second) or _is_in(first, second) or _is_in(second, first):
                    growing.update(name for name in pair if name in levels and shown[name] != name)
            if not growing:
                break
            for name in growing:
                levels[name] += 1
        # A source inside a different source comes first.
        self._shortened = sorted(((name, shown[name]) for name in levels), key=lambda pair: -len(pair[0]))

    def name_of(self, uri: str) -> str:
        """The display name of the document with this uri."""
        return next((short + uri[len(name) :] for name, short in self._shortened if _is_in(uri, name)), uri)

    def uri_of(self, name: str) -> str:
        """The uri of the document with this display name; the name itself if no document has this display name."""
        return next((long + name[len(short) :] for long, short in self._shortened if _is_in(name, short)), name)


def _is_in(uri: str, source: str) -> bool:
    return uri == source or uri.startswith(f"{source}/")
