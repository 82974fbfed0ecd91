"""Files of SharePoint sites and of OneDrive, through Microsoft Graph."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias
from urllib.parse import quote, unquote, urlencode, urlsplit

from ragfm.core.access_groups import intersect_groups, still_allows
from ragfm.core.errors import ConfigError, ConnectorError, SourceError
from ragfm.core.identities import Identities
from ragfm.core.types import Blob, Ref
from ragfm_connectors.access_files import ACCESS_FILE, AccessRule, parse_access_file
from ragfm_connectors.patterns import PathFilter, join_path
from ragfm_connectors.rest_api import known_fields
from ragfm_connectors.secrets import check_no_secret, check_variable, expand, hide
from ragfm_connectors.web_client import Client, Page, canonical_url, origin_of

_MAX_ANSWER_BYTES = 64 << 20
_MAX_LISTINGS = 3  # of a library whose page tokens expire
_RENEW_SECONDS = 60  # before a token expires
_FIELDS = "id,name,parentReference,root,folder,file,size,eTag,lastModifiedDateTime,deleted,shared"
_READING = {"read", "write", "owner", "sp.full control"}


_Groups: TypeAlias = tuple[str, ...] | None


class _ExpiredError(ConnectorError):
    """The token of a listing's page has expired."""


@dataclass(frozen=True, slots=True)
class _Item:
    """A file or folder of a library. `own` if its permissions may differ from those of its folder."""

    id: str
    name: str
    kind: str
    revision: str
    size: int
    own: bool


