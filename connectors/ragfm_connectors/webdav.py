"""Files of a WebDAV server (RFC 4918)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from urllib.parse import quote, unquote, urlsplit
from xml.etree.ElementTree import Element, ParseError  # the types only

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import iterparse

from ragfm.core.access_groups import intersect_groups, still_allows
from ragfm.core.errors import ConnectorError, SourceError
from ragfm.core.identities import Identities
from ragfm.core.types import Blob, Ref
from ragfm_connectors.access_files import ACCESS_FILE, AccessRule, parse_access_file
from ragfm_connectors.patterns import PathFilter, join_path
from ragfm_connectors.secrets import without_user
from ragfm_connectors.web_client import Page, TooLargeError, client_of_site

_MAX_LISTING_BYTES = 256 << 20  # of one folder
_MAX_LEVELS = 100  # a folder may be bound into itself
_PROPERTIES = ("resourcetype", "getetag", "getlastmodified", "getcontentlength")
_ACL_PROPERTIES = ("acl", "owner")
_READING = {"{DAV:}read", "{DAV:}all"}


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file or folder. `identities` may read it by its ACL, None if the server does not show one."""

    path: str
    is_folder: bool
    revision: str
    size: int
    identities: tuple[str, ...] | None
    error: str | None


class WebdavConnector:
    """All files below an address, or a single file, on a WebDAV server.

    The path of a document is that of the file below the location. The revision is the server's ETag, else size and time
    of change. A listing asks once for each folder; only new and changed files are fetched. User and password of the
    location, `https://ann:${PASSWORD}@host/folder`, or `authorization`, the value of that header such as
    `Bearer ${TOKEN}`, are sent only to the location's own site, which may have a private address; redirects are not
    followed. Failed requests are repeated `retries` times, after as long as the server asks for, up to a minute.

    `include` and `exclude` are patterns as in .gitignore. Hidden files unless `hidden` is set, and files larger than
    `max_bytes`, are skipped. Access files apply as in a folder of files. With `identities`, the path of a mapping file
    (`ragfm.core.identities`), files are visible to those who may read them by the property `DAV:acl` (RFC 3744).
    """

    fetch_anywhere = True
    parallel_fetches = 4

    def __init__(
        self,
        location: str,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        hidden: bool = False,
        retries: int = 3,
        authorization: str | None = None,
        identities: str | None = None,
        max_bytes: int = 100 * 2**20,
    ) -> None:
        """Raises ConfigError for a secret that is not an environment variable, and for an invalid address."""
        self.root, self._client = client_of_site(location, authorization, retries)
        """The URL of the location, without user."""
        parts = urlsplit(self.root)
        self._base, self._site = unquote(parts.path), f"{parts.scheme}://{parts.netloc}"
        self._paths, self._hidden, self._max_bytes = PathFilter(include, exclude), hidden, max_bytes
        self.identities = Identities(identities) if identities is not None else None
        """The groups that the server's principals stand for; None if its ACLs do not matter."""

    def refs(self) -> Iterator[Ref]:
        """All files. What cannot be listed yields a Ref with `error`. Raises SourceError if this is the location."""
        waiting: list[tuple[str, tuple[str, ...] | None]] = [("", None)]
        while waiting:
            folder, allow = waiting.pop()
            try:
                entries = {entry.path: entry for entry in self._list(folder)}
            except ConnectorError as error:
                if not folder:
                    raise SourceError(error.message, error.hint) from None
                yield Ref(folder, error=error.message, allow=allow)
                continue
            itself = entries.pop(folder, None)
            if itself is not None and not itself.is_folder:
                if not folder:
                    yield self._file_ref(itself, None)
                continue
            access = self._read_access_file(folder) if join_path(folder, ACCESS_FILE) in entries else AccessRule()
            if access.problem:
                yield access.problem_ref(folder)
            groups = intersect_groups(allow, access.groups)
            for path, entry in sorted(entries.items()):
                name = path.rpartition("/")[2]
                wanted = (self._paths.may_contain if entry.is_folder else self._paths.includes)(path)
                if name == ACCESS_FILE or not wanted:
                    continue
                if name in (".", "..") or "\ufffd" in name:
                    yield Ref(f"{folder}/#{name!a}".lstrip("/"), skip="its name is not a valid path")
                elif name.startswith(".") and not self._hidden:
                    yield Ref(path, skip="hidden")
                elif entry.error or (entry.is_folder and path.count("/") > _MAX_LEVELS):
                    yield Ref(path, error=entry.error or f"more than {_MAX_LEVELS} folders in each other", allow=groups)
                elif entry.is_folder:
                    waiting.append((path, groups))
                else:
                    yield self._file_ref(entry, groups)

    def fetch(self, ref: Ref) -> Blob:
        """The content of a file, with the time `modified` as metadata. Raises ConnectorError if it has changed."""
        try:
            page = self._send("GET", ref.path, max_bytes=self._max_bytes)
        except TooLargeError as error:
            raise ConnectorError(f"{error.message.rstrip('.')}: it has grown.") from None
        # New content may have come with a new ACL. A server may also send other ETags than it lists.
        if self.identities is not None or _etag(page.headers.get("ETag", "")) != ref.revision:
            entry = next(iter(self._list(ref.path, depth="0")), None)
            groups = self._groups(entry) if entry is not None else ()
            if entry is None or entry.revision != ref.revision or not still_allows(groups, ref.allow):
                raise ConnectorError(
                    f"{ref.path or self.root} has changed since it was listed.", "The next ingest reads it again."
                )
        return Blob(page.data, page.media_type, page.modified)

    def _file_ref(self, entry: _Entry, allow: tuple[str, ...] | None) -> Ref:
        if entry.size > self._max_bytes:
            return Ref(entry.path, skip=f"{entry.size:,} bytes; the limit is {self._max_bytes:,} (`files.max_mb`)")
        error = None
        if self.identities is not None and entry.identities is None:
            error = "its permissions cannot be read: the server does not show the property DAV:acl"
        elif not entry.revision:
            error = "the server gives neither its ETag nor its time of change"
        groups = None if error else self._groups(entry)
        return Ref(entry.path, entry.revision, error=error, allow=intersect_groups(allow, groups))

    def _groups(self, entry: _Entry) -> tuple[str, ...] | None:
        return self.identities.groups(entry.identities or ()) if self.identities is not None else None

    def _read_access_file(self, folder: str) -> AccessRule:
        try:
            return parse_access_file(self._send("GET", join_path(folder, ACCESS_FILE)).data)
        except ConnectorError as error:
            return AccessRule((), f"it cannot be read: {error.message}")

    # --- Requests ------------------------------------------------------------------------------------------------

    def _list(self, path: str, depth: str = "1") -> Iterator[_Entry]:
        """A file or folder, and with depth 1 what is in it. Raises ConnectorError."""
        wanted = _PROPERTIES + (_ACL_PROPERTIES if self.identities is not None else ())
        body = f'<propfind xmlns="DAV:"><prop>{"".join(f"<{name}/>" for name in wanted)}</prop></propfind>'
        page = self._send("PROPFIND", path, body.encode(), depth=depth)
        try:
            for _, element in iterparse(BytesIO(page.data)):
                if element.tag == "{DAV:}response":
                    entry_path = self._path(element.findtext("{DAV:}href", ""))
                    inner = entry_path is not None and entry_path.rpartition("/")[0] == path and entry_path != ""
                    if entry_path is not None and (entry_path == path or inner):
                        yield _read_entry(element, entry_path)
                    element.clear()
        except (ParseError, DefusedXmlException) as error:
            raise ConnectorError(f"{self._url(path)}: the server's answer is not valid XML: {error}.") from None

    def _send(
        self, method: str, path: str, body: bytes | None = None, *, depth: str = "", max_bytes: int = _MAX_LISTING_BYTES
    ) -> Page:
        """The answer to a request that succeeded. Raises ConnectorError, and SourceError for wrong credentials."""
        url = self._url(path)
        headers = {"Accept-Encoding": "identity"}  # what is compressed may have another ETag
        if body is not None:
            headers |= {"Depth": depth, "Content-Type": "application/xml"}
        page = self._client.send(url, method, max_bytes, body, headers)
        if page.status == (200 if body is None else 207):
            return page
        if page.status == 401:
            raise SourceError(
                f"{self.root}: the server refuses the user name, password or token (status 401).",
                "Check the environment variables; a token may have expired. Nothing was changed.",
            )
        reason = f"the server responded with status {page.status}"
        if page.status == 404:
            reason = "there is no such file or folder"
        elif 300 <= page.status < 400:
            reason = f"it redirects to {without_user(page.headers.get('Location', ''))}; use that address"
        elif body is not None and page.status in (200, 405, 501):
            reason += ", so it does not speak WebDAV here"
        raise ConnectorError(f"{url}: {reason}.", "The next ingest tries again.")

    def _url(self, path: str) -> str:
        return f"{self._site}{quote(join_path(self._base, path), safe='/!$&()*+,;=:@~')}"

    def _path(self, href: str) -> str | None:
        """The path below the location of an address that the server lists, None for one elsewhere."""
        path = unquote(urlsplit(href.strip()).path).rstrip("/")
        if path == self._base:
            return ""
        return path.removeprefix(f"{self._base}/") if path.startswith(f"{self._base}/") else None


