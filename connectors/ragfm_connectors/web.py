"""Web pages: a single page, the pages of a sitemap or a feed, or all linked pages below an address."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from mimetypes import guess_type
from pathlib import PurePosixPath
from tempfile import TemporaryFile
from typing import BinaryIO, cast
from urllib.parse import unquote, urlsplit

from ragfm.core.errors import ConnectorError, SourceError
from ragfm.core.types import Blob, Ref, Scalar
from ragfm_connectors.patterns import PathFilter
from ragfm_connectors.secrets import check_no_secret, check_variable, without_user
from ragfm_connectors.web_client import (
    USER_AGENT,
    Client,
    Page,
    RobotsError,
    TooLargeError,
    canonical_url,
    origin_of,
)
from ragfm_connectors.web_pages import PageList, is_html, parse_links, parse_page_list

_GONE_STATUSES = (404, 410)
_SKIPPED_TYPES = ("image/", "video/", "audio/", "font/", "text/css", "text/javascript", "application/javascript")
_HTML_SUFFIXES = ("", ".html", ".htm", ".xhtml", ".php", ".asp", ".aspx", ".jsp")
_LIST_SUFFIXES = (".xml", ".xml.gz", ".rss", ".atom", ".txt")
# A GET may succeed where a HEAD is answered with one of these; 429 asks to wait.
_RETRY_AS_GET = {*range(400, 429), *range(430, 500), 501}


class WebConnector:
    """A single page, the pages of a sitemap, the entries of an RSS or Atom feed, or with `links` a whole site.

    The kind of the location is recognized by its content. With `links`, all pages that are linked within the location's
    folder belong to the source; more than `max_pages` are an error. `include` and `exclude` are patterns for the path
    of a URL.

    The path of a document is the URL that a sitemap or feed lists, else the URL after redirects or the canonical one
    that the page names, if that is within the source. The revision is the server's ETag, else Last-Modified, else a
    hash. The statuses 404 and 410 mean that a page is gone; after any other failure its document is kept.

    The connector obeys robots.txt, waits `pause` seconds between two requests to a host, or longer if robots.txt says
    so, and repeats a failed request up to `retries` times. It speaks only http and https, and only to public addresses,
    except for the hosts in `allow_hosts`, such as `wiki.lan` or `localhost:8080`. `authorization` is the value of that
    header, such as `Bearer ${TOKEN}`; like user and password of the location, it is sent only to the location's origin.
    """

    fetch_anywhere = True

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
        """Raises ConfigError for a secret that is not an environment variable, SourceError for an invalid address."""
        check_no_secret(location, user=True)
        if authorization is not None:
            check_variable("authorization", authorization)
        self.root = canonical_url(without_user(location))
        """The canonical URL of the location, without user; with `links`, its folder is the source."""
        self._links, self._max_pages = links, max_pages
        self._paths = PathFilter(include, exclude)
        self._client = Client(
            location,
            authorization,
            pause=pause,
            retries=retries,
            max_bytes=max_bytes,
            user_agent=user_agent,
            allow_hosts=allow_hosts,
        )
        self._body_file: BinaryIO | None = None
        self._bodies: dict[str, tuple[int, int, str | None, Mapping[str, Scalar]]] = {}  # position and metadata
        self._feed_metadata: dict[str, Mapping[str, Scalar]] | None = None  # by URL; None before a listing

    def refs(self) -> Iterator[Ref]:
        """All pages. Raises SourceError if the location cannot be fetched; any other page then has an error."""
        self._bodies, self._feed_metadata = {}, {}
        self._body_file = cast(BinaryIO, TemporaryFile())  # noqa: SIM115  closed with the connector
        try:
            page = self._client.get(self.root)
        except TooLargeError as error:
            yield Ref(self.root, skip=error.message)
            return
        is_list = urlsplit(self.root).path.lower().endswith(_LIST_SUFFIXES)
        if page.status in _GONE_STATUSES and not self._links and not is_list:
            return
        if page.status != 200:
            raise SourceError(f"{self.root}: the server responded with status {page.status}.", "Nothing was changed.")
        page_list = parse_page_list(page)
        if page_list is not None:
            yield from self._list_pages(page, page_list)
        elif self._links:
            yield from self._crawl(page)
        else:
            yield self._store_page(page, canonical_url(page.url))

    def fetch(self, ref: Ref) -> Blob:
        """The content of a page, with metadata from the server and the feed. Raises ConnectorError."""
        if ref.path in self._bodies and self._body_file is not None:
            start, size, media_type, metadata = self._bodies.pop(ref.path)
            self._body_file.seek(start)
            return Blob(self._body_file.read(size), media_type, metadata)
        if self._feed_metadata is None:  # another process has listed the source
            listing = parse_page_list(self._client.get(self.root))
            self._feed_metadata = {} if listing is None else dict(listing.pages)
        page = self._client.get(ref.path)
        if page.status != 200:
            raise ConnectorError(
                f"{ref.path}: the server responded with status {page.status}.", "The next ingest tries again."
            )
        return Blob(page.data, page.media_type, self._metadata(page, ref.path))

    def _list_pages(self, page: Page, page_list: PageList) -> Iterator[Ref]:
        """The pages of a sitemap, with those of the sitemaps that it names, or of a feed."""
        origin = origin_of(page.url)
        listed, sitemaps = list(page_list.pages), deque(page_list.sitemaps)
        read = {canonical_url(page.url)}
        while sitemaps:
            url = sitemaps.popleft()
            if url in read or origin_of(url) != origin:
                continue
            read.add(url)
            response = self._client.get(url)
            sitemap = parse_page_list(response) if response.status == 200 else None
            if sitemap is None:
                raise SourceError(
                    f"{url} is not a sitemap: the server responded with status {response.status}.",
                    "Nothing was changed.",
                )
            listed += sitemap.pages
            sitemaps += sitemap.sitemaps
            self._check_count(len(listed) + len(read))
        self._check_count(len(listed))
        seen: set[str] = set()
        for url, metadata in listed:
            if not self._includes(url):
                continue
            if page_list.kind == "sitemap" and origin_of(url) != origin:  # not for a sitemap to list
                yield from _yield_once(Ref(url, skip=f"the sitemap is of a different site, {origin}"), seen)
            else:
                yield from self._examine(url, metadata, seen)

    def _check_count(self, count: int) -> None:
        if count > self._max_pages:
            raise SourceError(
                f"{self.root} lists more than {self._max_pages:,} pages.",
                "Set the option max_pages to a higher number.",
            )

    def _examine(self, url: str, metadata: Mapping[str, Scalar], seen: set[str]) -> Iterator[Ref]:
        """The Ref of a listed page, by a HEAD request if that gives its revision."""
        try:
            page = self._client.get(url, method="HEAD")
            needs_body = page.status in _RETRY_AS_GET or (page.status == 200 and not _revision(page))
            if needs_body:
                page = self._client.get(url)
        except ConnectorError as error:
            yield from _yield_once(_failed_ref(url, error), seen)
            return
        if page.status in _GONE_STATUSES or (page.url != url and page.url in seen):
            return
        assert self._feed_metadata is not None
        self._feed_metadata[url] = metadata
        if page.status != 200:
            ref = Ref(url, error=f"the server responded with status {page.status}")
        elif needs_body:
            ref = self._store_page(page, url)
        else:
            ref = Ref(url, _revision(page), skip=_skip_reason(page))
        yield from _yield_once(ref, seen)
        seen.add(page.url)

    def _crawl(self, start: Page) -> Iterator[Ref]:
        """All pages within the folder of the location, from link to link."""
        folder = self.root[: self.root.partition("?")[0].rindex("/") + 1]
        if not canonical_url(start.url).startswith(folder):  # redirected to https, or to a login page
            raise SourceError(f"{self.root} redirects to {start.url}.", "If that is the site, use it as the location.")
        waiting = deque([self.root])
        known = {self.root}
        listed: set[str] = set()
        failures = 0
        while waiting:
            address = waiting.popleft()
            try:
                page = start if address == self.root else self._client.get(address)
            except ConnectorError as error:
                ref = _failed_ref(address, error)
                failures += ref.error is not None
                yield from _yield_once(ref, listed)
                continue
            url = canonical_url(page.url)
            if not url.startswith(folder) or page.status in _GONE_STATUSES:
                continue
            if page.status != 200:
                failures += 1
                yield from _yield_once(Ref(url, error=f"the server responded with status {page.status}"), listed)
                continue
            canonical, links = parse_links(page) if is_html(page) else (None, [])
            path = canonical if canonical and canonical.startswith(folder) else url
            if path == self.root and _without_index(url) != _without_index(path):
                path = url  # a template that names the home page on all pages would leave nothing else
            if path not in listed and self._includes(path):
                listed.add(path)
                yield self._store_page(page, path)
            new_links = [link for link in links if link.startswith(folder) and link not in known]
            known.update(new_links)
            for link in new_links:
                link_path = urlsplit(link).path
                suffix = PurePosixPath(link_path).suffix.lower()
                if suffix in _HTML_SUFFIXES or not any(guess_type(link_path)):  # it may have links itself
                    waiting.append(link)
                elif self._includes(link):
                    yield from self._examine(link, {}, listed)
            self._check_count(len(known))
        if failures:  # the pages that only these link to are unknown
            yield Ref("", error=f"{failures:,} pages cannot be fetched, so no page counts as removed")

    def _includes(self, url: str) -> bool:
        return self._paths.includes(unquote(urlsplit(url).path).strip("/"))

    def _store_page(self, page: Page, path: str) -> Ref:
        """The Ref of a page that was fetched; its body is kept on disk until `fetch`."""
        assert self._body_file is not None
        start = self._body_file.seek(0, 2)
        self._body_file.write(page.data)
        self._bodies[path] = start, len(page.data), page.media_type, self._metadata(page, path)
        revision = _revision(page) or f"hash:{blake2b(page.data, digest_size=16).hexdigest()}"
        return Ref(path, revision, skip=_skip_reason(page))

    def _metadata(self, page: Page, path: str) -> Mapping[str, Scalar]:
        return {**(self._feed_metadata or {}).get(path, {}), **page.modified}


def _yield_once(ref: Ref, listed: set[str]) -> Iterator[Ref]:
    if ref.path not in listed:
        listed.add(ref.path)
        yield ref


def _without_index(url: str) -> str:
    """The path of a URL, without a query and the name of an index page."""
    path = urlsplit(url).path
    folder, _, name = path.rpartition("/")
    return f"{folder}/" if name.partition(".")[0] == "index" else path


def _failed_ref(url: str, error: ConnectorError) -> Ref:
    if isinstance(error, TooLargeError | RobotsError):
        return Ref(url, skip=error.message)
    return Ref(url, error=error.message)


def _revision(page: Page) -> str:
    etag, modified = page.headers.get("ETag", "").strip(), page.headers.get("Last-Modified", "").strip()
    if etag:
        return f"etag:{etag}"
    return f"modified:{modified}" if modified else ""


def _skip_reason(page: Page) -> str | None:
    media_type = (page.media_type or "").partition(";")[0].strip().lower()
    return f"of type {media_type}" if media_type.startswith(_SKIPPED_TYPES) else None
