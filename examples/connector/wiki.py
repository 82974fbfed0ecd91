"""A connector with permissions, for a wiki that lists its pages and their readers as JSON.

    GET /pages      [{"id": "7", "version": 3, "readers": ["group:hr", "user:ann"]}, …]
    GET /pages/7    {"version": 3, "readers": […], "title": "Leave", "text": "…"}

A package offers it to ragfm by an entry point: `[project.entry-points."ragfm.connectors"] wiki = "wiki:WikiConnector"`.
"""

import json
import os
import urllib.request
from collections.abc import Iterator
from typing import Any

from ragfm import Blob, Ref
from ragfm.core.errors import ConnectorError, SourceError
from ragfm.core.identities import Identities


class WikiConnector:
    """The pages of a wiki. `identities` is the file that maps its users and groups to groups of the collection."""

    fetch_anywhere = True  # a page is fetched by its path alone
    parallel_fetches = 4  # by threads that share nothing

    def __init__(self, location: str, *, identities: str | None = None) -> None:
        self.root = location.rstrip("/")
        self.identities = Identities(identities) if identities is not None else None

    def refs(self) -> Iterator[Ref]:
        """All pages. An error ends the listing: an incomplete one would remove documents."""
        for page in self._get("pages", SourceError):
            yield Ref(page["id"], str(page["version"]), allow=self._groups(page))

    def fetch(self, ref: Ref) -> Blob:
        """A page, in the version that was listed and with its readers: new text may have come with new ones."""
        page = self._get(f"pages/{ref.path}", ConnectorError)
        if (str(page["version"]), self._groups(page)) != (ref.revision, ref.allow):
            raise ConnectorError(f"The page {ref.path} has changed since it was listed.", "The next ingest reads it.")
        return Blob(f"{page['title']}\n\n{page['text']}".encode(), "text/plain", {"title": page["title"]}, written=True)

    def _groups(self, page: dict[str, Any]) -> tuple[str, ...] | None:
        """Who may see a page: None is everybody, and an empty tuple nobody."""
        return None if self.identities is None else self.identities.groups(page["readers"])

    def _get(self, path: str, error_class: type[SourceError]) -> Any:
        headers = {"Authorization": f"Bearer {os.environ.get('WIKI_TOKEN', '')}"}
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{self.root}/{path}", headers=headers)) as answer:
                return json.load(answer)
        except (OSError, ValueError) as error:
            raise error_class(f"{self.root}/{path}: {error}.", "The next ingest tries again.") from None
