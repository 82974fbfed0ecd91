"""HTTP client for web pages: obeys robots.txt, pauses between requests to a host, retries, limits sizes and times."""

from __future__ import annotations

import base64
import contextlib
import logging
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from urllib.parse import unquote, urljoin

from protego import Protego
from urllib3 import HTTPHeaderDict
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import Url, parse_url

from ragfm.core.errors import ConfigError, ConnectorError
from ragfm.core.text import without_secrets
from ragfm.core.types import Scalar
from ragfm_connectors.secrets import check_no_secret, check_variable, expand, hide, without_user
from ragfm_connectors.web_addresses import guarded_pools

_log = logging.getLogger(__name__)

USER_AGENT = f"ragfm/{version('ragfm')}"
_RETRY_STATUSES = {429, 500, 502, 503, 504}
_REDIRECT_STATUSES = {301, 302, 303, 307, 308}
_MAX_REDIRECTS = 10
_MAX_ROBOTS_REDIRECTS = 5
_MAX_ROBOTS_BYTES = 512_000  # RFC 9309 requires at least 500 KiB
_MAX_PAUSE_SECONDS = 60.0  # whatever a server asks for
_MAX_READ_SECONDS = 300.0  # for one page
_READ_BYTES = 1 << 16
_DEFAULT_PORTS = {"http": 80, "https": 443}


class TooLargeError(ConnectorError):
    """A page exceeds the size limit."""


class RobotsError(ConnectorError):
    """robots.txt disallows a page."""


@dataclass(frozen=True, slots=True)
class Page:
    """A server's response. `url` is the address after redirects; `data` is empty for a HEAD request."""

    url: str
    status: int
    headers: HTTPHeaderDict
    data: bytes

    @property
    def media_type(self) -> str | None:
        """The declared type, with its parameters; None if it says nothing."""
        declared = self.headers.get("Content-Type", "")
        return declared if "/" in declared and not declared.startswith("application/octet-stream") else None

    @property
    def modified(self) -> dict[str, Scalar]:
        """The time of change as metadata; empty without one."""
        with contextlib.suppress(ValueError, TypeError):
            modified = parsedate_to_datetime(self.headers.get("Last-Modified", ""))
            return {"modified": modified.isoformat(timespec="seconds")}
        return {}