def _read_entry(response: Element, path: str) -> _Entry:
    found: dict[str, Element] = {}
    for part in response.findall("{DAV:}propstat"):
        if " 200" in part.findtext("{DAV:}status", ""):
            found |= {element.tag.removeprefix("{DAV:}"): element for element in part.findall("{DAV:}prop/*")}
    text = {name: (element.text or "").strip() for name, element in found.items()}
    size, modified = text.get("getcontentlength", ""), text.get("getlastmodified", "")
    revision = _etag(text.get("getetag", "")) or (f"{size}:{modified}" if modified else "")
    is_folder = "resourcetype" in found and found["resourcetype"].find("{DAV:}collection") is not None
    error = None if found else f"the server says: {response.findtext('{DAV:}status', 'nothing about it')}"
    identities = _readers(found["acl"], found.get("owner")) if "acl" in found else None
    return _Entry(path, is_folder, revision, int(size) if size.isdecimal() else 0, identities, error)


def _readers(acl: Element, owner: Element | None) -> tuple[str, ...]:
    """The principals that an ACL (RFC 3744, 5.5) lets read: their paths, and `all` or `authenticated`.

    The rules apply in order. What comes after a refusal does not count: who is in which group is not known here.
    """
    readers: list[str] = []
    for rule in acl.findall("{DAV:}ace"):
        if _READING & {right.tag for right in rule.findall("{DAV:}deny/{DAV:}privilege/*")}:
            break
        principal = rule.find("{DAV:}principal")
        if principal is None or not _READING & {right.tag for right in rule.findall("{DAV:}grant/{DAV:}privilege/*")}:
            continue
        if owner is not None and principal.find("{DAV:}property/{DAV:}owner") is not None:
            principal = owner
        readers += [name for name in ("all", "authenticated") if principal.find(f"{{DAV:}}{name}") is not None]
        readers += [unquote(urlsplit(href.text or "").path).rstrip("/") for href in principal.findall("{DAV:}href")]
    return tuple(readers)


def _etag(value: str) -> str:
    tag = value.strip().removeprefix("W/").strip('"')
    return f"etag:{tag}" if tag else ""
