"""JSON over HTTP: requests to the REST API of one site, listings of several pages, files, and who may read what."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ragfm.core.access_groups import intersect_groups
from ragfm.core.errors import ConnectorError, SourceError
from ragfm.core.identities import Identities
from ragfm_connectors.secrets import without_user
from ragfm_connectors.web_client import Page, canonical_url, client_of_site, origin_of, redirect_target

_T = TypeVar("_T", bound=tuple[Any, ...])
_MAX_ANSWER_BYTES = 64 << 20  # of JSON
_MAX_PASSES = 3  # of a listing that breaks off
_MAX_ERROR_BYTES = 1 << 20
_MAX_QUOTED = 300  # bytes of an error
_MAX_REDIRECTS = 5  # of a file
_START = re.compile(r"([?&]start(?:At)?=)(\d+)")
_EXPIRED = {400, 404, 409, 410}  # what sites answer to the token of a page that they have forgotten


class ApiError(ConnectorError):
    """A request that the site refuses; `status` is that of HTTP."""

    def __init__(self, message: str, hint: str, status: int) -> None:
        super().__init__(message, hint)
        self.status = status


@contextmanager
def known_fields() -> Iterator[None]:
    """Raise ConnectorError where an answer does not have the form that is expected of it."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ConnectorError(f"An answer of the server does not have the expected form: {error!r}.") from None


class RestApi:
    """The REST API below an address. User and password, or `authorization`, are sent only to the site of the address.

    Failed requests are repeated `retries` times, after as long as the server asks for, up to a minute.
    """

    def __init__(self, location: str, authorization: str | None, retries: int) -> None:
        """Raises ConfigError for a secret that is not an environment variable, and for an invalid address."""
        self.root, self.client = client_of_site(location, authorization, retries)
        """The URL of the location, without user, and the client."""

    def get(self, path: str) -> Any:
        """The JSON at a path below the address, or at a URL of the site.

        Raises SourceError for wrong credentials, ApiError for another refusal, and ConnectorError without an answer.
        """
        page = self._send(path, _MAX_ANSWER_BYTES)
        target = redirect_target(page)
        if target is not None:  # to a login page
            raise ConnectorError(f"{page.url} redirects to {without_user(target)}.", "Check the address.")
        try:
            return json.loads(page.data)
        except ValueError:
            raise ConnectorError(f"{page.url}: the answer is not JSON.", "Check the address.") from None

    def download(self, path: str, size: int) -> bytes:
        """A file of this many bytes, after redirects, which may lead to another site. Raises the errors of `get`."""
        limit = max(size, _MAX_ERROR_BYTES)
        page = self._send(path, limit)
        for _ in range(_MAX_REDIRECTS):
            target = redirect_target(page)
            if target is None and len(page.data) == size:
                return page.data
            if target is None:  # such as a login page
                break
            page = self._checked(self.client.send(target, "GET", limit))
        raise ConnectorError(f"{self.root}: {path} does not lead to a file of {size:,} bytes.")

    def list_all(
        self, path: str, read: Callable[[Any], Iterable[_T]], next_page: Callable[[Any], str | None]
    ) -> list[_T]:
        """All items of a listing. `read` gives those of one answer, `next_page` the path or URL of the next, if any.

        If the token of a page expires, the listing starts again: the result is complete, or an error is raised. If the
        next page begins with a number (`start` or `startAt` in its query), it is asked for from one item earlier on,
        which has to be the last of the page before, by its first field: an item that is deleted meanwhile moves all
        others, and one of them would be missing.
        """
        for _ in range(_MAX_PASSES):
            items: list[_T] = []
            seen: set[str] = set()
            address: str | None = path
            overlaps = False
            while address is not None and address not in seen:
                seen.add(address)
                try:
                    answer = self.get(address)
                except ApiError as error:
                    if len(seen) == 1 or error.status not in _EXPIRED:
                        raise
                    break
                with known_fields():
                    found, following = list(read(answer)), next_page(answer)
                if overlaps and (not found or found[0][0] != items[-1][0]):
                    break
                items += found[overlaps:]
                address = following
                if following is not None and items:
                    address = _START.sub(lambda match: f"{match[1]}{int(match[2]) - 1}", following)
                overlaps = address != following
            else:
                if address is None:
                    return items
        raise ConnectorError(f"{self.root}: the listing broke off {_MAX_PASSES} times.", "The next ingest tries again.")

    def _send(self, path: str, max_bytes: int) -> Page:
        url = canonical_url(path) if "://" in path else f"{self.root}/{path.lstrip('/')}"
        if origin_of(url) != origin_of(self.root):
            raise ConnectorError(f"{self.root} names an address of another site, {without_user(url)}.")
        return self._checked(self.client.send(url, "GET", max_bytes, headers={"Accept": "application/json, */*"}))

    def _checked(self, page: Page) -> Page:
        if page.status < 400:
            return page
        if page.status == 401:
            raise SourceError(
                f"{self.root}: the server refuses the user name, password or token (status 401).",
                "Check the environment variables; a token may have expired. Nothing was changed.",
            )
        said = " ".join(page.data[:_MAX_QUOTED].decode("utf-8", "replace").split())
        said = f": {said}" if (page.media_type or "").startswith("application/json") else "."
        raise ApiError(
            f"{page.url.partition('?')[0]}: the server responded with status {page.status}{said}",
            "Check the address; the next ingest tries again.",
            page.status,
        )


class AccessRules:
    """Who may read what by the rules of a site, each of which is asked for once, and translated to groups."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities
        self.known: dict[Hashable, Iterable[str] | ConnectorError | None] = {}
        """Identities by rule; None if it restricts nothing, and an error if it cannot be read."""

    def groups(
        self, rules: Iterable[tuple[Hashable, Callable[[], Iterable[str] | None]]]
    ) -> tuple[tuple[str, ...] | None, str | None]:
        """The groups that all rules allow, and why one cannot be read. A rule is a key, and what asks for it."""
        groups: tuple[str, ...] | None = None
        problem = None
        for key, ask in rules:
            if key not in self.known:
                try:
                    with known_fields():
                        self.known[key] = ask()
                except ConnectorError as error:
                    self.known[key] = error
            readers = self.known[key]
            if isinstance(readers, ConnectorError):
                problem = f"its permissions cannot be read: {readers.message}"
            elif readers is not None:
                groups = intersect_groups(groups, self._identities.groups(readers))
        return groups, problem
