"""A polite client for web pages: robots.txt, a pause between requests to a host, retries, limits, safe addresses."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urljoin

from protego import Protego
from urllib3 import BaseHTTPResponse, HTTPHeaderDict
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import Url, parse_url

from ragfm import __version__
from ragfm.core.errors import ConfigError, ConnectorError
from ragfm_connectors.secrets import expand, hide
from ragfm_connectors.web_addresses import guarded_pools

_log = logging.getLogger(__name__)

USER_AGENT = f"ragfm/{__version__}"
_RETRIED = {429, 500, 502, 503, 504}
_REDIRECTED = {301, 302, 303, 307, 308}
_HOPS = 10
_LONGEST_PAUSE = 60.0  # seconds; whatever a server asks for
_LONGEST_READ = 300.0  # seconds in which a page must have come
_ROBOTS_BYTES = 512_000  # RFC 9309 asks for 500 KiB at least
_PIECE = 1 << 16
_PORTS = {"http": 80, "https": 443}


class TooLargeError(ConnectorError):
    """A page has more bytes than it may have."""


@dataclass(frozen=True, slots=True)
class Page:
    """What a server answered. `url` is where the redirects have led to, `data` is empty for a HEAD."""

    url: str
    status: int
    headers: HTTPHeaderDict
    data: bytes


@dataclass(frozen=True, slots=True)
class Manners:
    """How requests are made: seconds between two to one host, how often one is tried again, and limits."""

    pause: float = 0.5
    retries: int = 3
    max_bytes: int = 100 * 2**20
    user_agent: str = USER_AGENT
    allow_hosts: Collection[str] = ()


class Client:
    """Fetches pages. `authorization` is sent to the origin of `location` alone, with `${NAME}` looked up by then."""

    def __init__(self, location: str, authorization: str | None, manners: Manners) -> None:
        self._location = location
        self._authorization = authorization
        self._manners = manners
        allowed = {host.lower() for host in manners.allow_hosts}
        self._pools = guarded_pools(allowed, connect_seconds=10, read_seconds=30)
        self._robots: dict[str, Protego | None] = {}  # by origin; None where the site can't say
        self._due: dict[str, float] = {}  # by host, when it may be asked again
        self.sleep: Callable[[float], None] = time.sleep

    def get(self, url: str, *, method: str = "GET") -> Page:
        """A page, after redirects, whatever its status is.

        Raises ConnectorError where it can't be had: refused by robots.txt or by its address, no answer, too large.
        """
        for _ in range(_HOPS):
            if not self.may_fetch(url):
                raise ConnectorError(f"{url}: robots.txt disallows it.")
            page = self._tried(url, method, self._manners.max_bytes)
            target = page.headers.get("Location")
            if page.status not in _REDIRECTED or not target:
                return page
            url = canonical(target, base=url)
        raise ConnectorError(f"{url}: more than {_HOPS} redirects.")

    def may_fetch(self, url: str) -> bool:
        """Whether the site's robots.txt allows it. Raises ConnectorError where it can't be had (RFC 9309, 2.3.1)."""
        origin = origin_of(url)
        if origin not in self._robots:
            self._robots[origin] = self._read_robots(origin)
        rules = self._robots[origin]
        return rules is None or bool(rules.can_fetch(url, self._manners.user_agent))

    def _read_robots(self, origin: str) -> Protego | None:
        url = f"{origin}/robots.txt"
        for _ in range(5):
            try:
                page = self._tried(url, "GET", _ROBOTS_BYTES)
            except TooLargeError:
                return None
            target = page.headers.get("Location")
            if page.status in _REDIRECTED and target:
                url = canonical(target, base=url)
                continue
            if page.status >= 500 or page.status == 429:
                raise ConnectorError(f"{url}: the server answers {page.status}, so nothing of it is fetched.")
            return Protego.parse(page.data.decode("utf-8", "replace")) if page.status == 200 else None
        return None

    def _tried(self, url: str, method: str, limit: int) -> Page:
        for attempt in range(self._manners.retries + 1):
            last = attempt == self._manners.retries
            asked = 2.0**attempt
            try:
                page = self._request(url, method, limit)
            except (HTTPError, OSError) as error:
                if last:
                    said = hide(str(error), self._location, self._authorization or "")
                    raise ConnectorError(f"{url} can't be reached: {said}.", "The next ingest tries again.") from None
            else:
                if page.status not in _RETRIED or last:
                    return page
                asked = max(asked, _retry_after(page.headers))
            _log.debug("%s: another try in %.1f s", url, asked)
            self.sleep(min(asked, _LONGEST_PAUSE))
        raise AssertionError("unreachable")

    def _request(self, url: str, method: str, limit: int) -> Page:
        self._wait(url)
        headers = {"User-Agent": self._manners.user_agent, "Accept-Encoding": "gzip, deflate"} | self._secret(url)
        answer = self._pools.urlopen(
            method, url, headers=headers, redirect=False, retries=False, preload_content=False, decode_content=True
        )
        try:
            data = b"" if method == "HEAD" or answer.status in _REDIRECTED else _read(answer, url, limit)
            answer.drain_conn() if method == "HEAD" else None
        finally:
            answer.close() if answer.status in _REDIRECTED else answer.release_conn()
        return Page(url, answer.status, answer.headers, data)

    def _wait(self, url: str) -> None:
        host = _parsed(url).netloc or ""
        now = time.monotonic()
        if (due := self._due.get(host, now)) > now:
            self.sleep(due - now)
        rules = self._robots.get(origin_of(url))
        asked = float(rules.crawl_delay(self._manners.user_agent) or 0) if rules is not None else 0.0
        self._due[host] = time.monotonic() + min(max(self._manners.pause, asked), _LONGEST_PAUSE)

    def _secret(self, url: str) -> dict[str, str]:
        if origin_of(url) != origin_of(self._location):
            return {}
        user = (_parsed(self._location).auth or "").partition(":")
        if user[0]:
            pair = ":".join(unquote(expand(unquote(part))) for part in (user[0], user[2]))
            return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
        return {"Authorization": expand(self._authorization, quoted=False)} if self._authorization else {}


def canonical(url: str, *, base: str = "") -> str:
    """An address in the one way that ragfm writes it: lower-case host, no user, fragment or default port.

    `base` is what it is relative to. Raises ConnectorError for what is not http or https.
    """
    try:
        parsed = parse_url(urljoin(base, url.strip()) if base else url.strip())
        port = parsed.port
    except (LocationParseError, ValueError):
        raise ConnectorError(f"{url!a} is no address of a web page.") from None
    if parsed.scheme not in _PORTS or not parsed.host:
        raise ConnectorError(f"{url!a} is no address of a web page.", "It must begin with https:// or http://.")
    port = None if port == _PORTS[parsed.scheme] else port
    return Url(parsed.scheme, None, parsed.host, port, parsed.path or "/", parsed.query, None).url


def origin_of(url: str) -> str:
    """Scheme, host and port of an address."""
    parsed = parse_url(canonical(url))
    return f"{parsed.scheme}://{parsed.netloc}"


def _parsed(url: str) -> Url:
    try:
        return parse_url(url)
    except LocationParseError:
        raise ConfigError(f"{url!a} is no address.") from None


def _read(answer: BaseHTTPResponse, url: str, limit: int) -> bytes:
    length = answer.headers.get("Content-Length", "")
    too_large = TooLargeError(f"{url}: more than {limit:,} bytes.")
    if length.isdecimal() and int(length) > limit:
        answer.close()
        raise too_large
    end = time.monotonic() + _LONGEST_READ
    data = bytearray()
    while piece := answer.read(_PIECE):
        data += piece
        if len(data) > limit:
            answer.close()
            raise too_large
        if time.monotonic() > end:
            answer.close()
            raise TimeoutError(f"it took more than {_LONGEST_READ:.0f} seconds")
    return bytes(data)


def _retry_after(headers: HTTPHeaderDict) -> float:
    """Seconds that a server asks to wait."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError):
        return 0.0
