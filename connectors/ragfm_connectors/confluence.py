"""Pages, blog posts, comments and attachments of Confluence, in the cloud and in a data centre."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from ragfm.core.errors import ConnectorError
from ragfm.core.identities import Identities
from ragfm.core.types import Blob, Ref, Scalar
from ragfm_connectors.patterns import PathFilter
from ragfm_connectors.records import as_path, html_page
from ragfm_connectors.rest_api import AccessRules, ApiError, RestApi, known_fields

_SPACE = re.compile(r"/(?:spaces|display)/([^/?#]+).*$")
_PAGE_SIZE = 100
_SEARCH = "rest/api/content/search"
_EXPAND = "version,space,container,metadata.labels"
_EXPAND_ACCESS = ",ancestors,restrictions.read.restrictions.user,restrictions.read.restrictions.group"

# The storage format is XHTML with elements of its own. CDATA is not part of HTML, whose parsers drop it.
_CDATA = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
_CODE = re.compile(r"<(/?)ac:plain-text-body\b[^>]*>")
_SETTINGS = re.compile(r"<ac:(parameter|task-id|task-uuid|task-status)\b[^>]*?(?:/>|>.*?</ac:\1>)", re.DOTALL)
_BARE_LINK = re.compile(r'<ri:page\b[^>]*\bri:content-title="([^"]*)"[^>]*/>(?=\s*</ac:link>)')


class _Item(NamedTuple):
    """A page, blog post, comment or attachment."""

    id: str
    path: str
    revision: str
    size: int
    space: tuple[str, str]  # key and id
    container: str  # of a comment or attachment, else empty
    ancestors: tuple[str, ...] | None  # None if the site does not name them
    restrictions: Any  # of reading; None if they were not asked for


class ConfluenceConnector:
    """The content of all spaces of a site, or of `spaces`; the location may be that of a space.

    The path of a page or blog post is its id, that of a comment `<page>/<id>`, and that of an attachment
    `<page>/<id>/<file name>`. The revision is made of version, space and labels. A listing asks once for 100 items;
    only new and changed ones are fetched. The listing is a search, so it finds what the site's index has.

    User and API token of the location, `https://ann%40example.org:${TOKEN}@example.atlassian.net/wiki`, or
    `authorization`, the value of that header such as `Bearer ${TOKEN}`, are sent only to the location's own site.
    `include` and `exclude` are patterns for paths. With `identities`, the path of a mapping file
    (`ragfm.core.identities`), an item is visible to those who may view its space and are named by each restriction of
    its page and of the pages above it.
    """

    fetch_anywhere = True
    parallel_fetches = 4

    def __init__(
        self,
        location: str,
        *,
        spaces: Sequence[str] = (),
        comments: bool = True,
        attachments: bool = True,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        retries: int = 3,
        authorization: str | None = None,
        identities: str | None = None,
        max_bytes: int = 100 * 2**20,
    ) -> None:
        """Raises ConfigError for a secret that is not an environment variable, and for an invalid address."""
        space = _SPACE.search(location)
        self._spaces = [space[1]] if space and not spaces else list(spaces)
        self._api = RestApi(location[: space.start()] if space else location, authorization, retries)
        self.root = self._api.root + (f"/spaces/{space[1]}" if space else "")
        """The URL of the location, without user."""
        self._types = ["page", "blogpost", *["comment"] * comments, *["attachment"] * attachments]
        self._paths, self._max_bytes = PathFilter(include, exclude), max_bytes
        self.identities = Identities(identities) if identities is not None else None
        """The groups that the site's users and groups stand for; None if its permissions do not matter."""
        self._items: dict[str, _Item] = {}
        self._ask = cache(self._api.get)  # about users and groups

    def refs(self) -> Iterator[Ref]:
        """All items. Raises SourceError if they cannot all be listed."""
        cql = f"type in ({','.join(self._types)})"
        if self._spaces:
            cql += f" and space in ({','.join(map(json.dumps, self._spaces))})"
        query = {
            "cql": f"{cql} order by created",
            "expand": _EXPAND + (_EXPAND_ACCESS if self.identities is not None else ""),
            "limit": _PAGE_SIZE,
        }
        access = AccessRules(self.identities) if self.identities is not None else None
        items = self._api.list_all(f"{_SEARCH}?{urlencode(query)}", self._read, partial(_next, _SEARCH))
        self._items = {item.id: item for item in items}
        if access is not None:
            with known_fields():
                access.known |= {item.id: _readers(item.restrictions) for item in items if item.restrictions}
        for item in self._items.values():
            if not self._paths.includes(item.path):
                continue
            if item.size > self._max_bytes:
                yield Ref(item.path, skip=f"{item.size:,} bytes; the limit is {self._max_bytes:,} (`files.max_mb`)")
            else:
                allow, error = self._groups(item, access) if access is not None else (None, None)
                yield Ref(item.path, item.revision, error=error, allow=allow)

    def fetch(self, ref: Ref) -> Blob:
        """An item, with its metadata. Raises ConnectorError if it has changed since it was listed."""
        identity, *name = ref.path.split("/")[-2 if ref.path.count("/") > 1 else -1 :]
        expand = _EXPAND + ("" if name else ",body.storage")
        with known_fields():
            try:
                results = [self._api.get(f"rest/api/content/{identity}?expand={expand}")]
            except ApiError as error:
                if error.status != 410:
                    raise
                # The cloud has removed this request for OAuth tokens (it answers those of a user), but not the search.
                query = urlencode({"cql": f'id = "{identity}"', "expand": expand})
                results = self._api.get(f"{_SEARCH}?{query}")["results"]
            (content,) = results
            (item,) = self._read({"results": results})
            if (item.path, item.revision) != (ref.path, ref.revision):  # content and version come in one answer
                raise ConnectorError(f"{ref.path} has changed since it was listed.", "The next ingest reads it again.")
            metadata = _metadata(content, self._api.root)
            if not name:
                page = html_page(str(metadata["title"]), _as_html(content["body"]["storage"]["value"]))
                return Blob(page, "text/html", metadata)
            return Blob(
                self._api.download(content["_links"]["download"], item.size),
                content["extensions"]["mediaType"],
                metadata,
            )

    def _read(self, page: Any) -> Iterator[_Item]:
        for content in page["results"]:
            kind, space, identity = content["type"], content["space"], as_path(str(content["id"]))
            path, container, size = identity, "", 0
            if kind in ("comment", "attachment"):
                container = as_path(str((content.get("container") or {}).get("id", "?")))
                path = f"{container}/{identity}"
            if kind == "attachment":
                path, size = f"{path}/{as_path(content['title'])}", int(content["extensions"]["fileSize"])
            revision = f"{content['version']['number']} {space['key']} {_labels(content)}".rstrip()
            above = content.get("ancestors") if kind == "page" else []
            ancestors = None if above is None else tuple(str(parent["id"]) for parent in above)
            restrictions = content.get("restrictions", {}).get("read", {}).get("restrictions")
            yield _Item(
                identity, path, revision, size, (space["key"], str(space["id"])), container, ancestors, restrictions
            )

    # --- Permissions ---------------------------------------------------------------------------------------------

    def _groups(self, item: _Item, access: AccessRules) -> tuple[tuple[str, ...] | None, str | None]:
        """The groups that may see an item, and why they are not all known."""
        key, identity = item.space
        for _ in range(2):  # an attachment may be that of a comment
            item = self._items.get(item.container, item)
        pages = () if item.container else (*(item.ancestors or ()), item.id)
        groups, problem = access.groups(
            [
                (f"space {key}", lambda: self._space_readers(key, identity)),
                *((page, partial(self._page_readers, page)) for page in pages),
            ]
        )
        if item.container or item.ancestors is None:
            problem = "its permissions cannot be read: the site does not name its page, or the pages above it"
        return groups, problem

    def _page_readers(self, page: str) -> tuple[str, ...] | None:
        path = f"rest/api/content/{quote(page)}/restriction/byOperation/read"
        return _readers(self._api.get(f"{path}?expand=restrictions.user,restrictions.group&limit=200")["restrictions"])

    def _space_readers(self, key: str, identity: str) -> list[str]:
        path = f"api/v2/spaces/{identity}/permissions"  # of the cloud
        try:
            rules = self._api.list_all(
                f"{path}?limit=250",
                lambda page: [(it["operation"]["key"], it["operation"], it["principal"]) for it in page["results"]],
                partial(_next, path),
            )
        except ApiError as error:
            if error.status != 404:
                raise
            found = self._api.get(f"rest/api/space/{quote(key)}/permissions")  # a data centre of 9.1 or later
            rules = [(it["operation"]["operationKey"], it["operation"], it["subject"]) for it in found]
        return [
            self._identity(who)
            for verb, operation, who in rules
            if verb == "read" and operation["targetType"] == "space"
        ]

    def _identity(self, who: Any) -> str:
        """The identity of a user or group of a space: a restriction has a name where a space has an id or a key."""
        kind, identity = who["type"].lower(), who.get("id")
        if kind == "group":
            return f"group:{who.get('name') or self._ask(f'rest/api/group/by-id?id={identity}')['name']}"
        if kind == "user" and not identity:
            identity = self._ask(f"rest/api/user?key={who['userKey']}")["username"]
        return f"{kind}:{identity}" if identity else kind