class SharepointConnector:
    """All files of a SharePoint site or a OneDrive, of one of its libraries, or below a folder or file in it.

    The location is a web address: `https://TENANT.sharepoint.com/sites/NAME`, optionally followed by the path of a
    library, folder or file. The path of a document is the rest of its address. The revision is the hash of the content,
    else the ETag. An application of the tenant reads: `tenant` and `client_id` are its ids, `client_secret` is an
    environment variable, `${NAME}`. Its tokens come from `login` and are sent only to `graph`; national clouds have
    others. Failed requests are repeated `retries` times, after as long as the server asks for, up to a minute.

    `include` and `exclude` are patterns as in .gitignore. Hidden files unless `hidden` is set, and files larger than
    `max_bytes`, are skipped. Access files apply as in a folder of files. With `identities`, the path of a mapping file
    (`ragfm.core.identities`), files are visible to those who may read them by their permissions and sharing links.
    """

    fetch_anywhere = True
    parallel_fetches = 4

    def __init__(
        self,
        location: str,
        *,
        tenant: str = "",
        client_id: str = "",
        client_secret: str = "",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        hidden: bool = False,
        retries: int = 3,
        identities: str | None = None,
        graph: str = "https://graph.microsoft.com",
        login: str = "https://login.microsoftonline.com",
        max_bytes: int = 100 * 2**20,
    ) -> None:
        """Raises ConfigError for an invalid address, a missing id, and a secret that is not a variable."""
        check_no_secret(location, user=True)
        if not (tenant and client_id and client_secret):
            raise ConfigError(
                "The connector `sharepoint` needs the options `tenant`, `client_id` and `client_secret`.",
                "Register an application in Microsoft Entra ID: docs/connectors.md#sharepoint.",
            )
        check_variable("client_secret", client_secret)
        try:
            parts = urlsplit(canonical_url(location))
            self._graph, self._login = origin_of(graph), origin_of(login)
        except ConnectorError as error:
            raise ConfigError(error.message, error.hint) from None
        collection, _, path = unquote(parts.path).strip("/").partition("/")
        site, _, self._inside = path.partition("/")
        if collection not in ("sites", "teams", "personal") or not site or parts.query:
            raise ConfigError(
                f"{location!r} is not the address of a SharePoint site.",
                "Use a form such as https://TENANT.sharepoint.com/sites/NAME/Library/folder.",
            )
        self.root = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
        """The address of the location."""
        self._site = f"/sites/{parts.hostname}:/{collection}/{quote(site)}:"
        self._libraries: dict[str, str] | None = None
        self._paths, self._hidden, self._max_bytes = PathFilter(include, exclude), hidden, max_bytes
        self.identities = Identities(identities) if identities is not None else None
        """The groups that users, groups and links stand for; None if permissions do not matter."""
        self._application, self._secret = (tenant, client_id), client_secret
        self._token, self._expires = "", 0.0
        hosts = {urlsplit(origin).hostname or "" for origin in (self._graph, self._login)}  # which the user has named
        self._client = Client(self._graph, pause=0, retries=retries, allow_hosts=hosts)

    def refs(self) -> Iterator[Ref]:
        """All files. What cannot be listed yields a Ref with `error`. Raises SourceError if this is the location."""
        self._libraries = None
        library, _, folder = self._inside.partition("/")
        for name in [library] if library else sorted(self._read_libraries()):
            path = "" if library else name
            if path and not self._paths.may_contain(path):
                continue
            try:
                drive = self._drive(name)
                item, children, lost = self._list(drive)
                source = item  # whose permissions apply
                for part in folder.split("/") if folder else ():
                    found = [child for child in children[item.id] if child.name.lower() == part.lower()]
                    if not found:
                        raise ConnectorError(f"{self.root}: there is no such file or folder.")
                    item = found[0]
                    source = item if item.own else source
                readers = self._readers(drive, source)
            except ConnectorError as error:
                if library:
                    raise SourceError(error.message, error.hint) from None
                yield Ref(path, error=error.message)
                continue
            if lost:
                yield Ref(path, error=f"the server lists {lost} files and folders without their folder")
            if item.kind == "file":
                yield self._file_ref(path, item, readers)
            else:
                yield from self._walk(drive, path, item, readers, children)

    def _walk(
        self, drive: str, path: str, item: _Item, readers: _Groups, children: Mapping[str, list[_Item]]
    ) -> Iterator[Ref]:
        """The files below a folder. `readers` are the groups that its permissions allow."""
        waiting: list[tuple[str, _Item, _Groups, _Groups]] = [(path, item, readers, None)]
        while waiting:
            folder, item, readers, allow = waiting.pop()
            entries = sorted(children[item.id], key=lambda entry: entry.name)
            access = next((self._access_rule(drive, entry) for entry in entries if entry.name == ACCESS_FILE), None)
            if access is not None and access.problem:
                yield access.problem_ref(folder)
            allow = intersect_groups(allow, access.groups if access is not None else None)
            for entry in entries:
                name, path = entry.name, join_path(folder, entry.name)
                wanted = (self._paths.may_contain if entry.kind == "folder" else self._paths.includes)(path)
                if name == ACCESS_FILE or not wanted:
                    continue
                if name in ("", ".", "..") or "/" in name or name.encode("utf-8", "replace").decode() != name:
                    shown = f"#{name!a}".replace("/", "%2F")
                    yield Ref(join_path(folder, shown), skip="its name is not a valid path")
                    continue
                if name.startswith(".") and not self._hidden:
                    yield Ref(path, skip="hidden")
                    continue
                try:
                    own_readers = self._readers(drive, entry) if entry.own else readers
                except ConnectorError as error:
                    reason = f"its permissions cannot be read: {error.message} {error.hint}"
                    yield Ref(path, entry.revision, error=reason.strip(), allow=allow)
                    continue
                if entry.kind == "folder":
                    waiting.append((path, entry, own_readers, allow))
                else:
                    yield self._file_ref(path, entry, intersect_groups(allow, own_readers))

    @known_fields()
    def fetch(self, ref: Ref) -> Blob:
        """The content of a file, with the time `modified` as metadata. Raises ConnectorError if it has changed."""
        library, _, path = join_path(self._inside, ref.path).partition("/")
        drive = self._drive(library)
        address = f"/drives/{quote(drive)}/root:/{quote(path)}"
        page = self._download(f"{address}:/content", self._max_bytes)
        now = _json(self._send(f"{self._graph}/v1.0{address}?$select={_FIELDS}"))
        item = _item(now)
        # New content may have come with new permissions.
        if item.revision != ref.revision or not still_allows(self._readers(drive, item), ref.allow):
            raise ConnectorError(
                f"{ref.path or self.root} has changed since it was listed.", "The next ingest reads it again."
            )
        modified = str(now.get("lastModifiedDateTime") or "").replace("Z", "+00:00")
        return Blob(page.data, page.media_type, {"modified": modified} if modified else {})

    def _file_ref(self, path: str, item: _Item, allow: _Groups) -> Ref:
        if item.kind != "file":
            return Ref(path, skip="not a file: a notebook or a shortcut")
        if item.size > self._max_bytes:
            return Ref(path, skip=f"{item.size:,} bytes; the limit is {self._max_bytes:,} (`files.max_mb`)")
        return Ref(path, item.revision, allow=allow)

    def _access_rule(self, drive: str, item: _Item) -> AccessRule:
        try:
            page = self._download(f"/drives/{quote(drive)}/items/{quote(item.id)}/content", _MAX_ANSWER_BYTES)
            return parse_access_file(page.data)
        except ConnectorError as error:
            return AccessRule((), f"it cannot be read: {error.message}")

    # --- Requests ------------------------------------------------------------------------------------------------

    @known_fields()
    def _read_libraries(self) -> dict[str, str]:
        """The ids of the site's libraries by the last part of their addresses."""
        if self._libraries is None:
            site = _json(self._send(f"{self._graph}/v1.0{self._site}?$select=id")).get("id", "")
            drives = [drive for page in self._pages(f"/sites/{quote(site)}/drives") for drive in page["value"]]
            self._libraries = {
                unquote(drive.get("webUrl", "").rstrip("/")).rpartition("/")[2]: drive["id"] for drive in drives
            }
        return self._libraries

    def _drive(self, library: str) -> str:
        libraries = self._read_libraries()
        if library not in libraries:
            raise ConnectorError(f"{self.root}: the site has no library {library!r}.", f"It has {sorted(libraries)}.")
        return libraries[library]

    @known_fields()
    def _list(self, drive: str) -> tuple[_Item, dict[str, list[_Item]], int]:
        """The root of a library, what is in each folder by its id, and the number of items whose folder is missing.

        A delta query is the only listing that Graph guarantees to be complete while files change. With
        `hierarchicalsharing`, items have `shared` only if they do not inherit their permissions. Where the server does
        not confirm this, which takes the permission Sites.FullControl.All, each file's are read.
        """
        headers = {"Prefer": "hierarchicalsharing"} if self.identities is not None else {}
        for _ in range(_MAX_LISTINGS):
            found: dict[str, tuple[str, _Item]] = {}
            root = None
            try:
                for page in self._pages(f"/drives/{quote(drive)}/root/delta?$select={_FIELDS}&$top=999", headers):
                    for entry in page["value"]:
                        found.pop(entry["id"], None)  # an item may be listed again, as it has become
                        if "root" in entry:
                            root = _item(entry)
                        elif "deleted" not in entry:
                            own = "shared" in entry if page["hierarchical"] else "file" in entry
                            parent = (entry.get("parentReference") or {}).get("id", "")
                            found[entry["id"]] = parent, _item(entry, own=own and self.identities is not None)
            except _ExpiredError:
                continue
            if root is None or not page.get("@odata.deltaLink"):
                raise ConnectorError(f"{self.root}: the server's listing is incomplete.", "Nothing was changed.")
            children = defaultdict[str, list[_Item]](list)
            for parent, item in found.values():
                children[parent].append(item)
            return root, children, sum(parent != root.id and parent not in found for parent, _ in found.values())
        raise ConnectorError(f"{self.root}: its listing expired {_MAX_LISTINGS} times.", "The next ingest tries again.")

    @known_fields()
    def _readers(self, drive: str, item: _Item) -> _Groups:
        """The groups that may read an item, None for everybody. Raises ConnectorError."""
        if self.identities is None:
            return None
        pages = self._pages(f"/drives/{quote(drive)}/items/{quote(item.id)}/permissions")
        return self.identities.groups([name for page in pages for rule in page["value"] for name in _grantees(rule)])

    def _pages(self, path: str, headers: Mapping[str, str] | None = None) -> Iterator[dict[str, Any]]:
        """The pages of a collection. `hierarchical` in a page says whether the server applies that preference."""
        url = f"{self._graph}/v1.0{path}"
        while url:
            answer = self._send(url, headers)
            page = _json(answer)
            entries = page.get("value")
            if not isinstance(entries, list) or not all(isinstance(it, dict) and "id" in it for it in entries):
                raise ConnectorError(f"{self.root}: the server's answer is not a page of Microsoft Graph.")
            page["hierarchical"] = "hierarchicalsharing" in answer.headers.get("Preference-Applied", "")
            yield page
            url = page.get("@odata.nextLink", "")

    def _download(self, path: str, max_bytes: int) -> Page:
        """The content of an item. It usually is on another host, which gets no token."""
        page = self._send(f"{self._graph}/v1.0{path}", max_bytes=max_bytes)
        if page.status == 200:
            return page
        page = self._client.send(page.headers.get("Location") or "none", "GET", max_bytes)
        if page.status != 200:
            raise ConnectorError(f"the download failed with status {page.status}.", "The next ingest tries again.")
        return page

    def _send(self, url: str, headers: Mapping[str, str] | None = None, max_bytes: int = _MAX_ANSWER_BYTES) -> Page:
        """The answer of Graph: status 200, or a redirect. Raises ConnectorError, SourceError for wrong credentials."""
        if origin_of(url) != self._graph:
            raise ConnectorError(f"{self.root}: the server continues its listing on {origin_of(url)}.")
        for renew in (False, True):  # a token may be revoked before it expires
            authorization = {"Authorization": f"Bearer {self._access_token(renew=renew)}"}
            page = self._client.send(url, "GET", max_bytes, None, {**(headers or {}), **authorization})
            if page.status != 401:
                break
        if page.status in (200, 302):
            return page
        reason = f"the server responded with status {page.status} {_error_text(page)}".rstrip()
        hint = "The next ingest tries again."
        if page.status == 410:
            raise _ExpiredError(f"{self.root}: {reason}.", hint)
        if page.status == 401:
            raise SourceError(f"{self.root}: {reason}.", "Check the application in Entra ID. Nothing was changed.")
        if page.status == 403:
            hint = "Grant the application Sites.Read.All, and Sites.FullControl.All for `identities`."
        where = unquote(urlsplit(url).path.removeprefix("/v1.0"))
        raise ConnectorError(f"{self.root}: {reason} for {where}.", hint)

    @known_fields()
    def _access_token(self, *, renew: bool) -> str:
        if renew or time.monotonic() >= self._expires:
            tenant, client_id = self._application
            form = {
                "grant_type": "client_credentials",
                "client_id": client_id,
                "client_secret": expand(self._secret, quoted=False),
                "scope": f"{self._graph}/.default",
            }
            url = f"{self._login}/{quote(tenant)}/oauth2/v2.0/token"
            content_type = {"Content-Type": "application/x-www-form-urlencoded"}
            page = self._client.send(url, "POST", _MAX_ANSWER_BYTES, urlencode(form).encode(), content_type)
            if page.status != 200:
                raise SourceError(
                    f"{self._login} refuses the application (status {page.status}): "
                    f"{hide(_error_text(page), self._secret)}.",
                    "Check tenant, client_id and the environment variable of client_secret. Nothing was changed.",
                )
            answer = _json(page)
            self._token = str(answer.get("access_token", ""))
            self._expires = time.monotonic() + float(answer.get("expires_in", 0)) - _RENEW_SECONDS
        return self._token