class Client:
    """Fetches pages. `authorization`, with `${NAME}` expanded, is sent only to the origin of `location`.

    `pause` is the number of seconds between two requests to a host; see `WebConnector` for the other options.
    """

    def __init__(
        self,
        location: str,
        authorization: str | None = None,
        *,
        pause: float = 0.5,
        retries: int = 3,
        max_bytes: int = 100 * 2**20,
        user_agent: str = USER_AGENT,
        allow_hosts: Collection[str] = (),
    ) -> None:
        self._location, self._authorization = location, authorization
        self._pause, self._retries, self._max_bytes, self._user_agent = pause, retries, max_bytes, user_agent
        allowed = {host.lower() for host in allow_hosts}
        self._pools = guarded_pools(allowed, connect_seconds=10, read_seconds=30)
        self._robots: dict[str, Protego | None] = {}  # by origin; None if the site has no rules
        self._next_request: dict[str, float] = {}  # earliest time, by host
        self.sleep: Callable[[float], None] = time.sleep

    def get(self, url: str, *, method: str = "GET") -> Page:
        """A page after redirects, whatever its status.

        Raises ConnectorError if robots.txt or the address check refuses it, if there is no response, or if it is too
        large.
        """
        for _ in range(_MAX_REDIRECTS):
            origin = origin_of(url)
            if origin not in self._robots:
                self._robots[origin] = self._fetch_robots(origin)
            rules = self._robots[origin]
            if rules is not None and not rules.can_fetch(url, self._user_agent):
                raise RobotsError(f"{url}: robots.txt disallows it.")
            page = self.send(url, method, self._max_bytes)
            target = redirect_target(page)
            if target is None:
                return page
            url = target
        raise ConnectorError(f"{url}: more than {_MAX_REDIRECTS} redirects.")

    def _fetch_robots(self, origin: str) -> Protego | None:
        """The rules of a site. Raises ConnectorError if they cannot be fetched (RFC 9309, 2.3.1)."""
        url = f"{origin}/robots.txt"
        for _ in range(_MAX_ROBOTS_REDIRECTS):
            try:
                page = self.send(url, "GET", _MAX_ROBOTS_BYTES)
            except TooLargeError:
                return None
            target = redirect_target(page)
            if target is not None:
                url = target
                continue
            if page.status >= 500 or page.status == 429:
                raise ConnectorError(
                    f"{url}: the server responded with status {page.status}, so no page of the site is fetched."
                )
            return Protego.parse(page.data.decode("utf-8-sig", "replace")) if page.status == 200 else None
        return None

    def send(
        self, url: str, method: str, max_bytes: int, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Page:
        """The answer to a request, whatever its status; robots.txt does not matter, and redirects are not followed.

        Raises ConnectorError if the address check refuses it, if there is no response, or if it is too large.
        """
        attempt = 0
        while True:
            pause = 2.0**attempt
            attempt += 1
            try:
                page = self._request(url, method, max_bytes, body, headers or {})
            except (HTTPError, OSError) as error:
                if attempt > self._retries:
                    message = re.sub(r"^Guarded\w+\(.*?\): ", "", str(error))
                    reason = hide(message, self._location, self._authorization or "")
                    hint = "Check the address; the next ingest tries again."
                    raise ConnectorError(f"{self._shown(url)} cannot be reached: {reason}.", hint) from None
            else:
                if page.status not in _RETRY_STATUSES or attempt > self._retries:
                    return page
                retry_after = page.headers.get("Retry-After", "").strip()
                with contextlib.suppress(ValueError, TypeError):
                    seconds = (
                        float(retry_after)
                        if retry_after.isdecimal()
                        else parsedate_to_datetime(retry_after).timestamp() - time.time()
                    )
                    pause = max(pause, seconds)
            _log.debug("%s: retry in %.1f s", url.partition("?")[0], pause)  # a query may hold a secret
            self.sleep(min(pause, _MAX_PAUSE_SECONDS))

    def _shown(self, url: str) -> str:
        """A URL for messages: that of another site without its query, which may be the key to a file."""
        return url if origin_of(url) == origin_of(self._location) else url.partition("?")[0]

    def _request(
        self, url: str, method: str, max_bytes: int, body: bytes | None, own_headers: Mapping[str, str]
    ) -> Page:
        host, origin = _parse_url(url).netloc or "", origin_of(url)
        delay = self._next_request.get(host, 0.0) - time.monotonic()
        if delay > 0:
            self.sleep(delay)
        rules = self._robots.get(origin)
        crawl_delay = float(rules.crawl_delay(self._user_agent) or 0) if rules is not None else 0.0
        pause = min(max(self._pause, crawl_delay), _MAX_PAUSE_SECONDS)
        self._next_request[host] = time.monotonic() + pause

        headers = {"User-Agent": self._user_agent, "Accept-Encoding": "gzip, deflate", **own_headers}
        if origin == origin_of(self._location):
            user, _, password = (_parse_url(self._location).auth or "").partition(":")
            if user:
                credentials = ":".join(unquote(expand(unquote(part))) for part in (user, password))
                headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
            elif self._authorization:
                headers["Authorization"] = expand(self._authorization, quoted=False)
        response = self._pools.urlopen(
            method,
            url,
            body=body,
            headers=headers,
            redirect=False,
            retries=False,
            preload_content=False,
            decode_content=True,
        )
        redirected, data = response.status in _REDIRECT_STATUSES, bytearray()
        try:
            if method == "HEAD":
                response.drain_conn()
            elif not redirected:
                too_large = TooLargeError(f"{self._shown(url)}: more than {max_bytes:,} bytes.")
                length = response.headers.get("Content-Length", "")
                if length.isdecimal() and int(length) > max_bytes:
                    response.close()
                    raise too_large
                end = time.monotonic() + _MAX_READ_SECONDS
                while piece := response.read(_READ_BYTES):
                    data += piece
                    if len(data) > max_bytes:
                        response.close()
                        raise too_large
                    if time.monotonic() > end:
                        response.close()
                        raise TimeoutError(f"it took more than {_MAX_READ_SECONDS:.0f} seconds")
        finally:
            if redirected:
                response.close()
            else:
                response.release_conn()
        return Page(url, response.status, response.headers, bytes(data))


def client_of_site(location: str, authorization: str | None, retries: int) -> tuple[str, Client]:
    """The canonical URL of a location without user and final slash, and a client for its site, public or private.

    Raises ConfigError for a secret that is not an environment variable, and for an invalid address.
    """
    check_no_secret(location)
    if authorization is not None:
        check_variable("authorization", authorization)
    try:
        root = canonical_url(without_user(location)).rstrip("/")
    except ConnectorError as error:
        raise ConfigError(error.message, error.hint) from None
    site = parse_url(root)  # which the user has named, so it may be a private one
    hosts = {site.netloc or "", site.host or ""}
    return root, Client(location, authorization, pause=0, retries=retries, allow_hosts=hosts)


def canonical_url(url: str, *, base: str = "") -> str:
    """A URL in canonical form: lower-case host, without user, fragment and default port.

    A relative URL is resolved against `base`. Raises ConnectorError unless it is http or https.
    """
    try:
        parsed = parse_url(urljoin(base, url.strip()) if base else url.strip())
        port = parsed.port
    except (LocationParseError, ValueError):
        raise ConnectorError(f"{without_secrets(url)!a} is not a web address.") from None
    if parsed.scheme not in _DEFAULT_PORTS or not parsed.host:
        raise ConnectorError(
            f"{without_secrets(url)!a} is not a web address.", "It must begin with https:// or http://."
        )
    port = None if port == _DEFAULT_PORTS[parsed.scheme] else port
    return Url(parsed.scheme, None, parsed.host, port, parsed.path or "/", parsed.query, None).url


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL."""
    parsed = parse_url(canonical_url(url))
    return f"{parsed.scheme}://{parsed.netloc}"


def _parse_url(url: str) -> Url:
    try:
        return parse_url(url)
    except LocationParseError:
        raise ConfigError(f"{url!a} is not a valid address.") from None


def redirect_target(page: Page) -> str | None:
    """The URL that a response redirects to, None if it does not. Raises ConnectorError unless it is http or https."""
    target = page.headers.get("Location")
    if page.status not in _REDIRECT_STATUSES or not target:
        return None
    with contextlib.suppress(UnicodeError):  # headers are decoded as Latin-1, but servers send UTF-8
        target = target.encode("latin-1").decode()
    return canonical_url(target, base=page.url)