def _as_html(storage: str) -> str:
    text = _CDATA.sub(lambda match: html.escape(match[1]), storage)
    text = _BARE_LINK.sub(r"\1", _SETTINGS.sub("", text))
    return _CODE.sub(r"<\1pre>", text)


def _metadata(content: Any, root: str) -> dict[str, Scalar]:
    version, title = content["version"], content["title"]
    if content["type"] == "comment":
        title = f"Comment on {content['container'].get('title') or title}"
    found = {
        "title": title,
        "type": content["type"],
        "space": content["space"]["key"],
        "labels": _labels(content),
        "author": (version.get("by") or {}).get("displayName"),
        "modified": version.get("when"),
        "url": content["_links"].get("base", root) + content["_links"]["webui"],
    }
    return {key: value for key, value in found.items() if value}


def _labels(content: Any) -> str:
    labels = content.get("metadata", {}).get("labels", {}).get("results", ())
    return ", ".join(sorted(label["name"] for label in labels))


def _readers(restrictions: Any) -> tuple[str, ...] | None:
    """The identities that a restriction names, None for an empty one, which is no restriction."""
    users = [who.get("accountId") or who.get("username") or who["userKey"] for who in restrictions["user"]["results"]]
    groups = [who["name"] for who in restrictions["group"]["results"]]
    return (*(f"user:{name}" for name in users), *(f"group:{name}" for name in groups)) or None


def _next(path: str, page: Any) -> str | None:
    """The path of the next answer. Its address may lack the context path, such as `/wiki`, so only the query counts."""
    link = page.get("_links", {}).get("next")
    return f"{path}?{urlsplit(link).query}" if link else None