def _item(entry: Mapping[str, Any], *, own: bool = False) -> _Item:
    kind = next((kind for kind in ("folder", "file") if kind in entry), "other")
    # The hash stays when only metadata or permissions change. Delta queries lack the cTag.
    content_hash = ((entry.get("file") or {}).get("hashes") or {}).get("quickXorHash")
    revision = f"hash:{content_hash}" if content_hash else f"etag:{entry.get('eTag', '')}"
    return _Item(str(entry["id"]), str(entry.get("name", "")), kind, revision, int(entry.get("size") or 0), own)


def _grantees(permission: Mapping[str, Any]) -> Iterator[str]:
    """The identities that a permission lets read: mail addresses, else ids; `site:NAME`; `link:SCOPE`."""
    expires = str(permission.get("expirationDateTime") or "")
    expired = "0002" < expires < datetime.now(UTC).isoformat()  # the year 1 stands for never
    if expired or permission.get("hasPassword") or not _READING & set(permission.get("roles") or ()):
        return
    scope = (permission.get("link") or {}).get("scope")
    if scope in ("anonymous", "organization"):
        yield f"link:{scope}"
    for grantee in [permission.get("grantedToV2") or {}, *(permission.get("grantedToIdentitiesV2") or [])]:
        if "siteGroup" in grantee:
            yield f"site:{grantee['siteGroup'].get('displayName')}"
            continue
        facets = [grantee[kind] for kind in ("user", "group", "siteUser") if grantee.get(kind)]
        mails = [facet["email"] for facet in facets if facet.get("email")]
        ids = [grantee[kind]["id"] for kind in ("user", "group") if (grantee.get(kind) or {}).get("id")]
        ids += [facet["loginName"] for facet in facets if facet.get("loginName")]
        owners = [name.rpartition("|")[2] for name in ids if name.endswith("_o")]
        yield from (owners or mails or ids)[:1]  # ID_o are only the owners of the group ID


def _json(page: Page) -> dict[str, Any]:
    try:
        answer = json.loads(page.data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ConnectorError(f"{urlsplit(page.url).netloc}: the server's answer is not a JSON object.")
    return answer


def _error_text(page: Page) -> str:
    """What Graph or the token endpoint say of an error, in one line."""
    try:
        answer = _json(page)
    except ConnectorError:
        return ""
    error = answer.get("error")
    text = f"({error.get('code')})" if isinstance(error, dict) else answer.get("error_description") or error or ""
    return " ".join(str(text).split())
