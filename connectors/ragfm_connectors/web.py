"""Web pages: one, those that a sitemap or a feed lists, or those that are linked below an address."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from pathlib import PurePosixPath
from tempfile import TemporaryFile
from typing import BinaryIO, NamedTuple, cast
from urllib.parse import unquote, urlsplit

from ragfm.core.errors import ConfigError, ConnectorError, SourceError
from ragfm.core.types import Blob, Ref, Scalar
from ragfm_connectors.patterns import PathFilter
from ragfm_connectors.secrets import check_no_secret, without_user
from ragfm_connectors.web_client import USER_AGENT, Client, Manners, Page, TooLargeError, canonical, origin_of
from ragfm_connectors.web_pages import Contents, Entry, contents, is_html, links

_GONE = (404, 410)
_NO_PAGES = ("image/", "video/", "audio/", "font/", "text/css", "text/javascript", "application/javascript")
_PAGES = ("", ".html", ".htm", ".xhtml", ".php", ".asp", ".aspx", ".jsp")  # suffixes of what may be HTML with links
_NO_HEAD = {*range(400, 429), *range(430, 500), 501}  # of which a GET may have another answer; 429 says to wait


class _Kept(NamedTuple):
    """Where the body of a page lies that was read for the listing, and what came with it."""

    start: int
    size: int
    media_type: str | None
    metadata: Mapping[str, Scalar]


class WebConnector:
    """One page, the pages of a sitemap, the entries of an RSS or Atom feed, or with `links` a site.

    What the location is shows in its content. With `links`, all pages that are linked within the location's folder
    belong to the source, `max_pages` at most. `include` and `exclude` are patterns for the path of an address.

    A page is known by its address: the one that a sitemap or feed lists, else the one that redirects lead to or that
    the page names as its canonical one within the source. The revision is the server's ETag, else Last-Modified, else
    a hash. 404 and 410 mean that a page is gone, any other failure that nothing is known of it.

    robots.txt is kept to, requests to a host are `pause` seconds apart, or more where it asks for that, and tried
    `retries` times again. Only http and https are spoken, and only to public addresses, except to the hosts, as
    `wiki.lan` or `localhost:8080`, in `allow_hosts`. `authorization` is the value of that header, as
    `Bearer ${TOKEN}`; it is sent to the location's own origin alone, as are user and password in the location.
    """

    def __init__(
        self,
        location: str,
        *,
        links: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        max_pages: int = 1_000,
        pause: float = 0.5,
        retries: int = 3,
        user_agent: str = USER_AGENT,
        allow_hosts: Sequence[str] = (),
        authorization: str | None = None,
        max_bytes: int = 100 * 2**20,
    ) -> None:
        """Raises ConfigError for a secret that is not in the environment, SourceError for what is no web address."""
        check_no_secret(location, user=True)
        if authorization is not None and "${" not in authorization:
            raise ConfigError("The option `authorization` has a secret in it.", "Write ${NAME}, and set NAME.")
        self._start = canonical(without_user(location))
        self._links, self._max_pages = links, max_pages
        self._paths = PathFilter(include, exclude)
        self._client = Client(location, authorization, Manners(pause, retries, max_bytes, user_agent, allow_hosts))
        self._bodies: BinaryIO | None = None
        self._kept: dict[str, _Kept] = {}
        self._said: dict[str, Mapping[str, Scalar]] = {}  # by address, what a feed says of a page

    @property
    def root(self) -> str:
        """The location as ragfm writes it, without a user; with `links` its folder is what belongs to the source."""
        return self._start

    def refs(self) -> Iterator[Ref]:
        """All pages. Raises SourceError where the location can't be had; what else can't be had is an error alone."""
        self._kept, self._said = {}, {}
        self._bodies = cast(BinaryIO, TemporaryFile())  # noqa: SIM115  until the connector goes
        try:
            page = self._client.get(self._start)
        except TooLargeError as error:
            yield Ref(self._start, skip=error.message)
            return
        if page.status in _GONE and not self._links and not _lists(self._start):
            return
        if page.status != 200:
            raise SourceError(f"{self._start}: the server answers {page.status}.", "Nothing was changed.")
        listed = contents(page)
        if listed is not None:
            yield from self._listed(page, listed)
        elif self._links:
            yield from self._linked(page)
        else:
            yield self._keep(page, canonical(page.url))

    def fetch(self, ref: Ref) -> Blob:
        """A page's bytes, with what the server and the feed say of it. Raises ConnectorError."""
        kept = self._kept.pop(ref.path, None)
        if kept is not None and self._bodies is not None:
            self._bodies.seek(kept.start)
            return Blob(self._bodies.read(kept.size), kept.media_type, kept.metadata)
        page = self._client.get(ref.path)
        if page.status != 200:
            raise ConnectorError(f"{ref.path}: the server answers {page.status}.", "The next ingest tries again.")
        return Blob(page.data, _media_type(page), self._metadata(page, ref.path))

    # --- What a sitemap or a feed lists ---

    def _listed(self, page: Page, listed: Contents) -> Iterator[Ref]:
        seen = {canonical(page.url)}
        entries, unread = list(listed.entries), deque(listed.sitemaps)
        while unread:
            url = unread.popleft()
            if url in seen or origin_of(url) != origin_of(page.url):
                continue
            seen.add(url)
            found = self._sitemap(url)
            entries += found.entries
            unread += found.sitemaps
            self._check_count(len(entries) + len(seen))
        self._check_count(len(entries))
        seen = set()
        for entry in entries:
            if listed.kind == "sitemap" and origin_of(entry.url) != origin_of(page.url):
                continue  # a sitemap speaks for its own site only
            if self._takes(entry.url):
                yield from self._looked_at(entry, seen)

    def _sitemap(self, url: str) -> Contents:
        found = self._client.get(url)
        listed = contents(found) if found.status == 200 else None
        if listed is None:
            raise SourceError(f"{url}: the server answers {found.status}, no sitemap.", "Nothing was changed.")
        return listed

    def _check_count(self, count: int) -> None:
        if count > self._max_pages:
            raise SourceError(
                f"{self._start} lists more than {self._max_pages:,} pages.", "Set the option max_pages to as many."
            )

    def _looked_at(self, entry: Entry, seen: set[str]) -> Iterator[Ref]:
        """A listed page by its headers alone where they say which revision it has."""
        try:
            page = self._client.get(entry.url, method="HEAD")
            whole = page.status in _NO_HEAD or (page.status == 200 and not _revision(page))
            page = self._client.get(entry.url) if whole else page
        except ConnectorError as error:
            yield from self._once(self._not_had(entry.url, error), seen)
            return
        if page.status in _GONE or (page.url != entry.url and page.url in seen):
            return
        self._said[entry.url] = entry.metadata
        if page.status != 200:
            ref = Ref(entry.url, error=f"the server answers {page.status}")
        else:
            ref = self._keep(page, entry.url) if whole else Ref(entry.url, _revision(page), skip=_no_page(page))
        yield from self._once(ref, seen)
        seen.add(page.url)

    # --- What is linked ---

    def _linked(self, start: Page) -> Iterator[Ref]:
        """All pages within the folder of the location, from link to link."""
        folder = self._start[: self._start.rindex("/") + 1]
        if not canonical(start.url).startswith(folder):  # to https, or to a page that wants a password
            raise SourceError(f"{self._start} leads to {start.url}.", "If that is the site, name it as the location.")
        waiting, known, listed, failed = deque[Page | str]([start]), {self._start}, set[str](), 0
        while waiting:
            at = waiting.popleft()
            try:
                page = self._client.get(at) if isinstance(at, str) else at
            except ConnectorError as error:
                assert isinstance(at, str)
                refused = self._not_had(at, error)
                failed += refused.error is not None
                yield from self._once(refused, listed)
                continue
            url = canonical(page.url)
            if not url.startswith(folder) or page.status in _GONE:
                continue
            if page.status != 200:
                failed += 1
                yield from self._once(Ref(url, error=f"the server answers {page.status}"), listed)
                continue
            named, found = links(page) if is_html(page) else (None, [])
            path = named if named and named.startswith(folder) else url
            if path not in listed and self._takes(path):
                listed.add(path)
                yield self._keep(page, path)
            fresh = [link for link in found if link.startswith(folder) and link not in known]
            known.update(fresh)
            waiting += [link for link in fresh if _leads_on(link)]
            for link in fresh:
                if not _leads_on(link) and self._takes(link):
                    yield from self._looked_at(Entry(link), listed)
            self._check_count(len(known))
        if failed:  # what only they link to is not known
            yield Ref("", error=f"{failed:,} pages can't be had, so none is taken for gone")

    def _once(self, ref: Ref, listed: set[str]) -> Iterator[Ref]:
        if ref.path not in listed:
            listed.add(ref.path)
            yield ref

    # --- Pages ---

    def _takes(self, url: str) -> bool:
        return self._paths.takes(unquote(urlsplit(url).path).strip("/"))

    def _not_had(self, url: str, error: ConnectorError) -> Ref:
        if isinstance(error, TooLargeError) or "robots.txt disallows" in error.message:
            return Ref(url, skip=error.message)
        return Ref(url, error=error.message)

    def _keep(self, page: Page, path: str) -> Ref:
        """A page that was read whole, kept on disk until it is fetched."""
        assert self._bodies is not None
        start = self._bodies.seek(0, 2)
        self._bodies.write(page.data)
        self._kept[path] = _Kept(start, len(page.data), _media_type(page), self._metadata(page, path))
        mark = _revision(page) or f"hash:{blake2b(page.data, digest_size=16).hexdigest()}"
        return Ref(path, mark, skip=_no_page(page))

    def _metadata(self, page: Page, path: str) -> Mapping[str, Scalar]:
        metadata = dict(self._said.get(path, {}))
        with contextlib.suppress(ValueError, TypeError):
            changed = parsedate_to_datetime(page.headers.get("Last-Modified", ""))
            metadata["modified"] = changed.isoformat(timespec="seconds")
        return metadata


def _revision(page: Page) -> str:
    etag, changed = page.headers.get("ETag", "").strip(), page.headers.get("Last-Modified", "").strip()
    return f"etag:{etag}" if etag else f"modified:{changed}" if changed else ""


def _media_type(page: Page) -> str | None:
    said = page.headers.get("Content-Type", "")
    return said if "/" in said and not said.startswith("application/octet-stream") else None


def _no_page(page: Page) -> str | None:
    said = (_media_type(page) or "").partition(";")[0].strip().lower()
    return f"of type {said}" if said.startswith(_NO_PAGES) else None


def _leads_on(url: str) -> bool:
    return PurePosixPath(urlsplit(url).path).suffix.lower() in _PAGES


def _lists(url: str) -> bool:
    return urlsplit(url).path.lower().endswith((".xml", ".xml.gz", ".rss", ".atom", ".txt"))
